//! What operators ask for besides a planned failover: holding replication, a signed forced act
//! (row 14), and the end of a group's protection.

use super::record::{FORCED_MAX, FORCED_TEXT_MAX_BYTES, Forced};
use super::{Access, Effect, ForceOpen, Hold, Refusal, Role, Transition};
use crate::ids::Generation;
use crate::peer::RoleName;

pub(super) fn pause(t: &mut Transition) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    if record.role != Role::Source {
        return Err(Refusal::NotSource {
            role: record.role.name(),
        });
    }
    match record.hold {
        Some(hold @ Hold::AwaitingReverse) => Err(Refusal::Held { hold }),
        Some(Hold::Paused) | None => {
            record.hold = Some(Hold::Paused);
            Ok(())
        }
    }
}

/// Ends the hold `which`. Nothing held is nothing to do.
pub(super) fn release(t: &mut Transition, which: Hold) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    if record.role != Role::Source {
        return Err(Refusal::NotSource {
            role: record.role.name(),
        });
    }
    match record.hold {
        Some(hold) if hold != which => Err(Refusal::HeldOtherwise { hold }),
        _ => {
            record.hold = None;
            Ok(())
        }
    }
}

/// Row 14: an operator signs that the peer is stopped. A new generation, so that the peer, whatever
/// it took or takes, is known as another history.
pub(super) fn force_open(t: &mut Transition, act: &ForceOpen) -> Result<(), Refusal> {
    let record = &t.next.record;
    match record.role {
        Role::Source if t.next.session.access == Access::Open => return Err(Refusal::AlreadyOpen),
        Role::Source | Role::HandedOver { .. } | Role::Fenced { .. } => {}
        Role::Quiescing { op, .. } => {
            return Err(Refusal::Busy {
                role: record.role.name(),
                op,
            });
        }
        Role::Seeding | Role::Replica => {
            return Err(Refusal::NotSource {
                role: record.role.name(),
            });
        }
    }
    if t.next.session.peer.is_some() {
        return Err(Refusal::PeerReachable);
    }
    signed(act)?;
    if !record.is_new(act.new) {
        return Err(Refusal::GenerationUsed);
    }
    let record = &mut t.next.record;
    record.role = Role::Source;
    record.take_over(Generation {
        epoch: record.epoch.saturating_add(1),
        id: act.new,
    });
    record.forced.push(Forced {
        who: act.who.clone(),
        why: act.why.clone(),
        at: act.at,
    });
    let surplus = record.forced.len().saturating_sub(FORCED_MAX);
    record.forced.drain(..surplus);
    t.next.session.access = Access::Open;
    t.next.session.asked = None;
    Ok(())
}

fn signed(act: &ForceOpen) -> Result<(), Refusal> {
    let missing = [
        (
            act.who.trim().is_empty(),
            "the name of the operator who signs",
        ),
        (
            act.why.trim().is_empty(),
            "a reason, which both the record and the log keep",
        ),
        (act.who.len() > FORCED_TEXT_MAX_BYTES, "a shorter name"),
        (act.why.len() > FORCED_TEXT_MAX_BYTES, "a shorter reason"),
        (!act.typed_name_matches, "the group's name, typed exactly"),
        (
            !act.peer_host_stopped,
            "the statement that the other site's host is off; if it is not, both sites will serve the guest",
        ),
    ];
    match missing.iter().find(|(is_missing, _)| *is_missing) {
        Some((_, what)) => Err(Refusal::NotSigned { what }),
        None => Ok(()),
    }
}

pub(super) fn withdraw(
    t: &mut Transition,
    writers: usize,
    disconnect: bool,
) -> Result<(), Refusal> {
    let role = t.next.record.role.name();
    match t.next.record.role {
        Role::Quiescing { op, .. } | Role::HandedOver { op, .. } => {
            return Err(Refusal::Busy { role, op });
        }
        Role::Seeding | Role::Replica => {
            let peer = t.next.session.peer.as_ref();
            if peer.is_some_and(|peer| peer.summary.role == RoleName::Source) {
                return Err(Refusal::WithdrawAtSource);
            }
        }
        Role::Source | Role::Fenced { .. } => refuse_writers(writers, disconnect)?,
    }
    forget(t, disconnect);
    Ok(())
}

/// The peer may end the protection of what is kept for it, and of nothing else.
pub(super) fn peer_withdrew(t: &mut Transition) -> Result<(), Refusal> {
    let record = &t.next.record;
    if !matches!(record.role, Role::Seeding | Role::Replica) {
        return Err(Refusal::NotReplica {
            role: record.role.name(),
        });
    }
    forget(t, false);
    Ok(())
}

/// The record goes last: until then, repeating the command does the rest.
fn forget(t: &mut Transition, disconnect: bool) {
    if t.next.record.role == Role::Source {
        t.next.session.access = Access::Closed;
        t.before.push(Effect::CloseExports { disconnect });
    }
    t.after.push(Effect::Forget);
}

pub(super) fn refuse_writers(writers: usize, disconnect: bool) -> Result<(), Refusal> {
    if writers > 0 && !disconnect {
        return Err(Refusal::WritersAttached { writers });
    }
    Ok(())
}
