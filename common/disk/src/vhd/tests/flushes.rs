//! What a flush costs, and what is there after it, after a kill, and after writers raced.

use super::{MIB, create, open, options, path};
use crate::image::Image;
use crate::storage::fake::{FakeStorage, What};
use crate::tests::read;

#[test]
fn a_flush_is_one_sync_and_an_allocation_none() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(48 * MIB, 512));
    image.write_at(&[1; 512], 0, false).unwrap();
    image.flush().unwrap();
    let syncs = || storage.counters(path()).syncs;
    let before = syncs();
    for block in 1..90 {
        image.write_at(&[2; 512], block * MIB / 2, false).unwrap();
    }
    assert_eq!(syncs(), before, "an allocation syncs nothing");
    image.flush().unwrap();
    assert_eq!(syncs(), before + 1);
    image.discard(0, 8 * MIB).unwrap();
    image.write_at(&[3; 512], MIB, false).unwrap();
    image.flush().unwrap();
    assert_eq!(syncs(), before + 2);
    image.flush().unwrap();
    assert_eq!(syncs(), before + 2, "nothing was written since");
}

#[test]
fn growing_costs_one_sync_for_many_blocks() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(1024 * MIB, 2048));
    image.write_at(&[1; 512], 0, false).unwrap();
    let before = storage.counters(path()).syncs;
    for block in 1..512 {
        image.write_at(&[1; 512], block * 2 * MIB, false).unwrap();
    }
    let after = storage.counters(path()).syncs;
    assert!(after - before <= 1024 / 64, "{}", after - before);
}

#[test]
fn a_write_through_with_clean_metadata_is_one_durable_write() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
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
fn a_killed_process_loses_nothing_that_was_answered() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 512));
    for block in 0..100 {
        image
            .write_at(&[5; 4096], block * MIB / 2 + 4096, false)
            .unwrap();
    }
    let after = open(&storage.after_kill(), false).unwrap();
    for block in 0..100 {
        assert_eq!(read(&after, block * MIB / 2 + 4096, 4096), [5; 4096]);
    }
}

#[test]
fn concurrent_flushes_lose_nothing_that_was_answered() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 512));
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
        assert_eq!(read(&after, block * MIB, 4096), [wanted; 4096]);
    }
}

#[test]
fn writers_that_race_for_a_new_block_all_get_in() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(4 * MIB, 2048));
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
    assert!(
        storage.content(path()).unwrap().len() < 3 << 20,
        "one block"
    );
}

#[test]
fn opening_and_closing_only_syncs() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
    image.write_at(&[1; 4096], 0, false).unwrap();
    image.close().unwrap();
    let count = storage.operation_count();
    let image = open(&storage, false).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    assert_eq!(storage.operation_count(), count + 1);
    assert_eq!(storage.operations().last().unwrap().what, What::Sync);
    let image = open(&storage, false).unwrap();
    image.write_at(&[1; 4096], 4096, false).unwrap();
    image.close().unwrap();
    assert_eq!(
        storage.operation_count(),
        count + 3,
        "the write and its sync"
    );
}
