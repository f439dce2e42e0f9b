//! What shows where a disk of blocks has no sector of its own: the parent's, or zeros. And which is where.
//!
//! Does not do: writing; parents are read only.

use super::blocks::Blocks;
use super::core::Core;
use super::layout::{SECTOR, to_u64, to_usize};
use crate::error::DiskError;
use crate::image::{ExtentKind, Run};

impl Core {
    /// What the disk holds from `offset`, at most `length` bytes of it. Covers at least a byte.
    pub(super) fn block_runs(
        &self,
        blocks: &Blocks,
        offset: u64,
        length: u64,
        runs: &mut Vec<Run>,
    ) -> Result<(), DiskError> {
        let block_bytes = blocks.shape.block_bytes;
        let block = offset / block_bytes;
        let end = blocks.shape.blocks(offset + length);
        let absent = blocks.bat.absent_from(block, end);
        if absent > 0 {
            let length = length.min((block + absent) * block_bytes - offset);
            return below_runs(blocks, offset, length, runs);
        }
        let within = offset % block_bytes;
        let sectors = length.min(block_bytes - within) / SECTOR;
        // It has space for good, so the stripe need not be held while files are asked.
        let bitmap = {
            let (stripe, _) = self.see(blocks, block)?;
            stripe[&block].clone()
        };
        let place = blocks.bat.place(block).expect("blocks keep their places");
        let data = place + blocks.shape.bitmap_bytes;
        for stretch in bitmap.stretches(within / SECTOR, sectors) {
            let length = stretch.count * SECTOR;
            let from = block * block_bytes + stretch.first * SECTOR;
            if stretch.here {
                let at = data + stretch.first * SECTOR;
                self.file_runs((from, at), length, ExtentKind::Hole, runs)?;
            } else {
                below_runs(blocks, from, length, runs)?;
            }
            if runs.last().map(Run::end) != Some(from + length) {
                // It stopped early; the caller asks again from there.
                break;
            }
        }
        Ok(())
    }
}

/// Reads what shows where a disk has no sector of its own: the parent's, or zeros.
pub(super) fn read_below(blocks: &Blocks, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
    let there = match &blocks.parent {
        None => 0,
        Some(parent) => {
            let size = parent.geometry().size_bytes;
            to_usize(size.saturating_sub(offset).min(to_u64(buf.len())))
        }
    };
    let (parents, rest) = buf.split_at_mut(there);
    if let Some(parent) = &blocks.parent
        && !parents.is_empty()
    {
        parent.read_at(parents, offset)?;
    }
    rest.fill(0);
    Ok(())
}

fn below_runs(
    blocks: &Blocks,
    offset: u64,
    length: u64,
    runs: &mut Vec<Run>,
) -> Result<(), DiskError> {
    /// Bounds the memory of one answer.
    const AT_ONCE: usize = 1024;
    let most = runs.len() + AT_ONCE;
    let there = match &blocks.parent {
        None => 0,
        Some(parent) => {
            let size = parent.geometry().size_bytes;
            size.saturating_sub(offset).min(length)
        }
    };
    if let Some(parent) = &blocks.parent
        && there > 0
    {
        let mut stopped = false;
        parent.extents(offset, there, &mut |run| {
            runs.push(run.below());
            stopped = runs.len() >= most;
            !stopped
        })?;
        if stopped {
            return Ok(());
        }
    }
    if there < length {
        runs.push(Run::here(offset + there, length - there, ExtentKind::Hole));
    }
    Ok(())
}

/// Whether the parents surely hold zeros there. May say no for zeros.
pub(super) fn below_is_zero(blocks: &Blocks, offset: u64, length: u64) -> Result<bool, DiskError> {
    let Some(parent) = &blocks.parent else {
        return Ok(true);
    };
    let there = parent
        .geometry()
        .size_bytes
        .saturating_sub(offset)
        .min(length);
    let mut zero = true;
    if there > 0 {
        parent.extents(offset, there, &mut |run| {
            zero = run.kind != ExtentKind::Data;
            zero
        })?;
    }
    Ok(zero)
}
