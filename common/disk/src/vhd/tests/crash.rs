//! Power losses at any moment: every sector is old or new, flushed ones are new, whoever reads; the file opens, and
//! the checker finds it sound.

use std::path::Path;

use super::super::layout::{u32_at, u64_at};
use super::super::{CreateOptions, Kind, VhdImage};
use super::random::{PARENT, make};
use super::{open_chain, options, path};
use crate::check::{CheckOptions, Severity, check};
use crate::error::DiskError;
use crate::image::Image;
use crate::storage::fake::{FakeStorage, Fault, FaultOn};
use crate::tests::crash::{Model, step};
use crate::tests::{Random, rounds, stamped, stamps};

const BLOCK_KIB: u32 = 512;
const BLOCK_SECTORS: u64 = 1024;
const SECTORS: u64 = 6 * 1024 * 2 + 8;

fn open(storage: &FakeStorage, kind: Kind, read_only: bool) -> Result<VhdImage, DiskError> {
    let files = [path(), Path::new(PARENT)];
    let count = if kind == Kind::Differencing { 2 } else { 1 };
    open_chain(storage, &files[..count], read_only)
}

/// The disk as programs show it that ask the table of blocks alone, and no bitmap.
fn stamps_without_bitmaps(storage: &FakeStorage) -> Vec<u64> {
    let content = storage.content(path()).unwrap();
    let bat = usize::try_from(u64_at(&content, 512 + 16)).unwrap();
    let stamp = |sector: u64| {
        let entry = bat + 4 * usize::try_from(sector / BLOCK_SECTORS).unwrap();
        let place = u32_at(&content, entry);
        if place == u32::MAX {
            return 0;
        }
        // A sector of bitmap comes before the data.
        let at = usize::try_from((u64::from(place) + 1 + sector % BLOCK_SECTORS) * 512).unwrap();
        u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
    };
    (0..SECTORS).map(stamp).collect()
}

/// Both kinds of programs show a dynamic disk alike.
fn assert_read_alike(storage: &FakeStorage, image: &VhdImage, what: &str) {
    if image.kind() == Kind::Dynamic {
        let same = stamps_without_bitmaps(storage) == stamps(image, 0, SECTORS);
        assert!(same, "{what}: programs disagree on what the disk holds");
    }
}

/// The checker, which shares no logic with us, finds nothing but `expected`.
fn assert_sound(storage: &FakeStorage, expected: &[&str], what: &str) {
    let report = check(storage, path(), CheckOptions::default()).unwrap();
    let unexpected: Vec<_> = report
        .findings
        .iter()
        .filter(|found| found.severity > Severity::Note || found.code.contains("bitmap"))
        .filter(|found| !expected.contains(&found.code))
        .collect();
    assert!(unexpected.is_empty(), "{what}: {unexpected:#?}");
}

/// What a power loss may leave, and the first change mends.
const TORN: [&str; 2] = ["vhd-footer-invalid", "vhd-copy-invalid"];

fn verify(storage: &FakeStorage, kind: Kind, model: &Model, seed: u64, what: &str) {
    let what = format!("{what}, crash seed {seed}");
    let after = storage.crash(seed);
    assert_sound(&after, &TORN, &what);
    let image = open(&after, kind, true).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    model.check(&image, &what);
    assert_read_alike(&after, &image, &what);
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
    assert_sound(&again, &TORN, &what);
    let image = open(&again, kind, false).unwrap_or_else(|e| panic!("{what}, again: {e:?}"));
    model.check(&image, &format!("{what}, again"));
    assert_read_alike(&again, &image, &what);
    image.write_at(&stamped(u64::MAX, 8), 0, true).unwrap();
    image.close().unwrap();
    assert_sound(&again, &[], &what);
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
        if step(&image, &mut model, &mut random, BLOCK_SECTORS, stamp).is_err() || stamp == 130 {
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
            model.all_durable();
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
    for seed in 0..rounds(12, 60) {
        run(seed, Kind::Dynamic);
        run(1000 + seed, Kind::Differencing);
    }
    for seed in 100..100 + rounds(2, 6) {
        run(seed, Kind::Fixed);
    }
}

/// A power loss left blocks whose entries in the table survived and whose bitmaps did not. QEMU showed bytes
/// there, others zeros, and so it stayed until the guest wrote to them.
#[test]
fn no_power_loss_leaves_a_block_without_its_bitmap() {
    let storage = FakeStorage::new();
    let (image, content) = make(&storage, &options(SECTORS * 512, BLOCK_KIB));
    let mut random = Random(7);
    let mut model = Model::new(content);
    random.next();
    for stamp in 11..13 {
        step(&image, &mut model, &mut random, BLOCK_SECTORS, stamp).unwrap();
        random.next();
    }
    step(&image, &mut model, &mut random, BLOCK_SECTORS, 13).unwrap();
    verify(&storage, Kind::Dynamic, &model, 327, "step 13");
    for seed in 0..40 {
        verify(&storage, Kind::Dynamic, &model, seed, "step 13");
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
        let what = format!("{kind:?}, {grown_before}");
        model.check(&image, &what);
        assert_read_alike(&after, &image, &what);
        assert_sound(&after, &TORN, &what);
    }
}

/// A killed process leaves answered writes in the host's memory. Neither a flush nor a write through of the
/// next session may take the block they are in for durable.
#[test]
fn what_a_killed_process_left_is_durable_after_the_next_flush() {
    for kind in [Kind::Dynamic, Kind::Differencing, Kind::Fixed] {
        for through in [false, true] {
            // A block or two fill the file: there is no room at its end to cut, and so to sync, later.
            let wanted = CreateOptions {
                kind,
                ..options(2048 * 512, 2 * BLOCK_KIB)
            };
            let storage = FakeStorage::new();
            let (image, _) = make(&storage, &wanted);
            image.write_at(&stamped(5, 8), 0, false).unwrap();
            let killed = storage.after_kill();
            drop(image);
            let image = open(&killed, kind, false).unwrap();
            if through {
                image.write_at(&stamped(6, 8), 8 * 512, true).unwrap();
            } else {
                image.flush().unwrap();
            }
            let after = killed.crash(0);
            let image = open(&after, kind, true).unwrap();
            // What was written through must be there; what was flushed, too.
            let (from, stamp) = if through { (8, 6) } else { (0, 5) };
            assert_eq!(stamps(&image, from, 8), [stamp; 8], "{kind:?}, {through}");
        }
    }
}

#[test]
fn growth_that_fails_halfway_leaves_the_file_as_it_was() {
    let storage = FakeStorage::new();
    let (image, _) = make(&storage, &options(SECTORS * 512, BLOCK_KIB));
    let length = storage.content(path()).unwrap().len();
    // The footer, two bitmaps, and half of the third.
    storage.fail(Fault {
        on: FaultOn::Write,
        path: None,
        nth: 4,
        kind: std::io::ErrorKind::StorageFull,
    });
    image.write_at(&stamped(1, 8), 0, false).unwrap_err();
    assert_eq!(storage.content(path()).unwrap().len(), length);
    image.write_at(&stamped(2, 8), 4096 * 512, true).unwrap();
    for seed in 0..9 {
        let after = storage.crash(seed);
        assert_sound(&after, &TORN, "after the second try");
        let image = open(&after, Kind::Dynamic, true).unwrap();
        assert_read_alike(&after, &image, "after the second try");
        assert_eq!(stamps(&image, 4096, 8), [2; 8]);
    }
}

#[test]
fn a_place_that_was_spoiled_keeps_its_bitmap() {
    let storage = FakeStorage::new();
    let (image, _) = make(&storage, &options(SECTORS * 512, BLOCK_KIB));
    image.write_at(&stamped(1, 8), 0, true).unwrap();
    storage.fail(Fault {
        on: FaultOn::Write,
        path: None,
        nth: 1,
        kind: std::io::ErrorKind::StorageFull,
    });
    image
        .write_at(&stamped(2, 8), 4096 * 512, false)
        .unwrap_err();
    image.write_at(&stamped(3, 1), 8192 * 512, true).unwrap();
    let after = storage.crash(0);
    assert_sound(&after, &TORN, "spoiled and used again");
    let image = open(&after, Kind::Dynamic, true).unwrap();
    assert_read_alike(&after, &image, "spoiled and used again");
    assert_eq!(stamps(&image, 8192, 8), [3, 0, 0, 0, 0, 0, 0, 0]);
}
