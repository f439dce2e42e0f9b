//! A planned failover, at the site that gives and at the site that takes (rows 7 to 11).
//!
//! What the two learn from each other's Hellos on the way is in [`super::meeting`].

use super::operator::refuse_writers;
use super::step::close_role;
use super::{Access, Effect, Hold, Promotion, Refusal, Role, Transition, Trouble, meeting};
use crate::ids::{GenId, Generation, OpId};
use crate::peer::{Committed, Grant, PeerSummary};

/// What was asked for in [`Event::PlannedFailover`](super::Event::PlannedFailover).
pub(super) struct Failover {
    pub(super) op: OpId,
    pub(super) writers: usize,
    pub(super) disconnect: bool,
}

/// Row 7.
pub(super) fn planned_failover(
    t: &mut Transition,
    wanted: Failover,
    reverse: bool,
) -> Result<(), Refusal> {
    let Failover {
        op,
        writers,
        disconnect,
    } = wanted;
    if already_runs(t, op)? {
        return Ok(());
    }
    ready_source(t)?;
    if let Some(hold) = t.next.record.hold {
        return Err(Refusal::Held { hold });
    }
    let peer = t
        .next
        .session
        .peer
        .as_ref()
        .ok_or(Refusal::PeerNotReachable)?;
    if !meeting::is_current_replica(t, &peer.summary) {
        let PeerSummary { role, cycle, .. } = peer.summary;
        return Err(Refusal::PeerNotReplica { role, cycle });
    }
    refuse_writers(writers, disconnect)?;
    close_role(t, Role::Quiescing { op, reverse });
    t.after.push(Effect::CloseExports { disconnect });
    t.after.push(Effect::DrainAndShip { op });
    Ok(())
}

/// Whether `op` is under way or done here, so that repeating it changes nothing.
fn already_runs(t: &Transition, op: OpId) -> Result<bool, Refusal> {
    let record = &t.next.record;
    match record.role {
        Role::Quiescing { op: running, .. } | Role::HandedOver { op: running, .. } => {
            if running == op {
                return Ok(true);
            }
            Err(Refusal::Busy {
                role: record.role.name(),
                op: running,
            })
        }
        Role::Source | Role::Trial(_) | Role::Fenced { .. } | Role::Seeding | Role::Replica => {
            Ok(record.finished == Some(op))
        }
    }
}

/// Whether this is a source that serves its guest without anything being wrong.
fn ready_source(t: &Transition) -> Result<(), Refusal> {
    let state = &t.next;
    if matches!(state.record.role, Role::Trial(_)) {
        return Err(Refusal::Uncommitted);
    }
    if state.record.role != Role::Source {
        return Err(Refusal::NotSource {
            role: state.record.role.name(),
        });
    }
    if state.record.promoting.is_some() {
        return Err(Refusal::Promoting);
    }
    if let Some(trouble) = state.session.trouble {
        return Err(Refusal::Trouble { trouble });
    }
    if state.session.access == Access::Closed {
        return Err(Refusal::Closed);
    }
    Ok(())
}

/// Row 8. Nothing was handed over, so the right to serve never left this life: a restart makes a
/// quiescing site a closed source, and a meeting with a peer that moved on makes it a fenced one.
pub(super) fn quiesce_cancelled(t: &mut Transition, op: OpId) -> Result<(), Refusal> {
    match t.next.record.role {
        Role::Quiescing { op: running, .. } if running == op => {
            t.next.record.role = Role::Source;
            let conflict = t.next.session.trouble.is_some_and(Trouble::is_conflict);
            if !conflict {
                t.next.session.access = Access::Open;
            }
            // Ends the shipping of the last cycle; the peer's fresh answer starts replication anew.
            t.next.session.peer = None;
            t.after.push(Effect::AskPeer);
            Ok(())
        }
        Role::HandedOver { op: running, .. } if running == op => Err(Refusal::HandedOver),
        _ => Err(Refusal::NothingToCancel { op }),
    }
}

/// Row 9. The hand-over is durable before the Grant leaves: invariant 3.
pub(super) fn shipped(
    t: &mut Transition,
    op: OpId,
    last: Committed,
    granted: GenId,
) -> Result<(), Refusal> {
    let record = &t.next.record;
    let reverse = match record.role {
        Role::Quiescing {
            op: running,
            reverse,
        } if running == op => reverse,
        Role::HandedOver { op: running, .. } if running == op => return Ok(()),
        _ => return Err(Refusal::NothingToCancel { op }),
    };
    if record.last != Some(last) {
        let (shipped, acknowledged) = (last.cycle, record.cycle());
        return Err(Refusal::NotAcknowledged {
            shipped,
            acknowledged,
        });
    }
    let peer = t
        .next
        .session
        .peer
        .as_ref()
        .ok_or(Refusal::PeerNotReachable)?;
    if !meeting::is_current_replica(t, &peer.summary) {
        let PeerSummary { role, cycle, .. } = peer.summary;
        return Err(Refusal::PeerNotReplica { role, cycle });
    }
    if !record.is_new(granted) {
        return Err(Refusal::GenerationUsed);
    }
    let granted = Generation {
        epoch: record.epoch + 1,
        id: granted,
    };
    close_role(
        t,
        Role::HandedOver {
            op,
            granted,
            base: last,
            reverse,
        },
    );
    t.after.extend(meeting::grant(t).map(Effect::SendGrant));
    Ok(())
}

/// Row 10.
pub(super) fn grant_received(t: &mut Transition, grant: &Grant) -> Result<(), Refusal> {
    let record = &t.next.record;
    if grant.group != record.group {
        return Err(Refusal::OtherGroup);
    }
    let taken = record.lineage.current == grant.granted.id
        || record.lineage.ancestors.contains(&grant.granted.id);
    if taken {
        // Durable since the first time it came, so it is true whoever asks and whenever.
        t.after.push(Effect::AnswerGrant {
            request: grant.request,
        });
        return Ok(());
    }
    if grant.to_nonce != t.next.session.nonce {
        return Err(Refusal::StaleGrant);
    }
    if record.role != Role::Replica {
        return Err(Refusal::NotReplica {
            role: record.role.name(),
        });
    }
    if t.next.session.void_grants == Some(grant.from.id) {
        return Err(Refusal::VoidGrant);
    }
    if grant.from != record.generation() {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    let cut = Committed {
        cycle: grant.base,
        digest: grant.digest,
    };
    if record.last != Some(cut) {
        return Err(Refusal::OtherCut {
            base: grant.base,
            ours: record.cycle(),
        });
    }
    if !record.is_new(grant.granted.id) || Some(grant.granted.epoch) != record.epoch.checked_add(1)
    {
        return Err(Refusal::GenerationUsed);
    }
    let record = &mut t.next.record;
    record.role = Role::Source;
    record.take_over(grant.granted);
    record.finished = Some(grant.request);
    let promotion = Promotion::BeforeServing(grant.base);
    record.promoting = Some(promotion);
    record.hold = (!grant.reverse).then_some(Hold::AwaitingReverse);
    t.next.session.access = Access::Open;
    t.after.push(Effect::AnswerGrant {
        request: grant.request,
    });
    t.after.push(Effect::Promote(promotion));
    Ok(())
}

/// Row 11, by the answer to the Grant itself: the granted generation is durable at the peer.
pub(super) fn grant_answered(t: &mut Transition, request: OpId) -> Result<(), Refusal> {
    let record = &t.next.record;
    match record.role {
        Role::HandedOver {
            op, granted, base, ..
        } if op == request => {
            meeting::become_replica(t, op, granted, base);
            t.after.push(Effect::AskPeer);
            Ok(())
        }
        _ if record.finished == Some(request) => Ok(()),
        _ => Err(Refusal::StaleAnswer),
    }
}

pub(super) fn promoted(t: &mut Transition) {
    if t.next.record.promoting.take().is_some() {
        t.after.push(Effect::AskPeer);
    }
}
