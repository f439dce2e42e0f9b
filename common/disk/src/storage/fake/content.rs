//! Sparse content of a fake file: pages that exist, and holes that read as zeros.
//!
//! Pages are shared between copies and copied when written, so a copy of a whole tree costs little,
//! and a file of 100 GiB costs what was written to it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::storage::FileExtent;

pub(super) const PAGE_BYTES: u64 = 4096;
const PAGE: usize = 4096;

type Page = [u8; PAGE];

/// Allocated pages of zeros share this one.
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE]));

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<Page>>,
    pub(super) length: u64,
}

/// A part of one page: which page, where in it, how much.
struct Part {
    page: u64,
    start: usize,
    bytes: usize,
}

fn parts(offset: u64, length: u64) -> impl Iterator<Item = Part> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let stop = end.min((page + 1).saturating_mul(PAGE_BYTES));
        let part = Part {
            page,
            start: within(at % PAGE_BYTES),
            bytes: within(stop - at),
        };
        at = stop;
        Some(part)
    })
}

fn within(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most a page, or a buffer that is in memory")
}

impl Content {
    /// Fills `buf`; the caller has checked it against the length.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        let mut rest = buf;
        for part in parts(offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(part.bytes);
            match self.pages.get(&part.page) {
                Some(page) => now.copy_from_slice(&page[part.start..part.start + part.bytes]),
                None => now.fill(0),
            }
            rest = later;
        }
    }

    pub(super) fn write(&mut self, buf: &[u8], offset: u64) {
        if buf.is_empty() {
            return;
        }
        let mut rest = buf;
        for part in parts(offset, buf.len() as u64) {
            let (now, later) = rest.split_at(part.bytes);
            let page = self
                .pages
                .entry(part.page)
                .or_insert_with(|| Arc::clone(&ZERO_PAGE));
            Arc::make_mut(page)[part.start..part.start + part.bytes].copy_from_slice(now);
            rest = later;
        }
        self.length = self.length.max(offset + buf.len() as u64);
    }

    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            // What is cut off must read as zeros when the file grows again.
            self.punch(length, u64::MAX - length);
        }
        self.length = length;
    }

    /// Whole pages become holes, parts of pages zeros.
    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let first_whole = offset.div_ceil(PAGE_BYTES);
        let end_whole = end / PAGE_BYTES;
        if first_whole < end_whole {
            let whole: Vec<u64> = self
                .pages
                .range(first_whole..end_whole)
                .map(|(page, _)| *page)
                .collect();
            for page in whole {
                self.pages.remove(&page);
            }
        }
        let head_end = end.min(first_whole.saturating_mul(PAGE_BYTES));
        self.zero_part(offset, head_end);
        self.zero_part(offset.max(end_whole * PAGE_BYTES).max(head_end), end);
    }

    /// Zeros within one page; `start >= end` is nothing.
    fn zero_part(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(page) = self.pages.get_mut(&(start / PAGE_BYTES)) {
            let from = within(start % PAGE_BYTES);
            Arc::make_mut(page)[from..from + within(end - start)].fill(0);
        }
    }

    /// Pages of the range that have no space yet.
    pub(super) fn pages_missing(&self, offset: u64, length: u64) -> u64 {
        if length == 0 {
            return 0;
        }
        let first = offset / PAGE_BYTES;
        let end = offset.saturating_add(length).div_ceil(PAGE_BYTES);
        (end - first) - self.pages.range(first..end).count() as u64
    }

    /// Gives every page of the range space; holes stay zeros.
    pub(super) fn allocate(&mut self, offset: u64, length: u64) {
        for part in parts(offset, length) {
            self.pages
                .entry(part.page)
                .or_insert_with(|| Arc::clone(&ZERO_PAGE));
        }
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }

    pub(super) fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, FileExtent) -> bool,
    ) {
        let end = offset.saturating_add(length);
        // As a file system tells it: past the end of the file is a hole, whatever has space there.
        let data_end = end.min(self.length);
        let mut at = offset;
        while at < end {
            let from = at / PAGE_BYTES;
            let next = self
                .pages
                .range(from..)
                .next()
                .map(|(page, _)| page * PAGE_BYTES);
            let data = next
                .filter(|start| *start < data_end)
                .map_or(end, |start| start.max(at));
            if data > at && !visit(at, data - at, FileExtent::Hole) {
                return;
            }
            if data >= end {
                return;
            }
            let mut page = data / PAGE_BYTES + 1;
            while page * PAGE_BYTES < data_end && self.pages.contains_key(&page) {
                page += 1;
            }
            let stop = (page * PAGE_BYTES).min(data_end);
            if !visit(data, stop - data, FileExtent::Data) {
                return;
            }
            at = stop;
        }
    }
}
