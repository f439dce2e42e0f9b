//! Two sites whose histories parted, brought together again (rows 17 to 20).
//!
//! An operator says which side is kept, and lets the other be overwritten; what it has alone becomes a
//! fork first. Nothing here happens by itself (rule R9).

use super::refusal::Refusal;
use super::{Access, Effect, GroupState, Role, Transition, Trouble, meeting, trial};
use crate::ids::{Cycle, GenId, Generation, OpId};
use crate::lineage::Relation;
use crate::peer::{Committed, PeerSummary, RoleName, TransferBegin};

impl GroupState {
    /// Whether the peer, which is behind, is to be brought up to this source.
    pub(super) fn resyncs(&self, peer: &PeerSummary) -> bool {
        self.record.resync == Some(peer.generation.id) && self.can_resync(peer)
    }

    /// Whether what both sites have written since their histories parted is all that differs.
    fn can_resync(&self, peer: &PeerSummary) -> bool {
        let Some(last) = self.record.last else {
            return false;
        };
        let other_cut = peer.cycle == last.cycle && peer.digest != Some(last.digest);
        match peer.role {
            // What was acknowledged there and here may be one cycle apart either way.
            RoleName::Fenced => !other_cut,
            RoleName::Replica => !other_cut && peer.cycle >= last.cycle,
            RoleName::Unpaired
            | RoleName::Source
            | RoleName::Quiescing
            | RoleName::HandedOver
            | RoleName::Seeding
            | RoleName::Resyncing => false,
        }
    }
}

/// Row 17: an operator lets the peer be overwritten.
pub(super) fn resync(t: &mut Transition, op: OpId) -> Result<(), Refusal> {
    if t.next.record.finished == Some(op) {
        return Ok(());
    }
    let role = t.next.record.role.name();
    match t.next.record.role {
        Role::Source => {}
        Role::Trial(_) => return Err(Refusal::Uncommitted),
        _ => return Err(Refusal::NotSource { role }),
    }
    if t.next.session.access == Access::Closed {
        return Err(Refusal::Closed);
    }
    if t.next.record.promoting.is_some() {
        return Err(Refusal::Promoting);
    }
    let peer = t.next.session.peer.as_ref();
    let peer = peer.ok_or(Refusal::PeerNotReachable)?;
    let PeerSummary { role, cycle, .. } = peer.summary;
    let behind = t.next.relation_to(&peer.summary) == Relation::Ahead;
    if !behind || !t.next.can_resync(&peer.summary) {
        return Err(Refusal::NotBehind { role, cycle });
    }
    t.next.record.resync = Some(peer.summary.generation.id);
    t.next.record.finished = Some(op);
    if t.next.session.trouble == Some(Trouble::PeerBehind) {
        t.next.session.trouble = None;
    }
    Ok(())
}

/// Row 18: lets a resync in, over the state that it was made for.
pub(super) fn asked(
    t: &mut Transition,
    begin: &TransferBegin,
    over: GenId,
    from: Cycle,
    to: Cycle,
) -> Result<(), Refusal> {
    let record = &t.next.record;
    if begin.generation == record.lineage.current {
        if let (Role::Replica, Some(last)) = (&record.role, record.last)
            && last.cycle == to
        {
            t.after.push(Effect::Acknowledge(last));
            return Ok(());
        }
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    sender(t, begin.generation)?;
    if over != record.lineage.current {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    let ours = record.cycle();
    if from != ours || to <= from {
        return Err(Refusal::OtherCycle { ours, from, to });
    }
    if record.promoting.is_some() {
        return Err(Refusal::Promoting);
    }
    if matches!(record.role, Role::Fenced { .. }) {
        trial::room_for_forks(record, 1)?;
        let fork = record.own_fork();
        t.after.push(Effect::KeepFork(fork));
    }
    t.after.push(Effect::AcceptTransfer);
    Ok(())
}

/// Row 18, its end: the new state is whole beside the old one, and one record makes it count.
pub(super) fn committed(
    t: &mut Transition,
    generation: GenId,
    last: Committed,
) -> Result<(), Refusal> {
    let peer = sender(t, generation)?.clone();
    let record = &mut t.next.record;
    if last.cycle <= record.cycle() {
        let ours = record.cycle();
        return Err(Refusal::OtherCycle {
            ours,
            from: ours,
            to: last.cycle,
        });
    }
    if matches!(record.role, Role::Fenced { .. }) {
        trial::room_for_forks(record, 1)?;
        let fork = record.own_fork();
        record.keep(fork);
    }
    record.base = record.cycle();
    record.role = Role::Replica;
    record.lineage = peer.lineage;
    record.epoch = peer.generation.epoch;
    record.last = Some(last);
    record.hold = None;
    t.next.session.trouble = None;
    t.after.push(Effect::Acknowledge(last));
    Ok(())
}

/// The source that is ahead of this site, in `generation`, as it said itself.
fn sender(t: &Transition, generation: GenId) -> Result<&PeerSummary, Refusal> {
    let record = &t.next.record;
    if !matches!(record.role, Role::Fenced { .. } | Role::Replica) {
        return Err(Refusal::NotReplica {
            role: record.role.name(),
        });
    }
    let peer = t.next.session.peer.as_ref();
    let peer = &peer.ok_or(Refusal::PeerNotReachable)?.summary;
    let ahead = t.next.relation_to(peer) == Relation::Behind;
    if peer.generation.id != generation || !ahead {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    Ok(peer)
}

/// Row 20: this side is kept. The peer learns from the next Hello that it was left behind.
pub(super) fn resolve(t: &mut Transition, op: OpId, new: GenId) -> Result<(), Refusal> {
    if t.next.record.finished == Some(op) {
        return Ok(());
    }
    match t.next.record.role {
        Role::Source => {}
        Role::Trial(_) => return Err(Refusal::Uncommitted),
        _ => {
            return Err(Refusal::NotSource {
                role: t.next.record.role.name(),
            });
        }
    }
    if t.next.session.trouble != Some(Trouble::Diverged) {
        return Err(Refusal::NotDiverged);
    }
    let peer = t.next.session.peer.as_ref();
    let peer = peer.ok_or(Refusal::PeerNotReachable)?.summary.clone();
    let record = &mut t.next.record;
    if !record.is_new(new) || peer.lineage.holds(new) {
        return Err(Refusal::GenerationUsed);
    }
    let lineage = record.lineage.kept_over(&peer.lineage, new);
    record.take_over(Generation {
        epoch: record.epoch.max(peer.generation.epoch).saturating_add(1),
        id: new,
    });
    record.lineage = lineage;
    record.finished = Some(op);
    t.next.session.trouble = meeting::trouble(t, &peer);
    t.after.push(Effect::AskPeer);
    Ok(())
}
