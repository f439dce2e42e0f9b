//! A failover at the replica, from its first word until it is committed or rolled back (rows 12, 13,
//! 15 and 16).
//!
//! # Invariants
//! 1. Until the commit, no point is given up: the guest writes to an overlay (rule R10).
//! 2. What was written on trial is kept as a fork before the record says that the trial is over.
//! 3. The generation of a trial that was taken back is left behind for good.

use super::event::{FailOver, RollBack, Signature};
use super::operator::refuse_writers;
use super::record::{FORKS_MAX, ForcedAct, Promotion, RoleRecord, Trial};
use super::{Access, Effect, Pending, Refusal, Role, Transition, meeting, signature};
use crate::ids::{Cycle, GenId, Generation, OpId, UnixMillis};
use crate::lineage::Relation;
use crate::peer::{FenceRequest, RoleName};

/// What an operator chose, kept until the right to serve is there.
pub(super) struct TakeOver {
    pub(super) op: OpId,
    pub(super) point: Option<Cycle>,
    pub(super) new: GenId,
    pub(super) commit_at: Option<UnixMillis>,
}

impl TakeOver {
    fn of(wanted: &FailOver) -> Self {
        Self {
            op: wanted.op,
            point: wanted.point,
            new: wanted.new,
            commit_at: wanted.commit_at,
        }
    }
}

/// Row 12, and the forced part of row 13.
pub(super) fn fail_over(t: &mut Transition, wanted: &FailOver) -> Result<(), Refusal> {
    let runs = t.next.session.pending.is_some_and(|p| p.op() == wanted.op);
    if t.next.record.finished == Some(wanted.op) || runs {
        return Ok(());
    }
    let record = &t.next.record;
    match record.role {
        Role::Replica | Role::Trial(_) => {}
        Role::Source
        | Role::Quiescing { .. }
        | Role::HandedOver { .. }
        | Role::Fenced { .. }
        | Role::Seeding => {
            return Err(Refusal::NotReplica {
                role: record.role.name(),
            });
        }
    }
    chosen(record, wanted.point)?;
    room_for_forks(record, 2)?;
    if !record.is_new(wanted.new) {
        return Err(Refusal::GenerationUsed);
    }
    if let Role::Trial(trial) = record.role {
        return choose_another(t, trial, wanted);
    }
    match &wanted.forced {
        Some(signature) => forced(t, wanted, signature),
        None => ask_peer(t, wanted),
    }
}

fn ask_peer(t: &mut Transition, wanted: &FailOver) -> Result<(), Refusal> {
    let record = &t.next.record;
    let peer = t.next.session.peer.as_ref();
    let peer = peer.ok_or(Refusal::NeedsSignature)?;
    let role = peer.summary.role;
    let can_fence = meeting::may_serve(role) || role == RoleName::Fenced;
    if !can_fence || t.next.relation_to(&peer.summary) != Relation::Same {
        return Err(Refusal::PeerElsewhere { role });
    }
    let request = FenceRequest {
        request: wanted.op,
        nonce: t.next.session.nonce,
        to_nonce: peer.nonce,
        group: record.group,
        generation: record.generation(),
        new: wanted.new,
    };
    let TakeOver {
        op,
        point,
        new,
        commit_at,
    } = TakeOver::of(wanted);
    t.next.session.pending = Some(Pending::FailOver {
        op,
        point,
        new,
        commit_at,
    });
    t.after.push(Effect::SendFence(request));
    Ok(())
}

fn forced(t: &mut Transition, wanted: &FailOver, signed: &Signature) -> Result<(), Refusal> {
    signature::check(t, signed)?;
    take_over(t, TakeOver::of(wanted))?;
    signature::record(t, ForcedAct::FailedOver, wanted.new, signed);
    Ok(())
}

/// Row 13: the record first, then the overlay, then the exports.
pub(super) fn take_over(t: &mut Transition, wanted: TakeOver) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    let trial = Trial {
        point: chosen(record, wanted.point)?,
        of: record.generation(),
        base: record.base,
        commit_at: wanted.commit_at,
    };
    begin(record, trial, &wanted);
    record.hold = None;
    t.next.session.access = Access::Open;
    t.next.session.asked = None;
    t.after.push(open_overlay(&t.next.record, trial));
    Ok(())
}

fn begin(record: &mut RoleRecord, trial: Trial, wanted: &TakeOver) {
    record.role = Role::Trial(trial);
    record.take_over(Generation {
        epoch: record.epoch.saturating_add(1),
        id: wanted.new,
    });
    record.base = trial.point;
    record.finished = Some(wanted.op);
}

/// Row 13 once more: the operator looks at another point. What was written above the first one is
/// kept as a fork. The peer's word or the statement about it still stands, since this site still
/// has the right to serve.
fn choose_another(t: &mut Transition, trial: Trial, wanted: &FailOver) -> Result<(), Refusal> {
    if t.next.session.access == Access::Closed {
        return Err(Refusal::Closed);
    }
    refuse_writers(wanted.writers, wanted.disconnect)?;
    let record = &t.next.record;
    let again = Trial {
        point: chosen(record, wanted.point)?,
        commit_at: wanted.commit_at,
        ..trial
    };
    give_back(t, trial, wanted.disconnect);
    begin(&mut t.next.record, again, &TakeOver::of(wanted));
    t.after.push(open_overlay(&t.next.record, again));
    t.after.push(Effect::OpenExports);
    Ok(())
}

/// Row 15. The guest goes on; what it reads and writes moves into the image under it.
pub(super) fn commit(t: &mut Transition, op: OpId) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    if record.finished == Some(op) {
        return Ok(());
    }
    let Role::Trial(trial) = record.role else {
        return Err(Refusal::NoTrial);
    };
    let promotion = Promotion::WhileServing(trial.point);
    record.role = Role::Source;
    record.promoting = Some(promotion);
    record.finished = Some(op);
    t.after.push(Effect::Promote(promotion));
    t.after.push(Effect::AskPeer);
    Ok(())
}

/// Row 16.
pub(super) fn roll_back(t: &mut Transition, wanted: &RollBack) -> Result<(), Refusal> {
    if t.next.record.finished == Some(wanted.op) {
        return Ok(());
    }
    let Role::Trial(trial) = t.next.record.role else {
        return Err(Refusal::NoTrial);
    };
    let peer = t.next.session.peer.as_ref().map(|peer| peer.summary.role);
    match (&wanted.forced, peer) {
        (None, None) => return Err(Refusal::NeedsSignature),
        (None, Some(role)) if meeting::may_serve(role) => {
            return Err(Refusal::PeerServes { role });
        }
        (None, Some(_)) => {}
        (Some(signed), _) => signature::check(t, signed)?,
    }
    refuse_writers(wanted.writers, wanted.disconnect)?;
    let given_up = t.next.record.lineage.current;
    abandon(t, trial, wanted.disconnect);
    t.next.record.finished = Some(wanted.op);
    if let Some(signed) = &wanted.forced {
        signature::record(t, ForcedAct::RolledBack, given_up, signed);
    }
    t.after.push(Effect::AskPeer);
    Ok(())
}

/// Ends a trial: this site is the replica again that it was before.
pub(super) fn abandon(t: &mut Transition, trial: Trial, disconnect: bool) {
    give_back(t, trial, disconnect);
    t.next.record.role = Role::Replica;
    t.next.session.access = Access::Closed;
    // Its source may have handed over before it was fenced: see the invariants of `fence`.
    t.next.session.void_grants = Some(trial.of.id);
}

/// Closes the overlay, keeps it as a fork, and goes back in history to before it: invariants 2 and 3.
fn give_back(t: &mut Transition, trial: Trial, disconnect: bool) {
    let record = &mut t.next.record;
    let fork = record.own_fork();
    t.before.push(Effect::CloseExports { disconnect });
    t.before.push(Effect::KeepFork(fork));
    record.keep(fork);
    record.lineage = record
        .lineage
        .rolled_back(trial.of.id)
        .expect("a record whose trial has no way back is neither made nor read");
    record.epoch = trial.of.epoch;
    record.base = trial.base;
}

/// What makes or finds the overlay of a trial.
pub(super) fn open_overlay(record: &RoleRecord, trial: Trial) -> Effect {
    Effect::OpenOverlay {
        point: trial.point,
        generation: record.overlay_generation(trial),
    }
}

/// The point that an operator means.
fn chosen(record: &RoleRecord, point: Option<Cycle>) -> Result<Cycle, Refusal> {
    let newest = record.cycle();
    let point = point.unwrap_or(newest);
    if point == Cycle::NONE || point > newest {
        return Err(Refusal::NoSuchPoint { point, newest });
    }
    Ok(point)
}

/// Whether `more` forks may be made here.
pub(super) fn room_for_forks(record: &RoleRecord, more: usize) -> Result<(), Refusal> {
    let kept = record.forks.len();
    if kept + more > FORKS_MAX {
        return Err(Refusal::TooManyForks { kept });
    }
    Ok(())
}
