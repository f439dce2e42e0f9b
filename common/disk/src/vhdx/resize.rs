//! Growing a disk while it is in use.
//!
//! ```text
//! zero the last block's hidden rest      it may hold anything
//! new BAT pages, written in their places nobody reads them yet
//! entries on pages that are in use       by the log
//! sync, then the new size, by the log    from here on the disk is larger
//! ```
//! Receives the image alone (its gate is shut for others). Does not do: shrinking, moving the BAT.

use super::bat::stretch;
use super::core::Core;
use super::create::reserve;
use super::layout::{BatEntry, Found, PAGE, Span, to_u64, to_usize};
use super::replay::write_zeros;
use crate::error::DiskError;
use crate::flush::lock;

/// BAT entries on one page.
const PAGE_ENTRIES: u64 = PAGE / 8;
/// BAT entries written at a time: 1 MiB.
const STEP: u64 = 256 * PAGE_ENTRIES;

impl Core {
    /// Grows the disk to `size_bytes`.
    pub(super) fn grow(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        let old = self.parameters.size_bytes;
        let mut wanted = self.parameters.clone();
        wanted.size_bytes = size_bytes;
        if let Some(fault) = wanted.fault() {
            return Err(DiskError::Invalid {
                what: format!("a VHDX cannot have {fault}"),
            });
        }
        if size_bytes < old {
            let what = format!("making a VHDX of {old} bytes smaller");
            return Err(DiskError::Unsupported { what });
        }
        if size_bytes == old {
            return Ok(());
        }
        let shape = self.bat.shape;
        if shape.bat_entries(size_bytes) * 8 > self.bat.region.length {
            let most = self.bat.region.length / 8 * shape.block_bytes;
            let what = format!("growing this VHDX past about {most} bytes");
            return Err(DiskError::Unsupported { what });
        }
        self.arm()?;
        self.zero_hidden_rest(old)?;
        self.write_new_pages(old, size_bytes)?;
        self.bat.cover(size_bytes, false);
        self.clear_shared_page(old, size_bytes)?;
        if self.parameters.leave_allocated {
            self.fill_fixed(old, size_bytes)?;
        }
        self.durable.note_write();
        // All entries are durable before the size that makes them count.
        self.flush()?;
        self.log_size(size_bytes)?;
        self.parameters.size_bytes = size_bytes;
        Ok(())
    }

    /// Bytes of the last block that the disk did not show until now must be zeros, or the parent's, which are.
    fn zero_hidden_rest(&self, old: u64) -> Result<(), DiskError> {
        let within = old % self.bat.shape.block_bytes;
        let block = old / self.bat.shape.block_bytes;
        if within == 0 {
            return Ok(());
        }
        let at = match self.bat.find(block) {
            Found::Here(at) => at,
            Found::Partly(_) => return self.clear_hidden_bits(block, within),
            // The parent ends where the disk does, or before.
            Found::Parent | Found::Zeros => return Ok(()),
        };
        let length = self.bat.shape.block_bytes - within;
        write_zeros(
            self.file(),
            Span {
                offset: at + within,
                length,
            },
        )
        .map_err(|e| DiskError::io(format!("zero the end of {}", self.view.name), e))
    }

    /// Writes the BAT pages that are not in use yet.
    fn write_new_pages(&self, old: u64, new: u64) -> Result<(), DiskError> {
        let shape = self.bat.shape;
        let total = shape.bat_entries(new);
        let mut from = shape.bat_entries(old).next_multiple_of(PAGE_ENTRIES);
        while from < total {
            let step = STEP.min((total - from).next_multiple_of(PAGE_ENTRIES));
            let bytes = stretch(shape, from, step, total, |_| BatEntry::ZERO);
            self.file()
                .write_at(&bytes, self.bat.region.offset + from * 8)
                .map_err(|e| DiskError::io(format!("extend the BAT of {}", self.view.name), e))?;
            from += to_u64(bytes.len()) / 8;
        }
        Ok(())
    }

    /// New blocks whose entries share a page with old ones: whatever stood there is replaced.
    fn clear_shared_page(&self, old: u64, new: u64) -> Result<(), DiskError> {
        let first = self.bat.shape.bat_entries(old);
        let end = first
            .next_multiple_of(PAGE_ENTRIES)
            .min(self.bat.shape.bat_entries(new));
        if first < end {
            self.publish_fresh(first, end)
        } else {
            Ok(())
        }
    }

    /// A fixed disk's new blocks have their space from the start.
    fn fill_fixed(&self, old: u64, new: u64) -> Result<(), DiskError> {
        let shape = self.bat.shape;
        for block in shape.blocks(old)..shape.blocks(new) {
            let failed = |e| {
                DiskError::io(
                    format!("find space for block {block} of {}", self.view.name),
                    e,
                )
            };
            let place = lock(&self.space)
                .take(self.file(), shape.block_bytes)
                .map_err(failed)?;
            let span = Span {
                offset: place.offset,
                length: shape.block_bytes,
            };
            if !place.known_zero || !reserve(self.file(), span).map_err(failed)? {
                write_zeros(self.file(), span).map_err(failed)?;
            }
            self.publish(block, BatEntry::present(span.offset), !place.known_zero)?;
        }
        Ok(())
    }

    fn log_size(&self, size_bytes: u64) -> Result<(), DiskError> {
        let at = self.parameters.size_at;
        let mut pages = vec![self.page_at(at)?];
        if at % PAGE + 8 > PAGE {
            pages.push(self.page_at(at + 8)?);
        }
        let start = pages[0].0;
        for (index, byte) in size_bytes.to_le_bytes().into_iter().enumerate() {
            let within = to_usize(at - start) + index;
            let page_bytes = to_usize(PAGE);
            pages[within / page_bytes].1[within % page_bytes] = byte;
        }
        let mut journal = lock(&self.durable.journal);
        self.log_pages(&mut journal, &pages)
    }
}
