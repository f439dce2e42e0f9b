//! The link between two agents in one process: it can be cut and healed, breaks at a call that a test names, before
//! or after the other side acted or while it acts, and then may take a site down with it.
//!
//! Delays are turns given to other tasks, not time: the receiving end of a transfer occupies a thread, and tokio's
//! paused clock stands while one does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sitepair_engine::agent::PeerFace;
use sitepair_engine::endpoint::{DataFrame, PeerEndpoint, PeerError, Transfer};
use sitepair_engine::wire::LinkState;
use sitepair_model::ids::{GroupId, OpId, UnixMillis};
use sitepair_model::peer::{
    Committed, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin, TransferCommit,
};
use sitepair_model::retention::Retention;
use tokio::sync::watch;

use crate::env::Random;
use crate::mortal::Mortal;

/// What one agent asks of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Hello,
    Offer,
    Settle,
    Withdraw,
    Grant,
    Begin,
    Frame,
    Checkpoint,
    Commit,
}

impl Call {
    pub(crate) const ALL: [Self; 8] = [
        Self::Hello,
        Self::Offer,
        Self::Withdraw,
        Self::Grant,
        Self::Begin,
        Self::Frame,
        Self::Checkpoint,
        Self::Commit,
    ];
}

/// Which part of a call breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The other side never hears of it.
    Before,
    /// Whoever acts for it is dropped after so many turns.
    Midway(u64),
    /// The other side has acted, its answer is lost.
    After,
}

/// What happens besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// The call fails, the link holds.
    Nothing,
    /// The link is cut.
    Cut,
    /// A site dies.
    Kill(usize),
}

/// A failure to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trap {
    pub(crate) call: Call,
    /// Such calls that still succeed.
    pub(crate) skip: u64,
    pub(crate) when: When,
    pub(crate) strike: Strike,
}

/// The link.
pub(crate) struct Link {
    inner: Mutex<Inner>,
    /// Raised by everything that breaks calls under way.
    epoch: watch::Sender<u64>,
}

struct Inner {
    up: bool,
    sites: [End; 2],
    traps: Vec<Trap>,
    /// Raised when the traps are cleared: those that were sprung and have not gone off never do.
    round: u64,
    random: Random,
    hello_takes: Duration,
}

#[derive(Default)]
struct End {
    life: u64,
    face: Option<Arc<PeerFace>>,
    mortal: Option<Arc<Mortal>>,
    state: Option<watch::Sender<LinkState>>,
}

impl Link {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            up: true,
            sites: [End::default(), End::default()],
            traps: Vec::new(),
            round: 0,
            random: Random::new(seed),
            hello_takes: Duration::ZERO,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            epoch: watch::Sender::new(0),
        })
    }

    /// Begins a life of a site: its way to the other one, and what it is told of the link.
    pub(crate) fn attach(
        self: &Arc<Self>,
        site: usize,
        mortal: Arc<Mortal>,
    ) -> (Arc<LinkEnd>, watch::Receiver<LinkState>) {
        let mut inner = self.inner.lock().unwrap();
        let (state, told) = watch::channel(down());
        let end = &mut inner.sites[site];
        end.life += 1;
        end.mortal = Some(mortal);
        end.state = Some(state);
        let life = end.life;
        let link = Arc::clone(self);
        (Arc::new(LinkEnd { link, site, life }), told)
    }

    /// The site answers from now on.
    pub(crate) fn open(&self, site: usize, face: PeerFace) {
        self.inner.lock().unwrap().sites[site].face = Some(Arc::new(face));
        self.tell();
    }

    /// The site is gone.
    pub(crate) fn detach(&self, site: usize) {
        let mut inner = self.inner.lock().unwrap();
        let end = &mut inner.sites[site];
        end.life += 1;
        (end.face, end.mortal, end.state) = (None, None, None);
        drop(inner);
        self.broken();
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.inner.lock().unwrap().up = up;
        if up { self.tell() } else { self.broken() }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.inner.lock().unwrap().up
    }

    pub(crate) fn set_trap(&self, trap: Trap) {
        self.inner.lock().unwrap().traps.push(trap);
    }

    /// How long each Hello is on its way. Other calls take no time, see the module.
    pub(crate) fn set_hello_takes(&self, time: Duration) {
        self.inner.lock().unwrap().hello_takes = time;
    }

    pub(crate) fn clear_traps(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.traps.clear();
        inner.round += 1;
    }

    fn broken(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        self.tell();
    }

    fn tell(&self) {
        let inner = self.inner.lock().unwrap();
        let whole = inner.up && inner.sites.iter().all(|end| end.face.is_some());
        for end in &inner.sites {
            if let Some(state) = &end.state {
                state.send_if_modified(|state| {
                    let is_up = matches!(state, LinkState::Up { .. });
                    *state = if whole { up() } else { down() };
                    is_up != whole
                });
            }
        }
    }

    fn strike(&self, strike: Strike, round: u64) {
        if self.inner.lock().unwrap().round != round {
            return;
        }
        match strike {
            Strike::Nothing => {}
            Strike::Cut => self.set_up(false),
            Strike::Kill(site) => {
                let mortal = self.inner.lock().unwrap().sites[site].mortal.clone();
                if let Some(mortal) = mortal {
                    mortal.kill();
                    self.detach(site);
                }
            }
        }
    }
}

fn up() -> LinkState {
    LinkState::Up {
        since: UnixMillis(0),
    }
}

fn down() -> LinkState {
    LinkState::Down {
        since: UnixMillis(0),
        last_error: "cut".to_owned(),
        attempts: 1,
        next_try: UnixMillis(0),
    }
}

fn broke(why: &str) -> PeerError {
    PeerError::Link {
        why: why.to_owned(),
    }
}

/// One life's way to the other site.
pub(crate) struct LinkEnd {
    link: Arc<Link>,
    site: usize,
    life: u64,
}

/// A call that was let through.
struct Passage {
    face: Arc<PeerFace>,
    epoch: u64,
    turns: u64,
    trap: Option<Trap>,
    round: u64,
}

impl LinkEnd {
    fn pass(&self, call: Call) -> Result<Passage, PeerError> {
        let mut inner = self.link.inner.lock().unwrap();
        if inner.sites[self.site].life != self.life {
            return Err(broke("the caller is dead"));
        }
        let face = inner.sites[1 - self.site].face.clone();
        let Some(face) = face.filter(|_| inner.up) else {
            return Err(broke("the link is cut"));
        };
        let mut sprung = None;
        inner.traps.retain_mut(|trap| {
            if trap.call != call || sprung.is_some() {
                return true;
            }
            if trap.skip > 0 {
                trap.skip -= 1;
                return true;
            }
            sprung = Some(*trap);
            false
        });
        let turns = inner.random.below(4);
        Ok(Passage {
            face,
            epoch: *self.link.epoch.borrow(),
            turns,
            trap: sprung,
            round: inner.round,
        })
    }

    /// Makes a call as the link lets it. Whatever ends it early drops `act`, as a server drops a
    /// request whose client is gone.
    async fn call<T, F>(
        &self,
        call: Call,
        since: Option<u64>,
        act: impl FnOnce(Arc<PeerFace>) -> F,
    ) -> Result<T, PeerError>
    where
        F: Future<Output = Result<T, PeerError>>,
    {
        let passage = self.pass(call)?;
        let epoch = since.unwrap_or(passage.epoch);
        if *self.link.epoch.borrow() != epoch {
            return Err(broke("the link broke"));
        }
        let mut changes = self.link.epoch.subscribe();
        take_turns(passage.turns).await;
        let (when, strike) = passage
            .trap
            .map_or((None, Strike::Nothing), |t| (Some(t.when), t.strike));
        if when == Some(When::Before) {
            self.link.strike(strike, passage.round);
            return Err(broke("the call was lost"));
        }
        let patience = async {
            match when {
                Some(When::Midway(turns)) => take_turns(turns).await,
                _ => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            _ = changes.wait_for(|now| *now != epoch) => return Err(broke("the link broke")),
            answer = act(Arc::clone(&passage.face)) => answer,
            () = patience => {
                self.link.strike(strike, passage.round);
                return Err(broke("the call was given up"));
            }
        };
        if when.is_some() {
            self.link.strike(strike, passage.round);
            return Err(broke("the answer was lost"));
        }
        answer
    }
}

async fn take_turns(turns: u64) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl PeerEndpoint for LinkEnd {
    async fn hello(&self, hello: Hello) -> Result<HelloAnswer, PeerError> {
        let takes = self.link.inner.lock().unwrap().hello_takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        self.call(
            Call::Hello,
            None,
            |face| async move { face.hello(hello).await },
        )
        .await
    }

    async fn offer(&self, offer: GroupOffer) -> Result<(), PeerError> {
        self.call(
            Call::Offer,
            None,
            |face| async move { face.offer(offer).await },
        )
        .await
    }

    async fn settle(&self, group: GroupId, retention: Retention) -> Result<Retention, PeerError> {
        self.call(Call::Settle, None, |face| async move {
            face.settle(group, retention).await
        })
        .await
    }

    async fn withdraw(&self, group: GroupId, delete_replica: bool) -> Result<(), PeerError> {
        self.call(Call::Withdraw, None, |face| async move {
            face.withdraw(group, delete_replica).await
        })
        .await
    }

    async fn grant(&self, grant: Grant) -> Result<OpId, PeerError> {
        self.call(
            Call::Grant,
            None,
            |face| async move { face.grant(grant).await },
        )
        .await
    }

    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        let epoch = *self.link.epoch.borrow();
        let inner = self
            .call(Call::Begin, Some(epoch), |face| async move {
                face.begin(begin).await
            })
            .await?;
        let end = Self {
            link: Arc::clone(&self.link),
            site: self.site,
            life: self.life,
        };
        Ok(Box::new(LossyTransfer { inner, end, epoch }))
    }
}

struct LossyTransfer {
    inner: Box<dyn Transfer>,
    end: LinkEnd,
    epoch: u64,
}

#[async_trait]
impl Transfer for LossyTransfer {
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError> {
        let Self { inner, end, epoch } = self;
        end.call(Call::Frame, Some(*epoch), |_| inner.send(frame))
            .await
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        let Self { inner, end, epoch } = self;
        end.call(Call::Checkpoint, Some(*epoch), |_| inner.checkpoint())
            .await
    }

    async fn commit(self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        let Self { inner, end, epoch } = *self;
        end.call(Call::Commit, Some(epoch), |_| inner.commit(commit))
            .await
    }
}
