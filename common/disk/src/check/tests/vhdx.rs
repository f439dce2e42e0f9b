//! VHDX files, dynamic and fixed, of our driver and damaged by hand.

use std::sync::Arc;

use super::*;
use crate::image::Image;
use crate::vhdx::layout::{MIB, checksum, guid, u32_at, u64_at};
use crate::vhdx::{CreateOptions, Kind as DiskShape, VhdxImage};

pub(super) const HEADERS: [usize; 2] = [65_536, 131_072];
const TABLES: [usize; 2] = [196_608, 262_144];
pub(super) const METADATA: usize = 2 << 20;
const ITEMS: usize = METADATA + 65_536;
pub(super) const BAT: usize = 3 << 20;

pub(super) fn options(size_mib: u64, kind: DiskShape) -> CreateOptions {
    CreateOptions {
        size_bytes: size_mib * MIB,
        block_bytes: 1 << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind,
        disk_id: None,
    }
}

pub(super) fn made(options: &CreateOptions, fill: impl Fn(&VhdxImage)) -> Vec<u8> {
    let storage = FakeStorage::new();
    let image = VhdxImage::create(Arc::new(storage.clone()), path(), options).unwrap();
    fill(&image);
    image.close().unwrap();
    with_short_log(&storage.content(path()).unwrap())
}

/// The same disk with a log of 1 MiB, so that everything is at the places that these tests name, however long the
/// driver makes its logs: metadata at 2 MiB, BAT at 3, blocks from 4 on.
fn with_short_log(bytes: &[u8]) -> Vec<u8> {
    let log = usize::try_from(u32_at(bytes, HEADERS[0] + 68)).unwrap();
    let (cut, mib) = (log - (1 << 20), 1 << 20);
    let mut short = [&bytes[..2 * mib], &bytes[mib + log..]].concat();
    let lower = |bytes: &mut [u8], at: usize| {
        let value = u64_at(bytes, at) - cut as u64;
        put(bytes, at, &value.to_le_bytes());
    };
    edit_headers(&mut short, |_, header| {
        put(header, 68, &(1_u32 << 20).to_le_bytes())
    });
    edit_tables(&mut short, |_, table| {
        lower(table, 32);
        lower(table, 64);
        assert_eq!(
            (u64_at(table, 32), u64_at(table, 64)),
            (BAT as u64, METADATA as u64)
        );
    });
    for entry in (BAT..BAT + mib).step_by(8) {
        if u64_at(&short, entry) >= MIB {
            lower(&mut short, entry);
        }
    }
    short
}

/// A clean dynamic disk of 16 MiB whose first two blocks, of 1 MiB, are at 4 and 5 MiB.
pub(super) fn good() -> Vec<u8> {
    made(&options(16, DiskShape::Dynamic), |image| {
        image.write_at(&[1; 4096], 0, false).unwrap();
        image.write_at(&[2; 4096], MIB, false).unwrap();
    })
}

pub(super) fn set_bat(bytes: &mut [u8], index: usize, entry: u64) {
    put(bytes, BAT + index * 8, &entry.to_le_bytes());
}

fn seal(bytes: &mut [u8], at: usize, length: usize) {
    let crc = checksum(&bytes[at..at + length]);
    put(bytes, at + 4, &crc.to_le_bytes());
}

pub(super) fn edit_headers(bytes: &mut [u8], change: impl Fn(usize, &mut [u8])) {
    for (slot, at) in HEADERS.into_iter().enumerate() {
        change(slot, &mut bytes[at..at + 4096]);
        seal(bytes, at, 4096);
    }
}

fn edit_tables(bytes: &mut [u8], change: impl Fn(usize, &mut [u8])) {
    for (copy, at) in TABLES.into_iter().enumerate() {
        change(copy, &mut bytes[at..at + 65_536]);
        seal(bytes, at, 65_536);
    }
}

/// Adds a region entry: guid, place in MiB, required.
fn add_region(bytes: &mut [u8], id: u128, mib: u64, required: u32) {
    edit_tables(bytes, |_, table| {
        put(table, 8, &3_u32.to_le_bytes());
        put(table, 80, &guid(id));
        put(table, 96, &(mib << 20).to_le_bytes());
        put(table, 104, &(1_u32 << 20).to_le_bytes());
        put(table, 108, &required.to_le_bytes());
    });
}

/// Adds a metadata entry at 512 KiB of the region.
pub(super) fn add_item(bytes: &mut [u8], id: [u8; 16], flags: u32, value: &[u8]) {
    put(bytes, METADATA + 10, &6_u16.to_le_bytes());
    let entry = METADATA + 32 + 5 * 32;
    put(bytes, entry, &id);
    put(bytes, entry + 16, &(512_u32 << 10).to_le_bytes());
    let length = u32::try_from(value.len()).unwrap();
    put(bytes, entry + 20, &length.to_le_bytes());
    put(bytes, entry + 24, &flags.to_le_bytes());
    put(bytes, METADATA + (512 << 10), value);
}

type Case = (&'static str, fn(&mut Vec<u8>));

/// Each fault is found, and nothing else of any severity.
#[track_caller]
fn found_alone(cases: &[Case]) {
    for (code, damage) in cases {
        let mut bytes = good();
        damage(&mut bytes);
        let report = check_bytes(&bytes, CheckFormat::Vhdx);
        assert_eq!(codes(&report), [*code], "{:#?}", report.findings);
    }
}

#[test]
fn sound_disks_of_ours_are_clean() {
    let report = check_bytes(&good(), CheckFormat::Vhdx);
    assert_eq!(codes(&report), [""; 0]);
    for kind in [DiskShape::Dynamic, DiskShape::Fixed] {
        for (size, block, sector) in [(5, 1, 512), (40, 32, 4096), (6000, 2, 512), (1, 256, 512)] {
            if kind == DiskShape::Fixed && size > 40 {
                continue;
            }
            let shape = CreateOptions {
                block_bytes: block << 20,
                logical_sector_bytes: sector,
                ..options(size, kind)
            };
            let bytes = made(&shape, |image| {
                image.write_at(&[1; 4096], (size - 1) * MIB, false).unwrap();
            });
            let report = check_bytes(&bytes, CheckFormat::Vhdx);
            assert_eq!(codes(&report), [""; 0], "{shape:?} {:#?}", report.findings);
        }
    }
}

#[test]
fn damage_of_headers() {
    found_alone(&[
        ("vhdx-identifier", |bytes| bytes[0] = 0),
        ("vhdx-file-too-short", |bytes| bytes.truncate(70_000)),
        ("vhdx-file-length", |bytes| bytes.extend([0; 512])),
        ("vhdx-header-invalid", |bytes| bytes[HEADERS[0] + 100] ^= 1),
        ("vhdx-header-invalid", |bytes| bytes[HEADERS[1]] ^= 1),
        ("vhdx-headers-invalid", |bytes| {
            bytes[HEADERS[0] + 8] ^= 1;
            bytes[HEADERS[1] + 8] ^= 1;
        }),
        ("vhdx-headers-conflict", |bytes| {
            edit_headers(bytes, |slot, header| {
                header[8..16].fill(7);
                header[32] = u8::try_from(slot).unwrap();
            });
        }),
        ("vhdx-headers-twins", |bytes| {
            bytes.copy_within(HEADERS[0]..HEADERS[0] + 4096, HEADERS[1]);
        }),
        ("vhdx-headers-apart", |bytes| {
            edit_headers(bytes, |slot, header| {
                header[32] = u8::try_from(slot).unwrap()
            });
        }),
        ("vhdx-header-version", |bytes| {
            edit_headers(bytes, |_, header| header[66] = 2)
        }),
        ("vhdx-header-reserved", |bytes| {
            edit_headers(bytes, |_, header| header[4000] = 2)
        }),
        ("vhdx-log-place", |bytes| {
            edit_headers(bytes, |_, header| header[72] = 1)
        }),
        ("vhdx-log-place", |bytes| {
            edit_headers(bytes, |_, header| header[79] = 255)
        }),
        ("vhdx-log-place", |bytes| {
            edit_headers(bytes, |_, header| header[68..72].fill(0))
        }),
    ]);
}

#[test]
fn damage_of_region_tables() {
    found_alone(&[
        ("vhdx-region-table-invalid", |bytes| {
            bytes[TABLES[0] + 50_000] ^= 1
        }),
        ("vhdx-region-table-invalid", |bytes| bytes[TABLES[0]] ^= 1),
        ("vhdx-region-table-invalid", |bytes| bytes[TABLES[1]] ^= 1),
        ("vhdx-region-tables-invalid", |bytes| {
            bytes[TABLES[0]] ^= 1;
            bytes[TABLES[1]] ^= 1;
        }),
        ("vhdx-region-tables-differ", |bytes| {
            edit_tables(bytes, |copy, table| {
                table[34] ^= u8::try_from(copy * 16).unwrap()
            });
        }),
        ("vhdx-region-reserved", |bytes| {
            edit_tables(bytes, |_, table| table[12] = 1)
        }),
        ("vhdx-region-reserved", |bytes| {
            edit_tables(bytes, |_, table| table[45] = 1)
        }),
        ("vhdx-region-not-required", |bytes| {
            edit_tables(bytes, |_, table| table[44] = 0)
        }),
        ("vhdx-region-place", |bytes| {
            edit_tables(bytes, |_, table| table[32] = 1)
        }),
        ("vhdx-region-place", |bytes| {
            edit_tables(bytes, |_, table| table[39] = 255)
        }),
        ("vhdx-region-missing", |bytes| {
            edit_tables(bytes, |_, table| put(table, 8, &1_u32.to_le_bytes()));
        }),
        ("vhdx-region-twice", |bytes| {
            edit_tables(bytes, |_, table| {
                put(table, 8, &3_u32.to_le_bytes());
                table.copy_within(16..48, 80);
            });
        }),
    ]);
}

#[test]
fn regions_that_are_not_known() {
    const ID: u128 = 77;
    found_alone(&[
        ("vhdx-region-unknown", |bytes| {
            bytes.extend(vec![0; 1 << 20]);
            add_region(bytes, ID, 6, 0);
        }),
        ("vhdx-region-unknown-required", |bytes| {
            bytes.extend(vec![0; 1 << 20]);
            add_region(bytes, ID, 6, 1);
        }),
    ]);
    let mut bytes = good();
    add_region(&mut bytes, ID, 1, 0);
    assert_eq!(
        faults(&check_bytes(&bytes, CheckFormat::Vhdx)),
        ["vhdx-region-overlap"]
    );
    let mut bytes = good();
    add_region(&mut bytes, ID, 5, 0);
    assert_eq!(
        faults(&check_bytes(&bytes, CheckFormat::Vhdx)),
        ["vhdx-bat-overlap"]
    );
}

#[test]
fn damage_of_metadata() {
    found_alone(&[
        ("vhdx-metadata-table", |bytes| bytes[METADATA] = 0),
        ("vhdx-metadata-table", |bytes| bytes[METADATA + 11] = 255),
        ("vhdx-metadata-reserved", |bytes| bytes[METADATA + 20] = 1),
        ("vhdx-metadata-reserved", |bytes| {
            bytes[METADATA + 32 + 25] = 1
        }),
        ("vhdx-metadata-reserved", |bytes| bytes[ITEMS + 7] = 1),
        ("vhdx-metadata-item-flags", |bytes| {
            bytes[METADATA + 64 + 24] = 4
        }),
        ("vhdx-metadata-item-overlap", |bytes| {
            bytes.copy_within(METADATA + 64 + 16..METADATA + 64 + 20, METADATA + 96 + 16);
        }),
        ("vhdx-metadata-item-twice", |bytes| {
            put(bytes, METADATA + 10, &6_u16.to_le_bytes());
            bytes.copy_within(METADATA + 32..METADATA + 64, METADATA + 32 + 5 * 32);
        }),
        ("vhdx-metadata-item-missing", |bytes| {
            put(bytes, METADATA + 10, &4_u16.to_le_bytes());
        }),
        ("vhdx-metadata-item-value", |bytes| {
            put(bytes, ITEMS, &(3_u32 << 20).to_le_bytes())
        }),
        ("vhdx-metadata-item-value", |bytes| {
            put(bytes, ITEMS, &(512_u32 << 20).to_le_bytes())
        }),
        ("vhdx-metadata-item-value", |bytes| {
            put(bytes, ITEMS + 8, &511_u64.to_le_bytes())
        }),
        ("vhdx-metadata-item-value", |bytes| {
            put(bytes, ITEMS + 8, &[255; 8])
        }),
        ("vhdx-metadata-item-value", |bytes| {
            put(bytes, ITEMS + 32, &[0; 4])
        }),
        ("vhdx-metadata-unknown", |bytes| {
            add_item(bytes, guid(77), 0, &[1; 16])
        }),
        ("vhdx-metadata-unknown-required", |bytes| {
            add_item(bytes, guid(77), 4, &[1; 16])
        }),
        ("vhdx-metadata-incomplete", |bytes| {
            add_item(bytes, guid(0x71CC_85F0 << 96), 0, &[1; 4])
        }),
        ("vhdx-parent-locator-stray", |bytes| {
            add_item(bytes, crate::vhdx::metadata::PARENT_LOCATOR, 4, &[1; 16]);
        }),
        ("vhdx-bat-too-short", |bytes| {
            put(bytes, ITEMS + 8, &(60_u64 << 40).to_le_bytes());
        }),
    ]);
    for (at, value) in [(16, u32::MAX), (16, 1000), (20, 17)] {
        let mut bytes = good();
        put(&mut bytes, METADATA + 32 + at, &value.to_le_bytes());
        let code = ["vhdx-metadata-item-length", "vhdx-metadata-item-place"][usize::from(at == 16)];
        let found = faults(&check_bytes(&bytes, CheckFormat::Vhdx));
        assert_eq!(found.len(), 2);
        assert!(found.contains(&code) && found.contains(&"vhdx-metadata-item-missing"));
    }
}

#[test]
fn damage_of_the_bat() {
    let present = |mib: u64| mib << 20 | 6;
    let (first, state) = (present(4), |number: u64| 4 << 20 | number);
    let cases = [
        ("vhdx-bat-shared-block", 5, first),
        ("vhdx-bat-shared-block", 5, 4 << 20 | 3),
        ("vhdx-bat-shared-block", 5, 4 << 20 | 1),
        ("vhdx-bat-overlap", 5, present(1)),
        ("vhdx-bat-overlap", 5, present(2)),
        ("vhdx-bat-overlap", 5, present(3)),
        ("vhdx-bat-outside", 5, present(6)),
        ("vhdx-bat-outside", 5, present((1 << 44) - 1)),
        ("vhdx-bat-no-offset", 5, 6),
        ("vhdx-bat-reserved-bits", 0, first | 8),
        ("vhdx-bat-reserved-bits", 0, first | 1 << 19),
        ("vhdx-bat-state", 0, state(4)),
        ("vhdx-bat-state", 0, state(5)),
        ("vhdx-bat-state", 0, state(7)),
        ("vhdx-bat-state", 5, 5),
    ];
    for (code, index, entry) in cases {
        let mut bytes = good();
        set_bat(&mut bytes, index, entry);
        let report = check_bytes(&bytes, CheckFormat::Vhdx);
        assert_eq!(codes(&report), [code], "{entry:#x}: {:#?}", report.findings);
        assert_eq!(report.worst, Some(Severity::Error));
        let at = (BAT + index * 8) as u64;
        assert_eq!(report.findings[0].offset, at, "{entry:#x}");
    }
    for (index, entry) in [
        (5, 1),
        (5, 2),
        (5, 3),
        (5, 0),
        (0, 4 << 20 | 3),
        (0, 4 << 20 | 1),
    ] {
        let mut bytes = good();
        set_bat(&mut bytes, index, entry);
        assert_eq!(
            codes(&check_bytes(&bytes, CheckFormat::Vhdx)),
            [""; 0],
            "{entry:#x}"
        );
    }
    for stray in [0, 2] {
        let mut bytes = good();
        set_bat(&mut bytes, 0, 4 << 20 | stray);
        let report = check_bytes(&bytes, CheckFormat::Vhdx);
        assert_eq!(codes(&report), ["vhdx-bat-stray-offset"]);
    }
}

#[test]
fn the_owners_of_shared_space_are_both_named() {
    let mut bytes = good();
    set_bat(&mut bytes, 5, 5 << 20 | 6);
    set_bat(&mut bytes, 9, 5 << 20 | 6);
    let report = check_bytes(&bytes, CheckFormat::Vhdx);
    let texts: Vec<&str> = report.findings.iter().map(|f| f.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "block 5 shares the MiB at 5242880 with block 1",
            "block 9 shares the MiB at 5242880 with block 1"
        ]
    );
}

#[test]
fn a_bitmap_in_a_disk_without_a_parent_is_an_error() {
    let mut bytes = made(&options(5000, DiskShape::Dynamic), |_| {});
    bytes.extend(vec![0; 1 << 20]);
    set_bat(&mut bytes, 4096, 4 << 20 | 6);
    let report = check_bytes(&bytes, CheckFormat::Vhdx);
    assert_eq!(codes(&report), ["vhdx-bitmap-stray", "vhdx-leaked-space"]);
}

#[test]
fn fixed_disks_without_space_and_leaks_are_notes() {
    let mut bytes = made(&options(4, DiskShape::Fixed), |_| {});
    set_bat(&mut bytes, 1, 2);
    let report = check_bytes(&bytes, CheckFormat::Vhdx);
    assert_eq!(
        codes(&report),
        ["vhdx-fixed-not-allocated", "vhdx-leaked-space"]
    );
    assert_eq!(report.worst, Some(Severity::Note));
    let Facts::Vhdx(facts) = report.facts else {
        panic!("it is a VHDX");
    };
    assert_eq!((facts.leaked_bytes, facts.leaked_at_end_bytes), (MIB, 0));
    let mut bytes = good();
    bytes.extend(vec![0; 3 << 20]);
    let Facts::Vhdx(facts) = check_bytes(&bytes, CheckFormat::Vhdx).facts else {
        panic!("it is a VHDX");
    };
    assert_eq!(
        (facts.leaked_bytes, facts.leaked_at_end_bytes),
        (3 * MIB, 3 * MIB)
    );
}

#[test]
fn the_last_block_may_end_after_the_file_but_not_the_disk() {
    let shape = CreateOptions {
        block_bytes: 2 << 20,
        ..options(5, DiskShape::Fixed)
    };
    let mut bytes = made(&shape, |_| {});
    bytes.truncate(bytes.len() - (1 << 20));
    assert_eq!(
        codes(&check_bytes(&bytes, CheckFormat::Vhdx)),
        ["vhdx-bat-tail-outside"]
    );
    bytes.truncate(bytes.len() - (1 << 20));
    assert_eq!(
        codes(&check_bytes(&bytes, CheckFormat::Vhdx)),
        ["vhdx-bat-outside"]
    );
}
