//! Logs: entries made by hand, and crash images of our driver.

use std::sync::Arc;

use super::vhdx::{BAT, edit_headers, good, made, options};
use super::*;
use crate::image::Image;
use crate::vhdx::layout::{MIB, checksum};
use crate::vhdx::{Kind as DiskShape, VhdxImage};

const LOG: usize = 1 << 20;
const GUID: [u8; 16] = [9; 16];

/// One entry with pages at these offsets, each filled with a byte; its own tail.
#[derive(Clone)]
struct Entry {
    at: usize,
    tail: u32,
    sequence: u64,
    pages: Vec<(u64, u8)>,
    zeros: Vec<(u64, u64)>,
    flushed: u64,
    last: u64,
}

impl Entry {
    fn new(at: usize, sequence: u64) -> Self {
        Self {
            at,
            tail: u32::try_from(at).unwrap(),
            sequence,
            pages: Vec::new(),
            zeros: Vec::new(),
            flushed: 6 * MIB,
            last: 6 * MIB,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096 * (1 + self.pages.len())];
        let length = u32::try_from(bytes.len()).unwrap();
        let count = u32::try_from(self.pages.len() + self.zeros.len()).unwrap();
        put(&mut bytes, 0, b"loge");
        put(&mut bytes, 8, &length.to_le_bytes());
        put(&mut bytes, 12, &self.tail.to_le_bytes());
        put(&mut bytes, 16, &self.sequence.to_le_bytes());
        put(&mut bytes, 24, &count.to_le_bytes());
        put(&mut bytes, 32, &GUID);
        put(&mut bytes, 48, &self.flushed.to_le_bytes());
        put(&mut bytes, 56, &self.last.to_le_bytes());
        let sequence = self.sequence.to_le_bytes();
        for (index, (offset, byte)) in self.pages.iter().enumerate() {
            let at = 64 + index * 32;
            put(&mut bytes, at, b"desc");
            put(&mut bytes, at + 4, &[*byte; 12]);
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 24, &sequence);
            let at = 4096 * (1 + index);
            put(&mut bytes, at, b"data");
            put(&mut bytes, at + 4, &sequence[4..]);
            put(&mut bytes, at + 8, &[*byte; 4084]);
            put(&mut bytes, at + 4092, &sequence[..4]);
        }
        for (index, (offset, length)) in self.zeros.iter().enumerate() {
            let at = 64 + (self.pages.len() + index) * 32;
            put(&mut bytes, at, b"zero");
            put(&mut bytes, at + 8, &length.to_le_bytes());
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 24, &sequence);
        }
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }
}

/// A good disk whose header names a log of these entries.
fn dirty(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = good();
    bytes[LOG..2 * LOG].fill(0);
    for entry in entries {
        for (index, page) in entry.encode().chunks(4096).enumerate() {
            let at = (entry.at + index * 4096) % LOG;
            put(&mut bytes, LOG + at, page);
        }
    }
    edit_headers(&mut bytes, |_, header| put(header, 48, &GUID));
    bytes
}

#[track_caller]
fn finds(bytes: &[u8], expected: &[&str]) -> Report {
    let report = check_bytes(bytes, CheckFormat::Vhdx);
    assert_eq!(codes(&report), expected, "{:#?}", report.findings);
    report
}

#[test]
fn a_log_is_replayed_before_the_rest_is_checked() {
    let zeros_bat = Entry {
        zeros: vec![(BAT as u64, 4096)],
        ..Entry::new(0, 5)
    };
    // The only effect: no block has space any more.
    finds(
        &dirty(std::slice::from_ref(&zeros_bat)),
        &["vhdx-leaked-space", "vhdx-log-dirty"],
    );
    let bad_bat = Entry {
        pages: vec![(BAT as u64, 0x0E)],
        ..Entry::new(4096, 6)
    };
    let newest = Entry {
        tail: 0,
        ..bad_bat.clone()
    };
    let report = finds(
        &dirty(&[zeros_bat.clone(), newest]),
        &[
            "vhdx-bat-outside",
            "vhdx-bat-reserved-bits",
            "vhdx-leaked-space",
            "vhdx-log-dirty",
        ],
    );
    let Facts::Vhdx(facts) = report.facts else {
        panic!("it is a VHDX");
    };
    assert_eq!((facts.log, facts.log_changes), (LogState::Dirty, 2));
    // In the other order of sequence numbers the zeros win.
    let later = Entry {
        at: 12_288,
        sequence: 7,
        tail: 4096,
        ..zeros_bat
    };
    finds(
        &dirty(&[bad_bat, later]),
        &["vhdx-leaked-space", "vhdx-log-dirty"],
    );
}

#[test]
fn the_tail_decides_where_a_replay_begins() {
    let wreck = Entry {
        pages: vec![(BAT as u64, 0x0E)],
        ..Entry::new(0, 5)
    };
    // The newest entry needs only itself: what the older one would do is not done.
    let alone = Entry::new(8192, 6);
    finds(&dirty(&[wreck.clone(), alone]), &["vhdx-log-dirty"]);
    // It names a tail that is not there: nothing can be believed.
    let orphan = Entry {
        tail: 40_960,
        ..Entry::new(8192, 6)
    };
    finds(&dirty(&[wreck.clone(), orphan]), &["vhdx-log-broken"]);
    // A higher sequence number of a whole run wins, wherever it is; entries go around the end.
    let around = Entry {
        pages: vec![(2 * MIB + 512 * 1024, 7)],
        ..Entry::new(LOG - 4096, 90)
    };
    let wreck = Entry {
        at: 16_384,
        tail: 16_384,
        ..wreck
    };
    finds(&dirty(&[wreck, around]), &["vhdx-log-dirty"]);
}

#[test]
fn damage_of_logs() {
    let page = |offset: u64| Entry {
        pages: vec![(offset, 0)],
        ..Entry::new(0, 5)
    };
    finds(&dirty(&[]), &["vhdx-log-broken"]);
    let mut torn = dirty(&[page(BAT as u64)]);
    torn[LOG + 5000] ^= 1;
    finds(&torn, &["vhdx-log-broken"]);
    let mut version = dirty(&[Entry::new(0, 5)]);
    edit_headers(&mut version, |_, header| header[64] = 1);
    finds(&version, &["vhdx-log-version"]);
    let mut empty = good();
    edit_headers(&mut empty, |_, header| header[64] = 1);
    finds(&empty, &[]);
    for forbidden in [0, 65_536, 131_072, MIB, 6 * MIB] {
        finds(&dirty(&[page(forbidden)]), &["vhdx-log-target"]);
    }
    // Bytes of a block.
    finds(
        &dirty(&[page(4 * MIB + 8192)]),
        &["vhdx-log-dirty", "vhdx-log-target"],
    );
    let endless = Entry {
        zeros: vec![(2 * MIB, u64::MAX - 3 * MIB + 1)],
        ..Entry::new(0, 5)
    };
    finds(&dirty(&[endless]), &["vhdx-log-target"]);
    let cut = Entry {
        flushed: 7 * MIB,
        ..Entry::new(0, 5)
    };
    finds(&dirty(&[cut]), &["vhdx-log-file-cut"]);
    let huge = Entry {
        last: 1 << 60,
        ..Entry::new(0, 5)
    };
    finds(&dirty(&[huge]), &["vhdx-log-target"]);
    // The file is to grow, and what is in the grown part counts as there.
    let grows = Entry {
        last: 8 * MIB,
        ..Entry::new(0, 5)
    };
    finds(&dirty(&[grows]), &["vhdx-leaked-space", "vhdx-log-dirty"]);
    let mut long = good();
    edit_headers(&mut long, |_, header| {
        put(header, 48, &GUID);
        put(header, 68, &(512_u32 << 20).to_le_bytes());
    });
    finds(&long, &["vhdx-log-place"]);
}

#[test]
fn entries_that_overlap_without_end_are_not_all_read() {
    let mut bytes = dirty(&[]);
    for at in (0..LOG).step_by(4096) {
        put(&mut bytes, LOG + at, &Entry::new(0, 5).encode());
        put(&mut bytes, LOG + at + 8, &(1_u32 << 20).to_le_bytes());
    }
    finds(&bytes, &["vhdx-log-tangled"]);
}

#[test]
fn a_killed_writer_leaves_a_disk_that_is_sound_but_for_its_log() {
    let storage = FakeStorage::new();
    let shape = options(16, DiskShape::Dynamic);
    let image = VhdxImage::create(Arc::new(storage.clone()), path(), &shape).unwrap();
    for block in 0..8 {
        image.write_at(&[1; 512], block * MIB, false).unwrap();
        image.flush().unwrap();
    }
    let bytes = storage.crash(0).content(path()).unwrap();
    drop(image);
    let report = check_bytes(&bytes, CheckFormat::Vhdx);
    assert_eq!(faults(&report), ["vhdx-log-dirty"]);
    assert!(made(&shape, |_| {}).len() < bytes.len());
}
