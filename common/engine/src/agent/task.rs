//! The task that owns one group at one site: takes one message at a time, lets the model decide, makes
//! the decision durable, and does what it asks for.
//!
//! Receives: what the peer, operators, the link and this group's own work say. Gives out: answers, and
//! effects in the order that the model gives them.
//!
//! Does not do: decide. The only state here that the model does not know is what is open
//! ([`Side`]), when to ask the peer again, and what operators are to be told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sitepair_model::group::{Effect, Event, GroupState, Role};
use sitepair_model::ids::{Cycle, GenId, OpId};
use sitepair_model::peer::{Committed, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::command::{Command, CommandError};
use super::core::{Core, Installed};
use super::export::PointExport;
use super::job::Job;
use super::replicator::{End, Order, Replicator, Work, chain};
use super::side::{ReplicaSide, Side, SourceSide, forget_maps, open_side, wants_source};
use super::status::GroupStatus;
use super::{Context, LinkView};
use crate::endpoint::{PeerEndpoint, PeerError, Transfer};
use crate::nbd::Disconnect;
use crate::source::Fresh;

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
    /// The peer ended the protection.
    Withdrawn {
        delete_replica: bool,
        reply: Reply<()>,
    },
    /// The peer wants to send.
    Begin(TransferBegin, Reply<Box<dyn Transfer>>),
    /// An operator's command.
    Command(Command),
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
    /// Messages to itself, from work that it started.
    own: mpsc::UnboundedSender<Msg>,
    /// Events that effects asked for.
    ahead: VecDeque<Event>,
    ask_at: Option<Instant>,
    patience: Duration,
    reopen_at: Option<Instant>,
    replicators: u64,
    pub(super) promoting: bool,
    /// The last thing that went wrong and still matters.
    pub(super) problem: Option<String>,
    pub(super) job: Option<Job>,
    pub(super) exports: BTreeMap<Cycle, Vec<PointExport>>,
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
    pub(super) fn new(
        context: Arc<Context>,
        core: Arc<Core>,
        side: Side,
        own: mpsc::UnboundedSender<Msg>,
    ) -> Self {
        Self {
            context,
            core,
            side,
            own,
            ahead: VecDeque::new(),
            ask_at: None,
            patience: PATIENCE_MIN,
            reopen_at: None,
            replicators: 0,
            promoting: false,
            problem: None,
            job: None,
            exports: BTreeMap::new(),
            ended: false,
        }
    }

    /// Runs until the agent stops or the group is forgotten. `first` are the effects of the transition that
    /// made the group's state.
    pub(super) async fn run(
        mut self,
        first: Vec<Effect>,
        mut inbox: mpsc::Receiver<Msg>,
        mut reports: mpsc::UnboundedReceiver<Msg>,
    ) {
        let mut answers = Answers::default();
        for effect in first {
            self.act(effect, &mut answers).await;
        }
        self.look_up().await;
        let mut link = self.context.link.clone();
        while !self.ended {
            let wake = Instant::now() + TICK;
            let wake = self.ask_at.map_or(wake, |ask| ask.min(wake));
            tokio::select! {
                // Own reports first: an acknowledgement must not wait behind questions.
                biased;
                Some(msg) = reports.recv() => self.take(msg).await,
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
            Msg::Withdrawn {
                delete_replica,
                reply,
            } => {
                let _ = reply.send(self.withdrawn(delete_replica).await);
            }
            Msg::Begin(begin, reply) => self.begin(begin, reply).await,
            Msg::Command(command) => self.command(command).await,
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
        loop {
            let (seen, decided) = self
                .core
                .decide(&event)
                .map_err(|r| NotDone::Refused(r.to_string()))?;
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
                    return Err(NotDone::Failed(why));
                }
            }
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
            Effect::OpenExports => self.open_exports(),
            Effect::StartReplication(_) => self.start_replication().await,
            Effect::StopReplication => {
                if let Side::Source(side) = &mut self.side {
                    side.stop_replicator().await;
                }
            }
            Effect::DrainAndShip { op } => self.drain(op),
            Effect::AskPeer => self.ask_soon(),
            Effect::SendHello(hello) => {
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
            Effect::Promote { through } => self.promote(through),
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
        if matches!(self.side, Side::Shut(_))
            && self.reopen_at.is_none_or(|at| at <= Instant::now())
        {
            self.reopen().await;
            self.follow_up().await;
        }
        let state = self.core.state();
        if state.serves()
            && let Side::Source(side) = &self.side
            && side.servers.is_empty()
        {
            self.open_exports();
        }
        if let Some(through) = state.record.promoting
            && !self.promoting
            && matches!(self.side, Side::Replica(_))
        {
            self.promote(through);
        }
        if state.wants_answer() && self.ask_at.is_none() {
            self.ask_at = Some(Instant::now() + self.patience);
        }
        if self.ask_at.is_some_and(|at| at <= Instant::now()) {
            self.ask_at = None;
            if self.context.link.borrow().is_up() {
                let request = OpId::from_bytes(self.context.env.random_id());
                self.step_logged(Event::AskPeer { request }).await;
            }
        }
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

    async fn link_changed(&mut self, up: bool) {
        if up {
            self.patience = PATIENCE_MIN;
            self.ask_soon();
        } else {
            self.step_logged(Event::PeerLost).await;
        }
    }

    fn ask_soon(&mut self) {
        self.ask_at = Some(Instant::now());
    }

    /// The peer could not help; asks again, less and less often.
    fn ask_later(&mut self, why: &str) {
        self.problem = Some(why.to_owned());
        self.ask_at = Some(Instant::now() + self.patience);
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }

    async fn hello_answered(&mut self, result: Result<HelloAnswer, PeerError>) {
        match result {
            Ok(answer) => match self.step(Event::HelloAnswered(answer)).await {
                Ok(_) => {}
                // An answer to an older question; the newer one is under way.
                Err(NotDone::Refused(why)) => {
                    tracing::debug!(group = %self.core.name, "answer to Hello: {why}");
                }
                Err(NotDone::Failed(why)) => self.ask_later(&why),
            },
            Err(PeerError::Link { .. }) => {
                self.ask_at = Some(Instant::now() + self.patience);
                self.patience = (self.patience * 2).min(PATIENCE_MAX);
            }
            Err(e) => self.ask_later(&e.to_string()),
        }
    }

    async fn grant_answered(&mut self, request: OpId, result: Result<OpId, PeerError>) {
        match result {
            Ok(_) => self.step_logged(Event::GrantAnswered { request }).await,
            // The answer to the next Hello tells whether the peer took it, and leads to a repeat.
            Err(e) => self.ask_later(&e.to_string()),
        }
    }

    async fn withdrawn(&mut self, delete_replica: bool) -> Result<(), PeerError> {
        let answers = self.step(Event::PeerWithdrew).await?;
        if answers.forget {
            self.forget(delete_replica)
                .await
                .map_err(|why| PeerError::Failed { why })?;
        }
        Ok(())
    }

    async fn begin(&mut self, begin: TransferBegin, reply: Reply<Box<dyn Transfer>>) {
        if let Err(not) = self.step(Event::TransferAsked(begin.clone())).await {
            let _ = reply.send(Err(not.into()));
            return;
        }
        let Side::Replica(side) = &self.side else {
            let why = self
                .problem
                .clone()
                .unwrap_or_else(|| "the replica is not open".to_owned());
            let _ = reply.send(Err(PeerError::Failed { why }));
            return;
        };
        let replica = side.group.clone();
        // Opening it may wait for the end of an older transfer; the group goes on meanwhile.
        self.context.tasks.spawn(async move {
            let _ = reply.send(replica.begin(begin).await);
        });
    }

    fn open_exports(&mut self) {
        let row = self.core.row();
        if let Side::Source(side) = &mut self.side
            && side.servers.is_empty()
        {
            match side.serve(&self.context, &row) {
                Ok(()) => tracing::info!(group = %self.core.name, "guests are served here"),
                Err(why) => {
                    tracing::error!(group = %self.core.name, "cannot serve: {why}");
                    self.problem = Some(why);
                }
            }
        }
    }

    async fn close_exports(&mut self, disconnect: bool) {
        let how = if disconnect {
            Disconnect::Now
        } else {
            Disconnect::Graceful
        };
        if let Side::Source(side) = &mut self.side {
            side.disconnect(how).await;
            // Refused even if the flush fails; the image then refuses everything until it is opened anew.
            if let Err(e) = side.group.refuse_and_drain().await {
                tracing::error!(group = %self.core.name, "drain: {}", chain(&e));
                self.problem = Some(chain(&e));
            }
            tracing::info!(group = %self.core.name, "guests are no longer served here");
        }
    }

    async fn start_replication(&mut self) {
        let state = self.core.state();
        let (Side::Source(side), Some(known)) = (&mut self.side, state.replicates_to()) else {
            return;
        };
        side.stop_replicator().await;
        let (cycle, digest) = (known.summary.cycle, known.summary.digest);
        match side.group.resolve(cycle, digest).await {
            Ok(resolution) => tracing::debug!(group = %self.core.name, ?resolution, "resolved"),
            Err(e) => {
                self.ask_later(&chain(&e));
                self.ahead.push_back(Event::PeerLost);
                return;
            }
        }
        if let Some(digest) = digest
            && cycle > state.record.cycle()
        {
            // The acknowledgement was lost, the cycle was not.
            let last = Committed { cycle, digest };
            let generation = state.record.generation().id;
            self.ahead
                .push_back(Event::CycleAcknowledged { generation, last });
        }
        self.replicators += 1;
        let work = Work {
            source: Arc::clone(&side.group),
            peer: Arc::clone(&self.context.peer),
            env: Arc::clone(&self.context.env),
            interval: Duration::from_millis(self.core.row().interval_ms),
            generation: state.record.generation().id,
            first_point: cycle == Cycle::NONE,
            number: self.replicators,
            report: self.own.clone(),
        };
        side.replicator = Some((self.replicators, Replicator::start(work)));
    }

    fn drain(&mut self, op: OpId) {
        if let Some(job) = &self.job {
            job.step("sending the last changes");
        }
        let Side::Source(side) = &self.side else {
            return;
        };
        let ordered = side
            .replicator
            .as_ref()
            .is_some_and(|(_, replicator)| replicator.order(Order::Drain { op }).is_ok());
        if !ordered {
            self.cancel(op, "replication is not running");
        }
    }

    /// Gives a planned failover up before anything was handed over.
    fn cancel(&mut self, op: OpId, why: &str) {
        tracing::warn!(group = %self.core.name, "planned failover given up: {why}");
        if let Some(job) = &self.job {
            job.fail(&format!(
                "{why}; nothing was handed over, this site is still the source and goes on as before"
            ));
        }
        self.ahead.push_back(Event::QuiesceCancelled { op });
    }

    async fn replicator_ended(&mut self, number: u64, end: End) {
        if let Side::Source(side) = &mut self.side
            && side.replicator.as_ref().is_some_and(|(n, _)| *n == number)
        {
            side.stop_replicator().await;
        } else {
            return;
        }
        match end {
            End::Stopped => {}
            End::Drained { op, last } => {
                if let Some(job) = &self.job {
                    job.step("handing over");
                }
                let granted = GenId::from_bytes(self.context.env.random_id());
                if let Err(NotDone::Refused(why) | NotDone::Failed(why)) =
                    self.step(Event::Shipped { op, last, granted }).await
                {
                    self.cancel(op, &why);
                    self.step_logged(Event::PeerLost).await;
                }
            }
            End::Failed(why) => {
                tracing::warn!(group = %self.core.name, "replication stopped: {why}");
                if let Role::Quiescing { op, .. } = self.core.state().record.role {
                    self.cancel(op, &why);
                }
                // What the peer has is found out anew; its answer starts replication again.
                self.step_logged(Event::PeerLost).await;
                self.ask_later(&why);
            }
        }
    }

    fn promote(&mut self, through: Cycle) {
        let Side::Replica(side) = &self.side else {
            // A restart opens the replica first; `look_up` comes back to this.
            return;
        };
        self.promoting = true;
        self.exports.clear();
        let replica = side.group.clone();
        let (context, core) = (Arc::clone(&self.context), Arc::clone(&self.core));
        let own = self.own.clone();
        self.context.tasks.spawn_blocking(move || {
            let row = core.row();
            let promoted = replica
                .promote(through)
                .map_err(|e| chain(&e))
                .and_then(|images| {
                    let images = row
                        .disks
                        .iter()
                        .filter_map(|d| images.iter().find(|(id, _)| *id == d.disk))
                        .map(|(_, image)| Arc::clone(image))
                        .collect();
                    SourceSide::with_images(&context, &row, &core.state(), images, Fresh::InStep)
                });
            let _ = own.send(Msg::Promoted(promoted.map(Box::new)));
        });
    }

    async fn promoted(&mut self, result: Result<Box<SourceSide>, String>) {
        self.promoting = false;
        match result {
            Ok(source) => {
                if let Side::Replica(replica) =
                    std::mem::replace(&mut self.side, Side::Source(*source))
                {
                    drop(replica.stop().await);
                }
                self.step_logged(Event::Promoted).await;
            }
            Err(why) => {
                tracing::error!(group = %self.core.name, "the journal cannot be folded in: {why}");
                if let Side::Replica(replica) =
                    std::mem::replace(&mut self.side, Side::Shut(why.clone()))
                {
                    drop(replica.stop().await);
                }
                self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
                self.problem = Some(why);
            }
        }
    }

    /// Binds the open disks to the generation of a forced take-over, before anything is served in it.
    async fn follow_generation(&mut self, next: &GroupState) {
        let generation = next.record.generation().id;
        let Side::Source(side) = &mut self.side else {
            return;
        };
        if side.generation == generation || !wants_source(next) {
            return;
        }
        match side
            .group
            .adopt_generation(generation, next.record.base)
            .await
        {
            Ok(()) => side.generation = generation,
            // Opened anew, the disks are bound to it, and what was not known to be replicated is sent again.
            Err(e) => self.problem = Some(chain(&e)),
        }
    }

    async fn become_replica(&mut self) {
        let side = std::mem::replace(&mut self.side, Side::Shut("handing over".to_owned()));
        match side {
            Side::Source(source) => {
                // Saved or not: the change maps go, for the peer's data is what counts now.
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close after hand-over: {why}");
                }
                if let Err(why) = forget_maps(&self.context, &self.core.row()) {
                    tracing::warn!(group = %self.core.name, "{why}");
                }
            }
            Side::Replica(replica) => drop(replica.stop().await),
            Side::Shut(_) => {}
        }
        self.reopen().await;
    }

    /// Stops cleanly; what is durable stays as it is.
    async fn stop(&mut self) {
        self.exports.clear();
        match std::mem::replace(&mut self.side, Side::Shut("the agent stops".to_owned())) {
            Side::Source(source) => {
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
            }
            Side::Replica(replica) => {
                if let Err(why) = replica.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
            }
            Side::Shut(_) => {}
        }
        self.ended = true;
    }

    /// Ends the group here for good.
    pub(super) async fn forget(&mut self, delete_replica: bool) -> Result<(), String> {
        self.exports.clear();
        let row = self.core.row();
        let was_source = wants_source(&self.core.state());
        let side = std::mem::replace(&mut self.side, Side::Shut("not protected".to_owned()));
        let (context, group) = (Arc::clone(&self.context), self.core.group);
        let removed = match side {
            Side::Replica(replica) => {
                let replica = replica.stop().await;
                let images = if delete_replica {
                    crate::replica::RemoveImages::DeleteOwned
                } else {
                    crate::replica::RemoveImages::Keep
                };
                let kept = replica.clone();
                let removed = tokio::task::spawn_blocking(move || replica.remove(images))
                    .await
                    .map_err(|e| e.to_string())?
                    .map_err(|e| chain(&e));
                if let Err(why) = removed {
                    self.side = Side::Replica(ReplicaSide::start(kept));
                    return Err(why);
                }
                Ok(())
            }
            Side::Source(source) => {
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
                remove_rows(&context, group, was_source.then_some(&row))
            }
            Side::Shut(_) => remove_rows(&context, group, was_source.then_some(&row)),
        };
        removed?;
        self.context.groups.remove(&self.core.name);
        self.ended = true;
        tracing::info!(group = %self.core.name, "protection ended here");
        Ok(())
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

fn remove_rows(
    context: &Context,
    group: sitepair_model::ids::GroupId,
    maps_of: Option<&crate::catalog::GroupRow>,
) -> Result<(), String> {
    context.catalog.remove_group(group).map_err(|e| chain(&e))?;
    maps_of.map_or(Ok(()), |row| forget_maps(context, row))
}
