//! Giving a change log of the journal to an operator.
//!
//! The group's task only says where it is: checking a long log against its hash must not keep the group waiting.

use sitepair_model::cause::chain;
use sitepair_model::ids::{Cycle, DiskName, GroupName};

use super::Operator;
use crate::agent::command::{Command, CommandError};
use crate::replica::{ChangeLog, ReplicaError};

impl Operator {
    /// The change log of a disk's cycle, checked against its hash. It stays readable whatever becomes of the journal.
    ///
    /// # Errors
    /// [`CommandError`]; `Refused` where the group's source is here, and for a cycle that is merged.
    pub async fn change_log(
        &self,
        group: &GroupName,
        disk: &DiskName,
        cycle: Cycle,
    ) -> Result<ChangeLog, CommandError> {
        let name = disk.clone();
        let (replica, id) = self
            .ask(group, |reply| Command::Journal { disk: name, reply })
            .await?;
        tokio::task::spawn_blocking(move || replica.change_log(id, cycle))
            .await
            .map_err(|e| CommandError::Failed(e.to_string()))?
            .map_err(with_advice)
    }
}

fn with_advice(error: ReplicaError) -> CommandError {
    let listed = "`sitepair points` lists the recovery points that are kept";
    match error {
        ReplicaError::NotCommitted { .. } => CommandError::NotFound(format!("{error}; {listed}")),
        ReplicaError::NoSuchPoint { .. } => CommandError::NotFound(format!(
            "{error}: what it changed is in the next one; {listed}"
        )),
        ReplicaError::Merged { .. } => CommandError::Refused(format!(
            "{error}; `sitepair export` serves the oldest point itself"
        )),
        refusal if refusal.is_refusal() => CommandError::Refused(refusal.sentence()),
        other => CommandError::Failed(chain(&other)),
    }
}
