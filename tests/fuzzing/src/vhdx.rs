//! VHDX files: headers, region tables, metadata, parent locators, log, BAT.
//!
//! The first byte of an input chooses whether its checksums are put right first; the rest is the file, folded.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::parent::ParentLink;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{BlockFile, Storage};
use sitepair_disk::vhdx::VhdxImage;

use crate::file::{PATH, unfold};
use crate::image::{Stub, read_then_write};

const SECTOR: usize = 4096;
const LOG_ENTRY_BYTES_MAX: u64 = 1 << 20;

/// Headers and region tables: offset, length.
const CHECKED: [(u64, usize); 4] = [
    (64 << 10, 4096),
    (128 << 10, 4096),
    (192 << 10, 64 << 10),
    (256 << 10, 64 << 10),
];

pub(crate) fn file_of(input: &[u8]) -> FakeStorage {
    let (choice, pieces) = input.split_first().unwrap_or((&0, &[]));
    let (storage, file) = unfold(pieces);
    if choice & 1 == 1 {
        repair(&*file);
    }
    storage
}

/// Makes the checksums of headers, region tables and log entries hold.
pub(crate) fn repair(file: &dyn BlockFile) {
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
    read_then_write(&storage, |read_only| {
        let image = VhdxImage::open(Arc::clone(&shared), Path::new(PATH), read_only)?;
        Ok(Box::new(image))
    });
}

/// The same for a differencing VHDX, whose parent is whatever it says.
pub fn open_child(input: &[u8]) {
    let storage = file_of(input);
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    read_then_write(&storage, |read_only| {
        let mut find = |link: &ParentLink| Ok(Stub::of(link));
        let image =
            VhdxImage::open_with(Arc::clone(&shared), Path::new(PATH), read_only, &mut find)?;
        Ok(Box::new(image))
    });
}
