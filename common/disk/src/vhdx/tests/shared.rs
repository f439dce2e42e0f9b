//! Differencing disks under many threads, and under faults of the storage.

use super::super::VhdxImage;
use super::super::layout::MIB;
use super::options;
use super::over::{child, level, open_chain};
use crate::error::ErrorKind;
use crate::image::Image;
use crate::storage::fake::{FakeStorage, Fault, FaultOn};
use crate::tests::{stamped, stamps};

/// A child with blocks of 1 MiB over a base that is 1000 everywhere.
fn family(size_bytes: u64) -> (FakeStorage, VhdxImage) {
    let storage = FakeStorage::new();
    let wanted = options(size_bytes, 1);
    let base = VhdxImage::create(std::sync::Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    for block in 0..size_bytes / MIB {
        base.write_at(&stamped(1000, 2048), block * MIB, false)
            .unwrap();
    }
    base.close().unwrap();
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    (storage, image)
}

#[test]
fn what_many_threads_wrote_through_is_durable() {
    let (storage, image) = family(8 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let image = &image;
            scope.spawn(move || {
                for turn in 0..12_u64 {
                    let from = turn % 8 * 2048 + turn * 64 + thread * 8;
                    let through = (turn + thread) % 3 != 0;
                    image
                        .write_at(&stamped(thread + 1, 8), from * 512, through)
                        .unwrap();
                    if !through {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    for after in [storage.crash(0), storage.after_kill()] {
        let after = open_chain(&after, &level(1), true).unwrap();
        for turn in 0..12_u64 {
            let found = stamps(&*after, turn % 8 * 2048 + turn * 64, 64);
            for (thread, found) in (1..).zip(found.chunks(8)) {
                assert_eq!(found, [thread; 8], "turn {turn}");
            }
        }
    }
}

#[test]
fn no_room_is_an_error_of_that_write_only() {
    let (storage, image) = family(8 * MIB);
    image.write_at(&stamped(1, 8), 0, false).unwrap();
    image.flush().unwrap();
    storage.limit_space(Some(0));
    let failed = image.write_at(&stamped(2, 8), 4 * MIB, false).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    let failed = image.write_at(&stamped(2, 8), 64 * 512, false).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    assert_eq!(stamps(&image, 4 * 2048, 8), [1000; 8]);
    storage.limit_space(None);
    image.write_at(&stamped(3, 8), 4 * MIB, false).unwrap();
    image.close().unwrap();
    let after = open_chain(&storage, &level(1), true).unwrap();
    assert_eq!(stamps(&*after, 4 * 2048, 9), [3, 3, 3, 3, 3, 3, 3, 3, 1000]);
    assert_eq!(stamps(&*after, 0, 9), [1, 1, 1, 1, 1, 1, 1, 1, 1000]);
    assert_eq!(stamps(&*after, 64, 8), [1000; 8]);
}

#[test]
fn a_failed_sync_before_bits_poisons_and_what_was_durable_stays() {
    let (storage, image) = family(8 * MIB);
    image.write_at(&stamped(1, 8), 0, true).unwrap();
    storage.fail(Fault {
        on: FaultOn::Sync,
        path: None,
        nth: 1,
        kind: std::io::ErrorKind::Other,
    });
    image.write_at(&stamped(2, 8), 64 * 512, false).unwrap_err();
    let later = image.write_at(&stamped(3, 8), 0, false).unwrap_err();
    assert_eq!(later.kind(), ErrorKind::Poisoned);
    drop(image);
    for seed in 0..6 {
        let after = open_chain(&storage.crash(seed), &level(1), true).unwrap();
        assert_eq!(stamps(&*after, 0, 8), [1; 8]);
        for found in stamps(&*after, 64, 8) {
            assert!(found == 1000 || found == 2, "{found}");
        }
    }
}

#[test]
fn a_parent_that_cannot_be_read_fails_that_read_only() {
    let (storage, image) = family(4 * MIB);
    image.write_at(&stamped(1, 8), 0, false).unwrap();
    storage.fail_reads(&level(0), 0..u64::MAX);
    let failed = image.read_at(&mut [0; 1024], 2 * MIB).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io);
    assert_eq!(stamps(&image, 0, 8), [1; 8]);
    storage.clear_faults();
    assert_eq!(stamps(&image, 4 * 2048 - 8, 8), [1000; 8]);
}
