//! The data path of an open image, up to the fork between fixed disks and those of blocks.
//!
//! Receives ranges that were checked. Does not do: blocks (see `blocks`), durability (see `durable`),
//! opening and closing (see `open`).

use std::io;
use std::sync::Arc;

use super::Kind;
use super::blocks::Blocks;
use super::durable::Durable;
use super::layout::{Footer, SECTOR, to_u64};
use crate::error::DiskError;
use crate::gate::Guarded;
use crate::image::{ExtentKind, Geometry, Identity, Run, ZeroMode};
use crate::parent::ParentLink;
use crate::poison::Poison;
use crate::storage::{BlockFile, FileExtent};

const ZERO_STEP: u64 = 1 << 20;
/// What a guest should prefer: the page on which blocks begin.
const PHYSICAL_SECTOR_BYTES: u32 = 4096;

/// An open image.
pub(super) struct Core {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) name: String,
    pub(super) read_only: bool,
    pub(super) kind: Kind,
    pub(super) size_bytes: u64,
    pub(super) footer: Footer,
    /// Where it is; of a disk of blocks, where it was when the file was opened.
    pub(super) footer_at: u64,
    /// A fixed disk's file is longer than its footer says, and zero from there on.
    pub(super) fixed_end_is_bad: bool,
    /// None: a fixed disk, whose bytes are the file's.
    pub(super) blocks: Option<Blocks>,
    /// What a differencing disk says of its parent.
    pub(super) parent_link: Option<ParentLink>,
    pub(super) durable: Durable,
}

impl Guarded for Core {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn poison(&self) -> &Poison {
        &self.durable.poison
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn geometry(&self) -> Geometry {
        let block_bytes = self.blocks.as_ref().map_or(0, |b| b.header.block_bytes());
        Geometry {
            size_bytes: self.size_bytes,
            logical_sector_bytes: u32::try_from(SECTOR).expect("512"),
            physical_sector_bytes: PHYSICAL_SECTOR_BYTES,
            block_bytes,
            read_only: self.read_only,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        let failed = |e| DiskError::io(format!("read length and time of {}", self.name), e);
        Ok(Identity {
            data_write_id: self.footer.unique_id(),
            file_bytes: self.file.length().map_err(failed)?,
            modified_ns: self.file.modified_ns().map_err(failed)?,
        })
    }

    fn runs(&self, offset: u64, length: u64) -> Result<Vec<Run>, DiskError> {
        let mut runs = Vec::new();
        match &self.blocks {
            None => self.file_runs((offset, offset), length, ExtentKind::Zero, &mut runs)?,
            Some(blocks) => self.block_runs(blocks, offset, length, &mut runs)?,
        }
        Ok(runs)
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
    pub(super) fn failed(
        &self,
        what: &str,
        length: u64,
        at: u64,
    ) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let action = format!("{what} {length} bytes at {at} of {}", self.name);
        move |e| DiskError::io(action, e)
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        match &self.blocks {
            None => self.read_file(buf, offset),
            Some(blocks) => self.read_blocks(blocks, buf, offset),
        }
    }

    pub(super) fn read_file(&self, buf: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.file
            .read_at(buf, at)
            .map_err(self.failed("read", to_u64(buf.len()), at))
    }

    pub(super) fn write(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.arm()?;
        let durable = match &self.blocks {
            None => self.write_present(offset, buf, fua)?,
            Some(blocks) => self.write_blocks(blocks, buf, offset, fua)?,
        };
        if fua && !durable {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes bytes that are in the file. Whether they are durable on return; it tries only for `fua`.
    pub(super) fn write_present(&self, at: u64, part: &[u8], fua: bool) -> Result<bool, DiskError> {
        // The block's place was read before: if all changes up to now are durable, so is it.
        if fua && self.durable.is_clean() {
            self.file
                .write_at_durable(part, at)
                .map_err(|e| self.fatal("write through", e))?;
            return Ok(true);
        }
        let written = self.file.write_at(part, at);
        // Also after a failure: some of it may be in the file.
        self.durable.note_write();
        written.map_err(self.failed("write", to_u64(part.len()), at))?;
        Ok(false)
    }

    pub(super) fn zero(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        if mode == ZeroMode::FastOnly && !self.zeroes_fast()? {
            return Err(DiskError::Unsupported {
                what: "zeroing without writing".to_owned(),
            });
        }
        self.arm()?;
        match &self.blocks {
            // A fixed disk keeps its space.
            None => self.zero_present(offset, length, ZeroMode::KeepAllocated)?,
            Some(blocks) => self.zero_blocks(blocks, offset, length, mode)?,
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// Whether the host zeroes a range without writing it; asked past the end, where it changes nothing.
    fn zeroes_fast(&self) -> Result<bool, DiskError> {
        let end = self.file.length().map_err(self.failed("measure", 0, 0))?;
        let tried = match &self.blocks {
            None => self.file.zero_range(end, 4096),
            Some(_) => self.file.punch_hole(end, 4096),
        };
        Ok(tried.is_ok())
    }

    /// Zeroes bytes that are in the file.
    pub(super) fn zero_present(
        &self,
        at: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), DiskError> {
        let zeroed = if mode == ZeroMode::KeepAllocated {
            write_zeros(&*self.file, at, length)
        } else {
            punch(&*self.file, at, length)
        };
        self.durable.note_write();
        zeroed.map_err(self.failed("zero", length, at))
    }

    pub(super) fn is_quick_write(&self, offset: u64, length: usize) -> bool {
        /// Larger writes may wait for the host's memory.
        const QUICK_BYTES: usize = 64 << 10;
        length <= QUICK_BYTES
            && self.durable.is_armed()
            && self
                .blocks
                .as_ref()
                .is_none_or(|blocks| blocks.is_quick(offset, to_u64(length), self.size_bytes))
    }

    /// Data and holes of the host's file from `at`, which is `offset` of the disk. Stops after some; covers at
    /// least a byte.
    pub(super) fn file_runs(
        &self,
        (offset, at): (u64, u64),
        length: u64,
        hole: ExtentKind,
        runs: &mut Vec<Run>,
    ) -> Result<(), DiskError> {
        /// Bounds the memory of one answer.
        const AT_ONCE: usize = 1024;
        let most = runs.len() + AT_ONCE;
        let listed = self.file.extents(at, length, &mut |from, length, kind| {
            let kind = match kind {
                FileExtent::Hole => hole,
                FileExtent::Data => ExtentKind::Data,
            };
            runs.push(Run::here(offset + (from - at), length, kind));
            runs.len() < most
        });
        match listed {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                runs.push(Run::here(offset, length, ExtentKind::Data));
                Ok(())
            }
            other => other.map_err(self.failed("list extents of", length, at)),
        }
    }
}

/// Makes a range of the file read as zeros with space, which may take writing them.
pub(super) fn write_zeros(file: &dyn BlockFile, offset: u64, length: u64) -> io::Result<()> {
    match file.zero_range(offset, length) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        other => return other,
    }
    let zeros = vec![0; super::layout::to_usize(ZERO_STEP.min(length))];
    let mut done = 0;
    while done < length {
        let step = ZERO_STEP.min(length - done);
        file.write_at(&zeros[..super::layout::to_usize(step)], offset + done)?;
        done += step;
    }
    Ok(())
}

/// Makes a range of the file read as zeros, without space if the host can.
pub(super) fn punch(file: &dyn BlockFile, offset: u64, length: u64) -> io::Result<()> {
    match file.punch_hole(offset, length) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => write_zeros(file, offset, length),
        other => other,
    }
}
