//! What a message does where it arrives, and the rules that one arrival can break.

use sitepair_model::group::{Effect, Event, Pending, Role, Trouble};
use sitepair_model::ids::{Cycle, Nonce};
use sitepair_model::peer::{
    Confirmation, Grant, HelloAnswer, RoleName, TransferBegin, TransferKind,
};

use crate::machine::Machine;
use crate::mutation::Mutation;
use crate::world::{Disk, Mail, cut_of, patched};

impl Machine<'_> {
    /// The receiver: all of a transfer, or only its beginning.
    fn transfer(&mut self, at: usize, mail: &Mail, whole: bool) {
        let Mail::Cycle {
            begin,
            sender,
            mask,
            disk,
        } = mail
        else {
            return;
        };
        let mut begin = begin.clone();
        let resync = matches!(begin.kind, TransferKind::Resync { .. });
        if self.is(Mutation::FramesUnbound) && !resync {
            let record = &self.world.sites[at].record;
            begin.generation = record.lineage.current;
            if let TransferKind::Cycle { from, to } = &mut begin.kind {
                *from = record.cycle();
                *to = (*to).max(from.next());
            }
        }
        let event = Event::TransferAsked(begin.clone());
        let Some(after) = self.feed(at, &event) else {
            return;
        };
        self.acknowledge(at, &after, *sender, &begin);
        if !after.contains(&Effect::AcceptTransfer) {
            return;
        }
        let (TransferKind::Cycle { to, .. } | TransferKind::Resync { to, .. }) = begin.kind else {
            return;
        };
        let in_place = resync && self.is(Mutation::ResyncInPlace);
        if !whole {
            self.site(at).torn |= in_place;
            return;
        }
        if let Some(after) = self.commit(at, &begin, to, (*mask, *disk)) {
            self.acknowledge(at, &after, *sender, &begin);
        }
    }

    /// Lays the blocks over what is here, and commits them.
    fn commit(
        &mut self,
        at: usize,
        begin: &TransferBegin,
        to: Cycle,
        (mask, disk): (u8, Disk),
    ) -> Option<Vec<Effect>> {
        let trusting = self.is(Mutation::OwnMapOnly);
        let fenced = matches!(self.world.sites[at].record.role, Role::Fenced { .. });
        let site = &self.world.sites[at];
        if fenced && site.map & !mask != 0 && !trusting {
            return None;
        }
        let Some(below) = site.newest() else {
            self.world.fail("I6");
            return None;
        };
        let (new, own, image) = (patched(below, mask, disk), site.map, site.image);
        let committed = Event::CycleCommitted {
            generation: begin.generation,
            last: cut_of(to.0, disk),
        };
        let after = self.feed(at, &committed)?;
        let kept = self.site(at).forks.iter().any(|fork| fork.1 == image);
        if fenced && own != 0 && !kept {
            self.world.fail("I4");
        }
        if new != disk {
            self.world.fail("I3");
        }
        let chosen = self.chosen(at);
        let site = self.site(at);
        site.points.push((to.0, new));
        // Retention: two points, and those that are pinned or chosen for a failover.
        let pin = site.pin;
        let held = |point: &(u64, Disk)| pin == Some(*point) || chosen == Some(Cycle(point.0));
        if site.points.len() > 2
            && let Some(oldest) = site.points.iter().position(|point| !held(point))
        {
            site.points.remove(oldest);
        }
        site.map = 0;
        Some(after)
    }

    fn acknowledge(&mut self, at: usize, after: &[Effect], to: Nonce, begin: &TransferBegin) {
        for effect in after {
            if let Effect::Acknowledge(last) = effect {
                let generation = begin.generation;
                let last = *last;
                self.send(
                    at,
                    Mail::Acknowledged {
                        to,
                        generation,
                        last,
                    },
                );
            }
        }
    }

    fn acknowledged(&mut self, at: usize, mail: &Mail) {
        let Mail::Acknowledged {
            to,
            generation,
            last,
        } = *mail
        else {
            return;
        };
        let life = self.world.sites[at].session.as_ref().map(|s| s.nonce);
        if life != Some(to) {
            return;
        }
        let event = Event::CycleAcknowledged { generation, last };
        let sealed = self.world.sites[at].sealed;
        if self.feed(at, &event).is_none() {
            return;
        }
        if sealed.is_some_and(|sealed| sealed.cycle == last.cycle.0) {
            self.site(at).sealed = None;
        }
        let site = &self.world.sites[at];
        let done = site.map == 0 && site.sealed.is_none() && last.cycle.0 == site.last_cut;
        if let Some(op) = site.draining
            && done
            && self.world.generations < self.limits.generations
        {
            let granted = self.world.generation();
            self.feed(at, &Event::Shipped { op, last, granted });
        }
    }

    pub(crate) fn deliver(&mut self, at: usize, mail: Mail, whole: bool) {
        match mail {
            Mail::Hello(hello) => {
                self.meet(at, &Event::HelloReceived(hello));
            }
            Mail::HelloAnswer(answer) => self.hello_answered(at, answer),
            Mail::Grant(grant) => self.grant(at, grant),
            Mail::GrantAnswer(request) => {
                self.feed(at, &Event::GrantAnswered { request });
            }
            Mail::Fence(request) => {
                let pending = self.pending(at);
                let done = self.feed(at, &Event::FenceReceived(request));
                if done.is_some() && self.is(Mutation::ReleaseSurvivesFence) {
                    self.put_back(at, pending);
                }
            }
            Mail::FenceAnswer(answer) => {
                let answer = self.bent(at, answer);
                self.feed(at, &Event::FenceAnswered(answer));
            }
            Mail::Release(request) => {
                let pending = self.pending(at);
                let done = self.feed(at, &Event::ReleaseReceived(request));
                if done.is_some() && self.is(Mutation::FailoverSurvivesRelease) {
                    self.put_back(at, pending);
                }
            }
            Mail::ReleaseAnswer(answer) => {
                self.feed(at, &Event::ReleaseAnswered(answer));
            }
            Mail::Cycle { .. } => self.transfer(at, &mail, whole),
            Mail::Acknowledged { .. } => self.acknowledged(at, &mail),
        }
    }

    fn pending(&self, at: usize) -> Option<Pending> {
        self.world.sites[at].session.as_ref()?.pending
    }

    /// The point that a failover waits to begin at.
    fn chosen(&self, at: usize) -> Option<Cycle> {
        match self.pending(at)? {
            Pending::FailOver { point, .. } => point,
            Pending::Release { .. } => None,
        }
    }

    fn put_back(&mut self, at: usize, pending: Option<Pending>) {
        if let Some(session) = &mut self.site(at).session {
            session.pending = pending;
        }
    }

    fn bent(&self, at: usize, answer: Confirmation) -> Confirmation {
        let pending = self.pending(at);
        match pending {
            Some(pending) if self.is(Mutation::FenceUnbound) => Confirmation {
                request: pending.op(),
                ..answer
            },
            _ => answer,
        }
    }

    /// Row 19: a meeting changes no generation and opens or closes nothing, where both moved on.
    fn meet(&mut self, at: usize, event: &Event) -> bool {
        let (record, exported) = (
            self.world.sites[at].record.clone(),
            self.world.sites[at].exported,
        );
        if self.feed(at, event).is_none() {
            return false;
        }
        let diverged = self.trouble(at) == Some(Trouble::Diverged);
        if diverged && self.is(Mutation::ResolvedByItself) {
            let (op, new) = (self.world.op(), self.world.generation());
            self.feed(at, &Event::Resolve { op, new });
        }
        if diverged
            && self.is(Mutation::DivergenceUnreported)
            && at == 0
            && let Some(session) = &mut self.site(at).session
        {
            session.trouble = None;
        }
        let site = &self.world.sites[at];
        let moved = site.record.lineage.current != record.lineage.current;
        let may_move = matches!(record.role, Role::HandedOver { .. } | Role::Trial(_));
        if moved && !may_move || diverged && exported != site.exported {
            self.world.fail("R9");
        }
        true
    }

    fn trouble(&self, at: usize) -> Option<Trouble> {
        self.world.sites[at].session.as_ref()?.trouble
    }

    fn hello_answered(&mut self, at: usize, mut answer: HelloAnswer) {
        if let Some(session) = &self.world.sites[at].session
            && self.is(Mutation::OldAnswersCount)
        {
            answer.nonce = session.nonce;
            answer.request = session.asked.unwrap_or(answer.request);
        }
        let said = answer.clone();
        if !self.meet(at, &Event::HelloAnswered(answer)) {
            return;
        }
        // I9: whoever answered had met this site, and says the same unless it moved on since.
        let ours = &self.world.sites[at];
        let theirs = &self.world.sites[1 - at];
        let (Some(mine), Some(other)) = (&ours.session, &theirs.session) else {
            return;
        };
        let still = other.nonce == said.own_nonce
            && theirs.record.lineage.current == said.summary.generation.id
            && other.peer.as_ref().is_some_and(|peer| {
                peer.nonce == mine.nonce
                    && peer.summary.generation.id == ours.record.lineage.current
            });
        let diverged = |trouble| trouble == Some(Trouble::Diverged);
        if still && diverged(mine.trouble) != diverged(other.trouble) {
            self.world.fail("I9");
        }
    }

    /// I2: what the new writer opens is what the old one closed.
    fn grant(&mut self, at: usize, mut grant: Grant) {
        let site = &mut self.world.sites[at];
        if self.broken == Some(Mutation::GrantNonceUnbound)
            && let Some(session) = &site.session
        {
            grant.to_nonce = session.nonce;
        }
        if self.broken == Some(Mutation::OldGrantsCount)
            && let Some(session) = &mut site.session
        {
            session.void_grants = None;
        }
        let was_replica = self.world.sites[at].record.role == Role::Replica;
        self.feed(at, &Event::GrantReceived(grant));
        let took = was_replica && self.world.sites[at].record.role.name() == RoleName::Source;
        let other = &self.world.sites[1 - at];
        let same = self.world.sites[at].image == other.image;
        if took && (other.exported || !same) && !self.world.lied {
            self.world.fail("I2");
        }
    }
}
