mod damaged;

use std::path::Path;
use std::sync::Arc;

use super::format::{self, BlockHeader, Header, RawEntry};
use super::*;
use crate::ErrorKind;
use crate::storage::fake::{FakeStorage, Fault, FaultOn, What};
use crate::storage::host::HostStorage;
use crate::storage::{BlockFile, OpenMode, Storage};

mod strict;

fn path() -> &'static Path {
    Path::new("/1.hrl")
}

fn options() -> HrlOptions {
    HrlOptions {
        unique_id: HrlId([1; 16]),
        previous_id: HrlId([2; 16]),
        data_write_id: HrlId([3; 16]),
        created: HrlTime(539_842_380),
    }
}

/// Numbers from a seed (xorshift).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length)
            .map(|_| u8::try_from(self.below(256)).unwrap())
            .collect()
    }
}

/// What the log should hold: offset and bytes, in order, split as the reader likes.
type Model = Vec<(u64, Vec<u8>)>;

fn apply(disk: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let from = usize::try_from(offset).unwrap();
    disk.resize(disk.len().max(from + bytes.len()), 0xaa);
    disk[from..from + bytes.len()].copy_from_slice(bytes);
}

fn write_random(storage: &dyn Storage, path: &Path, seed: u64, rounds: u64) -> Model {
    let mut rng = Rng(seed);
    let mut model = Model::new();
    let mut writer = HrlWriter::create(storage, path, options()).unwrap();
    for round in 0..rounds {
        let offset = rng.below(4000) * 512;
        let time = HrlTime(u32::try_from(round).unwrap());
        match rng.below(20) {
            0 => {
                let length = (rng.below(6000) + 1) * 512;
                writer.append_zeros(offset, length, time).unwrap();
                model.push((offset, vec![0; usize::try_from(length).unwrap()]));
            }
            1 => {
                let data = rng.bytes(3 * 512 * 1024);
                writer.append(offset, &data, time).unwrap();
                model.push((offset, data));
            }
            _ => {
                let length = (rng.below(16) + 1) * 512;
                let data = rng.bytes(length);
                writer.append(offset, &data, time).unwrap();
                model.push((offset, data));
            }
        }
    }
    let entries = writer.entries();
    let sealed = writer.finish(HrlTime(539_842_384)).unwrap();
    assert_eq!(sealed.entries, entries);
    assert_eq!(sealed.bytes, sealed.file.length().unwrap());
    sealed.file.sync().unwrap();
    model
}

/// All that a reader can see, or the first error.
fn read_all(file: Arc<dyn BlockFile>) -> Result<Vec<u8>, DiskError> {
    let reader = HrlReader::of(file, "log".into())?;
    let mut disk = Vec::new();
    for entry in reader.entries() {
        let entry = entry?;
        reader.verify_entry(&entry)?;
        // Hostile lengths must not become memory; ours are short.
        if entry.offset < 1 << 30 && entry.length <= 16 << 20 {
            let mut data = vec![0xbb; usize::try_from(entry.length).unwrap()];
            reader.read_entry_data(&entry, 0, &mut data)?;
            assert!(!entry.is_zeros || data.iter().all(|byte| *byte == 0));
            apply(&mut disk, entry.offset, &data);
        }
    }
    Ok(disk)
}

fn check_round_trip(storage: &dyn Storage, path: &Path, seed: u64) {
    let mut expected = Vec::new();
    for (offset, bytes) in write_random(storage, path, seed, 300) {
        apply(&mut expected, offset, &bytes);
    }
    let file = storage.open(path, OpenMode::Read).unwrap();
    assert!(read_all(file).unwrap() == expected, "seed {seed}");
    let reader = HrlReader::open(storage, path).unwrap();
    assert!(reader.info().header_checksum_holds);
    assert_eq!(reader.info().unique_id, HrlId([1; 16]));
    assert_eq!(reader.info().previous_id, HrlId([2; 16]));
    assert_eq!(reader.info().data_write_id, HrlId([3; 16]));
    assert_eq!(reader.info().last_modified, HrlTime(539_842_384));
    assert_eq!(reader.info().creator, "ct");
    assert_eq!(reader.info().total_entries, reader.entries().count() as u64);
}

#[test]
fn what_is_appended_is_read_on_the_fake() {
    for seed in 1..4 {
        check_round_trip(&FakeStorage::new(), path(), seed);
    }
}

#[test]
fn what_is_appended_is_read_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    check_round_trip(&HostStorage, &folder.path().join("1.hrl"), 9);
}

#[test]
fn an_empty_log_is_a_log() {
    let storage = FakeStorage::new();
    let sealed = HrlWriter::create(&storage, path(), options())
        .unwrap()
        .finish(HrlTime(5))
        .unwrap();
    assert_eq!((sealed.bytes, sealed.entries), (8192, 0));
    assert_eq!(
        HrlReader::open(&storage, path()).unwrap().entries().count(),
        0
    );
}

#[test]
fn zeros_take_no_space_and_are_known_unread() {
    let storage = FakeStorage::new();
    let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
    writer.append_zeros(0, 100 << 30, HrlTime(1)).unwrap();
    writer.append_zeros(512, 512, HrlTime(1)).unwrap();
    let sealed = writer.finish(HrlTime(1)).unwrap();
    assert!(sealed.bytes > 100 << 30);
    assert!(storage.counters(path()).bytes_written < 1 << 20);
    let before = storage.counters(path()).reads;
    let reader = HrlReader::open(&storage, path()).unwrap();
    let mut total = 0;
    for entry in reader.entries() {
        let entry = entry.unwrap();
        assert!(entry.is_zeros);
        total += u64::from(entry.length);
    }
    assert_eq!(total, (100 << 30) + 512);
    assert!(storage.counters(path()).reads - before < 200);
}

#[test]
fn scattered_writes_become_long_appends() {
    let storage = FakeStorage::new();
    let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
    let mut rng = Rng(3);
    for _ in 0..2560 {
        writer
            .append(rng.below(1 << 20) * 4096, &[7; 4096], HrlTime(1))
            .unwrap();
    }
    writer.finish(HrlTime(1)).unwrap();
    let mut end = 0;
    let mut lengths = Vec::new();
    for operation in storage.operations() {
        if let What::Write { offset, length, .. } = operation.what {
            lengths.push((offset, length));
        }
    }
    assert_eq!(lengths.pop(), Some((0, 4096)), "the header comes last");
    let (_, last) = lengths.pop().unwrap();
    assert!(last <= 256 << 10);
    for (offset, length) in lengths {
        assert_eq!((offset, length), (end, 256 << 10));
        end += length;
    }
}

#[test]
fn a_log_that_was_not_finished_is_told() {
    let storage = FakeStorage::new();
    let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
    writer.append(0, &vec![1; 1 << 20], HrlTime(1)).unwrap();
    drop(writer);
    let refused = HrlReader::open(&storage, path()).err().unwrap();
    assert!(matches!(refused, HrlError::NotClosed { .. }), "{refused}");
    assert_eq!(
        refused.to_string(),
        "change log /1.hrl was not closed cleanly"
    );
    assert_eq!(DiskError::from(refused).kind(), ErrorKind::Corrupt);
    assert_eq!(HrlInfo::read(&storage, path()).unwrap().end, None);
}

#[test]
fn a_failed_write_is_final_and_never_sealed() {
    for nth in 1..6 {
        let storage = FakeStorage::new();
        let fault = Fault {
            on: FaultOn::Write,
            path: None,
            nth,
            kind: std::io::ErrorKind::StorageFull,
        };
        storage.fail(fault);
        let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
        let mut failed = false;
        for round in 0..100 {
            match writer.append(round * 8192, &[1; 8192], HrlTime(1)) {
                Ok(()) => assert!(!failed, "it must not go on"),
                Err(e) if failed => assert_eq!(e.kind(), ErrorKind::Poisoned),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::NoSpace);
                    failed = true;
                }
            }
        }
        assert!(writer.finish(HrlTime(1)).is_err());
        // The fifth is the header's: it may be there in part, and then all data is.
        assert!(nth == 5 || HrlReader::open(&storage, path()).is_err());
        assert_eq!(failed, nth < 4);
    }
}

/// Whatever a power loss leaves, a log reads as it was written or is refused; after the sync it is there.
#[test]
fn a_power_loss_never_shows_other_content() {
    let storage = FakeStorage::new();
    storage.sync_dir(Path::new("/")).unwrap();
    let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    let mut rng = Rng(11);
    let mut expected = Vec::new();
    for round in 0..300 {
        let data = rng.bytes(4096);
        writer.append(round * 4096, &data, HrlTime(1)).unwrap();
        apply(&mut expected, round * 4096, &data);
    }
    let check = |seed, must: bool| {
        let after = storage.crash(seed);
        match read_all(after.open(path(), OpenMode::Read).unwrap()) {
            Ok(disk) => assert!(disk == expected, "seed {seed}"),
            Err(e) => assert!(!must, "seed {seed}: {e}"),
        }
    };
    (0..10).for_each(|seed| check(seed, false));
    let sealed = writer.finish(HrlTime(2)).unwrap();
    (0..100).for_each(|seed| check(seed, false));
    sealed.file.sync().unwrap();
    (0..10).for_each(|seed| check(seed, true));
}

fn file_of(bytes: &[u8]) -> Arc<dyn BlockFile> {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

/// A header and one block with a given distance back and entry, checksums right.
fn crafted(distance_back: u64, valid_entries: u32, entry: RawEntry, length: usize) -> Vec<u8> {
    let header = Header {
        cookie: *format::COOKIE,
        version: format::VERSION,
        created: HrlTime(1),
        creator: format::CREATOR,
        creator_version: 1,
        original_size: 0,
        current_size: length as u64,
        eol: length as u64,
        error_code: 0,
        metadata_bytes: 4096,
        unique_id: HrlId::default(),
        previous_id: HrlId::default(),
        last_modified: HrlTime(1),
        total_entries: u64::from(valid_entries),
        file_type: 0,
        data_write_id: HrlId::default(),
    };
    let mut bytes = vec![0; length];
    bytes[..4096].copy_from_slice(&header.encode());
    let block = length - 4096;
    let start = BlockHeader {
        distance_back,
        valid_entries,
    }
    .encode();
    bytes[block..block + 32].copy_from_slice(&start);
    bytes[block + 32..block + 64].copy_from_slice(&entry.encode());
    bytes
}

fn entry(offset: u64, length: u32) -> RawEntry {
    RawEntry {
        offset,
        length,
        time: HrlTime(1),
        operation: 1,
        data_checksum: 0,
    }
}

/// The numbers of the specification's example.
#[test]
fn the_published_example_recomputes() {
    let first = BlockHeader {
        distance_back: 0,
        valid_entries: 0,
    };
    assert_eq!(first.encode()[12..16], u32::MAX.to_le_bytes());
    let second = BlockHeader {
        distance_back: 324_096,
        valid_entries: 58,
    };
    assert_eq!(second.encode()[12..16], 4_294_966_991_u32.to_le_bytes());
    for (offset, length, time, checksum) in [
        (3_626_348_544, 4096, 539_842_381, 4_294_966_608_u32),
        (139_466_752, 2048, 539_842_381, 4_294_966_933),
        (138_656_768, 512, 539_842_381, 4_294_966_788),
        (135_266_304, 1024, 539_842_382, 4_294_967_024),
        (3_626_340_352, 4096, 539_842_382, 4_294_966_639),
    ] {
        // Windows leaves the checksum of the data at 0: only so do the published ones come out.
        let entry = RawEntry {
            time: HrlTime(time),
            ..entry(offset, length)
        };
        assert_eq!(entry.encode()[8..12], checksum.to_le_bytes(), "{offset}");
    }
    assert_eq!(HrlTime(539_842_380).to_string(), "2017-02-08T04:13:00Z");
}

/// As Windows writes: an empty block first, no data checksums, a header checksum of its own.
#[test]
fn a_log_made_by_windows_is_read() {
    let mut bytes = crafted(4096 + 4096, 1, entry(8192, 4096), 16_384);
    let empty = BlockHeader {
        distance_back: 0,
        valid_entries: 0,
    }
    .encode();
    bytes[4096..4128].copy_from_slice(&empty);
    bytes[8192..12_288].fill(9);
    bytes[40..44].copy_from_slice(&4_294_959_739_u32.to_le_bytes());
    let reader = HrlReader::of(file_of(&bytes), "log".into()).unwrap();
    assert!(!reader.info().header_checksum_holds);
    assert!(
        reader
            .info()
            .to_string()
            .contains("header checksum  does not hold")
    );
    let entries: Vec<HrlEntry> = reader.entries().map(Result::unwrap).collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (entries[0].data_offset, entries[0].data_checksum),
        (8192, None)
    );
    assert!(!entries[0].is_zeros);
    let mut data = [0; 4096];
    reader.read_entry_data(&entries[0], 0, &mut data).unwrap();
    assert_eq!(data, [9; 4096]);
}

#[test]
fn times_are_told_as_dates() {
    for (seconds, date) in [
        (0, "2000-01-01T00:00:00Z"),
        (59 * 86_400, "2000-02-29T00:00:00Z"),
        (366 * 86_400 - 1, "2000-12-31T23:59:59Z"),
        (u32::MAX, "2136-02-07T06:28:15Z"),
    ] {
        assert_eq!(HrlTime(seconds).to_string(), date);
    }
    assert_eq!(HrlTime::from_unix_seconds(946_684_800), HrlTime(0));
    assert_eq!(HrlTime::from_unix_seconds(0), HrlTime(0));
    assert_eq!(HrlTime::from_unix_seconds(i64::MAX), HrlTime(u32::MAX));
    assert_eq!(HrlTime(60).unix_seconds(), 946_684_860);
}

#[test]
fn the_sum_is_the_sum_of_all_bytes() {
    let mut rng = Rng(1);
    for length in [0, 1, 255, 256, 257, 10_000] {
        let bytes = rng.bytes(length);
        let plain: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        assert_eq!(format::sum(&bytes), plain);
    }
    assert_eq!(format::sum(&[255; 1024]), 255 * 1024);
}
