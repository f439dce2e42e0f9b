//! A storage in memory that forgets what was not synced, fails on demand, and counts.
//!
//! For tests of everything that writes files. It keeps, for each file and each directory, what is durable and
//! what was changed since; [`FakeStorage::crash`] builds what a power loss could leave of it.
//!
//! ```
//! use std::path::Path;
//! use sitepair_disk::storage::{OpenMode, Storage, fake::FakeStorage};
//!
//! let storage = FakeStorage::new();
//! let file = storage.open(Path::new("/a"), OpenMode::CreateNew)?;
//! file.write_at(&[7; 512], 0)?;
//! file.sync()?; // The content is durable now, the name is not:
//! assert!(!storage.crash(0).exists(Path::new("/a"))?);
//! storage.sync_dir(Path::new("/"))?;
//! assert!(storage.crash(0).exists(Path::new("/a"))?);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! An exhaustive crash test runs the work once to learn [`FakeStorage::operation_count`], then for each `n` below it
//! on a fresh storage with [`FakeStorage::die_after`]`(n)`, and recovers on `crash(seed)` for some seeds and on
//! [`FakeStorage::after_kill`].
//!
//! Owns: the files. Gives out: crash images as storages of their own, counters, the list of operations.
//! Does not do: time, rights, links, renames of directories. Nothing waits; all is decided by seeds.

mod content;
mod file;
mod inode;
mod rng;
mod world;

use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use inode::Counters;

use super::{BlockFile, FileId, OpenMode, Storage};
use file::FakeFile;
use world::{Verdict, World};

/// A change that was tried, in the order of [`FakeStorage::operations`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The file or directory.
    pub path: PathBuf,
    /// What was done to it.
    pub what: What,
}

/// Kinds of changes. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the calls and their arguments")]
pub enum What {
    Create,
    Rename,
    Remove,
    CreateDir,
    RemoveDir,
    SyncDir,
    Write {
        offset: u64,
        length: u64,
        durable: bool,
    },
    Sync,
    SetLength {
        length: u64,
    },
    PunchHole {
        offset: u64,
        length: u64,
    },
    ZeroRange {
        offset: u64,
        length: u64,
    },
    Allocate {
        offset: u64,
        length: u64,
    },
}

/// Which calls a [`Fault`] hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOn {
    /// `read_at`.
    Read,
    /// `write_at` and `write_at_durable`. The first half of the bytes is written, in whole sectors.
    Write,
    /// `sync`: any part of what was not synced is lost, and the file is poisoned.
    Sync,
    /// `set_length`, `allocate`, `zero_range` and `punch_hole`.
    Space,
    /// Creation, renaming and removal of files and directories.
    Name,
    /// `sync_dir`.
    SyncDir,
}

impl FaultOn {
    fn of(what: What) -> Self {
        match what {
            What::Write { .. } => Self::Write,
            What::Sync => Self::Sync,
            What::SyncDir => Self::SyncDir,
            What::SetLength { .. }
            | What::PunchHole { .. }
            | What::ZeroRange { .. }
            | What::Allocate { .. } => Self::Space,
            What::Create | What::Rename | What::Remove | What::CreateDir | What::RemoveDir => {
                Self::Name
            }
        }
    }
}

/// One failure to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The calls that count.
    pub on: FaultOn,
    /// Only those on this file or directory, if given.
    pub path: Option<PathBuf>,
    /// 1 is the next such call.
    pub nth: u64,
    /// What it fails with.
    pub kind: io::ErrorKind,
}

/// A tree of files in memory. Clones are the same tree. Directories `/` and the empty path exist; others are created.
#[derive(Debug, Clone)]
pub struct FakeStorage {
    world: Arc<Mutex<World>>,
}

impl Default for FakeStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeStorage {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::of(World::new())
    }

    fn of(world: World) -> Self {
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree as a power loss now could leave it: what is durable and a part of the rest, each name on its own.
    /// Seed 0 keeps nothing that was not synced, seed 1 everything. Of the others, even ones cut writes at sectors of
    /// 512 bytes, odd ones at pages of 4096; most keep each sector or page on its own, whatever the order of the
    /// writes, and some, of each file, the first of its changes and any part of the next. No locks, faults or poison;
    /// counters and operations start anew. This tree goes on unchanged.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        Self::of(self.world().after_power_loss(seed))
    }

    /// The tree as a kill of the process leaves it: all content is there, and what was not synced still is not.
    /// No locks, faults or poison; counters and operations start anew. This tree goes on unchanged.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        Self::of(self.world().after_kill())
    }

    /// Lets the process die in place of the operation after the first `count` (counted as in
    /// [`operation_count`](Self::operation_count)): that and every later call fails and changes nothing.
    pub fn die_after(&self, count: u64) {
        self.world().dies_after = Some(count);
    }

    /// Whether [`die_after`](Self::die_after) has struck.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.world().dead
    }

    /// Changes tried so far, syncs included, over all files.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.world().operations.len() as u64
    }

    /// The changes tried so far, in order.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.world().operations.clone()
    }

    /// Adds a failure to come.
    pub fn fail(&self, fault: Fault) {
        self.world().faults.push(fault);
    }

    /// Lets reads that touch `range` of `path` fail (as a bad sector does) until [`clear_faults`](Self::clear_faults).
    pub fn fail_reads(&self, path: &Path, range: Range<u64>) {
        self.world().bad_reads.push((path.to_owned(), range));
    }

    /// Forgets all failures to come. What they did stays.
    pub fn clear_faults(&self) {
        let mut world = self.world();
        world.faults.clear();
        world.bad_reads.clear();
    }

    /// Limits the space of all files together, in bytes (whole 4 KiB pages are counted). `None`: no limit.
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.world().space_bytes = bytes;
    }

    /// What was done to a file; zeros where there is none.
    #[must_use]
    pub fn counters(&self, path: &Path) -> Counters {
        let world = self.world();
        world
            .names
            .get(path)
            .map(|id| world.inodes[id].counters)
            .unwrap_or_default()
    }

    /// Whether a file has changes that a power loss could undo.
    #[must_use]
    pub fn has_unsynced(&self, path: &Path) -> bool {
        let world = self.world();
        world
            .names
            .get(path)
            .is_some_and(|id| world.inodes[id].has_unsynced())
    }

    /// The whole content of a file, as readers see it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        file.read_at(&mut content, 0)?;
        Ok(content)
    }

    /// Changes bytes behind everybody's back, durably: bit rot, or another program.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world();
        let id = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        world.touched(id).write_durable(bytes, offset);
        Ok(())
    }
}

/// Where `begin` said that the operation fails, so does the caller.
fn go(verdict: Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Go => Ok(()),
        Verdict::Fail(error) => Err(error),
    }
}

impl Storage for FakeStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let mut world = self.world();
        world.check_alive()?;
        if world.dirs.contains(path) {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let found = world.names.get(path).copied();
        let id = match (mode, found) {
            (OpenMode::Read | OpenMode::ReadWrite, Some(id)) => id,
            (OpenMode::Read | OpenMode::ReadWrite, None) => {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            (OpenMode::CreateNew, Some(_)) => {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            (OpenMode::CreateNew, None) => {
                check_parent(&world, path)?;
                go(world.begin(path, What::Create)?)?;
                world.create(path)
            }
        };
        let handle = world.open(id);
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(FakeFile {
            world: Arc::clone(&self.world),
            id,
            handle,
            writable,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        let id = *world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if world.dirs.contains(to) {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        check_parent(&world, to)?;
        go(world.begin(from, What::Rename)?)?;
        if from != to {
            world.change_names(vec![(from.to_owned(), None), (to.to_owned(), Some(id))]);
        }
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.exists(to)? {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        self.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        if !world.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        go(world.begin(path, What::Remove)?)?;
        world.change_names(vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        let mut missing: Vec<&Path> = path
            .ancestors()
            .take_while(|dir| !world.dirs.contains(*dir))
            .collect();
        while let Some(dir) = missing.pop() {
            if world.names.contains_key(dir) {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            go(world.begin(dir, What::CreateDir)?)?;
            world.add_dir(dir);
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        if !world.dirs.contains(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        if !entries(&world, path).is_empty() {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        go(world.begin(path, What::RemoveDir)?)?;
        world.remove_dir(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let world = self.world();
        world.check_alive()?;
        if !world.dirs.contains(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(entries(&world, path))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let world = self.world();
        world.check_alive()?;
        Ok(world.names.contains_key(path) || world.dirs.contains(path))
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let mut real = PathBuf::from("/");
        for part in path.components() {
            match part {
                Component::ParentDir => {
                    real.pop();
                }
                Component::Normal(name) => real.push(name),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if self.exists(&real)? {
            Ok(real)
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    }

    fn file_id(&self, path: &Path) -> io::Result<FileId> {
        let world = self.world();
        world.check_alive()?;
        let id = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(FileId {
            device: 0,
            inode: id.number(),
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.check_alive()?;
        if !world.dirs.contains(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        go(world.begin(path, What::SyncDir)?)?;
        world.sync_dir(path);
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let world = self.world();
        world.check_alive()?;
        Ok(world.free_bytes())
    }
}

fn check_parent(world: &World, path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if world.dirs.contains(dir) => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn entries(world: &World, dir: &Path) -> Vec<PathBuf> {
    let all = world.names.keys().chain(&world.dirs);
    let mut found: Vec<PathBuf> = all
        .filter(|path| path.parent() == Some(dir))
        .cloned()
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests;
