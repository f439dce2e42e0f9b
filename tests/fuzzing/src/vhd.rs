//! VHD files: footers, header, BAT, locators, bitmaps.
//!
//! The first byte of an input chooses whether its checksums are put right first; the rest is the file, folded.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::parent::ParentLink;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{BlockFile, Storage};
use sitepair_disk::vhd::VhdImage;

use crate::file::{PATH, unfold};
use crate::image::{Stub, read_then_write};

const FOOTER_BYTES: usize = 512;
const FOOTER_CHECKSUM: usize = 64;
const HEADER_BYTES: usize = 1024;
const HEADER_CHECKSUM: usize = 36;

pub(crate) fn file_of(input: &[u8]) -> FakeStorage {
    let (choice, pieces) = input.split_first().unwrap_or((&0, &[]));
    let (storage, file) = unfold(pieces);
    if choice & 1 == 1 {
        repair(&*file);
    }
    storage
}

/// Makes the checksums of both footers and of the header hold, where they usually are.
fn repair(file: &dyn BlockFile) {
    let length = file.length().unwrap();
    repair_one(file, 0, FOOTER_BYTES, FOOTER_CHECKSUM);
    repair_one(file, 512, HEADER_BYTES, HEADER_CHECKSUM);
    if let Some(last) = length.checked_sub(FOOTER_BYTES as u64) {
        repair_one(file, last, FOOTER_BYTES, FOOTER_CHECKSUM);
    }
}

fn repair_one(file: &dyn BlockFile, at: u64, length: usize, checksum_at: usize) {
    let mut bytes = vec![0; length];
    if file.read_at(&mut bytes, at).is_err() {
        return;
    }
    bytes[checksum_at..checksum_at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    file.write_at(&bytes, at).unwrap();
}

/// Opens a VHD for reading, then for writing. Whatever parent it names, it gets.
pub fn open(input: &[u8]) {
    let storage = file_of(input);
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    read_then_write(&storage, |read_only| {
        let mut find = |link: &ParentLink| Ok(Stub::of(link));
        let image =
            VhdImage::open_with(Arc::clone(&shared), Path::new(PATH), read_only, &mut find)?;
        Ok(Box::new(image))
    });
}
