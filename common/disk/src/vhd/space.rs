//! Room for new blocks at the file's end.
//!
//! Owns: the room between the last block and the footer. The file grows by many blocks at once, the
//! footer first, so that it ends with a footer whenever a sync returned:
//!
//! ```text
//! footer -> its new place, past the end    the bytes before it are a hole
//! bitmaps of ones -> where blocks will go  dynamic disks only
//! sync                                     from now on the room is there, and known to be zero but for these
//! blocks are placed
//! ```
//! So a dynamic disk's block never needs its bitmap written: it was durable before the table could name the
//! block. Programs that ask bitmaps and those that do not show the same at any time, for no more syncs.
//!
//! Does not do: finding out what a file uses (see `open`), cutting it (see `durable`).
//!
//! # Invariants
//! 1. What `next..footer_at` holds was never written since the file grew over it: now and after a power loss, places
//!    have their bitmaps of ones in a dynamic disk, and all else reads as zeros. Spoiled places are behind `next`.
//! 2. No block ever lies where a footer was: nothing of a footer is seen as a bitmap or as data.

use super::layout::{SECTOR, Shape, footer_after};

/// The file grows by at least this...
const GROWTH_MIN: u64 = 64 << 20;
/// ...or by an eighth of its length, but at most by this...
const GROWTH_MAX: u64 = 1 << 30;
/// ...and by this many blocks, as bitmaps are scattered writes.
const GROWTH_BLOCKS_MAX: u64 = 512;

pub(super) struct Space {
    pub(super) next: u64,
    pub(super) footer_at: u64,
    /// End of what is in use: where the file can be cut.
    pub(super) used_end: u64,
    /// The footer is further ahead than a closed file has it.
    pub(super) is_grown: bool,
    /// Places whose blocks could not be written. Bytes may be left there; bitmaps are untouched.
    pub(super) spoiled: Vec<u64>,
}

impl Space {
    /// Of a file whose footer is or goes at `footer_at`. There is no room before the file grows.
    pub(super) fn new(used_end: u64, footer_at: u64) -> Self {
        Self {
            next: footer_at + SECTOR,
            footer_at,
            used_end,
            is_grown: false,
            spoiled: Vec::new(),
        }
    }

    /// A place for a block, if there is room for one.
    pub(super) fn take(&mut self, shape: Shape) -> Option<u64> {
        // As `places` has them.
        let place = shape.place_after(self.next);
        let end = place + shape.stored_bytes();
        if end > self.footer_at {
            return None;
        }
        self.next = end;
        self.used_end = end;
        Some(place)
    }

    /// Where the footer goes so that there is room for some of `wanted` blocks, one at least.
    pub(super) fn grown_footer(&self, shape: Shape, wanted: u64) -> u64 {
        let first = shape.place_after(self.footer_at + SECTOR);
        let stride = shape.place_after(first + shape.stored_bytes()) - first;
        let step = (self.footer_at / 8).clamp(GROWTH_MIN, GROWTH_MAX);
        let blocks = (step / stride).min(GROWTH_BLOCKS_MAX).min(wanted).max(1);
        footer_after(first + (blocks - 1) * stride + shape.stored_bytes())
    }

    /// Where blocks will go once the file ends with a footer at `footer_at`.
    pub(super) fn places(&self, shape: Shape, footer_at: u64) -> impl Iterator<Item = u64> + use<> {
        let next_place = move |from| {
            let place = shape.place_after(from);
            (place + shape.stored_bytes() <= footer_at).then_some(place)
        };
        let first = next_place(self.footer_at + SECTOR);
        std::iter::successors(first, move |place| next_place(place + shape.stored_bytes()))
    }

    /// The file ends with a footer at `footer_at`, durably.
    pub(super) fn has_grown(&mut self, footer_at: u64) {
        self.next = self.footer_at + SECTOR;
        self.footer_at = footer_at;
        self.is_grown = true;
    }
}
