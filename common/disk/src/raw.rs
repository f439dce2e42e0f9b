//! Raw images: the file's bytes are the disk's bytes.
//!
//! Owns: one file, locked against everybody else while it is open. Gives out: an [`Image`] of exactly the file's
//! length. Holes of the file are holes of the image.
//!
//! Does not do: guessing. A file that begins or ends like another format's is refused by [`RawImage::open`]: a guest
//! can write such a beginning into its own disk, and an operator can name the wrong file; only
//! [`RawImage::open_whatever_it_holds`] takes the caller's word for it.
//!
//! # Invariants
//! 1. `size_bytes` never exceeds the file's durable length: it grows after the file has.
//! 2. A failed sync poisons the image before the caller learns of it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DiskError;
use crate::image::{Access, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use crate::open;
use crate::poison::Poison;
use crate::storage::{BlockFile, FileExtent, LockKind, OpenMode, Storage};

/// Sizes, offsets and lengths are multiples of this.
const SECTOR_BYTES: u64 = 512;
/// What a guest should prefer: a page of the host's cache.
const PAGE_BYTES: u64 = 4096;
/// Largest image: what a signed file offset can address.
const SIZE_MAX: u64 = (1 << 63) - SECTOR_BYTES;
/// Longest write that is still answered in microseconds: a copy into the page cache.
const QUICK_WRITE_MAX: usize = 64 << 10;
/// Zeros are written in pieces of this where the file system has no faster way.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A raw disk image; see the [module](self).
pub struct RawImage {
    file: Arc<dyn BlockFile>,
    name: String,
    size_bytes: AtomicU64,
    read_only: bool,
    closed: AtomicBool,
    /// The first failed sync; invariant 2.
    poison: Poison,
    /// Held while the file grows.
    growing: Mutex<()>,
}

impl RawImage {
    /// Creates an image that reads as zeros and has no space. It is durable on return, its name too; a failure leaves
    /// nothing.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for a size of 0 or not in sectors of 512 bytes; the storage's, `AlreadyExists` among them.
    pub fn create(storage: &dyn Storage, path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        check_size(&name, size_bytes)?;
        let file = storage
            .open(path, OpenMode::CreateNew)
            .map_err(|e| DiskError::io(format!("create {name}"), e))?;
        open::lock(&*file, LockKind::Exclusive, path)?;
        // The length before the name: a name that survives a power loss has an image behind it.
        let made = file
            .set_length(size_bytes)
            .and_then(|()| file.sync())
            .and_then(|()| storage.sync_dir(path.parent().unwrap_or(Path::new("."))));
        if let Err(error) = made {
            // The caller wants to know why it failed, not that something was left behind.
            if let Err(left) = storage.remove(path) {
                tracing::warn!(file = name, error = %left, "half-made file left behind");
            }
            let action = format!("create {name} of {size_bytes} bytes");
            return Err(DiskError::io(action, error));
        }
        Ok(Self::of(file, name, size_bytes, false))
    }

    /// Opens an image, unless the file looks like one of another format.
    ///
    /// # Errors
    /// [`DiskError::Unsupported`] for such a file, or a length that is 0 or not in sectors of 512 bytes;
    /// [`DiskError::Locked`] while somebody else has it open.
    pub fn open(storage: &dyn Storage, path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let image = Self::open_whatever_it_holds(storage, path, read_only)?;
        if let Some(format) = open::foreign_format(&*image.file, path)? {
            let what = format!("{} as a raw image (it looks like {format})", image.name);
            return Err(DiskError::Unsupported { what });
        }
        Ok(image)
    }

    /// As [`open`](Self::open), for a caller who knows that it is raw: the content is not looked at.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_whatever_it_holds(
        storage: &dyn Storage,
        path: &Path,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let file = open::open_locked(storage, path, read_only)?;
        let size_bytes = file
            .length()
            .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
        if check_size(&name, size_bytes).is_err() {
            let what = format!("raw image {name} of {size_bytes} bytes (not sectors of 512)");
            return Err(DiskError::Unsupported { what });
        }
        Ok(Self::of(file, name, size_bytes, read_only))
    }

    fn of(file: Arc<dyn BlockFile>, name: String, size_bytes: u64, read_only: bool) -> Self {
        Self {
            file,
            name,
            size_bytes: AtomicU64::new(size_bytes),
            read_only,
            closed: AtomicBool::new(false),
            poison: Poison::default(),
            growing: Mutex::new(()),
        }
    }

    /// Makes the image larger; the new part reads as zeros. Durable on return. The same size changes nothing.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for a smaller size or one not in sectors of 512 bytes; the storage's.
    pub fn resize(&self, size_bytes: u64) -> Result<(), DiskError> {
        self.check_open()?;
        self.check_writable()?;
        check_size(&self.name, size_bytes)?;
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.size_bytes.load(Ordering::Acquire);
        if size_bytes < now {
            let what = format!(
                "{} has {now} bytes and cannot shrink to {size_bytes}",
                self.name
            );
            return Err(DiskError::Invalid { what });
        }
        if size_bytes == now {
            return Ok(());
        }
        self.file
            .set_length(size_bytes)
            .map_err(|e| DiskError::io(format!("grow {} to {size_bytes} bytes", self.name), e))?;
        // Length before size: invariant 1.
        self.sync()?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn check_open(&self) -> Result<(), DiskError> {
        self.poison.check()?;
        if self.closed.load(Ordering::Acquire) {
            return Err(DiskError::Closed {
                why: "it was closed",
            });
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), DiskError> {
        if self.read_only {
            let what = format!("{} is open for reading only", self.name);
            return Err(DiskError::Invalid { what });
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let size = self.size_bytes.load(Ordering::Acquire);
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if inside && offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        let name = &self.name;
        let what = format!(
            "{length} bytes at {offset} of {name} are not sectors of 512 bytes within its {size}"
        );
        Err(DiskError::Invalid { what })
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_open()?;
        self.check_writable()?;
        self.check_range(offset, length)
    }

    fn failed(&self, verb: &str, offset: u64, length: u64, error: io::Error) -> DiskError {
        DiskError::io(
            format!("{verb} {length} bytes at {offset} of {}", self.name),
            error,
        )
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file
            .sync()
            .map_err(|e| self.poison.set(format!("sync {}", self.name), e))
    }

    fn zero(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), DiskError> {
        let punched = match mode {
            ZeroMode::MayUnmap | ZeroMode::FastOnly => {
                possible(self.file.punch_hole(offset, length))
            }
            ZeroMode::KeepAllocated => Ok(false),
        };
        let zeroed = punched.and_then(|done| {
            if done {
                Ok(true)
            } else {
                possible(self.file.zero_range(offset, length))
            }
        });
        match (
            zeroed.map_err(|e| self.failed("zero", offset, length, e))?,
            mode,
        ) {
            (true, _) => Ok(()),
            (false, ZeroMode::FastOnly) => Err(DiskError::Unsupported {
                what: format!("fast zeroing in {}", self.name),
            }),
            (false, ZeroMode::MayUnmap | ZeroMode::KeepAllocated) => {
                self.write_zero_bytes(offset, length)
            }
        }
    }

    fn write_zero_bytes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.file
                .write_at(&ZEROS[..piece], at)
                .map_err(|e| self.failed("write zeros to", at, piece as u64, e))?;
            at += piece as u64;
        }
        Ok(())
    }
}

impl Image for RawImage {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            block_bytes: 0,
            read_only: self.read_only,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        let facts = self
            .file
            .length()
            .and_then(|length| Ok((length, self.file.modified_ns()?)));
        let (file_bytes, modified_ns) =
            facts.map_err(|e| DiskError::io(format!("read the facts of {}", self.name), e))?;
        Ok(Identity {
            data_write_id: [0; 16],
            file_bytes,
            modified_ns,
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.check_open()?;
        self.check_range(offset, buf.len() as u64)?;
        self.file
            .read_at(buf, offset)
            .map_err(|e| self.failed("read", offset, buf.len() as u64, e))
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.check_write(offset, buf.len() as u64)?;
        let length = buf.len() as u64;
        if fua {
            let written = self.file.write_at_durable(buf, offset);
            return written.map_err(|e| {
                let action = format!("write {length} bytes through at {offset} of {}", self.name);
                self.poison.set(action, e)
            });
        }
        self.file
            .write_at(buf, offset)
            .map_err(|e| self.failed("write", offset, length, e))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        self.zero(offset, length, mode)?;
        if fua { self.sync() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_open()?;
        if self.read_only { Ok(()) } else { self.sync() }
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.check_open()?;
        self.check_range(offset, length)?;
        let mut each = |at, bytes, found| {
            let kind = match found {
                FileExtent::Data => ExtentKind::Data,
                FileExtent::Hole => ExtentKind::Hole,
            };
            visit(Run::here(at, bytes, kind))
        };
        self.file
            .extents(offset, length, &mut each)
            .map_err(|e| self.failed("look for data in", offset, length, e))
    }

    /// A write of whole pages is a copy into the page cache. A read may have to wait for the disk, and a
    /// write of a part of a page for the read of the rest; asking the kernel first would cost as much as
    /// handing the work to another thread.
    fn is_quick(&self, access: Access, offset: u64, length: usize) -> bool {
        match access {
            Access::Read => false,
            Access::Write => {
                length <= QUICK_WRITE_MAX
                    && offset.is_multiple_of(PAGE_BYTES)
                    && (length as u64).is_multiple_of(PAGE_BYTES)
            }
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        self.flush()?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

fn check_size(name: &str, size_bytes: u64) -> Result<(), DiskError> {
    if size_bytes.is_multiple_of(SECTOR_BYTES) && (1..=SIZE_MAX).contains(&size_bytes) {
        return Ok(());
    }
    let what = format!("{size_bytes} bytes are no size for {name}: it must be in sectors of 512");
    Err(DiskError::Invalid { what })
}

/// Whether it was done. "Cannot" (devices say that it is not aligned) is an answer, not an error.
fn possible(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
