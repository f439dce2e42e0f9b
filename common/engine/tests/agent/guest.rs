//! The guest: ordered, numbered writes over all disks, and everything that a disk may hold afterwards.
//!
//! Each sector that the guest writes says which write it is from. A disk's content is read back as those
//! numbers; zero is a sector never written.

use std::collections::BTreeSet;
use std::sync::Arc;

use sitepair_disk::{DiskError, Image};

pub(crate) const SECTOR: usize = 512;

/// The disks' content as numbers of writes, by disk and sector.
pub(crate) type Content = Vec<Vec<u64>>;

/// Something that changed what the disks should hold.
enum Change {
    Write {
        seq: u64,
        disk: usize,
        sectors: std::ops::Range<usize>,
        /// Whether it is known to have been done whole.
        certain: bool,
    },
    /// What a guest found after a crash that may lose what was not flushed.
    Found(Content),
}

/// How the site that served the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    /// Not at all, or its process was killed: all that was written is there.
    Nothing,
    /// The host lost power: what was not flushed may be gone.
    Unflushed,
}

/// The guest.
pub(crate) struct Guest {
    sizes: Vec<usize>,
    seq: u64,
    history: Vec<Change>,
    /// What each sector may hold now; the last is the newest.
    now: Vec<Vec<Vec<u64>>>,
    /// What each may hold after a power loss, where that differs.
    unflushed: BTreeSet<(usize, usize)>,
    flushed: Vec<Vec<Vec<u64>>>,
    pub(crate) lost: Lost,
    /// Writes that were answered.
    pub(crate) answered: u64,
}

impl Guest {
    pub(crate) fn new(sizes: &[u64]) -> Self {
        let sizes: Vec<usize> = sizes
            .iter()
            .map(|bytes| usize::try_from(*bytes).unwrap() / SECTOR)
            .collect();
        let zeros: Vec<Vec<Vec<u64>>> = sizes.iter().map(|n| vec![vec![0]; *n]).collect();
        Self {
            sizes,
            seq: 0,
            history: Vec::new(),
            now: zeros.clone(),
            unflushed: BTreeSet::new(),
            flushed: zeros,
            lost: Lost::Nothing,
            answered: 0,
        }
    }

    /// Writes some sectors within one block; false when the site refused it.
    pub(crate) fn write(&mut self, images: &[Arc<dyn Image>], at: u64) -> bool {
        let disk = usize::try_from(at % 2).unwrap();
        let first = usize::try_from(at / 2).unwrap() % self.sizes[disk];
        let in_block = 8 - first % 8;
        let count = (usize::try_from(at / 7).unwrap() % 8 + 1)
            .min(in_block)
            .min(self.sizes[disk] - first);
        let seq = self.seq + 1;
        let bytes = seq.to_le_bytes().repeat(count * SECTOR / 8);
        let offset = u64::try_from(first * SECTOR).unwrap();
        let fua = at.is_multiple_of(5);
        let certain = match images[disk].write_at(&bytes, offset, fua) {
            Ok(()) => true,
            Err(DiskError::Closed { .. }) => return false,
            Err(_) => false,
        };
        self.seq = seq;
        let sectors = first..first + count;
        for sector in sectors.clone() {
            let may = &mut self.now[disk][sector];
            if certain {
                may.clear();
            }
            may.push(seq);
            let kept = &mut self.flushed[disk][sector];
            if certain && fua {
                kept.clear();
            }
            kept.push(seq);
            self.unflushed.insert((disk, sector));
        }
        self.answered += u64::from(certain);
        self.history.push(Change::Write {
            seq,
            disk,
            sectors,
            certain,
        });
        certain
    }

    pub(crate) fn flush(&mut self, images: &[Arc<dyn Image>]) -> bool {
        let done = images.iter().all(|image| image.flush().is_ok());
        if done {
            for (disk, sector) in std::mem::take(&mut self.unflushed) {
                self.flushed[disk][sector] = self.now[disk][sector].clone();
            }
        }
        done
    }

    /// A guest starts on these disks: everything that was acknowledged and not lost by a power cut is there.
    pub(crate) fn attach(&mut self, images: &[Arc<dyn Image>]) -> Result<(), String> {
        let found = read(images).ok_or("the disks cannot be read")?;
        for (disk, sectors) in found.iter().enumerate() {
            for (sector, seq) in sectors.iter().enumerate() {
                let may = match self.lost {
                    Lost::Nothing => &self.now[disk][sector],
                    Lost::Unflushed => &self.flushed[disk][sector],
                };
                if !may.contains(seq) {
                    return Err(format!(
                        "disk {disk} sector {sector} holds write {seq}, expected one of {may:?} ({:?})",
                        self.lost
                    ));
                }
            }
        }
        let differs = |disk: usize, sector: usize, seq: u64| self.now[disk][sector] != [seq];
        let settled = found
            .iter()
            .enumerate()
            .any(|(d, sectors)| (0..sectors.len()).any(|s| differs(d, s, sectors[s])));
        if settled {
            self.now = found
                .iter()
                .map(|sectors| sectors.iter().map(|seq| vec![*seq]).collect())
                .collect();
            self.history.push(Change::Found(found));
        }
        if self.lost == Lost::Unflushed {
            // What is there after a power loss is on the platter.
            self.flushed = self.now.clone();
            self.unflushed.clear();
        }
        self.lost = Lost::Nothing;
        Ok(())
    }

    /// Whether a recovery point shows what the disks held after some prefix of all writes, not before `from`; gives
    /// the length of that prefix.
    pub(crate) fn prefix_of(&self, view: &Content, from: usize) -> Option<usize> {
        let mut may: Vec<Vec<Vec<u64>>> = self.sizes.iter().map(|n| vec![vec![0]; *n]).collect();
        let mut wrong: usize = view.iter().flatten().filter(|seq| **seq != 0).count();
        if wrong == 0 && from == 0 {
            return Some(0);
        }
        for (i, change) in self.history.iter().enumerate() {
            match change {
                Change::Write {
                    seq,
                    disk,
                    sectors,
                    certain,
                } => {
                    for sector in sectors.clone() {
                        let (has, may) = (view[*disk][sector], &mut may[*disk][sector]);
                        wrong -= usize::from(!may.contains(&has));
                        if *certain {
                            may.clear();
                        }
                        may.push(*seq);
                        wrong += usize::from(!may.contains(&has));
                    }
                }
                Change::Found(found) => {
                    may = found
                        .iter()
                        .map(|sectors| sectors.iter().map(|seq| vec![*seq]).collect())
                        .collect();
                    let pairs = view.iter().flatten().zip(found.iter().flatten());
                    wrong = pairs.filter(|(a, b)| a != b).count();
                }
            }
            if wrong == 0 && i + 1 >= from {
                return Some(i + 1);
            }
        }
        None
    }

    /// Whether a recovery point shows what the disks hold now.
    pub(crate) fn is_now(&self, view: &Content) -> bool {
        view.iter()
            .flatten()
            .zip(self.now.iter().flatten())
            .all(|(seq, may)| may.contains(seq))
    }
}

/// Reads whole disks; `None` when one of them fails. Panics on a sector that no guest wrote.
pub(crate) fn read(images: &[Arc<dyn Image>]) -> Option<Content> {
    images.iter().map(|image| read_disk(&**image)).collect()
}

fn read_disk(image: &dyn Image) -> Option<Vec<u64>> {
    let size = usize::try_from(image.geometry().size_bytes).unwrap();
    let mut bytes = vec![0; size];
    image.read_at(&mut bytes, 0).ok()?;
    let number = |sector: &[u8]| {
        let seq = u64::from_le_bytes(sector[..8].try_into().unwrap());
        let whole = sector.chunks(8).all(|word| word == seq.to_le_bytes());
        assert!(whole, "a sector holds parts of two writes");
        seq
    };
    Some(bytes.chunks(SECTOR).map(number).collect())
}
