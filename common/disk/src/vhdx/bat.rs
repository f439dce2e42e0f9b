//! The block allocation table in memory.
//!
//! Owns: the entries, in pages of 512 that match the table's 4 KiB pages in the file. Pages on
//! which no block has space are not kept: their blocks read as zeros whatever else they say.
//!
//! Does not do: the order of changes (see `journal`), or the choice of space (see `space`).
//!
//! # Invariants
//! 1. A page that is not in memory has no block with space.
//! 2. An entry in memory names space only once the block's bytes are in place; so a page can be
//!    logged at any time, and shows blocks in the making as they were before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::entry::Page;
use super::layout::{
    BatEntry, MIB, PAGE, PAGE_BYTES, Shape, Span, corrupt, put, to_u64, to_usize, u64_at,
};
use super::replay::View;
use crate::error::DiskError;

const PAGE_ENTRIES: u64 = PAGE / 8;
const SCAN_BYTES: u64 = MIB;

type Entries = Box<[AtomicU64]>;

pub(super) struct Bat {
    pub(super) shape: Shape,
    pub(super) region: Span,
    pages: Vec<OnceLock<Entries>>,
}

/// A block's space in the file, and the BAT entry that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owned {
    pub(super) offset: u64,
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
        let mut bat = Self {
            shape,
            region,
            pages: Vec::new(),
        };
        bat.cover(size_bytes);
        let mut owned = Vec::new();
        let mut chunk = vec![0; to_usize(SCAN_BYTES)];
        let end = count * 8;
        for from in (0..end).step_by(to_usize(SCAN_BYTES)) {
            // Regions are whole mebibytes, so that the last chunk is inside, too.
            view.read(&mut chunk, region.offset + from)?;
            for (page, bytes) in chunk.chunks_exact(PAGE_BYTES).enumerate() {
                let page = from / PAGE + to_u64(page);
                if page * PAGE < end && bytes.iter().any(|byte| *byte != 0) {
                    bat.read_page(page, bytes, size_bytes, view.length, &mut owned)?;
                }
            }
        }
        owned.sort_unstable();
        bat.check_unique(&owned)?;
        Ok((bat, owned))
    }

    /// Makes room for the pages of a disk of `size_bytes`. They start without space.
    pub(super) fn cover(&mut self, size_bytes: u64) {
        let pages = self.shape.bat_entries(size_bytes).div_ceil(PAGE_ENTRIES);
        self.pages
            .resize_with(to_usize(pages).max(self.pages.len()), OnceLock::new);
    }

    fn read_page(
        &mut self,
        page: u64,
        bytes: &[u8],
        size_bytes: u64,
        file_bytes: u64,
        owned: &mut Vec<Owned>,
    ) -> Result<(), DiskError> {
        let before = owned.len();
        let count = self.shape.bat_entries(size_bytes);
        for slot in 0..PAGE_ENTRIES.min(count - page * PAGE_ENTRIES) {
            let index = page * PAGE_ENTRIES + slot;
            let entry = BatEntry(u64_at(bytes, to_usize(slot * 8)));
            let bad = |detail: String| corrupt("BAT", self.region.offset + index * 8, detail);
            if self.shape.is_bitmap_entry(index) {
                if entry.0 != 0 {
                    return Err(bad("a sector bitmap in a disk without a parent".to_owned()));
                }
                continue;
            }
            if let Some(fault) = entry.fault() {
                return Err(bad(fault));
            }
            let offset = entry.space();
            if offset == 0 {
                continue;
            }
            // QEMU's fixed disks end where the disk does, inside their last block.
            let block = index - index / (self.shape.chunk_ratio + 1);
            let shown = self
                .shape
                .block_bytes
                .min(size_bytes - block * self.shape.block_bytes);
            if offset.checked_add(shown).is_none_or(|end| end > file_bytes) {
                return Err(bad(format!(
                    "the block at {offset} is past the end of the file"
                )));
            }
            // More blocks than fit the file share space; this bounds our memory, too.
            if to_u64(owned.len()) >= file_bytes.div_ceil(self.shape.block_bytes) {
                return Err(bad("more blocks than the file has space for".to_owned()));
            }
            owned.push(Owned { offset, index });
        }
        if owned.len() > before {
            self.keep(page, bytes);
        }
        Ok(())
    }

    fn check_unique(&self, owned: &[Owned]) -> Result<(), DiskError> {
        for pair in owned.windows(2) {
            if pair[0].offset + self.shape.block_bytes > pair[1].offset {
                return Err(corrupt(
                    "BAT",
                    self.region.offset + pair[1].index * 8,
                    format!(
                        "the block at {} is shared with entry {}",
                        pair[1].offset, pair[0].index
                    ),
                ));
            }
        }
        Ok(())
    }

    fn keep(&self, page: u64, bytes: &[u8]) -> &Entries {
        self.pages[to_usize(page)].get_or_init(|| {
            bytes
                .chunks_exact(8)
                .map(|entry| AtomicU64::new(u64_at(entry, 0)))
                .collect()
        })
    }

    fn place(&self, block: u64) -> (u64, usize) {
        let index = self.shape.bat_index(block);
        (index / PAGE_ENTRIES, to_usize(index % PAGE_ENTRIES))
    }

    /// The entry of a block, or `None` where its page holds no space (invariant 1).
    pub(super) fn entry(&self, block: u64) -> Option<BatEntry> {
        let (page, slot) = self.place(block);
        let entries = self.pages[to_usize(page)].get()?;
        Some(BatEntry(entries[slot].load(Ordering::Acquire)))
    }

    /// Where a block's bytes are; `None` if it reads as zeros.
    pub(super) fn data_offset(&self, block: u64) -> Option<u64> {
        self.entry(block)?.data_offset()
    }

    /// How many blocks from `block` on certainly have no space, because their pages are not kept.
    pub(super) fn blocks_without_pages(&self, block: u64) -> u64 {
        let (first, slot) = self.place(block);
        let pages = self.pages[to_usize(first)..]
            .iter()
            .take_while(|page| page.get().is_none());
        let entries = (to_u64(pages.count()) * PAGE_ENTRIES).saturating_sub(to_u64(slot));
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
        if self.pages[to_usize(page)].get().is_none() {
            let mut bytes = [0; PAGE_BYTES];
            view.read(&mut bytes, self.region.offset + page * PAGE)?;
            self.keep(page, &bytes);
        }
        Ok(page)
    }

    /// Makes the entries from `first` to `end`, on one loaded page, those of blocks without space.
    pub(super) fn clear(&self, first: u64, end: u64) {
        let page = self.pages[to_usize(first / PAGE_ENTRIES)]
            .get()
            .expect("the page was loaded");
        for index in first..end {
            let entry = if self.shape.is_bitmap_entry(index) {
                0
            } else {
                BatEntry::ZERO.0
            };
            page[to_usize(index % PAGE_ENTRIES)].store(entry, Ordering::Release);
        }
    }

    /// Changes a loaded entry and returns the former one.
    pub(super) fn replace(&self, block: u64, entry: BatEntry) -> BatEntry {
        let (page, slot) = self.place(block);
        let entries = self.pages[to_usize(page)]
            .get()
            .expect("the page was loaded");
        BatEntry(entries[slot].swap(entry.0, Ordering::AcqRel))
    }

    /// A loaded page as it goes into the file, with its offset there.
    pub(super) fn image(&self, page: u64) -> (u64, Page) {
        let entries = self.pages[to_usize(page)]
            .get()
            .expect("only loaded pages change");
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
