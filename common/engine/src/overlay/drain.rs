//! An overlay that goes down into the image below, while it is written to.
//!
//! Owns: where a write goes from then on, and the order in which blocks go down. Receives the image that may be
//! written. The blocks that are here grow fewer until there are none: a block that is not here is written below.
//!
//! The order, invariant 5: bytes below; sync of what is below; bits without the block, durable; live bits without it;
//! only then is it written below. A block that was written here meanwhile stays until the next turn.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use sitepair_disk::{DiskError, Image, ZeroMode};
use sitepair_model::extent::{BLOCK_BYTES, Extent};

use super::{Header, Overlay, Owner, extent_of, sectors_of};
use crate::blocks::sector::{SECTOR_BITS, Sector, encode_sector};
use crate::locked;

/// Blocks that are copied under one lock: 1 MiB.
const COPY_BLOCKS: u64 = 256;
/// Blocks that go down in one turn, which costs three syncs: 32 MiB.
const TURN_BLOCKS: u64 = 8192;

impl Overlay {
    /// Lets the blocks go down into `image` from now on, and writes go there that are of no block here. `image` holds
    /// the same as what was below so far.
    pub fn sink_into(&self, image: Arc<dyn Image>) {
        *self.below.write().unwrap_or_else(PoisonError::into_inner) = image;
        self.sinks.store(true, Ordering::Release);
    }

    /// Bytes that are here.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.owned.count() * BLOCK_BYTES
    }

    /// Brings some of the blocks down. Gives the number of bytes that are left; with 0 nothing is here any more, and
    /// nothing will be. The overlay must [sink](Self::sink_into). Blocks.
    ///
    /// # Errors
    /// Those of the image below, after which it may be tried again; those of the overlay's file.
    pub fn drain(&self) -> Result<u64, DiskError> {
        self.check(0, 0)?;
        // Bits that speak of bytes that are not durable are not in the way then.
        self.flush()?;
        let runs = self.next_turn();
        if runs.is_empty() {
            return Ok(0);
        }
        let below = self.below();
        for run in &runs {
            let _held = self.locks.lock(run.start, run.end);
            self.touched.remove_range(run.start, run.end);
            self.copy_down(&*below, run)?;
        }
        below.flush()?;
        self.let_go(&runs)?;
        Ok(self.held_bytes())
    }

    fn next_turn(&self) -> Vec<Range<u64>> {
        let (mut runs, mut count, mut at) = (Vec::new(), 0, 0);
        while count < TURN_BLOCKS
            && let Some(run) = self.owned.next_run(at, u64::MAX, COPY_BLOCKS)
        {
            at = run.end;
            count += run.end - run.start;
            runs.push(run);
        }
        runs
    }

    fn copy_down(&self, below: &dyn Image, run: &Range<u64>) -> Result<(), DiskError> {
        self.pieces(self.inside(run), |piece, owner| match owner {
            Owner::Below => Ok(()),
            Owner::Hole => {
                below.write_zeroes(piece.offset, piece.length, ZeroMode::MayUnmap, false)
            }
            Owner::Data => {
                let mut bytes = vec![0; usize::try_from(piece.length).expect("at most 1 MiB")];
                self.file
                    .read_at(&mut bytes, self.header.data_offset() + piece.offset)
                    .map_err(|e| self.io("read", piece, e))?;
                below.write_at(&bytes, piece.offset, false)
            }
        })
    }

    /// Takes the blocks out that were not written since they were copied.
    fn let_go(&self, runs: &[Range<u64>]) -> Result<(), DiskError> {
        // A round of flushing would write the bits again.
        let _no_round = locked(&self.flushed);
        let mut sectors: Vec<u64> = runs.iter().flat_map(sectors_of).collect();
        sectors.dedup();
        for sector in sectors {
            self.file
                .write_at(&self.bits_without(sector, runs), Header::sector_at(sector))
                .map_err(|e| self.poison("record blocks that went down in", e))?;
        }
        self.file.sync().map_err(|e| self.poison("sync", e))?;
        for run in runs {
            let _held = self.locks.lock(run.start, run.end);
            let mut at = run.start;
            while at < run.end {
                let touched = self.touched.next_run(at, run.end, u64::MAX);
                let touched = touched.unwrap_or(run.end..run.end);
                self.forget(&(at..touched.start))?;
                // Its durable bit may be gone.
                self.unsaved_in(&touched);
                at = touched.end;
            }
        }
        Ok(())
    }

    /// A sector of bits as it is with none of `runs` but what was written since it was copied.
    fn bits_without(&self, sector: u64, runs: &[Range<u64>]) -> Sector {
        let (first, end) = (sector * SECTOR_BITS, (sector + 1) * SECTOR_BITS);
        let goes = |block: u64| {
            let at = runs.partition_point(|run| run.end <= block);
            let copied = runs.get(at).is_some_and(|run| run.contains(&block));
            copied && self.touched.next_set(block, block + 1).is_none()
        };
        let (mut at, mut bits) = (first, Vec::new());
        while let Some(run) = self.owned.next_run(at, end, u64::MAX) {
            at = run.end;
            bits.extend(run.filter(|block| !goes(*block)).map(|block| block - first));
        }
        encode_sector(bits.into_iter())
    }

    /// The blocks are no longer here; the range must be locked.
    fn forget(&self, blocks: &Range<u64>) -> Result<(), DiskError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let extent = self.inside(blocks);
        let mut space = 0;
        self.pieces(extent, |piece, owner| {
            space += u64::from(owner == Owner::Data) * piece.length.div_ceil(BLOCK_BYTES);
            Ok(())
        })?;
        self.live
            .remove(&*self.file, &self.header, &self.owned, blocks)
            .map_err(|e| self.poison("record blocks that went down in", e))?;
        self.holes.remove_range(blocks.start, blocks.end);
        self.space.give_back(space);
        let at = self.header.data_offset() + extent.offset;
        match self.file.punch_hole(at, extent.length) {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => {
                Err(self.io("free", extent, e))
            }
            _ => Ok(()),
        }
    }

    /// The part of whole blocks that is on the disk.
    fn inside(&self, blocks: &Range<u64>) -> Extent {
        let Extent { offset, length } = extent_of(blocks);
        Extent::new(offset, length.min(self.header.size_bytes - offset))
    }

    /// Gives each part of a range to who takes its writes: the image below, or none for the overlay itself. The range must
    /// be locked.
    pub(super) fn place(
        &self,
        extent: Extent,
        mut write: impl FnMut(Extent, Option<&dyn Image>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        if !self.sinks.load(Ordering::Acquire) {
            return write(extent, None);
        }
        let below = self.below();
        self.pieces(extent, |piece, owner| {
            write(piece, (owner == Owner::Below).then_some(&*below))
        })
    }
}
