//! Images on the fake storage: how tests make them, and rules of requests.

mod chain;
mod crash;
mod damage;
mod faults;
mod flushes;
mod grow;
mod made;
mod random;

use std::path::Path;
use std::sync::Arc;

use super::{CreateOptions, Kind, VhdImage};
use crate::error::ErrorKind;
use crate::image::{Access, ExtentKind, Image, ZeroMode};
use crate::parent::Find;
use crate::storage::fake::{FakeStorage, What};
use crate::tests::{extents, read};

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
