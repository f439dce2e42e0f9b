//! The right to serve, given up on request: a source fences itself for a replica that fails over
//! (row 12), and a replica lets a fenced site serve again (row 21).
//!
//! # Invariants
//! 1. A confirmation counts only for the request that is outstanding in this life (rule R2). The
//!    newer request voids the older: answering a fence voids one's own release, and answering a
//!    release voids one's own failover.
//! 2. A site answers a fence only after it has closed, drained and flushed, and recorded that.
//! 3. Whoever lets a fenced source serve again takes no Grant of that source's generation in this
//!    life: one may still be under way from the time before the fence.

use super::step::close_role;
use super::trial::{self, TakeOver};
use super::{Access, Effect, Pending, Refusal, Role, Transition};
use crate::ids::{GenId, Generation, GroupId, Nonce, OpId};
use crate::lineage::Relation;
use crate::peer::{Confirmation, FenceRequest, ReleaseRequest, RoleName};

/// Row 6, on request.
pub(super) fn fence_received(t: &mut Transition, request: &FenceRequest) -> Result<(), Refusal> {
    for_us(t, request.group, request.to_nonce, request.generation)?;
    match t.next.record.role {
        Role::Source | Role::Quiescing { .. } | Role::HandedOver { .. } => {
            t.before.push(Effect::CloseExports { disconnect: true });
        }
        Role::Fenced { .. } => {}
        Role::Trial(_) => return Err(Refusal::Uncommitted),
        Role::Seeding | Role::Replica => {
            return Err(Refusal::NotSource {
                role: t.next.record.role.name(),
            });
        }
    }
    close_role(t, Role::Fenced { by: request.new });
    t.next.session.asked = None;
    t.next.session.pending = None;
    t.after.push(Effect::AnswerFence(Confirmation {
        request: request.request,
        nonce: request.nonce,
    }));
    Ok(())
}

/// Row 13, with the peer's word.
pub(super) fn fence_answered(t: &mut Transition, answer: Confirmation) -> Result<(), Refusal> {
    let Some(Pending::FailOver {
        op,
        point,
        new,
        commit_at,
    }) = confirmed(t, answer)
    else {
        return Err(Refusal::StaleAnswer);
    };
    let wanted = TakeOver {
        op,
        point,
        new,
        commit_at,
    };
    trial::take_over(t, wanted)
}

/// Row 21: asks the peer whether its failover came to nothing.
pub(super) fn release(t: &mut Transition, op: OpId, new: GenId) -> Result<(), Refusal> {
    let record = &t.next.record;
    let runs = t.next.session.pending.is_some_and(|p| p.op() == op);
    if record.finished == Some(op) || runs {
        return Ok(());
    }
    if !matches!(record.role, Role::Fenced { .. }) {
        return Err(Refusal::NotFenced {
            role: record.role.name(),
        });
    }
    let peer = t.next.session.peer.as_ref();
    let peer = peer.ok_or(Refusal::PeerNotReachable)?;
    let same = t.next.relation_to(&peer.summary) == Relation::Same;
    if peer.summary.role != RoleName::Replica || !same {
        return Err(Refusal::PeerElsewhere {
            role: peer.summary.role,
        });
    }
    if !record.is_new(new) {
        return Err(Refusal::GenerationUsed);
    }
    let request = ReleaseRequest {
        request: op,
        nonce: t.next.session.nonce,
        to_nonce: peer.nonce,
        group: record.group,
        generation: record.generation(),
    };
    t.next.session.pending = Some(Pending::Release { op, new });
    t.after.push(Effect::SendRelease(request));
    Ok(())
}

/// Row 21, at the replica: it drops its failover before it answers.
pub(super) fn release_received(
    t: &mut Transition,
    request: &ReleaseRequest,
) -> Result<(), Refusal> {
    for_us(t, request.group, request.to_nonce, request.generation)?;
    if t.next.record.role != Role::Replica {
        return Err(Refusal::NotReplica {
            role: t.next.record.role.name(),
        });
    }
    t.next.session.pending = None;
    t.next.session.void_grants = Some(request.generation.id);
    t.after.push(Effect::AnswerRelease(Confirmation {
        request: request.request,
        nonce: request.nonce,
    }));
    Ok(())
}

/// Row 21, its end.
pub(super) fn release_answered(t: &mut Transition, answer: Confirmation) -> Result<(), Refusal> {
    let Some(Pending::Release { op, new }) = confirmed(t, answer) else {
        return Err(Refusal::StaleAnswer);
    };
    let record = &mut t.next.record;
    record.role = Role::Source;
    record.take_over(Generation {
        epoch: record.epoch.saturating_add(1),
        id: new,
    });
    record.finished = Some(op);
    t.next.session.access = Access::Open;
    t.next.session.trouble = None;
    t.after.push(Effect::AskPeer);
    Ok(())
}

/// A request to the peer failed, or its operator no longer waits.
pub(super) fn give_up(t: &mut Transition, op: OpId) {
    if t.next.session.pending.is_some_and(|p| p.op() == op) {
        t.next.session.pending = None;
    }
}

/// Whether a request is to this life, and about what this site is in.
fn for_us(
    t: &Transition,
    group: GroupId,
    to_nonce: Nonce,
    generation: Generation,
) -> Result<(), Refusal> {
    let record = &t.next.record;
    if group != record.group {
        return Err(Refusal::OtherGroup);
    }
    if to_nonce != t.next.session.nonce {
        return Err(Refusal::StaleRequest);
    }
    if generation != record.generation() {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    Ok(())
}

/// What the answer confirms, if it is to the request that is outstanding in this life.
fn confirmed(t: &Transition, answer: Confirmation) -> Option<Pending> {
    let pending = t.next.session.pending?;
    (answer.nonce == t.next.session.nonce && answer.request == pending.op()).then_some(pending)
}
