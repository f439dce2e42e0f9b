use std::path::Path;

use super::super::format::RawEntry;
use super::super::{HrlId, HrlOptions, HrlTime, HrlWriter};
use super::*;
use crate::storage::fake::FakeStorage;

const LOG: &str = "/1.hrl";

/// A log of `entries` sectors, each filled with its number, finished or not.
fn log(entries: u64, finish: bool) -> Vec<u8> {
    let storage = FakeStorage::new();
    let options = HrlOptions {
        unique_id: HrlId([1; 16]),
        ..HrlOptions::default()
    };
    let mut writer = HrlWriter::create(&storage, Path::new(LOG), options).unwrap();
    for number in 0..entries {
        let byte = u8::try_from(number % 250 + 1).unwrap();
        writer
            .append(number * 512, &[byte; 512], HrlTime(1))
            .unwrap();
    }
    writer.finish(HrlTime(2)).unwrap();
    let mut bytes = storage.content(Path::new(LOG)).unwrap();
    if !finish {
        bytes[44..52].fill(0);
    }
    bytes
}

fn recover(bytes: &[u8]) -> (HrlReader, HrlRecovered) {
    let storage = FakeStorage::new();
    let file = storage.open(Path::new(LOG), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    HrlReader::recover_of(file, "log".into()).unwrap()
}

/// Each entry must hold what was written, from the first on without a gap.
fn check_prefix(reader: &HrlReader, entries: u64) {
    let given: Vec<_> = reader.entries().map(Result::unwrap).collect();
    assert_eq!(given.len() as u64, entries);
    for (number, entry) in (0..).zip(&given) {
        let mut data = [0; 512];
        reader.read_entry_data(entry, 0, &mut data).unwrap();
        let byte = u8::try_from(number % 250 + 1).unwrap();
        assert_eq!((entry.offset, data), (number * 512, [byte; 512]));
    }
}

#[test]
fn a_log_that_was_closed_is_all_there() {
    let (reader, found) = recover(&log(300, true));
    assert_eq!((found.entries, found.tail), (300, HrlTail::Closed));
    assert!(!reader.is_partial());
    check_prefix(&reader, 300);
}

#[test]
fn a_log_without_an_end_is_found_from_the_front() {
    let (reader, found) = recover(&log(300, false));
    assert_eq!((found.entries, found.found), (300, 300));
    assert_eq!(found.tail, HrlTail::Open);
    assert!(reader.is_partial());
    check_prefix(&reader, 300);
}

/// Whatever length a crash leaves: all blocks that are whole, and nothing of what no block describes.
#[test]
fn a_torn_tail_is_left_out_at_every_length() {
    for finish in [false, true] {
        let whole = log(300, finish);
        let block = 127 * 512 + 4096;
        for length in (4096..whole.len()).step_by(300) {
            let (reader, found) = recover(&whole[..length]);
            let blocks = (length - 4096) / block;
            assert_eq!(found.entries, 127 * blocks as u64, "{length}");
            check_prefix(&reader, found.entries);
            let end = 4096 + blocks * block;
            let expected = match length - end {
                0 => HrlTail::Open,
                bytes => HrlTail::Torn {
                    at: end as u64,
                    bytes: bytes as u64,
                },
            };
            assert_eq!(found.tail, expected, "{length}");
        }
    }
}

/// A block can be on the disk and its data not: it then reads as zeros.
#[test]
fn data_that_was_lost_ends_the_log() {
    let mut bytes = log(300, false);
    bytes[4096 + 200 * 512 + 4096..][..512].fill(0);
    let (reader, found) = recover(&bytes);
    assert_eq!((found.entries, found.found), (200, 300));
    let at = 4096 + 200 * 512 + 4096;
    assert_eq!(found.tail, HrlTail::Lost { at });
    check_prefix(&reader, 200);
}

/// Places a block behind `data` that starts at `start`.
fn block(at: u64, before: u64, entries: &[(u64, u32, u32)]) -> Vec<u8> {
    let header = BlockHeader {
        distance_back: if before == 0 { 0 } else { at - before },
        valid_entries: u32::try_from(entries.len()).unwrap(),
    };
    let mut bytes = header.encode().to_vec();
    for (offset, length, data_checksum) in entries {
        let entry = RawEntry {
            offset: *offset,
            length: *length,
            time: HrlTime(1),
            operation: 1,
            data_checksum: *data_checksum,
        };
        bytes.extend_from_slice(&entry.encode());
    }
    bytes.resize(4096, 0);
    bytes
}

#[test]
fn data_without_a_checksum_is_not_trusted_in_a_log_that_was_not_closed() {
    let mut bytes = log(2, false)[..4096 + 1024].to_vec();
    bytes.truncate(4096 + 1024);
    let sum = format::checksum(&[1; 512]);
    bytes.extend(block(5120, 0, &[(0, 512, sum), (512, 512, 0)]));
    let (reader, found) = recover(&bytes);
    assert_eq!((found.entries, found.found), (1, 2));
    assert_eq!(found.tail, HrlTail::Unproven { at: 4096 + 512 });
    check_prefix(&reader, 1);
}

/// A guest writes a metadata block of its own making to the very place where one could be.
#[test]
fn a_forged_block_beside_the_true_one_ends_the_log_before_both() {
    let storage = FakeStorage::new();
    let path = Path::new(LOG);
    let mut writer = HrlWriter::create(&storage, path, HrlOptions::default()).unwrap();
    writer.append(0, &[1; 512], HrlTime(1)).unwrap();
    let forged = block(4608, 0, &[(1 << 20, 512, format::checksum(&[1; 512]))]);
    writer.append(512, &forged, HrlTime(1)).unwrap();
    drop(writer.finish(HrlTime(1)).unwrap());
    let mut bytes = storage.content(path).unwrap();
    // Closed, the end tells which one is true.
    let (_, found) = recover(&bytes);
    assert_eq!((found.entries, found.tail), (2, HrlTail::Closed));
    bytes[44..52].fill(0);
    let (reader, found) = recover(&bytes);
    assert_eq!(
        (found.entries, found.tail),
        (0, HrlTail::Contended { at: 4096 })
    );
    assert_eq!(reader.entries().count(), 0);
}

/// A guest that keeps change logs on its disk is no reason to distrust this one.
#[test]
fn a_log_within_a_log_is_data() {
    let storage = FakeStorage::new();
    let path = Path::new(LOG);
    let mut writer = HrlWriter::create(&storage, path, HrlOptions::default()).unwrap();
    writer.append(0, &log(300, true), HrlTime(1)).unwrap();
    drop(writer.finish(HrlTime(1)).unwrap());
    let mut bytes = storage.content(path).unwrap();
    bytes[44..52].fill(0);
    let (_, found) = recover(&bytes);
    assert_eq!((found.entries, found.tail), (1, HrlTail::Open));
}

#[test]
fn holes_are_not_looked_through() {
    let storage = FakeStorage::new();
    let path = Path::new(LOG);
    let mut writer = HrlWriter::create(&storage, path, HrlOptions::default()).unwrap();
    for number in 0..200 {
        writer
            .append_zeros(number << 24, 16 << 20, HrlTime(1))
            .unwrap();
    }
    drop(writer.finish(HrlTime(1)).unwrap());
    storage.overwrite(path, 44, &[0; 8]).unwrap();
    let file = storage.open(path, OpenMode::Read).unwrap();
    let reader = HrlReader::without_blocks(file, "log".into()).unwrap();
    let before = storage.counters(path).reads;
    let scan = Scan::of(&reader).unwrap();
    assert_eq!(scan.counting.len(), 2);
    assert!(storage.counters(path).reads - before < 10);
}

/// Each sector looks like the first block of all and is none: reading them costs no more than a multiple of the file.
#[test]
fn false_metadata_is_given_up() {
    let mut bytes = log(0, false)[..4096].to_vec();
    bytes[56..60].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    let sector = [&block(0, 0, &[])[..512]].concat();
    for _ in 0..8192 {
        bytes.extend_from_slice(&sector);
    }
    let storage = FakeStorage::new();
    let file = storage.open(Path::new(LOG), OpenMode::CreateNew).unwrap();
    file.write_at(&bytes, 0).unwrap();
    let refused = HrlReader::recover_of(file, "log".into()).err().unwrap();
    assert_eq!(DiskError::from(refused).kind(), ErrorKind::Unsupported);
}

#[test]
fn a_header_of_no_use_is_refused() {
    for (at, byte) in [(0, 0), (10, 9), (104, 1), (56, 3)] {
        let mut bytes = log(3, false);
        bytes[at] = byte;
        let storage = FakeStorage::new();
        let file = storage.open(Path::new(LOG), OpenMode::CreateNew).unwrap();
        file.write_at(&bytes, 0).unwrap();
        assert!(HrlReader::recover_of(file, "log".into()).is_err(), "{at}");
    }
}
