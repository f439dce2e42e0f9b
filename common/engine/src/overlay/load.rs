//! Opening an overlay: which blocks are in its file, and which of them are holes.

use std::ops::Range;

use sitepair_disk::DiskError;
use sitepair_disk::storage::{BlockFile, FileExtent};
use sitepair_model::extent::{BLOCK_BYTES, block_count};

use super::Overlay;
use super::header::Header;
use super::live::{BootId, Live};
use crate::blocks::sector::{SECTOR_BYTES, decode_sector};

impl Overlay {
    /// Reads which blocks are here, and which of them are holes.
    pub(super) fn load(&self, boot: BootId) -> Result<(), DiskError> {
        let failed = |e| DiskError::io(format!("read the blocks of {}", self.path.display()), e);
        let blocks = block_count(self.header.size_bytes);
        for run in data_runs(&*self.file, self.header.bits()).map_err(failed)? {
            for at in run.step_by(SECTOR_BYTES) {
                let mut sector = [0; SECTOR_BYTES];
                self.file.read_at(&mut sector, at).map_err(failed)?;
                let first = Header::first_block_at(at);
                let bits = decode_sector(&sector).ok_or_else(|| DiskError::Corrupt {
                    structure: "record of written blocks of an overlay",
                    offset: at,
                    detail: format!("its checksum in {} is wrong", self.path.display()),
                })?;
                for block in bits.map(|b| first + b).take_while(|b| *b < blocks) {
                    self.owned.insert_range(block, block + 1);
                }
            }
        }
        let saved = self.owned.count();
        Live::load(&*self.file, &self.header, boot, &self.owned).map_err(failed)?;
        if self.owned.count() > saved {
            // What is not durable yet is saved with the next flush.
            let mut at = 0;
            while let Some(run) = self.owned.next_run(at, u64::MAX, u64::MAX) {
                at = run.end;
                self.unsaved_in(&run);
            }
        }
        self.load_holes().map_err(failed)?;
        let space = self.owned.count() - self.holes.count();
        self.space.count(space);
        Ok(())
    }

    fn load_holes(&self) -> std::io::Result<()> {
        let data = self.header.data_offset();
        let mut at = 0;
        while let Some(run) = self.owned.next_run(at, u64::MAX, u64::MAX) {
            at = run.end;
            let (from, to) = (run.start * BLOCK_BYTES, run.end * BLOCK_BYTES);
            let length = to.min(self.header.size_bytes) - from;
            self.file
                .extents(data + from, length, &mut |offset, length, kind| {
                    if kind == FileExtent::Hole {
                        let first = (offset - data).div_ceil(BLOCK_BYTES);
                        let end = (offset - data + length) / BLOCK_BYTES;
                        self.holes.insert_range(first.min(end), end);
                    }
                    true
                })?;
        }
        Ok(())
    }
}

/// The parts of a range of a file that are not holes, in whole sectors of bits.
fn data_runs(file: &dyn BlockFile, range: Range<u64>) -> std::io::Result<Vec<Range<u64>>> {
    let sector = SECTOR_BYTES as u64;
    let mut runs = Vec::new();
    file.extents(
        range.start,
        range.end - range.start,
        &mut |offset, length, kind| {
            if kind == FileExtent::Data {
                let end = (offset + length).next_multiple_of(sector).min(range.end);
                runs.push(offset / sector * sector..end);
            }
            true
        },
    )?;
    Ok(runs)
}
