//! What dies with one life of an agent: its way to the storage and to the catalogue.
//!
//! The catalogue is one SQLite database in memory for all lives of a site. Each call to it is one transaction
//! that is durable when it returns, so a killed process or host leaves exactly the calls that had returned; files
//! beside SQLite's own would add nothing but its own recovery. A death falls between two calls or, when it
//! strikes at a count, before or after one.

use std::sync::{Arc, Mutex, MutexGuard};

use sitepair_disk::storage::fake::FakeStorage;
use sitepair_engine::catalog::{
    AuditRow, Catalog, CatalogError, GroupRow, JobRow, LogRow, PointRow, SqliteCatalog, TestRow,
};
use sitepair_model::group::{Role, RoleRecord};
use sitepair_model::ids::{Cycle, GroupId, TestName};

/// When a life ends at the catalogue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DieAt {
    /// Changes that still succeed.
    pub(crate) after: u64,
    /// Whether the next one is made before the death.
    pub(crate) done: bool,
}

/// One life.
pub(crate) struct Mortal {
    pub(crate) storage: FakeStorage,
    catalog: Arc<SqliteCatalog>,
    life: Mutex<Life>,
    before_hand_over: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct Life {
    dead: bool,
    full: bool,
    /// Changes until one is made and answered with an I/O error; afterwards all calls fail.
    doubtful_after: Option<u64>,
    poisoned: bool,
    die_at: Option<DieAt>,
}

impl Mortal {
    pub(crate) fn new(storage: FakeStorage, catalog: Arc<SqliteCatalog>) -> Arc<Self> {
        let life = Life {
            dead: false,
            full: false,
            doubtful_after: None,
            poisoned: false,
            die_at: None,
        };
        Arc::new(Self {
            storage,
            catalog,
            life: Mutex::new(life),
            before_hand_over: Mutex::new(None),
        })
    }

    /// Ends this life. The catalogue goes first: what it says must never depend on later files.
    pub(crate) fn kill(&self) {
        let mut life = self.life.lock().unwrap();
        life.dead = true;
        self.storage.die_after(0);
    }

    pub(crate) fn die_at(&self, at: DieAt) {
        self.life.lock().unwrap().die_at = Some(at);
    }

    /// Lets all changes of the catalogue fail, because its disk is full.
    pub(crate) fn set_full(&self, full: bool) {
        self.life.lock().unwrap().full = full;
    }

    /// Lets a change after `changes` others be made and answered as an I/O error, as SQLite does when its disk fails at
    /// the wrong moment. The agent lives on; its catalogue fails from then on.
    pub(crate) fn doubt_after(&self, changes: u64) {
        self.life.lock().unwrap().doubtful_after = Some(changes);
    }

    /// Does this once, between the decision to hand over and its record.
    pub(crate) fn before_hand_over(&self, act: impl FnOnce() + Send + 'static) {
        *self.before_hand_over.lock().unwrap() = Some(Box::new(act));
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.life.lock().unwrap().poisoned
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.life.lock().unwrap().dead || self.storage.is_dead()
    }

    fn alive(&self) -> Result<MutexGuard<'_, Life>, CatalogError> {
        let mut life = self.life.lock().unwrap();
        life.dead |= self.storage.is_dead();
        if life.dead || life.poisoned {
            return Err(dead());
        }
        Ok(life)
    }

    fn read<T>(
        &self,
        act: impl FnOnce(&SqliteCatalog) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let _life = self.alive()?;
        act(&self.catalog)
    }

    fn write<T>(
        &self,
        act: impl FnOnce(&SqliteCatalog) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut life = self.alive()?;
        if life.full {
            return Err(CatalogError::Full {
                action: "change a row",
            });
        }
        match &mut life.doubtful_after {
            Some(0) => {
                life.poisoned = true;
                act(&self.catalog)?;
                return Err(CatalogError::Sql {
                    action: "change a row",
                    source: rusqlite::Error::InvalidQuery,
                });
            }
            Some(changes) => *changes -= 1,
            None => {}
        }
        match &mut life.die_at {
            Some(DieAt { after: 0, done }) => {
                let done = *done;
                life.dead = true;
                self.storage.die_after(0);
                if done {
                    act(&self.catalog)?;
                }
                return Err(dead());
            }
            Some(at) => at.after -= 1,
            None => {}
        }
        act(&self.catalog)
    }
}

fn dead() -> CatalogError {
    CatalogError::Poisoned {
        first: "this life has ended".to_owned(),
    }
}

impl Catalog for Mortal {
    fn put_group(&self, group: &GroupRow, role: &[u8]) -> Result<(), CatalogError> {
        self.write(|c| c.put_group(group, role))
    }
    fn groups(&self) -> Result<Vec<GroupRow>, CatalogError> {
        self.read(SqliteCatalog::groups)
    }
    fn put_settings(&self, group: &GroupRow) -> Result<(), CatalogError> {
        self.write(|c| c.put_settings(group))
    }
    fn remove_group(&self, group: GroupId) -> Result<(), CatalogError> {
        self.write(|c| c.remove_group(group))
    }
    fn put_role(&self, group: GroupId, record: &[u8]) -> Result<(), CatalogError> {
        if RoleRecord::decode(record).is_ok_and(|r| matches!(r.role, Role::Quiescing { .. })) {
            let act = self.before_hand_over.lock().unwrap().take();
            act.into_iter().for_each(|act| act());
        }
        self.write(|c| c.put_role(group, record))
    }
    fn role(&self, group: GroupId) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read(|c| c.role(group))
    }
    fn commit_cycle(
        &self,
        group: GroupId,
        point: &PointRow,
        role: &[u8],
    ) -> Result<(), CatalogError> {
        self.write(|c| c.commit_cycle(group, point, role))
    }
    fn points(&self, group: GroupId) -> Result<Vec<PointRow>, CatalogError> {
        self.read(|c| c.points(group))
    }
    fn note_point(&self, group: GroupId, point: &PointRow) -> Result<(), CatalogError> {
        self.write(|c| c.note_point(group, point))
    }
    fn logs(&self, group: GroupId) -> Result<Vec<LogRow>, CatalogError> {
        self.read(|c| c.logs(group))
    }
    fn drop_points(&self, group: GroupId, oldest: Cycle) -> Result<(), CatalogError> {
        self.write(|c| c.drop_points(group, oldest))
    }
    fn thinned(
        &self,
        group: GroupId,
        after: Cycle,
        point: Cycle,
        logs: &[LogRow],
    ) -> Result<(), CatalogError> {
        self.write(|c| c.thinned(group, after, point, logs))
    }
    fn merged(&self, group: GroupId, through: Cycle) -> Result<(), CatalogError> {
        self.write(|c| c.merged(group, through))
    }
    fn reset_journal(&self, group: GroupId, base: &PointRow) -> Result<(), CatalogError> {
        self.write(|c| c.reset_journal(group, base))
    }
    fn put_test(&self, group: GroupId, test: &TestRow) -> Result<(), CatalogError> {
        self.write(|c| c.put_test(group, test))
    }
    fn tests(&self, group: GroupId) -> Result<Vec<TestRow>, CatalogError> {
        self.read(|c| c.tests(group))
    }
    fn remove_test(&self, group: GroupId, name: &TestName) -> Result<(), CatalogError> {
        self.write(|c| c.remove_test(group, name))
    }
    fn put_job(&self, job: &JobRow) -> Result<(), CatalogError> {
        self.write(|c| c.put_job(job))
    }
    fn jobs(&self, group: Option<GroupId>) -> Result<Vec<JobRow>, CatalogError> {
        self.read(|c| c.jobs(group))
    }
    fn append_audit(&self, line: &AuditRow) -> Result<(), CatalogError> {
        self.write(|c| c.append_audit(line))
    }
    fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, CatalogError> {
        self.read(|c| c.audit(limit))
    }
    fn put_meta(&self, key: &str, value: &[u8]) -> Result<(), CatalogError> {
        self.write(|c| c.put_meta(key, value))
    }
    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read(|c| c.meta(key))
    }
    fn meta_keys(&self, prefix: &str) -> Result<Vec<String>, CatalogError> {
        self.read(|c| c.meta_keys(prefix))
    }
    fn remove_meta(&self, key: &str) -> Result<(), CatalogError> {
        self.write(|c| c.remove_meta(key))
    }
}
