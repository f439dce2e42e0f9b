//! The catalogue in SQLite: WAL, every commit synced (`synchronous=FULL`).
//!
//! One connection behind a mutex: calls are short and far fewer than the disk's syncs allow.
//! Does not do: tables ([`schema`]).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};
use sitepair_model::ids::{Cycle, GroupId, TestName};

use super::{
    AuditRow, Catalog, CatalogError, GroupRow, JobRow, LIST_MAX, LogRow, PointRow, TestRow, schema,
};

mod convert;
mod groups;
mod journal;
mod tests;

/// The catalogue in a SQLite database.
pub struct SqliteCatalog {
    inner: Mutex<Inner>,
}

struct Inner {
    connection: Connection,
    /// The first I/O error, after which nothing is known for certain (invariant 1).
    poisoned: Option<String>,
}

/// Wait for another reader, such as an operator's `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

impl SqliteCatalog {
    /// Opens the catalogue at `path`, creating it if it is not there; its folder must be.
    ///
    /// # Errors
    /// `Open`, `Damaged`, `Foreign` or `Newer`.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let connection = Connection::open(path).map_err(|e| match e {
            rusqlite::Error::SqliteFailure(..) => CatalogError::Open {
                path: path.to_owned(),
                source: std::io::Error::other(e),
            },
            other => failed("open the database", other),
        })?;
        Self::prepared(connection, path)
    }

    /// A catalogue that is gone when dropped.
    ///
    /// # Errors
    /// When memory is short.
    pub fn in_memory() -> Result<Self, CatalogError> {
        let connection =
            Connection::open_in_memory().map_err(|e| failed("open the database", e))?;
        Self::prepared(connection, &PathBuf::from(":memory:"))
    }

    fn prepared(mut connection: Connection, path: &Path) -> Result<Self, CatalogError> {
        configure(&connection).map_err(|e| failed("open the database", e))?;
        schema::prepare(&mut connection, path)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                connection,
                poisoned: None,
            }),
        })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, CatalogError> {
        // A panic while the lock was held rolled its transaction back: the connection is usable.
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.poisoned {
            Some(first) => Err(CatalogError::Poisoned {
                first: first.clone(),
            }),
            None => Ok(inner),
        }
    }

    fn read<T>(
        &self,
        action: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, CatalogError> {
        let inner = self.lock()?;
        body(&inner.connection).map_err(|fault| fault.during(action))
    }

    fn write<T>(
        &self,
        action: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, CatalogError> {
        let mut inner = self.lock()?;
        let result = in_transaction(&mut inner.connection, body).map_err(|f| f.during(action));
        if let Err(error @ CatalogError::Sql { source, .. }) = &result {
            inner.poisoned = Some(format!("{error}: {source}"));
        }
        result
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A crafted or damaged schema must not make SQLite do more than read tables.
    connection.pragma_update(None, "trusted_schema", false)
}

fn in_transaction<T>(
    connection: &mut Connection,
    body: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = body(&tx)?;
    tx.commit()?;
    Ok(value)
}

/// Why the body of a call failed.
enum Fault {
    Sql(rusqlite::Error),
    Conflict(String),
    Other(CatalogError),
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sql(e)
    }
}

impl Fault {
    fn during(self, action: &'static str) -> CatalogError {
        match self {
            Self::Sql(e) => failed(action, e),
            Self::Conflict(why) => CatalogError::Conflict { action, why },
            Self::Other(e) => e,
        }
    }
}

/// Sorts SQLite's errors into ours.
pub(super) fn failed(action: &'static str, source: rusqlite::Error) -> CatalogError {
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => CatalogError::Damaged {
            detail: source.to_string(),
        },
        Some(ErrorCode::DiskFull) => CatalogError::Full { action },
        Some(ErrorCode::ConstraintViolation | ErrorCode::DatabaseBusy) => CatalogError::Conflict {
            action,
            why: source.to_string(),
        },
        Some(_) => CatalogError::Sql { action, source },
        // Not from SQLite itself: a column did not have the type that we wrote.
        None => CatalogError::Damaged {
            detail: source.to_string(),
        },
    }
}

impl Catalog for SqliteCatalog {
    fn put_group(&self, group: &GroupRow, role: &[u8]) -> Result<(), CatalogError> {
        self.write("add a group", |tx| groups::put(tx, group, role))
    }

    fn groups(&self) -> Result<Vec<GroupRow>, CatalogError> {
        self.read("read the groups", groups::all)
    }

    fn put_settings(&self, group: &GroupRow) -> Result<(), CatalogError> {
        self.write("change a group's settings", |tx| {
            groups::put_settings(tx, group)
        })
    }

    fn remove_group(&self, group: GroupId) -> Result<(), CatalogError> {
        self.write("remove a group", |tx| {
            tx.execute("DELETE FROM groups WHERE group_id = ?1", [group.as_bytes()])?;
            Ok(())
        })
    }

    fn put_role(&self, group: GroupId, record: &[u8]) -> Result<(), CatalogError> {
        self.write("write a role record", |tx| {
            groups::put_role(tx, group, record)
        })
    }

    fn role(&self, group: GroupId) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read("read a role record", |c| {
            let sql = "SELECT record FROM roles WHERE group_id = ?1";
            Ok(c.query_row(sql, [group.as_bytes()], |row| row.get(0))
                .optional()?)
        })
    }

    fn commit_cycle(
        &self,
        group: GroupId,
        point: &PointRow,
        role: &[u8],
    ) -> Result<(), CatalogError> {
        self.write("commit a cycle", |tx| {
            journal::append_point(tx, group, point)?;
            groups::put_role(tx, group, role)
        })
    }

    fn points(&self, group: GroupId) -> Result<Vec<PointRow>, CatalogError> {
        self.read("read the points", |c| journal::points(c, group))
    }

    fn note_point(&self, group: GroupId, point: &PointRow) -> Result<(), CatalogError> {
        self.write("note something about a point", |tx| {
            journal::note_point(tx, group, point)
        })
    }

    fn logs(&self, group: GroupId) -> Result<Vec<LogRow>, CatalogError> {
        self.read("read the journal", |c| journal::logs(c, group))
    }

    fn drop_points(&self, group: GroupId, oldest: Cycle) -> Result<(), CatalogError> {
        self.write("drop points", |tx| journal::drop_points(tx, group, oldest))
    }

    fn thinned(
        &self,
        group: GroupId,
        after: Cycle,
        point: Cycle,
        logs: &[LogRow],
    ) -> Result<(), CatalogError> {
        self.write("record a thinning", |tx| {
            journal::thinned(tx, group, after, point, logs)
        })
    }

    fn merged(&self, group: GroupId, through: Cycle) -> Result<(), CatalogError> {
        self.write("record a merge", |tx| journal::merged(tx, group, through))
    }

    fn reset_journal(&self, group: GroupId, base: &PointRow) -> Result<(), CatalogError> {
        self.write("reset a journal", |tx| journal::reset(tx, group, base))
    }

    fn put_test(&self, group: GroupId, test: &TestRow) -> Result<(), CatalogError> {
        self.write("write a test failover", |tx| tests::put(tx, group, test))
    }

    fn tests(&self, group: GroupId) -> Result<Vec<TestRow>, CatalogError> {
        self.read("read the test failovers", |c| tests::all(c, group))
    }

    fn remove_test(&self, group: GroupId, name: &TestName) -> Result<(), CatalogError> {
        self.write("remove a test failover", |tx| {
            let sql = "DELETE FROM tests WHERE group_id = ?1 AND name = ?2";
            tx.execute(sql, params![group.as_bytes(), name.as_str()])?;
            Ok(())
        })
    }

    fn put_job(&self, job: &JobRow) -> Result<(), CatalogError> {
        self.write("write a job", |tx| {
            tx.execute(
                "INSERT INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (job_id) DO UPDATE SET group_id = ?2, kind = ?3, state = ?4,
                 outcome = ?5, started = ?6, ended = ?7, detail = ?8",
                params![
                    job.id.as_bytes(),
                    job.group.as_ref().map(GroupId::as_bytes),
                    job.kind,
                    job.state,
                    job.outcome,
                    job.started.0,
                    job.ended.map(|t| t.0),
                    job.detail
                ],
            )?;
            Ok(())
        })
    }

    fn jobs(&self, group: Option<GroupId>) -> Result<Vec<JobRow>, CatalogError> {
        self.read("read the jobs", |c| {
            let mut statement = c.prepare(
                "SELECT job_id, group_id, kind, state, outcome, started, ended, detail FROM jobs
                 WHERE ?1 IS NULL OR group_id = ?1 ORDER BY started DESC, job_id LIMIT ?2",
            )?;
            let wanted = group.as_ref().map(GroupId::as_bytes);
            let rows = statement.query_map(params![wanted, LIST_MAX], convert::job)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn append_audit(&self, line: &AuditRow) -> Result<(), CatalogError> {
        self.write("append to the audit log", |tx| {
            tx.execute(
                "INSERT INTO audit (at, who, serial, what, group_id, result)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    line.at.0,
                    line.who,
                    line.serial,
                    line.what,
                    line.group.as_ref().map(GroupId::as_bytes),
                    line.result
                ],
            )?;
            Ok(())
        })
    }

    fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, CatalogError> {
        self.read("read the audit log", |c| {
            let mut statement = c.prepare(
                "SELECT at, who, serial, what, group_id, result FROM audit
                 ORDER BY seq DESC LIMIT ?1",
            )?;
            let rows = statement.query_map([limit.min(LIST_MAX)], convert::audit_line)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn put_meta(&self, key: &str, value: &[u8]) -> Result<(), CatalogError> {
        self.write("write a setting", |tx| {
            tx.execute(
                "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
                params![key, value],
            )?;
            Ok(())
        })
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read("read a setting", |c| {
            let sql = "SELECT value FROM meta WHERE key = ?1";
            Ok(c.query_row(sql, [key], |row| row.get(0)).optional()?)
        })
    }

    fn meta_keys(&self, prefix: &str) -> Result<Vec<String>, CatalogError> {
        self.read("list the settings", |c| {
            let mut statement = c.prepare(
                "SELECT key FROM meta WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
            )?;
            let rows = statement.query_map([prefix], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn remove_meta(&self, key: &str) -> Result<(), CatalogError> {
        self.write("remove a setting", |tx| {
            tx.execute("DELETE FROM meta WHERE key = ?1", [key])?;
            Ok(())
        })
    }
}
