//! Images on the fake storage: rules of the data path, of flushes, and of damaged files.

mod chain;
mod crash;
mod damage;
mod grow;
mod random;

use std::path::Path;
use std::sync::Arc;

use super::layout::Chs;
use super::{CreateOptions, Kind, VhdImage};
use crate::error::ErrorKind;
use crate::image::{Access, ExtentKind, Image, ZeroMode};
use crate::parent::Find;
use crate::storage::fake::{FakeStorage, Fault, FaultOn, What};
use crate::storage::{OpenMode, Storage};
use crate::testing::{extents, read};

const PATH: &str = "/disk.vhd";
const MIB: u64 = 1 << 20;

fn path() -> &'static Path {
    Path::new(PATH)
}

fn options(size_bytes: u64, block_kib: u32) -> CreateOptions {
    CreateOptions {
        size_bytes,
        block_bytes: block_kib << 10,
        kind: Kind::Dynamic,
        disk_id: None,
    }
}

fn create(storage: &FakeStorage, options: &CreateOptions) -> VhdImage {
    VhdImage::create(Arc::new(storage.clone()), path(), options).unwrap()
}

fn open(storage: &FakeStorage, read_only: bool) -> Result<VhdImage, crate::DiskError> {
    VhdImage::open(Arc::new(storage.clone()), path(), read_only)
}

/// Opens a chain of files, the disk first and its parents after it.
fn open_chain(
    storage: &FakeStorage,
    paths: &[&Path],
    read_only: bool,
) -> Result<VhdImage, crate::DiskError> {
    let mut find = |_: &crate::parent::ParentLink| -> Result<Arc<dyn Image>, crate::DiskError> {
        Ok(Arc::new(open_chain(storage, &paths[1..], true)?))
    };
    let find: &mut Find<'_> = &mut find;
    VhdImage::open_with(Arc::new(storage.clone()), paths[0], read_only, find)
}

#[test]
fn the_geometry_follows_the_formats_rule() {
    // 10 MiB rounds down; 127 GiB is what Windows writes; beyond the format it stays at its maximum.
    for (size, cylinders, heads, sectors) in [
        (10 * MIB, 301, 4, 17),
        (127 << 30, 65278, 16, 255),
        (2040 << 30, 65535, 16, 255),
        (512, 0, 4, 17),
        (4 << 30, 8322, 16, 63),
    ] {
        let wanted = Chs {
            cylinders,
            heads,
            sectors,
        };
        assert_eq!(Chs::of(size), wanted, "{size} bytes");
    }
}

#[test]
fn a_new_disk_reads_as_zeros_and_keeps_what_it_was_given() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            disk_id: Some([9; 16]),
            kind,
            ..options(10 * MIB + 512, 2048)
        };
        let image = create(&storage, &wanted);
        assert_eq!(image.kind(), kind);
        assert_eq!(image.geometry().size_bytes, 10 * MIB + 512);
        assert_eq!(read(&image, 0, 10 << 20), vec![0; 10 << 20]);
        assert_eq!(image.identity().unwrap().data_write_id, [9; 16]);
        if kind == Kind::Dynamic {
            assert_eq!(extents(&image), [(0, 10 * MIB + 512, ExtentKind::Hole)]);
        }
        image.close().unwrap();
        let content = storage.content(path()).unwrap();
        let footer = &content[content.len() - 512..];
        assert!(footer.starts_with(b"conectix"));
        match kind {
            Kind::Fixed => assert_eq!(content.len(), (10 << 20) + 1024),
            _ => {
                assert_eq!(content.len(), 4096, "the end of a page");
                assert_eq!(footer, &content[..512]);
            }
        }
        assert_eq!(footer[56..60], [0xFF, 0xFF, 16, 255], "no program cuts it");
    }
}

#[test]
fn a_crash_while_creating_leaves_no_file_or_a_whole_one() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let wanted = CreateOptions {
            kind,
            ..options(4 * MIB, 512)
        };
        let whole = FakeStorage::new();
        drop(super::create::create(&whole, path(), &wanted, None).unwrap());
        for count in 0..whole.operation_count() {
            let storage = FakeStorage::new();
            storage.die_after(count);
            super::create::create(&storage, path(), &wanted, None)
                .err()
                .unwrap();
            for seed in 0..6 {
                let after = storage.crash(seed);
                if after.exists(path()).unwrap() {
                    open(&after, false).unwrap().close().unwrap();
                }
            }
            let after = storage.after_kill();
            if !after.exists(path()).unwrap() {
                create(&after, &wanted).close().unwrap();
            }
        }
    }
}

#[test]
fn wrong_sizes_and_existing_files_are_refused_by_create() {
    let storage = FakeStorage::new();
    create(&storage, &options(MIB, 512)).close().unwrap();
    let again = VhdImage::create(Arc::new(storage.clone()), path(), &options(MIB, 512));
    assert_eq!(again.err().unwrap().kind(), ErrorKind::Io);
    for (size, block_kib) in [
        (0, 512),
        (513, 512),
        ((2040 << 30) + 512, 512),
        (MIB, 3),
        (MIB, 32),
        (MIB, 512 << 10),
    ] {
        let made = super::create::create(
            &storage,
            Path::new("/other"),
            &options(size, block_kib),
            None,
        );
        assert_eq!(made.err().unwrap().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn blocks_begin_on_pages_and_the_closed_file_ends_with_one() {
    for block_kib in [64, 512, 2048, 4096] {
        let storage = FakeStorage::new();
        let image = create(&storage, &options(64 * MIB, block_kib));
        for block in [3, 0, 2] {
            let at = block * u64::from(block_kib) * 1024;
            image.write_at(&[7; 512], at, false).unwrap();
        }
        image.close().unwrap();
        let content = storage.content(path()).unwrap();
        assert_eq!(content.len() % 4096, 0);
        let bitmap = (block_kib as usize * 2 / 8).next_multiple_of(512);
        for block in [0, 2, 3] {
            let entry: [u8; 4] = content[1536 + 4 * block..][..4].try_into().unwrap();
            let data = u32::from_be_bytes(entry) as usize * 512 + bitmap;
            assert_eq!(data % 4096, 0, "blocks of {block_kib} KiB");
            assert_eq!(content[data..data + 512], [7; 512]);
        }
    }
}

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
fn trimming_gives_space_back_to_the_host_and_reads_as_zeros() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(3 * MIB + 512, 512));
    image.write_at(&vec![7; (3 << 20) + 512], 0, false).unwrap();
    image.discard(MIB, 2 * MIB + 512).unwrap();
    assert_eq!(read(&image, MIB, 2 << 20), vec![0; 2 << 20]);
    let found = extents(&image);
    assert_eq!(found[0], (0, MIB, ExtentKind::Data));
    assert!(found[1..].iter().any(|e| e.2 == ExtentKind::Hole));
    image
        .write_zeroes(4096, 8192, ZeroMode::KeepAllocated, false)
        .unwrap();
    assert_eq!(read(&image, 4096, 8192), [0; 8192]);
    assert_eq!(read(&image, 12288, 512), [7; 512]);
}

#[test]
fn a_fixed_disk_never_gives_space_back() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Fixed,
        ..options(4 * MIB, 2048)
    };
    let image = create(&storage, &wanted);
    image.write_at(&[5; 4096], MIB, false).unwrap();
    image.discard(0, 4 * MIB).unwrap();
    assert_eq!(read(&image, MIB, 4096), [0; 4096]);
    let punched = |op: &crate::storage::fake::Operation| matches!(op.what, What::PunchHole { .. });
    assert!(!storage.operations().iter().any(punched));
    assert!(extents(&image).iter().all(|e| e.2 != ExtentKind::Hole));
    image.close().unwrap();
    assert_eq!(storage.content(path()).unwrap().len(), (4 << 20) + 512);
}

#[test]
fn a_failed_sync_poisons_the_image() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            kind,
            ..options(8 * MIB, 512)
        };
        let image = create(&storage, &wanted);
        image.write_at(&[1; 512], 0, false).unwrap();
        image.flush().unwrap();
        image.write_at(&[2; 512], MIB, false).unwrap();
        storage.fail(Fault {
            on: FaultOn::Sync,
            path: None,
            nth: 1,
            kind: std::io::ErrorKind::Other,
        });
        image.flush().unwrap_err();
        let poisoned = [
            image.flush(),
            image.write_at(&[0; 512], 0, false),
            image.read_at(&mut [0; 512], 0),
            image.close(),
        ];
        for result in poisoned {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Poisoned);
        }
        drop(image);
        let after = open(&storage.crash(5), false).unwrap();
        assert_eq!(read(&after, 0, 512), [1; 512]);
    }
}

#[test]
fn a_failed_write_of_the_table_poisons_the_image() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
    image.write_at(&[1; 512], 0, true).unwrap();
    storage.fail(Fault {
        on: FaultOn::Write,
        path: None,
        nth: 2,
        kind: std::io::ErrorKind::Other,
    });
    image.write_at(&[2; 512], MIB, false).unwrap_err();
    let later = image.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(later.kind(), ErrorKind::Poisoned);
}

#[test]
fn no_room_for_a_block_is_an_error_of_that_write_only() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 2048));
    image.write_at(&[1; 4096], 0, false).unwrap();
    image.flush().unwrap();
    storage.limit_space(Some(4 * MIB));
    let failed = image
        .write_at(&vec![2; 8 << 20], 8 * MIB, false)
        .unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    storage.limit_space(None);
    image.write_at(&[3; 4096], 32 * MIB, false).unwrap();
    assert_eq!(
        read(&image, 32 * MIB + 4096, 8192),
        [0; 8192],
        "not the failed one's"
    );
    image.write_at(&vec![3; 8 << 20], 8 * MIB, false).unwrap();
    image.close().unwrap();
    let after = open(&storage, true).unwrap();
    assert_eq!(read(&after, 8 * MIB, 8 << 20), vec![3; 8 << 20]);
    assert_eq!(read(&after, 0, 4096), [1; 4096]);
}

#[test]
fn no_room_to_grow_leaves_a_whole_file() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 2048));
    storage.limit_space(Some(4096));
    let failed = image.write_at(&[1; 4096], 0, false).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    open(&storage.after_kill(), true).unwrap();
    storage.limit_space(None);
    image.write_at(&[1; 4096], 0, true).unwrap();
    let after = open(&storage.crash(0), true).unwrap();
    assert_eq!(read(&after, 0, 4096), [1; 4096]);
}

#[test]
fn quick_writes_are_those_to_blocks_that_are_there() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
    assert!(!image.is_quick(Access::Write, 0, 4096));
    image.write_at(&[1; 512], 0, false).unwrap();
    assert!(image.is_quick(Access::Write, 0, 65536));
    assert!(!image.is_quick(Access::Write, MIB, 4096));
    assert!(!image.is_quick(Access::Write, MIB / 2 - 512, 1024));
    assert!(!image.is_quick(Access::Write, u64::MAX - 511, 1024));
    assert!(!image.is_quick(Access::Read, 0, 512));
    image.close().unwrap();
    assert_eq!(
        image.read_at(&mut [0; 512], 0).unwrap_err().kind(),
        ErrorKind::Closed
    );
    image.identity().unwrap();
}

#[test]
fn a_second_writer_and_a_reader_beside_a_writer_are_locked_out() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
    for read_only in [false, true] {
        let refused = open(&storage, read_only).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Locked);
    }
    image.close().unwrap();
    let one = open(&storage, true).unwrap();
    let two = open(&storage, true).unwrap();
    assert_eq!(read(&one, 0, 512), read(&two, 0, 512));
    let refused = one.write_at(&[0; 512], 0, false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

#[test]
fn requests_outside_the_disk_or_off_its_sectors_change_nothing() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(MIB, 512));
    let count = storage.operation_count();
    for (offset, length) in [(MIB, 512), (0, 513), (1, 512), (u64::MAX - 511, 512)] {
        let buf = vec![1; length];
        let kind = image.write_at(&buf, offset, false).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Invalid);
    }
    assert_eq!(storage.operation_count(), count);
}

#[test]
fn the_identity_of_the_content_outlives_a_close_and_notices_a_change() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            kind,
            ..options(8 * MIB, 512)
        };
        let image = create(&storage, &wanted);
        image.write_at(&[1; 4096], 0, false).unwrap();
        let then = image.content_identity().unwrap();
        assert!(!storage.has_unsynced(path()));
        image.close().unwrap();
        assert_eq!(image.content_identity().unwrap(), then);
        let image = open(&storage, false).unwrap();
        assert_eq!(image.content_identity().unwrap(), then);
        image.write_at(&[2; 512], 0, false).unwrap();
        assert_ne!(image.content_identity().unwrap(), then);
        // And there is room for new blocks again.
        image.write_at(&[3; 4096], 4 * MIB, true).unwrap();
        let after = open(&storage.crash(0), true).unwrap();
        assert_eq!(read(&after, 4 * MIB, 4096), [3; 4096]);
    }
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

#[test]
fn the_largest_disk_opens_and_lists_at_once() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(2040 << 30, 2048));
    image
        .write_at(&[1; 512], (2040 << 30) - 512, false)
        .unwrap();
    let found = extents(&image);
    assert_eq!(found.first().unwrap().2, ExtentKind::Hole);
    assert!(found.len() < 8, "{found:?}");
    assert_eq!(found.iter().map(|e| e.1).sum::<u64>(), 2040 << 30);
    image.close().unwrap();
    let file = storage.open(path(), OpenMode::Read).unwrap();
    assert!(file.length().unwrap() < 8 << 20);
}
