//! Damaged and hostile files: what is refused, and what is put right.

use std::path::Path;

use super::super::layout::checksum;
use super::super::{CreateOptions, Kind, VhdImage};
use super::random::{PARENT, make};
use super::{MIB, create, open, open_chain, options, path};
use crate::error::{DiskError, ErrorKind};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::storage::{OpenMode, Storage};
use crate::tests::{Random, read, rounds, stamped, stamps};

const HEADER: usize = 512;
const BAT: usize = 1536;
const SIZE: u64 = 16 * MIB;

/// A closed file with 8 sectors in its first block and in another.
fn closed(kind: Kind) -> FakeStorage {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind,
        ..options(SIZE, 512)
    };
    let (image, _) = make(&storage, &wanted);
    image.write_at(&stamped(1, 8), 0, false).unwrap();
    image.write_at(&stamped(2, 8), 3 * MIB, false).unwrap();
    image.close().unwrap();
    storage
}

fn content(storage: &FakeStorage) -> Vec<u8> {
    storage.content(path()).unwrap()
}

/// Puts a file with these bytes in the place of the old one.
fn replaced(storage: &FakeStorage, bytes: &[u8]) -> FakeStorage {
    let after = storage.after_kill();
    after.remove(path()).unwrap();
    let file = after.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    after
}

/// Makes checksums right again, so that only what was changed is wrong.
fn seal(bytes: &mut [u8], at: usize, length: usize, checksum_at: usize) {
    let sum = checksum(&bytes[at..at + length], checksum_at);
    bytes[at + checksum_at..at + checksum_at + 4].copy_from_slice(&sum.to_be_bytes());
}

fn seal_footers(bytes: &mut [u8]) {
    let end = bytes.len() - 512;
    seal(bytes, 0, 512, 64);
    seal(bytes, end, 512, 64);
}

fn seal_header(bytes: &mut [u8]) {
    seal(bytes, HEADER, 1024, 36);
}

fn put_both(bytes: &mut [u8], at: usize, value: &[u8]) {
    let end = bytes.len() - 512;
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes[end + at..end + at + value.len()].copy_from_slice(value);
    seal_footers(bytes);
}

fn put_header(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[HEADER + at..HEADER + at + value.len()].copy_from_slice(value);
    seal_header(bytes);
}

fn first_entry(bytes: &[u8]) -> [u8; 4] {
    bytes[BAT..BAT + 4].try_into().unwrap()
}

fn put_entry(bytes: &mut [u8], index: usize, sector: u32) {
    bytes[BAT + 4 * index..BAT + 4 * index + 4].copy_from_slice(&sector.to_be_bytes());
}

type Damage = fn(&mut Vec<u8>);

/// What each fault leads to: an error that names a structure, or the disk as it was.
const FAULTS: &[(&str, Damage, Option<&str>)] = &[
    (
        "end footer destroyed",
        |b| {
            let e = b.len() - 512;
            b[e..].fill(0);
        },
        None,
    ),
    ("end footer cut off", |b| b.truncate(b.len() - 512), None),
    (
        "end footer's page cut off",
        |b| b.truncate(b.len() - 4096),
        None,
    ),
    (
        "end footer's checksum",
        |b| {
            let e = b.len() - 1;
            b[e] ^= 1;
        },
        None,
    ),
    ("copy destroyed", |b| b[..512].fill(0), None),
    ("copy's checksum", |b| b[100] ^= 1, None),
    (
        "both destroyed",
        |b| {
            let e = b.len() - 512;
            b[e] = 0;
            b[0] = 0;
        },
        Some("footer"),
    ),
    (
        "copy of another disk",
        |b| {
            b[70] ^= 1;
            seal(b, 0, 512, 64);
        },
        Some("footer's copy"),
    ),
    (
        "header's checksum",
        |b| b[HEADER + 700] ^= 1,
        Some("dynamic header"),
    ),
    ("header's cookie", |b| b[HEADER] = 0, Some("dynamic header")),
    (
        "duplicate entry",
        |b| {
            let e = first_entry(b);
            b[BAT + 4..BAT + 8].copy_from_slice(&e);
        },
        Some("BAT"),
    ),
    (
        "overlapping entry",
        |b| {
            let e = u32::from_be_bytes(first_entry(b));
            put_entry(b, 1, e + 8);
        },
        Some("BAT"),
    ),
    ("entry on the copy", |b| put_entry(b, 1, 0), Some("BAT")),
    ("entry on the header", |b| put_entry(b, 1, 1), Some("BAT")),
    ("entry on the BAT", |b| put_entry(b, 1, 3), Some("BAT")),
    (
        "entry past the end",
        |b| put_entry(b, 1, 0xFFFF_FFFE),
        Some("BAT"),
    ),
    (
        "entry on the footer",
        |b| {
            let s = b.len() / 512 - 1025;
            put_entry(b, 1, u32::try_from(s).unwrap());
        },
        Some("BAT"),
    ),
    (
        "table past the end",
        |b| put_header(b, 16, &(1_u64 << 40).to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "table off its sector",
        |b| put_header(b, 16, &1537_u64.to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "table on the header",
        |b| put_header(b, 16, &512_u64.to_be_bytes()),
        Some("BAT"),
    ),
    (
        "too many entries",
        |b| put_header(b, 28, &u32::MAX.to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "too few entries",
        |b| put_header(b, 28, &31_u32.to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "odd blocks",
        |b| put_header(b, 32, &(3_u32 << 20).to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "tiny blocks",
        |b| put_header(b, 32, &512_u32.to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "no blocks",
        |b| put_header(b, 32, &[0; 4]),
        Some("dynamic header"),
    ),
    (
        "huge blocks",
        |b| put_header(b, 32, &(1_u32 << 31).to_be_bytes()),
        Some("dynamic header"),
    ),
    (
        "header nowhere",
        |b| put_both(b, 16, &u64::MAX.to_be_bytes()),
        Some("footer"),
    ),
    (
        "header on the copy",
        |b| put_both(b, 16, &[0; 8]),
        Some("footer"),
    ),
    ("size 0", |b| put_both(b, 48, &[0; 8]), Some("footer")),
    (
        "odd size",
        |b| put_both(b, 48, &513_u64.to_be_bytes()),
        Some("footer"),
    ),
    (
        "huge size",
        |b| put_both(b, 48, &u64::MAX.to_be_bytes()),
        Some("footer"),
    ),
    ("a byte", |b| b.truncate(1), Some("footer")),
    ("a sector", |b| b.truncate(512), Some("footer")),
    ("nothing", Vec::clear, Some("footer")),
];

#[test]
fn faults_are_refused_or_put_right() {
    let whole = closed(Kind::Dynamic);
    for (what, damage, wanted) in FAULTS {
        let mut bytes = content(&whole);
        damage(&mut bytes);
        let storage = replaced(&whole, &bytes);
        match (open(&storage, false), wanted) {
            (Ok(image), None) => put_right(&storage, image, what),
            (Err(DiskError::Corrupt { structure, .. }), Some(wanted)) => {
                assert_eq!(structure, *wanted, "{what}");
                assert!(content(&storage) == bytes, "{what}: it was changed");
            }
            (Ok(_), Some(_)) => panic!("{what} was taken"),
            (Err(e), _) => panic!("{what}: {e}"),
        }
    }
}

/// The disk is as it was, and its file whole again after a write.
fn put_right(storage: &FakeStorage, image: VhdImage, what: &str) {
    assert_eq!(stamps(&image, 0, 9), [1, 1, 1, 1, 1, 1, 1, 1, 0], "{what}");
    assert_eq!(stamps(&image, 3 * 2048, 8), [2; 8], "{what}");
    image.write_at(&stamped(5, 8), 8 * MIB, false).unwrap();
    image.close().unwrap();
    let bytes = content(storage);
    assert!(bytes[bytes.len() - 512..] == bytes[..512], "{what}");
    assert_eq!(bytes.len() % 4096, 0, "{what}");
    let image = open(storage, true).unwrap();
    assert_eq!(stamps(&image, 8 * 2048, 8), [5; 8], "{what}");
}

#[test]
fn versions_and_types_of_others_are_not_supported() {
    let whole = closed(Kind::Dynamic);
    let cases: &[Damage] = &[
        |b| put_both(b, 12, &0x0002_0000_u32.to_be_bytes()),
        |b| put_both(b, 60, &6_u32.to_be_bytes()),
        |b| put_header(b, 24, &0x0002_0000_u32.to_be_bytes()),
    ];
    for damage in cases {
        let mut bytes = content(&whole);
        damage(&mut bytes);
        let refused = open(&replaced(&whole, &bytes), false).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    }
}

#[test]
fn a_fixed_disks_first_sector_is_its_guests() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Fixed,
        ..options(MIB, 512)
    };
    create(&storage, &wanted).close().unwrap();
    // A guest writes the start of another VHD into its disk.
    let forged = content(&closed(Kind::Dynamic));
    let image = open(&storage, false).unwrap();
    image.write_at(&forged[..4096], 0, false).unwrap();
    image.close().unwrap();
    let image = open(&storage, true).unwrap();
    assert_eq!(image.kind(), Kind::Fixed);
    assert_eq!(read(&image, 0, 4096), forged[..4096]);
    drop(image);
    let mut bytes = content(&storage);
    let end = bytes.len() - 512;
    bytes[end..].fill(1);
    let refused = open(&replaced(&storage, &bytes), true).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
}

#[test]
fn a_fixed_disk_that_is_cut_short_is_refused_and_a_short_footer_is_not() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        kind: Kind::Fixed,
        ..options(MIB, 512)
    };
    create(&storage, &wanted).close().unwrap();
    let bytes = content(&storage);
    let short = &bytes[..bytes.len() - 1];
    let image = open(&replaced(&storage, short), false).unwrap();
    image.write_at(&stamped(3, 8), MIB - 4096, true).unwrap();
    assert_eq!(stamps(&image, 2040, 8), [3; 8]);
    image.resize(2 * MIB).unwrap();
    assert_eq!(stamps(&image, 2040, 16)[8..], [0; 8]);
    let cut = [&bytes[..1 << 19], &bytes[1 << 20..]].concat();
    let refused = open(&replaced(&storage, &cut), false).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
}

#[test]
fn a_dynamic_disk_of_another_program_with_clear_bits_reads_zeros_there() {
    let storage = closed(Kind::Dynamic);
    let mut bytes = content(&storage);
    let place = u32::from_be_bytes(first_entry(&bytes)) as usize * 512;
    // Sectors 1 to 7 of the first block are in the file no more, whatever its bytes say.
    bytes[place] = 0x80;
    let storage = replaced(&storage, &bytes);
    let image = open(&storage, false).unwrap();
    assert_eq!(stamps(&image, 0, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    image.write_at(&stamped(4, 1), 512 * 3, false).unwrap();
    assert_eq!(stamps(&image, 0, 8), [1, 0, 0, 4, 0, 0, 0, 0]);
    image.close().unwrap();
    let bytes = content(&storage);
    assert_eq!(
        bytes[place..place + 128],
        [0xFF; 128],
        "QEMU ignores bitmaps"
    );
    assert_eq!(bytes[place + 512 + 4 * 512..][..2048], [0; 2048]);
    let image = open(&storage, true).unwrap();
    assert_eq!(stamps(&image, 0, 8), [1, 0, 0, 4, 0, 0, 0, 0]);
}

#[test]
fn hostile_locators_are_refused() {
    let whole = closed(Kind::Differencing);
    let chain = [path(), Path::new(PARENT)];
    open_chain(&whole, &chain, true).unwrap();
    let cases: &[Damage] = &[
        |b| put_header(b, 40, &[0; 16]),
        |b| put_header(b, 576 + 8, &u32::MAX.to_be_bytes()),
        |b| put_header(b, 576 + 16, &u64::MAX.to_be_bytes()),
        |b| put_header(b, 576 + 16, &[0; 8]),
        |b| put_header(b, 576 + 16, &512_u64.to_be_bytes()),
    ];
    for (index, damage) in cases.iter().enumerate() {
        let mut bytes = content(&whole);
        damage(&mut bytes);
        let refused = open_chain(&replaced(&whole, &bytes), &chain, false);
        let refused = refused.err().unwrap_or_else(|| panic!("case {index}"));
        assert_eq!(
            refused.kind(),
            ErrorKind::Corrupt,
            "case {index}: {refused}"
        );
    }
}

#[test]
fn hostile_bytes_never_panic() {
    for kind in [Kind::Dynamic, Kind::Differencing] {
        let whole = closed(kind);
        let good = content(&whole);
        let chain = [path(), Path::new(PARENT)];
        let chain = &chain[..if kind == Kind::Dynamic { 1 } else { 2 }];
        let mut random = Random(77);
        for turn in 0..rounds(150, 1500) {
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(4) {
                let at = usize::try_from(random.below(3072)).unwrap();
                bytes[at] = [0, 0xFF, 0x7F, 0x80, 1][usize::try_from(random.below(5)).unwrap()];
            }
            if turn % 4 != 0 {
                seal_header(&mut bytes);
                let copy: [u8; 512] = bytes[..512].try_into().unwrap();
                put_both(&mut bytes, 0, &copy);
            }
            let storage = replaced(&whole, &bytes);
            let Ok(image) = open_chain(&storage, chain, false) else {
                continue;
            };
            let size = image.geometry().size_bytes;
            for offset in [0, 3 * MIB, size - 512] {
                let _ = image.read_at(&mut [0; 512], offset.min(size - 512));
            }
            let _ = image.write_at(&[7; 512], size - 512, false);
            let _ = image.extents(0, size, &mut |_| true);
            let _ = image.close();
        }
    }
}
