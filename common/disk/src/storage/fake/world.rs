//! Everything behind one fake storage: files, names, faults, and the count of operations.
//!
//! # Invariants
//! 1. Every operation that changes something goes through [`World::begin`] first, which numbers it and decides
//!    whether it happens at all.
//! 2. `names` is `durable_names` with all of `pending_names` applied in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::inode::{Change, Inode, Keep};
use super::rng::Rng;
use super::{Fault, FaultOn, Operation, What};
use crate::storage::LockKind;

/// What `free_bytes` tells where no limit was set.
const UNLIMITED_BYTES: u64 = 1 << 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InodeId(u64);

impl InodeId {
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// Names that change together or not at all.
type NameChange = Vec<(PathBuf, Option<InodeId>)>;

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    next_id: u64,
    pub(super) names: BTreeMap<PathBuf, InodeId>,
    durable_names: BTreeMap<PathBuf, InodeId>,
    pending_names: Vec<NameChange>,
    pub(super) dirs: BTreeSet<PathBuf>,
    /// Removed, but the directory above was not synced since.
    removed_dirs: BTreeSet<PathBuf>,
    pub(super) operations: Vec<Operation>,
    /// The process dies instead of the operation after this many.
    pub(super) dies_after: Option<u64>,
    pub(super) dead: bool,
    pub(super) faults: Vec<Fault>,
    pub(super) bad_reads: Vec<(PathBuf, Range<u64>)>,
    pub(super) space_bytes: Option<u64>,
    locks: Vec<(InodeId, u64, LockKind)>,
    next_handle: u64,
    open: BTreeMap<u64, InodeId>,
    pub(super) rng: Rng,
}

/// What an operation that was begun should do.
pub(super) enum Verdict {
    Go,
    Fail(io::Error),
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_id: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            dirs: BTreeSet::from([PathBuf::from("/"), PathBuf::new()]),
            removed_dirs: BTreeSet::new(),
            operations: Vec::new(),
            dies_after: None,
            dead: false,
            faults: Vec::new(),
            bad_reads: Vec::new(),
            space_bytes: None,
            locks: Vec::new(),
            next_handle: 0,
            open: BTreeMap::new(),
            rng: Rng::new(0),
        }
    }

    pub(super) fn check_alive(&self) -> io::Result<()> {
        if self.dead {
            Err(io::Error::other("the process has died"))
        } else {
            Ok(())
        }
    }

    /// Numbers a change and tells whether it happens.
    ///
    /// # Errors
    /// When the process is dead, or dies here.
    pub(super) fn begin(&mut self, path: &Path, what: What) -> io::Result<Verdict> {
        self.check_alive()?;
        if self
            .dies_after
            .is_some_and(|last| self.operations.len() as u64 >= last)
        {
            self.dead = true;
            self.check_alive()?;
        }
        self.operations.push(Operation {
            path: path.to_owned(),
            what,
        });
        Ok(match self.fault(path, FaultOn::of(what)) {
            None => Verdict::Go,
            Some(error) => Verdict::Fail(error),
        })
    }

    /// Counts down the faults that match; the first to reach zero happens and is used up.
    pub(super) fn fault(&mut self, path: &Path, on: FaultOn) -> Option<io::Error> {
        let mut due = None;
        for (index, fault) in self.faults.iter_mut().enumerate() {
            if fault.on == on && fault.path.as_deref().is_none_or(|only| only == path) {
                fault.nth = fault.nth.saturating_sub(1);
                if fault.nth == 0 && due.is_none() {
                    due = Some(index);
                }
            }
        }
        due.map(|index| io::Error::from(self.faults.remove(index).kind))
    }

    pub(super) fn name_path(&self, id: InodeId) -> PathBuf {
        let named = self.names.iter().find(|(_, named)| **named == id);
        named.map_or_else(|| PathBuf::from("(removed)"), |(path, _)| path.clone())
    }

    pub(super) fn create(&mut self, path: &Path) -> InodeId {
        let id = InodeId(self.next_id);
        self.next_id += 1;
        self.inodes.insert(id, Inode::default());
        self.change_names(vec![(path.to_owned(), Some(id))]);
        id
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.pending_names.push(change);
    }

    pub(super) fn remove_dir(&mut self, path: &Path) {
        self.dirs.remove(path);
        self.removed_dirs.insert(path.to_owned());
    }

    pub(super) fn add_dir(&mut self, path: &Path) {
        self.removed_dirs.remove(path);
        self.dirs.insert(path.to_owned());
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        for change in std::mem::take(&mut self.pending_names) {
            if change.iter().any(|(path, _)| path.parent() == Some(dir)) {
                apply_names(&mut self.durable_names, &change);
            } else {
                self.pending_names.push(change);
            }
        }
        self.removed_dirs
            .retain(|removed| removed.parent() != Some(dir));
        self.forget_unreachable();
    }

    /// Frees files that no name, no handle and no crash can bring back.
    fn forget_unreachable(&mut self) {
        let mut reachable: BTreeSet<InodeId> = self.open.values().copied().collect();
        reachable.extend(self.names.values());
        reachable.extend(self.durable_names.values());
        reachable.extend(
            self.pending_names
                .iter()
                .flatten()
                .filter_map(|(_, id)| *id),
        );
        self.inodes.retain(|id, _| reachable.contains(id));
    }

    pub(super) fn open(&mut self, id: InodeId) -> u64 {
        self.next_handle += 1;
        self.open.insert(self.next_handle, id);
        self.next_handle
    }

    pub(super) fn close(&mut self, handle: u64) {
        self.open.remove(&handle);
        self.locks.retain(|(_, holder, _)| *holder != handle);
    }

    pub(super) fn lock(&mut self, id: InodeId, handle: u64, kind: LockKind) -> io::Result<()> {
        let in_the_way = self.locks.iter().any(|(locked, holder, held)| {
            *locked == id
                && *holder != handle
                && (kind == LockKind::Exclusive || *held == LockKind::Exclusive)
        });
        if in_the_way {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        self.locks
            .retain(|(locked, holder, _)| (*locked, *holder) != (id, handle));
        self.locks.push((id, handle, kind));
        Ok(())
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let Some(space) = self.space_bytes else {
            return UNLIMITED_BYTES;
        };
        let used: u64 = self
            .inodes
            .values()
            .map(|inode| inode.current.allocated_bytes())
            .sum();
        space.saturating_sub(used)
    }

    /// The world after a power loss: see [`super::FakeStorage::crash`].
    pub(super) fn after_power_loss(&self, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let keep = Keep::of_seed(seed, &mut rng);
        let mut after = Self {
            next_id: self.next_id,
            rng: Rng::new(seed),
            ..Self::new()
        };
        after.space_bytes = self.space_bytes;
        after.dirs.clone_from(&self.dirs);
        for dir in &self.removed_dirs {
            if !keep.decide(&mut rng) {
                after.dirs.insert(dir.clone());
            }
        }
        after.durable_names.clone_from(&self.durable_names);
        for change in &self.pending_names {
            if keep.decide(&mut rng) {
                apply_names(&mut after.durable_names, change);
            }
        }
        let dirs = &after.dirs;
        after
            .durable_names
            .retain(|path, _| path.parent().is_some_and(|dir| dirs.contains(dir)));
        after.names.clone_from(&after.durable_names);
        for id in after.names.values() {
            let content = self.inodes[id].after_power_loss(&mut rng, keep);
            let modified = self.inodes[id].modified;
            after.inodes.insert(*id, Inode::of(content, modified));
        }
        after
    }

    /// The world after a kill of the process alone: see [`super::FakeStorage::after_kill`].
    pub(super) fn after_kill(&self) -> Self {
        let mut after = self.clone();
        after.dead = false;
        after.dies_after = None;
        after.faults.clear();
        after.bad_reads.clear();
        after.operations.clear();
        after.locks.clear();
        after.open.clear();
        for inode in after.inodes.values_mut() {
            inode.poisoned = false;
            inode.counters = super::Counters::default();
        }
        after.forget_unreachable();
        after
    }

    /// Makes a change to a file, if there is room.
    pub(super) fn change(&mut self, id: InodeId, change: Change) -> io::Result<()> {
        self.check_room(id, &change)?;
        self.touched(id).change(change);
        Ok(())
    }

    pub(super) fn check_room(&self, id: InodeId, change: &Change) -> io::Result<()> {
        let (offset, length) = match change {
            Change::Write { offset, data } => (*offset, data.len() as u64),
            Change::Zero { offset, length } | Change::Allocate { offset, length } => {
                (*offset, *length)
            }
            Change::Punch { .. } | Change::SetLength(_) => return Ok(()),
        };
        if offset.checked_add(length).is_none() {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        if self.space_bytes.is_none() {
            return Ok(());
        }
        let needed = self.inodes[&id].current.pages_missing(offset, length);
        if needed * super::content::PAGE_BYTES > self.free_bytes() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    pub(super) fn fail_sync(&mut self, id: InodeId) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.fail_sync(&mut self.rng);
        }
    }

    /// The file, marked as modified now.
    pub(super) fn touched(&mut self, id: InodeId) -> &mut Inode {
        let now = self.operations.len() as u64;
        let inode = self.inodes.get_mut(&id).expect("open files stay reachable");
        inode.modified = inode.modified.max(now).max(inode.modified + 1);
        inode
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, InodeId>, change: &NameChange) {
    for (path, id) in change {
        match id {
            Some(id) => names.insert(path.clone(), *id),
            None => names.remove(path),
        };
    }
}
