//! Operators' commands about one group, as its task carries them out, and what it tells of itself.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use sitepair_model::cause::chain;
use sitepair_model::group::{Event, ForceOpen, Hold, Operation, Refusal, Role, allowed_operations};
use sitepair_model::ids::{Cycle, DiskId, DiskName, OpId, TestName};
use sitepair_model::retention::Policy;
use tokio::sync::oneshot;

use super::export::PointExport;
use super::note::Note;
use super::operator::RetentionChange;
use super::replicator::Order;
use super::side::{Side, nbd_uri, socket_path};
use super::status::{
    DiskStatus, ExportStatus, GroupStatus, Health, JobStatus, PointList, ReplicaStatus,
    SourceStatus, TestStatus,
};
use super::task::GroupTask;
use super::test_failover::TestSpec;
use crate::replica::ReplicaGroup;

/// Why a command was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    /// It cannot be done now; says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// It names something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The other site is needed and cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// Whether a command changed anything, and in words what is true now.
#[derive(Debug, Clone)]
pub struct Done {
    /// False when it was so already.
    pub changed: bool,
    /// What is true now.
    pub message: String,
}

/// How long the other site may take to end a group's protection.
const WITHDRAW_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// How protection is ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unprotect {
    /// Remove the replica's files.
    pub delete_replica: bool,
    /// End it here although the other site cannot be told.
    pub force: bool,
    /// End the connections of guests that are attached.
    pub disconnect: bool,
}

type Answer<T> = oneshot::Sender<Result<T, CommandError>>;

/// A command for a group's task.
pub(super) enum Command {
    Pause(Answer<Done>),
    Resume(Answer<Done>),
    Reverse(Answer<Done>),
    Cut {
        label: Option<String>,
        reply: oneshot::Sender<Result<Cycle, String>>,
    },
    PlannedFailover {
        op: OpId,
        disconnect: bool,
        reverse: bool,
        reply: Answer<OpId>,
    },
    ForceOpen {
        act: ForceOpen,
        reply: Answer<Done>,
    },
    Withdraw {
        how: Unprotect,
        reply: Answer<Done>,
    },
    Points {
        policy: Option<Policy>,
        reply: Answer<PointList>,
    },
    Note {
        cycle: Cycle,
        note: Note,
        reply: Answer<Done>,
    },
    Retention(RetentionChange, Answer<Done>),
    Export {
        cycle: Cycle,
        reply: Answer<Vec<ExportStatus>>,
    },
    Unexport {
        cycle: Cycle,
        reply: Answer<Done>,
    },
    StartTest {
        spec: TestSpec,
        reply: Answer<TestStatus>,
    },
    EndTest {
        name: TestName,
        reply: Answer<Done>,
    },
    /// Where the change logs of a disk are read.
    Journal {
        disk: DiskName,
        reply: Answer<(ReplicaGroup, DiskId)>,
    },
}

impl GroupTask {
    pub(super) async fn command(&mut self, command: Command) {
        match command {
            Command::Pause(reply) => {
                let said = "replication is paused; guest writes are tracked";
                let _ = reply.send(self.change(Event::Pause, said).await);
            }
            Command::Resume(reply) => {
                let _ = reply.send(self.change(Event::Resume, "replication goes on").await);
            }
            Command::Reverse(reply) => {
                let said = "replication runs back to the other site";
                let _ = reply.send(self.change(Event::Reverse, said).await);
            }
            Command::Cut { label, reply } => self.cut(label, reply),
            Command::PlannedFailover {
                op,
                disconnect,
                reverse,
                reply,
            } => {
                let _ = reply.send(self.planned_failover(op, disconnect, reverse).await);
            }
            Command::ForceOpen { act, reply } => {
                let signed = &act.signature;
                let (who, why) = (signed.who.clone(), signed.why.clone());
                let done = self
                    .change(Event::ForceOpen(act), "the group is open here")
                    .await;
                if done.is_ok() {
                    tracing::warn!(group = %self.core.name, who, why, "forced open");
                }
                let _ = reply.send(done);
            }
            Command::Withdraw { how, reply } => {
                let _ = reply.send(self.withdraw(how).await);
            }
            Command::Points { policy, reply } => {
                let _ = reply.send(self.points(policy.as_ref()));
            }
            Command::Note { cycle, note, reply } => self.note(cycle, note, reply),
            Command::Retention(change, reply) => {
                let _ = reply.send(self.change_retention(change).await);
            }
            Command::Export { cycle, reply } => {
                let _ = reply.send(self.export(cycle).await);
            }
            Command::StartTest { spec, reply } => {
                let _ = reply.send(self.start_test(spec).await);
            }
            Command::EndTest { name, reply } => {
                let _ = reply.send(self.end_test(&name).await);
            }
            Command::Unexport { cycle, reply } => {
                let ended = self.exports.remove(&cycle);
                let changed = ended.is_some();
                // Its threads are joined off the runtime.
                let _ = tokio::task::spawn_blocking(move || drop(ended)).await;
                let message = format!("recovery point {cycle} is not served");
                let _ = reply.send(Ok(Done { changed, message }));
            }
            Command::Journal { disk, reply } => {
                let _ = reply.send(self.journal(&disk));
            }
        }
    }

    async fn change(&mut self, event: Event, said: &str) -> Result<Done, CommandError> {
        let changed = self.step_for_command(event).await?;
        Ok(Done {
            changed,
            message: format!("group {}: {said}", self.core.name),
        })
    }

    fn cut(&mut self, label: Option<String>, reply: oneshot::Sender<Result<Cycle, String>>) {
        let order = Order::Cut { label, reply };
        let refused = match &self.side {
            Side::Source(side) => match &side.replicator {
                Some((_, replicator)) => replicator.order(order).err(),
                None => Some(order),
            },
            Side::Replica(_) | Side::Shut(_) => Some(order),
        };
        if let Some(Order::Cut { reply, .. }) = refused {
            let why = match self.core.state().record.hold {
                Some(hold) => Refusal::Held { hold }.to_string(),
                None => format!(
                    "no recovery point can be made now: {}; it needs a source that is replicating",
                    self.activity()
                ),
            };
            let _ = reply.send(Err(why));
        }
    }

    async fn planned_failover(
        &mut self,
        op: OpId,
        disconnect: bool,
        reverse: bool,
    ) -> Result<OpId, CommandError> {
        if self.context.jobs.find(op).is_some() {
            return Ok(op);
        }
        let writers = match &self.side {
            Side::Source(side) => side.writers(),
            Side::Replica(_) | Side::Shut(_) => 0,
        };
        let event = Event::PlannedFailover {
            op,
            writers,
            disconnect,
            reverse,
        };
        // Asked first, so that a refusal leaves no job behind.
        self.core
            .allows(&event)
            .map_err(|r| CommandError::Refused(r.to_string()))?;
        let step = "closing the exports and waiting for guest writes under way";
        self.job = Some(self.context.jobs.begin(op, "planned-failover", step));
        match self.step_for_command(event).await {
            Ok(_) => Ok(op),
            Err(not) => {
                let error = CommandError::from(not);
                if let Some(job) = &self.job {
                    job.fail(&error.to_string());
                }
                Err(error)
            }
        }
    }

    async fn withdraw(&mut self, how: Unprotect) -> Result<Done, CommandError> {
        let (writers, is_source) = match &self.side {
            Side::Source(side) => (side.writers(), true),
            Side::Replica(_) => (0, false),
            Side::Shut(_) => (0, super::side::wants_source(&self.core.state())),
        };
        let event = Event::Withdraw {
            writers,
            disconnect: how.disconnect,
        };
        self.core
            .allows(&event)
            .map_err(|r| CommandError::Refused(r.to_string()))?;
        if self.promoting {
            return Err(CommandError::Refused(
                "the journal is being folded into the images; end the protection once the group is \
                 open"
                    .to_owned(),
            ));
        }
        if is_source
            && let Err(why) = self.withdraw_at_peer(how.delete_replica).await
            && !how.force
        {
            return Err(CommandError::Unreachable(format!(
                "the other site did not end it: {why}; repeat with --force to end it here alone"
            )));
        }
        self.step_for_command(event).await?;
        self.forget(how.delete_replica)
            .await
            .map_err(CommandError::Failed)?;
        let message = format!("group {} is no longer protected here", self.core.name);
        Ok(Done {
            changed: true,
            message,
        })
    }

    async fn withdraw_at_peer(&self, delete_replica: bool) -> Result<(), String> {
        let asked = self.context.peer.withdraw(self.core.group, delete_replica);
        // Limited: were both sites to ask each other at once, each would wait for the other's task.
        match tokio::time::timeout(WITHDRAW_WAIT, asked).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    async fn export(&mut self, cycle: Cycle) -> Result<Vec<ExportStatus>, CommandError> {
        let Side::Replica(side) = &self.side else {
            return Err(CommandError::Refused(
                "recovery points are served by the site that keeps them".to_owned(),
            ));
        };
        let entry = match self.exports.entry(cycle) {
            Entry::Occupied(there) => {
                return Ok(there.get().iter().map(PointExport::status).collect());
            }
            Entry::Vacant(entry) => entry,
        };
        let (replica, row) = (side.group.clone(), self.core.row());
        let context = Arc::clone(&self.context);
        let disks = row.disks.clone();
        let views = tokio::task::spawn_blocking(move || {
            disks
                .iter()
                .map(|d| replica.view(d.disk, cycle))
                .collect::<Result<Vec<_>, _>>()
        })
        .await
        .map_err(|e| CommandError::Failed(e.to_string()))?
        .map_err(|e| match e {
            crate::replica::ReplicaError::NoSuchPoint { .. } => {
                CommandError::NotFound(format!("{e}; `sitepair points` lists those that are kept"))
            }
            other => CommandError::Failed(chain(&other)),
        })?;
        let served = row
            .disks
            .iter()
            .zip(views)
            .map(|(d, view)| PointExport::serve(&context, &row.name, &d.name, cycle, view))
            .collect::<Result<Vec<_>, _>>()
            .map_err(CommandError::Failed)?;
        Ok(entry
            .insert(served)
            .iter()
            .map(PointExport::status)
            .collect())
    }

    fn journal(&self, disk: &DiskName) -> Result<(ReplicaGroup, DiskId), CommandError> {
        let (name, replica) = (&self.core.name, self.kept_points()?);
        let row = self.core.row();
        match row.disks.iter().find(|d| d.name == *disk) {
            Some(found) => Ok((replica.clone(), found.disk)),
            None => {
                let names: Vec<&str> = row.disks.iter().map(|d| d.name.as_str()).collect();
                Err(CommandError::NotFound(format!(
                    "group {name} has no disk {disk}; it has {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// Brings the running job up to date with what the task knows.
    pub(super) fn update_job(&mut self) {
        let Some(job) = self.job.as_ref().filter(|j| j.is_running()) else {
            return;
        };
        let state = self.core.state();
        match state.record.role {
            Role::Quiescing { .. } => {
                if let Side::Source(side) = &self.side {
                    let p = side.group.progress();
                    let left = p.open_dirty_bytes + p.sealed_bytes;
                    let total = job.status().total_bytes.max(left);
                    job.progress(total - left, total);
                }
            }
            Role::Replica => job.done(&format!(
                "the {} site is the source now, from cycle {} on, and opens its exports; this site \
                 keeps the replica",
                self.context.site.other(),
                state.record.base
            )),
            Role::HandedOver { .. } => {}
            Role::Source | Role::Trial(_) | Role::Fenced { .. } | Role::Seeding => {
                job.fail("the group left the planned failover; see its status");
            }
        }
    }

    fn activity(&self) -> String {
        let state = self.core.state();
        if let Side::Shut(why) = &self.side {
            return format!("not open: {why}");
        }
        match &state.record.role {
            Role::Source if state.record.promoting.is_some() => {
                "folding the journal into the image".to_owned()
            }
            Role::Source if !state.serves() => "closed until the other site confirms".to_owned(),
            Role::Source => match (state.record.hold, state.session.trouble, &self.side) {
                (Some(Hold::Paused), ..) => "paused".to_owned(),
                (Some(Hold::AwaitingReverse), ..) => "waiting to be reversed".to_owned(),
                (None, Some(trouble), _) => trouble.to_string(),
                (None, None, Side::Source(side)) if side.replicator.is_none() => {
                    "not replicating: waiting for the other site".to_owned()
                }
                (None, None, Side::Source(side)) if side.group.needs_seed() => {
                    "initial replication".to_owned()
                }
                _ => "replicating".to_owned(),
            },
            Role::Trial(_) => "failover: not committed yet".to_owned(),
            Role::Quiescing { .. } => "planned failover: sending the last changes".to_owned(),
            Role::HandedOver { .. } => {
                "handed over: waiting for the other site to take over".to_owned()
            }
            Role::Fenced { .. } => "fenced: the other site took over".to_owned(),
            Role::Seeding => "receiving initial replication".to_owned(),
            Role::Replica => "receiving".to_owned(),
        }
    }

    /// Everything an operator may want to know.
    pub(super) fn status(&self) -> GroupStatus {
        let (state, row) = (self.core.state(), self.core.row());
        let now = self.context.env.now();
        let (mut source, mut replica) = (None, None);
        let mut clients = vec![0; row.disks.len()];
        let mut sending = false;
        match &self.side {
            Side::Source(side) => {
                sending = side
                    .replicator
                    .as_ref()
                    .is_some_and(|(_, r)| !r.has_ended());
                for (count, server) in clients.iter_mut().zip(&side.servers) {
                    *count = u32::try_from(server.connections()).unwrap_or(u32::MAX);
                }
                source = Some(source_status(side, now.0));
            }
            Side::Replica(side) => replica = Some(replica_status(side)),
            Side::Shut(_) => {}
        }
        let serving = matches!(&self.side, Side::Source(side) if !side.servers.is_empty());
        let disks = row.disks.iter().zip(clients).map(|(disk, clients)| {
            let socket = socket_path(&self.context.run_dir, &row.name, &disk.name);
            DiskStatus {
                name: disk.name.clone(),
                path: disk.path.display().to_string(),
                size_bytes: disk.size_bytes,
                format: disk.format,
                nbd_uri: serving.then(|| nbd_uri(&disk.name, &socket)),
                nbd_tls_uri: self
                    .context
                    .nbd_tls()
                    .filter(|_| serving)
                    .map(|tls| tls.uri(&row.name, &disk.name)),
                clients,
            }
        });
        GroupStatus {
            name: row.name.clone(),
            id: row.group,
            role: state.record.role.name(),
            generation: state.record.generation(),
            cycle: state.record.cycle(),
            open: serving,
            activity: self.activity(),
            health: self.health(&state, sending, serving),
            messages: self.messages(&state),
            allowed_operations: allowed_operations(&state)
                .iter()
                .filter(|o| COMMANDS.contains(o))
                .map(|o| o.as_str())
                .collect(),
            disks: disks.collect(),
            source,
            replica,
            job: self.job.as_ref().map(|j| -> JobStatus { j.status() }),
            exports: self
                .exports
                .values()
                .flatten()
                .map(PointExport::status)
                .collect(),
            tests: self.tests_status(),
            interval_ms: row.interval_ms,
            retention: row.retention,
        }
    }

    fn health(
        &self,
        state: &sitepair_model::group::GroupState,
        sending: bool,
        serving: bool,
    ) -> Health {
        if matches!(self.side, Side::Shut(_)) || state.session.trouble.is_some() {
            return Health::Critical;
        }
        match state.record.role {
            Role::Source if !serving => Health::Critical,
            Role::Source if !sending => Health::Warning,
            Role::Fenced { .. } | Role::HandedOver { .. } => Health::Warning,
            _ if self.problem.is_some() => Health::Warning,
            _ => self.room_health(),
        }
    }

    fn messages(&self, state: &sitepair_model::group::GroupState) -> Vec<String> {
        let mut messages = Vec::new();
        messages.extend(state.session.trouble.map(|t| t.to_string()));
        messages.extend(self.problem.clone());
        messages.extend(self.room_message());
        if let Side::Source(side) = &self.side {
            messages.extend(
                side.group
                    .full_compare_reasons()
                    .iter()
                    .map(|(_, why)| why.clone()),
            );
        }
        for act in &state.record.forced {
            let at = jiff::Timestamp::from_millisecond(act.at.0)
                .map_or_else(|_| String::new(), |t| t.to_string());
            let place = if act.at_peer {
                self.context.site.other()
            } else {
                self.context.site
            };
            messages.push(format!(
                "{} at the {place} site at {at} by {}: {}",
                act.act, act.who, act.why
            ));
        }
        messages
    }
}

/// The operations that there are commands for.
const COMMANDS: [Operation; 7] = [
    Operation::Cut,
    Operation::Pause,
    Operation::Resume,
    Operation::Reverse,
    Operation::PlannedFailover,
    Operation::ForceOpen,
    Operation::Unprotect,
];

fn source_status(side: &super::side::SourceSide, now_ms: i64) -> SourceStatus {
    let p = side.group.progress();
    let lag = p
        .oldest_unreplicated_write
        .map_or(0, |at| now_ms.saturating_sub(at.0));
    SourceStatus {
        seed_total_bytes: p.seed_total_bytes,
        seed_left_bytes: p.seed_left_bytes,
        open_dirty_bytes: p.open_dirty_bytes,
        sealed_bytes: p.sealed_bytes,
        sent_bytes: p.sent_bytes,
        lag_ms: u64::try_from(lag).unwrap_or(0),
        preserved_bytes: p.preserved_bytes,
        hot_zones: u32::try_from(p.hot_zones).unwrap_or(u32::MAX),
        guest_written_bytes: p.guest_written_bytes,
    }
}

fn replica_status(side: &super::side::ReplicaSide) -> ReplicaStatus {
    let (points, status) = (side.group.points(), side.group.status());
    ReplicaStatus {
        points: u32::try_from(points.len()).unwrap_or(u32::MAX),
        oldest: points.first().map_or(Cycle::NONE, |p| p.cycle),
        newest: points.last().map_or(Cycle::NONE, |p| p.cycle),
        newest_cut_at: status.newest_cut_at.unwrap_or_default(),
        room: Some(status.room),
        receiving_bytes: status.receiving_bytes.unwrap_or(0),
    }
}
