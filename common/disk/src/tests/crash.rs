//! Power losses: what each sector may hold after one, and random changes that keep the account.

use std::collections::{BTreeMap, BTreeSet};

use super::{Random, stamped, stamps};
use crate::error::DiskError;
use crate::image::{Image, ZeroMode};

/// What each sector may hold after a power loss now.
pub(crate) struct Model {
    /// What was written last.
    last: Vec<u64>,
    /// What else may be there, of sectors that changed since they were durable.
    older: BTreeMap<usize, BTreeSet<u64>>,
}

impl Model {
    /// Of an image whose content is durable.
    pub(crate) fn new(content: Vec<u64>) -> Self {
        Self {
            last: content,
            older: BTreeMap::new(),
        }
    }

    pub(crate) fn sectors(&self) -> u64 {
        u64::try_from(self.last.len()).unwrap()
    }

    /// What was written last, answered or not.
    pub(crate) fn last(&self) -> &[u64] {
        &self.last
    }

    /// Sectors are about to be changed.
    pub(crate) fn change(&mut self, from: u64, count: u64, stamp: u64) {
        for sector in usize::try_from(from).unwrap()..usize::try_from(from + count).unwrap() {
            let before = std::mem::replace(&mut self.last[sector], stamp);
            self.older.entry(sector).or_default().insert(before);
        }
    }

    /// Sectors were written through.
    pub(crate) fn durable(&mut self, from: u64, count: u64) {
        for sector in usize::try_from(from).unwrap()..usize::try_from(from + count).unwrap() {
            self.older.remove(&sector);
        }
    }

    /// The image was flushed.
    pub(crate) fn all_durable(&mut self) {
        self.older.clear();
    }

    /// Each sector is old or new, and new where it was durable.
    pub(crate) fn check(&self, image: &dyn Image, what: &str) {
        self.check_stamps(&stamps(image, 0, self.sectors()), what);
    }

    pub(crate) fn check_stamps(&self, found: &[u64], what: &str) {
        assert_eq!(found.len(), self.last.len());
        for (sector, (found, last)) in found.iter().zip(&self.last).enumerate() {
            if found != last {
                let older = self.older.get(&sector);
                assert!(
                    older.is_some_and(|older| older.contains(found)),
                    "{what}: sector {sector} is {found}, not {last} or of {older:?}"
                );
            }
        }
    }
}

/// One random request. The model is told before of what may, and after of what must be there.
pub(crate) fn step(
    image: &dyn Image,
    model: &mut Model,
    random: &mut Random,
    block_sectors: u64,
    stamp: u64,
) -> Result<(), DiskError> {
    let sectors = model.sectors();
    let from = random.below(sectors);
    let count = (1 + random.below(300)).min(sectors - from);
    match random.below(12) {
        0..=5 => {
            let fua = random.below(4) == 0;
            model.change(from, count, stamp);
            image.write_at(&stamped(stamp, count), from * 512, fua)?;
            if fua {
                model.durable(from, count);
            }
        }
        6 | 7 => {
            let from = from / block_sectors * block_sectors;
            let count = (block_sectors * (1 + random.below(3))).min(sectors - from);
            model.change(from, count, 0);
            image.discard(from * 512, count * 512)?;
        }
        8 => {
            let mode = random.one_of(&[ZeroMode::MayUnmap, ZeroMode::KeepAllocated]);
            model.change(from, count, 0);
            image.write_zeroes(from * 512, count * 512, mode, false)?;
        }
        _ => {
            image.flush()?;
            model.all_durable();
        }
    }
    Ok(())
}
