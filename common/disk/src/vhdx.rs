//! VHDX images: fixed, dynamic and differencing, read and written through their log.
//!
//! Owns: [`VhdxImage`], which opens a file (replaying its log), serves it as an
//! [`Image`](crate::Image), grows it, and closes it. Receives a [`Storage`] and a path.
//!
//! | part | decides |
//! |---|---|
//! | `layout`, `metadata`, `locator`, `entry` | bytes to values and back |
//! | `replay` | the file as it is once its log is applied |
//! | `bat`, `space` | where blocks are, and could be |
//! | `core` | reads, writes, zeros, extents |
//! | `partial`, `bitmap` | the same over a parent, sector by sector |
//! | `journal`, `durable` | the log, flushes, closing |
//! | `open`, `create`, `resize` | what happens around that |
//!
//! Does not do: finding the parent of a differencing disk (see `crate::parent`), changing it, or
//! merging into it.
//!
//! # Invariants
//! 1. Nothing in the file changes before it was found to be right as a whole.
//! 2. The BAT in the file changes through the log only.
//! 3. A request holds the gate shared; closing and growing hold it alone.

mod bat;
mod bitmap;
mod core;
mod create;
mod durable;
mod entry;
mod facts;
mod journal;
pub(crate) mod layout;
mod locator;
pub(crate) mod metadata;
mod open;
mod partial;
mod replay;
mod resize;
mod space;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use self::facts::Facts;

use self::core::{Core, Run};
use crate::error::DiskError;
use crate::image::{Access, ExtentKind, Geometry, Identity, Image, ZeroMode};
use crate::parent::{self, Find, ParentLink};
use crate::storage::Storage;

/// How a new disk takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block by block, when they are first written.
    Dynamic,
    /// All at once.
    Fixed,
}

/// What a new disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk in bytes: a multiple of the logical sector, at most 64 TiB.
    pub size_bytes: u64,
    /// Unit of allocation: a power of two from 1 MiB to 256 MiB.
    pub block_bytes: u32,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
    /// How it takes space.
    pub kind: Kind,
    /// The disk's own id as stored; a random one if there is none to keep.
    pub disk_id: Option<[u8; 16]>,
}

/// What a new differencing disk is to be. All else is as its parent has it, its id included: it is the
/// same disk, later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildOptions {
    /// Where the parent is. The file names it relative to its own folder, and absolutely.
    pub parent_path: PathBuf,
    /// Unit of allocation: a power of two from 1 MiB to 256 MiB. Windows takes 2 MiB.
    pub block_bytes: u32,
}

/// A VHDX file that is open.
pub struct VhdxImage {
    kind: Kind,
    gate: RwLock<Gate>,
}

enum Gate {
    Open(Box<Core>),
    /// As it was left.
    Closed(Geometry, Identity),
}

const CLOSED: DiskError = DiskError::Closed {
    why: "it was closed",
};

impl VhdxImage {
    /// Opens an image and locks its file against other users. Changes from a log left behind by
    /// a crash are applied: in the file, or in memory only if `read_only`.
    ///
    /// # Errors
    /// Corrupt, with the structure and its offset; unsupported (unknown required parts); that it has a parent;
    /// locked; or the operating system's.
    pub fn open(
        storage: Arc<dyn Storage>,
        path: &Path,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        Self::open_with(storage, path, read_only, &mut parent::refuse(path))
    }

    /// As [`open`](Self::open), for a disk that may have a parent: `find` opens it, read-only, if so. The
    /// parent's id and sizes are checked before anything is changed.
    ///
    /// # Errors
    /// Those of `open` and of `find`; a parent that is not the one that the disk was made over.
    pub fn open_with(
        storage: Arc<dyn Storage>,
        path: &Path,
        read_only: bool,
        find: &mut Find<'_>,
    ) -> Result<Self, DiskError> {
        let core = open::open(storage.as_ref(), path, read_only, find)?;
        Ok(Self {
            kind: core.kind(),
            gate: RwLock::new(Gate::Open(Box::new(core))),
        })
    }

    /// Whether blocks are allocated when they are written, as in a differencing disk too, or all are there from the start.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes a new image and opens it. A crash leaves the whole file or none under this name.
    ///
    /// # Errors
    /// Invalid options; there is something at `path`; or the operating system's.
    pub fn create(
        storage: Arc<dyn Storage>,
        path: &Path,
        options: &CreateOptions,
    ) -> Result<Self, DiskError> {
        let file = create::create(storage.as_ref(), path, options)?;
        let core = open::open_file(file, path, false, &mut parent::refuse(path))?;
        Ok(Self {
            kind: core.kind(),
            gate: RwLock::new(Gate::Open(Box::new(core))),
        })
    }

    /// Makes a new differencing disk over `parent`, which is open read-only, and opens it. As with
    /// [`create`](Self::create), a crash leaves the whole file or none.
    ///
    /// # Errors
    /// Invalid options; a parent that is writable or closed, or whose path Windows cannot write; there is something at
    /// `path`; or the operating system's.
    pub fn create_child(
        storage: Arc<dyn Storage>,
        path: &Path,
        parent: &Arc<Self>,
        options: &ChildOptions,
    ) -> Result<Self, DiskError> {
        let file =
            parent.with(|core| create::create_child(storage.as_ref(), path, core, options))?;
        let mut find = |_: &ParentLink| Ok(Arc::clone(parent) as Arc<dyn Image>);
        let core = open::open_file(file, path, false, &mut find)?;
        Ok(Self {
            kind: core.kind(),
            gate: RwLock::new(Gate::Open(Box::new(core))),
        })
    }

    /// What a differencing disk says of its parent; `None` for others.
    ///
    /// # Errors
    /// When it is closed or poisoned.
    pub fn parent_link(&self) -> Result<Option<ParentLink>, DiskError> {
        self.with(|core| Ok(core.parameters.parent.clone()))
    }

    /// Grows the disk to `new_size` bytes. Requests wait meanwhile. Durable on return.
    ///
    /// # Errors
    /// Unsupported: to a smaller size, or past what the file's BAT has room for.
    pub fn resize(&self, new_size: u64) -> Result<(), DiskError> {
        let mut gate = self.alone();
        let Gate::Open(core) = &mut *gate else {
            return Err(CLOSED);
        };
        core.durable.poison.check()?;
        check_writable(core)?;
        core.grow(new_size)
    }

    fn share(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the open image.
    fn with<T>(&self, work: impl FnOnce(&Core) -> Result<T, DiskError>) -> Result<T, DiskError> {
        let gate = self.share();
        let Gate::Open(core) = &*gate else {
            return Err(CLOSED);
        };
        core.durable.poison.check()?;
        work(core)
    }

    fn change(
        &self,
        offset: u64,
        length: u64,
        work: impl FnOnce(&Core) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.with(|core| {
            check_writable(core)?;
            check_range(core, offset, length)?;
            work(core)
        })
    }
}

impl Image for VhdxImage {
    fn geometry(&self) -> Geometry {
        match &*self.share() {
            Gate::Open(core) => core.geometry(),
            Gate::Closed(geometry, _) => geometry.clone(),
        }
    }

    /// Also answers after [`close`](Image::close): as the file was left.
    fn identity(&self) -> Result<Identity, DiskError> {
        match &*self.share() {
            Gate::Open(core) => core.identity(),
            Gate::Closed(_, identity) => Ok(*identity),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.with(|core| {
            check_range(core, offset, layout::to_u64(buf.len()))?;
            core.read(buf, offset)
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.change(offset, layout::to_u64(buf.len()), |core| {
            core.write(buf, offset, fua)?;
            core.note_changes()
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.change(offset, length, |core| {
            core.zero(offset, length, mode, fua)?;
            core.note_changes()
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.with(|core| if core.read_only { Ok(()) } else { core.flush() })
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, ExtentKind) -> bool,
    ) -> Result<(), DiskError> {
        self.with(|core| check_range(core, offset, length))?;
        let end = offset + length;
        let mut at = offset;
        // The run that grows while its neighbours are of its kind.
        let mut open: Option<(u64, Run)> = None;
        while at < end {
            // No lock is held while the visitor runs: it may come back to us.
            let runs = self.with(|core| core.runs(at, end - at))?;
            for run in runs {
                match &mut open {
                    Some((_, last)) if last.kind == run.kind => last.length += run.length,
                    Some((from, last)) => {
                        if !visit(*from, last.length, last.kind) {
                            return Ok(());
                        }
                        open = Some((at, run));
                    }
                    None => open = Some((at, run)),
                }
                at += run.length;
            }
        }
        if let Some((from, last)) = open {
            visit(from, last.length, last.kind);
        }
        Ok(())
    }

    fn is_quick(&self, access: Access, offset: u64, length: usize) -> bool {
        match (&*self.share(), access) {
            (Gate::Open(core), Access::Write) => core.is_quick_write(offset, length),
            (_, Access::Read | Access::Write) => false,
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        let mut gate = self.alone();
        let Gate::Open(core) = &*gate else {
            return Err(CLOSED);
        };
        core.durable.poison.check()?;
        if !core.read_only {
            core.shut()?;
        }
        // The file and its lock go with the core.
        *gate = Gate::Closed(core.geometry(), core.identity()?);
        Ok(())
    }
}

fn check_writable(core: &Core) -> Result<(), DiskError> {
    if core.read_only {
        return Err(DiskError::Invalid {
            what: format!("{} is read-only", core.view.name),
        });
    }
    Ok(())
}

fn check_range(core: &Core, offset: u64, length: u64) -> Result<(), DiskError> {
    /// Smallest unit of a request in bytes.
    const SECTOR: u64 = 512;
    let size = core.parameters.size_bytes;
    let aligned = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
    match offset.checked_add(length) {
        Some(end) if aligned && end <= size => Ok(()),
        _ => Err(DiskError::Invalid {
            what: format!("{length} bytes at {offset} do not fit a disk of {size} bytes"),
        }),
    }
}
