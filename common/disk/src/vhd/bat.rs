//! The table of blocks in memory.
//!
//! Owns: one sector number for each block of the table. Gives out where blocks are.
//!
//! Does not do: the order of changes (see `core`), the choice of space (see `space`).
//!
//! # Invariants
//! 1. An entry in memory names a block only once the file's table does, and the block's bytes and bitmap are written.

use std::sync::atomic::{AtomicU32, Ordering};

use super::layout::{SECTOR, Shape, bat_bytes, corrupt, to_u64, to_usize, u32_at};
use crate::error::DiskError;
use crate::storage::BlockFile;

pub(super) const ABSENT: u32 = u32::MAX;
const SCAN_BYTES: u64 = 1 << 20;

pub(super) struct Bat {
    /// In the file, in bytes.
    pub(super) offset: u64,
    entries: Vec<AtomicU32>,
}

/// A range of the file, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Used {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What names the range, and where that is.
    pub(super) named_by: &'static str,
    pub(super) named_at: u64,
}

impl Used {
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl Bat {
    /// Reads the table of `entries` at `offset`, which lies in the file, and what its blocks use of the file's first
    /// `file_bytes`. Memory grows with what was read and found right.
    pub(super) fn read(
        file: &dyn BlockFile,
        name: &str,
        (offset, entries): (u64, u64),
        shape: Shape,
        file_bytes: u64,
    ) -> Result<(Self, Vec<Used>), DiskError> {
        let most = file_bytes / shape.stored_bytes();
        let mut bat = Self {
            offset,
            entries: Vec::new(),
        };
        let mut used = Vec::new();
        let mut bytes = vec![0; to_usize(SCAN_BYTES.min(bat_bytes(entries)))];
        while to_u64(bat.entries.len()) < entries {
            let at = offset + 4 * to_u64(bat.entries.len());
            let step = SCAN_BYTES.min(4 * (entries - to_u64(bat.entries.len())));
            let part = &mut bytes[..to_usize(step)];
            file.read_at(part, at)
                .map_err(|e| DiskError::io(format!("read the BAT at {at} of {name}"), e))?;
            for (index, entry) in (0_u64..).zip(part.chunks_exact(4)) {
                let sector = u32_at(entry, 0);
                if sector != ABSENT {
                    let block = Used {
                        offset: u64::from(sector) * SECTOR,
                        length: shape.stored_bytes(),
                        named_by: "BAT",
                        named_at: at + 4 * index,
                    };
                    let fault = if block.end() > file_bytes {
                        "is past the end"
                    } else if to_u64(used.len()) >= most {
                        // They share space; this bounds our memory, too.
                        "is one more than the file has room for"
                    } else {
                        ""
                    };
                    if !fault.is_empty() {
                        let detail = format!("the block at {} {fault}", block.offset);
                        return Err(corrupt("BAT", block.named_at, detail));
                    }
                    used.push(block);
                }
                bat.entries.push(AtomicU32::new(sector));
            }
        }
        Ok((bat, used))
    }

    pub(super) fn len(&self) -> u64 {
        to_u64(self.entries.len())
    }

    /// Where a block begins in the file, its bitmap first; `None` if it is absent.
    pub(super) fn place(&self, block: u64) -> Option<u64> {
        let sector = self.entries[to_usize(block)].load(Ordering::Acquire);
        (sector != ABSENT).then(|| u64::from(sector) * SECTOR)
    }

    /// How many blocks from `block` on, and before `end`, are absent.
    pub(super) fn absent_from(&self, block: u64, end: u64) -> u64 {
        let run = self.entries[to_usize(block)..to_usize(end)]
            .iter()
            .take_while(|entry| entry.load(Ordering::Acquire) == ABSENT);
        to_u64(run.count())
    }

    /// Where the file has a block's entry.
    pub(super) fn entry_offset(&self, block: u64) -> u64 {
        self.offset + 4 * block
    }

    /// Lets a block be seen (invariant 1).
    pub(super) fn publish(&self, block: u64, sector: u32) {
        let former = self.entries[to_usize(block)].swap(sector, Ordering::AcqRel);
        assert!(former == ABSENT, "a block gets its place once");
    }

    /// The table moved, and has room for `entries` blocks.
    pub(super) fn moved(&mut self, offset: u64, entries: u64) {
        self.offset = offset;
        self.entries
            .resize_with(to_usize(entries), || AtomicU32::new(ABSENT));
    }

    /// The table as it goes into the file, with room for `entries` blocks.
    pub(super) fn encode(&self, entries: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(to_usize(bat_bytes(entries)));
        for entry in &self.entries {
            bytes.extend(entry.load(Ordering::Acquire).to_be_bytes());
        }
        bytes.resize(to_usize(bat_bytes(entries)), 0xFF);
        bytes
    }
}
