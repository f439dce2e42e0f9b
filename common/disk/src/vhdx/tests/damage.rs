//! Damaged files, one fault each, with the verdict they deserve.

use super::super::create;
use super::super::layout::{
    HEADER_OFFSETS, Header, MIB, REGION_TABLE_OFFSETS, Region, Span, checksum, decode_regions,
    encode_regions, guid, put, u16_at,
};
use super::{create, open, options, path};
use crate::error::{DiskError, ErrorKind};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::{Random, rounds};

const BAT: u64 = create::BAT_OFFSET;
const METADATA: u64 = create::METADATA.offset;
/// Where the first block of a small disk is.
const FIRST: u64 = BAT + MIB;

/// A clean file with blocks 0 and 1 in place.
fn sample() -> (FakeStorage, Vec<u8>) {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(16 * MIB, 1));
    image.write_at(&vec![1; 2 << 20], 0, false).unwrap();
    image.close().unwrap();
    let bytes = storage.content(path()).unwrap();
    (storage, bytes)
}

/// What opening says, writable and not, about the sample with these changes.
fn verdict(change: impl Fn(&mut Vec<u8>)) -> Option<(ErrorKind, String)> {
    let (storage, mut bytes) = sample();
    change(&mut bytes);
    storage.overwrite(path(), 0, &bytes).unwrap();
    let before = storage.content(path()).unwrap();
    let read_only = open(&storage, true)
        .err()
        .map(|e: DiskError| (e.kind(), e.to_string()));
    let writable = open(&storage, false)
        .err()
        .map(|e| (e.kind(), e.to_string()));
    assert_eq!(read_only, writable);
    if writable.is_some() {
        assert!(
            storage.content(path()).unwrap() == before,
            "a refused file is not changed"
        );
    }
    writable
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn set_bat(bytes: &mut [u8], index: u64, entry: u64) {
    put(bytes, at(BAT + index * 8), &entry.to_le_bytes());
}

fn edit_header(bytes: &mut [u8], slot: usize, change: impl Fn(&mut Header)) {
    let from = at(HEADER_OFFSETS[slot]);
    let mut header = Header::decode(&bytes[from..from + 4096]).unwrap();
    change(&mut header);
    put(bytes, from, &header.encode());
}

fn edit_regions(bytes: &mut [u8], change: impl Fn(&mut Vec<Region>)) {
    for offset in REGION_TABLE_OFFSETS {
        let mut regions = decode_regions(&bytes[at(offset)..at(offset) + 65536]).unwrap();
        change(&mut regions);
        put(bytes, at(offset), &encode_regions(&regions));
    }
}

fn add_metadata(bytes: &mut [u8], first: u128, flags: u32) {
    let table = at(METADATA);
    let count = u16_at(bytes, table + 10);
    put(bytes, table + 10, &(count + 1).to_le_bytes());
    let entry = table + 32 + usize::from(count) * 32;
    put(bytes, entry, &guid(first));
    put(bytes, entry + 16, &(512_u32 << 10).to_le_bytes());
    put(bytes, entry + 20, &16_u32.to_le_bytes());
    put(bytes, entry + 24, &flags.to_le_bytes());
}

#[track_caller]
fn refused(kind: ErrorKind, word: &str, change: impl Fn(&mut Vec<u8>)) {
    let (found, text) = verdict(change).expect("refused");
    assert_eq!(found, kind, "{text}");
    assert!(text.contains(word), "{text}");
}

#[track_caller]
fn accepted(change: impl Fn(&mut Vec<u8>)) {
    assert_eq!(verdict(change), None);
}

#[test]
fn one_good_header_and_one_good_region_table_are_enough() {
    for slot in 0..2 {
        accepted(|bytes| bytes[at(HEADER_OFFSETS[slot]) + 100] ^= 1);
        accepted(|bytes| bytes[at(REGION_TABLE_OFFSETS[slot]) + 50_000] ^= 1);
        accepted(|bytes| bytes[at(REGION_TABLE_OFFSETS[slot])] ^= 1);
    }
    accepted(|bytes| bytes.copy_within(65536..65536 + 4096, 131_072));
    refused(ErrorKind::Corrupt, "header", |bytes| {
        for offset in HEADER_OFFSETS {
            bytes[at(offset) + 100] ^= 1;
        }
    });
    refused(ErrorKind::Corrupt, "region table", |bytes| {
        for offset in REGION_TABLE_OFFSETS {
            bytes[at(offset) + 50_000] ^= 1;
        }
    });
    refused(ErrorKind::Corrupt, "sequence number", |bytes| {
        for slot in 0..2 {
            edit_header(bytes, slot, |header| {
                header.sequence = 9;
                header.data_write = [u8::try_from(slot).unwrap(); 16];
            });
        }
    });
    refused(ErrorKind::Corrupt, "identifier", |bytes| bytes[0] = 0);
}

#[test]
fn a_named_log_without_a_whole_run_is_refused() {
    refused(ErrorKind::Corrupt, "log", |bytes| {
        for slot in 0..2 {
            edit_header(bytes, slot, |header| header.log_guid = [3; 16]);
        }
    });
    refused(ErrorKind::Unsupported, "version", |bytes| {
        for slot in 0..2 {
            edit_header(bytes, slot, |header| {
                header.log_guid = [3; 16];
                header.log_version = 1;
            });
        }
    });
    // Its version means nothing while it is empty.
    accepted(|bytes| {
        for slot in 0..2 {
            edit_header(bytes, slot, |header| header.log_version = 1);
        }
    });
    refused(ErrorKind::Corrupt, "log", |bytes| {
        for slot in 0..2 {
            edit_header(bytes, slot, |header| header.log.offset = 1 << 60);
        }
    });
}

#[test]
fn unknown_required_parts_are_refused_and_optional_ones_kept() {
    let unknown = |required| Region {
        guid: [7; 16],
        span: Span {
            offset: FIRST,
            length: MIB,
        },
        required,
    };
    refused(ErrorKind::Unsupported, "region", |bytes| {
        edit_regions(bytes, |regions| regions.push(unknown(true)));
    });
    // Optional, but where a block is.
    refused(ErrorKind::Corrupt, "overlap", |bytes| {
        edit_regions(bytes, |regions| regions.push(unknown(false)));
    });
    accepted(|bytes| {
        edit_regions(bytes, |regions| regions.push(unknown(false)));
        set_bat(bytes, 0, 2);
    });
    accepted(|bytes| edit_regions(bytes, |regions| regions[0].required = false));
    refused(ErrorKind::Corrupt, "two", |bytes| {
        edit_regions(bytes, |regions| regions.push(regions[0]));
    });
    refused(ErrorKind::Unsupported, "metadata", |bytes| {
        add_metadata(bytes, 77, 4)
    });
    accepted(|bytes| add_metadata(bytes, 77, 0));
    accepted(|bytes| add_metadata(bytes, 77, 1));
    refused(ErrorKind::Corrupt, "never completed", |bytes| {
        add_metadata(bytes, 0x71CC_85F0 << 96, 0);
    });
    // A parent without a locator.
    refused(ErrorKind::Corrupt, "does not name it", |bytes| {
        bytes[at(METADATA) + 65536 + 4] |= 2
    });
}

#[test]
fn bad_bat_entries_are_refused() {
    let present = |offset: u64| offset | 6;
    let cases = [
        ("shared", 5, present(FIRST)),
        ("overlap", 5, present(METADATA)),
        ("overlap", 5, present(MIB)),
        ("past the end", 5, present(1000 * MIB)),
        ("past the end", 5, present(((1 << 44) - 1) * MIB)),
        ("without an offset", 5, 6),
        ("reserved", 0, present(FIRST) | 8),
        ("state 4", 0, present(FIRST) & !7 | 4),
        ("state 5", 0, present(FIRST) & !7 | 5),
        ("partially", 0, present(FIRST) | 7),
        ("shared", 5, present(FIRST) & !7 | 3),
    ];
    for (word, index, entry) in cases {
        refused(ErrorKind::Corrupt, word, |bytes| {
            set_bat(bytes, index, entry)
        });
    }
    // Undefined, unmapped and not present blocks are legal, and read as zeros.
    for state in 0..4 {
        accepted(|bytes| set_bat(bytes, 1, state));
    }
    accepted(|bytes| set_bat(bytes, 1, present(FIRST + MIB) & !7 | 3));
}

#[test]
fn a_bitmap_entry_in_a_disk_without_a_parent_is_refused() {
    let storage = FakeStorage::new();
    create(&storage, &options(5000 * MIB, 1)).close().unwrap();
    storage
        .overwrite(path(), BAT + 4096 * 8, &((4 * MIB) | 6).to_le_bytes())
        .unwrap();
    let refusal = open(&storage, true).err().unwrap();
    assert!(refusal.to_string().contains("sector bitmap"), "{refusal}");
}

#[test]
fn impossible_metadata_is_refused() {
    let item = at(METADATA) + 65536;
    for (from, value) in [
        (0, 3_u32 << 20),
        (0, 0),
        (0, 512 << 20),
        (8, 511),
        (20 + 12, 1000),
    ] {
        refused(ErrorKind::Corrupt, "metadata", |bytes| {
            put(bytes, item + from, &value.to_le_bytes());
        });
    }
    refused(ErrorKind::Corrupt, "BAT", |bytes| {
        put(bytes, item + 8, &(60_u64 << 40).to_le_bytes());
    });
    refused(ErrorKind::Corrupt, "metadata", |bytes| {
        put(bytes, at(METADATA) + 32 + 16, &u32::MAX.to_le_bytes());
    });
    refused(ErrorKind::Corrupt, "metadata", |bytes| {
        put(bytes, at(METADATA) + 10, &3000_u16.to_le_bytes());
    });
    refused(ErrorKind::Corrupt, "twice", |bytes| {
        bytes.copy_within(item - 65536 + 32..item - 65536 + 64, item - 65536 + 64);
    });
}

#[test]
fn random_damage_never_panics() {
    let (storage, bytes) = sample();
    let dirty = FakeStorage::new();
    let image = create(&dirty, &options(16 * MIB, 1));
    for block in 0..8 {
        image.write_at(&[1; 512], block * MIB, false).unwrap();
        image.flush().unwrap();
    }
    let dirty = dirty.crash(0);
    drop(image);
    let dirty_bytes = dirty.content(path()).unwrap();
    let mut random = Random(4);
    for turn in 0..rounds(100, 1000) {
        let (storage, bytes) = if turn % 2 == 0 {
            (&storage, &bytes)
        } else {
            (&dirty, &dirty_bytes)
        };
        let mut bytes = bytes[..at(FIRST)].to_vec();
        let places = [
            65536,
            131_072,
            196_608,
            262_144,
            1 << 20,
            at(METADATA),
            at(METADATA) + 65536,
            at(BAT),
        ];
        let place = places[at(random.below(8))];
        for _ in 0..1 + random.below(4) {
            let within = place + at(random.below(96));
            bytes[within] = u8::try_from(random.below(256)).unwrap();
        }
        // With a checksum that fits, so that the damage gets through to the parsers.
        for (from, length) in [
            (65536, 4096),
            (131_072, 4096),
            (196_608, 65536),
            (262_144, 65536),
        ] {
            let crc = checksum(&bytes[from..from + length]);
            put(&mut bytes, from + 4, &crc.to_le_bytes());
        }
        storage.overwrite(path(), 0, &bytes).unwrap();
        if let Ok(image) = open(storage, true) {
            let size = image.geometry().size_bytes.min(16 * MIB);
            let _ = image.read_at(&mut vec![0; at(size)], 0);
        }
    }
}
