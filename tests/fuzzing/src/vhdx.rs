//! Image files: headers, region tables, metadata, log, BAT of VHDX, and whatever an unknown file looks like.
//!
//! The first byte of an input chooses whether its checksums are put right first; the rest is the file, folded.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{BlockFile, Storage};
use sitepair_disk::vhdx::VhdxImage;
use sitepair_disk::{DiskError, ErrorKind, Image};

use crate::file::{PATH, unfold};

/// Runs of an image that are looked at.
const RUNS_MAX: usize = 512;
const SECTOR: usize = 4096;
const LOG_ENTRY_BYTES_MAX: u64 = 1 << 20;

/// Headers and region tables: offset, length.
const CHECKED: [(u64, usize); 4] = [
    (64 << 10, 4096),
    (128 << 10, 4096),
    (192 << 10, 64 << 10),
    (256 << 10, 64 << 10),
];

fn file_of(input: &[u8]) -> FakeStorage {
    let (choice, pieces) = input.split_first().unwrap_or((&0, &[]));
    let (storage, file) = unfold(pieces);
    if choice & 1 == 1 {
        repair(&*file);
    }
    storage
}

/// Makes the checksums of headers, region tables and log entries hold.
fn repair(file: &dyn BlockFile) {
    for (at, length) in CHECKED {
        repair_one(file, at, length);
    }
    let length = file.length().unwrap();
    let mut at = 1 << 20;
    // The log of all seeds; a mutation may have moved it, and is then on its own.
    while at < (2 << 20) && at + 64 <= length {
        let mut start = [0; 12];
        file.read_at(&mut start, at).unwrap();
        let bytes = u64::from(u32::from_le_bytes(start[8..12].try_into().unwrap()));
        if start.starts_with(b"loge") && bytes <= LOG_ENTRY_BYTES_MAX && at + bytes <= length {
            repair_one(file, at, usize::try_from(bytes).unwrap());
        }
        at += SECTOR as u64;
    }
}

fn repair_one(file: &dyn BlockFile, at: u64, length: usize) {
    let mut bytes = vec![0; length];
    if length < 8 || file.read_at(&mut bytes, at).is_err() {
        return;
    }
    bytes[4..8].fill(0);
    let checksum = crc32c::crc32c(&bytes);
    file.write_at(&checksum.to_le_bytes(), at + 4).unwrap();
}

/// Opens a VHDX for reading, then for writing; what was written must be there, also in a new session.
pub fn open(input: &[u8]) {
    let storage = file_of(input);
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let before = storage.operation_count();
    let opened = VhdxImage::open(Arc::clone(&shared), Path::new(PATH), true);
    let readable = match opened {
        Ok(image) => {
            look_at(&image);
            drop(image);
            true
        }
        Err(e) => {
            check_error(&e);
            false
        }
    };
    assert_eq!(storage.operation_count(), before, "reading has written");
    match VhdxImage::open(Arc::clone(&shared), Path::new(PATH), false) {
        Ok(image) => {
            assert!(readable, "can be written, but not read");
            write_to(&shared, image);
        }
        Err(e) => check_error(&e),
    }
}

/// Opens a file of unknown format.
pub fn any_image(input: &[u8]) {
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
        runs.push((run.offset, run.kind));
        runs.len() < RUNS_MAX
    });
    if let Err(e) = result {
        return check_error(&e);
    }
    assert!(end <= geometry.size_bytes);
    assert!(runs.len() == RUNS_MAX || end == geometry.size_bytes);
    let mut buf = [0; SECTOR];
    for (at, _) in runs {
        let length = usize::try_from(geometry.size_bytes - at).unwrap_or(SECTOR);
        if let Err(e) = image.read_at(&mut buf[..length.min(SECTOR)], at) {
            check_error(&e);
        }
    }
}

fn write_to(storage: &Arc<dyn Storage>, image: VhdxImage) {
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
    let again = VhdxImage::open(Arc::clone(storage), Path::new(PATH), true)
        .expect("what we closed can be opened");
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
