//! The block allocation table in memory.
//!
//! Owns: the entries, in pages of 512 that match the table's 4 KiB pages in the file. Blank pages, on which no
//! entry has space and all read alike, are not kept.
//!
//! Does not do: the order of changes (see `durable`), or the choice of space (see `space`).
//!
//! # Invariants
//! 1. A page that is not in memory has no entry with space; with a parent, its blocks are all the
//!    parent's, or all zeros.
//! 2. An entry in memory names space only once the block's bytes are in place; so a page can be
//!    logged at any time, and shows blocks in the making as they were before.
//! 3. A partially present block has a bitmap.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::entry::Page;
use super::layout::{
    BatEntry, Found, MIB, PAGE, PAGE_BYTES, Shape, Span, corrupt, put, to_u64, to_usize, u64_at,
};
use super::replay::View;
use crate::error::DiskError;

const PAGE_ENTRIES: u64 = PAGE / 8;
/// Read at a time: less than a processor caches.
const SCAN_BYTES: u64 = 128 << 10;
/// Length of a sector bitmap in bytes: that of a chunk, whatever the sizes of blocks and sectors.
pub(super) const BITMAP_BYTES: u64 = MIB;

type Entries = Box<[AtomicU64]>;

pub(super) struct Bat {
    pub(super) shape: Shape,
    pub(super) region: Span,
    pages: Vec<BatPage>,
}

struct BatPage {
    entries: OnceLock<Entries>,
    /// What its blocks are while it is not kept: the parent's, or zeros.
    is_parents: bool,
}

/// Space in the file, and the BAT entry that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owned {
    pub(super) span: Span,
    pub(super) index: u64,
}

impl Bat {
    /// Reads and checks all entries of a disk of `size_bytes`; gives out the space they own, sorted.
    pub(super) fn read(
        view: &View,
        region: Span,
        shape: Shape,
        size_bytes: u64,
    ) -> Result<(Self, Vec<Owned>), DiskError> {
        let count = shape.bat_entries(size_bytes);
        if count * 8 > region.length {
            return Err(corrupt(
                "BAT",
                region.offset,
                format!("a disk of {size_bytes} bytes needs {count} entries"),
            ));
        }
        let mut scan = Scan {
            bat: Self {
                shape,
                region,
                pages: Vec::new(),
            },
            count,
            size_bytes,
            file_bytes: view.length,
            owned: Vec::new(),
            owned_bytes: 0,
            partial: BTreeMap::new(),
        };
        scan.bat.cover(size_bytes, shape.has_parent);
        // Where the host says that nothing was ever written, every entry is 0.
        let end = (count * 8).next_multiple_of(PAGE);
        for data in view.data_in(Span {
            offset: region.offset,
            length: end,
        })? {
            scan.read(view, data)?;
        }
        scan.finish()
    }

    /// Makes room for the pages of a disk of `size_bytes`, blank: all the parent's, or all zeros.
    pub(super) fn cover(&mut self, size_bytes: u64, is_parents: bool) {
        let pages = self.shape.bat_entries(size_bytes).div_ceil(PAGE_ENTRIES);
        self.pages
            .resize_with(to_usize(pages).max(self.pages.len()), || BatPage {
                entries: OnceLock::new(),
                is_parents,
            });
    }

    fn keep(&self, page: u64, bytes: &[u8]) -> &Entries {
        self.pages[to_usize(page)].entries.get_or_init(|| {
            bytes
                .chunks_exact(8)
                .map(|entry| AtomicU64::new(u64_at(entry, 0)))
                .collect()
        })
    }

    fn load_entry(&self, index: u64) -> Option<BatEntry> {
        let page = &self.pages[to_usize(index / PAGE_ENTRIES)];
        let slot = to_usize(index % PAGE_ENTRIES);
        Some(BatEntry(page.entries.get()?[slot].load(Ordering::Acquire)))
    }

    /// The entry of a block, or `None` where its page is not kept (invariant 1).
    pub(super) fn entry(&self, block: u64) -> Option<BatEntry> {
        self.load_entry(self.shape.bat_index(block))
    }

    /// Where a block's bytes are.
    pub(super) fn find(&self, block: u64) -> Found {
        let index = self.shape.bat_index(block);
        match self.load_entry(index) {
            Some(entry) => entry.found(self.shape.has_parent),
            None if self.pages[to_usize(index / PAGE_ENTRIES)].is_parents => Found::Parent,
            None => Found::Zeros,
        }
    }

    /// Where the bitmap of a chunk is, if there is one.
    pub(super) fn bitmap(&self, chunk: u64) -> Option<u64> {
        let space = self.load_entry(self.shape.bitmap_index(chunk))?.space();
        (space != 0).then_some(space)
    }

    /// How many blocks from `block` on certainly are like it and have no space, because their pages are not kept.
    pub(super) fn blank_blocks(&self, block: u64) -> u64 {
        let index = self.shape.bat_index(block);
        let first = to_usize(index / PAGE_ENTRIES);
        let is_parents = self.pages[first].is_parents;
        let pages = self.pages[first..]
            .iter()
            .take_while(|page| page.entries.get().is_none() && page.is_parents == is_parents);
        let entries = (to_u64(pages.count()) * PAGE_ENTRIES).saturating_sub(index % PAGE_ENTRIES);
        // Up to one entry in a chunk is no block.
        entries - entries.div_ceil(self.shape.chunk_ratio + 1).min(entries)
    }

    /// Brings the page of a block into memory, so that its entry can change. Returns the page's number.
    pub(super) fn load(&self, view: &View, block: u64) -> Result<u64, DiskError> {
        self.load_page(view, self.shape.bat_index(block))
    }

    /// The same by an entry's index.
    pub(super) fn load_page(&self, view: &View, index: u64) -> Result<u64, DiskError> {
        let page = index / PAGE_ENTRIES;
        if self.pages[to_usize(page)].entries.get().is_none() {
            let mut bytes = [0; PAGE_BYTES];
            view.read(&mut bytes, self.region.offset + page * PAGE)?;
            self.keep(page, &bytes);
        }
        Ok(page)
    }

    fn loaded(&self, page: u64) -> &Entries {
        self.pages[to_usize(page)]
            .entries
            .get()
            .expect("a page is loaded before it changes")
    }

    /// Makes the entries from `first` to `end`, on one loaded page, those of blocks without space.
    pub(super) fn clear(&self, first: u64, end: u64) {
        let page = self.loaded(first / PAGE_ENTRIES);
        for index in first..end {
            let entry = if self.shape.is_bitmap_entry(index) {
                0
            } else {
                BatEntry::ZERO.0
            };
            page[to_usize(index % PAGE_ENTRIES)].store(entry, Ordering::Release);
        }
    }

    /// Changes the loaded entry of a block and returns the former one.
    pub(super) fn replace(&self, block: u64, entry: BatEntry) -> BatEntry {
        self.replace_at(self.shape.bat_index(block), entry)
    }

    /// The same by an entry's index.
    pub(super) fn replace_at(&self, index: u64, entry: BatEntry) -> BatEntry {
        let slot = &self.loaded(index / PAGE_ENTRIES)[to_usize(index % PAGE_ENTRIES)];
        BatEntry(slot.swap(entry.0, Ordering::AcqRel))
    }

    /// A loaded page as it goes into the file, with its offset there.
    pub(super) fn image(&self, page: u64) -> (u64, Page) {
        let entries = self.loaded(page);
        let mut bytes: Page = Box::new([0; PAGE_BYTES]);
        for (slot, entry) in entries.iter().enumerate() {
            put(
                &mut bytes[..],
                slot * 8,
                &entry.load(Ordering::Acquire).to_le_bytes(),
            );
        }
        (self.region.offset + page * PAGE, bytes)
    }
}

/// The first reading of all entries.
struct Scan {
    bat: Bat,
    /// Entries that the disk needs.
    count: u64,
    size_bytes: u64,
    file_bytes: u64,
    owned: Vec<Owned>,
    owned_bytes: u64,
    /// Chunks with partially present blocks, and the entry of one.
    partial: BTreeMap<u64, u64>,
}

impl Scan {
    /// Reads the pages that `data` touches.
    fn read(&mut self, view: &View, data: Span) -> Result<(), DiskError> {
        let region = self.bat.region.offset;
        let mut chunk = vec![0; to_usize(SCAN_BYTES)];
        let mut page = (data.offset - region) / PAGE;
        let end = (data.end() - region).div_ceil(PAGE);
        while page < end {
            let step = (end - page).min(SCAN_BYTES / PAGE);
            let bytes = &mut chunk[..to_usize(step * PAGE)];
            view.read(bytes, region + page * PAGE)?;
            for bytes in bytes.chunks_exact(PAGE_BYTES) {
                self.read_page(page, bytes)?;
                page += 1;
            }
        }
        Ok(())
    }

    fn read_page(&mut self, page: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let first = page * PAGE_ENTRIES;
        let before = self.owned.len();
        let period = self.bat.shape.chunk_ratio + 1;
        let mut bitmap = first + (period - 1 - first % period);
        let alike = u64_at(bytes, 0);
        if alike <= BatEntry::LAST_BLANK
            && (alike == 0 || bitmap - first >= PAGE_ENTRIES)
            && bytes[8..] == bytes[..PAGE_BYTES - 8]
        {
            // Most pages of a large disk: all entries are alike, and none is a bitmap's.
            self.bat.pages[to_usize(page)].is_parents &= alike == 0;
            return Ok(());
        }
        // One bit for each state without space.
        let mut blank = 0_u8;
        let entries = bytes
            .chunks_exact(8)
            .map(|entry| BatEntry(u64_at(entry, 0)));
        for (index, entry) in (first..self.count).zip(entries) {
            if index == bitmap {
                self.read_bitmap(index, entry)?;
                bitmap += period;
            } else if entry.0 <= BatEntry::LAST_BLANK {
                blank |= 1 << entry.0;
            } else {
                self.read_payload(index, entry)?;
            }
        }
        let all_parents = blank == 1;
        let mixed = blank & 1 != 0 && blank != 1;
        if self.owned.len() > before || (self.bat.shape.has_parent && mixed) {
            self.bat.keep(page, bytes);
        }
        self.bat.pages[to_usize(page)].is_parents &= all_parents;
        Ok(())
    }

    fn bad(&self, index: u64, detail: impl Into<String>) -> DiskError {
        corrupt("BAT", self.bat.region.offset + index * 8, detail)
    }

    fn read_bitmap(&mut self, index: u64, entry: BatEntry) -> Result<(), DiskError> {
        if let Some(fault) = entry.bitmap_fault(self.bat.shape.has_parent) {
            return Err(self.bad(index, fault));
        }
        let chunk = index / (self.bat.shape.chunk_ratio + 1);
        if entry.0 == 0 {
            // Invariant 3.
            return match self.partial.get(&chunk) {
                Some(&block) => {
                    Err(self.bad(block, "the block is partially present without a bitmap"))
                }
                None => Ok(()),
            };
        }
        self.own(index, entry.space(), BITMAP_BYTES, BITMAP_BYTES)
    }

    fn read_payload(&mut self, index: u64, entry: BatEntry) -> Result<(), DiskError> {
        let shape = self.bat.shape;
        if let Some(fault) = entry.fault(shape.has_parent) {
            return Err(self.bad(index, fault));
        }
        let block = shape.block_at(index);
        if block >= shape.blocks(self.size_bytes) {
            return Err(self.bad(index, "a block past the end of the disk has space"));
        }
        if let Found::Partly(_) = entry.found(shape.has_parent) {
            self.partial.insert(block / shape.chunk_ratio, index);
        }
        // QEMU's fixed disks end where the disk does, inside their last block.
        let shown = shape
            .block_bytes
            .min(self.size_bytes - block * shape.block_bytes);
        self.own(index, entry.space(), shape.block_bytes, shown)
    }

    fn own(&mut self, index: u64, offset: u64, length: u64, shown: u64) -> Result<(), DiskError> {
        if offset
            .checked_add(shown)
            .is_none_or(|end| end > self.file_bytes)
        {
            let fault = format!("the block at {offset} is past the end of the file");
            return Err(self.bad(index, fault));
        }
        // More blocks than fit the file share space; this bounds our memory, too.
        self.owned_bytes += shown;
        if self.owned_bytes > self.file_bytes {
            return Err(self.bad(index, "more blocks than the file has space for"));
        }
        let span = Span { offset, length };
        self.owned.push(Owned { span, index });
        Ok(())
    }

    fn finish(mut self) -> Result<(Bat, Vec<Owned>), DiskError> {
        // Where nothing was ever written, there is no bitmap either.
        for (chunk, block) in &self.partial {
            if self.bat.bitmap(*chunk).is_none() {
                return Err(self.bad(*block, "the block is partially present without a bitmap"));
            }
        }
        self.owned.sort_unstable();
        for pair in self.owned.windows(2) {
            if pair[0].span.end() > pair[1].span.offset {
                let (at, other) = (pair[1].span.offset, pair[0].index);
                let fault = format!("the block at {at} is shared with entry {other}");
                return Err(self.bad(pair[1].index, fault));
            }
        }
        Ok((self.bat, self.owned))
    }
}

/// A stretch of the BAT of a new disk or of a disk that grows: what `entry` says of each block,
/// and nothing for bitmaps. `from` and the result's length are in entries and whole pages.
pub(super) fn stretch(
    shape: Shape,
    from: u64,
    entries: u64,
    total: u64,
    entry: impl Fn(u64) -> BatEntry,
) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(entries * 8)];
    for index in from..(from + entries).min(total) {
        if !shape.is_bitmap_entry(index) {
            let block = index - index / (shape.chunk_ratio + 1);
            put(
                &mut bytes,
                to_usize((index - from) * 8),
                &entry(block).0.to_le_bytes(),
            );
        }
    }
    bytes
}
