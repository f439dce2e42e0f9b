//! New disks: what they hold, crashes while they are made, and growth.

use std::sync::Arc;

use super::super::layout::MIB;
use super::super::{CreateOptions, Kind, VhdxImage};
use super::{EMPTY, create, open, options, path};
use crate::error::ErrorKind;
use crate::image::{ExtentKind, Image};
use crate::storage::Storage;
use crate::storage::fake::FakeStorage;
use crate::tests::{extents, read};

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
    let core = super::super::open::open(&storage, path(), true, &mut crate::parent::refuse(path()))
        .unwrap();
    assert_eq!(core.parameters.disk_id, [9; 16]);
}

#[test]
fn a_crash_while_creating_leaves_no_file_or_a_whole_one() {
    let whole = FakeStorage::new();
    drop(super::super::create::create(&whole, path(), &options(4 * MIB, 1)).unwrap());
    for count in 0..whole.operation_count() {
        let storage = FakeStorage::new();
        storage.die_after(count);
        let made = super::super::create::create(&storage, path(), &options(4 * MIB, 1));
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
