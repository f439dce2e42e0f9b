//! What can go wrong with a replica, and how the peer is told.

use std::io;
use std::path::PathBuf;

use sitepair_disk::{DiskError, ErrorKind};
use sitepair_model::ids::{Cycle, Digest, DiskId, DiskName, TestName};

use crate::catalog::CatalogError;
use crate::endpoint::PeerError;

use super::room::Room;

/// An operation on a replica that failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// A file is where an image should be created.
    #[error(
        "{} is there already: move it away, name another path, or allow to write over it with \
         --use-existing",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// An existing image has another size than the disk.
    #[error(
        "image {} has {has_bytes} bytes, disk {disk} has {needs_bytes}: give an image of that size, \
         or none",
        path.display()
    )]
    WrongSize {
        /// The disk.
        disk: DiskName,
        /// Its image.
        path: PathBuf,
        /// Size of the image's disk in bytes.
        has_bytes: u64,
        /// Size of the disk in bytes.
        needs_bytes: u64,
    },
    /// A path that an image must not have.
    #[error("{} cannot be an image's path: {why}", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No room for what was tried.
    #[error("{action}: no space is left; free some, work goes on by itself")]
    NoSpace {
        /// What was tried, on what.
        action: String,
    },
    /// The journal may take no more.
    #[error("{}", room.words())]
    NoRoom {
        /// What it takes, and may take.
        room: Room,
    },
    /// A transfer of another generation (roles rule R3).
    #[error("the transfer is of another generation than this replica; compare notes first")]
    WrongGeneration,
    /// A cycle that does not follow the last committed one (roles rule R3).
    #[error("cycle {from} to {to} does not follow cycle {committed}, the last one that is here")]
    WrongCycle {
        /// Where the transfer starts.
        from: Cycle,
        /// Where it ends.
        to: Cycle,
        /// Last committed cycle.
        committed: Cycle,
    },
    /// The cycle is here already: its sender missed the word.
    #[error("cycle {cycle} is committed here already, with digest {digest}")]
    AlreadyCommitted {
        /// Last committed cycle.
        cycle: Cycle,
        /// Its digest.
        digest: Digest,
    },
    /// Initial replication into images that points depend on.
    #[error("the replica has recovery points; initial replication would destroy them")]
    AlreadySeeded,
    /// A frame or commit names a disk that is not the group's.
    #[error("disk {disk} is not of this group")]
    UnknownDisk {
        /// The disk.
        disk: DiskId,
    },
    /// A frame breaks the rules.
    #[error("a frame for disk {disk} has {why}")]
    BadFrame {
        /// The disk.
        disk: DiskId,
        /// What is wrong with it.
        why: String,
    },
    /// The commit does not match what was received.
    #[error("the commit does not match what was received: {why}")]
    BadCommit {
        /// In what.
        why: String,
    },
    /// A newer transfer took this one's place.
    #[error("a newer transfer took the place of this one")]
    Voided,
    /// The replica takes no more transfers.
    #[error("this site takes no transfers for the group: {why}")]
    Closed {
        /// Why.
        why: &'static str,
    },
    /// A recovery point that is not kept.
    #[error("there is no recovery point at cycle {cycle}")]
    NoSuchPoint {
        /// The cycle.
        cycle: Cycle,
    },
    /// The name of a test is taken.
    #[error("a test named {name} runs already: end it, or choose another name")]
    TestExists {
        /// The name.
        name: TestName,
    },
    /// No test has that name.
    #[error("no test is named {name}; `sitepair status` lists those that run")]
    NoSuchTest {
        /// The name.
        name: TestName,
    },
    /// A cycle that is not here, or not yet.
    #[error("cycle {cycle} is not committed here; the newest one is {newest}")]
    NotCommitted {
        /// The cycle.
        cycle: Cycle,
        /// Last committed cycle.
        newest: Cycle,
    },
    /// A cycle whose change logs are no longer files of their own.
    #[error(
        "cycle {cycle} is merged into the image: only cycles after the oldest recovery point, \
         {oldest}, have change logs"
    )]
    Merged {
        /// The cycle.
        cycle: Cycle,
        /// The oldest point.
        oldest: Cycle,
    },
    /// Change logs between two points that stay are being merged.
    #[error("the change logs before cycle {cycle} are being merged: try again in a moment")]
    Merging {
        /// The cycle.
        cycle: Cycle,
    },
    /// A point that would have to go is in use.
    #[error("recovery point {cycle} is in use: end its exports and tests first")]
    InUse {
        /// The oldest point in use.
        cycle: Cycle,
    },
    /// A change log is missing or damaged.
    #[error("change log {} is damaged: {why}", path.display())]
    DamagedLog {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The operation on an image or change log failed.
    #[error("{action}")]
    Disk {
        /// What was tried, on what.
        action: String,
        /// The cause.
        #[source]
        source: DiskError,
    },
    /// The operation on a file or folder failed.
    #[error("{action}")]
    File {
        /// What was tried, on what.
        action: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The catalogue failed.
    #[error("the catalogue failed")]
    Catalog(#[from] CatalogError),
    /// The agent did not let the cycle be committed, and says why.
    #[error("the cycle is not committed: {why}")]
    NotAllowed {
        /// Why.
        why: String,
    },
}

impl ReplicaError {
    /// A disk's error while doing `action`.
    pub(super) fn disk(action: impl Into<String>, source: DiskError) -> Self {
        match source.kind() {
            ErrorKind::NoSpace => Self::NoSpace {
                action: action.into(),
            },
            _ => Self::Disk {
                action: action.into(),
                source,
            },
        }
    }

    /// A file's error while doing `action`.
    pub(super) fn file(action: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace {
                action: action.into(),
            },
            _ => Self::File {
                action: action.into(),
                source,
            },
        }
    }

    /// Whether it is an answer rather than a failure: trying again without a change is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::NoSpace { .. }
                | Self::NoRoom { .. }
                | Self::DamagedLog { .. }
                | Self::Disk { .. }
                | Self::File { .. }
                | Self::Catalog(_)
                | Self::Voided
        )
    }

    /// The error and its causes as one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl From<&ReplicaError> for PeerError {
    fn from(error: &ReplicaError) -> Self {
        let why = error.sentence();
        match error {
            ReplicaError::Voided => Self::Link { why },
            refusal if refusal.is_refusal() => Self::Refused { why },
            _ => Self::Failed { why },
        }
    }
}

impl From<ReplicaError> for PeerError {
    fn from(error: ReplicaError) -> Self {
        Self::from(&error)
    }
}
