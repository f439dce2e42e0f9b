//! The write side of an overlay: blocks that come here, and the space they take.
//!
//! All of it is done with the range locked.

use std::ops::Range;
use std::sync::atomic::Ordering;

use sitepair_disk::{DiskError, ZeroMode};
use sitepair_model::extent::{BLOCK_BYTES, Extent};

use super::{Overlay, Owner, blocks_of, extent_of, sectors_of};
use crate::locked;

/// Most zeros that are written at once where a file system cannot make holes.
const ZEROS_BYTES: usize = 1 << 20;

impl Overlay {
    /// Takes room for the blocks of a range that have none yet. Gives their number, to be given back on a failure.
    fn reserve(&self, blocks: &Range<u64>) -> Result<u64, DiskError> {
        let mut wanted = 0;
        let mut at = blocks.start;
        while at < blocks.end {
            let (owner, until) = self.owner_at(at, blocks.end);
            if owner != Owner::Data {
                wanted += until - at;
            }
            at = until;
        }
        self.space.take(wanted)?;
        Ok(wanted)
    }

    /// Runs what writes data into `blocks`; afterwards they are here and take space.
    fn with_data(
        &self,
        blocks: &Range<u64>,
        write: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let reserved = self.reserve(blocks)?;
        let owned = write().and_then(|()| self.own(blocks));
        owned.inspect_err(|_| self.space.give_back(reserved))?;
        self.holes.remove_range(blocks.start, blocks.end);
        Ok(())
    }

    /// The blocks are here from now on. What they hold is written already: invariants 1 and 4.
    fn own(&self, blocks: &Range<u64>) -> Result<(), DiskError> {
        if self.sinks.load(Ordering::Acquire) {
            self.touched.insert_range(blocks.start, blocks.end);
        }
        let there = self.owned.next_run(blocks.start, blocks.end, u64::MAX);
        if there.as_ref() == Some(blocks) {
            return Ok(());
        }
        self.live
            .insert(&*self.file, &self.header, &self.owned, blocks)
            .map_err(|e| self.io("record", extent_of(blocks), e))?;
        self.unsaved_in(blocks);
        Ok(())
    }

    /// The bits of these blocks are to be saved with the next flush.
    pub(super) fn unsaved_in(&self, blocks: &Range<u64>) {
        locked(&self.unsaved).extend(sectors_of(blocks));
    }

    /// Brings a block up from below before a part of it is written: invariant 2.
    fn bring_up(&self, block: u64) -> Result<(), DiskError> {
        if self.owner_at(block, block + 1).0 != Owner::Below {
            return Ok(());
        }
        let offset = block * BLOCK_BYTES;
        let length = BLOCK_BYTES.min(self.header.size_bytes - offset);
        let mut buf = vec![0; usize::try_from(length).expect("at most a block")];
        self.below().read_at(&mut buf, offset)?;
        self.file
            .write_at(&buf, self.header.data_offset() + offset)
            .map_err(|e| self.io("copy up", Extent::new(offset, length), e))
    }

    /// Writes less than whole blocks too, here.
    pub(super) fn write_here(&self, buf: &[u8], extent: Extent) -> Result<(), DiskError> {
        let blocks = blocks_of(extent);
        self.with_data(&blocks, || {
            let whole = self.whole_blocks(extent);
            for block in [blocks.start, blocks.end - 1] {
                if !whole.contains(&block) {
                    self.bring_up(block)?;
                }
            }
            self.file
                .write_at(buf, self.header.data_offset() + extent.offset)
                .map_err(|e| self.io("write", extent, e))
        })
    }

    /// The blocks that a range covers whole; the disk's last one may be short.
    fn whole_blocks(&self, extent: Extent) -> Range<u64> {
        let end = extent.offset + extent.length;
        let first = extent.offset.div_ceil(BLOCK_BYTES);
        let last = if end == self.header.size_bytes {
            end.div_ceil(BLOCK_BYTES)
        } else {
            end / BLOCK_BYTES
        };
        first..last.max(first)
    }

    /// Makes zeros here.
    pub(super) fn zero_here(&self, extent: Extent, mode: ZeroMode) -> Result<(), DiskError> {
        let whole = self.whole_blocks(extent);
        let end = extent.offset + extent.length;
        let zeros = |from: u64, to: u64| {
            let zeros = vec![0; usize::try_from(to - from).expect("less than two blocks")];
            self.write_here(&zeros, Extent::new(from, to - from))
        };
        if whole.is_empty() {
            // A part of one block, or of two that meet.
            return zeros(extent.offset, end);
        }
        let (from, to) = (whole.start * BLOCK_BYTES, whole.end * BLOCK_BYTES);
        for (start, stop) in [(extent.offset, from), (to, end)] {
            if start < stop {
                zeros(start, stop)?;
            }
        }
        self.zero_whole(&whole, mode)
    }

    /// Makes whole blocks zeros.
    fn zero_whole(&self, blocks: &Range<u64>, mode: ZeroMode) -> Result<(), DiskError> {
        let offset = blocks.start * BLOCK_BYTES;
        let end = (blocks.end * BLOCK_BYTES).min(self.header.size_bytes);
        let extent = Extent::new(offset, end - offset);
        let at = self.header.data_offset() + offset;
        if mode != ZeroMode::KeepAllocated {
            // Also where no block is: a write that failed may have left bytes there.
            match self.file.punch_hole(at, extent.length) {
                Ok(()) => {
                    let mut freed = 0;
                    self.pieces(extent, |piece, owner| {
                        if owner == Owner::Data {
                            freed += piece.length.div_ceil(BLOCK_BYTES);
                        }
                        Ok(())
                    })?;
                    self.own(blocks)?;
                    self.holes.insert_range(blocks.start, blocks.end);
                    self.space.give_back(freed);
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
                Err(e) => return Err(self.io("make zeros of", extent, e)),
            }
        }
        self.with_data(blocks, || self.write_zeros(extent))
    }

    fn write_zeros(&self, extent: Extent) -> Result<(), DiskError> {
        let failed = |e| self.io("make zeros of", extent, e);
        let at = self.header.data_offset() + extent.offset;
        match self.file.zero_range(at, extent.length) {
            Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
            done => return done.map_err(failed),
        }
        let zeros = vec![0; ZEROS_BYTES];
        let mut done = 0;
        while done < extent.length {
            let left = usize::try_from(extent.length - done).unwrap_or(usize::MAX);
            let part = &zeros[..left.min(ZEROS_BYTES)];
            self.file.write_at(part, at + done).map_err(failed)?;
            done += u64::try_from(part.len()).expect("at most a buffer");
        }
        Ok(())
    }
}
