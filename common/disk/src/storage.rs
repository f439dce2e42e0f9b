//! Files as images, maps, logs and journals use them: positional, explicit about durability.
//!
//! Two implementations keep the contract honest: the host's files ([`host`]), and a fake
//! that records every write and sync, fails on demand, and builds the files that a power
//! loss could leave behind ([`fake`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod fake;
pub mod host;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Must exist; never written.
    Read,
    /// Must exist.
    ReadWrite,
    /// Must not exist.
    CreateNew,
}

/// What a file's range holds in the host's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileExtent {
    /// May hold anything.
    Data,
    /// No space; reads as zeros.
    Hole,
}

/// A lock that another process (QEMU included) respects; released when dropped with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others may read, nobody may write.
    Shared,
    /// We read and write; nobody else may do either.
    Exclusive,
}

/// One open file. All calls block, take `&self`, and may come from many threads.
///
/// # Contract
/// 1. `write_at` is durable only after a later `sync` returned; until then a power loss may keep any
///    part of it, in any order with other unsynced writes, torn at 512 bytes.
/// 2. A failed `sync` is final: every later `write_at` and `sync` fails too.
pub trait BlockFile: Send + Sync {
    /// Fills `buf` from `offset`; past the end of the file is `UnexpectedEof`.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, growing the file if need be.
    ///
    /// # Errors
    /// The operating system's.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// As `write_at`, and durable on return (`RWF_DSYNC`).
    ///
    /// # Errors
    /// The operating system's.
    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)?;
        self.sync()
    }

    /// Makes content and length durable (`fdatasync`).
    ///
    /// # Errors
    /// The operating system's; final for this file.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn length(&self) -> io::Result<u64>;

    /// Cuts or extends (with a hole) to `length` bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Gives a range's space back; it reads as zeros. Never changes the length.
    ///
    /// # Errors
    /// `Unsupported` where the file system cannot.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros with space allocated. Never changes the length.
    ///
    /// # Errors
    /// `Unsupported` where the file system cannot.
    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Allocates space for a range, which reads as zeros where it was a hole. May extend the length.
    ///
    /// # Errors
    /// `StorageFull` when there is no room, `Unsupported` where the file system cannot.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Data and holes of `[offset, offset + length)`, ascending, covering it. The visitor returns false to stop.
    ///
    /// # Errors
    /// The operating system's.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, FileExtent) -> bool,
    ) -> io::Result<()>;

    /// Last modification in nanoseconds since 1970; 0 where unknown.
    ///
    /// # Errors
    /// The operating system's.
    fn modified_ns(&self) -> io::Result<i128>;

    /// Takes a lock that holds until the file is dropped, compatible with QEMU's (OFD locks on the bytes that
    /// QEMU uses).
    ///
    /// # Errors
    /// `WouldBlock` when another holder is in the way.
    fn lock(&self, kind: LockKind) -> io::Result<()>;
}

/// What tells two names of one file: the same for hard and symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The file system that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// A tree of files.
pub trait Storage: Send + Sync {
    /// Opens or creates a file.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>>;

    /// Moves a file over another, atomically. Durable after `sync_dir`.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// As `rename`, unless something is at `to`.
    ///
    /// # Errors
    /// `AlreadyExists` then; the operating system's.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after `sync_dir`.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its parents, durably.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Files and directories in a directory, sorted.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether something is at `path`.
    ///
    /// # Errors
    /// The operating system's, other than "not found".
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The absolute path of an existing file or directory, with symbolic links and `..` resolved.
    ///
    /// # Errors
    /// The operating system's.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;

    /// Which file `path` names, symbolic links followed.
    ///
    /// # Errors
    /// The operating system's.
    fn file_id(&self, path: &Path) -> io::Result<FileId>;

    /// Makes names in a directory durable (`fsync` on it).
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that can still be written below `path`.
    ///
    /// # Errors
    /// The operating system's.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// Puts `content` at `path` so that a power loss leaves the old file or the new one, whole:
/// written aside, synced, renamed, directory synced.
///
/// # Errors
/// The operating system's; the old file is then still there.
pub fn replace(storage: &dyn Storage, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    match storage.remove(&aside) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let file = storage.open(&aside, OpenMode::CreateNew)?;
    file.write_at(content, 0)?;
    file.sync()?;
    storage.rename(&aside, path)?;
    storage.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests;
