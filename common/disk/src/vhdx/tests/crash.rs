//! Power losses at any moment: every sector is old or new, flushed ones are new, and the file opens.

use std::sync::Arc;

use super::super::create::LOG;
use super::super::layout::MIB;
use super::super::{CreateOptions, Kind, VhdxImage};
use super::{open, path};
use crate::check::{CheckOptions, Severity, check};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::crash::{Model, step};
use crate::tests::{Random, rounds, stamped, stamps};

const SECTORS: u64 = 12 * MIB / 512 + 8;
const BLOCK_SECTORS: u64 = MIB / 512;

/// The checker, which shares no logic with us, finds nothing but what a power loss may leave.
fn assert_sound(storage: &FakeStorage, what: &str) {
    let report = check(storage, path(), CheckOptions::default()).unwrap();
    let expected = ["vhdx-log-dirty", "vhdx-header-invalid"];
    let unexpected: Vec<_> = report
        .findings
        .iter()
        .filter(|found| found.severity > Severity::Note && !expected.contains(&found.code))
        .collect();
    assert!(unexpected.is_empty(), "{what}: {unexpected:#?}");
}

fn verify(storage: &FakeStorage, model: &Model, seed: u64, what: &str) {
    let what = format!("{what}, crash seed {seed}");
    let after = storage.crash(seed);
    assert_sound(&after, &what);
    let image = open(&after, true).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    model.check(&image, &what);
    drop(image);
    // A second power loss, in the middle of recovery.
    let count = after.operation_count();
    after.die_after(count + seed % 9);
    let image = open(&after, false);
    assert!(
        image.is_ok() || after.is_dead(),
        "{what}: {:?}",
        image.err()
    );
    drop(image);
    let again = after.crash(seed / 2);
    let image = open(&again, false).unwrap_or_else(|e| panic!("{what}, again: {e:?}"));
    model.check(&image, &format!("{what}, again"));
    image.write_at(&stamped(u64::MAX, 8), 0, true).unwrap();
    image.close().unwrap();
    let image = open(&again, true).unwrap();
    assert_eq!(stamps(&image, 0, 8), [u64::MAX; 8]);
    drop(image);
    let report = check(&again, path(), CheckOptions::default()).unwrap();
    // Trimmed blocks may leave room among the others.
    let unexpected = report
        .findings
        .iter()
        .find(|found| found.code != "vhdx-leaked-space");
    assert_eq!(unexpected, None, "{what}, closed");
}

/// Flushes changes that cancel out until the log has room for at most `pages` more pages before it starts a lap.
fn leave_room(image: &VhdxImage, pages: u64) {
    while image.gate.with(|core| Ok(core.log_room())).unwrap() > pages {
        image.write_at(&[0; 4096], 0, true).unwrap();
        image.discard(0, MIB).unwrap();
        image.flush().unwrap();
    }
}

/// Random steps until the host dies, on an image whose log has room for `room` more pages before it starts a lap.
fn run(seed: u64, kind: Kind, room: u64) {
    let what = format!("seed {seed}, {kind:?}");
    let storage = FakeStorage::new();
    let options = CreateOptions {
        size_bytes: SECTORS * 512,
        block_bytes: 1 << 20,
        logical_sector_bytes: if seed.is_multiple_of(2) { 512 } else { 4096 },
        physical_sector_bytes: 4096,
        kind,
        disk_id: None,
    };
    let image = VhdxImage::create(Arc::new(storage.clone()), path(), &options).unwrap();
    let mut random = Random(seed);
    let mut model = Model::new(vec![0; usize::try_from(SECTORS).unwrap()]);
    leave_room(&image, room);
    storage.die_after(storage.operation_count() + random.below(300));
    let mut stamp = 0;
    loop {
        stamp += 1;
        if step(&image, &mut model, &mut random, BLOCK_SECTORS, stamp).is_err() || stamp == 120 {
            break;
        }
        if random.below(40) == 0 {
            verify(
                &storage,
                &model,
                random.next() % 1000,
                &format!("{what}, step {stamp}"),
            );
        }
    }
    if !storage.is_dead() {
        // A close that dies somewhere on its way.
        storage.die_after(storage.operation_count() + random.below(12));
        if image.close().is_ok() {
            model.all_durable();
        }
    }
    drop(image);
    for crash in [0, 1, 2, 3 + seed, 1000 + seed] {
        verify(
            &storage,
            &model,
            crash,
            &format!("{what}, end at step {stamp}"),
        );
    }
}

#[test]
fn after_a_power_loss_every_sector_is_old_or_new() {
    for seed in 0..rounds(20, 100) {
        run(seed, Kind::Dynamic, u64::MAX);
    }
    for seed in 100..100 + rounds(2, 12) {
        run(seed, Kind::Fixed, u64::MAX);
    }
}

#[test]
fn a_power_loss_while_the_log_starts_a_lap_is_like_any_other() {
    // Each room is another place in the log where the lap starts.
    for seed in (0..24).step_by(usize::try_from(rounds(3, 1)).unwrap()) {
        run(seed, Kind::Dynamic, 8 + seed);
    }
}

/// The worst that a power loss can do in the middle of a flush: of all that was not synced, the log survives whole,
/// and nothing else.
fn only_the_log_survives(storage: &FakeStorage) -> FakeStorage {
    let after = storage.crash(0);
    let log = usize::try_from(LOG.offset).unwrap()..usize::try_from(LOG.end()).unwrap();
    let written = storage.after_kill().content(path()).unwrap();
    after.overwrite(path(), LOG.offset, &written[log]).unwrap();
    after
}

fn fresh(size_bytes: u64) -> (FakeStorage, VhdxImage) {
    let storage = FakeStorage::new();
    let image = super::create(&storage, &super::options(size_bytes, 1));
    (storage, image)
}

#[test]
fn reused_space_never_shows_its_former_content() {
    for count in 0..8 {
        let (storage, image) = fresh(8 * MIB);
        image.write_at(&stamped(1, 2048), 0, true).unwrap();
        image.discard(0, MIB).unwrap();
        image.flush().unwrap();
        image.write_at(&stamped(2, 8), 4 * MIB, false).unwrap();
        storage.die_after(storage.operation_count() + count);
        let flushed = image.flush().is_ok();
        let after = open(&only_the_log_survives(&storage), true).unwrap();
        let found = stamps(&after, 4 * 2048, 2048);
        assert!(
            found[8..].iter().all(|stamp| *stamp == 0),
            "operation {count}"
        );
        assert!(
            found[..8]
                .iter()
                .all(|stamp| *stamp == 2 || (!flushed && *stamp == 0))
        );
    }
}

#[test]
fn an_entry_names_the_one_before_while_its_pages_are_not_durable() {
    let step = usize::try_from(rounds(5, 1)).unwrap();
    let turns = (0..8).flat_map(|count| (0..6).step_by(step).map(move |n| (count, n)));
    for (count, entries) in turns {
        let (storage, image) = fresh(1200 * MIB);
        if entries > 0 {
            leave_room(&image, 12);
        }
        // One more of these, and first the second entry below starts a lap, then the first.
        for block in 0..entries {
            let offset = (16 + block) * MIB;
            image.write_at(&stamped(3, 8), offset, true).unwrap();
        }
        // Two BAT pages, one after the other.
        image.write_at(&stamped(1, 8), 8 * MIB, true).unwrap();
        image.write_at(&stamped(2, 8), 600 * MIB, false).unwrap();
        storage.die_after(storage.operation_count() + count);
        let flushed = image.flush().is_ok();
        let after = open(&only_the_log_survives(&storage), true).unwrap();
        assert_eq!(
            stamps(&after, 8 * 2048, 8),
            [1; 8],
            "operation {count}, {entries} entries"
        );
        assert!(!flushed || stamps(&after, 600 * 2048, 8) == [2; 8]);
    }
}

/// A trim of more BAT pages than an entry takes, one of them with a write that is noted: no entry on the way may
/// outdate the note without the page.
#[test]
fn a_kill_between_the_entries_of_a_flush_loses_no_note() {
    const PAGE_BLOCKS: u64 = 512;
    let build = || {
        let (storage, image) = fresh((1 << 20) * 150 * 1024);
        let pages = 2 * image.gate.with(|core| Ok(core.pages_per_entry())).unwrap() as u64 + 2;
        for page in 0..pages {
            let offset = page * PAGE_BLOCKS * MIB;
            image.write_at(&stamped(1, 1), offset, false).unwrap();
        }
        image.flush().unwrap();
        let last = (pages - 1) * PAGE_BLOCKS * MIB;
        image.write_at(&stamped(2, 1), last + MIB, false).unwrap();
        (storage, image, last)
    };
    let (storage, image, last) = build();
    let before = storage.operation_count();
    image.discard(0, last + MIB).unwrap();
    let operations = storage.operation_count() - before;
    drop(image);
    // Each entry is followed by an operation for each of its pages: none is stepped over.
    for count in (0..operations).step_by(24) {
        let (storage, image, last) = build();
        storage.die_after(storage.operation_count() + count);
        let _ = image.discard(0, last + MIB);
        let after = open(&storage.after_kill(), true).unwrap();
        let found = stamps(&after, (last + MIB) / 512, 1);
        assert_eq!(found, [2], "operation {count} of {operations}");
    }
}
