//! The trait that every disk presents: files of any format, and layers over them.

use crate::error::DiskError;

/// Fixed facts of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Exact size in bytes; a multiple of the logical sector for VHDX, any multiple of 512 for raw.
    pub size_bytes: u64,
    /// Smallest unit a guest may address: 512 or 4096 bytes.
    pub logical_sector_bytes: u32,
    /// What the guest should prefer: 512 or 4096 bytes.
    pub physical_sector_bytes: u32,
    /// Unit of allocation in bytes; 0 where the format has none (raw).
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What tells whether an image was changed while nobody of ours had it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// VHDX DataWriteGuid, the unique id of a VHD (which stays when the content changes); zeros where the format has
    /// none. Stable while the image is open.
    pub data_write_id: [u8; 16],
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Last modification in nanoseconds since 1970; 0 where unknown.
    pub modified_ns: i128,
}

/// What a range of an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything.
    Data,
    /// Reads as zeros, and has space.
    Zero,
    /// Reads as zeros, and has no space.
    Hole,
}

/// A stretch of an image whose bytes are of one kind and come from one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What it holds.
    pub kind: ExtentKind,
    /// Which file of the chain says so: 0 is the image itself, 1 its parent, and so on. What lies past a parent's end
    /// is its child's word; where no file has anything, it is the last one's.
    pub level: u32,
}

impl Run {
    /// A run of the image itself.
    #[must_use]
    pub const fn here(offset: u64, length: u64, kind: ExtentKind) -> Self {
        Self {
            offset,
            length,
            kind,
            level: 0,
        }
    }

    /// The same run as a child of the image sees it.
    #[must_use]
    pub const fn below(self) -> Self {
        Self {
            level: self.level + 1,
            ..self
        }
    }

    /// The byte after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether `next`, which begins where this one ends, is more of the same.
    pub(crate) fn goes_on_in(&self, next: &Self) -> bool {
        self.kind == next.kind && self.level == next.level
    }
}

/// How zeros are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// Space may be given back.
    MayUnmap,
    /// Space must stay allocated, or become so.
    KeepAllocated,
    /// Refuse with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), at once and without a change,
    /// unless this is much faster than writing the zeros. May unmap.
    FastOnly,
}

/// What a caller is about to do; see [`Image::is_quick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read this many bytes.
    Read,
    /// Write this many bytes.
    Write,
}

/// A disk that can be read and written at any offset.
///
/// All methods take `&self` and may be called from many threads at once. Overlapping writes leave
/// either's bytes, sector by sector. Offsets and lengths are in bytes, multiples of
/// 512 and within the disk; anything else is [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) and changes nothing.
///
/// # Contract
/// 1. What a `read_at` that starts after a `write_at`, `write_zeroes` or `discard` returned sees is their result.
/// 2. Everything answered before a `flush` began is durable once it returns.
/// 3. After a failed flush the image is poisoned: every later call fails with
///    [`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned) until the file is opened anew.
/// 4. Dropping an image without `close` is a crash as far as the file is concerned: it must be recoverable.
pub trait Image: Send + Sync {
    /// Fixed facts.
    fn geometry(&self) -> Geometry;

    /// Identity of the content now; see [`Identity`].
    ///
    /// # Errors
    /// When the file's metadata cannot be read.
    fn identity(&self) -> Result<Identity, DiskError>;

    /// The identity that the content will have, as long as nobody changes it, after a [`close`](Self::close) and a new
    /// opening too. Where the format has no id that changes with the content, the id is zeros: length and time decide.
    ///
    /// # Errors
    /// Those of [`identity`](Self::identity), and of a flush where the file must be changed to be as a close leaves it.
    fn content_identity(&self) -> Result<Identity, DiskError> {
        self.identity()
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`DiskError`] naming the file and range.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError>;

    /// Writes `buf` at `offset`. With `fua` it is durable on return.
    ///
    /// # Errors
    /// [`DiskError`] naming the file and range.
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError>;

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// [`DiskError`] naming the file and range.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError>;

    /// Gives space of a range back. It reads as zeros afterwards (ours is deterministic, so that replicas are).
    ///
    /// # Errors
    /// [`DiskError`] naming the file and range.
    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.write_zeroes(offset, length, ZeroMode::MayUnmap, false)
    }

    /// Makes durable what was answered before.
    ///
    /// # Errors
    /// Any failure poisons the image.
    fn flush(&self) -> Result<(), DiskError>;

    /// Tells what `[offset, offset + length)` holds, in ascending runs that cover it. Coarser than the truth
    /// is allowed ("data" for zeros), finer never. `visit` returns false to stop.
    ///
    /// # Errors
    /// [`DiskError`] naming the file and range.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError>;

    /// Whether this access will most likely be answered from memory, in microseconds: then the
    /// caller need not hand it to another thread. A wrong answer costs time, nothing else.
    fn is_quick(&self, _access: Access, _offset: u64, _length: usize) -> bool {
        false
    }

    /// Flushes and leaves the file as after a clean shutdown. Later calls fail.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    fn close(&self) -> Result<(), DiskError>;
}
