//! Chains of files on the fake storage, for tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{ChildOptions, VhdxImage};
use super::options;
use crate::error::DiskError;
use crate::image::Image;
use crate::open::{Format, OpenOptions, open_image};
use crate::parent::Parents;
use crate::storage::fake::FakeStorage;
use crate::tests::stamped;

/// The files of chains; 0 is the base.
pub(super) fn level(number: usize) -> PathBuf {
    PathBuf::from(format!("/level{number}.vhdx"))
}

/// Opens a file with whatever parents it names.
pub(super) fn open_chain(
    storage: &FakeStorage,
    path: &Path,
    read_only: bool,
) -> Result<Arc<dyn Image>, DiskError> {
    let options = OpenOptions {
        format: Some(Format::Vhdx),
        read_only,
        parents: Parents::Inside("/".into()),
    };
    open_image(&(Arc::new(storage.clone()) as _), path, options)
}

/// The same as an image of its own type, with the parent found by its name.
pub(super) fn open_vhdx(
    storage: &FakeStorage,
    path: &Path,
    read_only: bool,
) -> Result<VhdxImage, DiskError> {
    let mut find = |link: &crate::parent::ParentLink| {
        open_chain(storage, &Path::new("/").join(&link.paths[0]), true)
    };
    VhdxImage::open_with(Arc::new(storage.clone()), path, read_only, &mut find)
}

/// Makes a file over the one at `parent`.
pub(super) fn child(
    storage: &FakeStorage,
    path: &Path,
    parent: &Path,
    block_mib: u32,
) -> Result<VhdxImage, DiskError> {
    let options = ChildOptions {
        parent_path: parent.to_owned(),
        block_bytes: block_mib << 20,
    };
    let parent = Arc::new(open_vhdx(storage, parent, true)?);
    VhdxImage::create_child(Arc::new(storage.clone()), path, &parent, &options)
}

/// A closed base of `size_bytes` with blocks of 1 MiB. Its sectors from `from` on, `count` of them, hold 1000.
pub(super) fn base(storage: &FakeStorage, size_bytes: u64, from: u64, count: u64) {
    let wanted = options(size_bytes, 1);
    let image = VhdxImage::create(Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    image
        .write_at(&stamped(1000, count), from * 512, false)
        .unwrap();
    image.close().unwrap();
}
