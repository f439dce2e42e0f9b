//! The recovery points of a group as operators see them: listed, pinned, labelled, and the room that they take.

use sitepair_model::cause::chain;
use sitepair_model::ids::Cycle;
use sitepair_model::retention::Policy;
use tokio::sync::oneshot;

use super::command::{CommandError, Done};
use super::side::Side;
use super::status::{Health, PointList, PointStatus};
use super::task::GroupTask;
use crate::replica::{ReplicaError, ReplicaGroup, RoomState};

/// What an operator notes about a point.
#[derive(Debug, Clone)]
pub enum Note {
    /// It stays, whatever retention says.
    Pin,
    /// Retention decides again.
    Unpin,
    /// A name, or none any more.
    Label(Option<String>),
}

impl Note {
    fn carry_out(&self, replica: &ReplicaGroup, cycle: Cycle) -> Result<bool, ReplicaError> {
        match self {
            Self::Pin => replica.pin(cycle),
            Self::Unpin => replica.unpin(cycle),
            Self::Label(label) => replica.label(cycle, label.clone()),
        }
    }

    /// What it does, for the audit.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Unpin => "unpin",
            Self::Label(_) => "label",
        }
    }

    fn said(&self) -> String {
        match self {
            Self::Pin => {
                "is pinned: it stays until it is unpinned, or a failover ends it".to_owned()
            }
            Self::Unpin => "is not pinned: retention decides about it".to_owned(),
            Self::Label(Some(label)) => format!("is labelled {label:?}"),
            Self::Label(None) => "has no label".to_owned(),
        }
    }
}

impl GroupTask {
    /// Where the points are, or who else has them.
    pub(super) fn kept_points(&self) -> Result<&ReplicaGroup, CommandError> {
        let name = &self.core.name;
        match &self.side {
            Side::Replica(_) if self.promoting => Err(CommandError::Refused(format!(
                "group {name} is failing over to this site: its recovery points end"
            ))),
            Side::Replica(side) => Ok(&side.group),
            Side::Source(_) => Err(CommandError::Refused(format!(
                "the {} site is the source of group {name}; its recovery points are kept at the {} \
                 site: ask that one",
                self.context.site,
                self.context.site.other()
            ))),
            Side::Shut(why) => Err(CommandError::Failed(why.clone())),
        }
    }

    /// The points, and what would go by a policy, or by the group's own.
    pub(super) fn points(&self, policy: Option<&Policy>) -> Result<PointList, CommandError> {
        let replica = self.kept_points()?;
        let in_use = replica.in_use();
        let (points, plan) = (replica.points(), replica.plan(policy));
        let goes = |cycle: Cycle| {
            let at = plan.drop.binary_search_by_key(&cycle, |(c, _)| *c).ok()?;
            Some(plan.drop[at].1)
        };
        let own = self.core.row().retention.policy;
        Ok(PointList {
            points: points
                .into_iter()
                .map(|point| PointStatus {
                    in_use: in_use.contains(&point.cycle),
                    goes: goes(point.cycle),
                    point,
                })
                .collect(),
            policy: policy.cloned().unwrap_or(own),
            frees_bytes: plan.frees_bytes,
            merges_bytes: plan.merges_bytes,
        })
    }

    /// Notes something about a point, off the task: the catalogue syncs.
    pub(super) fn note(
        &self,
        cycle: Cycle,
        note: Note,
        reply: oneshot::Sender<Result<Done, CommandError>>,
    ) {
        let replica = match self.kept_points() {
            Ok(replica) => replica.clone(),
            Err(e) => {
                let _ = reply.send(Err(e));
                return;
            }
        };
        let name = self.core.name.clone();
        self.context.tasks.spawn_blocking(move || {
            let done = note.carry_out(&replica, cycle).map(|changed| Done {
                changed,
                message: format!("recovery point {cycle} of group {name} {}", note.said()),
            });
            let _ = reply.send(done.map_err(not_noted));
        });
    }

    pub(super) fn room_health(&self) -> Health {
        match self.room_state() {
            None | Some(RoomState::Enough) => Health::Ok,
            Some(RoomState::Low | RoomState::Making) => Health::Warning,
            Some(RoomState::Full) => Health::Critical,
        }
    }

    /// What is to be known of the journal's room, if anything.
    pub(super) fn room_message(&self) -> Option<String> {
        match &self.side {
            Side::Replica(side) => {
                let room = side.group.status().room;
                (room.state != RoomState::Enough).then(|| room.words())
            }
            Side::Source(_) | Side::Shut(_) => None,
        }
    }

    fn room_state(&self) -> Option<RoomState> {
        match &self.side {
            Side::Replica(side) => Some(side.group.status().room.state),
            Side::Source(_) | Side::Shut(_) => None,
        }
    }
}

fn not_noted(error: ReplicaError) -> CommandError {
    match error {
        ReplicaError::NoSuchPoint { .. } => CommandError::NotFound(format!(
            "{error}; `sitepair points` lists those that are kept"
        )),
        other => CommandError::Failed(chain(&other)),
    }
}
