//! Parents: which are taken, which are refused, and what a child has of them.

use std::path::Path;
use std::sync::Arc;

use super::super::layout::MIB;
use super::super::{CreateOptions, Kind, VhdxImage};
use super::options;
use super::over::{base, child, level, open_chain, open_vhdx};
use crate::error::ErrorKind;
use crate::image::Image;
use crate::storage::Storage;
use crate::storage::fake::FakeStorage;
use crate::tests::{read, stamped, stamps};

#[test]
fn a_parent_must_be_the_one_that_was_meant_and_unchanged() {
    let storage = FakeStorage::new();
    base(&storage, 4 * MIB, 0, 2048);
    child(&storage, &level(1), &level(0), 2)
        .unwrap()
        .close()
        .unwrap();
    let refusal = |read_only| {
        let refusal = open_chain(&storage, &level(1), read_only).err().unwrap();
        assert_eq!(refusal.kind(), ErrorKind::Parent, "{refusal}");
        refusal.to_string()
    };
    drop(open_chain(&storage, &level(1), true).unwrap());
    // Nobody may write to a parent in use.
    let held = open_chain(&storage, &level(1), false).unwrap();
    let locked = open_chain(&storage, &level(0), false).err().unwrap();
    assert_eq!(locked.kind(), ErrorKind::Locked);
    drop(held);
    let before = storage.content(&level(1)).unwrap();
    storage.rename(&level(0), Path::new("/moved.vhdx")).unwrap();
    assert!(refusal(false).contains("missing"));
    storage.rename(Path::new("/moved.vhdx"), &level(0)).unwrap();
    drop(open_chain(&storage, &level(1), true).unwrap());
    // Opened for writing and closed it is still the same; written to it is not.
    open_chain(&storage, &level(0), false)
        .unwrap()
        .close()
        .unwrap();
    drop(open_chain(&storage, &level(1), true).unwrap());
    let image = open_chain(&storage, &level(0), false).unwrap();
    image.write_at(&[1; 512], 0, false).unwrap();
    image.close().unwrap();
    assert!(refusal(false).contains("changed"));
    assert!(refusal(true).contains("changed"));
    assert!(
        storage.content(&level(1)).unwrap() == before,
        "a refused file is not changed"
    );
    // Alone it is not opened at all.
    let alone = VhdxImage::open(Arc::new(storage.clone()), &level(1), true)
        .err()
        .unwrap();
    assert!(alone.to_string().contains("must be named"), "{alone}");
    // No child of a parent that may still change.
    let parent = Arc::new(open_vhdx(&storage, &level(0), false).unwrap());
    let wanted = super::super::ChildOptions {
        parent_path: level(0),
        block_bytes: 1 << 20,
    };
    let refused = VhdxImage::create_child(Arc::new(storage.clone()), &level(2), &parent, &wanted);
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Invalid);
}

#[test]
fn a_file_that_is_its_own_parent_is_refused() {
    let storage = FakeStorage::new();
    base(&storage, 4 * MIB, 0, 8);
    child(&storage, &level(1), &level(0), 2)
        .unwrap()
        .close()
        .unwrap();
    let content = storage.content(&level(1)).unwrap();
    storage.overwrite(&level(0), 0, &content).unwrap();
    // Now both are the child, and name level 0.
    let refusal = open_chain(&storage, &level(1), true)
        .err()
        .unwrap()
        .to_string();
    assert!(refusal.contains("its own parent"), "{refusal}");
}

#[test]
fn replay_of_a_child_keeps_its_id_for_grandchildren() {
    let storage = FakeStorage::new();
    base(&storage, 4 * MIB, 0, 2048);
    let image = child(&storage, &level(1), &level(0), 2).unwrap();
    image.write_at(&stamped(7, 8), 0, true).unwrap();
    drop(image);
    let after = storage.crash(0);
    let image = child(&after, &level(2), &level(1), 1).unwrap();
    assert_eq!(stamps(&image, 0, 9), [7, 7, 7, 7, 7, 7, 7, 7, 1000]);
    image.close().unwrap();
    // The middle is replayed in the file only now.
    open_vhdx(&after, &level(1), false)
        .unwrap()
        .close()
        .unwrap();
    let image = open_chain(&after, &level(2), true).unwrap();
    assert_eq!(stamps(&*image, 0, 9), [7, 7, 7, 7, 7, 7, 7, 7, 1000]);
}

#[test]
fn a_fixed_parent_is_a_parent_too_and_the_disk_is_the_same_disk() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Fixed,
        disk_id: Some([3; 16]),
        ..options(4 * MIB, 1)
    };
    let image = VhdxImage::create(Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    image.write_at(&[5; 4096], MIB, false).unwrap();
    image.close().unwrap();
    let image = child(&storage, &level(1), &level(0), 2).unwrap();
    assert_eq!(read(&image, MIB, 4096), [5; 4096]);
    assert_eq!(
        image.gate.with(|core| Ok(core.parameters.disk_id)).unwrap(),
        [3; 16]
    );
    assert_eq!(image.kind(), Kind::Dynamic);
    let link = image.parent_link().unwrap().unwrap();
    assert_eq!(
        link.paths,
        ["./level0.vhdx", "/level0.vhdx"].map(std::path::PathBuf::from)
    );
}
