//! VHD files, made and damaged by hand.

use super::*;

const BAT: usize = 1536;
pub(super) const BLOCK: usize = 64 << 10;
/// A block's sector bitmap, then its data.
pub(super) const STEP: usize = 512 + BLOCK;
const BLOCKS: usize = 16;
/// Where the first block of the good disks is.
pub(super) const FIRST: usize = 2048;
const ID: [u8; 16] = [0x11; 16];
const PARENT: [u8; 16] = [0x22; 16];

fn seal(bytes: &mut [u8], from: usize, length: usize, at: usize) {
    put(bytes, from + at, &[0; 4]);
    let sum = bytes[from..from + length]
        .iter()
        .map(|byte| u32::from(*byte))
        .sum::<u32>();
    put(bytes, from + at, &(!sum).to_be_bytes());
}

fn footer(kind: u32, id: [u8; 16]) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2_u32.to_be_bytes());
    put(&mut footer, 12, &0x1_0000_u32.to_be_bytes());
    let data_offset = if kind == 2 { u64::MAX } else { 512 };
    put(&mut footer, 16, &data_offset.to_be_bytes());
    put(&mut footer, 28, b"test");
    for at in [40, 48] {
        put(&mut footer, at, &((BLOCK * BLOCKS) as u64).to_be_bytes());
    }
    put(&mut footer, 56, &[0, 32, 4, 16]);
    put(&mut footer, 60, &kind.to_be_bytes());
    put(&mut footer, 68, &id);
    seal(&mut footer, 0, 512, 64);
    footer
}

pub(super) fn fixed() -> Vec<u8> {
    let mut bytes = vec![7; BLOCK * BLOCKS];
    bytes.extend(footer(2, ID));
    bytes
}

fn sparse(kind: u32) -> Vec<u8> {
    let mut bytes = footer(kind, ID);
    bytes.resize(FIRST, 0);
    put(&mut bytes, 512, b"cxsparse");
    put(&mut bytes, 520, &[255; 8]);
    put(&mut bytes, 528, &(BAT as u64).to_be_bytes());
    put(&mut bytes, 536, &0x1_0000_u32.to_be_bytes());
    put(
        &mut bytes,
        540,
        &u32::try_from(BLOCKS).unwrap().to_be_bytes(),
    );
    put(
        &mut bytes,
        544,
        &u32::try_from(BLOCK).unwrap().to_be_bytes(),
    );
    put(&mut bytes, BAT, &[255; BLOCKS * 4]);
    seal(&mut bytes, 512, 1024, 36);
    for block in [3, 1] {
        let sector = u32::try_from(bytes.len() / 512).unwrap();
        put(&mut bytes, BAT + block * 4, &sector.to_be_bytes());
        bytes.extend([255; 16]);
        bytes.extend([0; 496]);
        bytes.extend([9; BLOCK]);
    }
    let end = bytes[..512].to_vec();
    bytes.extend(end);
    bytes
}

/// Block 3 at 2048, block 1 after it, the footer.
pub(super) fn dynamic() -> Vec<u8> {
    sparse(3)
}

/// The same, with a parent that its header and one locator name.
fn child() -> Vec<u8> {
    let mut bytes = sparse(4);
    put(&mut bytes, 552, &PARENT);
    let name: Vec<u8> = "parent.vhd"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    put(&mut bytes, 576, &name);
    let end = bytes.len() - 512;
    let text: Vec<u8> = r".\parent.vhd"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut locator = text.clone();
    locator.resize(512, 0);
    bytes.splice(end..end, locator);
    put(&mut bytes, 1088, b"W2ru");
    put(&mut bytes, 1092, &512_u32.to_be_bytes());
    put(
        &mut bytes,
        1096,
        &u32::try_from(text.len()).unwrap().to_be_bytes(),
    );
    put(&mut bytes, 1104, &(end as u64).to_be_bytes());
    seal(&mut bytes, 512, 1024, 36);
    bytes
}

fn edit_footers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    let end = bytes.len() - 512;
    for at in [0, end] {
        if bytes[at..].starts_with(b"conectix") {
            change(&mut bytes[at..at + 512]);
            seal(bytes, at, 512, 64);
        }
    }
}

fn edit_header(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    change(&mut bytes[512..1536]);
    seal(bytes, 512, 1024, 36);
}

fn set_bat(bytes: &mut [u8], block: usize, sector: usize) {
    let sector = u32::try_from(sector).unwrap();
    put(bytes, BAT + block * 4, &sector.to_be_bytes());
}

type Case = (&'static str, fn(&mut Vec<u8>));

#[track_caller]
fn found_alone(good: fn() -> Vec<u8>, cases: &[Case]) {
    for (index, (code, damage)) in cases.iter().enumerate() {
        let mut bytes = good();
        damage(&mut bytes);
        let report = check_bytes(&bytes, CheckFormat::Vhd);
        assert_eq!(
            codes(&report),
            [*code],
            "case {index}: {:#?}",
            report.findings
        );
    }
}

#[test]
fn sound_disks_are_clean() {
    for bytes in [fixed(), dynamic()] {
        let report = check_bytes(&bytes, CheckFormat::Vhd);
        assert_eq!(codes(&report), [""; 0], "{:#?}", report.findings);
    }
    let Facts::Vhd(facts) = check_bytes(&dynamic(), CheckFormat::Vhd).facts else {
        panic!("it is a VHD");
    };
    assert_eq!((facts.blocks, facts.blocks_present), (16, 2));
    assert_eq!(facts.geometry_bytes, facts.disk_bytes);
    assert_eq!(facts.used_end, (FIRST + 2 * STEP) as u64);
}

fn end(bytes: &[u8]) -> usize {
    bytes.len() - 512
}

#[test]
fn damage_of_footers() {
    found_alone(
        dynamic,
        &[
            ("vhd-file-too-short", |bytes| bytes.truncate(500)),
            ("vhd-footer-invalid", |bytes| {
                let at = end(bytes);
                bytes[at] = 0;
            }),
            ("vhd-footer-invalid", |bytes| {
                let at = end(bytes);
                bytes[at + 66] ^= 1;
            }),
            ("vhd-footer-invalid", |bytes| {
                bytes.truncate(bytes.len() - 512)
            }),
            ("vhd-copy-invalid", |bytes| bytes[66] ^= 1),
            ("vhd-copy-invalid", |bytes| bytes[0] = 0),
            ("vhd-footers-invalid", |bytes| {
                let at = end(bytes);
                (bytes[66], bytes[at + 66]) = (0, 0);
            }),
            ("vhd-footers-differ", |bytes| {
                bytes[70] ^= 1;
                seal(bytes, 0, 512, 64);
            }),
            ("vhd-footers-apart", |bytes| {
                bytes[25] ^= 1;
                seal(bytes, 0, 512, 64);
            }),
            ("vhd-footer-reserved", |bytes| {
                edit_footers(bytes, |footer| footer[11] = 0)
            }),
            ("vhd-footer-reserved", |bytes| {
                edit_footers(bytes, |footer| footer[500] = 1)
            }),
            ("vhd-saved-state", |bytes| {
                edit_footers(bytes, |footer| footer[84] = 1)
            }),
            ("vhd-version", |bytes| {
                edit_footers(bytes, |footer| footer[13] = 2)
            }),
            ("vhd-type", |bytes| {
                bytes[0] = 0;
                edit_footers(bytes, |footer| footer[63] = 5);
            }),
            ("vhd-size", |bytes| {
                edit_footers(bytes, |footer| footer[48..56].fill(0))
            }),
            ("vhd-size", |bytes| {
                edit_footers(bytes, |footer| footer[49] = 1)
            }),
            ("vhd-geometry", |bytes| {
                edit_footers(bytes, |footer| footer[59] = 15)
            }),
            ("vhd-header-place", |bytes| {
                edit_footers(bytes, |footer| footer[16] = 1)
            }),
            ("vhd-header-place", |bytes| {
                edit_footers(bytes, |footer| footer[23] = 1)
            }),
        ],
    );
}

#[test]
fn damage_of_fixed_disks() {
    found_alone(
        fixed,
        &[
            ("vhd-data-offset", |bytes| {
                edit_footers(bytes, |footer| footer[16] = 1)
            }),
            ("vhd-footers-invalid", |bytes| {
                let at = end(bytes);
                bytes[at + 66] ^= 1;
            }),
            ("vhd-footer-old", |bytes| bytes.truncate(bytes.len() - 1)),
            ("vhd-fixed-length", |bytes| drop(bytes.drain(..512))),
            ("vhd-leaked-space", |bytes| {
                bytes.splice(..0, [0; 512]);
            }),
        ],
    );
    // What a guest writes into the first sector of a fixed disk is no footer.
    let mut bytes = fixed();
    put(&mut bytes, 0, &footer(3, PARENT));
    assert_eq!(codes(&check_bytes(&bytes, CheckFormat::Vhd)), [""; 0]);
    let mut bytes = fixed();
    edit_footers(&mut bytes, |footer| put(footer, 56, &[255, 255, 16, 255]));
    assert_eq!(codes(&check_bytes(&bytes, CheckFormat::Vhd)), [""; 0]);
}

#[test]
fn damage_of_the_dynamic_header() {
    found_alone(
        dynamic,
        &[
            ("vhd-header-invalid", |bytes| bytes[512] = 0),
            ("vhd-header-invalid", |bytes| bytes[512 + 38] ^= 1),
            ("vhd-version", |bytes| {
                edit_header(bytes, |header| header[25] = 2)
            }),
            ("vhd-header-reserved", |bytes| {
                edit_header(bytes, |header| header[8] = 0)
            }),
            ("vhd-header-reserved", |bytes| {
                edit_header(bytes, |header| header[1000] = 1)
            }),
            ("vhd-block-size", |bytes| {
                edit_header(bytes, |header| header[32..36].fill(0))
            }),
            ("vhd-block-size", |bytes| {
                edit_header(bytes, |header| header[35] = 1)
            }),
            ("vhd-bat-place", |bytes| {
                edit_header(bytes, |header| header[16] = 1)
            }),
            ("vhd-bat-place", |bytes| {
                edit_header(bytes, |header| header[22] = 2)
            }),
            ("vhd-bat-place", |bytes| {
                edit_header(bytes, |header| header[23] = 1)
            }),
            ("vhd-bat-place", |bytes| {
                edit_header(bytes, |header| header[28] = 255)
            }),
            ("vhd-bat-too-short", |bytes| {
                edit_header(bytes, |header| header[31] = 15)
            }),
            ("vhd-parent-stray", |bytes| {
                edit_header(bytes, |header| header[41] = 1)
            }),
        ],
    );
}

#[test]
fn damage_of_the_bat_and_bitmaps() {
    found_alone(
        dynamic,
        &[
            ("vhd-bat-shared-block", |bytes| {
                set_bat(bytes, 7, FIRST / 512)
            }),
            ("vhd-bat-overlap", |bytes| set_bat(bytes, 7, 0)),
            ("vhd-bat-overlap", |bytes| set_bat(bytes, 7, 1)),
            ("vhd-bat-overlap", |bytes| set_bat(bytes, 7, BAT / 512)),
            ("vhd-bat-overlap", |bytes| {
                set_bat(bytes, 7, (FIRST + STEP) / 512 + 1)
            }),
            ("vhd-bat-outside", |bytes| {
                set_bat(bytes, 7, (FIRST + 2 * STEP) / 512)
            }),
            ("vhd-bat-outside", |bytes| set_bat(bytes, 7, 0xFFFF_FFFE)),
            ("vhd-bitmap-empty", |bytes| {
                bytes[FIRST..FIRST + 512].fill(0)
            }),
            ("vhd-bitmap-partial", |bytes| bytes[FIRST] = 0x7F),
        ],
    );
    let mut bytes = dynamic();
    bytes.splice(FIRST..FIRST, [0; 3584]);
    set_bat(&mut bytes, 3, 5632 / 512);
    set_bat(&mut bytes, 1, (5632 + STEP) / 512);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(
        codes(&report),
        [""; 0],
        "unaligned throughout {:#?}",
        report.findings
    );
    bytes.splice(5632..5632, [0; 512 * 3]);
    set_bat(&mut bytes, 3, (5632 + 512 * 3) / 512);
    set_bat(&mut bytes, 1, (5632 + 512 * 3 + STEP) / 512);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(codes(&report), ["vhd-alignment"]);
    bytes.splice(7168..7168, [0; 8192]);
    set_bat(&mut bytes, 3, (7168 + 8192) / 512);
    set_bat(&mut bytes, 1, (7168 + 8192 + STEP) / 512);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(codes(&report), ["vhd-alignment", "vhd-leaked-space"]);
    let mut bytes = dynamic();
    edit_header(&mut bytes, |header| header[31] = 40);
    put(&mut bytes, BAT + 64, &[255; 24 * 4]);
    assert_eq!(codes(&check_bytes(&bytes, CheckFormat::Vhd)), [""; 0]);
    set_bat(&mut bytes, 3, 0xFFFF_FFFF);
    set_bat(&mut bytes, 30, FIRST / 512);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(
        codes(&report),
        ["vhd-bat-beyond-end"],
        "{:#?}",
        report.findings
    );
}

#[test]
fn both_blocks_that_share_space_are_named() {
    let mut bytes = dynamic();
    set_bat(&mut bytes, 7, FIRST / 512);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(
        report.findings[0].text,
        "block 7 shares space at 2048 with block 3"
    );
    assert_eq!(report.findings[0].offset, (BAT + 28) as u64);
    set_bat(&mut bytes, 7, FIRST / 512 + 5);
    let report = check_bytes(&bytes, CheckFormat::Vhd);
    assert_eq!(
        report.counts.codes["vhd-bat-shared-block"], 2,
        "partly over each of both"
    );
}

#[test]
fn parents_are_found_and_compared() {
    let parent = {
        let mut parent = fixed();
        edit_footers(&mut parent, |footer| put(footer, 68, &PARENT));
        parent
    };
    let checked = |child: &[u8], parent: &[u8]| {
        let storage = storage_of(&[("/disk", child), ("/parent.vhd", parent)]);
        let report = check(&storage, path(), CheckOptions::default()).unwrap();
        codes(&report)
    };
    assert_eq!(checked(&child(), &parent), [""; 0]);
    assert_eq!(checked(&child(), &fixed()), ["vhd-parent-other"]);
    assert_eq!(checked(&child(), &[1; 2000]), ["vhd-parent-unreadable"]);
    assert_eq!(
        codes(&check_bytes(&child(), CheckFormat::Vhd)),
        ["vhd-parent-not-found"]
    );
    // Type 4, and nothing that names a parent.
    assert_eq!(
        codes(&check_bytes(&sparse(4), CheckFormat::Vhd)),
        ["vhd-parent-locator"]
    );
    let mut outside = child();
    edit_header(&mut outside, |header| header[592] = 1);
    assert_eq!(
        checked(&outside, &parent),
        ["vhd-leaked-space", "vhd-parent-locator"][1..]
    );
    let mut over = child();
    edit_header(&mut over, |header| header[592..600].fill(0));
    assert_eq!(checked(&over, &parent), ["vhd-parent-locator"]);
    let storage = storage_of(&[("/disk", &child()), ("/parent.vhd", &parent)]);
    let _writer = open_locked(&storage, Path::new("/parent.vhd"), false).unwrap();
    let report = check(&storage, path(), CheckOptions::default()).unwrap();
    assert_eq!(codes(&report), ["vhd-parent-in-use"]);
}
