//! What an agent does with a decision: before, record, state, after; and what its data do meanwhile.

use sitepair_model::group::{
    Access, Effect, Event, GroupState, Promotion, ReplicateFrom, Restart, Role, Transition,
    Trouble, step,
};
use sitepair_model::ids::{Cycle, GenId, Nonce};
use sitepair_model::peer::{Committed, TransferBegin, TransferKind};

use crate::model::{Limits, Seen};
use crate::mutation::Mutation;
use crate::world::{Disk, Mail, Sealed, Site, World, cut_of, difference};

/// The longest a dead agent may reopen alone.
pub(crate) const GRACE_MS: u64 = 60_000;

/// One step of the world under way.
pub(crate) struct Machine<'a> {
    pub(crate) world: World,
    pub(crate) limits: &'a Limits,
    pub(crate) broken: Option<Mutation>,
    pub(crate) seen: &'a Seen,
}

impl Machine<'_> {
    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.broken == Some(mutation)
    }

    pub(crate) fn site(&mut self, at: usize) -> &mut Site {
        &mut self.world.sites[at]
    }

    pub(crate) fn send(&mut self, from: usize, mail: Mail) {
        let message = (1 - from, mail);
        // What finds no room is lost, as anything may be.
        if self.world.network.len() < self.limits.mail && !self.world.network.contains(&message) {
            self.world.network.push(message);
        }
    }

    /// Feeds an event; `None` when it was refused or nobody runs.
    pub(crate) fn feed(&mut self, at: usize, event: &Event) -> Option<Vec<Effect>> {
        let state = self.world.sites[at].state()?;
        let t = step(&state, event).ok()?;
        if !World::answers_again(&t.next, event, self.broken) {
            self.world.fail("I8");
        }
        let after = t.after.clone();
        self.carry_out(at, &state, t);
        Some(after)
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let nonce = self.world.nonce();
        let everything = self.is(Mutation::FullCopyOnRestart);
        let in_memory = self.is(Mutation::DemotedInMemory);
        let unasked = self.is(Mutation::ReopensUnasked);
        let site = self.site(at);
        let restart = Restart {
            nonce,
            boot: [site.boot; 16],
            dead_for_ms: Some(if site.long_down { GRACE_MS + 1 } else { 1 }),
            grace_ms: GRACE_MS,
        };
        site.long_down = false;
        if everything {
            site.map = 3;
        }
        if in_memory && matches!(site.record.role, Role::HandedOver { .. }) {
            site.record.role = Role::Source;
        }
        let mut t = GroupState::restarted(site.record.clone(), &restart);
        let may_open = matches!(t.next.record.role, Role::Source | Role::Trial(_));
        if unasked && may_open && t.next.session.access == Access::Closed {
            t.next.session.access = Access::Open;
            t.after.push(Effect::OpenExports);
        }
        if t.next.session.access == Access::Open {
            self.seen.note("reopened in the grace");
        }
        let closed = GroupState {
            record: t.next.record.clone(),
            session: t.next.session.clone(),
        };
        self.carry_out(at, &closed, t);
    }

    pub(crate) fn crash(&mut self, at: usize) {
        self.fold(at);
        let site = self.site(at);
        site.session = None;
        site.exported = false;
        site.draining = None;
        site.ask_due = false;
        site.long_down = false;
    }

    /// Blocks that were sent and not acknowledged return to the map (R5).
    fn fold(&mut self, at: usize) {
        let keeps = !self.is(Mutation::ShippedNotFolded);
        let site = self.site(at);
        if let Some(sealed) = site.sealed.take()
            && keeps
        {
            site.map |= sealed.mask;
        }
    }

    fn carry_out(&mut self, at: usize, was: &GroupState, t: Transition) {
        let image = self.site(at).image;
        let mut ahead = Vec::new();
        for effect in t.before {
            self.act(at, &effect, &mut ahead);
        }
        self.check_forks(at, was, &t.next, image);
        let site = self.site(at);
        site.record = t.next.record.clone();
        // Only that it rises counts, and `step` sees to that.
        site.record.seq = 1;
        site.session = Some(t.next.session.clone());
        self.milestones(was, &t.next);
        if t.next.record.role == Role::Replica && !matches!(was.record.role, Role::Replica) {
            self.site(at).overlay = None;
            if matches!(was.record.role, Role::Trial(_)) {
                self.site(at).map = 0;
            }
        }
        for effect in t.after {
            self.act(at, &effect, &mut ahead);
        }
        for event in ahead {
            self.feed(at, &event);
        }
    }

    /// I4: what a site alone had is a fork before the record says that it lost.
    fn check_forks(&mut self, at: usize, was: &GroupState, next: &GroupState, image: Disk) {
        let left_trial = match (&was.record.role, &next.record.role) {
            (Role::Trial(_), Role::Replica) => true,
            (Role::Trial(_), Role::Trial(_)) => {
                was.record.lineage.current != next.record.lineage.current
                    && next
                        .record
                        .lineage
                        .superseded
                        .contains(&was.record.lineage.current)
            }
            _ => false,
        };
        let kept = self.site(at).forks.iter().any(|fork| fork.1 == image);
        let listed = !next.record.forks.is_empty();
        if left_trial && !(kept && listed) {
            self.world.fail("I4");
        }
    }

    fn milestones(&self, was: &GroupState, next: &GroupState) {
        let (from, to) = (&was.record.role, &next.record.role);
        let forced = next.record.forced.len() > was.record.forced.len();
        let older = |point: Cycle| point < next.record.cycle();
        match (from, to) {
            (Role::Replica, Role::Source) => self.seen.note("planned failover"),
            (Role::Replica, Role::Trial(trial)) if older(trial.point) => {
                self.seen.note("older point on trial");
            }
            (Role::Replica, Role::Trial(_)) if forced => self.seen.note("forced failover"),
            (Role::Replica, Role::Trial(_)) => self.seen.note("fenced failover"),
            (Role::Trial(_), Role::Trial(_)) if next.record.lineage != was.record.lineage => {
                self.seen.note("another point");
            }
            (Role::Trial(_), Role::Source) => self.seen.note("committed"),
            (Role::Trial(_), Role::Replica) => self.seen.note("rolled back"),
            (Role::Fenced { .. }, Role::Source) if forced => self.seen.note("fenced site forced"),
            (Role::Fenced { .. }, Role::Source) => self.seen.note("released"),
            (Role::Source, Role::Source) if forced => self.seen.note("forced open"),
            (Role::Fenced { .. }, Role::Replica) => self.seen.note("resync of a fenced site"),
            (Role::Replica, Role::Replica) if next.record.lineage != was.record.lineage => {
                self.seen.note("resync of a replica");
            }
            (Role::HandedOver { .. }, Role::Replica) => self.seen.note("reversed"),
            _ => {}
        }
        if next.session.trouble == Some(Trouble::Diverged) {
            self.seen.note("diverged");
        }
    }

    fn act(&mut self, at: usize, effect: &Effect, ahead: &mut Vec<Event>) {
        match effect {
            Effect::CloseExports { .. } => {
                if !self.is(Mutation::FencedWhileServing) {
                    self.site(at).exported = false;
                }
            }
            Effect::OpenExports => self.site(at).exported = true,
            Effect::StopReplication => {
                self.fold(at);
                self.site(at).draining = None;
            }
            Effect::StartReplication(from) => self.start_replication(at, *from, ahead),
            Effect::DrainAndShip { op } => self.site(at).draining = Some(*op),
            Effect::AskPeer => self.site(at).ask_due = true,
            Effect::SendHello(hello) => {
                self.site(at).ask_due = false;
                self.send(at, Mail::Hello(hello.clone()));
            }
            Effect::AnswerHello(answer) => self.send(at, Mail::HelloAnswer(answer.clone())),
            Effect::SendGrant(grant) => self.send(at, Mail::Grant(grant.clone())),
            Effect::AnswerGrant { request } => self.send(at, Mail::GrantAnswer(*request)),
            Effect::SendFence(request) => self.send(at, Mail::Fence(request.clone())),
            Effect::AnswerFence(answer) => self.send(at, Mail::FenceAnswer(*answer)),
            Effect::SendRelease(request) => self.send(at, Mail::Release(request.clone())),
            Effect::AnswerRelease(answer) => self.send(at, Mail::ReleaseAnswer(*answer)),
            Effect::Promote(promotion) => {
                self.promote(at, *promotion);
                ahead.push(Event::Promoted);
            }
            Effect::OpenOverlay { point, generation } => {
                self.open_overlay(at, point.0, *generation);
            }
            Effect::KeepFork(fork) => {
                if !self.is(Mutation::NoFork) {
                    let site = self.site(at);
                    let kept = (fork.generation, site.image);
                    if !site.forks.contains(&kept) {
                        site.forks.push(kept);
                    }
                }
            }
            Effect::BecomeReplica { at: cut } => self.become_replica(at, *cut),
            Effect::AcceptTransfer
            | Effect::Acknowledge(_)
            | Effect::OfferGroup
            | Effect::DropFork(_)
            | Effect::Alarm(_)
            | Effect::Forget => {}
        }
    }

    fn start_replication(&mut self, at: usize, from: ReplicateFrom, ahead: &mut Vec<Event>) {
        let Some(state) = self.world.sites[at].state() else {
            return;
        };
        let (ReplicateFrom::Cycle(cycle), Some(peer)) = (from, &state.session.peer) else {
            return;
        };
        if let Some(digest) = peer.summary.digest
            && cycle > state.record.cycle()
        {
            // The acknowledgement was lost, the cycle was not.
            ahead.push(Event::CycleAcknowledged {
                generation: state.record.lineage.current,
                last: Committed { cycle, digest },
            });
        }
    }

    fn promote(&mut self, at: usize, promotion: Promotion) {
        let pins = !self.is(Mutation::PinsIgnored);
        let site = self.site(at);
        if let Promotion::BeforeServing(through) = promotion {
            if let Some(disk) = site.point(through.0) {
                site.image = disk;
            }
            site.map = 0;
        }
        site.last_cut = site.last_cut.max(site.record.cycle().0);
        site.overlay = None;
        site.drop_points(pins);
    }

    fn open_overlay(&mut self, at: usize, point: u64, generation: GenId) {
        let unmarked = self.is(Mutation::OlderPointUnmarked);
        let dropped = self.is(Mutation::PointsDroppedOnTrial);
        let site = self.site(at);
        if site.overlay != Some(generation) {
            let newest = site.record.cycle().0;
            let (Some(below), Some(newest)) = (site.point(point), site.point(newest)) else {
                return self.world.fail("I6");
            };
            site.overlay = Some(generation);
            site.image = below;
            site.map = if unmarked {
                0
            } else {
                difference(below, newest)
            };
        }
        if dropped {
            site.points.retain(|p| p.0 == point);
        }
    }

    fn become_replica(&mut self, at: usize, cut: Committed) {
        let site = self.site(at);
        let matches = cut_of(cut.cycle.0, site.image) == cut;
        let image = site.image;
        site.drop_points(true);
        site.points.push((cut.cycle.0, image));
        site.map = 0;
        if !matches {
            self.world.fail("I3");
        }
    }

    /// The source: cuts, and sends what the peer may not have.
    pub(crate) fn cut(&mut self, at: usize) {
        let Some((state, peer)) = self.receiver(at) else {
            return;
        };
        let behind = peer.1 != state.record.lineage.current;
        let theirs = if behind && !self.is(Mutation::OwnMapOnly) {
            self.world.sites[1 - at].map
        } else {
            0
        };
        let forgets = self.is(Mutation::ClearedOnSend);
        let touched = self.world.touched;
        let site = self.site(at);
        site.map |= theirs;
        site.last_cut = site.last_cut.max(site.record.cycle().0).max(peer.2.0) + 1;
        let (to, mask, disk) = (Cycle(site.last_cut), site.map, site.image);
        site.map = 0;
        site.sealed = (!forgets).then_some(Sealed { cycle: to.0, mask });
        if mask & !touched != 0 {
            self.world.fail("I7");
        }
        let kind = if behind {
            TransferKind::Resync {
                over: peer.1,
                from: peer.2,
                to,
            }
        } else {
            TransferKind::Cycle { from: peer.2, to }
        };
        let begin = TransferBegin {
            group: state.record.group,
            generation: state.record.lineage.current,
            kind,
        };
        self.world.cuts += 1;
        let mail = Mail::Cycle {
            begin,
            sender: state.session.nonce,
            mask,
            disk,
        };
        self.send(at, mail);
    }

    /// Whom a source sends to: its life, its generation, its last cycle.
    pub(crate) fn receiver(&self, at: usize) -> Option<(GroupState, (Nonce, GenId, Cycle))> {
        let state = self.world.sites[at].state()?;
        let peer = state.replicates_to()?;
        let known = (peer.nonce, peer.summary.generation.id, peer.summary.cycle);
        Some((state, known))
    }
}
