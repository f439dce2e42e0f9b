//! Which blocks are in an overlay, as a process that is killed leaves it.
//!
//! Owns: a bitmap in the overlay's file that is written before a write is answered, and never synced. After a kill
//! the kernel still has it, and the guest goes on with the next process as if nothing had happened. After another boot
//! of the host it says nothing: bits may have reached the disk before the bytes they speak of.

use std::ops::Range;
use std::sync::Mutex;

use sitepair_disk::storage::{BlockFile, FileExtent};
use std::io;

use super::header::Header;
use crate::blocks::set::BlockSet;
use crate::locked;

/// Identity of a boot of the host.
pub(super) type BootId = [u8; 16];

/// Bytes that are read or written at once.
const PIECE_BYTES: u64 = 64 << 10;

/// The bitmap. Holds the lock under which bytes of it change.
#[derive(Debug, Default)]
pub(super) struct Live {
    one: Mutex<()>,
}

impl Live {
    /// Begins a new file's bitmap, in which there is nothing.
    pub(super) fn begin(file: &dyn BlockFile, header: &Header, boot: BootId) -> io::Result<()> {
        file.write_at(&boot, header.live_offset())
    }

    /// Adds to `blocks` what an earlier process of this boot left; forgets what one of another boot did.
    pub(super) fn load(
        file: &dyn BlockFile,
        header: &Header,
        boot: BootId,
        blocks: &BlockSet,
    ) -> io::Result<()> {
        let mut written = [0; 16];
        file.read_at(&mut written, header.live_offset())?;
        let bits = header.live_bits();
        if written == boot {
            return for_each_data(file, bits.clone(), |at, bytes| {
                add_bits(blocks, (at - bits.start) * 8, bytes);
                Ok(())
            });
        }
        for_each_data(file, bits, |at, bytes| {
            bytes.fill(0);
            file.write_at(bytes, at)
        })?;
        // Before they count as of this boot.
        file.sync()?;
        file.write_at(&boot, header.live_offset())
    }

    /// Adds a run to the bitmap, then to `blocks`.
    pub(super) fn insert(
        &self,
        file: &dyn BlockFile,
        header: &Header,
        blocks: &BlockSet,
        run: &Range<u64>,
    ) -> io::Result<()> {
        let _one = locked(&self.one);
        write_bits(file, header, blocks, run, true)?;
        blocks.insert_range(run.start, run.end);
        Ok(())
    }

    /// Takes a run out of the bitmap, then out of `blocks`.
    pub(super) fn remove(
        &self,
        file: &dyn BlockFile,
        header: &Header,
        blocks: &BlockSet,
        run: &Range<u64>,
    ) -> io::Result<()> {
        let _one = locked(&self.one);
        write_bits(file, header, blocks, run, false)?;
        blocks.remove_range(run.start, run.end);
        Ok(())
    }
}

/// Writes the bytes of a run's bits, the run set or not, the others as `blocks` has them.
fn write_bits(
    file: &dyn BlockFile,
    header: &Header,
    blocks: &BlockSet,
    run: &Range<u64>,
    set: bool,
) -> io::Result<()> {
    let end_byte = run.end.div_ceil(8);
    let mut byte = run.start / 8;
    while byte < end_byte {
        let count = (end_byte - byte).min(PIECE_BYTES);
        let bytes: Vec<u8> = (byte..byte + count)
            .map(|byte| {
                (0..8).fold(0, |bits, bit| {
                    let block = byte * 8 + bit;
                    let is_set = if run.contains(&block) {
                        set
                    } else {
                        blocks.next_set(block, block + 1).is_some()
                    };
                    bits | u8::from(is_set) << bit
                })
            })
            .collect();
        file.write_at(&bytes, header.live_bits().start + byte)?;
        byte += count;
    }
    Ok(())
}

fn add_bits(blocks: &BlockSet, first: u64, bytes: &[u8]) {
    for (at, byte) in (first..).step_by(8).zip(bytes).filter(|(_, b)| **b != 0) {
        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
            // A bit past the end is none of ours.
            if at + bit < blocks.bound() {
                blocks.insert_range(at + bit, at + bit + 1);
            }
        }
    }
}

/// Reads the parts of a range of a file that are not holes.
fn for_each_data(
    file: &dyn BlockFile,
    range: Range<u64>,
    mut visit: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut runs = Vec::new();
    file.extents(
        range.start,
        range.end - range.start,
        &mut |at, length, kind| {
            if kind == FileExtent::Data {
                runs.push(at..at + length);
            }
            true
        },
    )?;
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let length = (run.end - at).min(PIECE_BYTES);
            let mut bytes = vec![0; usize::try_from(length).expect("a piece")];
            file.read_at(&mut bytes, at)?;
            visit(at, &mut bytes)?;
            at += length;
        }
    }
    Ok(())
}
