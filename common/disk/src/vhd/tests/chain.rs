//! Differencing disks: what shows through, which parents are taken, what a parent's place is called.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{ChildOptions, CreateOptions, Kind, VhdImage};
use super::random::{PARENT, make};
use super::{MIB, create, open, open_chain, options, path};
use crate::error::ErrorKind;
use crate::image::{ExtentKind, Image, Run};
use crate::storage::Storage;
use crate::storage::fake::FakeStorage;
use crate::tests::{stamped, stamps};

const SECTORS: u64 = 8192;

fn child() -> (FakeStorage, VhdImage) {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Differencing,
        ..options(SECTORS * 512, 512)
    };
    let (image, _) = make(&storage, &wanted);
    (storage, image)
}

#[test]
fn a_child_shows_its_parent_until_it_is_written() {
    let (storage, image) = child();
    assert_eq!(image.kind(), Kind::Differencing);
    assert_eq!(stamps(&image, 98, 4), [7, 7, 0, 0]);
    image.write_at(&stamped(9, 2), 99 * 512, false).unwrap();
    assert_eq!(stamps(&image, 97, 5), [7, 7, 9, 9, 0]);
    image.discard(98 * 512, 512).unwrap();
    assert_eq!(
        stamps(&image, 97, 5),
        [7, 0, 9, 9, 0],
        "zeros hide the parent"
    );
    image.discard(0, MIB).unwrap();
    assert_eq!(stamps(&image, 0, 2048), [0; 2048]);
    image.close().unwrap();
    let image = open_chain(&storage, &[path(), Path::new(PARENT)], true).unwrap();
    assert_eq!(stamps(&image, 0, 2048), [0; 2048]);
    assert_eq!(stamps(&image, 2198, 4), [0, 0, 7, 7]);
}

/// A disk over `child`, as it is.
fn grandchild(storage: &FakeStorage, image: VhdImage) -> VhdImage {
    image.close().unwrap();
    drop(image);
    let chain = [path(), Path::new(PARENT)];
    let middle = Arc::new(open_chain(storage, &chain, true).unwrap());
    let over = ChildOptions {
        parent_path: path().to_owned(),
        block_bytes: 2 << 20,
    };
    let shared = Arc::new(storage.clone());
    VhdImage::create_child(shared, Path::new("/top.vhd"), &middle, &over).unwrap()
}

#[test]
fn chains_of_three_show_the_nearest() {
    let (storage, image) = child();
    image.write_at(&stamped(9, 10), 0, false).unwrap();
    let image = grandchild(&storage, image);
    image.write_at(&stamped(11, 5), 0, false).unwrap();
    let found = stamps(&image, 0, 101);
    assert_eq!(found[..5], [11; 5]);
    assert_eq!(found[5..10], [9; 5]);
    assert_eq!(found[10..100], [7; 90]);
    assert_eq!(found[100], 0);
}

#[test]
fn extents_tell_which_file_of_a_chain_has_what() {
    let (storage, image) = child();
    // Blocks of 512 KiB: the first has sectors of the child, the second is the child's zeros.
    image.write_at(&stamped(9, 8), 16 * 512, false).unwrap();
    image.discard(MIB / 2, MIB / 2).unwrap();
    let image = grandchild(&storage, image);
    image.write_at(&stamped(11, 8), 0, false).unwrap();
    let told = levels(&image, 0, MIB);
    let sector = |offset: u64| offset / 512;
    assert_eq!((told[0].level, told[0].kind), (0, ExtentKind::Data));
    assert_eq!((sector(told[0].offset), sector(told[0].length)), (0, 8));
    let of_child = Run {
        offset: 16 * 512,
        length: 8 * 512,
        kind: ExtentKind::Data,
        level: 1,
    };
    assert!(told.contains(&of_child), "{told:?}");
    let at = |offset: u64| *told.iter().find(|run| offset < run.end()).unwrap();
    assert_eq!(
        (at(8 * 512).level, at(8 * 512).kind),
        (2, ExtentKind::Data),
        "the base's, between both"
    );
    assert_eq!(
        (at(40 * 512).level, at(40 * 512).kind),
        (2, ExtentKind::Data)
    );
    let hidden = at(MIB / 2);
    assert_eq!((hidden.level, hidden.kind), (1, ExtentKind::Hole));
    assert_eq!(hidden.end(), MIB, "runs of a kind at a level are one");
    // No file has anything at the end: the last of them says so.
    let rest = levels(&image, SECTORS / 2 * 512, SECTORS / 2 * 512);
    let wanted = Run {
        offset: SECTORS / 2 * 512,
        length: SECTORS / 2 * 512,
        kind: ExtentKind::Hole,
        level: 2,
    };
    assert_eq!(rest, [wanted]);
}

fn levels(image: &VhdImage, offset: u64, length: u64) -> Vec<Run> {
    let mut told = Vec::new();
    image
        .extents(offset, length, &mut |run| {
            told.push(run);
            true
        })
        .unwrap();
    told
}

#[test]
fn the_parent_is_named_relative_and_absolute() {
    let (storage, image) = child();
    image.close().unwrap();
    drop(image);
    let mut told = None;
    let refused = VhdImage::open_with(Arc::new(storage.clone()), path(), true, &mut |link| {
        told = Some(link.clone());
        crate::parent::refuse(path())(link)
    });
    assert_eq!(
        refused.err().unwrap().kind(),
        open(&storage, true).err().unwrap().kind()
    );
    let link = told.unwrap();
    let parent = VhdImage::open(Arc::new(storage.clone()), Path::new(PARENT), true).unwrap();
    assert_eq!(link.id, parent.identity().unwrap().data_write_id);
    assert_eq!(link.paths.first(), Some(&PathBuf::from("./parent.vhd")));
}

#[test]
fn a_parent_with_another_id_is_refused() {
    let (storage, image) = child();
    image.close().unwrap();
    drop(image);
    storage.remove(Path::new(PARENT)).unwrap();
    let other = options(SECTORS * 512, 512);
    let shared = Arc::new(storage.clone());
    VhdImage::create(shared, Path::new(PARENT), &other)
        .unwrap()
        .close()
        .unwrap();
    let refused = open_chain(&storage, &[path(), Path::new(PARENT)], true);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("another disk"), "{refused}");
}

#[test]
fn bits_are_written_after_their_bytes_are_durable_and_only_over_data() {
    let (storage, image) = child();
    image.write_at(&stamped(9, 8), 0, true).unwrap();
    let syncs = || storage.counters(path()).syncs;
    let before = syncs();
    image.write_at(&stamped(9, 8), 0, false).unwrap();
    assert_eq!(syncs(), before, "sectors that are here cost nothing");
    image.write_at(&stamped(9, 8), 64 * 512, false).unwrap();
    assert_eq!(syncs(), before + 1, "new ones over a parent one sync");
    image
        .write_at(&stamped(9, 8), (SECTORS - 8) * 512, false)
        .unwrap();
    assert_eq!(syncs(), before + 1, "where the parent has nothing none");
    image.flush().unwrap();
    assert_eq!(syncs(), before + 2);
    // And a killed process loses nothing that was answered.
    image.write_at(&stamped(12, 8), 80 * 512, false).unwrap();
    let after = storage.after_kill();
    let image = open_chain(&after, &[path(), Path::new(PARENT)], true).unwrap();
    assert_eq!(stamps(&image, 80, 8), [12; 8]);
}

#[test]
fn a_writable_parent_and_growing_a_child_are_refused() {
    let (storage, image) = child();
    let refused = image.resize(16 << 20).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let link = image.parent_link().unwrap().unwrap();
    assert_eq!(link.paths.len(), 3, "{link:?}");
    let over = ChildOptions {
        parent_path: path().to_owned(),
        block_bytes: 2 << 20,
    };
    let shared = Arc::new(storage.clone());
    let image = Arc::new(image);
    let refused = VhdImage::create_child(shared, Path::new("/over"), &image, &over);
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Invalid);
    let alone = CreateOptions {
        kind: Kind::Differencing,
        ..options(MIB, 512)
    };
    let other = FakeStorage::new();
    let made = super::super::create::create(&other, path(), &alone, None);
    assert_eq!(made.err().unwrap().kind(), ErrorKind::Invalid);
    let without = create(&other, &options(MIB, 512));
    assert_eq!(without.parent_link().unwrap(), None);
}
