//! Differencing VHDX files, made by hand, and their parents.

use super::vhdx::{BAT, HEADERS, METADATA, add_item, edit_headers, good, set_bat};
use super::*;
use crate::vhdx::layout::guid;
use crate::vhdx::metadata::PARENT_LOCATOR;

const ITEMS: usize = METADATA + 65_536;
const TYPE: u128 = 0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913;
/// Index of the only bitmap entry: 4096 blocks of 1 MiB are before it.
const BITMAP: usize = 4096;

fn locator(keys: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = guid(TYPE).to_vec();
    bytes.extend([0; 2]);
    bytes.extend(u16::try_from(keys.len()).unwrap().to_le_bytes());
    let mut text: Vec<u8> = Vec::new();
    let base = 20 + keys.len() * 12;
    for (key, value) in keys {
        let mut place = |string: &str| {
            let from = u32::try_from(base + text.len()).unwrap();
            text.extend(string.encode_utf16().flat_map(u16::to_le_bytes));
            (from, u16::try_from(string.len() * 2).unwrap())
        };
        let ((key, key_bytes), (value, value_bytes)) = (place(key), place(value));
        bytes.extend(key.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes.extend(key_bytes.to_le_bytes());
        bytes.extend(value_bytes.to_le_bytes());
    }
    bytes.extend(text);
    bytes
}

fn linkage(parent: &[u8]) -> String {
    let current = HEADERS[usize::from(parent[HEADERS[1] + 8] > parent[HEADERS[0] + 8])];
    let id = parent[current + 32..current + 48].try_into().unwrap();
    format!("{{{}}}", uuid::Uuid::from_bytes_le(id))
}

fn child_of(keys: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = good();
    bytes[ITEMS + 4] = 2;
    add_item(&mut bytes, PARENT_LOCATOR, 4, &locator(keys));
    bytes
}

/// A child with block 0 partially and block 1 wholly present, and its parent.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let parent = good();
    let link = linkage(&parent);
    let mut child = child_of(&[
        ("parent_linkage", &link),
        ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}"),
        ("relative_path", r".\parent.vhdx"),
        ("absolute_win32_path", r"C:\disks\parent.vhdx"),
    ]);
    child.extend(vec![0; 1 << 20]);
    child[6 << 20] = 0b101;
    set_bat(&mut child, 0, 4 << 20 | 7);
    set_bat(&mut child, BITMAP, 6 << 20 | 6);
    (child, parent)
}

fn check_pair(child: &[u8], parent: &[u8]) -> Report {
    let storage = storage_of(&[("/disk", child), ("/parent.vhdx", parent)]);
    check(&storage, path(), CheckOptions::default()).unwrap()
}

#[test]
fn a_sound_child_beside_its_parent_is_clean() {
    let (child, parent) = pair();
    let report = check_pair(&child, &parent);
    assert_eq!(codes(&report), [""; 0], "{:#?}", report.findings);
    let Facts::Vhdx(facts) = &report.facts else {
        panic!("it is a VHDX");
    };
    assert_eq!(facts.kind, Some(DiskKind::Differencing));
    assert_eq!(
        (facts.blocks_present, facts.blocks_partial, facts.bitmaps),
        (1, 1, 1)
    );
    assert_eq!(facts.parent.as_deref(), Some("/parent.vhdx"));
    // Alone, it is as good, but its link was not looked at.
    let report = check_bytes(&child, CheckFormat::Vhdx);
    assert_eq!(codes(&report), ["vhdx-parent-not-found"]);
}

type Case = (&'static [&'static str], fn(&mut Vec<u8>));

#[test]
fn damage_of_blocks_and_bitmaps() {
    let cases: [Case; 9] = [
        (&["vhdx-bitmap-missing", "vhdx-leaked-space"], |bytes| {
            set_bat(bytes, BITMAP, 0)
        }),
        (
            &[
                "vhdx-bitmap-missing",
                "vhdx-bitmap-state",
                "vhdx-leaked-space",
            ],
            |bytes| {
                set_bat(bytes, BITMAP, 6 << 20 | 2);
            },
        ),
        (
            &[
                "vhdx-bat-no-offset",
                "vhdx-bitmap-missing",
                "vhdx-leaked-space",
            ],
            |bytes| {
                set_bat(bytes, BITMAP, 6);
            },
        ),
        (&["vhdx-bat-shared-block", "vhdx-leaked-space"], |bytes| {
            set_bat(bytes, BITMAP, 5 << 20 | 6);
        }),
        (&["vhdx-bat-outside", "vhdx-leaked-space"], |bytes| {
            set_bat(bytes, BITMAP, 7 << 20 | 6);
        }),
        (&["vhdx-bat-reserved-bits"], |bytes| {
            set_bat(bytes, BITMAP, 6 << 20 | 14)
        }),
        (&["vhdx-bitmap-beyond-end"], |bytes| {
            bytes[(6 << 20) + 4096] = 1
        }),
        (&["vhdx-bitmap-beyond-end"], |bytes| {
            bytes[(7 << 20) - 1] = 128
        }),
        (&["vhdx-bat-state"], |bytes| set_bat(bytes, 1, 5 << 20 | 4)),
    ];
    for (expected, damage) in cases {
        let (mut child, parent) = pair();
        damage(&mut child);
        let report = check_pair(&child, &parent);
        assert_eq!(codes(&report), expected, "{:#?}", report.findings);
    }
    // The last sector of the disk may be there; wholly present blocks need no bitmap.
    let (mut child, parent) = pair();
    child[(6 << 20) + 4095] = 128;
    assert_eq!(codes(&check_pair(&child, &parent)), [""; 0]);
    set_bat(&mut child, 0, 4 << 20 | 6);
    set_bat(&mut child, BITMAP, 0);
    assert_eq!(codes(&check_pair(&child, &parent)), ["vhdx-leaked-space"]);
}

#[test]
fn damage_of_the_locator() {
    let link = "{11111111-2222-3333-4444-555555555555}";
    let bad: [&[(&str, &str)]; 5] = [
        &[],
        &[("relative_path", "a")],
        &[("parent_linkage", link)],
        &[("parent_linkage", "none"), ("relative_path", "a")],
        &[
            ("parent_linkage", link),
            ("relative_path", "a"),
            ("relative_path", "b"),
        ],
    ];
    for keys in bad {
        let report = check_bytes(&child_of(keys), CheckFormat::Vhdx);
        assert_eq!(codes(&report), ["vhdx-parent-locator"], "{keys:?}");
    }
    let mut other_type = child_of(bad[2]);
    other_type[METADATA + (512 << 10)] ^= 1;
    let mut missing = good();
    missing[ITEMS + 4] = 2;
    let mut outside = child_of(&[("parent_linkage", link), ("relative_path", "a")]);
    put(
        &mut outside,
        METADATA + (512 << 10) + 20,
        &u32::MAX.to_le_bytes(),
    );
    for bytes in [other_type, missing, outside] {
        let report = check_bytes(&bytes, CheckFormat::Vhdx);
        assert_eq!(codes(&report), ["vhdx-parent-locator"]);
    }
}

#[test]
fn a_parent_that_is_not_the_one_is_found() {
    let (child, parent) = pair();
    let mut changed = parent.clone();
    edit_headers(&mut changed, |_, header| header[40] ^= 1);
    assert_eq!(
        codes(&check_pair(&child, &changed)),
        ["vhdx-parent-changed"]
    );
    let mut sectors = parent.clone();
    put(&mut sectors, ITEMS + 32, &4096_u32.to_le_bytes());
    assert_eq!(
        codes(&check_pair(&child, &sectors)),
        ["vhdx-parent-sectors"]
    );
    let mut damaged = parent.clone();
    damaged[METADATA] = 0;
    for bad in [damaged, vec![1; 4096], Vec::new()] {
        assert_eq!(codes(&check_pair(&child, &bad)), ["vhdx-parent-unreadable"]);
    }
    let storage = storage_of(&[("/disk", &child), ("/parent.vhdx", &parent)]);
    let writer = open_locked(&storage, Path::new("/parent.vhdx"), false).unwrap();
    let report = check(&storage, path(), CheckOptions::default()).unwrap();
    assert_eq!(codes(&report), ["vhdx-parent-in-use"]);
    drop(writer);
    // The second linkage counts, too: a merge that was interrupted.
    let link = linkage(&parent);
    let bytes = child_of(&[
        ("parent_linkage", "{11111111-2222-3333-4444-555555555555}"),
        ("parent_linkage2", &link),
        ("relative_path", r"..\elsewhere\parent.vhdx"),
    ]);
    assert_eq!(codes(&check_pair(&bytes, &parent)), [""; 0]);
}

#[test]
fn partial_blocks_of_a_cut_table_have_no_bitmap() {
    let (mut child, parent) = pair();
    // 200,000 blocks do not fit a BAT of 1 MiB; one of the last that fit, whose chunk's bitmap does not, is partial.
    put(&mut child, ITEMS + 8, &(200_000_u64 << 20).to_le_bytes());
    child.extend(vec![0; 1 << 20]);
    put(
        &mut child,
        BAT + (131_071 * 8),
        &(7_u64 << 20 | 7).to_le_bytes(),
    );
    let found = faults(&check_pair(&child, &parent));
    assert_eq!(found, ["vhdx-bat-too-short", "vhdx-bitmap-missing"]);
}
