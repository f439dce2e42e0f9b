//! Files for crate imago: its `Storage` over any [`Bytes`].
//!
//! Owns: [`ByteStorage`], and nothing of the file. Receives positional reads and writes from imago and hands them on.
//! Does not do: locks, names, opening; imago never sees a path, so that a file's references to others lead nowhere.
//!
//! A crate of its own because the methods of imago's trait are declared `unsafe`, which the other crates forbid. There
//! is no unsafe operation here: the declarations ask callers for aligned requests, and any alignment is right for us.

use std::fmt;
use std::io;
use std::sync::Arc;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

/// A file as imago uses it.
pub trait Bytes: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// The file's.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`; beyond the end is an error.
    ///
    /// # Errors
    /// The file's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset`, growing the file if need be.
    ///
    /// # Errors
    /// The file's.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a range read as zeros, growing the file if need be.
    ///
    /// # Errors
    /// The file's.
    fn zero(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Sets the length; what is new reads as zeros.
    ///
    /// # Errors
    /// The file's.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes everything durable.
    ///
    /// # Errors
    /// The file's.
    fn sync(&self) -> io::Result<()>;
}

/// A [`Bytes`] as imago wants it.
pub struct ByteStorage {
    bytes: Arc<dyn Bytes>,
    name: String,
    requests: CommonStorageHelper,
}

impl ByteStorage {
    /// Over a file; `name` is for messages.
    #[must_use]
    pub fn new(bytes: Arc<dyn Bytes>, name: String) -> Self {
        Self {
            bytes,
            name,
            requests: CommonStorageHelper::default(),
        }
    }
}

impl fmt::Debug for ByteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByteStorage").field(&self.name).finish()
    }
}

impl fmt::Display for ByteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[expect(
    unsafe_code,
    reason = "imago declares these methods unsafe; their bodies are safe code"
)]
impl Storage for ByteStorage {
    fn size(&self) -> io::Result<u64> {
        self.bytes.length()
    }

    /// What lies beyond the end reads as zeros.
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let length = self.bytes.length()?;
        let mut at = offset;
        for mut slice in bufv.into_inner() {
            let there = length.saturating_sub(at);
            let there = usize::try_from(there).map_or(slice.len(), |there| there.min(slice.len()));
            let (inside, beyond) = slice.split_at_mut(there);
            if !inside.is_empty() {
                self.bytes.read_at(inside, at)?;
            }
            beyond.fill(0);
            at += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        // One request is one write of the file: a durable one must not be torn in two.
        match bufv.into_inner().as_slice() {
            [] => Ok(()),
            [one] => self.bytes.write_at(one, offset),
            several => {
                let whole: Vec<u8> = several
                    .iter()
                    .flat_map(|slice| slice.iter())
                    .copied()
                    .collect();
                self.bytes.write_at(&whole, offset)
            }
        }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.bytes.zero(offset, length)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.bytes.zero(offset, length)
    }

    /// Nothing is kept here.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.bytes.sync()
    }

    /// Every write is over when it returns.
    fn settle_writes(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.requests
    }

    fn resize(&self, new_size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.bytes.set_length(new_size)
    }
}
