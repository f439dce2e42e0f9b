//! The task that owns one group at one site: takes one message at a time, lets the model decide, makes
//! the decision durable, and does what it asks for.
//!
//! Receives: what the peer, operators, the link and this group's own work say. Gives out: answers, and
//! effects in the order that the model gives them.
//!
//! Does not do: decide. The only state here that the model does not know is what is open
//! ([`Side`]), when to ask the peer again, and what operators are to be told.
//!
//! # Invariants
//! 1. Everything that changes the group is done in this task, from a message to its end: whoever asked may have
//!    gone meanwhile, and then only its answer is lost.
//! 2. The task never waits for the peer without a limit, and never for a message to itself.
//! 3. One Hello is under way at a time: a newer one would void the answer of the one before.
//! 4. When nobody can know whether a record is durable, the group stands still: nothing is decided, sent, or newly served
//!    until a restart has read the record. Guests that are served are served on.
//! 5. A site that learnt that it was left behind, and could not record it, opens nothing until it can.

mod lifecycle;
mod meeting;
mod replication;
mod retention;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sitepair_disk::Image;
use sitepair_model::cause::chain;
use sitepair_model::group::{Effect, Event, GroupState, Role};
use sitepair_model::ids::{Cycle, DiskName, GenId, OpId};
use sitepair_model::peer::{Committed, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin};
use sitepair_model::retention::Retention;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::command::{Command, CommandError};
use super::core::{Core, Installed};
use super::export::PointExport;
use super::job::Job;
use super::replicator::End;
use super::side::{Side, SourceSide, open_side};
use super::status::GroupStatus;
use super::test_failover::Tests;
use super::{Context, LinkView};
use crate::catalog::CatalogError;
use crate::endpoint::{PeerEndpoint, PeerError, Transfer};

/// An answer that somebody waits for.
pub(super) type Reply<T> = oneshot::Sender<Result<T, PeerError>>;

/// What a group's task is told.
pub(super) enum Msg {
    /// The peer said Hello.
    Hello(Hello, Reply<HelloAnswer>),
    /// The peer hands over.
    Grant(Grant, Reply<OpId>),
    /// The peer offers the group, which is known here.
    Offered(GenId, Reply<()>),
    /// The peer tells what it knows of the group's retention.
    Settle(Retention, Reply<Retention>),
    /// The peer answered what is in force by what it knows, or did not.
    Settled(Result<Retention, PeerError>),
    /// The peer ended the protection.
    Withdrawn {
        delete_replica: bool,
        reply: Reply<()>,
    },
    /// The peer wants to send.
    Begin(TransferBegin, Reply<Box<dyn Transfer>>),
    /// An operator's command.
    Command(Command),
    /// An image, for whoever shares the process: see [`Context::guest_image`](super::Context::guest_image).
    Image {
        disk: DiskName,
        point: Option<Cycle>,
        reply: oneshot::Sender<Option<Arc<dyn Image>>>,
    },
    /// How is it?
    Status(oneshot::Sender<GroupStatus>),
    /// The peer answered our Hello, or did not.
    HelloAnswered(Result<HelloAnswer, PeerError>),
    /// The peer answered our Grant, or did not.
    GrantAnswered {
        request: OpId,
        result: Result<OpId, PeerError>,
    },
    /// The peer took our offer, or did not.
    OfferAnswered(Result<(), PeerError>),
    /// A cycle is durable at the peer.
    Acknowledged { generation: GenId, last: Committed },
    /// The replicator of this number ended.
    ReplicatorEnded(u64, End),
    /// The journal is in the images, and they are tracked; or not.
    Promoted(Result<Box<SourceSide>, String>),
    /// The agent stops.
    Stop(oneshot::Sender<()>),
}

/// What a step answers to whoever caused it.
#[derive(Default)]
struct Answers {
    hello: Option<HelloAnswer>,
    grant: Option<OpId>,
    forget: bool,
}

/// Why a step was not taken.
pub(super) enum NotDone {
    /// The model refused it.
    Refused(String),
    /// It could not be made durable.
    Failed(String),
}

impl From<NotDone> for PeerError {
    fn from(not: NotDone) -> Self {
        match not {
            NotDone::Refused(why) => Self::Refused { why },
            NotDone::Failed(why) => Self::Failed { why },
        }
    }
}

impl From<NotDone> for CommandError {
    fn from(not: NotDone) -> Self {
        match not {
            NotDone::Refused(why) => Self::Refused(why),
            NotDone::Failed(why) => Self::Failed(why),
        }
    }
}

/// The task's own things.
pub(super) struct GroupTask {
    pub(super) context: Arc<Context>,
    pub(super) core: Arc<Core>,
    pub(super) side: Side,
    /// Messages to itself, from work that it started: their way in, and out.
    own: mpsc::UnboundedSender<Msg>,
    reports: mpsc::UnboundedReceiver<Msg>,
    /// Events that effects asked for.
    ahead: VecDeque<Event>,
    /// What fenced this site and could not be made durable; tried again until it is (invariant 5).
    unrecorded: Option<Event>,
    /// Why the group stands still until the agent is restarted (invariant 4).
    standstill: Option<String>,
    ask_at: Option<Instant>,
    /// A Hello is under way (invariant 3).
    asking: bool,
    patience: Duration,
    reopen_at: Option<Instant>,
    replicators: u64,
    pub(super) promoting: bool,
    /// The last thing that went wrong and still matters.
    pub(super) problem: Option<String>,
    pub(super) job: Option<Job>,
    pub(super) exports: BTreeMap<Cycle, Vec<PointExport>>,
    pub(super) tests: Tests,
    ended: bool,
}

/// Shortest wait before the peer is asked again.
const PATIENCE_MIN: Duration = Duration::from_millis(500);
/// Longest.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Wait before files that could not be opened are tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// How often the task looks up by itself.
const TICK: Duration = Duration::from_secs(1);

impl GroupTask {
    /// A task that has not begun; run it with [`run`](Self::run).
    pub(super) fn new(context: Arc<Context>, core: Arc<Core>, side: Side) -> Self {
        let (own, reports) = mpsc::unbounded_channel();
        Self {
            context,
            core,
            side,
            own,
            reports,
            ahead: VecDeque::new(),
            unrecorded: None,
            standstill: None,
            ask_at: None,
            asking: false,
            patience: PATIENCE_MIN,
            reopen_at: None,
            replicators: 0,
            promoting: false,
            problem: None,
            job: None,
            exports: BTreeMap::new(),
            tests: Tests::new(),
            ended: false,
        }
    }

    /// Runs until the agent stops or the group is forgotten. `first` are the effects of the transition that
    /// made the group's state.
    pub(super) async fn run(mut self, first: Vec<Effect>, mut inbox: mpsc::Receiver<Msg>) {
        let mut answers = Answers::default();
        for effect in first {
            self.act(effect, &mut answers).await;
        }
        self.follow_up().await;
        self.look_up().await;
        let mut link = self.context.link.clone();
        while !self.ended {
            let tick = Instant::now() + TICK;
            let may_ask = !self.asking && self.standstill.is_none();
            let ask = self.ask_at.filter(|_| may_ask);
            let wake = ask.map_or(tick, |ask| ask.min(tick));
            tokio::select! {
                // Own reports first: an acknowledgement must not wait behind questions.
                biased;
                Some(msg) = self.reports.recv() => self.take(msg).await,
                Some(msg) = inbox.recv() => self.take(msg).await,
                Ok(()) = link.changed() => {
                    let up = link.borrow_and_update().is_up();
                    self.link_changed(up).await;
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            if !self.ended {
                self.look_up().await;
            }
        }
    }

    async fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Hello(hello, reply) => {
                let done = self.step(Event::HelloReceived(hello)).await;
                let answer = done.map_err(PeerError::from).and_then(|a| {
                    a.hello.ok_or(PeerError::Failed {
                        why: "no answer was decided".to_owned(),
                    })
                });
                let _ = reply.send(answer);
            }
            Msg::Grant(grant, reply) => {
                let done = self.step(Event::GrantReceived(grant)).await;
                let answer = done.map_err(PeerError::from).and_then(|a| {
                    a.grant.ok_or(PeerError::Failed {
                        why: "no answer was decided".to_owned(),
                    })
                });
                let _ = reply.send(answer);
            }
            Msg::Offered(generation, reply) => {
                let done = self.step(Event::Offered { generation }).await;
                let _ = reply.send(done.map(|_| ()).map_err(PeerError::from));
            }
            Msg::Settle(theirs, reply) => {
                let settled = self.settle(theirs).await;
                let settled = settled.map_err(|why| PeerError::Failed { why });
                let _ = reply.send(settled);
            }
            Msg::Settled(result) => self.settled(result).await,
            Msg::Withdrawn {
                delete_replica,
                reply,
            } => {
                let _ = reply.send(self.withdrawn(delete_replica).await);
            }
            Msg::Begin(begin, reply) => self.begin(begin, reply).await,
            Msg::Command(command) => self.command(command).await,
            Msg::Image { disk, point, reply } => {
                let _ = reply.send(self.image(&disk, point).await);
            }
            Msg::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Msg::HelloAnswered(result) => self.hello_answered(result).await,
            Msg::GrantAnswered { request, result } => self.grant_answered(request, result).await,
            Msg::OfferAnswered(result) => match result {
                Ok(()) => self.ask_soon(),
                Err(e) => self.ask_later(&e.to_string()),
            },
            Msg::Acknowledged { generation, last } => {
                self.patience = PATIENCE_MIN;
                self.problem = None;
                self.step_logged(Event::CycleAcknowledged { generation, last })
                    .await;
            }
            Msg::ReplicatorEnded(number, end) => self.replicator_ended(number, end).await,
            Msg::Promoted(result) => self.promoted(result).await,
            Msg::Stop(done) => {
                self.stop().await;
                let _ = done.send(());
            }
        }
    }

    /// Decides, makes durable, acts; then whatever the effects asked for.
    async fn step(&mut self, event: Event) -> Result<Answers, NotDone> {
        let mut answers = Answers::default();
        self.one_step(event, &mut answers).await?;
        self.follow_up().await;
        Ok(answers)
    }

    /// Takes the steps that effects asked for.
    async fn follow_up(&mut self) {
        while let Some(event) = self.ahead.pop_front() {
            let what = format!("{event:?}");
            let mut rest = Answers::default();
            if let Err(NotDone::Refused(why) | NotDone::Failed(why)) =
                self.one_step(event, &mut rest).await
            {
                tracing::debug!(group = %self.core.name, what, "not taken: {why}");
            }
        }
    }

    async fn one_step(&mut self, event: Event, answers: &mut Answers) -> Result<(), NotDone> {
        if let Some(why) = &self.standstill {
            return Err(NotDone::Failed(why.clone()));
        }
        loop {
            let (seen, decided) = self
                .core
                .decide(&event)
                .map_err(|r| NotDone::Refused(r.to_string()))?;
            let fenced = matches!(decided.next.record.role, Role::Fenced { .. });
            for effect in decided.before {
                self.act(effect, answers).await;
            }
            let installed = if seen == decided.next {
                Ok(Installed::Yes)
            } else {
                let (core, next) = (Arc::clone(&self.core), decided.next.clone());
                tokio::task::spawn_blocking(move || core.install(&seen, &next))
                    .await
                    .map_err(|e| NotDone::Failed(e.to_string()))?
            };
            match installed {
                Ok(Installed::Yes) => {
                    self.note_role(&decided.next);
                    self.follow_generation(&decided.next).await;
                    for effect in decided.after {
                        self.act(effect, answers).await;
                    }
                    return Ok(());
                }
                // A cycle was committed in between; what was done before is harmless to repeat.
                Ok(Installed::Outdated) => {}
                Err(e) => {
                    let why = chain(&e);
                    tracing::error!(group = %self.core.name, "a change of role was not recorded: {why}");
                    self.problem = Some(why.clone());
                    self.unrecorded = fenced.then_some(event);
                    if may_be_durable(&e) {
                        self.stand_still(&why).await;
                    }
                    return Err(NotDone::Failed(why));
                }
            }
        }
    }

    /// What is durable is not known, so nothing may follow from what is believed: a cycle sent after a
    /// hand-over that is on record would leave the other site unable to take over.
    async fn stand_still(&mut self, why: &str) {
        tracing::error!(group = %self.core.name, "the group stands still until the agent is restarted");
        self.standstill = Some(format!("restart the agent once its disk is well: {why}"));
        self.ahead.clear();
        if let Side::Source(side) = &mut self.side {
            // What it acknowledged is found out anew after the restart.
            let _ = side.stop_replicator().await;
        }
        if let Some(job) = &self.job {
            job.fail(&format!(
                "whether the last step counts shows when the agent is restarted: {why}"
            ));
        }
    }

    /// A step that nobody waits for.
    pub(super) async fn step_logged(&mut self, event: Event) {
        let what = format!("{event:?}");
        match self.step(event).await {
            Ok(_) => {}
            Err(NotDone::Refused(why)) => {
                tracing::debug!(group = %self.core.name, what, "refused: {why}");
            }
            Err(NotDone::Failed(why)) => {
                tracing::error!(group = %self.core.name, what, "failed: {why}");
            }
        }
    }

    /// A step that a command waits for.
    pub(super) async fn step_for_command(&mut self, event: Event) -> Result<bool, NotDone> {
        let before = self.core.state().record;
        let answers = self.step(event).await?;
        Ok(answers.forget || self.core.state().record != before)
    }

    async fn act(&mut self, effect: Effect, answers: &mut Answers) {
        match effect {
            Effect::CloseExports { disconnect } => self.close_exports(disconnect).await,
            Effect::OpenExports => self.open_exports().await,
            Effect::StartReplication(_) => self.start_replication().await,
            Effect::StopReplication => self.stop_replicator().await,
            Effect::DrainAndShip { op } => self.drain(op),
            Effect::AskPeer => self.ask_soon(),
            Effect::SendHello(hello) => {
                self.asking = true;
                self.call(move |peer| async move { Msg::HelloAnswered(peer.hello(hello).await) });
            }
            Effect::AnswerHello(answer) => answers.hello = Some(answer),
            Effect::OfferGroup => {
                let offer = self.offer();
                self.call(move |peer| async move { Msg::OfferAnswered(peer.offer(offer).await) });
            }
            Effect::SendGrant(grant) => {
                let request = grant.request;
                self.call(move |peer| async move {
                    Msg::GrantAnswered {
                        request,
                        result: peer.grant(grant).await,
                    }
                });
            }
            Effect::AnswerGrant { request } => answers.grant = Some(request),
            // The replica checks a transfer by itself, and knows what was committed.
            Effect::AcceptTransfer | Effect::Acknowledge(_) => {}
            Effect::Promote(promotion) => self.promote(promotion.through()),
            Effect::SendFence(_)
            | Effect::AnswerFence(_)
            | Effect::SendRelease(_)
            | Effect::AnswerRelease(_)
            | Effect::OpenOverlay { .. }
            | Effect::KeepFork(_)
            | Effect::DropFork(_) => {
                // Of the events that lead here only a resync can come, from a peer of another
                // version; the transfer that it begins is refused where it is opened.
                tracing::error!(group = %self.core.name, ?effect, "not carried out by this agent");
            }
            Effect::BecomeReplica { .. } => self.become_replica().await,
            Effect::Alarm(trouble) => {
                tracing::error!(group = %self.core.name, "{trouble}");
            }
            Effect::Forget => answers.forget = true,
        }
    }

    /// Calls the peer in a task of its own; the answer comes back as a message.
    fn call<F>(&self, call: impl FnOnce(Arc<dyn PeerEndpoint>) -> F)
    where
        F: Future<Output = Msg> + Send + 'static,
    {
        let (peer, own) = (Arc::clone(&self.context.peer), self.own.clone());
        let answer = call(peer);
        self.context.tasks.spawn(async move {
            // The group's task may have ended meanwhile; then nobody waits for the answer.
            let _ = own.send(answer.await);
        });
    }

    /// What is due by time, and what could not be done before.
    async fn look_up(&mut self) {
        if self.standstill.is_some() {
            return;
        }
        if let Some(event) = self.unrecorded.take() {
            self.step_logged(event).await;
        }
        if matches!(self.side, Side::Shut(_))
            && self.reopen_at.is_none_or(|at| at <= Instant::now())
        {
            self.reopen().await;
            self.follow_up().await;
        }
        let state = self.core.state();
        if let Role::Quiescing { op, .. } = state.record.role
            && state.replicates_to().is_none()
        {
            self.cancel(op, "the other site can no longer take the last changes");
            self.follow_up().await;
        }
        if self.core.state().serves()
            && let Side::Source(side) = &self.side
            && side.servers.is_empty()
        {
            self.open_exports().await;
        }
        if let Some(promotion) = state.record.promoting
            && !self.promoting
            && matches!(self.side, Side::Replica(_))
        {
            self.promote(promotion.through());
        }
        self.look_after_tests().await;
        self.ask_if_due().await;
        self.update_job();
    }

    async fn reopen(&mut self) {
        self.side = open_side(&self.context, &self.core).await;
        match &self.side {
            Side::Shut(why) => {
                self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
                if self.problem.as_ref() != Some(why) {
                    tracing::error!(group = %self.core.name, "not open: {why}");
                }
                self.problem = Some(why.clone());
            }
            Side::Source(_) => {
                self.problem = None;
                // The peer is asked anew, and its answer starts replication if it is due.
                self.ahead.push_back(Event::PeerLost);
            }
            Side::Replica(_) => self.problem = None,
        }
    }

    async fn image(&self, disk: &DiskName, point: Option<Cycle>) -> Option<Arc<dyn Image>> {
        let row = self.core.row();
        let disk = row.disks.iter().find(|d| d.name == *disk)?.disk;
        match (&self.side, point) {
            (Side::Source(side), None) if !side.servers.is_empty() => side.group.tracked(disk),
            (Side::Replica(side), Some(cycle)) => {
                let replica = side.group.clone();
                let view = tokio::task::spawn_blocking(move || replica.view(disk, cycle)).await;
                view.ok()?.ok()
            }
            _ => None,
        }
    }

    fn offer(&self) -> GroupOffer {
        super::offer_of(
            &self.core.row(),
            self.core.state().record.generation(),
            false,
            &[],
        )
    }

    fn note_role(&mut self, next: &GroupState) {
        let role = next.record.role.name();
        tracing::debug!(group = %self.core.name, %role, generation = %next.record.generation(),
            cycle = %next.record.cycle(), "state");
    }
}

/// Whether a change that failed may turn out to be durable, or an earlier one of any group may.
fn may_be_durable(error: &CatalogError) -> bool {
    !error.changed_nothing() || matches!(error, CatalogError::Poisoned { .. })
}
