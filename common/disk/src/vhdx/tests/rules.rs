//! Rules of the format: damaged children with the verdict they deserve, what is kept, what changes first.

use super::super::create::{BAT_OFFSET, METADATA};
use super::super::layout::{
    HEADER_OFFSETS, Header, MIB, PAGE_BYTES, REGION_TABLE_OFFSETS, Region, Span, checksum,
    decode_regions, encode_regions, guid, put, u16_at,
};
use super::super::{ChildOptions, CreateOptions, VhdxImage};
use super::over::{child, level, open_chain, open_vhdx};
use super::{create, open, options, path};
use crate::error::ErrorKind;
use crate::image::Image;
use crate::parent::{CHAIN_MAX, ParentLink};
use crate::storage::fake::{FakeStorage, What};
use crate::tests::{Random, rounds, stamped, stamps};

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Blocks of the chunk of a disk with blocks of 1 MiB and sectors of 512 bytes.
const RATIO: u64 = 4096;

/// A base full of 1000 under a child: block 0 partial, block 1 zero, block 2 whole, the others the base's.
fn family() -> FakeStorage {
    let storage = FakeStorage::new();
    let wanted = options(8 * MIB, 1);
    let image =
        VhdxImage::create(std::sync::Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    image.write_at(&stamped(1000, 8 * 2048), 0, false).unwrap();
    image.close().unwrap();
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    image.write_at(&stamped(1, 8), 4096, false).unwrap();
    image.discard(MIB, MIB).unwrap();
    image.write_at(&stamped(2, 2048), 2 * MIB, false).unwrap();
    image.close().unwrap();
    storage
}

fn entry(storage: &FakeStorage, index: u64) -> u64 {
    let content = storage.content(&level(1)).unwrap();
    let from = at(BAT_OFFSET + index * 8);
    u64::from_le_bytes(content[from..from + 8].try_into().unwrap())
}

/// Changes an entry of the child's BAT.
fn set(storage: &FakeStorage, index: u64, entry: u64) {
    let place = BAT_OFFSET + index * 8;
    storage
        .overwrite(&level(1), place, &entry.to_le_bytes())
        .unwrap();
}

#[track_caller]
fn refused(storage: &FakeStorage, kind: ErrorKind, word: &str) {
    let before = storage.content(&level(1)).unwrap();
    for read_only in [true, false] {
        let refusal = open_chain(storage, &level(1), read_only)
            .err()
            .expect("it is refused");
        assert_eq!(refusal.kind(), kind, "{refusal}");
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
    assert!(
        storage.content(&level(1)).unwrap() == before,
        "a refused file is not changed"
    );
}

#[test]
fn bad_bat_entries_of_a_child_are_refused() {
    let family = family();
    let (partial, bitmap) = (entry(&family, 0), entry(&family, RATIO));
    assert_eq!((partial & 7, bitmap & 7), (7, 6));
    let offset = |entry: u64| entry >> 20 << 20;
    for (index, value, word) in [
        (RATIO, 0, "without a bitmap"),
        (RATIO, offset(bitmap) | 7, "no entry of a sector bitmap"),
        (RATIO, offset(bitmap) | 2, "no entry of a sector bitmap"),
        (RATIO, 6, "no entry of a sector bitmap"),
        (RATIO, bitmap | 8, "no entry of a sector bitmap"),
        (RATIO, offset(partial) | 6, "shared"),
        (RATIO, (900 * MIB) | 6, "past the end of the file"),
        (RATIO, METADATA.offset | 6, "overlap"),
        (3, offset(bitmap) | 6, "shared"),
        (3, 7, "without an offset"),
        (3, 4, "state 4"),
        (3, 5, "state 5"),
        (8, (3 * MIB) | 6, "past the end of the disk"),
    ] {
        let former = entry(&family, index);
        set(&family, index, value);
        refused(&family, ErrorKind::Corrupt, word);
        set(&family, index, former);
    }
    drop(open_chain(&family, &level(1), true).unwrap());
}

#[test]
fn every_state_of_a_childs_block_is_read_as_the_format_says() {
    let family = family();
    // Not present and undefined and zero and unmapped, the last with space.
    let spare = entry(&family, 2) >> 20 << 20;
    for (index, value, wanted) in [
        (3, 0, 1000),
        (3, 1, 0),
        (3, 2, 0),
        (3, 3, 0),
        (2, spare | 3, 0),
        (2, spare, 1000),
        (2, spare | 6, 2),
    ] {
        let former = entry(&family, index);
        set(&family, index, value);
        let image = open_chain(&family, &level(1), true).unwrap();
        assert_eq!(
            stamps(&*image, index * 2048, 2048),
            [wanted; 2048],
            "{index}: {value:#x}"
        );
        drop(image);
        // Written in part, the rest is as it was.
        let copy = family.crash(1);
        let image = open_vhdx(&copy, &level(1), false).unwrap();
        image
            .write_at(&stamped(9, 1), index * MIB + 512, false)
            .unwrap();
        assert_eq!(stamps(&image, index * 2048, 3), [wanted, 9, wanted]);
        image.close().unwrap();
        let image = open_chain(&copy, &level(1), true).unwrap();
        assert_eq!(stamps(&*image, index * 2048, 3), [wanted, 9, wanted]);
        set(&family, index, former);
    }
}

#[test]
fn old_bits_of_a_block_that_was_not_present_mean_nothing() {
    let family = family();
    let bitmap = entry(&family, RATIO) >> 20 << 20;
    // Of block 3, all; each block has 256 bytes.
    family
        .overwrite(&level(1), bitmap + 3 * 256, &[0xFF; 256])
        .unwrap();
    let image = open_vhdx(&family, &level(1), false).unwrap();
    assert_eq!(stamps(&image, 3 * 2048, 2048), [1000; 2048]);
    image.write_at(&stamped(9, 1), 3 * MIB + 512, true).unwrap();
    let after = open_chain(&family.crash(0), &level(1), true).unwrap();
    assert_eq!(stamps(&*after, 3 * 2048, 4), [1000, 9, 1000, 1000]);
    image.close().unwrap();
    let image = open_chain(&family, &level(1), true).unwrap();
    assert_eq!(stamps(&*image, 3 * 2048, 4), [1000, 9, 1000, 1000]);
}

#[test]
fn a_parent_with_other_sectors_or_a_larger_disk_is_refused() {
    let family = family();
    let item = |within: u64| METADATA.offset + 65536 + within;
    family
        .overwrite(&level(0), item(32), &4096_u32.to_le_bytes())
        .unwrap();
    refused(&family, ErrorKind::Parent, "sectors");
    family
        .overwrite(&level(0), item(32), &512_u32.to_le_bytes())
        .unwrap();
    family
        .overwrite(&level(0), item(8), &(9 * MIB).to_le_bytes())
        .unwrap();
    refused(&family, ErrorKind::Parent, "the parent more");
    // A smaller one is zeros after its end.
    family
        .overwrite(&level(0), item(8), &(8 * MIB - 4096).to_le_bytes())
        .unwrap();
    let image = open_chain(&family, &level(1), true).unwrap();
    assert_eq!(
        stamps(&*image, 8 * 2048 - 9, 9),
        [1000, 0, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn a_child_without_a_good_locator_is_refused() {
    let family = family();
    let item = METADATA.offset + 65536;
    let table = METADATA.offset + 32 + 5 * 32;
    family.overwrite(&level(1), item + 40, &[0]).unwrap();
    refused(&family, ErrorKind::Corrupt, "type");
    family
        .overwrite(&level(1), table + 20, &0_u32.to_le_bytes())
        .unwrap();
    refused(&family, ErrorKind::Corrupt, "too short");
    family.overwrite(&level(1), table, &[0x55; 16]).unwrap();
    refused(&family, ErrorKind::Unsupported, "required metadata item");
}

#[test]
fn unknown_optional_parts_keep_their_bytes() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(16 * MIB, 1));
    image.write_at(&vec![1; 2 << 20], 0, false).unwrap();
    image.discard(0, MIB).unwrap();
    image.close().unwrap();
    let mut bytes = storage.content(path()).unwrap();
    // A region where block 0 was, and a metadata item.
    let region = BAT_OFFSET + MIB;
    bytes[at(region)..at(region + MIB)].fill(0xAB);
    for offset in REGION_TABLE_OFFSETS {
        let mut regions = decode_regions(&bytes[at(offset)..at(offset) + 65536]).unwrap();
        regions.push(Region {
            guid: [7; 16],
            span: Span {
                offset: region,
                length: MIB,
            },
            required: false,
        });
        put(&mut bytes, at(offset), &encode_regions(&regions));
    }
    let table = at(METADATA.offset);
    let count = u16_at(&bytes, table + 10);
    put(&mut bytes, table + 10, &(count + 1).to_le_bytes());
    let item = table + 32 + usize::from(count) * 32;
    put(&mut bytes, item, &guid(77));
    put(&mut bytes, item + 16, &(512_u32 << 10).to_le_bytes());
    put(&mut bytes, item + 20, &8_u32.to_le_bytes());
    put(&mut bytes, table + (512 << 10), b"precious");
    storage.overwrite(path(), 0, &bytes).unwrap();
    let image = open(&storage, false).unwrap();
    for block in 0..16 {
        image.write_at(&[3; 512], block * MIB, false).unwrap();
    }
    image.resize(20 * MIB).unwrap();
    image.close().unwrap();
    let after = storage.content(path()).unwrap();
    assert!(
        after[at(region)..at(region + MIB)]
            .iter()
            .all(|byte| *byte == 0xAB)
    );
    assert!(
        after[at(REGION_TABLE_OFFSETS[0])..at(MIB)] == bytes[at(REGION_TABLE_OFFSETS[0])..at(MIB)]
    );
    assert_eq!(&after[table + (512 << 10)..][..8], b"precious");
    let same = table..item + 32;
    assert_eq!(after[same.clone()], bytes[same]);
}

fn headers(storage: &FakeStorage) -> [Header; 2] {
    let bytes = storage.content(path()).unwrap();
    HEADER_OFFSETS.map(|offset| Header::decode(&bytes[at(offset)..][..PAGE_BYTES]).unwrap())
}

#[test]
fn headers_change_before_anything_else_and_both_say_the_same() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(16 * MIB, 1));
    image.write_at(&[1; 512], 0, true).unwrap();
    drop(image);
    let dirty = storage.crash(0);
    let before = headers(&dirty);
    let image = open(&dirty, false).unwrap();
    let first = dirty
        .operations()
        .into_iter()
        .find(|op| op.path == path())
        .unwrap();
    let What::Write { offset, .. } = first.what else {
        panic!("{first:?}");
    };
    assert!(HEADER_OFFSETS.contains(&offset), "{first:?}");
    let opened = headers(&dirty);
    let ids = |header: &Header| (header.file_write, header.data_write, header.log_guid);
    assert_eq!(ids(&opened[0]), ids(&opened[1]));
    assert_ne!(opened[0].file_write, before[0].file_write, "once per open");
    assert_eq!(
        opened[0].data_write, before[0].data_write,
        "replay is no change of the disk"
    );
    assert_eq!(opened[0].log_guid, [0; 16]);
    assert_eq!(opened[0].sequence.abs_diff(opened[1].sequence), 1);
    image.write_at(&[1; 512], MIB, false).unwrap();
    let written = headers(&dirty);
    assert_eq!(ids(&written[0]), ids(&written[1]));
    assert_eq!(written[0].file_write, opened[0].file_write);
    assert_ne!(written[0].data_write, opened[0].data_write);
    assert_ne!(written[0].log_guid, [0; 16]);
    image.close().unwrap();
    let closed = headers(&dirty);
    assert_eq!(ids(&closed[0]), ids(&closed[1]));
    assert_eq!(
        (closed[0].data_write, closed[0].log_guid),
        (written[0].data_write, [0; 16])
    );
}

#[test]
fn a_childs_random_damage_never_panics() {
    let family = family();
    let image = open_vhdx(&family, &level(1), false).unwrap();
    for block in 3..6 {
        image.write_at(&stamped(3, 8), block * MIB, true).unwrap();
    }
    let dirty = family.crash(0);
    drop(image);
    let whole = dirty.content(&level(1)).unwrap();
    let bitmap = entry(&dirty, RATIO) >> 20 << 20;
    let places = [
        HEADER_OFFSETS[0],
        REGION_TABLE_OFFSETS[0],
        MIB,
        METADATA.offset,
        METADATA.offset + 65536,
        METADATA.offset + 65536 + 96,
        BAT_OFFSET,
        BAT_OFFSET + RATIO * 8 - 8,
        bitmap,
    ];
    let mut random = Random(44);
    let write = |bytes: &[u8], from: usize, length: usize| {
        let offset = u64::try_from(from).unwrap();
        dirty
            .overwrite(&level(1), offset, &bytes[from..from + length])
            .unwrap();
    };
    let summed = [(65536, 4096), (196_608, 65536)];
    let mut bytes = whole.clone();
    for _ in 0..rounds(100, 1000) {
        let place = at(places[at(random.below(9))]);
        for _ in 0..1 + random.below(4) {
            bytes[place + at(random.below(96))] = u8::try_from(random.below(256)).unwrap();
        }
        write(&bytes, place, 96);
        // With a checksum that fits, so that the damage gets through to the parsers.
        for (from, length) in summed {
            let crc = checksum(&bytes[from..from + length]);
            put(&mut bytes, from + 4, &crc.to_le_bytes());
            write(&bytes, from + 4, 4);
        }
        if let Ok(image) = open_chain(&dirty, &level(1), true) {
            let size = image.geometry().size_bytes.min(16 * MIB);
            let _ = image.read_at(&mut vec![0; at(size)], 0);
            let _ = image.extents(0, size, &mut |_| true);
        }
        for (from, length) in [(place, 96), (65536 + 4, 4), (196_608 + 4, 4)] {
            bytes[from..from + length].copy_from_slice(&whole[from..from + length]);
            write(&bytes, from, length);
        }
    }
}

#[test]
fn sizes_of_blocks_and_sectors_all_work() {
    for block_mib in [1, 4, 16, 64, 128, 256] {
        for logical in [512, 4096] {
            let storage = FakeStorage::new();
            let wanted = CreateOptions {
                logical_sector_bytes: logical,
                ..options(600 * MIB, block_mib)
            };
            let base = VhdxImage::create(std::sync::Arc::new(storage.clone()), &level(0), &wanted)
                .unwrap();
            base.write_at(&stamped(5, 16), 300 * MIB, false).unwrap();
            base.close().unwrap();
            let image = child(&storage, &level(1), &level(0), block_mib).unwrap();
            image
                .write_at(&stamped(6, 8), 300 * MIB + 4096, false)
                .unwrap();
            image
                .write_at(&stamped(7, 8), 600 * MIB - 4096, false)
                .unwrap();
            image.close().unwrap();
            let image = open_chain(&storage, &level(1), true).unwrap();
            let found = stamps(&*image, 300 * 2048, 17);
            assert_eq!(found[..8], [5; 8], "{block_mib} MiB, {logical}");
            assert_eq!(found[8..], [6, 6, 6, 6, 6, 6, 6, 6, 0]);
            assert_eq!(
                stamps(&*image, 600 * 2048 - 9, 9),
                [0, 7, 7, 7, 7, 7, 7, 7, 7]
            );
        }
    }
}

#[test]
fn the_longest_chain_opens_and_a_longer_one_does_not() {
    let storage = FakeStorage::new();
    let shared = || std::sync::Arc::new(storage.clone());
    let wanted = options(4 * MIB, 1);
    let base = VhdxImage::create(shared(), &level(0), &wanted).unwrap();
    base.write_at(&stamped(1, 2048), 0, false).unwrap();
    base.close().unwrap();
    let open_over = |number: usize, parent: Option<&std::sync::Arc<VhdxImage>>| {
        let mut find = |_: &ParentLink| Ok(std::sync::Arc::clone(parent.unwrap()) as _);
        let image = VhdxImage::open_with(shared(), &level(number), true, &mut find);
        std::sync::Arc::new(image.unwrap())
    };
    let mut parent = open_over(0, None);
    for number in 1..=CHAIN_MAX {
        let over = ChildOptions {
            parent_path: level(number - 1),
            block_bytes: 1 << 20,
        };
        let image = VhdxImage::create_child(shared(), &level(number), &parent, &over).unwrap();
        let sector = u64::try_from(number).unwrap();
        image
            .write_at(&stamped(1 + sector, 1), sector * 512, false)
            .unwrap();
        image.close().unwrap();
        parent = open_over(number, Some(&parent));
    }
    let last = u64::try_from(CHAIN_MAX - 1).unwrap();
    let image = open_chain(&storage, &level(CHAIN_MAX - 1), true).unwrap();
    let wanted: Vec<u64> = (1..=last + 1).chain([1, 1]).collect();
    assert_eq!(stamps(&*image, 0, last + 3), wanted);
    drop(image);
    let refusal = open_chain(&storage, &level(CHAIN_MAX), true).err().unwrap();
    assert!(refusal.to_string().contains("longer than"), "{refusal}");
}

#[test]
fn bits_after_the_end_of_the_disk_do_not_show_when_it_grows() {
    let storage = FakeStorage::new();
    let size = 3 * MIB + 512 * 1024;
    let shared = std::sync::Arc::new(storage.clone());
    let base = VhdxImage::create(shared, &level(0), &options(size, 1)).unwrap();
    base.write_at(&stamped(1000, size / 512), 0, false).unwrap();
    base.close().unwrap();
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    image.write_at(&stamped(1, 8), 3 * MIB, false).unwrap();
    image.close().unwrap();
    // Of block 3, all bits after the end, and junk in its space there.
    let bitmap = entry(&storage, RATIO) >> 20 << 20;
    storage
        .overwrite(&level(1), bitmap + 3 * 256 + 128, &[0xFF; 128])
        .unwrap();
    let space = entry(&storage, 3) >> 20 << 20;
    storage
        .overwrite(&level(1), space + 512 * 1024, &[0xAB; 512 * 1024])
        .unwrap();
    let image = open_vhdx(&storage, &level(1), false).unwrap();
    image.resize(6 * MIB).unwrap();
    let wanted = [stamps(&image, 3 * 2048, 1024), vec![0; 4 * 1024]].concat();
    assert_eq!(wanted[..9], [1, 1, 1, 1, 1, 1, 1, 1, 1000]);
    assert!(stamps(&image, 3 * 2048, 5 * 1024) == wanted);
    for after in [storage.crash(0), storage.after_kill()] {
        let after = open_chain(&after, &level(1), true).unwrap();
        assert_eq!(after.geometry().size_bytes, 6 * MIB);
        assert!(stamps(&*after, 3 * 2048, 5 * 1024) == wanted);
    }
    assert_eq!(
        image.resize(size).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    image.close().unwrap();
}
