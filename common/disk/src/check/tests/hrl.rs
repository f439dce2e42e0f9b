//! Change logs of our writer, and damaged by hand.

use super::*;
use crate::hrl::format::{
    BLOCK_CHECKSUM_AT, ENTRY_CHECKSUM_AT, HEADER_BYTES, HEADER_CHECKSUM_AT, sum,
};
use crate::hrl::{HrlId, HrlOptions, HrlTime, HrlWriter};

/// Two blocks of metadata: 130 entries of 512 bytes, one of zeros.
pub(super) fn good() -> Vec<u8> {
    let storage = FakeStorage::new();
    let options = HrlOptions {
        unique_id: HrlId([1; 16]),
        previous_id: HrlId([2; 16]),
        data_write_id: HrlId([3; 16]),
        created: HrlTime(500_000_000),
    };
    let mut writer = HrlWriter::create(&storage, path(), options).unwrap();
    for index in 0..130_u32 {
        let byte = u8::try_from(index + 1).unwrap();
        let offset = u64::from(index) * 1024;
        writer
            .append(offset, &[byte; 512], HrlTime(500_000_001 + index))
            .unwrap();
    }
    writer
        .append_zeros(1 << 20, 65_536, HrlTime(500_001_000))
        .unwrap();
    writer.finish(HrlTime(500_002_000)).unwrap();
    storage.content(path()).unwrap()
}

/// The first metadata block: after the data of 127 entries.
const FIRST: usize = HEADER_BYTES + 127 * 512;

fn last(bytes: &[u8]) -> usize {
    bytes.len() - 4096
}

fn seal(bytes: &mut [u8], from: usize, length: usize, at: usize) {
    let others =
        sum(&bytes[from..from + at]).wrapping_add(sum(&bytes[from + at + 4..from + length]));
    put(bytes, from + at, &(!others).to_le_bytes());
}

fn edit_header(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    change(&mut bytes[..HEADER_BYTES]);
    seal(bytes, 0, HEADER_BYTES, HEADER_CHECKSUM_AT);
}

fn edit_block(bytes: &mut [u8], from: usize, change: impl Fn(&mut [u8])) {
    change(&mut bytes[from..from + 32]);
    seal(bytes, from, 32, BLOCK_CHECKSUM_AT);
}

fn edit_entry(bytes: &mut [u8], block: usize, index: usize, change: impl Fn(&mut [u8])) {
    let from = block + 32 * (index + 1);
    change(&mut bytes[from..from + 32]);
    seal(bytes, from, 32, ENTRY_CHECKSUM_AT);
}

type Case = (&'static str, fn(&mut Vec<u8>));

#[track_caller]
fn found_alone(cases: &[Case]) {
    for (code, damage) in cases {
        let mut bytes = good();
        damage(&mut bytes);
        let report = check_bytes(&bytes, CheckFormat::Hrl);
        assert_eq!(codes(&report), [*code], "{:#?}", report.findings);
    }
}

#[test]
fn a_sound_log_is_clean() {
    let report = check_bytes(&good(), CheckFormat::Hrl);
    assert_eq!(codes(&report), [""; 0], "{:#?}", report.findings);
    let Facts::Hrl(facts) = report.facts else {
        panic!("it is a change log");
    };
    assert!(facts.closed);
    assert_eq!((facts.entries, facts.metadata_blocks), (131, 2));
    assert_eq!(facts.data_bytes, 130 * 512 + 65_536);
}

#[test]
fn damage_of_the_header() {
    found_alone(&[
        ("hrl-file-too-short", |bytes| bytes.truncate(4000)),
        ("hrl-cookie", |bytes| bytes[0] = 0),
        ("hrl-header-checksum", |bytes| bytes[70] ^= 1),
        ("hrl-version", |bytes| {
            edit_header(bytes, |header| header[10] = 1)
        }),
        ("hrl-version", |bytes| {
            edit_header(bytes, |header| header[104] = 1)
        }),
        ("hrl-header-error", |bytes| {
            edit_header(bytes, |header| header[52] = 1)
        }),
        ("hrl-header-reserved", |bytes| {
            edit_header(bytes, |header| header[4000] = 1)
        }),
        ("hrl-metadata-bytes", |bytes| {
            edit_header(bytes, |header| header[56] = 1)
        }),
        ("hrl-metadata-bytes", |bytes| {
            edit_header(bytes, |header| header[57] = 0)
        }),
        ("hrl-not-closed", |bytes| {
            edit_header(bytes, |header| header[44..52].fill(0))
        }),
        ("hrl-end", |bytes| {
            edit_header(bytes, |header| header[51] = 255)
        }),
        ("hrl-end", |bytes| bytes.truncate(bytes.len() - 512)),
        ("hrl-size", |bytes| {
            edit_header(bytes, |header| header[33] ^= 1)
        }),
        ("hrl-entry-count", |bytes| {
            edit_header(bytes, |header| header[96] ^= 1)
        }),
        ("hrl-after-end", |bytes| bytes.extend([0; 512])),
    ]);
}

#[test]
fn damage_of_metadata_blocks() {
    found_alone(&[
        ("hrl-block-checksum", |bytes| bytes[FIRST] ^= 1),
        ("hrl-block-checksum", |bytes| {
            let at = last(bytes);
            bytes[at + 8] ^= 1;
        }),
        ("hrl-block-chain", |bytes| {
            edit_block(bytes, FIRST, |block| block[0] = 1)
        }),
        ("hrl-block-chain", |bytes| {
            let at = last(bytes);
            edit_block(bytes, at, |block| block[7] = 255);
        }),
        ("hrl-block-reserved", |bytes| {
            edit_block(bytes, FIRST, |block| block[20] = 1)
        }),
        ("hrl-block-reserved", |bytes| {
            let at = bytes.len() - 1;
            bytes[at] = 1;
        }),
        ("hrl-entry-operation", |bytes| {
            edit_entry(bytes, FIRST, 5, |entry| entry[20] = 2)
        }),
        ("hrl-entry-operation", |bytes| {
            edit_entry(bytes, FIRST, 5, |entry| entry[25] = 1)
        }),
        ("hrl-entry-range", |bytes| {
            edit_entry(bytes, FIRST, 5, |entry| entry[0] = 1)
        }),
        ("hrl-entry-range", |bytes| {
            edit_entry(bytes, FIRST, 5, |entry| {
                put(entry, 0, &(u64::MAX - 511).to_le_bytes())
            });
        }),
        ("hrl-entry-time", |bytes| {
            edit_entry(bytes, FIRST, 5, |entry| entry[19] = 0)
        }),
        ("hrl-data-checksum", |bytes| bytes[HEADER_BYTES + 700] ^= 1),
        ("hrl-data-checksum", |bytes| {
            let at = last(bytes) - 1000;
            bytes[at] ^= 1;
        }),
        // Windows gives none.
        ("hrl-data-place", |bytes| {
            edit_entry(bytes, FIRST, 126, |entry| {
                put(entry, 12, &1024_u32.to_le_bytes());
                put(entry, 21, &[0; 4]);
            });
        }),
    ]);
}

#[test]
fn damage_that_shows_in_more_than_one_place() {
    let mut bytes = good();
    bytes[FIRST + 32 * 6] ^= 1;
    assert_eq!(
        codes(&check_bytes(&bytes, CheckFormat::Hrl)),
        ["hrl-entry-checksum"]
    );
    let mut bytes = good();
    edit_block(&mut bytes, FIRST, |block| block[8] = 255);
    let found = codes(&check_bytes(&bytes, CheckFormat::Hrl));
    assert_eq!(found, ["hrl-block-entries", "hrl-entry-count"]);
    let mut bytes = good();
    edit_block(&mut bytes, FIRST, |block| block[8] = 126);
    let found = codes(&check_bytes(&bytes, CheckFormat::Hrl));
    assert_eq!(
        found,
        ["hrl-block-reserved", "hrl-data-place", "hrl-entry-count"]
    );
    let mut bytes = good();
    edit_entry(&mut bytes, FIRST, 3, |entry| put(entry, 21, &[0; 4]));
    let report = check_bytes(&bytes, CheckFormat::Hrl);
    let Facts::Hrl(facts) = &report.facts else {
        panic!("it is a change log");
    };
    assert_eq!(
        (codes(&report), facts.entries_without_checksum),
        (vec![], 1)
    );
}
