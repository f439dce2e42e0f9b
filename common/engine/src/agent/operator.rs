//! What operators may ask of an agent, in our own types; the wire converts.

mod change_log;
mod points;
mod protect;

pub use points::RetentionChange;
pub use protect::{ProtectDisk, ProtectSpec};

use std::sync::Arc;
use std::time::Duration;

use sitepair_model::cause::chain;
use sitepair_model::group::{ForceOpen, PeerStatement, Signature};
use sitepair_model::ids::{Cycle, GenId, GroupName, OpId, TestName, UnixMillis};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::Context;
use super::command::{Command, CommandError, Done, Unprotect};
use super::groups::Handle;
use super::job::Job;
use super::status::{
    AgentStatus, CertificateStatus, ExportStatus, GroupStatus, Health, JobStatus, LinkStatus,
    TestStatus,
};
use super::task::Msg;
use super::test_failover::TestSpec;
use crate::catalog::AuditRow;
use crate::wire::LinkState;

/// An agent as operators see it.
#[derive(Clone)]
pub struct Operator {
    context: Arc<Context>,
    certificate: Arc<dyn Fn() -> CertificateStatus + Send + Sync>,
    peer_address: String,
}

/// Who gave a command, by the certificate that the connection was made with.
#[derive(Debug, Clone, Default)]
pub struct Asker {
    /// The certificate's name; empty where there was none.
    pub name: String,
    /// Its serial number.
    pub serial: String,
}

/// How long a group may take to tell how it is.
const STATUS_WAIT: Duration = Duration::from_secs(5);

impl Operator {
    /// The agent's face to operators. `certificate` tells what it shows to others.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        peer_address: String,
        certificate: Arc<dyn Fn() -> CertificateStatus + Send + Sync>,
    ) -> Self {
        Self {
            context,
            certificate,
            peer_address,
        }
    }

    fn handle(&self, group: &GroupName) -> Result<Handle, CommandError> {
        self.context.groups.named(group).ok_or_else(|| {
            CommandError::NotFound(format!(
                "no group {group} at the {} site; `sitepair status` lists those that are",
                self.context.site
            ))
        })
    }

    async fn ask<T>(
        &self,
        group: &GroupName,
        command: impl FnOnce(oneshot::Sender<Result<T, CommandError>>) -> Command,
    ) -> Result<T, CommandError> {
        let handle = self.handle(group)?;
        let (reply, answer) = oneshot::channel();
        let gone = || CommandError::Failed("the group's task has ended".to_owned());
        handle
            .inbox
            .send(Msg::Command(command(reply)))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// How the agent is, and its groups: all, or the one named.
    ///
    /// # Errors
    /// `NotFound` for a name that is not there.
    pub async fn status(&self, only: Option<&GroupName>) -> Result<AgentStatus, CommandError> {
        let handles = match only {
            Some(name) => vec![(name.clone(), self.handle(name)?)],
            None => self.context.groups.all(),
        };
        // All are asked before the first is waited for, and all have the same time.
        let deadline = Instant::now() + STATUS_WAIT;
        let (mut asked, mut silent) = (Vec::with_capacity(handles.len()), Vec::new());
        for (name, handle) in handles {
            let (reply, answer) = oneshot::channel();
            match timeout_at(deadline, handle.inbox.send(Msg::Status(reply))).await {
                Ok(Ok(())) => asked.push((name, answer)),
                // It has ended since.
                Ok(Err(_)) => {}
                Err(_) => silent.push(name),
            }
        }
        let mut groups: Vec<GroupStatus> = Vec::with_capacity(asked.len());
        for (name, answer) in asked {
            match timeout_at(deadline, answer).await {
                Ok(Ok(status)) => groups.push(status),
                Ok(Err(_)) => {}
                Err(_) => silent.push(name),
            }
        }
        let link = self.link();
        let certificate = (self.certificate)();
        let own = if certificate.problem.is_some() || !silent.is_empty() {
            Health::Critical
        } else if link.connected {
            Health::Ok
        } else {
            Health::Warning
        };
        let health = groups
            .iter()
            .map(|g| g.health)
            .max()
            .unwrap_or(Health::Ok)
            .max(own);
        Ok(AgentStatus {
            pair: self.context.pair.clone(),
            site: self.context.site,
            started_at: self.context.started_at,
            link,
            certificate,
            groups,
            silent,
            health,
        })
    }

    fn link(&self) -> LinkStatus {
        let peer = self.peer_address.clone();
        match self.context.link.borrow().clone() {
            LinkState::Up { since } => LinkStatus {
                peer,
                connected: true,
                since,
                last_error: String::new(),
                attempts: 0,
            },
            LinkState::Down {
                since,
                last_error,
                attempts,
                ..
            } => LinkStatus {
                peer,
                connected: false,
                since,
                last_error,
                attempts,
            },
        }
    }

    /// Holds replication.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn pause(&self, group: &GroupName) -> Result<Done, CommandError> {
        self.ask(group, Command::Pause).await
    }

    /// Lets replication go on.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn resume(&self, group: &GroupName) -> Result<Done, CommandError> {
        self.ask(group, Command::Resume).await
    }

    /// Lets a new source replicate back.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn reverse(&self, group: &GroupName) -> Result<Done, CommandError> {
        self.ask(group, Command::Reverse).await
    }

    /// Makes a recovery point and waits until the other site has it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn cut(
        &self,
        group: &GroupName,
        label: Option<String>,
    ) -> Result<Cycle, CommandError> {
        let handle = self.handle(group)?;
        let (reply, answer) = oneshot::channel();
        let gone = || {
            CommandError::Refused(
                "replication stopped before the point was made; see `sitepair status`".to_owned(),
            )
        };
        let command = Command::Cut { label, reply };
        handle
            .inbox
            .send(Msg::Command(command))
            .await
            .map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(CommandError::Refused)
    }

    /// Begins a planned failover; the job's id is the operation's.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn planned_failover(
        &self,
        group: &GroupName,
        op: Option<OpId>,
        disconnect: bool,
        reverse: bool,
    ) -> Result<OpId, CommandError> {
        let op = op.unwrap_or_else(|| OpId::from_bytes(self.context.env.random_id()));
        self.ask(group, |reply| Command::PlannedFailover {
            op,
            disconnect,
            reverse,
            reply,
        })
        .await
    }

    /// Opens a group on an operator's word.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn force_open(
        &self,
        group: &GroupName,
        who: String,
        why: String,
        typed_name: &str,
        peer_is_stopped: bool,
    ) -> Result<Done, CommandError> {
        let signature = Signature {
            who,
            why,
            at: self.context.env.now(),
            typed_name_matches: typed_name == group.as_str(),
            peer: if peer_is_stopped {
                PeerStatement::HostOff
            } else {
                PeerStatement::None
            },
        };
        let act = ForceOpen {
            op: OpId::from_bytes(self.context.env.random_id()),
            signature,
            new: GenId::from_bytes(self.context.env.random_id()),
        };
        self.ask(group, |reply| Command::ForceOpen { act, reply })
            .await
    }

    /// Ends protection.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn unprotect(&self, group: &GroupName, how: Unprotect) -> Result<Done, CommandError> {
        self.ask(group, |reply| Command::Withdraw { how, reply })
            .await
    }

    /// Serves a recovery point.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn export(
        &self,
        group: &GroupName,
        cycle: Cycle,
    ) -> Result<Vec<ExportStatus>, CommandError> {
        self.ask(group, |reply| Command::Export { cycle, reply })
            .await
    }

    /// Stops serving it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn unexport(&self, group: &GroupName, cycle: Cycle) -> Result<Done, CommandError> {
        self.ask(group, |reply| Command::Unexport { cycle, reply })
            .await
    }

    /// Begins a test failover.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn start_test(
        &self,
        group: &GroupName,
        spec: TestSpec,
    ) -> Result<TestStatus, CommandError> {
        self.ask(group, |reply| Command::StartTest { spec, reply })
            .await
    }

    /// Ends a test failover; what it wrote is gone.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn end_test(&self, group: &GroupName, name: TestName) -> Result<Done, CommandError> {
        self.ask(group, |reply| Command::EndTest { name, reply })
            .await
    }

    /// Follows a job.
    ///
    /// # Errors
    /// `NotFound` for one that this life of the agent does not know.
    pub fn job(&self, id: OpId) -> Result<watch::Receiver<JobStatus>, CommandError> {
        self.context.jobs.find(id).as_ref().map(Job::follow).ok_or_else(|| {
            CommandError::NotFound(format!(
                "no job {id} in this life of the agent; `sitepair status` tells what is true now"
            ))
        })
    }

    /// Writes a line to the audit. A command that was carried out is not undone because that fails; the failure is
    /// logged, as the command itself was.
    pub async fn audit(&self, asker: Asker, what: String, result: String) {
        let line = AuditRow {
            at: self.context.env.now(),
            who: asker.name,
            serial: asker.serial,
            what,
            group: None,
            result,
        };
        let catalog = Arc::clone(&self.context.catalog);
        let written = tokio::task::spawn_blocking(move || catalog.append_audit(&line)).await;
        if let Ok(Err(e)) = written {
            tracing::error!("the audit could not be written: {}", chain(&e));
        }
    }

    /// The wall clock, for the wire's ages.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.context.env.now()
    }
}
