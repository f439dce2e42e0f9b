//! qcow2 images, through crate imago: to read, to import, to export, and to serve where speed does not matter.
//!
//! Owns: the file, locked against everybody else; which files are refused; when writes are durable. Does not do: the
//! format itself, which is imago's; backing files, external data files, encryption, internal snapshots under writes,
//! bitmaps: all refused with what to do. imago is never given a path, so no file leads it to another.
//!
//! # Durability, and what it costs
//! imago does not sync between refcounts, tables and data, and writes the entry of a new table before its refcount
//! (0.2.6): after a crash, be it of the process or of the host, the refcounts may be wrong, and a later write could
//! give one cluster to two places. So of an image that was opened for writing
//! - each write to the file is durable before the next begins, and tables follow at once. A crash then never leaves a
//!   table that was not filled in, and whatever was answered is there;
//! - the format's own dirty mark is set before the first write and taken away by [`close`](Image::close). An image with
//!   it can be read. Opened for writing, it gets the counts that a crash between the entry of a new table and its
//!   refcount left out; what is wrong in any other way is refused until `qemu-img check -r all` has mended it.
//!
//! Each write waits for the disk: raw and VHDX are the formats for guests in a hurry. An image that
//! [`create`](Qcow2Image::create) made is written without waiting until it is flushed, and without the mark: it is for
//! filling, and worth nothing before it was closed.
//!
//! What imago cannot promise: that data of a write that was *not* flushed is old or new; a cluster that was given
//! back and taken again may show what it held before.
//!
//! Opening for writing reads all tables and compares them with the refcounts, which imago believes: it would give a
//! cluster that is used and not counted to the next write, the header's too.
//!
//! # Invariants
//! 1. After the first failed write or sync every call fails; imago's caches no longer say what is in the file.
//! 2. Giving back clusters holds the gate alone: imago's other requests must not meet it.

mod check;
mod file;
mod header;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
};
use sitepair_qcow2_storage::ByteStorage;

use self::file::{Order, OrderedFile};
use self::header::Header;
use crate::error::DiskError;
use crate::image::{ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use crate::open;
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};

const SECTOR_BYTES: u64 = 512;
/// Largest disk: more than any other format of ours holds.
const SIZE_MAX: u64 = 64 << 40;
/// Clusters of a new image.
const CLUSTER_BYTES: u32 = 64 << 10;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

type Access = FormatAccess<ByteStorage>;

/// A qcow2 image; see the [module](self).
pub struct Qcow2Image {
    file: Arc<OrderedFile>,
    name: String,
    size_bytes: u64,
    cluster_bytes: u32,
    read_only: bool,
    /// `None` once it is closed.
    access: RwLock<Option<Access>>,
}

impl Qcow2Image {
    /// Creates an image that reads as zeros, to be filled and closed; durable on return, its name too.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for a size of 0, over 64 TiB or not in sectors of 512 bytes; the storage's,
    /// `AlreadyExists` among them.
    pub fn create(storage: &dyn Storage, path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        if !size_bytes.is_multiple_of(SECTOR_BYTES) || !(1..=SIZE_MAX).contains(&size_bytes) {
            let what = format!("{size_bytes} bytes are no size for {name}: use sectors of 512");
            return Err(DiskError::Invalid { what });
        }
        let file = storage
            .open(path, OpenMode::CreateNew)
            .map_err(|e| DiskError::io(format!("create {name}"), e))?;
        open::lock(&*file, LockKind::Exclusive, path)?;
        let file = Arc::new(OrderedFile::new(file, Order::AtFlush, false));
        let cluster = usize::try_from(CLUSTER_BYTES).expect("64 KiB");
        let created = Qcow2::<ByteStorage>::create_builder(bytes_of(&file, &name))
            .size(size_bytes)
            .cluster_size(cluster)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::builder(image).backing(None).write(true))
            })
            .map_err(|e| DiskError::io(format!("create {name}"), e))?;
        let image = Self {
            file,
            name,
            size_bytes,
            cluster_bytes: CLUSTER_BYTES,
            read_only: false,
            access: RwLock::new(Some(FormatAccess::new(created))),
        };
        // The content before the name: a name that survives a power loss has an image behind it.
        image.flush()?;
        storage
            .sync_dir(path.parent().unwrap_or(Path::new(".")))
            .map_err(|e| DiskError::io(format!("create {}", image.name), e))?;
        Ok(image)
    }

    /// Opens an image.
    ///
    /// # Errors
    /// [`DiskError::Unsupported`] for what the [module](self) refuses, [`DiskError::Corrupt`], [`DiskError::Locked`],
    /// the storage's.
    pub fn open(storage: &dyn Storage, path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let file = open::open_locked(storage, path, read_only)?;
        let header = Header::read(&*file, &name)?;
        let length = file
            .length()
            .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
        header.check(length, &name, read_only)?;
        if !read_only {
            let lost = check::check(&*file, &header, &name)?;
            if header.is_dirty() {
                let counts = lost.len();
                tracing::warn!(
                    file = name,
                    counts,
                    "the image was not closed: its tables are whole, and the refcounts that a crash left out are made good"
                );
                make_good(&*file, &lost)
                    .map_err(|e| DiskError::io(format!("write refcounts of {name}"), e))?;
            }
        }
        let file = Arc::new(OrderedFile::new(file, Order::EachWrite, header.is_dirty()));
        let builder = Qcow2::<ByteStorage>::builder(bytes_of(&file, &name))
            .backing(None)
            .data_file(None)
            .write(!read_only);
        let opened = guarded(|| builder.open(DenyImplicitOpenGate::default()))
            .map_err(|e| damage_or_io(format!("open {name}"), e))?;
        let access = FormatAccess::new(opened);
        Ok(Self {
            file,
            name,
            size_bytes: header.size_bytes,
            cluster_bytes: header.cluster_bytes(),
            read_only,
            access: RwLock::new(Some(access)),
        })
    }

    fn share(&self) -> RwLockReadGuard<'_, Option<Access>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Option<Access>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_poison()?;
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size_bytes);
        let sectors = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        if inside && sectors {
            return Ok(());
        }
        let (name, size) = (&self.name, self.size_bytes);
        let what = format!(
            "{length} bytes at {offset} of {name} are not sectors of 512 bytes within its {size}"
        );
        Err(DiskError::Invalid { what })
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check(offset, length)?;
        if self.read_only {
            let what = format!("{} is open for reading only", self.name);
            return Err(DiskError::Invalid { what });
        }
        Ok(())
    }

    /// Invariant 1.
    fn check_poison(&self) -> Result<(), DiskError> {
        match self.file.poison() {
            None => Ok(()),
            Some(first) => Err(DiskError::Poisoned {
                first: first.to_owned(),
            }),
        }
    }

    fn failed(&self, verb: &str, offset: u64, length: u64, error: io::Error) -> DiskError {
        let action = format!("{verb} {length} bytes at {offset} of {}", self.name);
        damage_or_io(action, error)
    }

    fn write_zero_bytes(&self, access: &Access, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let rest = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = &ZEROS[..rest.min(ZEROS.len())];
            let written = guarded(|| access.write(piece, at));
            written.map_err(|e| self.failed("write zeros to", at, piece.len() as u64, e))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Takes the dirty mark away; everything is flushed, and nobody writes.
    fn settle(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        self.file
            .unmark()
            .map_err(|e| DiskError::io(format!("close {}", self.name), e))
    }

    /// Ends a write. Of an image that is relied on, no table stays in imago's memory only: a process that is killed takes
    /// nothing with it that was answered, for its guest goes on with the next one.
    fn finish(&self, access: &Access, fua: bool) -> Result<(), DiskError> {
        if fua {
            return self.flush_access(access);
        }
        if self.file.is_ordered() {
            guarded(|| access.flush())
                .map_err(|e| DiskError::io(format!("write tables of {}", self.name), e))?;
        }
        Ok(())
    }

    fn flush_access(&self, access: &Access) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        // imago's caches first, in its order; then what is not durable yet.
        let flushed = guarded(|| access.flush().and_then(|()| access.sync()));
        flushed.map_err(|e| DiskError::io(format!("flush {}", self.name), e))
    }
}

impl Image for Qcow2Image {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            block_bytes: self.cluster_bytes,
            read_only: self.read_only,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        let file: &dyn BlockFile = self.file.file();
        let facts = file
            .length()
            .and_then(|length| Ok((length, file.modified_ns()?)));
        let (file_bytes, modified_ns) =
            facts.map_err(|e| DiskError::io(format!("read the facts of {}", self.name), e))?;
        Ok(Identity {
            data_write_id: [0; 16],
            file_bytes,
            modified_ns,
        })
    }

    /// The file is first made as a close leaves it: taking the dirty mark away later would change its time.
    fn content_identity(&self) -> Result<Identity, DiskError> {
        self.check_poison()?;
        let gate = self.alone();
        self.flush_access(opened(&gate)?)?;
        self.settle()?;
        self.identity()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let length = buf.len() as u64;
        self.check(offset, length)?;
        let gate = self.share();
        let access = opened(&gate)?;
        guarded(|| access.read(buf, offset)).map_err(|e| self.failed("read", offset, length, e))
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        let length = buf.len() as u64;
        self.check_write(offset, length)?;
        let gate = self.share();
        let access = opened(&gate)?;
        guarded(|| access.write(buf, offset))
            .map_err(|e| self.failed("write", offset, length, e))?;
        self.finish(access, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        // Alone: invariant 2.
        let mut gate = self.alone();
        let access = gate.as_mut().ok_or(CLOSED)?;
        match mode {
            ZeroMode::KeepAllocated => self.write_zero_bytes(access, offset, length)?,
            ZeroMode::MayUnmap | ZeroMode::FastOnly => {
                guarded(|| access.discard_to_zero(offset, length))
                    .map_err(|e| self.failed("zero", offset, length, e))?
            }
        }
        self.finish(access, fua)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_poison()?;
        let gate = self.share();
        self.flush_access(opened(&gate)?)
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (kind, bytes) = {
                // Not held while the visitor runs: it may call us.
                let gate = self.share();
                let access = opened(&gate)?;
                let mapped = guarded(|| access.get_mapping(at, end - at));
                let (mapping, bytes) =
                    mapped.map_err(|e| self.failed("look for data in", at, end - at, e))?;
                let kind = match mapping {
                    Mapping::Zero { explicit: true, .. } => ExtentKind::Zero,
                    Mapping::Zero { .. } => ExtentKind::Hole,
                    _ => ExtentKind::Data,
                };
                (kind, bytes.min(end - at))
            };
            if bytes == 0 {
                let e = io::Error::other("the table ends before the disk");
                return Err(self.failed("look for data in", at, end - at, e));
            }
            if !visit(Run::here(at, bytes, kind)) {
                return Ok(());
            }
            at += bytes;
        }
        Ok(())
    }

    fn close(&self) -> Result<(), DiskError> {
        self.check_poison()?;
        let mut gate = self.alone();
        self.flush_access(gate.as_ref().ok_or(CLOSED)?)?;
        // imago first: it flushes once more when it goes, and finds nothing to write.
        *gate = None;
        self.settle()
    }
}

/// imago panics on some damaged files (a header extension that ends too early, for one): that is damage, told as such.
fn guarded<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(io::Error::other("it cannot be made sense of")))
}

const CLOSED: DiskError = DiskError::Closed {
    why: "it was closed",
};

fn opened(gate: &Option<Access>) -> Result<&Access, DiskError> {
    gate.as_ref().ok_or(CLOSED)
}

fn bytes_of(file: &Arc<OrderedFile>, name: &str) -> ByteStorage {
    let bytes: Arc<dyn sitepair_qcow2_storage::Bytes> = Arc::clone(file) as _;
    ByteStorage::new(bytes, name.to_owned())
}

/// Writes the counts that a crash left out, durably before anything else. Again after a crash, it writes the same.
fn make_good(file: &dyn BlockFile, counts: &[u64]) -> io::Result<()> {
    for at in counts {
        file.write_at(&[1], *at)?;
    }
    if counts.is_empty() {
        Ok(())
    } else {
        file.sync()
    }
}

/// imago tells damage by errors that no operating system has.
fn damage_or_io(action: String, error: io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::Unsupported => DiskError::Unsupported {
            what: format!("{action}: {error}: that"),
        },
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            if error.raw_os_error().is_none() =>
        {
            DiskError::Corrupt {
                structure: "qcow2 metadata",
                offset: 0,
                detail: format!("{action}: {error}"),
            }
        }
        _ => DiskError::io(action, error),
    }
}

#[cfg(test)]
mod tests;
