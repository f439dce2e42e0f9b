//! The data path of an open image: reads, writes, zeros, extents.
//!
//! Owns: one lock per stripe of blocks. A block's users hold its stripe shared; whoever gives a
//! block space or takes it away holds it alone, until the bytes are in place.
//!
//! Receives ranges that were checked. Does not do: durability (see `durable`), opening and
//! closing (see `open`).
//!
//! # Invariants
//! 1. A block's offset is used only under its stripe, so that space is never given back under
//!    a reader or writer.
//! 2. No stripe is held while a caller's visitor runs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Kind;
use super::bat::Bat;
use super::bitmap::Bitmaps;
use super::durable::Durable;
use super::journal::Headers;
use super::layout::{BatEntry, Found, Span, to_u64, to_usize};
use super::metadata::Parameters;
use super::partial::Content;
use super::replay::View;
use super::space::Space;
use crate::error::DiskError;
use crate::flush::lock;
use crate::gate::Guarded;
use crate::image::{ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use crate::poison::Poison;
use crate::storage::{BlockFile, FileExtent};

/// More stripes than threads that could meet; each costs a few bytes.
pub(super) const STRIPES: usize = 256;

/// An open image.
pub(super) struct Core {
    pub(super) view: View,
    pub(super) read_only: bool,
    pub(super) parameters: Parameters,
    /// Who has the blocks that are not here.
    pub(super) parent: Option<Arc<dyn Image>>,
    pub(super) bat: Bat,
    pub(super) bitmaps: Bitmaps,
    pub(super) space: Mutex<Space>,
    pub(super) headers: Mutex<Headers>,
    pub(super) durable: Durable,
    pub(super) stripes: Vec<RwLock<()>>,
}

/// The part of a request that lies in one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) block: u64,
    /// From the block's start.
    pub(super) within: u64,
    pub(super) length: u64,
    /// From the request's start.
    pub(super) done: u64,
}

impl Guarded for Core {
    fn name(&self) -> &str {
        &self.view.name
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn poison(&self) -> &Poison {
        &self.durable.poison
    }

    fn size_bytes(&self) -> u64 {
        self.parameters.size_bytes
    }

    fn geometry(&self) -> Geometry {
        self.parameters.geometry(self.read_only)
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        let failed = |e| DiskError::io(format!("read length and time of {}", self.view.name), e);
        Ok(Identity {
            data_write_id: lock(&self.headers).current.data_write,
            file_bytes: self.file().length().map_err(failed)?,
            modified_ns: self.file().modified_ns().map_err(failed)?,
        })
    }

    fn runs(&self, offset: u64, length: u64) -> Result<Vec<Run>, DiskError> {
        let block_bytes = self.bat.shape.block_bytes;
        let block = offset / block_bytes;
        let hole = |length| Ok(vec![Run::here(offset, length, ExtentKind::Hole)]);
        let blank = self.bat.blank_blocks(block);
        if blank > 0 {
            let end = (block + blank).saturating_mul(block_bytes);
            let length = length.min(end - offset);
            return match self.bat.find(block) {
                Found::Zeros => hole(length),
                // It got space since, or the parent has it: block by block.
                Found::Parent => self.parent_runs(offset, length),
                Found::Here(_) | Found::Partly(_) => self.runs(offset, length.min(block_bytes)),
            };
        }
        let within = offset % block_bytes;
        let length = length.min(block_bytes - within);
        let _shared = self.share(block);
        let at = match self.bat.find(block) {
            Found::Here(at) => at,
            Found::Partly(_) => {
                return self.runs_partly(Piece {
                    block,
                    within,
                    length,
                    done: 0,
                });
            }
            Found::Parent => return self.parent_runs(offset, length),
            Found::Zeros => return hole(length),
        };
        if !self.view.is_plain() {
            return Ok(vec![Run::here(offset, length, ExtentKind::Data)]);
        }
        let mut runs = Vec::new();
        let hole = if self.parameters.leave_allocated {
            ExtentKind::Zero
        } else {
            ExtentKind::Hole
        };
        let listed = self
            .file()
            .extents(at + within, length, &mut |from, length, kind| {
                let kind = if kind == FileExtent::Hole {
                    hole
                } else {
                    ExtentKind::Data
                };
                let from = offset + (from - at - within);
                runs.push(Run::here(from, length, kind));
                true
            });
        match listed {
            Ok(()) => Ok(runs),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                Ok(vec![Run::here(offset, length, ExtentKind::Data)])
            }
            Err(e) => Err(self.failed("list extents of", length, at + within)(e)),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        // The one of its own, in `durable`; so with `shut`.
        Self::flush(self)
    }

    fn shut(&self) -> Result<(), DiskError> {
        Self::shut(self)
    }
}

impl Core {
    pub(super) fn file(&self) -> &dyn BlockFile {
        self.view.file.as_ref()
    }

    pub(super) fn kind(&self) -> Kind {
        if self.parameters.leave_allocated {
            Kind::Fixed
        } else {
            Kind::Dynamic
        }
    }

    fn stripe(&self, block: u64) -> &RwLock<()> {
        &self.stripes[to_usize(block % to_u64(STRIPES))]
    }

    fn share(&self, block: u64) -> RwLockReadGuard<'_, ()> {
        self.stripe(block)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self, block: u64) -> RwLockWriteGuard<'_, ()> {
        self.stripe(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_bytes = self.bat.shape.block_bytes;
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done;
            let within = at % block_bytes;
            let step = (block_bytes - within).min(length - done);
            let piece = Piece {
                block: at / block_bytes,
                within,
                length: step,
                done,
            };
            done += step;
            (step > 0).then_some(piece)
        })
    }

    /// Whether the piece is all of its block that the disk shows.
    pub(super) fn is_whole(&self, piece: Piece) -> bool {
        let start = piece.block * self.bat.shape.block_bytes;
        let shown = self
            .bat
            .shape
            .block_bytes
            .min(self.parameters.size_bytes - start);
        piece.within == 0 && piece.length == shown
    }

    pub(super) fn failed(
        &self,
        what: &str,
        length: u64,
        at: u64,
    ) -> impl FnOnce(io::Error) -> DiskError {
        let action = format!("{what} {length} bytes at {at} of {}", self.view.name);
        move |e| DiskError::io(action, e)
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        for piece in self.pieces(offset, to_u64(buf.len())) {
            let part = &mut buf[to_usize(piece.done)..to_usize(piece.done + piece.length)];
            let _shared = self.share(piece.block);
            match self.bat.find(piece.block) {
                Found::Here(at) => self.view.read(part, at + piece.within)?,
                Found::Partly(at) => self.read_partly(part, piece, at)?,
                Found::Parent => self.read_parent(part, offset + piece.done)?,
                Found::Zeros => part.fill(0),
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.arm()?;
        let mut durable = true;
        for piece in self.pieces(offset, to_u64(buf.len())) {
            let part = &buf[to_usize(piece.done)..to_usize(piece.done + piece.length)];
            durable &= self.write_piece(piece, part, fua)?;
        }
        if fua && !durable {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Whether the piece is durable on return; it tries only for `fua`.
    fn write_piece(&self, piece: Piece, part: &[u8], fua: bool) -> Result<bool, DiskError> {
        {
            let _shared = self.share(piece.block);
            if let Some(at) = self.space_of(piece)? {
                return self.write_present(at + piece.within, part, fua);
            }
        }
        let _owned = self.own(piece.block);
        // Somebody else may have given it space before we got the lock.
        if let Some(at) = self.space_of(piece)? {
            return self.write_present(at + piece.within, part, fua);
        }
        self.write_absent(piece, Content::Bytes(part))?;
        Ok(false)
    }

    /// Where the piece's block is, if all of the piece is there.
    fn space_of(&self, piece: Piece) -> Result<Option<u64>, DiskError> {
        Ok(match self.bat.find(piece.block) {
            Found::Here(at) => Some(at),
            Found::Partly(at) if self.is_here(piece)? => Some(at),
            Found::Partly(_) | Found::Parent | Found::Zeros => None,
        })
    }

    /// Puts a piece where there is no space for all of it. The block's stripe is owned.
    fn write_absent(&self, piece: Piece, content: Content<'_>) -> Result<(), DiskError> {
        if self.bat.find(piece.block) != Found::Zeros {
            return self.write_over_parent(piece, content);
        }
        self.fill_new(piece.block, false, |at| {
            let span = Span {
                offset: at + piece.within,
                length: piece.length,
            };
            self.put(content, span)
        })
    }

    fn write_present(&self, at: u64, part: &[u8], fua: bool) -> Result<bool, DiskError> {
        // The entry was read before: if all changes up to now are durable, so is it.
        if fua && self.durable.is_clean() {
            self.file()
                .write_at_durable(part, at)
                .map_err(|e| self.fatal("write through", e))?;
            return Ok(true);
        }
        let written = self.file().write_at(part, at);
        // Also after a failure: some of it may be in the file.
        self.durable.note_write();
        written.map_err(self.failed("write", to_u64(part.len()), at))?;
        Ok(false)
    }

    /// Takes space that reads as zeros. The second value: it does so after a power loss, too.
    pub(super) fn take_space(&self, length: u64) -> Result<(Span, bool), DiskError> {
        let place = lock(&self.space)
            .take(self.file(), length)
            .map_err(self.failed("find space for", length, 0))?;
        self.durable.note_write();
        let span = Span {
            offset: place.offset,
            length,
        };
        if !place.known_zero
            && let Err(e) = self.put(Content::Hole, span)
        {
            lock(&self.space).give_back(span);
            return Err(self.failed("zero", span.length, span.offset)(e));
        }
        Ok((span, place.known_zero))
    }

    /// Gives an absent block space, lets `fill` put bytes there, and publishes it. `data_first`: they hide others.
    /// The block's stripe is owned.
    pub(super) fn fill_new(
        &self,
        block: u64,
        data_first: bool,
        fill: impl FnOnce(u64) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let (span, known_zero) = self.take_space(self.bat.shape.block_bytes)?;
        let published = fill(span.offset)
            .map_err(self.failed("write a new block of", span.length, span.offset))
            .and_then(|()| {
                let entry = BatEntry::present(span.offset);
                self.publish(block, entry, data_first || !known_zero)
            });
        if published.is_err() {
            // No entry ever named it.
            lock(&self.space).give_back(span);
        }
        self.durable.note_write();
        published
    }

    pub(super) fn zero(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        if mode == ZeroMode::FastOnly && !self.zeroes_fast() {
            return Err(DiskError::Unsupported {
                what: "zeroing without writing".to_owned(),
            });
        }
        self.arm()?;
        for piece in self.pieces(offset, length) {
            if mode == ZeroMode::KeepAllocated {
                self.zero_allocated(piece)?;
            } else if self.parameters.leave_allocated || !self.is_whole(piece) {
                self.zero_inside(piece)?;
            } else {
                self.unmap(piece.block)?;
            }
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// Whether the host zeroes a range without writing it; asked past the end, where it changes nothing.
    fn zeroes_fast(&self) -> bool {
        let end = lock(&self.space).length();
        if self.parameters.leave_allocated {
            self.file().zero_range(end, 4096).is_ok()
        } else {
            self.file().punch_hole(end, 4096).is_ok()
        }
    }

    /// Zeroes inside a block, where that takes a change; a fixed disk's block keeps its space.
    fn zero_inside(&self, piece: Piece) -> Result<(), DiskError> {
        let content = if self.parameters.leave_allocated {
            Content::Zeros
        } else {
            Content::Hole
        };
        {
            let _shared = self.share(piece.block);
            if let Some(at) = self.space_of(piece)? {
                return self.zero_present(piece, content, at);
            }
            if self.is_absent_zero(piece)? {
                return Ok(());
            }
        }
        let _owned = self.own(piece.block);
        if let Some(at) = self.space_of(piece)? {
            return self.zero_present(piece, content, at);
        }
        if self.is_absent_zero(piece)? {
            return Ok(());
        }
        self.write_absent(piece, content)
    }

    /// Whether a piece without space reads as zeros already.
    fn is_absent_zero(&self, piece: Piece) -> Result<bool, DiskError> {
        match self.bat.find(piece.block) {
            Found::Zeros => Ok(true),
            Found::Parent => self.is_over_zeros(piece.block, piece.within, piece.length),
            Found::Here(_) | Found::Partly(_) => Ok(false),
        }
    }

    fn zero_present(&self, piece: Piece, content: Content<'_>, at: u64) -> Result<(), DiskError> {
        let span = Span {
            offset: at + piece.within,
            length: piece.length,
        };
        let zeroed = self.put(content, span);
        self.durable.note_write();
        zeroed.map_err(self.failed("zero", span.length, span.offset))
    }

    /// Zeroes a piece and leaves it with space.
    fn zero_allocated(&self, piece: Piece) -> Result<(), DiskError> {
        let _owned = self.own(piece.block);
        match self.space_of(piece)? {
            Some(at) => self.zero_present(piece, Content::Zeros, at),
            None => self.write_absent(piece, Content::Zeros),
        }
    }

    /// Makes a whole block read as zeros and takes its space away.
    fn unmap(&self, block: u64) -> Result<(), DiskError> {
        let _owned = self.own(block);
        if self.bat.entry(block) == Some(BatEntry::ZERO) {
            return Ok(());
        }
        if self.bat.entry(block).is_none() {
            // Its page holds no space. Load it, so that blocks that only happen to read as
            // zeros (not present, undefined, unmapped) say so from now on.
            self.bat.load(&self.view, block)?;
            if self.bat.entry(block) == Some(BatEntry::ZERO) {
                return Ok(());
            }
        }
        self.publish(block, BatEntry::ZERO, false)
    }

    /// Whether a write needs no sync, as far as can be told without waiting.
    pub(super) fn is_quick_write(&self, offset: u64, length: usize) -> bool {
        /// Larger writes may wait for the host's memory.
        const QUICK_BYTES: usize = 64 << 10;
        if length > QUICK_BYTES || !self.durable.is_armed() {
            return false;
        }
        let length = to_u64(length);
        if self.parent.is_none() || offset.saturating_add(length) > self.parameters.size_bytes {
            return true;
        }
        // Bytes that hide the parent's are synced.
        self.pieces(offset, length)
            .all(|piece| match self.bat.find(piece.block) {
                Found::Here(_) | Found::Zeros => true,
                Found::Partly(_) => self.is_here(piece).unwrap_or(false),
                Found::Parent => false,
            })
    }
}
