//! The data path of dynamic and differencing disks.
//!
//! Owns: the table of blocks, their bitmaps, one lock per stripe of blocks. A block's users hold its
//! stripe shared; whoever gives a block space or changes its bitmap holds it alone, until all is in the file.
//!
//! A block once placed keeps its place; trimmed, its bytes become a hole of the host's file. There is no
//! log, so each change is written in an order in which every part of it may be lost:
//!
//! ```text
//! new block, dynamic               bytes; table. The bitmap of ones is durable since the file grew (see `space`),
//!                                  the rest is known to be zero: what is lost reads as zeros, as it did before,
//!                                  whether a program asks bitmaps or not
//! new block, zeros below it        bytes; bitmap of ones; table. What is lost shows the parent's zeros
//! sectors over a parent's bytes    bytes, sync, bitmap, table: a bit must not be durable before its bytes
//! zeros over a parent's bytes,     bitmap, table: the bytes are zero already
//!   in a new block
//! dynamic block of another         clear sectors zeroed, sync, bitmap of ones: once for each block
//!   program, bits clear
//! ```
//! A clear bit of a dynamic disk, which only other programs leave, is zeros to us; QEMU shows the bytes there.
//! "sync" is a flush that concurrent writers share.
//!
//! Does not do: changes of the file's end (see `durable`), flushes.
//!
//! # Invariants
//! 1. A block's bitmap and place change under its stripe held alone, in the file first and in memory after.
//! 2. No stripe is held while a caller's visitor runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::bat::Bat;
use super::below::{below_is_zero, read_below};
use super::bitmap::Bitmap;
use super::core::{Core, punch};
use super::layout::{Header, SECTOR, Shape, to_u64, to_usize};
use super::space::Space;
use crate::error::DiskError;
use crate::flush::lock;
use crate::image::{Image, ZeroMode};

/// More stripes than threads that could meet; each costs a few bytes.
const STRIPES: usize = 256;

/// Bitmaps that were read, of blocks that have space.
pub(super) type Stripe = HashMap<u64, Bitmap>;

/// What of the file's two footers must be written before anything else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) copy_is_bad: bool,
    pub(super) footer_is_bad: bool,
}

pub(super) struct Blocks {
    pub(super) shape: Shape,
    pub(super) header: Header,
    pub(super) header_offset: u64,
    pub(super) bat: Bat,
    pub(super) space: Mutex<Space>,
    pub(super) parent: Option<Arc<dyn Image>>,
    pub(super) ends: Ends,
    absent: AtomicU64,
    stripes: Vec<RwLock<Stripe>>,
}

/// The part of a request that lies in one block.
#[derive(Debug, Clone, Copy)]
struct Piece {
    block: u64,
    /// From the block's start.
    within: u64,
    length: u64,
    /// From the request's start.
    done: u64,
}

impl Piece {
    fn first(self) -> u64 {
        self.within / SECTOR
    }

    fn count(self) -> u64 {
        self.length / SECTOR
    }
}

/// What a piece becomes.
#[derive(Debug, Clone, Copy)]
enum Fill<'a> {
    Bytes { part: &'a [u8], fua: bool },
    Zeros(ZeroMode),
}

impl Blocks {
    pub(super) fn new(
        header: Header,
        header_offset: u64,
        bat: Bat,
        space: Space,
        ends: Ends,
    ) -> Self {
        let blocks = bat.len();
        let absent = (0..blocks).filter(|block| bat.place(*block).is_none());
        Self {
            shape: Shape::new(header.block_bytes()),
            absent: AtomicU64::new(to_u64(absent.count())),
            header,
            header_offset,
            bat,
            space: Mutex::new(space),
            parent: None,
            ends,
            stripes: (0..STRIPES).map(|_| RwLock::default()).collect(),
        }
    }

    /// How many blocks have no space.
    pub(super) fn absent(&self) -> u64 {
        self.absent.load(Ordering::Acquire)
    }

    /// The table has room for `added` more blocks.
    pub(super) fn add_absent(&mut self, added: u64) {
        *self.absent.get_mut() += added;
    }

    /// Whether a write there touches no table and no bitmap.
    pub(super) fn is_quick(&self, offset: u64, length: u64, size_bytes: u64) -> bool {
        self.parent.is_none()
            && length > 0
            && offset.saturating_add(length) <= size_bytes
            && self.bat.place(offset / self.shape.block_bytes).is_some()
            && self
                .bat
                .place((offset + length - 1) / self.shape.block_bytes)
                .is_some()
    }

    fn stripe(&self, block: u64) -> &RwLock<Stripe> {
        &self.stripes[to_usize(block % to_u64(STRIPES))]
    }

    fn share(&self, block: u64) -> RwLockReadGuard<'_, Stripe> {
        self.stripe(block)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self, block: u64) -> RwLockWriteGuard<'_, Stripe> {
        self.stripe(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_bytes = self.shape.block_bytes;
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

    /// Sectors of a block that count: of a child those that the disk shows, otherwise all.
    fn counted(&self, block: u64, size_bytes: u64) -> u64 {
        let all = self.shape.block_bytes / SECTOR;
        match self.parent {
            None => all,
            Some(_) => all.min(size_bytes / SECTOR - block * all),
        }
    }
}

impl Core {
    /// Holds a block's stripe shared. If the block has space, its place is given, and its bitmap is in the stripe.
    pub(super) fn see<'a>(
        &self,
        blocks: &'a Blocks,
        block: u64,
    ) -> Result<(RwLockReadGuard<'a, Stripe>, Option<u64>), DiskError> {
        loop {
            let stripe = blocks.share(block);
            let place = blocks.bat.place(block);
            if place.is_none() || stripe.contains_key(&block) {
                return Ok((stripe, place));
            }
            drop(stripe);
            let mut stripe = blocks.own(block);
            self.load(blocks, &mut stripe, block)?;
        }
    }

    /// Brings the bitmap of a block into memory, if it has space. Gives out its place.
    fn load(
        &self,
        blocks: &Blocks,
        stripe: &mut Stripe,
        block: u64,
    ) -> Result<Option<u64>, DiskError> {
        let Some(place) = blocks.bat.place(block) else {
            return Ok(None);
        };
        if let std::collections::hash_map::Entry::Vacant(vacant) = stripe.entry(block) {
            let mut bytes = vec![0; to_usize(blocks.shape.bitmap_bytes)];
            self.read_file(&mut bytes, place)?;
            let counted = blocks.counted(block, self.size_bytes);
            vacant.insert(Bitmap::of(&bytes, blocks.shape, counted));
        }
        Ok(Some(place))
    }

    pub(super) fn read_blocks(
        &self,
        blocks: &Blocks,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), DiskError> {
        for piece in blocks.pieces(offset, to_u64(buf.len())) {
            let part = &mut buf[to_usize(piece.done)..to_usize(piece.done + piece.length)];
            let (stripe, place) = self.see(blocks, piece.block)?;
            let Some(place) = place else {
                drop(stripe);
                // Whoever gives it space now has not been answered.
                read_below(blocks, part, offset + piece.done)?;
                continue;
            };
            let data = place + blocks.shape.bitmap_bytes;
            for stretch in stripe[&piece.block].stretches(piece.first(), piece.count()) {
                let from = stretch.first * SECTOR - piece.within;
                let into = &mut part[to_usize(from)..to_usize(from + stretch.count * SECTOR)];
                if stretch.here {
                    self.read_file(into, data + stretch.first * SECTOR)?;
                } else {
                    read_below(blocks, into, offset + piece.done + from)?;
                }
            }
        }
        Ok(())
    }

    /// Whether all of it is durable on return; it tries only for `fua`.
    pub(super) fn write_blocks(
        &self,
        blocks: &Blocks,
        buf: &[u8],
        offset: u64,
        fua: bool,
    ) -> Result<bool, DiskError> {
        let mut durable = true;
        for piece in blocks.pieces(offset, to_u64(buf.len())) {
            let part = &buf[to_usize(piece.done)..to_usize(piece.done + piece.length)];
            durable &= self.fill(blocks, piece, Fill::Bytes { part, fua })?;
        }
        Ok(durable)
    }

    pub(super) fn zero_blocks(
        &self,
        blocks: &Blocks,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), DiskError> {
        for piece in blocks.pieces(offset, length) {
            let keep = mode == ZeroMode::KeepAllocated;
            if !keep && blocks.bat.place(piece.block).is_none() {
                // Whoever gives it space now has not been answered.
                if below_is_zero(blocks, offset + piece.done, piece.length)? {
                    continue;
                }
            }
            self.fill(blocks, piece, Fill::Zeros(mode))?;
        }
        Ok(())
    }

    fn fill(&self, blocks: &Blocks, piece: Piece, fill: Fill<'_>) -> Result<bool, DiskError> {
        {
            let (stripe, place) = self.see(blocks, piece.block)?;
            if let Some(place) = place
                && stripe[&piece.block].is_here(piece.first(), piece.count())
            {
                return self.fill_present(blocks, place, piece, fill);
            }
        }
        let mut stripe = blocks.own(piece.block);
        // Somebody else may have been here before we got the lock.
        match self.load(blocks, &mut stripe, piece.block)? {
            None => self.fill_new(blocks, &mut stripe, piece, fill)?,
            Some(place) if stripe[&piece.block].is_here(piece.first(), piece.count()) => {
                return self.fill_present(blocks, place, piece, fill);
            }
            Some(place) if blocks.parent.is_none() => {
                self.complete(blocks, &mut stripe, piece.block, place)?;
                return self.fill_present(blocks, place, piece, fill);
            }
            Some(place) => self.cover(blocks, &mut stripe, place, piece, fill)?,
        }
        Ok(false)
    }

    fn fill_present(
        &self,
        blocks: &Blocks,
        place: u64,
        piece: Piece,
        fill: Fill<'_>,
    ) -> Result<bool, DiskError> {
        let at = place + blocks.shape.bitmap_bytes + piece.within;
        match fill {
            Fill::Bytes { part, fua } => self.write_present(at, part, fua),
            Fill::Zeros(mode) => {
                self.zero_present(at, piece.length, mode)?;
                Ok(false)
            }
        }
    }

    /// Gives an absent block space. Its stripe is owned.
    fn fill_new(
        &self,
        blocks: &Blocks,
        stripe: &mut Stripe,
        piece: Piece,
        fill: Fill<'_>,
    ) -> Result<(), DiskError> {
        let start = piece.block * blocks.shape.block_bytes;
        let shown = blocks.shape.block_bytes.min(self.size_bytes - start);
        let all_zero_below = below_is_zero(blocks, start, shown)?;
        let place = self.take_place(blocks)?;
        let filled = match fill {
            // The place is known to be zero.
            Fill::Zeros(ZeroMode::MayUnmap | ZeroMode::FastOnly) => Ok(()),
            Fill::Zeros(ZeroMode::KeepAllocated) | Fill::Bytes { .. } => self
                .fill_present(blocks, place, piece, without_fua(fill))
                .map(|_| ()),
        };
        if let Err(e) = filled {
            // No table ever named it.
            lock(&blocks.space).spoiled.push(place);
            return Err(e);
        }
        let bitmap = if all_zero_below {
            Bitmap::Full
        } else {
            if matches!(fill, Fill::Bytes { .. }) {
                // Bytes before their bits: a lost byte would hide the parent's.
                self.flush()?;
            }
            let counted = blocks.counted(piece.block, self.size_bytes);
            Bitmap::empty(blocks.shape).with(piece.first(), piece.count(), counted)
        };
        let sector = u32::try_from(place / SECTOR).expect("the file was kept below 2 TiB");
        // A dynamic disk's place has its bitmap already.
        if blocks.parent.is_some() {
            self.file
                .write_at(&bitmap.encode(blocks.shape), place)
                .map_err(|e| self.fatal("write a bitmap", e))?;
        }
        self.file
            .write_at(&sector.to_be_bytes(), blocks.bat.entry_offset(piece.block))
            .map_err(|e| self.fatal("write the BAT", e))?;
        self.durable.note_change();
        stripe.insert(piece.block, bitmap);
        blocks.bat.publish(piece.block, sector);
        blocks.absent.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Room for a block, known to be zero; in a dynamic disk with its bitmap.
    fn take_place(&self, blocks: &Blocks) -> Result<u64, DiskError> {
        let mut space = lock(&blocks.space);
        if let Some(&place) = space.spoiled.last() {
            // The bitmap is as it was: it is written last, and a failure of that is final.
            let (at, length) = (place + blocks.shape.bitmap_bytes, blocks.shape.block_bytes);
            punch(&*self.file, at, length).map_err(self.failed("clean", length, at))?;
            // Zero before it is used again.
            self.sync()?;
            space.spoiled.pop();
            return Ok(place);
        }
        if let Some(place) = space.take(blocks.shape) {
            return Ok(place);
        }
        self.grow_file(blocks, &mut space)?;
        Ok(space.take(blocks.shape).expect("it grew by a block"))
    }

    /// Puts sectors over the parent's into a block that has space. Its stripe is owned.
    fn cover(
        &self,
        blocks: &Blocks,
        stripe: &mut Stripe,
        place: u64,
        piece: Piece,
        fill: Fill<'_>,
    ) -> Result<(), DiskError> {
        self.fill_present(blocks, place, piece, without_fua(fill))?;
        // Bytes before their bits: a lost byte would hide the parent's.
        self.flush()?;
        let counted = blocks.counted(piece.block, self.size_bytes);
        let bitmap = stripe[&piece.block].with(piece.first(), piece.count(), counted);
        // Only the sectors of the bitmap that changed.
        let bits_in_sector = SECTOR * 8;
        let from = piece.first() / bits_in_sector * SECTOR;
        let end = (piece.first() + piece.count()).div_ceil(bits_in_sector) * SECTOR;
        let bytes = &bitmap.encode(blocks.shape)[to_usize(from)..to_usize(end)];
        self.put_bitmap(stripe, piece.block, (place + from, bytes), bitmap)
    }

    /// Makes a dynamic disk's block one whose sectors are all there.
    pub(super) fn complete(
        &self,
        blocks: &Blocks,
        stripe: &mut Stripe,
        block: u64,
        place: u64,
    ) -> Result<(), DiskError> {
        let data = place + blocks.shape.bitmap_bytes;
        let all = blocks.shape.block_bytes / SECTOR;
        for stretch in stripe[&block].stretches(0, all).filter(|s| !s.here) {
            let (at, length) = (data + stretch.first * SECTOR, stretch.count * SECTOR);
            self.zero_present(at, length, ZeroMode::MayUnmap)?;
        }
        // Zeros before the bits that make them count.
        self.flush()?;
        let bytes = Bitmap::Full.encode(blocks.shape);
        self.put_bitmap(stripe, block, (place, &bytes), Bitmap::Full)
    }

    fn put_bitmap(
        &self,
        stripe: &mut Stripe,
        block: u64,
        (at, bytes): (u64, &[u8]),
        bitmap: Bitmap,
    ) -> Result<(), DiskError> {
        self.file
            .write_at(bytes, at)
            .map_err(|e| self.fatal("write a bitmap", e))?;
        self.durable.note_change();
        stripe.insert(block, bitmap);
        Ok(())
    }

    /// Bytes of the last block that the disk does not show become zeros. The image is ours alone.
    pub(super) fn zero_hidden_rest(&self, blocks: &Blocks) -> Result<(), DiskError> {
        let block = self.size_bytes / blocks.shape.block_bytes;
        let within = self.size_bytes % blocks.shape.block_bytes;
        if within == 0 {
            return Ok(());
        }
        let mut stripe = blocks.own(block);
        let Some(place) = self.load(blocks, &mut stripe, block)? else {
            return Ok(());
        };
        if stripe[&block] != Bitmap::Full {
            self.complete(blocks, &mut stripe, block, place)?;
        }
        let at = place + blocks.shape.bitmap_bytes + within;
        self.zero_present(at, blocks.shape.block_bytes - within, ZeroMode::MayUnmap)
    }
}

fn without_fua(fill: Fill<'_>) -> Fill<'_> {
    match fill {
        Fill::Bytes { part, .. } => Fill::Bytes { part, fua: false },
        other @ Fill::Zeros(_) => other,
    }
}
