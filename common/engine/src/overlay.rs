//! Overlays: a disk that takes writes above one that must not change.
//!
//! Owns: one file, which holds the blocks that were written and the record of which those are. Receives
//! the image below, which it only reads, unless it is told to [sink into it](Overlay::sink_into). Gives out an [`Image`].
//!
//! Does not do: keep what is below from changing.
//!
//! Little-endian, sparse:
//!
//! ```text
//! offset          length       content
//! 0               4096         header
//! 4096            512 x S      which blocks are here: one bit for each block of 4 KiB
//! L               16           the boot of the host that the live bits are of
//! L + 4096        blocks / 8   live bits: the same, as it is in memory
//! D               disk's size  the blocks, each at D + its offset on the disk
//!
//! S = ceil(blocks / 4064)      L = 4096 + 512 x S, rounded up to 4096
//! D = L + 4096 + ceil(blocks / 8), rounded up to 1 MiB
//! ```
//!
//! The header, written once:
//!
//! ```text
//! offset  length  content
//! 0       8       "sitepovl"
//! 8       4       version, 1
//! 12      4       zeros
//! 16      8       size of the disk in bytes
//! 24      16      id of this overlay
//! 40      16      id of what is below
//! 56      4036    zeros
//! 4092    4       CRC-32C of bytes 0 to 4091
//! ```
//!
//! A sector of bits is one of [`sector`](crate::blocks::sector). The lowest live bit of a byte is the first.
//!
//! # Invariants
//! 1. A bit is on disk only after the block that it speaks of: data is synced before the bits are written. So every
//!    sector of a torn overlay reads as before or as after a write, and as after it once a flush that followed it returned.
//! 2. A block that is here only in part is none: its first write brings the rest up from below.
//! 3. The blocks that take space are at most those of the cap.
//! 4. A live bit is written before a write is answered. So a process that is killed takes nothing with it.
//! 5. A bit is taken back only after the image below holds the block durably, and before that block is written there.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use sitepair_disk::storage::{BlockFile, LockKind, OpenMode, Storage};
use sitepair_disk::{DiskError, ErrorKind, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use sitepair_model::extent::{BLOCK_BYTES, Extent, block_count};

use crate::blocks::locks::RangeLocks;
use crate::blocks::sector::{SECTOR_BITS, SECTOR_BYTES, Sector, encode_sector};
use crate::blocks::set::BlockSet;
use crate::locked;

mod drain;
mod header;
mod live;
mod load;
mod space;
#[cfg(test)]
mod tests;
mod write;

use header::Header;
use live::{BootId, Live};
pub use space::Space;

/// A disk that takes writes above another. See the module.
pub struct Overlay {
    path: PathBuf,
    file: Arc<dyn BlockFile>,
    below: RwLock<Arc<dyn Image>>,
    /// Blocks that are not here are written below.
    sinks: AtomicBool,
    /// Blocks that were written here since they were last copied down.
    touched: BlockSet,
    live: Live,
    header: Header,
    geometry: Geometry,
    /// Blocks that are here.
    owned: BlockSet,
    /// Those of them that are zeros and take no space.
    holes: BlockSet,
    /// Blocks that take space, and how many may.
    space: Arc<Space>,
    locks: RangeLocks,
    /// Sectors of bits that changed since they were last saved.
    unsaved: Mutex<BTreeSet<u64>>,
    /// Rounds of flushing that began.
    begun: AtomicU64,
    /// The last round that ended well.
    flushed: Mutex<u64>,
    failed: OnceLock<String>,
    closed: AtomicBool,
}

/// Who has a piece of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Below,
    Data,
    Hole,
}

impl Overlay {
    /// Makes an overlay without blocks at `path`, where there must be nothing, above `below`. It has the id
    /// `id`, and takes its blocks' space from `space`. `boot` is this boot of the host. Durable on return.
    ///
    /// # Errors
    /// `AlreadyExists` where there is something; the storage's.
    pub fn create(
        storage: &dyn Storage,
        path: &Path,
        below: Arc<dyn Image>,
        id: [u8; 16],
        boot: BootId,
        space: Arc<Space>,
    ) -> Result<Self, DiskError> {
        let header = Header {
            size_bytes: below.geometry().size_bytes,
            id,
            below: below.identity()?.data_write_id,
        };
        let failed = |e| DiskError::io(format!("create {}", path.display()), e);
        let file = storage.open(path, OpenMode::CreateNew).map_err(failed)?;
        file.lock(LockKind::Exclusive).map_err(failed)?;
        file.set_length(header.file_bytes()).map_err(failed)?;
        file.write_at(&header.encode(), 0).map_err(failed)?;
        Live::begin(&*file, &header, boot).map_err(failed)?;
        file.sync().map_err(failed)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        storage.sync_dir(folder).map_err(failed)?;
        Ok(Self::new(path, file, below, header, space))
    }

    /// Opens the overlay at `path` above `below`, which must be what it was made above. `boot` is this boot of the host.
    ///
    /// # Errors
    /// `Corrupt`; `Parent` when it was made above something else; `Locked`; the storage's.
    pub fn open(
        storage: &dyn Storage,
        path: &Path,
        below: Arc<dyn Image>,
        boot: BootId,
        space: Arc<Space>,
    ) -> Result<Self, DiskError> {
        let failed = |e| DiskError::io(format!("open {}", path.display()), e);
        let file = storage.open(path, OpenMode::ReadWrite).map_err(failed)?;
        file.lock(LockKind::Exclusive).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => DiskError::Locked {
                what: path.display().to_string(),
            },
            _ => failed(e),
        })?;
        let header = Header::read(&*file, path)?;
        let size = below.geometry().size_bytes;
        if header.below != below.identity()?.data_write_id || header.size_bytes != size {
            return Err(DiskError::Parent {
                image: path.display().to_string(),
                why: "it was made above another recovery point or disk".to_owned(),
            });
        }
        let overlay = Self::new(path, file, below, header, space);
        overlay.load(boot)?;
        Ok(overlay)
    }

    fn new(
        path: &Path,
        file: Arc<dyn BlockFile>,
        below: Arc<dyn Image>,
        header: Header,
        space: Arc<Space>,
    ) -> Self {
        let blocks = block_count(header.size_bytes);
        let geometry = Geometry {
            block_bytes: u32::try_from(BLOCK_BYTES).expect("4 KiB"),
            read_only: false,
            ..below.geometry()
        };
        Self {
            path: path.to_owned(),
            file,
            below: RwLock::new(below),
            sinks: AtomicBool::new(false),
            touched: BlockSet::new(blocks),
            live: Live::default(),
            header,
            geometry,
            owned: BlockSet::new(blocks),
            holes: BlockSet::new(blocks),
            space,
            locks: RangeLocks::default(),
            unsaved: Mutex::default(),
            begun: AtomicU64::new(0),
            flushed: Mutex::new(0),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// The ranges that differ from what is below, ascending, as far as is known: all that was written.
    pub fn for_each_written(&self, mut visit: impl FnMut(Extent)) {
        let mut at = 0;
        while let Some(run) = self.owned.next_run(at, u64::MAX, u64::MAX) {
            at = run.end;
            let (offset, end) = (run.start * BLOCK_BYTES, run.end * BLOCK_BYTES);
            visit(Extent::new(
                offset,
                end.min(self.header.size_bytes) - offset,
            ));
        }
    }

    fn below(&self) -> Arc<dyn Image> {
        Arc::clone(&self.below.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, offset: u64, length: u64) -> Result<Extent, DiskError> {
        if let Some(first) = self.failed.get() {
            let first = first.clone();
            return Err(DiskError::Poisoned { first });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(DiskError::Closed {
                why: "the overlay was closed",
            });
        }
        let extent = Extent::new(offset, length);
        let sector = SECTOR_BYTES as u64;
        let aligned = offset.is_multiple_of(sector) && length.is_multiple_of(sector);
        if !aligned || !extent.fits(self.header.size_bytes) {
            let size = self.header.size_bytes;
            return Err(DiskError::Invalid {
                what: format!("{length} bytes at {offset} of an overlay of {size} bytes"),
            });
        }
        Ok(extent)
    }

    /// An I/O error while doing something to a range.
    fn io(&self, what: &str, extent: Extent, source: std::io::Error) -> DiskError {
        let (length, offset) = (extent.length, extent.offset);
        let path = self.path.display();
        DiskError::io(
            format!("{what} {length} bytes at {offset} of {path}"),
            source,
        )
    }

    fn poison(&self, what: &str, source: std::io::Error) -> DiskError {
        let action = format!("{what} {}", self.path.display());
        // The first failure is the one to tell.
        let _ = self.failed.set(format!("{action}: {source}"));
        DiskError::io(action, source)
    }

    /// Visits a range in ascending pieces with who has them.
    fn pieces(
        &self,
        extent: Extent,
        mut visit: impl FnMut(Extent, Owner) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let end = extent.offset + extent.length;
        let mut at = extent.offset;
        while at < end {
            let (owner, until) = self.owner_at(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let stop = (until * BLOCK_BYTES).min(end);
            visit(Extent::new(at, stop - at), owner)?;
            at = stop;
        }
        Ok(())
    }

    /// Who has `block`, and up to where below `end`.
    fn owner_at(&self, block: u64, end: u64) -> (Owner, u64) {
        let run = match self.owned.next_run(block, end, u64::MAX) {
            None => return (Owner::Below, end),
            Some(run) if run.start > block => return (Owner::Below, run.start),
            Some(run) => run,
        };
        match self.holes.next_run(block, run.end, u64::MAX) {
            None => (Owner::Data, run.end),
            Some(hole) if hole.start > block => (Owner::Data, hole.start),
            Some(hole) => (Owner::Hole, hole.end),
        }
    }

    /// One round: what was written before it is durable after it.
    fn flush_round(&self) -> Result<(), DiskError> {
        let changed = std::mem::take(&mut *locked(&self.unsaved));
        // Taken before the sync: a bit that is set after it must wait for the next round. Invariant 1.
        let sectors: Vec<(u64, Sector)> =
            changed.into_iter().map(|s| (s, self.bits_of(s))).collect();
        self.file.sync().map_err(|e| self.poison("sync", e))?;
        if sectors.is_empty() {
            return Ok(());
        }
        for (number, sector) in &sectors {
            self.file
                .write_at(sector, Header::sector_at(*number))
                .map_err(|e| self.poison("record written blocks in", e))?;
        }
        self.file.sync().map_err(|e| self.poison("sync", e))
    }

    fn bits_of(&self, sector: u64) -> Sector {
        let (mut at, end) = (sector * SECTOR_BITS, (sector + 1) * SECTOR_BITS);
        let first = at;
        let mut bits = Vec::new();
        while let Some(run) = self.owned.next_run(at, end, u64::MAX) {
            at = run.end;
            bits.extend(run.map(|block| block - first));
        }
        encode_sector(bits.into_iter())
    }
}

/// The sectors that hold the bits of these blocks.
fn sectors_of(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / SECTOR_BITS..blocks.end.div_ceil(SECTOR_BITS)
}

/// Whole blocks as a range of bytes.
fn extent_of(blocks: &Range<u64>) -> Extent {
    let length = (blocks.end - blocks.start) * BLOCK_BYTES;
    Extent::new(blocks.start * BLOCK_BYTES, length)
}

/// The blocks that a range touches.
fn blocks_of(extent: Extent) -> Range<u64> {
    extent.offset / BLOCK_BYTES..(extent.offset + extent.length).div_ceil(BLOCK_BYTES)
}

impl Image for Overlay {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        let failed = |e| DiskError::io(format!("look at {}", self.path.display()), e);
        Ok(Identity {
            data_write_id: self.header.id,
            file_bytes: self.file.length().map_err(failed)?,
            modified_ns: self.file.modified_ns().map_err(failed)?,
        })
    }

    /// The id stays when the content changes: length and time decide.
    fn content_identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity {
            data_write_id: [0; 16],
            ..self.identity()?
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let extent = self.check(offset, u64::try_from(buf.len()).unwrap_or(u64::MAX))?;
        let mut rest = buf;
        self.pieces(extent, |piece, owner| {
            let length = usize::try_from(piece.length).expect("part of a buffer");
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            match owner {
                Owner::Below => self.below().read_at(part, piece.offset),
                Owner::Hole => {
                    part.fill(0);
                    Ok(())
                }
                Owner::Data => self
                    .file
                    .read_at(part, self.header.data_offset() + piece.offset)
                    .map_err(|e| self.io("read", piece, e)),
            }
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        let extent = self.check(offset, u64::try_from(buf.len()).unwrap_or(u64::MAX))?;
        if extent.length > 0 {
            let blocks = blocks_of(extent);
            let _held = self.locks.lock(blocks.start, blocks.end);
            let mut rest = buf;
            self.place(extent, |piece, below| {
                let length = usize::try_from(piece.length).expect("part of a buffer");
                let (part, after) = rest.split_at(length);
                rest = after;
                match below {
                    Some(below) => below.write_at(part, piece.offset, false),
                    None => self.write_here(part, piece),
                }
            })?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        let extent = self.check(offset, length)?;
        if length > 0 {
            let blocks = blocks_of(extent);
            let _held = self.locks.lock(blocks.start, blocks.end);
            self.place(extent, |piece, below| match below {
                Some(below) => below.write_zeroes(piece.offset, piece.length, mode, false),
                None => self.zero_here(piece, mode),
            })?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check(0, 0)?;
        let seen = self.begun.load(Ordering::SeqCst);
        let mut flushed = locked(&self.flushed);
        // A round that began after this call did its work.
        if *flushed > seen {
            return Ok(());
        }
        self.check(0, 0)?;
        let round = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        self.flush_round()?;
        if self.sinks.load(Ordering::Acquire) {
            self.below().flush()?;
        }
        *flushed = round;
        Ok(())
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        let extent = self.check(offset, length)?;
        let mut going = true;
        self.pieces(extent, |piece, owner| {
            if !going {
                return Ok(());
            }
            let here = |kind| Run::here(piece.offset, piece.length, kind);
            match owner {
                Owner::Data => going = visit(here(ExtentKind::Data)),
                Owner::Hole => going = visit(here(ExtentKind::Hole)),
                Owner::Below => {
                    self.below()
                        .extents(piece.offset, piece.length, &mut |run| {
                            going = visit(run.below());
                            going
                        })?;
                }
            }
            Ok(())
        })
    }

    fn close(&self) -> Result<(), DiskError> {
        let flushed = match self.flush() {
            Err(e) if e.kind() == ErrorKind::Closed => Ok(()),
            flushed => flushed,
        };
        self.closed.store(true, Ordering::Release);
        flushed
    }
}
