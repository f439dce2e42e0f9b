//! What a flush costs, and what is there after it, after a kill, and after writers raced.

use super::super::layout::MIB;
use super::{EMPTY, create, open, options, path};
use crate::image::Image;
use crate::storage::fake::{FakeStorage, What};
use crate::storage::{OpenMode, Storage};
use crate::tests::read;

/// Once a killed process lost places of new blocks with everything that a guest had been answered in them, and the
/// guest, still connected, could not know.
#[test]
fn a_killed_process_loses_nothing_that_was_answered() {
    for blocks in [1, 30, 300, 1500] {
        let storage = FakeStorage::new();
        let image = create(&storage, &options(blocks * MIB, 1));
        for block in 0..blocks {
            let fill = u8::try_from(block % 250).unwrap() + 1;
            image.write_at(&[fill; 512], block * MIB, false).unwrap();
            if block % 7 == 3 {
                image.discard((block - 1) * MIB, MIB).unwrap();
            }
            if block % 50 == 11 {
                image.flush().unwrap();
            }
        }
        let again = open(&storage.after_kill(), false).unwrap();
        for block in 0..blocks {
            let trimmed = block % 7 == 2 && block + 1 < blocks;
            let fill = u8::try_from(block % 250).unwrap() + 1;
            let expected = if trimmed { 0 } else { fill };
            let mut found = [9; 512];
            again.read_at(&mut found, block * MIB).unwrap();
            assert_eq!(found, [expected; 512], "block {block} of {blocks}");
        }
        again.close().unwrap();
    }
}

#[test]
fn places_of_new_blocks_cost_a_sync_only_when_the_log_is_full_of_notes() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(512 * MIB, 1));
    image.write_at(&[1; 512], 0, false).unwrap();
    let before = storage.counters(path()).syncs;
    for block in 1..401 {
        image.write_at(&[2; 512], block * MIB, false).unwrap();
    }
    let syncs = storage.counters(path()).syncs - before;
    assert!(syncs <= 400 / 50, "{syncs} syncs for 400 blocks");
}

#[test]
fn a_flush_costs_at_most_two_syncs_and_an_allocation_none() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 1));
    image.write_at(&[1; 512], 0, false).unwrap();
    image.flush().unwrap();
    let syncs = || storage.counters(path()).syncs;
    let before = syncs();
    for block in 1..20 {
        image.write_at(&[2; 512], block * MIB, false).unwrap();
    }
    assert_eq!(syncs(), before, "an allocation syncs nothing");
    image.flush().unwrap();
    assert_eq!(syncs(), before + 1, "known-zero space needs no barrier");
    image.discard(0, 8 * MIB).unwrap();
    image.flush().unwrap();
    assert_eq!(syncs(), before + 2);
    image.write_at(&[3; 512], MIB, false).unwrap();
    assert_eq!(
        syncs(),
        before + 3,
        "reused space needs its bytes first, and at once: a note must not show what was there"
    );
    image.flush().unwrap();
    assert_eq!(syncs(), before + 4);
    image.write_at(&[4; 512], 15 * MIB, false).unwrap();
    image.flush().unwrap();
    assert_eq!(syncs(), before + 5);
    image.flush().unwrap();
    image.flush().unwrap();
    assert_eq!(syncs(), before + 5, "nothing was written since");
}

#[test]
fn a_write_through_with_clean_metadata_is_one_durable_write() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 1));
    image.write_at(&[1; 4096], 0, true).unwrap();
    let count = storage.operation_count();
    image.write_at(&[2; 4096], 4096, true).unwrap();
    let done = storage
        .operations()
        .split_off(usize::try_from(count).unwrap());
    assert_eq!(done.len(), 1);
    assert!(matches!(done[0].what, What::Write { durable: true, .. }));
    let after = open(&storage.crash(0), true).unwrap();
    assert_eq!(
        read(&after, 0, 8192),
        [vec![1; 4096], vec![2; 4096]].concat()
    );
}

#[test]
fn concurrent_flushes_lose_nothing_that_was_answered() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 1));
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let image = &image;
            scope.spawn(move || {
                for turn in 0..8_u64 {
                    let offset = (turn * 8 + u64::from(thread)) * MIB;
                    image.write_at(&[thread + 1; 4096], offset, false).unwrap();
                    image.flush().unwrap();
                }
            });
        }
    });
    let after = open(&storage.crash(0), true).unwrap();
    for block in 0..64_u64 {
        let wanted = u8::try_from(block % 8 + 1).unwrap();
        assert_eq!(
            read(&after, block * MIB, 4096),
            [wanted; 4096],
            "block {block}"
        );
    }
}

#[test]
fn writers_that_race_for_a_new_block_all_get_in() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(4 * MIB, 2));
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let image = &image;
            scope.spawn(move || {
                for turn in 0..32_u64 {
                    let offset = (turn * 8 + u64::from(thread)) * 4096;
                    image.write_at(&[thread + 1; 4096], offset, false).unwrap();
                }
            });
        }
    });
    for page in 0..256_u64 {
        let wanted = u8::try_from(page % 8 + 1).unwrap();
        assert_eq!(read(&image, page * 4096, 4096), [wanted; 4096]);
    }
    image.close().unwrap();
    assert_eq!(
        storage.content(path()).unwrap().len(),
        EMPTY + (2 << 20),
        "one block was allocated"
    );
}

#[test]
fn a_read_only_open_replays_in_memory_and_writes_nothing() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 1));
    for block in 0..40 {
        image.write_at(&[8; 512], block * MIB, false).unwrap();
        image.flush().unwrap();
    }
    let after = storage.crash(0);
    let before = after.content(path()).unwrap();
    let read_only = open(&after, true).unwrap();
    for block in 0..40 {
        assert_eq!(
            read(&read_only, block * MIB, 512),
            [8; 512],
            "block {block}"
        );
    }
    read_only.close().unwrap();
    assert!(after.content(path()).unwrap() == before);
    // The log has been around its ring many times without a close.
    let file = after.open(path(), OpenMode::Read).unwrap();
    drop(file);
    open(&after, false).unwrap().close().unwrap();
    assert_eq!(read(&open(&after, true).unwrap(), 39 * MIB, 512), [8; 512]);
}

#[test]
fn a_flush_of_more_pages_than_an_entry_holds_is_split() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(1 << 40, 1));
    // One block in each of 200 BAT pages.
    for page in 0..200 {
        image.write_at(&[3; 512], page * 512 * MIB, false).unwrap();
    }
    let per_entry = image.gate.with(|core| Ok(core.pages_per_entry())).unwrap();
    assert!(per_entry < 200);
    image.flush().unwrap();
    let after = open(&storage.crash(0), true).unwrap();
    for page in 0..200 {
        assert_eq!(read(&after, page * 512 * MIB, 512), [3; 512], "page {page}");
    }
}
