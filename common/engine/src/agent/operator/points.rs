//! Recovery points: listed, pinned, labelled, read; and what is kept of them.
//!
//! Reading a disk at a point is slow to begin, for its change logs are checked: the group's task only says where it is.

use std::fmt;

use sitepair_model::cause::chain;
use sitepair_model::ids::{Cycle, DiskName, GroupName};
use sitepair_model::retention::{Policy, Retention};

use super::Operator;
use crate::agent::command::{Command, CommandError, Done};
use crate::agent::config::check_policy;
use crate::agent::note::Note;
use crate::agent::status::PointList;
use crate::replica::{PointReader, ReplicaError};

/// What of a group's retention is to be another; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct RetentionChange {
    /// Which points are kept.
    pub policy: Option<Policy>,
    /// Bytes that the journal may have; 0 for any number.
    pub cap_bytes: Option<u64>,
    /// Bytes that must stay free beside it; 0 for none.
    pub min_free_bytes: Option<u64>,
}

impl RetentionChange {
    pub(in crate::agent) fn applied_to(self, now: Retention) -> Retention {
        Retention {
            policy: self.policy.unwrap_or(now.policy),
            cap_bytes: match self.cap_bytes {
                None => now.cap_bytes,
                Some(0) => None,
                cap => cap,
            },
            min_free_bytes: self.min_free_bytes.unwrap_or(now.min_free_bytes),
            revision: now.revision,
        }
    }

    fn check(&self) -> Result<(), CommandError> {
        let most = i64::MAX.unsigned_abs();
        let limits = [self.cap_bytes, self.min_free_bytes];
        if limits.into_iter().flatten().any(|bytes| bytes > most) {
            let why = format!("a limit is at most {most} bytes");
            return Err(CommandError::Invalid(why));
        }
        self.policy
            .as_ref()
            .map_or(Ok(()), check_policy)
            .map_err(|why| CommandError::Invalid(format!("recovery points to keep: {why}")))
    }
}

impl fmt::Display for RetentionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "{policy}")?,
            None => f.write_str("as it is")?,
        }
        if let Some(bytes) = self.cap_bytes {
            write!(f, ", cap {bytes}")?;
        }
        if let Some(bytes) = self.min_free_bytes {
            write!(f, ", free {bytes}")?;
        }
        Ok(())
    }
}

impl Operator {
    /// The recovery points that this site keeps, and which of them would go by `policy`, or by the group's own.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn points(
        &self,
        group: &GroupName,
        policy: Option<Policy>,
    ) -> Result<PointList, CommandError> {
        self.ask(group, |reply| Command::Points { policy, reply })
            .await
    }

    /// Notes something about a point.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn note(
        &self,
        group: &GroupName,
        cycle: Cycle,
        note: Note,
    ) -> Result<Done, CommandError> {
        self.ask(group, |reply| Command::Note { cycle, note, reply })
            .await
    }

    /// Changes what is kept of a group, here and, when it can be reached, at the other site.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn set_retention(
        &self,
        group: &GroupName,
        change: RetentionChange,
    ) -> Result<Done, CommandError> {
        change.check()?;
        self.ask(group, |reply| Command::Retention(change, reply))
            .await
    }

    /// Reads a disk at a point, which is held meanwhile; a failover ends the reading.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn read_point(
        &self,
        group: &GroupName,
        disk: &DiskName,
        cycle: Cycle,
    ) -> Result<PointReader, CommandError> {
        let name = disk.clone();
        let (replica, id) = self
            .ask(group, |reply| Command::Journal { disk: name, reply })
            .await?;
        tokio::task::spawn_blocking(move || replica.reader(id, cycle))
            .await
            .map_err(|e| CommandError::Failed(e.to_string()))?
            .map_err(|error| match error {
                ReplicaError::NoSuchPoint { .. } => CommandError::NotFound(format!(
                    "{error}; `sitepair points` lists those that are kept"
                )),
                refusal if refusal.is_refusal() => CommandError::Refused(refusal.sentence()),
                other => CommandError::Failed(chain(&other)),
            })
    }
}
