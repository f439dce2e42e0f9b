//! Blocks of a differencing disk that are not all here: reads, writes and extents over the parent.
//!
//! ```text
//! write     bytes into the block's space; then, in one change, their bits and what the BAT says
//! answered  after a sync of the bytes and a note of the bits (see `durable`)
//! ```
//! A bit that is set hides the parent's bytes. So it never gets to the log, be it as a note, before a sync has
//! covered the bytes that it stands for: after a power loss a sector is the parent's or the new one. A block over
//! nothing but zeros is spared that: it is taken whole, as in a disk without a parent.
//!
//! Receives pieces of requests whose stripe is held: shared to read, alone to write. Does not do: blocks
//! that are wholly here or zeros (see `core`).
//!
//! # Invariants
//! 1. A block is partially present only after it was not present: its bits are cleared first, as anything may
//!    stand there while it is not.
//! 2. A sector's bit is set only when all of the sector is in place.

use std::io;

use super::bat::BITMAP_BYTES;
use super::bitmap::Bits;
use super::core::{Core, Piece};
use super::durable::{MetaPage, Pending};
use super::layout::{BatEntry, Found, Span, to_u64, to_usize};
use super::replay::write_zeros;
use crate::error::DiskError;
use crate::flush::lock;
use crate::image::{ExtentKind, Run};

/// Runs of the parent that are listed at a time.
const RUNS_MAX: usize = 1024;

/// What a piece becomes.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    /// Zeros, which need no space.
    Hole,
    /// Zeros that have space.
    Zeros,
}

/// Sectors of one block.
#[derive(Clone, Copy)]
struct Sectors {
    first: u64,
    end: u64,
}

impl Core {
    /// Puts content into a range of the file.
    pub(super) fn put(&self, content: Content<'_>, span: Span) -> io::Result<()> {
        match content {
            Content::Bytes(bytes) => self.file().write_at(bytes, span.offset),
            Content::Zeros => write_zeros(self.file(), span),
            Content::Hole => match self.file().punch_hole(span.offset, span.length) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => write_zeros(self.file(), span),
                other => other,
            },
        }
    }

    /// Reads what the parent has; zeros after its end.
    pub(super) fn read_parent(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let Some(parent) = &self.parent else {
            buf.fill(0);
            return Ok(());
        };
        let there = parent.geometry().size_bytes.saturating_sub(offset);
        let (has, past) = buf.split_at_mut(to_usize(there.min(to_u64(buf.len()))));
        past.fill(0);
        if has.is_empty() {
            return Ok(());
        }
        parent.read_at(has, offset)
    }

    /// Reads a piece of a partially present block whose space is at `at`.
    pub(super) fn read_partly(
        &self,
        buf: &mut [u8],
        piece: Piece,
        at: u64,
    ) -> Result<(), DiskError> {
        let start = piece.block * self.bat.shape.block_bytes;
        for (part, here) in self.parts(piece)? {
            let buf = &mut buf[to_usize(part.offset - piece.within)..][..to_usize(part.length)];
            if here {
                self.view.read(buf, at + part.offset)?;
            } else {
                self.read_parent(buf, start + part.offset)?;
            }
        }
        Ok(())
    }

    /// The parts of a piece of a partially present block, from the block's start, and whether they are here.
    fn parts(&self, piece: Piece) -> Result<Vec<(Span, bool)>, DiskError> {
        let sectors = self.sectors(piece);
        let runs = self
            .bitmaps
            .runs(&self.view, &self.bits(piece.block, sectors)?)?;
        let mut at = sectors.first;
        let cut = |sector: u64| {
            let end = piece.within + piece.length;
            (sector * self.bat.shape.sector_bytes).clamp(piece.within, end)
        };
        let parts = runs.into_iter().map(|run| {
            let (offset, end) = (cut(at), cut(at + run.count));
            at += run.count;
            let length = end - offset;
            (Span { offset, length }, run.here)
        });
        Ok(parts.collect())
    }

    /// Whether all sectors of a piece of a partially present block are here.
    pub(super) fn is_here(&self, piece: Piece) -> Result<bool, DiskError> {
        let bits = self.bits(piece.block, self.sectors(piece))?;
        self.bitmaps.all_here(&self.view, &bits)
    }

    /// The sectors that a piece touches.
    fn sectors(&self, piece: Piece) -> Sectors {
        let bytes = self.bat.shape.sector_bytes;
        Sectors {
            first: piece.within / bytes,
            end: (piece.within + piece.length).div_ceil(bytes),
        }
    }

    fn bits(&self, block: u64, sectors: Sectors) -> Result<Bits, DiskError> {
        let shape = self.bat.shape;
        let chunk = block / shape.chunk_ratio;
        let at = self.bat.bitmap(chunk).ok_or_else(|| {
            let index = shape.bitmap_index(chunk);
            super::layout::corrupt(
                "BAT",
                self.bat.region.offset + index * 8,
                "a partially present block has no bitmap",
            )
        })?;
        let first = block % shape.chunk_ratio * (shape.block_bytes / shape.sector_bytes);
        Ok(Bits {
            chunk,
            at,
            range: first + sectors.first..first + sectors.end,
        })
    }

    /// Writes a piece of a block that the parent has, wholly or in part. The block's stripe is owned.
    pub(super) fn write_over_parent(
        &self,
        piece: Piece,
        content: Content<'_>,
    ) -> Result<(), DiskError> {
        if let Found::Partly(at) = self.bat.find(piece.block) {
            self.put_sectors(piece, content, at)?;
            return self.publish_sectors(piece, at, false);
        }
        let nothing_there = self.is_over_zeros(piece.block, 0, self.bat.shape.block_bytes)?;
        if nothing_there || self.is_whole(piece) {
            let length = piece.length;
            return self.fill_new(piece.block, !nothing_there, |at| {
                let offset = at + piece.within;
                self.put(content, Span { offset, length })
            });
        }
        self.ensure_bitmap(piece.block)?;
        let span = self.take_space(self.bat.shape.block_bytes)?.0;
        let published = self
            .put_sectors(piece, content, span.offset)
            .and_then(|()| self.publish_sectors(piece, span.offset, true));
        if published.is_err() {
            // No entry ever named it.
            lock(&self.space).give_back(span);
        }
        published
    }

    /// Whether the parent has only zeros in a range of a block.
    pub(super) fn is_over_zeros(
        &self,
        block: u64,
        within: u64,
        length: u64,
    ) -> Result<bool, DiskError> {
        let Some(parent) = &self.parent else {
            return Ok(true);
        };
        let offset = block * self.bat.shape.block_bytes + within;
        let there = parent.geometry().size_bytes.saturating_sub(offset);
        let mut zeros = true;
        if there > 0 {
            parent.extents(offset, length.min(there), &mut |run| {
                zeros = run.kind != ExtentKind::Data;
                zeros
            })?;
        }
        Ok(zeros)
    }

    /// Puts a piece into the block's space at `at`, and what its first and last sector lack for invariant 2.
    fn put_sectors(&self, piece: Piece, content: Content<'_>, at: u64) -> Result<(), DiskError> {
        let sector_bytes = self.bat.shape.sector_bytes;
        let end = piece.within + piece.length;
        let mut sector = vec![0; to_usize(sector_bytes)];
        let mut edges = vec![
            piece.within / sector_bytes * sector_bytes,
            end / sector_bytes * sector_bytes,
        ];
        edges.retain(|edge| *edge < piece.within || (*edge < end && edge + sector_bytes > end));
        edges.dedup();
        self.durable.note_write();
        for within in edges {
            let whole = Piece {
                within,
                length: sector_bytes,
                ..piece
            };
            let is_partly = matches!(self.bat.find(piece.block), Found::Partly(_));
            if is_partly && self.is_here(whole)? {
                continue;
            }
            let start = piece.block * self.bat.shape.block_bytes;
            self.read_parent(&mut sector, start + within)?;
            self.file()
                .write_at(&sector, at + within)
                .map_err(self.failed("write", sector_bytes, at + within))?;
        }
        let span = Span {
            offset: at + piece.within,
            length: piece.length,
        };
        let written = self.put(content, span);
        self.durable.note_write();
        written.map_err(self.failed("write", span.length, span.offset))
    }

    /// Sets the bits of a piece whose bytes are in place; of a new block, all other bits are cleared. A block
    /// that has become whole needs them no longer.
    fn publish_sectors(&self, piece: Piece, at: u64, is_new: bool) -> Result<(), DiskError> {
        let shape = self.bat.shape;
        let page = self.bat.load(&self.view, piece.block)?;
        let all = |bytes: u64| Sectors {
            first: 0,
            end: bytes / shape.sector_bytes,
        };
        let shown = shape
            .block_bytes
            .min(self.parameters.size_bytes - piece.block * shape.block_bytes);
        let bits = self.bits(piece.block, self.sectors(piece))?;
        let of_block = self.bits(piece.block, all(shape.block_bytes))?;
        let of_disk = self.bits(piece.block, all(shown))?;
        self.durable.change(|pending| {
            pending.data_first();
            if is_new {
                // Invariant 1.
                let cleared = self.bitmaps.change(&self.view, &of_block, false)?;
                cleared
                    .into_iter()
                    .for_each(|page| pending.touch(MetaPage::Bitmap(page)));
            }
            let set = self.bitmaps.change(&self.view, &bits, true)?;
            set.into_iter()
                .for_each(|page| pending.touch(MetaPage::Bitmap(page)));
            let entry = if self.bitmaps.all_here(&self.view, &of_disk)? {
                BatEntry::present(at)
            } else {
                BatEntry::partial(at)
            };
            if self.bat.replace(piece.block, entry) != entry {
                pending.touch(MetaPage::Bat(page));
            }
            Ok(())
        })
    }

    /// Gives the chunk of a block a bitmap, if it has none.
    fn ensure_bitmap(&self, block: u64) -> Result<(), DiskError> {
        let chunk = block / self.bat.shape.chunk_ratio;
        if self.bat.bitmap(chunk).is_some() {
            return Ok(());
        }
        let _birth = lock(&self.bitmaps.births);
        if self.bat.bitmap(chunk).is_some() {
            return Ok(());
        }
        let index = self.bat.shape.bitmap_index(chunk);
        let page = self.bat.load_page(&self.view, index)?;
        let (span, known_zero) = self.take_space(BITMAP_BYTES)?;
        self.durable.change(|pending| {
            if !known_zero {
                pending.data_first();
            }
            self.bat.replace_at(index, BatEntry::present(span.offset));
            pending.touch(MetaPage::Bat(page));
            Ok(())
        })
    }

    /// Takes away the bits after the end of the disk, where a block is partially present: the disk is about to grow.
    pub(super) fn clear_hidden_bits(&self, block: u64, within: u64) -> Result<(), DiskError> {
        let bytes = self.bat.shape.sector_bytes;
        let hidden = Sectors {
            first: within.div_ceil(bytes),
            end: self.bat.shape.block_bytes / bytes,
        };
        let bits = self.bits(block, hidden)?;
        self.durable.change(|pending: &mut Pending| {
            let cleared = self.bitmaps.change(&self.view, &bits, false)?;
            cleared
                .into_iter()
                .for_each(|page| pending.touch(MetaPage::Bitmap(page)));
            Ok(())
        })
    }

    /// What the parent holds from `offset`, at most `length` bytes. Covers at least a byte.
    pub(super) fn parent_runs(&self, offset: u64, length: u64) -> Result<Vec<Run>, DiskError> {
        let size = match &self.parent {
            Some(parent) => parent.geometry().size_bytes,
            None => 0,
        };
        let there = size.saturating_sub(offset).min(length);
        let mut runs = Vec::new();
        if let Some(parent) = self.parent.as_ref().filter(|_| there > 0) {
            parent.extents(offset, there, &mut |run| {
                runs.push(run.below());
                runs.len() < RUNS_MAX
            })?;
            if runs.last().map(Run::end) != Some(offset + there) {
                return Ok(runs);
            }
        }
        if there < length {
            runs.push(Run::here(offset + there, length - there, ExtentKind::Hole));
        }
        Ok(runs)
    }

    /// What a piece of a partially present block holds, or the start of it.
    pub(super) fn runs_partly(&self, piece: Piece) -> Result<Vec<Run>, DiskError> {
        let start = piece.block * self.bat.shape.block_bytes;
        let mut runs = Vec::new();
        for (part, here) in self.parts(piece)? {
            let (from, length) = (start + part.offset, part.length);
            if here {
                runs.push(Run::here(from, length, ExtentKind::Data));
                continue;
            }
            runs.extend(self.parent_runs(from, length)?);
            let is_covered = runs.last().map(Run::end) == Some(from + length);
            if !is_covered || runs.len() >= RUNS_MAX {
                break;
            }
        }
        Ok(runs)
    }
}
