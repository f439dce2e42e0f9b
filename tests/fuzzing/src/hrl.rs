//! Change logs: reading, recovering, applying.
//!
//! The first byte of an input chooses whether its checksums are put right first; the rest is the file, folded.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::hrl::apply::{ApplyOptions, apply_chain};
use sitepair_disk::hrl::{HrlInfo, HrlReader};
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::BlockFile;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::{ErrorKind, Image};

use crate::file::{PATH, unfold};

/// Metadata blocks that are put right, from the end.
const REPAIRED_MAX: usize = 64;
const DISK_BYTES: u64 = 2 << 20;

fn file_of(input: &[u8]) -> (FakeStorage, Arc<dyn BlockFile>) {
    let (choice, pieces) = input.split_first().unwrap_or((&0, &[]));
    let (storage, file) = unfold(pieces);
    if choice & 1 == 1 {
        repair(&*file);
    }
    (storage, file)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |total: u32, byte| total.wrapping_add(u32::from(*byte)))
}

/// Makes the checksums of the blocks that can be found from the end hold.
fn repair(file: &dyn BlockFile) {
    let mut header = [0; 128];
    if file.read_at(&mut header, 0).is_err() {
        return;
    }
    let eol = u64::from_le_bytes(header[44..52].try_into().unwrap());
    let size = u64::from(u32::from_le_bytes(header[56..60].try_into().unwrap()));
    let length = file.length().unwrap();
    let mut at = eol.min(length).wrapping_sub(size);
    for _ in 0..REPAIRED_MAX {
        let mut block = [0; 4096];
        if at > length || file.read_at(&mut block[..32], at).is_err() {
            return;
        }
        let back = u64::from_le_bytes(block[..8].try_into().unwrap());
        let valid = u32::from_le_bytes(block[8..12].try_into().unwrap());
        let slots = usize::try_from(valid).unwrap().min(127) + 1;
        if file.read_at(&mut block[..32 * slots], at).is_err() {
            return;
        }
        for (number, slot) in block.chunks_exact_mut(32).take(slots).enumerate() {
            let field = if number == 0 { 12 } else { 8 };
            slot[field..field + 4].fill(0);
            let checksum = !sum(slot);
            slot[field..field + 4].copy_from_slice(&checksum.to_le_bytes());
        }
        file.write_at(&block[..32 * slots], at).unwrap();
        at = at.wrapping_sub(back);
    }
}

/// Reads all of a log, and recovers it. What the strict reader takes, the recovering one takes too.
pub fn read(input: &[u8]) {
    let (storage, file) = file_of(input);
    if let Ok(info) = HrlInfo::read(&storage, Path::new(PATH)) {
        assert!(!info.to_string().is_empty());
    }
    let strict = HrlReader::of(Arc::clone(&file), "log".into()).map(|reader| {
        let entries = reader.entries().map_while(Result::ok);
        let mut whole = true;
        for entry in entries.take(10_000) {
            whole &= check_entry(&reader, &entry);
        }
        whole && reader.entries().all(|entry| entry.is_ok())
    });
    let Ok((reader, found)) = HrlReader::recover_of(Arc::clone(&file), "log".into()) else {
        assert!(!matches!(strict, Ok(true)), "read, but not recovered");
        return;
    };
    assert!(found.entries <= found.found);
    let mut given = 0;
    for entry in reader.entries() {
        let entry = entry.expect("a trusted entry can be read");
        assert!(
            check_entry(&reader, &entry),
            "a trusted entry's data does not hold"
        );
        given += 1;
    }
    assert_eq!(given, found.entries, "as many entries as were promised");
    if matches!(strict, Ok(true)) {
        assert!(!reader.is_partial(), "whole, but recovered in part");
    }
}

/// Whether an entry's data holds; it must lie in the file.
fn check_entry(reader: &HrlReader, entry: &sitepair_disk::hrl::HrlEntry) -> bool {
    assert!(entry.length > 0);
    assert!(entry.offset.checked_add(u64::from(entry.length)).is_some());
    let mut first = [0xee; 1];
    reader
        .read_entry_data(entry, entry.length - 1, &mut first)
        .expect("an entry's data lies in the file");
    match reader.verify_entry(entry) {
        Ok(()) => {
            assert!(!entry.is_zeros || first == [0], "zeros that are not");
            true
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            false
        }
    }
}

/// Applies a log, closed or not. A refusal leaves the image as it was; done twice is as done once.
pub fn apply(input: &[u8]) {
    let (_storage, file) = file_of(input);
    let Ok((reader, _)) = HrlReader::recover_of(file, "log".into()) else {
        return;
    };
    let images = FakeStorage::new();
    let image = RawImage::create(&images, Path::new("/disk"), DISK_BYTES).unwrap();
    image.write_at(&[0x5a; 4096], 4096, false).unwrap();
    let before = content(&image);
    let options = ApplyOptions {
        partial: true,
        any_disk: true,
    };
    let logs = [reader];
    if let Err(error) = apply_chain(&logs, &image, options) {
        assert!(error.is_refusal(), "{error}");
        assert!(content(&image) == before, "refused, and changed: {error}");
        return;
    }
    let once = content(&image);
    apply_chain(&logs, &image, options).expect("what was applied can be applied again");
    assert!(content(&image) == once, "twice is not as once");
}

fn content(image: &RawImage) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    image.read_at(&mut disk, 0).unwrap();
    disk
}
