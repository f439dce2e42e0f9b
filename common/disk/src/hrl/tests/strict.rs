//! A reader that knows the published format and nothing of ours: fixed offsets, no trust, no mercy.
//!
//! It walks as the publication says (back from the end, then forward), takes every entry for a write of the bytes that
//! lie at its place in the file, and fails at whatever the format does not allow.

use std::path::Path;

use super::{FakeStorage, Rng, apply, options, path, write_random};
use crate::hrl::{ContentHash, HrlId, HrlOptions, HrlReader, HrlTime, HrlWriter, empty_log};
use crate::storage::Storage;
use crate::storage::host::HostStorage;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64_at(bytes, at)).unwrap()
}

/// Byte by byte, as published.
fn checksum(bytes: &[u8], ignored: Option<usize>) -> u32 {
    let mut total: u32 = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if ignored.is_none_or(|field| !(field..field + 4).contains(&at)) {
            total = total.wrapping_add(u32::from(*byte));
        }
    }
    !total
}

/// The writes of a log in their order.
fn read(file: &[u8]) -> Vec<(u64, &[u8])> {
    let header = &file[..4096];
    assert_eq!(&header[..8], b"msctlog\0");
    assert_eq!(u32_at(header, 8), 0x0002_0000, "version 2.0");
    assert_eq!(&header[16..20], b"ct\0\0");
    assert_eq!(u64_at(header, 24), 0, "nothing was in it when it was made");
    assert_eq!(u64_at(header, 32), file.len() as u64, "current size");
    assert_eq!(u32_at(header, 40), checksum(header, Some(40)));
    assert_eq!(u64_at(header, 44), file.len() as u64, "end of the log");
    assert_eq!(u32_at(header, 52), 0, "no error");
    let size = usize::try_from(u32_at(header, 56)).unwrap();
    assert_eq!(size, 4096);
    assert!(
        u32_at(header, 12) <= u32_at(header, 92),
        "made before it was closed"
    );
    assert_eq!(u32_at(header, 104), 0, "file type");
    assert_eq!(&header[108..110], [0; 2], "flags");
    assert!(header[126..].iter().all(|byte| *byte == 0));

    let mut blocks = vec![usize_at(header, 44) - size];
    loop {
        let last = *blocks.last().unwrap();
        match usize_at(file, last) {
            0 => break,
            back => blocks.push(last - back),
        }
    }
    let (mut writes, mut data, mut entries) = (Vec::new(), 4096, 0);
    for (index, at) in blocks.iter().rev().copied().enumerate() {
        let block = &file[at..at + size];
        assert_eq!(u32_at(block, 12), checksum(&block[..32], Some(12)));
        assert!(block[16..32].iter().all(|byte| *byte == 0));
        let valid = usize::try_from(u32_at(block, 8)).unwrap();
        assert!(valid <= 127);
        assert!(
            index + 1 == blocks.len() || valid == 127,
            "only the last is not full"
        );
        for slot in block[32..32 * (valid + 1)].chunks(32) {
            assert_eq!(u32_at(slot, 8), checksum(slot, Some(8)));
            assert_eq!(slot[20], 1, "a write");
            assert_eq!(slot[25..], [0; 7], "location, reserved");
            let length = usize::try_from(u32_at(slot, 12)).unwrap();
            assert!(length > 0);
            let bytes = &file[data..data + length];
            assert_eq!(
                u32_at(slot, 21),
                checksum(bytes, None),
                "checksum of the data"
            );
            writes.push((u64_at(slot, 0), bytes));
            data += length;
        }
        assert!(block[32 * (valid + 1)..].iter().all(|byte| *byte == 0));
        assert_eq!(data, at, "data goes up to the block that describes it");
        data = at + size;
        entries += valid;
    }
    assert_eq!(data, file.len(), "nothing behind the last block");
    assert_eq!(u64_at(header, 96), entries as u64);
    writes
}

#[test]
fn every_log_of_ours_is_one_to_a_strict_reader() {
    for seed in [1, 2] {
        let storage = FakeStorage::new();
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for (offset, bytes) in write_random(&storage, path(), seed, 300) {
            apply(&mut expected, offset, &bytes);
        }
        let file = storage.content(path()).unwrap();
        for (offset, bytes) in read(&file) {
            apply(&mut found, offset, bytes);
        }
        assert!(found == expected, "seed {seed}");
    }
}

/// Zeros are writes like any other: who copies the file with or without its holes reads zeros at their place.
#[test]
fn zeros_are_ordinary_writes_to_a_strict_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("1.hrl");
    let mut writer = HrlWriter::create(&HostStorage, &path, options()).unwrap();
    writer.append_zeros(1 << 20, 20 << 20, HrlTime(1)).unwrap();
    writer.append_zeros(0, 512, HrlTime(1)).unwrap();
    writer.append(4096, &[7; 512], HrlTime(1)).unwrap();
    writer.finish(HrlTime(539_842_380)).unwrap();
    let file = std::fs::read(&path).unwrap();
    let writes = read(&file);
    let lengths: Vec<_> = writes
        .iter()
        .map(|(at, bytes)| (*at, bytes.len()))
        .collect();
    let zeros = [(1 << 20, 16 << 20), (17 << 20, 4 << 20), (0, 512)];
    assert_eq!(lengths, [&zeros[..], &[(4096, 512)]].concat());
    assert!(
        writes[..3]
            .iter()
            .all(|(_, bytes)| bytes.iter().all(|byte| *byte == 0))
    );
    let allocated =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
    assert!(allocated < 1 << 20, "{allocated} bytes");
}

/// As many entries as a block has, one less and one more: full blocks only before the last, never an empty one.
#[test]
fn blocks_are_full_but_for_the_last() {
    for (entries, blocks) in [
        (0, 1),
        (1, 1),
        (126, 1),
        (127, 1),
        (128, 2),
        (254, 2),
        (255, 3),
    ] {
        let storage = FakeStorage::new();
        let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
        for n in 0..entries {
            writer.append(n * 512, &[1; 512], HrlTime(1)).unwrap();
        }
        writer.finish(HrlTime(539_842_380)).unwrap();
        let file = storage.content(path()).unwrap();
        assert_eq!(read(&file).len() as u64, entries);
        assert_eq!(file.len() as u64, 4096 + entries * 512 + blocks * 4096);
    }
}

#[test]
fn an_empty_log_is_the_same_made_in_memory() {
    let storage = FakeStorage::new();
    let writer = HrlWriter::create(&storage, path(), options()).unwrap();
    writer.finish(HrlTime(539_842_384)).unwrap();
    let made = empty_log(options(), HrlTime(539_842_384));
    assert!(made == storage.content(path()).unwrap());
    assert!(read(&made).is_empty());
}

#[test]
fn a_clock_set_back_closes_no_log_before_it_was_made() {
    let storage = FakeStorage::new();
    let writer = HrlWriter::create(&storage, path(), options()).unwrap();
    writer.finish(HrlTime(3)).unwrap();
    let file = storage.content(path()).unwrap();
    assert_eq!(u32_at(&file, 92), 539_842_380);
    assert!(read(&file).is_empty());
    assert!(file == empty_log(options(), HrlTime(3)));
}

/// The ids are in the file as they are given, the chain's too.
#[test]
fn ids_are_at_their_places() {
    let made = empty_log(
        HrlOptions {
            data_write_id: HrlId([3; 16]),
            ..options()
        },
        HrlTime(539_842_384),
    );
    assert_eq!(made[60..76], [1; 16]);
    assert_eq!(made[76..92], [2; 16]);
    assert_eq!(made[110..126], [3; 16]);
    assert_eq!(u32_at(&made, 12), 539_842_380);
    assert_eq!(u32_at(&made, 92), 539_842_384);
}

fn hash_of(storage: &dyn Storage, path: &Path) -> [u8; 32] {
    HrlReader::open(storage, path)
        .unwrap()
        .content_hash()
        .unwrap()
}

/// The hash is of what a log does to a disk: the same however zeros were cut up, another for any other byte or place.
#[test]
fn the_content_hash_is_of_what_a_log_says() {
    let mut rng = Rng(7);
    let data = rng.bytes(8192);
    let log = |name: &str, zeros: &[(u64, u64)], offset: u64, data: &[u8]| {
        let storage = FakeStorage::new();
        let path = Path::new("/").join(name);
        let mut writer = HrlWriter::create(&storage, &path, options()).unwrap();
        for (offset, length) in zeros {
            writer.append_zeros(*offset, *length, HrlTime(1)).unwrap();
        }
        writer.append(offset, data, HrlTime(1)).unwrap();
        writer.finish(HrlTime(2)).unwrap();
        hash_of(&storage, &path)
    };
    let one = log("a", &[(0, 40 << 20)], 1 << 30, &data);
    assert_eq!(
        one,
        log("b", &[(0, 4096), (4096, (40 << 20) - 4096)], 1 << 30, &data)
    );
    let mut swapped = data.clone();
    swapped.swap(1, 2);
    assert_ne!(swapped, data, "bytes that a sum cannot tell apart");
    for other in [
        log("c", &[(0, 40 << 20)], 1 << 30, &swapped),
        log("d", &[(0, 40 << 20)], (1 << 30) + 512, &data),
        log("e", &[(0, (40 << 20) - 512)], 1 << 30, &data),
        log("f", &[], 1 << 30, &data),
    ] {
        assert_ne!(one, other);
    }
    let mut by_hand = ContentHash::default();
    by_hand.zeros(0, 40 << 20);
    by_hand.data(1 << 30, 8192);
    by_hand.bytes(&data[..1000]);
    by_hand.bytes(&data[1000..]);
    assert_eq!(one, by_hand.digest());
}
