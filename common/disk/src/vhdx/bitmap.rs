//! Sector bitmaps: which sectors of partially present blocks are in this file.
//!
//! ```text
//! one bitmap of 1 MiB for each chunk of 2^23 sectors; a bit for each sector, the lowest of a byte first
//! ```
//! Owns: a bounded cache of their 4 KiB pages, with those that were changed and are not in their places yet.
//! Receives stretches of bits, gives out runs of them, and pages for the log.
//!
//! Does not do: telling where a bitmap is, or when a block is partially present (see `bat`); the
//! order of changes (see `durable`).
//!
//! # Invariants
//! 1. A page with changes that are not in their place stays in memory.
//! 2. Bits change under the lock of `Pending` only, so that a batch is consistent.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use super::entry::Page;
use super::layout::{PAGE, PAGE_BYTES, to_usize};
use super::replay::View;
use crate::error::DiskError;
use crate::flush::lock;

const PAGE_BITS: u64 = PAGE * 8;
/// Pages in memory, those with changes not counted: 8 MiB, the bits of 32 GiB with sectors of 512 bytes.
const CACHE_PAGES: usize = 2048;

/// A page of the bitmap of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BitmapPage {
    pub(super) chunk: u64,
    /// From the bitmap's start.
    pub(super) page: u64,
}

/// A stretch of the bitmap of a chunk.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    pub(super) chunk: u64,
    /// Where the bitmap begins in the file.
    pub(super) at: u64,
    pub(super) range: Range<u64>,
}

/// Neighbours that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BitRun {
    pub(super) count: u64,
    /// The sectors are in this file.
    pub(super) here: bool,
}

struct Cached {
    bits: Page,
    changes: u64,
    /// `changes` when the page was last put into its place.
    placed: u64,
}

/// The bitmaps of an open image.
#[derive(Default)]
pub(super) struct Bitmaps {
    pages: Mutex<BTreeMap<BitmapPage, Cached>>,
    /// Held while a chunk gets its bitmap.
    pub(super) births: Mutex<()>,
}

impl Bits {
    /// Its parts, page by page: the page, and the range of bits on it.
    fn pages(&self) -> impl Iterator<Item = (BitmapPage, Range<u64>)> + use<> {
        let (chunk, range) = (self.chunk, self.range.clone());
        (range.start / PAGE_BITS..range.end.div_ceil(PAGE_BITS)).map(move |page| {
            let first = page * PAGE_BITS;
            let from = range.start.max(first) - first;
            let to = range.end.min(first + PAGE_BITS) - first;
            (BitmapPage { chunk, page }, from..to)
        })
    }
}

impl Bitmaps {
    /// Runs that cover `bits`, in order.
    pub(super) fn runs(&self, view: &View, bits: &Bits) -> Result<Vec<BitRun>, DiskError> {
        let mut found: Vec<BitRun> = Vec::new();
        let mut pages = lock(&self.pages);
        for (page, range) in bits.pages() {
            let cached = load(&mut pages, view, bits.at, page)?;
            let mut at = range.start;
            while at < range.end {
                let (here, count) = run_at(&cached.bits, at..range.end);
                match found.last_mut() {
                    Some(last) if last.here == here => last.count += count,
                    _ => found.push(BitRun { count, here }),
                }
                at += count;
            }
        }
        Ok(found)
    }

    /// Whether all of them are in this file.
    pub(super) fn all_here(&self, view: &View, bits: &Bits) -> Result<bool, DiskError> {
        let mut pages = lock(&self.pages);
        for (page, range) in bits.pages() {
            let cached = load(&mut pages, view, bits.at, page)?;
            if run_at(&cached.bits, range.clone()) != (true, range.end - range.start) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes all of them `here`, or not. Gives out the pages that changed (invariant 2).
    pub(super) fn change(
        &self,
        view: &View,
        bits: &Bits,
        here: bool,
    ) -> Result<Vec<BitmapPage>, DiskError> {
        let mut changed = Vec::new();
        let mut pages = lock(&self.pages);
        for (page, range) in bits.pages() {
            let cached = load(&mut pages, view, bits.at, page)?;
            if run_at(&cached.bits, range.clone()) != (here, range.end - range.start) {
                fill(&mut cached.bits, range, here);
                cached.changes += 1;
                changed.push(page);
            }
        }
        Ok(changed)
    }

    /// A changed page as it goes into the log, and its number of changes for [`placed`](Self::placed).
    pub(super) fn image(&self, page: BitmapPage) -> (Page, u64) {
        let pages = lock(&self.pages);
        let cached = pages.get(&page).expect("changed pages stay (invariant 1)");
        (cached.bits.clone(), cached.changes)
    }

    /// The page was put into its place as it was after so many changes.
    pub(super) fn placed(&self, page: BitmapPage, changes: u64) {
        if let Some(cached) = lock(&self.pages).get_mut(&page) {
            cached.placed = cached.placed.max(changes);
        }
    }

    #[cfg(test)]
    pub(super) fn pages_in_memory(&self) -> usize {
        lock(&self.pages).len()
    }
}

fn load<'a>(
    pages: &'a mut BTreeMap<BitmapPage, Cached>,
    view: &View,
    at: u64,
    page: BitmapPage,
) -> Result<&'a mut Cached, DiskError> {
    if !pages.contains_key(&page) {
        let mut bits: Page = Box::new([0; PAGE_BYTES]);
        view.read(&mut bits[..], at + page.page * PAGE)?;
        if pages.len() >= CACHE_PAGES {
            // Invariant 1. Those that are needed soon come back from the host's memory.
            pages.retain(|_, cached| cached.placed < cached.changes);
        }
        let cached = Cached {
            bits,
            changes: 0,
            placed: 0,
        };
        pages.insert(page, cached);
    }
    Ok(pages.get_mut(&page).expect("it was there or was put there"))
}

/// The first bit of `range`, and how many of the range from there on are like it.
fn run_at(bits: &Page, range: Range<u64>) -> (bool, u64) {
    let bit = |at: u64| bits[to_usize(at / 8)] >> (at % 8) & 1 != 0;
    let here = bit(range.start);
    let same = if here { 0xFF } else { 0 };
    let mut at = range.start + 1;
    while at < range.end {
        if at.is_multiple_of(8) && range.end - at >= 8 && bits[to_usize(at / 8)] == same {
            at += 8;
        } else if bit(at) == here {
            at += 1;
        } else {
            break;
        }
    }
    (here, at - range.start)
}

fn fill(bits: &mut Page, range: Range<u64>, here: bool) {
    let mut at = range.start;
    while at < range.end {
        let byte = &mut bits[to_usize(at / 8)];
        if at.is_multiple_of(8) && range.end - at >= 8 {
            *byte = if here { 0xFF } else { 0 };
            at += 8;
            continue;
        }
        let mask = 1 << (at % 8);
        if here {
            *byte |= mask;
        } else {
            *byte &= !mask;
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_fills_agree_bit_by_bit() {
        let mut bits: Page = Box::new([0; PAGE_BYTES]);
        let mut model = vec![false; to_usize(PAGE_BITS)];
        let mut state = 7_u64;
        for turn in 0..400 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let from = (state >> 33) % PAGE_BITS;
            let to = from + 1 + (state >> 13) % (PAGE_BITS - from).min(99);
            let here = turn % 3 != 0;
            fill(&mut bits, from..to, here);
            model[to_usize(from)..to_usize(to)].fill(here);
        }
        // The lowest bit of a byte is the first sector.
        let first = model.iter().position(|here| *here).unwrap();
        let byte = bits[first / 8];
        assert_eq!(byte.trailing_zeros() as usize, first % 8);
        let mut at = 0;
        while at < PAGE_BITS {
            let (here, count) = run_at(&bits, at..PAGE_BITS);
            assert!(count > 0);
            let found = &model[to_usize(at)..to_usize(at + count)];
            assert!(found.iter().all(|bit| *bit == here), "from {at}");
            at += count;
            assert!(at == PAGE_BITS || model[to_usize(at)] != here);
        }
    }
}
