//! Power losses at any moment: every sector is old or new, flushed ones are new, and the file opens.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::{CreateOptions, Kind, VhdImage};
use super::random::{PARENT, make, stamped, stamps};
use super::{Random, open_chain, options, path};
use crate::error::DiskError;
use crate::image::{Image, ZeroMode};
use crate::storage::fake::FakeStorage;

const BLOCK_KIB: u32 = 512;
const SECTORS: u64 = 6 * 1024 * 2 + 8;

/// What each sector may hold after a power loss now.
struct Model {
    allowed: Vec<BTreeSet<u64>>,
    last: Vec<u64>,
}

impl Model {
    fn new(content: Vec<u64>) -> Self {
        Self {
            allowed: content
                .iter()
                .map(|stamp| BTreeSet::from([*stamp]))
                .collect(),
            last: content,
        }
    }

    fn change(&mut self, from: u64, count: u64, stamp: u64) {
        for sector in from..from + count {
            let sector = usize::try_from(sector).unwrap();
            self.allowed[sector].insert(stamp);
            self.last[sector] = stamp;
        }
    }

    fn durable(&mut self, from: u64, count: u64) {
        for sector in from..from + count {
            let sector = usize::try_from(sector).unwrap();
            self.allowed[sector] = BTreeSet::from([self.last[sector]]);
        }
    }

    fn check(&self, image: &VhdImage, what: &str) {
        for (sector, stamp) in stamps(image, 0, SECTORS).into_iter().enumerate() {
            let allowed = &self.allowed[sector];
            assert!(
                allowed.contains(&stamp),
                "{what}: sector {sector} is {stamp}, not of {allowed:?}"
            );
        }
    }
}

/// One random operation. The model is told before of what may, and after of what must be there.
fn step(
    image: &VhdImage,
    model: &mut Model,
    random: &mut Random,
    stamp: u64,
) -> Result<(), DiskError> {
    let block = u64::from(BLOCK_KIB) * 2;
    let from = random.below(SECTORS);
    let count = (1 + random.below(300)).min(SECTORS - from);
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
            let from = from / block * block;
            let count = (block * (1 + random.below(3))).min(SECTORS - from);
            model.change(from, count, 0);
            image.discard(from * 512, count * 512)?;
        }
        8 => {
            let modes = [ZeroMode::MayUnmap, ZeroMode::KeepAllocated];
            let mode = modes[usize::try_from(random.below(2)).unwrap()];
            model.change(from, count, 0);
            image.write_zeroes(from * 512, count * 512, mode, false)?;
        }
        _ => {
            image.flush()?;
            model.durable(0, SECTORS);
        }
    }
    Ok(())
}

fn open(storage: &FakeStorage, kind: Kind, read_only: bool) -> Result<VhdImage, DiskError> {
    let files = [path(), Path::new(PARENT)];
    let count = if kind == Kind::Differencing { 2 } else { 1 };
    open_chain(storage, &files[..count], read_only)
}

fn verify(storage: &FakeStorage, kind: Kind, model: &Model, seed: u64, what: &str) {
    let what = format!("{what}, crash seed {seed}");
    let after = storage.crash(seed);
    let image = open(&after, kind, true).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    model.check(&image, &what);
    drop(image);
    // A second power loss, while the file is made whole and written to.
    after.die_after(after.operation_count() + seed % 9);
    let image = open(&after, kind, false).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let mut model = Model::new(stamps(&image, 0, SECTORS));
    for (from, stamp) in [(0, 3), (SECTORS - 50, 4), (SECTORS / 2, 5)] {
        model.change(from, 50, 1_000_000 + stamp);
        let bytes = stamped(1_000_000 + stamp, 50);
        if image.write_at(&bytes, from * 512, true).is_err() {
            break;
        }
        model.durable(from, 50);
    }
    drop(image);
    let again = after.crash(seed / 2);
    let image = open(&again, kind, false).unwrap_or_else(|e| panic!("{what}, again: {e:?}"));
    model.check(&image, &format!("{what}, again"));
    image.write_at(&stamped(u64::MAX, 8), 0, true).unwrap();
    image.close().unwrap();
    let image = open(&again, kind, true).unwrap();
    assert_eq!(stamps(&image, 0, 8), [u64::MAX; 8]);
}

fn run(seed: u64, kind: Kind) {
    let what = format!("seed {seed}, {kind:?}");
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind,
        ..options(SECTORS * 512, BLOCK_KIB)
    };
    let (image, content) = make(&storage, &wanted);
    let mut random = Random(seed);
    let mut model = Model::new(content);
    storage.die_after(storage.operation_count() + random.below(300));
    let mut stamp = 10;
    loop {
        stamp += 1;
        if step(&image, &mut model, &mut random, stamp).is_err() || stamp == 130 {
            break;
        }
        if random.below(40) == 0 {
            let crash = random.next() % 1000;
            verify(
                &storage,
                kind,
                &model,
                crash,
                &format!("{what}, step {stamp}"),
            );
        }
    }
    if !storage.is_dead() {
        // A close that dies somewhere on its way.
        storage.die_after(storage.operation_count() + random.below(8));
        if image.close().is_ok() {
            model.durable(0, SECTORS);
        }
    }
    drop(image);
    for crash in [0, 1, 2, 3 + seed, 1000 + seed] {
        verify(
            &storage,
            kind,
            &model,
            crash,
            &format!("{what}, end at step {stamp}"),
        );
    }
}

#[test]
fn after_a_power_loss_every_sector_is_old_or_new() {
    for seed in 0..12 {
        run(seed, Kind::Dynamic);
        run(1000 + seed, Kind::Differencing);
    }
    for seed in 100..103 {
        run(seed, Kind::Fixed);
    }
}

/// Of all that was not synced only the table survives: it names a block whose bytes and bitmap are lost.
#[test]
fn a_table_that_survives_alone_shows_nothing_foreign() {
    let before = stamped(1, 8);
    let kinds = [Kind::Dynamic, Kind::Differencing];
    for (kind, grown_before) in kinds
        .into_iter()
        .flat_map(|kind| [(kind, true), (kind, false)])
    {
        let wanted = CreateOptions {
            kind,
            ..options(SECTORS * 512, BLOCK_KIB)
        };
        let storage = FakeStorage::new();
        let (image, content) = make(&storage, &wanted);
        image
            .write_at(&before, (SECTORS - 8) * 512, grown_before)
            .unwrap();
        // Over the parent's bytes, so that bits stand in the way of them.
        image.write_at(&stamped(2, 50), 4096 * 512, false).unwrap();
        image.write_at(&stamped(3, 50), 150 * 512, false).unwrap();
        let written = storage.after_kill().content(path()).unwrap();
        let after = storage.crash(0);
        after.overwrite(path(), 512, &written[512..3072]).unwrap();
        let image = open(&after, kind, true).unwrap();
        let mut model = Model::new(content);
        model.change(SECTORS - 8, 8, 1);
        if grown_before {
            model.durable(SECTORS - 8, 8);
        }
        model.change(4096, 50, 2);
        model.change(150, 50, 3);
        model.check(&image, &format!("{kind:?}, {grown_before}"));
    }
}
