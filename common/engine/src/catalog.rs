//! The catalogue: what an agent must remember, apart from disks' contents.
//!
//! Owns: groups with their disks and role records, recovery points, the journal's files, jobs,
//! the audit log, and a few settings. Receives typed rows, gives typed rows; every call is one
//! transaction, durable when it returns, and blocks.
//!
//! Does not do: files other than its own, decisions, or any check of what a role record says.
//!
//! # Invariants
//! 1. What a call wrote is durable when the call returned `Ok`; after `Err` either nothing of it is
//!    there or, for an I/O error, that is unknown until the catalogue is opened anew. Until then it
//!    refuses every call.
//! 2. A point, its change logs and the role record that names its cycle appear in one transaction.
//! 3. A change log's row goes only after the image holds its content ([`Catalog::merged`]), together with the row of
//!    a log that holds it too ([`Catalog::thinned`]), or when the whole journal is given up
//!    ([`Catalog::reset_journal`]).

use std::io;
use std::path::PathBuf;

use sitepair_model::ids::{
    Cycle, Digest, DiskId, DiskName, GenId, GroupId, GroupName, OpId, TestName, UnixMillis,
};
use sitepair_model::peer::ImageFormat;
use sitepair_model::point::{Consistency, RecoveryPoint};
use sitepair_model::retention::Retention;

mod schema;
mod sqlite;

pub use sqlite::SqliteCatalog;

/// A call to the catalogue that failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file or its folder could not be opened.
    #[error("open the catalogue {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The database breaks its own rules, or a row of ours does not parse.
    #[error("the catalogue is damaged: {detail}; restore it from a backup")]
    Damaged {
        /// What is wrong with it.
        detail: String,
    },
    /// A database of something else.
    #[error("{} is a database, but not a catalogue", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of the agent wrote it.
    #[error(
        "the catalogue has version {found}, this agent knows up to {known}: start the newer agent, \
         which wrote it"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// The last one that this agent knows.
        known: i64,
    },
    /// The catalogue's disk is full; nothing was changed.
    #[error("{action} in the catalogue: no space is left on its disk")]
    Full {
        /// What was tried.
        action: &'static str,
    },
    /// What was asked contradicts what is there; nothing was changed.
    #[error("{action} in the catalogue: {why}")]
    Conflict {
        /// What was tried.
        action: &'static str,
        /// What it contradicts.
        why: String,
    },
    /// A number that the database cannot hold.
    #[error("{what} {value} is too large for the catalogue")]
    TooLarge {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// An I/O error; whether the change is durable is unknown until the catalogue is opened anew.
    #[error("{action} in the catalogue")]
    Sql {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// An earlier I/O error is final until the agent is restarted.
    #[error("the catalogue failed earlier ({first}); restart the agent once its disk is well")]
    Poisoned {
        /// The first failure.
        first: String,
    },
}

impl CatalogError {
    /// Whether it is certain that the failed call changed nothing, now and after a restart.
    #[must_use]
    pub fn changed_nothing(&self) -> bool {
        match self {
            Self::Sql { .. } => false,
            Self::Open { .. }
            | Self::Damaged { .. }
            | Self::Foreign { .. }
            | Self::Newer { .. }
            | Self::Full { .. }
            | Self::Conflict { .. }
            | Self::TooLarge { .. }
            | Self::Poisoned { .. } => true,
        }
    }
}

/// A group that this site takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// The group.
    pub group: GroupId,
    /// Its name; unique at a site.
    pub name: GroupName,
    /// Time between cuts in milliseconds.
    pub interval_ms: u64,
    /// What is kept of it.
    pub retention: Retention,
    /// When it was protected, by this site's clock.
    pub created_at: UnixMillis,
    /// Further settings, as JSON; of no meaning to the catalogue.
    pub settings: String,
    /// Its disks, in ascending order of their ids when read.
    pub disks: Vec<DiskRow>,
}

/// One disk of a group, and its image at this site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRow {
    /// The disk.
    pub disk: DiskId,
    /// Its name within the group.
    pub name: DiskName,
    /// The image file.
    pub path: PathBuf,
    /// Exact size of the disk in bytes.
    pub size_bytes: u64,
    /// Format of the image file.
    pub format: ImageFormat,
    /// Logical sector in bytes, 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Block size of the image format, 0 where it has none.
    pub format_block_bytes: u32,
    /// Whether we created the file, and so may remove it.
    pub owned: bool,
}

/// A committed cycle that can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointRow {
    /// The cycle whose cut it is.
    pub cycle: Cycle,
    /// Generation that wrote the cycle.
    pub generation: GenId,
    /// Instant of the cut by the source's clock.
    pub cut_at: UnixMillis,
    /// What it promises.
    pub consistency: Consistency,
    /// The operator's name for it.
    pub label: Option<String>,
    /// An operator wants it kept, whatever retention says.
    pub pinned: bool,
    /// Digest of the cycle.
    pub digest: Digest,
    /// The change logs that are not yet merged, in ascending order of disk ids.
    pub logs: Vec<LogRow>,
}

impl PointRow {
    /// The point as operators see it.
    #[must_use]
    pub fn recovery_point(&self) -> RecoveryPoint {
        RecoveryPoint {
            cycle: self.cycle,
            generation: self.generation,
            cut_at: self.cut_at,
            consistency: self.consistency,
            label: self.label.clone(),
            pinned: self.pinned,
            journal_bytes: self.logs.iter().map(|l| l.file_bytes).sum(),
        }
    }
}

/// One change log of the journal: the content of one cycle for one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// The disk.
    pub disk: DiskId,
    /// The cycle.
    pub cycle: Cycle,
    /// Name within the group's journal folder.
    pub file_name: String,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Strong hash over everything that the file says; the replica defines how it is computed.
    pub file_hash: Digest,
    /// Bytes of the disk that the log covers, zeros included.
    pub covered_bytes: u64,
}

/// A test failover, and with it a pin on its recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRow {
    /// Its name.
    pub name: TestName,
    /// The point that it started from.
    pub cycle: Cycle,
    /// Space that its writes may take in bytes, of all disks together.
    pub cap_bytes: u64,
    /// Name in the certificate of who started it.
    pub who: String,
    /// When, by this site's clock.
    pub started_at: UnixMillis,
    /// When it ends by itself.
    pub expires_at: UnixMillis,
    /// Whether its files are there. Without, it is being made or removed, and a restart removes it.
    pub whole: bool,
}

/// A long operation, running or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// The job.
    pub id: OpId,
    /// The group that it works on, if one.
    pub group: Option<GroupId>,
    /// What it does, in words.
    pub kind: String,
    /// How far it is, in words.
    pub state: String,
    /// How it ended, once it has.
    pub outcome: Option<String>,
    /// When it began.
    pub started: UnixMillis,
    /// When it ended, once it has.
    pub ended: Option<UnixMillis>,
    /// More about it, as JSON; of no meaning to the catalogue.
    pub detail: String,
}

/// One line of the audit log: who changed what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// When, by this site's clock.
    pub at: UnixMillis,
    /// Name in the certificate of who asked.
    pub who: String,
    /// Serial number of that certificate.
    pub serial: String,
    /// What was asked.
    pub what: String,
    /// The group that it was about, if one; kept after the group is gone.
    pub group: Option<GroupId>,
    /// What came of it.
    pub result: String,
}

/// What an agent must remember. All calls block; see the module's invariants.
pub trait Catalog: Send + Sync {
    /// Adds a group with its disks and its first role record.
    ///
    /// # Errors
    /// `Conflict` when the group or its name is already there.
    fn put_group(&self, group: &GroupRow, role: &[u8]) -> Result<(), CatalogError>;

    /// All groups with their disks, in ascending order of their names.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn groups(&self) -> Result<Vec<GroupRow>, CatalogError>;

    /// Changes a group's interval, retention and further settings.
    ///
    /// # Errors
    /// `Conflict` when the group is not there.
    fn put_settings(&self, group: &GroupRow) -> Result<(), CatalogError>;

    /// Removes a group and all its rows but the audit log's. Removing it again is harmless.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn remove_group(&self, group: GroupId) -> Result<(), CatalogError>;

    /// Replaces a group's role record.
    ///
    /// # Errors
    /// `Conflict` when the group is not there.
    fn put_role(&self, group: GroupId, record: &[u8]) -> Result<(), CatalogError>;

    /// A group's role record.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn role(&self, group: GroupId) -> Result<Option<Vec<u8>>, CatalogError>;

    /// Commits a cycle: the point, its change logs, and the role record that names it.
    ///
    /// # Errors
    /// `Conflict` when the cycle is not after the newest point, or the group or a disk is not there.
    fn commit_cycle(
        &self,
        group: GroupId,
        point: &PointRow,
        role: &[u8],
    ) -> Result<(), CatalogError>;

    /// A group's points, oldest first, with the change logs of their own cycles.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn points(&self, group: GroupId) -> Result<Vec<PointRow>, CatalogError>;

    /// Changes a point's label and pin, to those of `point`.
    ///
    /// # Errors
    /// `Conflict` when the point is not there.
    fn note_point(&self, group: GroupId, point: &PointRow) -> Result<(), CatalogError>;

    /// All change logs of a group's journal, also those of dropped points, by cycle, then disk.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn logs(&self, group: GroupId) -> Result<Vec<LogRow>, CatalogError>;

    /// Forgets the points before `oldest`, which must be a point. Their change logs stay until they are merged.
    ///
    /// # Errors
    /// `Conflict` when `oldest` is not a point.
    fn drop_points(&self, group: GroupId, oldest: Cycle) -> Result<(), CatalogError>;

    /// Forgets the points between `after` and `point`, and replaces all change logs of the cycles after `after` up
    /// to `point` by `logs`, which say the same and are of cycle `point`. Both cycles must be points.
    ///
    /// # Errors
    /// `Conflict` when one of them is not a point, or a log is of another cycle.
    fn thinned(
        &self,
        group: GroupId,
        after: Cycle,
        point: Cycle,
        logs: &[LogRow],
    ) -> Result<(), CatalogError>;

    /// Records that the images hold everything up to `through`, which must be the oldest point:
    /// forgets the change logs up to there.
    ///
    /// # Errors
    /// `Conflict` when `through` is not the oldest point.
    fn merged(&self, group: GroupId, through: Cycle) -> Result<(), CatalogError>;

    /// Forgets all points and change logs, and makes `base` the only point: the images as they are.
    ///
    /// # Errors
    /// `Conflict` when the group is not there, or `base` has change logs.
    fn reset_journal(&self, group: GroupId, base: &PointRow) -> Result<(), CatalogError>;

    /// Adds a test failover, or replaces what is known of it.
    ///
    /// # Errors
    /// `Conflict` when the group is not there.
    fn put_test(&self, group: GroupId, test: &TestRow) -> Result<(), CatalogError>;

    /// A group's test failovers, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn tests(&self, group: GroupId) -> Result<Vec<TestRow>, CatalogError>;

    /// Forgets a test failover. Forgetting it again is harmless.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn remove_test(&self, group: GroupId, name: &TestName) -> Result<(), CatalogError>;

    /// Adds a job, or replaces what is known of it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn put_job(&self, job: &JobRow) -> Result<(), CatalogError>;

    /// The jobs of a group (of all groups without one), newest first, at most [`LIST_MAX`].
    ///
    /// # Errors
    /// [`CatalogError`].
    fn jobs(&self, group: Option<GroupId>) -> Result<Vec<JobRow>, CatalogError>;

    /// Adds a line to the audit log.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn append_audit(&self, line: &AuditRow) -> Result<(), CatalogError>;

    /// The newest lines of the audit log, newest first, at most `limit` and [`LIST_MAX`].
    ///
    /// # Errors
    /// [`CatalogError`].
    fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, CatalogError>;

    /// Sets a value.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn put_meta(&self, key: &str, value: &[u8]) -> Result<(), CatalogError>;

    /// A value.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, CatalogError>;

    /// The keys that begin with `prefix`, ascending.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn meta_keys(&self, prefix: &str) -> Result<Vec<String>, CatalogError>;

    /// Removes a value, if it is there.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn remove_meta(&self, key: &str) -> Result<(), CatalogError>;
}

/// Most jobs or audit lines that one call gives.
pub const LIST_MAX: u32 = 10_000;

#[cfg(test)]
mod tests;
