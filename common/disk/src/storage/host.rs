//! The host's files: pread and pwrite, `fdatasync`, `fallocate`, `SEEK_HOLE`, OFD locks.
//!
//! Owns: [`HostStorage`] and the files it opens. Regular files and block devices are alike, except that
//! a device has no holes that the kernel would tell of and no time of modification.
//!
//! Does not do: caching, threads, retries of anything but an interrupted call.
//!
//! # Invariants
//! 1. A file whose sync failed once stays poisoned: the kernel may have dropped the pages it could
//!    not write, and would report success the next time.
//! 2. The file's own position is never used (`SEEK_DATA` moves it), so calls from many threads do not meet.

mod lock;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::{BlockFile, FileExtent, FileId, LockKind, OpenMode, Storage};
use crate::poison::Poison;

/// Rights of files that we create: guest data is for nobody else.
const FILE_RIGHTS: u32 = 0o600;

/// The files of this host. Relative paths are relative to the process's directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostStorage;

impl HostStorage {
    /// The host's files.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Storage for HostStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let mut options = OpenOptions::new();
        // Without waiting: a named pipe would wait for its other end.
        let no_wait = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open(2)");
        options.read(true).mode(FILE_RIGHTS).custom_flags(no_wait);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        let file = options.open(path).map_err(|e| {
            // How sockets answer.
            if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
                neither_file_nor_disk()
            } else {
                e
            }
        })?;
        Ok(Arc::new(HostFile::new(file)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // A file system that cannot tell (NFS): somebody who makes the file this very moment loses it.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if self.exists(to)? {
                    return Err(io::Error::from(io::ErrorKind::AlreadyExists));
                }
                self.rename(from, to)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = or_here(path);
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        self.create_dir_all(parent)?;
        match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
        self.sync_dir(parent)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut found = fs::read_dir(or_here(path))?
            .map(|entry| entry.map(|entry| path.join(entry.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(or_here(path))
    }

    fn file_id(&self, path: &Path) -> io::Result<FileId> {
        let facts = fs::metadata(path)?;
        Ok(FileId {
            device: facts.dev(),
            inode: facts.ino(),
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(or_here(path))?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let facts = rustix::fs::statvfs(or_here(path))?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
}

/// The parent of `name` is the empty path, which no system call takes.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

fn neither_file_nor_disk() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is neither a file nor a disk",
    )
}

struct HostFile {
    file: File,
    is_device: bool,
    /// The first failed sync; invariant 1.
    poison: Poison,
    held: Mutex<Option<LockKind>>,
}

impl HostFile {
    fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        // Character devices answer at once, even if they make no good disks.
        if kind.is_fifo() || kind.is_socket() {
            return Err(neither_file_nor_disk());
        }
        Ok(Self {
            file,
            is_device: kind.is_block_device(),
            poison: Poison::default(),
            held: Mutex::new(None),
        })
    }

    fn check_poison(&self) -> io::Result<()> {
        match self.poison.first() {
            None => Ok(()),
            Some(first) => Err(io::Error::other(format!("an earlier sync failed: {first}"))),
        }
    }

    fn poisoned_by(&self, error: io::Error) -> io::Error {
        self.poison.remember(error.to_string());
        error
    }

    /// One `fallocate`, with an empty range allowed and "cannot" told as one kind of error.
    fn fallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        self.check_poison()?;
        if length == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                    return Err(io::Error::from(io::ErrorKind::Unsupported));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The next place at or after `offset` where data begins or, with `SeekFrom::Hole`, ends.
    /// `None`: there is none before the end of the file.
    fn seek(&self, to: SeekFrom) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.file, to) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = held.take() {
            // Closing alone would do, were it not for a child process that still has the descriptor, between its
            // fork and its exec.
            lock::give_up(&self.file, kind);
        }
    }
}

impl BlockFile for HostFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_poison()?;
        self.file.write_all_at(buf, offset)
    }

    fn write_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_poison()?;
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let slices = [IoSlice::new(rest)];
            match rustix::io::pwritev2(&self.file, &slices, at, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(written) => {
                    rest = &rest[written..];
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.write_at(rest, at)?;
                    return self.sync();
                }
                // Whether the write or its sync failed is not told, so it counts as the sync.
                Err(e) => return Err(self.poisoned_by(e.into())),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.check_poison()?;
        self.file.sync_data().map_err(|e| self.poisoned_by(e))
    }

    fn length(&self) -> io::Result<u64> {
        if self.is_device {
            return Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.check_poison()?;
        self.file.set_len(length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, offset, length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), offset, length)
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, FileExtent) -> bool,
    ) -> io::Result<()> {
        let end = offset
            .checked_add(length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        while at < end {
            let data = match self.seek(SeekFrom::Data(at)) {
                Ok(found) => found.unwrap_or(end).clamp(at, end),
                // A device or file system that does not tell: all of it may hold anything.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    visit(at, end - at, FileExtent::Data);
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            };
            if data > at && !visit(at, data - at, FileExtent::Hole) {
                return Ok(());
            }
            if data == end {
                return Ok(());
            }
            // The file may shrink meanwhile; then the rest is a hole on the next round.
            let hole = self
                .seek(SeekFrom::Hole(data))?
                .unwrap_or(data + 1)
                .clamp(data + 1, end);
            if !visit(data, hole - data, FileExtent::Data) {
                return Ok(());
            }
            at = hole;
        }
        Ok(())
    }

    fn modified_ns(&self) -> io::Result<i128> {
        if self.is_device {
            return Ok(0);
        }
        let facts = self.file.metadata()?;
        Ok(i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec()))
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        lock::replace(&self.file, *held, kind)?;
        *held = Some(kind);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
