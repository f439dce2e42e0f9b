//! Images on the fake storage: how tests make them, and rules of requests and their failures.

mod child_crash;
mod crash;
mod damage;
mod differencing;
mod flushes;
mod made;
mod over;
mod parents;
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
use crate::tests::{extents, read};

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
