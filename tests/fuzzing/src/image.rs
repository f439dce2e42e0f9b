//! Image files of any format: what an unknown file looks like, and what every format must stand.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::parent::ParentLink;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::{DiskError, ErrorKind, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};

use crate::file::PATH;
use crate::vhdx::file_of;

/// Runs of an image that are looked at.
const RUNS_MAX: usize = 512;
const SECTOR: usize = 4096;

pub(crate) type Opened = Result<Box<dyn Image>, DiskError>;

/// Opens an image for reading, then for writing; what was written must be there, also in a new session.
/// `open(read_only)` opens the file of the storage.
pub(crate) fn read_then_write(storage: &FakeStorage, open: impl Fn(bool) -> Opened) {
    let before = storage.operation_count();
    let readable = match open(true) {
        Ok(image) => {
            look_at(&*image);
            true
        }
        Err(e) => {
            check_error(&e);
            false
        }
    };
    assert_eq!(storage.operation_count(), before, "reading has written");
    match open(false) {
        Ok(image) => {
            assert!(readable, "can be written, but not read");
            write_to(open, image);
        }
        Err(e) => check_error(&e),
    }
}

/// Opens a file of unknown format.
pub fn open_any(input: &[u8]) {
    let storage: Arc<dyn Storage> = Arc::new(file_of(input));
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    match open_image(&storage, Path::new(PATH), options) {
        Ok(image) => look_at(&*image),
        Err(e) => check_error(&e),
    }
}

pub(crate) fn check_error(error: &DiskError) {
    let kind = error.kind();
    assert!(
        matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported),
        "{kind:?}: {error}"
    );
    assert!(!error.to_string().is_empty());
}

/// Walks the runs of an image and reads a little of each. They must cover it, in order.
pub(crate) fn look_at(image: &dyn Image) {
    let geometry = image.geometry();
    let mut runs = Vec::new();
    let mut end = 0;
    let result = image.extents(0, geometry.size_bytes, &mut |run| {
        assert_eq!(run.offset, end, "runs follow each other");
        assert!(run.length > 0);
        end = run.end();
        runs.push(run.offset);
        runs.len() < RUNS_MAX
    });
    if let Err(e) = result {
        return check_error(&e);
    }
    assert!(end <= geometry.size_bytes);
    assert!(runs.len() == RUNS_MAX || end == geometry.size_bytes);
    let mut buf = [0; SECTOR];
    for at in runs {
        let length = usize::try_from(geometry.size_bytes - at).unwrap_or(SECTOR);
        if let Err(e) = image.read_at(&mut buf[..length.min(SECTOR)], at) {
            check_error(&e);
        }
    }
}

fn write_to(open: impl Fn(bool) -> Opened, image: Box<dyn Image>) {
    let size = image.geometry().size_bytes;
    if size < SECTOR as u64 {
        return;
    }
    let last = (size - SECTOR as u64) / SECTOR as u64 * SECTOR as u64;
    let places = [0, last / 2 / SECTOR as u64 * SECTOR as u64, last];
    for (number, at) in (1..).zip(places) {
        // A file may have no room left that its format can name.
        if image.write_at(&[number; SECTOR], at, false).is_err() {
            return;
        }
    }
    if image.flush().is_err() || image.close().is_err() {
        return;
    }
    drop(image);
    let again = open(true).expect("what we closed can be opened");
    let mut expected = std::collections::BTreeMap::new();
    for (number, at) in (1_u8..).zip(places) {
        expected.insert(at, number);
    }
    for (at, number) in expected {
        let mut buf = [0; SECTOR];
        again
            .read_at(&mut buf, at)
            .expect("what we wrote can be read");
        assert!(
            buf == [number; SECTOR],
            "what was written at {at} is not there"
        );
    }
}

/// A parent that is what its child wants, small, and everywhere the same.
pub(crate) struct Stub {
    id: [u8; 16],
}

/// No child is refused because its parent is larger.
const STUB_BYTES: u64 = 512;

impl Stub {
    /// The parent that a link means.
    pub(crate) fn of(link: &ParentLink) -> Arc<dyn Image> {
        Arc::new(Self { id: link.id })
    }
}

impl Image for Stub {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: STUB_BYTES,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            block_bytes: 0,
            read_only: true,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity {
            data_write_id: self.id,
            ..Identity::default()
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let end = offset + u64::try_from(buf.len()).unwrap();
        assert!(end <= STUB_BYTES, "a parent is read past its end");
        buf.fill(0xEE);
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> Result<(), DiskError> {
        panic!("a parent is written")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroMode, _: bool) -> Result<(), DiskError> {
        panic!("a parent is written")
    }

    fn flush(&self) -> Result<(), DiskError> {
        panic!("a parent is flushed")
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        assert!(
            offset + length <= STUB_BYTES,
            "a parent is asked past its end"
        );
        visit(Run::here(offset, length, ExtentKind::Data));
        Ok(())
    }

    fn close(&self) -> Result<(), DiskError> {
        Ok(())
    }
}
