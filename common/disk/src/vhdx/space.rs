//! Which parts of the file are free.
//!
//! Owns: the gaps between blocks and regions, and the grown space at the file's end.
//! Gives out places for blocks. Does not do: I/O other than growing the file; knowing when a
//! trimmed block's space is free (see `journal`).
//!
//! # Invariants
//! 1. From `next` to `length` nothing was ever written since the file was last cut to `next`: it
//!    reads as zeros, now and after a power loss.
//! 2. Gaps may hold anything.

use std::collections::BTreeMap;
use std::io;

use super::layout::{FIRST_FREE, MIB, Span};
use crate::storage::BlockFile;

/// The file grows in steps of this, so that a sync seldom has to commit a new length.
const GROWTH_STEP: u64 = 64 * MIB;

pub(super) struct Space {
    /// Offset to length; neighbours are joined.
    gaps: BTreeMap<u64, u64>,
    next: u64,
    length: u64,
}

/// A place for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    /// It reads as zeros, and will after a power loss; otherwise it may hold anything.
    pub(super) known_zero: bool,
}

impl Space {
    /// `used` is sorted and disjoint. The file must be cut to [`used_end`](Self::used_end) next.
    pub(super) fn new(used: &[Span]) -> Self {
        let mut gaps = BTreeMap::new();
        let mut next = FIRST_FREE;
        for span in used {
            if span.offset > next {
                gaps.insert(next, span.offset - next);
            }
            next = next.max(span.end());
        }
        Self {
            gaps,
            next,
            length: next,
        }
    }

    /// Length of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Takes `bytes`, a multiple of 1 MiB.
    pub(super) fn take(&mut self, file: &dyn BlockFile, bytes: u64) -> io::Result<Place> {
        if let Some((&offset, &length)) = self.gaps.iter().find(|(_, length)| **length >= bytes) {
            self.gaps.remove(&offset);
            if length > bytes {
                self.gaps.insert(offset + bytes, length - bytes);
            }
            return Ok(Place {
                offset,
                known_zero: false,
            });
        }
        let end = self.next + bytes;
        if end > self.length {
            let grown = end.max(self.length + GROWTH_STEP);
            file.set_length(grown)?;
            self.length = grown;
        }
        let offset = self.next;
        self.next = end;
        Ok(Place {
            offset,
            known_zero: true,
        })
    }

    /// Takes space back. Nothing durable may name it any more.
    pub(super) fn give_back(&mut self, span: Span) {
        let mut span = span;
        if let Some((&offset, &length)) = self.gaps.range(..span.offset).next_back()
            && offset + length == span.offset
        {
            span = Span {
                offset,
                length: length + span.length,
            };
        }
        if let Some(length) = self.gaps.remove(&span.end()) {
            span.length += length;
        }
        self.gaps.insert(span.offset, span.length);
    }

    /// Where the last used mebibyte ends.
    pub(super) fn used_end(&self) -> u64 {
        match self.gaps.last_key_value() {
            Some((&offset, &length)) if offset + length == self.next => offset,
            _ => self.next,
        }
    }

    /// The file was cut to [`used_end`](Self::used_end).
    pub(super) fn was_cut(&mut self) {
        let end = self.used_end();
        if end < self.next {
            self.gaps.remove(&end);
        }
        (self.next, self.length) = (end, end);
    }
}
