//! What can happen next, within limits, and what must hold.

use std::sync::atomic::{AtomicU32, Ordering};

use sitepair_model::group::{Event, FailOver, ForceOpen, PeerStatement, Role, RollBack, Signature};
use sitepair_model::ids::{Cycle, UnixMillis};
use stateright::{Model, Property};

use crate::machine::{GRACE_MS, Machine};
use crate::mutation::Mutation;
use crate::world::{BLOCKS, Site, World};

/// How far the checker goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) writes: u8,
    pub(crate) generations: u8,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) acts: u8,
    /// Times that a link breaks between sites that both run.
    pub(crate) breaks: u8,
    /// Messages on their way at a time.
    pub(crate) mail: usize,
    /// Messages are repeated.
    pub(crate) repeats: bool,
    /// Statements may be false.
    pub(crate) lies: bool,
    /// Which acts operators know of.
    pub(crate) kinds: &'static [Act],
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    Planned,
    Cancel,
    FailOver,
    FailOverOlder,
    /// Signed: the peer's agent is stopped.
    ForceFailOver,
    /// Signed: the peer's host is off.
    ForceFailOverHostOff,
    Commit,
    RollBack,
    ForceRollBack,
    ForceOpen,
    Resync,
    Resolve,
    Release,
    GiveUp,
    TestBegin,
    TestEnd,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    Deliver(usize),
    Repeat(usize),
    Drop(usize),
    /// A transfer breaks off after its beginning.
    Tear(usize),
    Write(usize, usize),
    Cut(usize),
    Ask(usize),
    Lost(usize),
    Crash(usize),
    Start(usize),
    /// The host was off: another boot.
    Reboot(usize),
    Wait,
    Act(usize, Act),
}

/// What was reached in any state.
#[derive(Debug, Default)]
pub(crate) struct Seen(AtomicU32);

/// Everything that must be reached somewhere.
pub(crate) const MILESTONES: [&str; 17] = [
    "planned failover",
    "reversed",
    "fenced failover",
    "forced failover",
    "older point on trial",
    "another point",
    "committed",
    "rolled back",
    "released",
    "forced open",
    "fenced site forced",
    "resync of a fenced site",
    "resync of a replica",
    "diverged",
    "resolved",
    "reopened in the grace",
    "tested",
];

impl Seen {
    pub(crate) fn note(&self, what: &str) {
        let bit = MILESTONES.iter().position(|m| *m == what).unwrap();
        self.0.fetch_or(1 << bit, Ordering::Relaxed);
    }

    pub(crate) fn has(&self, what: &str) -> bool {
        let bit = MILESTONES.iter().position(|m| *m == what).unwrap();
        self.0.load(Ordering::Relaxed) & (1 << bit) != 0
    }
}

/// Two sites, from some states on.
pub(crate) struct TwoSites {
    pub(crate) from: Vec<World>,
    pub(crate) limits: Limits,
    pub(crate) broken: Option<Mutation>,
    pub(crate) seen: Seen,
}

impl TwoSites {
    pub(crate) fn new(from: Vec<World>, limits: Limits, broken: Option<Mutation>) -> Self {
        Self {
            from,
            limits,
            broken,
            seen: Seen::default(),
        }
    }

    pub(crate) fn apply(&self, world: &World, what: Move) -> World {
        let mut machine = Machine {
            world: world.clone(),
            limits: &self.limits,
            broken: self.broken,
            seen: &self.seen,
        };
        machine.happen(what);
        machine.world
    }

    pub(crate) fn can_cut(&self, world: &World, at: usize) -> bool {
        let machine = Machine {
            world: world.clone(),
            limits: &self.limits,
            broken: self.broken,
            seen: &self.seen,
        };
        let site = &world.sites[at];
        let wanted = |behind: bool| behind || site.map != 0 || site.draining.is_some();
        world.cuts < self.limits.cuts
            && site.sealed.is_none()
            && machine
                .receiver(at)
                .is_some_and(|(state, peer)| wanted(peer.1 != state.record.lineage.current))
    }

    fn moves_of(&self, world: &World, at: usize, moves: &mut Vec<Move>) {
        let limits = &self.limits;
        let site = &world.sites[at];
        let peer_down = world.sites[1 - at].session.is_none();
        let Some(state) = site.state() else {
            moves.push(Move::Start(at));
            moves.push(Move::Reboot(at));
            if !site.long_down {
                moves.push(Move::Wait);
            }
            return;
        };
        if site.exported && world.writes < limits.writes {
            moves.extend((0..BLOCKS).map(|block| Move::Write(at, block)));
        }
        if self.can_cut(world, at) {
            moves.push(Move::Cut(at));
        }
        if (site.ask_due || state.wants_answer()) && state.session.asked.is_none() {
            moves.push(Move::Ask(at));
        }
        if (state.session.peer.is_some() || state.session.asked.is_some())
            && (peer_down || world.breaks < limits.breaks)
        {
            moves.push(Move::Lost(at));
        }
        if world.crashes < limits.crashes {
            moves.push(Move::Crash(at));
        }
        if world.acts < limits.acts {
            moves.extend(limits.kinds.iter().map(|act| Move::Act(at, *act)));
        }
    }
}

impl Machine<'_> {
    fn happen(&mut self, what: Move) {
        match what {
            Move::Deliver(n) => {
                let (at, mail) = self.world.network.remove(n);
                self.deliver(at, mail, true);
            }
            Move::Repeat(n) => {
                let (at, mail) = self.world.network[n].clone();
                self.deliver(at, mail, true);
            }
            Move::Tear(n) => {
                let (at, mail) = self.world.network.remove(n);
                self.deliver(at, mail, false);
            }
            Move::Drop(n) => drop(self.world.network.remove(n)),
            Move::Write(at, block) => {
                self.world.writes += 1;
                self.world.touched |= 1 << block;
                let number = self.world.writes;
                let site = &mut self.world.sites[at];
                site.map |= 1 << block;
                site.image[block] = number;
            }
            Move::Cut(at) => self.cut(at),
            Move::Ask(at) => {
                let request = self.world.op();
                self.feed(at, &Event::AskPeer { request });
            }
            Move::Lost(at) => {
                if self.world.sites[1 - at].session.is_some() {
                    self.world.breaks += 1;
                }
                self.feed(at, &Event::PeerLost);
            }
            Move::Crash(at) => {
                self.world.crashes += 1;
                self.crash(at);
            }
            Move::Start(at) => self.restart(at),
            Move::Reboot(at) => {
                self.world.reboot(at);
                self.restart(at);
            }
            Move::Wait => {
                for site in &mut self.world.sites {
                    site.long_down = site.session.is_none();
                }
            }
            Move::Act(at, act) => {
                self.world.acts += 1;
                self.operate(at, act);
            }
        }
    }

    fn signature(&mut self, at: usize, host_off: bool) -> Signature {
        let long = self.world.sites[1 - at].long_down || self.is(Mutation::SilenceUnchecked);
        let peer = if host_off {
            PeerStatement::HostOff
        } else {
            PeerStatement::AgentStopped {
                // The link was well until the peer died, so it has been silent for as long.
                silent_for_ms: Some(if long { GRACE_MS + 30_000 } else { 1 }),
                alive_for_ms: u64::MAX,
                grace_ms: GRACE_MS,
            }
        };
        Signature {
            who: "ann".to_owned(),
            why: "flood".to_owned(),
            at: UnixMillis(0),
            typed_name_matches: true,
            peer,
        }
    }

    /// Signs, if that is honest or may be otherwise. An agent that can be reached refuses by itself, so
    /// signing then is no lie that it could not have known of.
    fn sign(&mut self, at: usize, host_off: bool) -> Option<Signature> {
        let runs = self.world.sites[1 - at].session.is_some();
        let reachable = self.world.sites[at]
            .session
            .as_ref()
            .is_some_and(|session| session.peer.is_some());
        if runs && !reachable && !self.limits.lies {
            return None;
        }
        if runs && !reachable {
            self.world.lied = true;
        }
        if reachable && self.is(Mutation::ReachableUnchecked) {
            self.feed(at, &Event::PeerLost);
        }
        if !runs && host_off {
            self.world.reboot(1 - at);
        }
        let mut signature = self.signature(at, host_off);
        if runs && !host_off {
            signature.peer = PeerStatement::AgentStopped {
                silent_for_ms: Some(GRACE_MS + 30_000),
                alive_for_ms: u64::MAX,
                grace_ms: GRACE_MS,
            };
        }
        Some(signature)
    }

    fn operate(&mut self, at: usize, act: Act) {
        if matches!(act, Act::TestBegin | Act::TestEnd) {
            return self.test(at, act);
        }
        let Some(event) = self.order(at, act) else {
            return;
        };
        let lineage = self.world.sites[at].record.lineage.clone();
        let done = self.feed(at, &event).is_some();
        if act == Act::Resolve && done {
            self.seen.note("resolved");
        }
        let forced = matches!(
            act,
            Act::ForceOpen | Act::ForceFailOver | Act::ForceFailOverHostOff
        );
        if done && forced && self.is(Mutation::ForcedKeepsGeneration) {
            let record = &mut self.world.sites[at].record;
            record.lineage = lineage;
            record.role = Role::Source;
        }
    }

    /// What an operator asks for; `None` when nobody would now.
    fn order(&mut self, at: usize, act: Act) -> Option<Event> {
        let op = self.world.op();
        let event = match act {
            Act::Planned => Event::PlannedFailover {
                op,
                writers: 0,
                disconnect: false,
                reverse: true,
            },
            Act::Cancel => match self.world.sites[at].record.role {
                Role::Quiescing { op, .. } => Event::QuiesceCancelled { op },
                _ => return None,
            },
            Act::FailOver | Act::FailOverOlder => self.fail_over(at, act, None),
            Act::ForceFailOver | Act::ForceFailOverHostOff => {
                let signed = self.sign(at, act == Act::ForceFailOverHostOff)?;
                self.fail_over(at, act, Some(signed))
            }
            Act::Commit => Event::CommitFailover { op },
            Act::RollBack => Event::RollBack(RollBack {
                op,
                writers: 0,
                disconnect: false,
                forced: None,
            }),
            Act::ForceRollBack => {
                let signed = self.sign(at, false)?;
                Event::RollBack(RollBack {
                    op,
                    writers: 0,
                    disconnect: false,
                    forced: Some(signed),
                })
            }
            Act::ForceOpen => {
                let signature = self.sign(at, false)?;
                Event::ForceOpen(ForceOpen {
                    op,
                    signature,
                    new: self.world.generation(),
                })
            }
            Act::Resync => Event::Resync { op },
            Act::Resolve => Event::Resolve {
                op,
                new: self.world.generation(),
            },
            Act::Release => Event::Release {
                op,
                new: self.world.generation(),
            },
            Act::GiveUp => match self.world.sites[at]
                .session
                .as_ref()
                .and_then(|s| s.pending)
            {
                Some(pending) => Event::GiveUp { op: pending.op() },
                None => return None,
            },
            Act::TestBegin | Act::TestEnd => return None,
        };
        Some(event)
    }

    fn fail_over(&mut self, at: usize, act: Act, forced: Option<Signature>) -> Event {
        let site = &self.world.sites[at];
        let oldest = site.points.first().map(|p| Cycle(p.0));
        let point = (act == Act::FailOverOlder).then_some(oldest).flatten();
        Event::FailOver(FailOver {
            op: self.world.op(),
            point,
            new: self.world.generation(),
            commit_at: None,
            writers: 0,
            disconnect: false,
            forced,
        })
    }

    /// Row 22: touches no role; the point is pinned.
    fn test(&mut self, at: usize, act: Act) {
        if act == Act::TestEnd {
            self.world.sites[at].pin = None;
            return;
        }
        let serves = self.is(Mutation::TestServesGuest);
        let site = &mut self.world.sites[at];
        if site.record.role == Role::Replica && site.session.is_some() {
            site.pin = site.points.first().copied();
            site.exported |= serves;
            self.seen.note("tested");
        }
    }
}

impl Model for TwoSites {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        self.from.clone()
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        if world.fault.is_some() {
            return;
        }
        for at in 0..2 {
            self.moves_of(world, at, moves);
        }
        for n in 0..world.network.len() {
            moves.push(Move::Deliver(n));
            // What is never delivered is lost; it is taken away where its place is needed.
            if world.network.len() == self.limits.mail {
                moves.push(Move::Drop(n));
            }
            if self.limits.repeats {
                moves.push(Move::Repeat(n));
            }
            if matches!(world.network[n].1, crate::world::Mail::Cycle { .. }) {
                moves.push(Move::Tear(n));
            }
        }
    }

    fn next_state(&self, world: &World, what: Move) -> Option<World> {
        let next = self.apply(world, what);
        // An act that was refused is not worth a state of its own, nor an act.
        let acts = World {
            acts: world.acts,
            generations: world.generations,
            ..next.clone()
        };
        (acts != *world && next.generations <= self.limits.generations).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1: one writer", |_, w: &World| {
                w.lied || !w.sites.iter().all(|site| site.exported)
            }),
            Property::always("I5: no generation twice", |_, w: &World| {
                let source = |site: &Site| {
                    matches!(
                        site.record.role,
                        Role::Source | Role::Trial(_) | Role::Quiescing { .. }
                    )
                };
                let [a, b] = &w.sites;
                !(source(a) && source(b)) || a.record.lineage.current != b.record.lineage.current
            }),
            Property::always("I6: a whole point", |_, w: &World| {
                w.sites.iter().all(|site| match site.record.role {
                    Role::Replica => site.newest().is_some(),
                    Role::Trial(trial) => {
                        let newest = site.record.cycle().0;
                        site.point(trial.point.0).is_some() && site.point(newest).is_some()
                    }
                    _ => !site.torn,
                })
            }),
            Property::always("I10: pinned points stay", |_, w: &World| {
                let kept = |site: &Site| site.pin.is_none_or(|pin| site.points.contains(&pin));
                w.sites.iter().all(kept)
            }),
            Property::always("no step breaks a rule", |_, w: &World| w.fault.is_none()),
        ]
    }
}
