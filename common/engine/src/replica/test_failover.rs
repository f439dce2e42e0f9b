//! Test failovers: a recovery point to be written to, without anybody's role changing.
//!
//! Owns: the overlays of a group's tests (`STATE_DIR/tests/GROUP_ID/NAME/DISK.overlay`) and the pins on the
//! points below them, which last as long as their rows in the catalogue. Does not do: serve them, or end them in time.
//!
//! The order, each step durable before the next. To begin: the row, not whole; the overlays; the row, whole. To end:
//! the row, not whole; the files go; the row goes. So a crash leaves a test that is whole, or one that the next
//! start removes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sitepair_disk::storage::Storage;
use sitepair_model::ids::{DiskId, GroupId, TestName};

use super::{ReplicaError, ReplicaGroup, ReplicaSite, view};
use crate::catalog::TestRow;
use crate::overlay::{Overlay, Space};

/// A test failover that is open.
pub struct TestFailover {
    /// What it is of, and its limits.
    pub row: TestRow,
    /// What its writes take.
    pub space: Arc<Space>,
    /// Its disks.
    pub disks: Vec<(DiskId, Arc<Overlay>)>,
}

impl ReplicaGroup {
    /// Begins a test at the point `row.cycle`, which stays as long as the test does. Blocks: change logs that were
    /// not used before are checked.
    ///
    /// # Errors
    /// `TestExists`, `NoSuchPoint`, `DamagedLog`; those of files and catalogue. Nothing of the test stays then.
    pub fn start_test(&self, row: TestRow) -> Result<TestFailover, ReplicaError> {
        let inner = &self.inner;
        // Held until the test itself is on the list.
        let _pin = view::Pin::new(inner, row.cycle)?;
        let mut row = TestRow {
            whole: false,
            ..row
        };
        {
            let mut state = inner.state();
            if state.tests.contains_key(&row.name) {
                return Err(ReplicaError::TestExists { name: row.name });
            }
            *state.pins.entry(row.cycle).or_default() += 1;
            state.tests.insert(row.name.clone(), row.clone());
        }
        let made = inner.site.catalog.put_test(inner.group, &row);
        let made = made.map_err(ReplicaError::from).and_then(|()| {
            let test = self.overlays(row.clone(), Make::New)?;
            row.whole = true;
            inner.site.catalog.put_test(inner.group, &row)?;
            Ok(test)
        });
        match made {
            Ok(test) => {
                inner.state().tests.insert(row.name.clone(), row.clone());
                Ok(TestFailover { row, ..test })
            }
            Err(error) => {
                // The first error tells what went wrong; what stays goes at the next start.
                drop(self.end_test(&row.name));
                Err(error)
            }
        }
    }

    /// Opens a test after a restart. Blocks.
    ///
    /// # Errors
    /// `NoSuchTest`; those of its files: it can still be ended.
    pub fn open_test(&self, name: &TestName) -> Result<TestFailover, ReplicaError> {
        let row = self.inner.state().tests.get(name).cloned();
        let row = row.ok_or_else(|| ReplicaError::NoSuchTest { name: name.clone() })?;
        self.overlays(row, Make::Open)
    }

    /// The tests, by name.
    #[must_use]
    pub fn tests(&self) -> Vec<TestRow> {
        self.inner.state().tests.values().cloned().collect()
    }

    /// Ends a test: what it wrote is lost, and its point may go. Nobody may have its disks open any more. Blocks.
    ///
    /// # Errors
    /// `NoSuchTest`; the catalogue's. Files that cannot be removed go at the next start.
    pub fn end_test(&self, name: &TestName) -> Result<(), ReplicaError> {
        let inner = &self.inner;
        let row = inner.state().tests.get(name).cloned();
        let row = row.ok_or_else(|| ReplicaError::NoSuchTest { name: name.clone() })?;
        let going = TestRow {
            whole: false,
            ..row
        };
        inner.site.catalog.put_test(inner.group, &going)?;
        {
            let mut state = inner.state();
            state.tests.remove(name);
            view::unpin(&mut state, going.cycle);
        }
        inner.merge_due.notify_one();
        match remove_files(&inner.site, inner.group, name) {
            Ok(()) => Ok(inner.site.catalog.remove_test(inner.group, name)?),
            Err(error) => {
                let error = error.sentence();
                tracing::warn!(group = %inner.group, test = %name, "files of an ended test stay: {error}");
                Ok(())
            }
        }
    }

    fn overlays(&self, row: TestRow, make: Make) -> Result<TestFailover, ReplicaError> {
        let inner = &self.inner;
        let space = Space::new(row.cap_bytes);
        let folder = folder(&inner.site, inner.group, &row.name);
        if make == Make::New {
            let made = inner.site.storage.create_dir_all(&folder);
            made.map_err(|e| ReplicaError::file(format!("create folder {}", folder.display()), e))?;
        }
        let boot = inner.site.env.boot_id();
        let disks = inner
            .disks
            .iter()
            .map(|disk| {
                let below = self.view(disk.row.disk, row.cycle)?;
                let path = folder.join(format!("{}.overlay", disk.row.name));
                let (storage, space) = (&*inner.site.storage, Arc::clone(&space));
                let overlay = match make {
                    Make::New => {
                        let id = inner.site.env.random_id();
                        Overlay::create(storage, &path, below, id, boot, space)
                    }
                    Make::Open => Overlay::open(storage, &path, below, boot, space),
                };
                let overlay = overlay
                    .map_err(|e| ReplicaError::disk(format!("open {}", path.display()), e))?;
                Ok((disk.row.disk, Arc::new(overlay)))
            })
            .collect::<Result<_, ReplicaError>>()?;
        Ok(TestFailover { row, space, disks })
    }

    /// Ends all tests, for the group is about to be another.
    pub(super) fn end_tests(&self) -> Result<(), ReplicaError> {
        self.tests()
            .iter()
            .try_for_each(|test| self.end_test(&test.name))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    New,
    Open,
}

/// The tests that are whole; removes what is left of others.
pub(super) fn recover(
    site: &ReplicaSite,
    group: GroupId,
) -> Result<BTreeMap<TestName, TestRow>, ReplicaError> {
    let mut whole = BTreeMap::new();
    for row in site.catalog.tests(group)? {
        if row.whole {
            whole.insert(row.name.clone(), row);
        } else {
            remove_files(site, group, &row.name)?;
            site.catalog.remove_test(group, &row.name)?;
        }
    }
    Ok(whole)
}

fn folder(site: &ReplicaSite, group: GroupId, name: &TestName) -> PathBuf {
    let tests = site.state_dir.join("tests").join(group.to_string());
    tests.join(name.as_str())
}

fn remove_files(site: &ReplicaSite, group: GroupId, name: &TestName) -> Result<(), ReplicaError> {
    let folder = folder(site, group, name);
    let storage = &*site.storage;
    let failed = |e| ReplicaError::file(format!("remove {}", folder.display()), e);
    let files = match storage.list(&folder) {
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    files
        .iter()
        .try_for_each(|file| storage.remove(file))
        .and_then(|()| storage.sync_dir(&folder))
        .and_then(|()| storage.remove_dir(&folder))
        .and_then(|()| sync_parent(storage, &folder))
        .map_err(failed)
}

fn sync_parent(storage: &dyn Storage, folder: &Path) -> io::Result<()> {
    storage.sync_dir(folder.parent().unwrap_or(Path::new("/")))
}
