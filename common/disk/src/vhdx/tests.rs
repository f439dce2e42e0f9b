//! Images on the fake storage: rules of the data path, of flushes, and of damaged files.

mod crash;
mod damage;
mod differencing;
mod over;
mod random;
mod rules;
mod shared;

use std::path::Path;
use std::sync::Arc;

use super::layout::MIB;
use super::{CreateOptions, Kind, VhdxImage};
use crate::error::ErrorKind;
use crate::image::{Access, ExtentKind, Image, ZeroMode};
use crate::storage::fake::{FakeStorage, Fault, FaultOn, What};
use crate::storage::{OpenMode, Storage};
use crate::testing::{extents, read};

const PATH: &str = "/disk.vhdx";
/// Length in bytes of a small disk's file without a block.
const EMPTY: usize = (6 << 20) + (1 << 20);

fn path() -> &'static Path {
    Path::new(PATH)
}

fn options(size_bytes: u64, block_mib: u32) -> CreateOptions {
    CreateOptions {
        size_bytes,
        block_bytes: block_mib << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind: Kind::Dynamic,
        disk_id: None,
    }
}

fn create(storage: &FakeStorage, options: &CreateOptions) -> VhdxImage {
    VhdxImage::create(Arc::new(storage.clone()), path(), options).unwrap()
}

fn open(storage: &FakeStorage, read_only: bool) -> Result<VhdxImage, crate::DiskError> {
    VhdxImage::open(Arc::new(storage.clone()), path(), read_only)
}

#[test]
fn a_new_disk_reads_as_zeros_and_keeps_what_it_was_given() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        disk_id: Some([9; 16]),
        ..options(10 * MIB, 1)
    };
    let image = create(&storage, &wanted);
    let geometry = image.geometry();
    assert_eq!(
        (geometry.size_bytes, geometry.block_bytes),
        (10 * MIB, 1 << 20)
    );
    assert_eq!(
        (
            geometry.logical_sector_bytes,
            geometry.physical_sector_bytes
        ),
        (512, 4096)
    );
    assert_eq!(read(&image, 0, 10 << 20), vec![0; 10 << 20]);
    assert_eq!(extents(&image), [(0, 10 * MIB, ExtentKind::Hole)]);
    image.close().unwrap();
    assert_eq!(storage.content(path()).unwrap().len(), EMPTY);
    let core =
        super::open::open(&storage, path(), true, &mut crate::parent::refuse(path())).unwrap();
    assert_eq!(core.parameters.disk_id, [9; 16]);
}

#[test]
fn a_crash_while_creating_leaves_no_file_or_a_whole_one() {
    let whole = FakeStorage::new();
    drop(super::create::create(&whole, path(), &options(4 * MIB, 1)).unwrap());
    for count in 0..whole.operation_count() {
        let storage = FakeStorage::new();
        storage.die_after(count);
        let made = super::create::create(&storage, path(), &options(4 * MIB, 1));
        assert!(made.is_err());
        for seed in 0..6 {
            let after = storage.crash(seed);
            if after.exists(path()).unwrap() {
                open(&after, false).unwrap().close().unwrap();
            }
        }
        let after = storage.after_kill();
        if !after.exists(path()).unwrap() {
            create(&after, &options(4 * MIB, 1)).close().unwrap();
        }
    }
}

#[test]
fn an_existing_file_is_not_overwritten_by_create() {
    let storage = FakeStorage::new();
    create(&storage, &options(MIB, 1)).close().unwrap();
    let again = VhdxImage::create(Arc::new(storage.clone()), path(), &options(MIB, 1));
    assert_eq!(again.err().unwrap().kind(), ErrorKind::Io);
}

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
fn trimming_whole_blocks_gives_space_back_and_parts_become_zero() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(3 * MIB + 512, 1));
    image.write_at(&vec![7; (3 << 20) + 512], 0, false).unwrap();
    image.discard(MIB, 2 * MIB + 512).unwrap();
    assert_eq!(
        extents(&image),
        [
            (0, MIB, ExtentKind::Data),
            (MIB, 2 * MIB + 512, ExtentKind::Hole)
        ]
    );
    image
        .write_zeroes(4096, 8192, ZeroMode::MayUnmap, false)
        .unwrap();
    assert_eq!(read(&image, 4096, 8192), [0; 8192]);
    assert_eq!(read(&image, 12288, 512), [7; 512]);
    image.close().unwrap();
    assert_eq!(storage.content(path()).unwrap().len(), EMPTY + (1 << 20));
    let entry = &storage.content(path()).unwrap()[EMPTY - (1 << 20) + 8..][..8];
    assert_eq!(entry, 2_u64.to_le_bytes(), "state ZERO with offset 0");
}

#[test]
fn trimmed_space_is_not_reused_before_the_trim_is_durable() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 1));
    image.write_at(&vec![7; 1 << 20], 0, false).unwrap();
    image.flush().unwrap();
    image.discard(0, MIB).unwrap();
    image.write_at(&vec![8; 1 << 20], 4 * MIB, false).unwrap();
    // The trim is not durable: whatever is left of the write, block 0 still has all of its bytes or none.
    for seed in 0..40 {
        let after = open(&storage.crash(seed), true).unwrap();
        let first = read(&after, 0, 1 << 20);
        assert!(
            first == vec![7; 1 << 20] || first == vec![0; 1 << 20],
            "seed {seed}"
        );
    }
}

#[test]
fn a_fixed_disk_never_gives_space_back() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Fixed,
        ..options(4 * MIB, 2)
    };
    let image = create(&storage, &wanted);
    image.write_at(&[5; 4096], MIB, false).unwrap();
    image.discard(0, 4 * MIB).unwrap();
    assert_eq!(read(&image, MIB, 4096), [0; 4096]);
    assert!(
        !storage
            .operations()
            .iter()
            .any(|op| matches!(op.what, What::PunchHole { .. }))
    );
    assert!(
        extents(&image)
            .iter()
            .all(|extent| extent.2 != ExtentKind::Hole)
    );
    image.close().unwrap();
    assert_eq!(storage.content(path()).unwrap().len(), EMPTY + (4 << 20));
}

#[test]
fn a_failed_sync_or_log_write_poisons_the_image() {
    for on in [FaultOn::Sync, FaultOn::Write] {
        let storage = FakeStorage::new();
        let image = create(&storage, &options(8 * MIB, 1));
        image.write_at(&[1; 512], 0, false).unwrap();
        image.flush().unwrap();
        image.write_at(&[2; 512], MIB, false).unwrap();
        storage.fail(Fault {
            on,
            path: None,
            nth: 1,
            kind: std::io::ErrorKind::Other,
        });
        image.flush().unwrap_err();
        assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(
            image.write_at(&[0; 512], 0, false).unwrap_err().kind(),
            ErrorKind::Poisoned
        );
        assert_eq!(
            image.read_at(&mut [0; 512], 0).unwrap_err().kind(),
            ErrorKind::Poisoned
        );
        assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Poisoned);
        drop(image);
        let after = open(&storage.crash(5), false).unwrap();
        assert_eq!(read(&after, 0, 512), [1; 512]);
    }
}

#[test]
fn no_room_for_a_block_is_an_error_of_that_write_only() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 1));
    image.write_at(&[1; 4096], 0, false).unwrap();
    image.flush().unwrap();
    storage.limit_space(Some(4 * MIB));
    let failed = image
        .write_at(&vec![2; 8 << 20], 8 * MIB, false)
        .unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    storage.limit_space(None);
    image.write_at(&vec![3; 8 << 20], 8 * MIB, false).unwrap();
    image.close().unwrap();
    let after = open(&storage, true).unwrap();
    assert_eq!(read(&after, 8 * MIB, 8 << 20), vec![3; 8 << 20]);
    assert_eq!(read(&after, 0, 4096), [1; 4096]);
}

#[test]
fn the_identity_changes_at_the_first_write_of_a_session_only() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 1));
    let id = |image: &VhdxImage| image.identity().unwrap().data_write_id;
    let first = id(&image);
    image.flush().unwrap();
    assert_eq!(id(&image), first);
    assert!(
        !image.is_quick(Access::Write, 0, 4096),
        "the first write syncs"
    );
    image.write_at(&[1; 512], 0, false).unwrap();
    let second = id(&image);
    assert_ne!(second, first);
    image.write_at(&[1; 512], MIB, false).unwrap();
    assert!(image.is_quick(Access::Write, 0, 65536));
    assert!(!image.is_quick(Access::Read, 0, 512));
    image.close().unwrap();
    assert_eq!(id(&image), second, "and answers after a close");
    let reopened = open(&storage, false).unwrap();
    assert_eq!(id(&reopened), second);
    reopened.close().unwrap();
    assert_eq!(
        image.read_at(&mut [0; 512], 0).unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[test]
fn a_second_writer_and_a_reader_beside_a_writer_are_locked_out() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 1));
    assert_eq!(
        open(&storage, false).err().unwrap().kind(),
        ErrorKind::Locked
    );
    assert_eq!(
        open(&storage, true).err().unwrap().kind(),
        ErrorKind::Locked
    );
    image.close().unwrap();
    let one = open(&storage, true).unwrap();
    let two = open(&storage, true).unwrap();
    assert_eq!(read(&one, 0, 512), read(&two, 0, 512));
    assert_eq!(
        one.write_at(&[0; 512], 0, false).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn requests_outside_the_disk_or_off_its_sectors_change_nothing() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(MIB, 1));
    let count = storage.operation_count();
    for (offset, length) in [(MIB, 512), (0, 513), (1, 512), (u64::MAX - 511, 512)] {
        let buf = vec![1; length];
        let kind = image.write_at(&buf, offset, false).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Invalid);
    }
    assert_eq!(storage.operation_count(), count);
}

#[test]
fn a_huge_empty_disk_opens_with_little_memory_and_lists_at_once() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 << 40, 32));
    image.write_at(&[1; 512], (64 << 40) - 512, false).unwrap();
    let found = extents(&image);
    assert_eq!(found.first().unwrap().2, ExtentKind::Hole);
    assert!(found.len() < 8, "{found:?}");
    assert_eq!(found.iter().map(|extent| extent.1).sum::<u64>(), 64 << 40);
    assert_eq!(
        read(&image, (64 << 40) - 1024, 1024),
        [vec![0; 512], vec![1; 512]].concat()
    );
    image.close().unwrap();
}

#[test]
fn a_disk_grows_while_open_and_stays_grown() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let image = create(
            &storage,
            &CreateOptions {
                kind,
                ..options(3 * MIB + 512, 1)
            },
        );
        image.write_at(&vec![4; (3 << 20) + 512], 0, false).unwrap();
        image.resize(700 * MIB).unwrap();
        assert_eq!(image.geometry().size_bytes, 700 * MIB);
        let after = open(&storage.crash(0), true).unwrap();
        assert_eq!(after.geometry().size_bytes, 700 * MIB, "durable on return");
        assert_eq!(
            read(&after, 3 * MIB, 1024),
            [vec![4; 512], vec![0; 512]].concat()
        );
        image.write_at(&[6; 512], 700 * MIB - 512, false).unwrap();
        assert_eq!(
            image.resize(MIB).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        image.close().unwrap();
        let after = open(&storage, false).unwrap();
        assert_eq!(read(&after, 700 * MIB - 512, 512), [6; 512]);
        assert_eq!(read(&after, 600 * MIB, 512), [0; 512]);
    }
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
