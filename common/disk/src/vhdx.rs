//! VHDX images: fixed, dynamic and differencing, read and written through their log.
//!
//! Owns: [`VhdxImage`], which opens a file (replaying its log), serves it as an
//! [`Image`], grows it, and closes it. Receives a [`Storage`] and a path.
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
use std::sync::Arc;

pub use self::facts::Facts;

use self::core::Core;
use crate::error::DiskError;
use crate::gate::Gate;
use crate::image::{Access, Geometry, Identity, Image, Run, ZeroMode};
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
    gate: Gate<Core>,
}

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
            gate: Gate::new(core),
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
            gate: Gate::new(core),
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
        let file = parent
            .gate
            .with(|core| create::create_child(storage.as_ref(), path, core, options))?;
        let mut find = |_: &ParentLink| Ok(Arc::clone(parent) as Arc<dyn Image>);
        let core = open::open_file(file, path, false, &mut find)?;
        Ok(Self {
            kind: core.kind(),
            gate: Gate::new(core),
        })
    }

    /// What a differencing disk says of its parent; `None` for others.
    ///
    /// # Errors
    /// When it is closed or poisoned.
    pub fn parent_link(&self) -> Result<Option<ParentLink>, DiskError> {
        self.gate.with(|core| Ok(core.parameters.parent.clone()))
    }

    /// Grows the disk to `new_size` bytes. Requests wait meanwhile. Durable on return.
    ///
    /// # Errors
    /// Unsupported: to a smaller size, or past what the file's BAT has room for.
    pub fn resize(&self, new_size: u64) -> Result<(), DiskError> {
        self.gate.alone(|core| core.grow(new_size))
    }
}

impl Image for VhdxImage {
    fn geometry(&self) -> Geometry {
        self.gate.geometry()
    }

    /// Also answers after [`close`](Image::close): as the file was left.
    fn identity(&self) -> Result<Identity, DiskError> {
        self.gate.identity()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.gate
            .read(offset, buf.len(), |core| core.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.gate.change(offset, layout::to_u64(buf.len()), |core| {
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
        self.gate.change(offset, length, |core| {
            core.zero(offset, length, mode, fua)?;
            core.note_changes()
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.gate.flush()
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.gate.extents(offset, length, visit)
    }

    fn is_quick(&self, access: Access, offset: u64, length: usize) -> bool {
        match access {
            Access::Read => false,
            Access::Write => self
                .gate
                .is_quick(|core| core.is_quick_write(offset, length)),
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        self.gate.close()
    }
}
