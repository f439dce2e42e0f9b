//! VHD images: fixed, dynamic and differencing.
//!
//! Owns: [`VhdImage`], which opens a file, serves it as an [`Image`], grows it, and closes it.
//! Receives a [`Storage`] and a path; for differencing disks, a callback that opens the parent.
//!
//! | part | decides |
//! |---|---|
//! | `layout`, `locator` | bytes to values and back |
//! | `bat`, `bitmap` | where blocks are, and which sectors of them |
//! | `space` | where blocks could be |
//! | `core`, `blocks`, `below` | reads, writes, zeros, extents |
//! | `durable` | flushes, the end of the file, closing |
//! | `open`, `create`, `resize` | what happens around that |
//!
//! Does not do: trust in the geometry (cylinders, heads, sectors): the exact size in the footer counts,
//! whoever wrote it. Parents are never written; that a parent was changed cannot be told, as the format has no mark for it.
//!
//! # Invariants
//! 1. Nothing in the file changes before it was found to be right as a whole.
//! 2. Wherever a kill or a power loss stops us, a footer or its copy is intact, and the tables name only
//!    blocks that are in the file.
//! 3. What was answered is in the file: a kill of the process loses nothing. What was flushed is durable.
//! 4. A request holds the gate shared; closing and growing hold it alone.
//! 5. No table of a dynamic disk names a block that we placed before its bitmap of ones is durable: programs that ask
//!    bitmaps and programs that do not show the same.

mod bat;
mod below;
mod bitmap;
mod blocks;
mod core;
mod create;
mod durable;
mod layout;
mod locator;
mod open;
mod resize;
mod space;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::core::Core;
use self::locator::NewParent;
use crate::error::DiskError;
use crate::gate::{Gate, Guarded};
use crate::image::{Access, Geometry, Identity, Image, Run, ZeroMode};
use crate::parent::{self, Find, ParentLink};
use crate::storage::{BlockFile, Storage};

/// How a disk takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block by block, when they are first written.
    Dynamic,
    /// All at once.
    Fixed,
    /// As dynamic, over a parent whose sectors show where it has none of its own.
    Differencing,
}

/// What a new disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk in bytes: whole sectors of 512, at most 2040 GiB.
    pub size_bytes: u64,
    /// Unit of allocation: a power of two from 64 KiB to 256 MiB. Windows takes 512 KiB and 2 MiB. A fixed disk has none.
    pub block_bytes: u32,
    /// How it takes space. Differencing disks are made with [`VhdImage::create_child`].
    pub kind: Kind,
    /// The disk's own id as stored; a random one if there is none to keep.
    pub disk_id: Option<[u8; 16]>,
}

/// What a new differencing disk is to be. All else is as its parent has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildOptions {
    /// Where the parent is. The file names it relative to its own folder, and absolutely.
    pub parent_path: PathBuf,
    /// Unit of allocation: a power of two from 64 KiB to 256 MiB. Windows takes 2 MiB.
    pub block_bytes: u32,
}

/// What a file says of itself, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Fixed facts of the image.
    pub geometry: Geometry,
    /// Identity of the content.
    pub identity: Identity,
    /// How it takes space.
    pub kind: Kind,
    /// The disk's own id, as stored.
    pub disk_id: [u8; 16],
    /// Who made the file: four bytes, mostly letters.
    pub creator: [u8; 4],
    /// What a differencing disk says of its parent, which is not looked for.
    pub parent: Option<ParentLink>,
}

impl Facts {
    /// Reads them, under a shared lock that is released again.
    ///
    /// # Errors
    /// Those of [`VhdImage::open`] for reading, other than that the disk has a parent.
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Self, DiskError> {
        let file = crate::open::open_locked(storage, path, true)?;
        let core = open::look(file, path, true)?;
        Ok(Self {
            geometry: core.geometry(),
            identity: core.identity()?,
            kind: core.kind,
            disk_id: core.footer.unique_id(),
            creator: core.footer.creator(),
            parent: core.parent_link,
        })
    }
}

/// A VHD file that is open.
pub struct VhdImage {
    kind: Kind,
    gate: Gate<Core>,
}

impl VhdImage {
    /// Opens an image and locks its file against other users.
    ///
    /// # Errors
    /// Corrupt, with the structure and its offset; unsupported (unknown versions); that it has a parent; locked; or
    /// the operating system's.
    pub fn open(
        storage: Arc<dyn Storage>,
        path: &Path,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        Self::open_with(storage, path, read_only, &mut parent::refuse(path))
    }

    /// As [`open`](Self::open), for a disk that may have a parent: `find` opens it, read-only, if so. The
    /// parent's id and size are checked before anything is changed.
    ///
    /// # Errors
    /// Those of `open` and of `find`; a parent that is not the one that the disk was made over.
    pub fn open_with(
        storage: Arc<dyn Storage>,
        path: &Path,
        read_only: bool,
        find: &mut Find<'_>,
    ) -> Result<Self, DiskError> {
        let file = crate::open::open_locked(&*storage, path, read_only)?;
        Self::of(file, path, read_only, find)
    }

    fn of(
        file: Arc<dyn BlockFile>,
        path: &Path,
        read_only: bool,
        find: &mut Find<'_>,
    ) -> Result<Self, DiskError> {
        let core = open::open_file(file, path, read_only, find)?;
        Ok(Self {
            kind: core.kind,
            gate: Gate::new(core),
        })
    }

    /// How it takes space.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes a new image without a parent and opens it. A crash leaves the whole file or none under this name.
    ///
    /// # Errors
    /// Invalid options; there is something at `path`; or the operating system's.
    pub fn create(
        storage: Arc<dyn Storage>,
        path: &Path,
        options: &CreateOptions,
    ) -> Result<Self, DiskError> {
        let file = create::create(&*storage, path, options, None)?;
        Self::of(file, path, false, &mut parent::refuse(path))
    }

    /// Makes a new differencing disk over `parent`, which is open read-only, of the parent's size, and opens it. The
    /// parent must not change from then on. As with [`create`](Self::create), a crash leaves the whole file or none.
    ///
    /// # Errors
    /// Invalid options; a parent that is writable, or whose path Windows cannot write; there is something at `path`; or
    /// the operating system's.
    pub fn create_child(
        storage: Arc<dyn Storage>,
        path: &Path,
        parent: &Arc<Self>,
        options: &ChildOptions,
    ) -> Result<Self, DiskError> {
        let geometry = parent.geometry();
        if !geometry.read_only {
            let what = format!(
                "{} is open for writing and cannot be a parent",
                options.parent_path.display()
            );
            return Err(DiskError::Invalid { what });
        }
        let id = parent.identity()?.data_write_id;
        let named = NewParent::of(&*storage, path, &options.parent_path, id)?;
        let wanted = CreateOptions {
            size_bytes: geometry.size_bytes,
            block_bytes: options.block_bytes,
            kind: Kind::Differencing,
            disk_id: None,
        };
        let file = create::create(&*storage, path, &wanted, Some(&named))?;
        let mut find = |_: &ParentLink| Ok(Arc::clone(parent) as Arc<dyn Image>);
        Self::of(file, path, false, &mut find)
    }

    /// What a differencing disk says of its parent; `None` for others.
    ///
    /// # Errors
    /// When it is closed or poisoned.
    pub fn parent_link(&self) -> Result<Option<ParentLink>, DiskError> {
        self.gate.with(|core| Ok(core.parent_link.clone()))
    }

    /// Grows the disk to `new_size` bytes. Requests wait meanwhile. Durable on return.
    ///
    /// # Errors
    /// Unsupported: to a smaller size, or of a disk with a parent; invalid sizes; or the operating system's.
    pub fn resize(&self, new_size: u64) -> Result<(), DiskError> {
        self.gate.alone(|core| core.grow(new_size))
    }
}

impl Image for VhdImage {
    fn geometry(&self) -> Geometry {
        self.gate.geometry()
    }

    /// Also answers after [`close`](Image::close): as the file was left.
    fn identity(&self) -> Result<Identity, DiskError> {
        self.gate.identity()
    }

    /// The format has no id that changes with the content. Length and time must outlive a close, so the file is cut as
    /// a close does.
    fn content_identity(&self) -> Result<Identity, DiskError> {
        let identity = self.gate.settled_identity()?;
        Ok(Identity {
            data_write_id: [0; 16],
            ..identity
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.gate
            .read(offset, buf.len(), |core| core.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.gate.change(offset, layout::to_u64(buf.len()), |core| {
            core.write(buf, offset, fua)
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.gate
            .change(offset, length, |core| core.zero(offset, length, mode, fua))
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
