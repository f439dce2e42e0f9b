//! What operators ask for besides a planned failover: holding replication, a signed forced act
//! (row 14), dropping forks, and the end of a group's protection.

use super::record::ForcedAct;
use super::{Access, Effect, ForceOpen, Hold, Refusal, Role, Transition, signature};
use crate::ids::{GenId, Generation};
use crate::peer::RoleName;

pub(super) fn pause(t: &mut Transition) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    source(&record.role)?;
    match record.hold {
        Some(hold @ Hold::AwaitingReverse) => Err(Refusal::Held { hold }),
        Some(Hold::Paused) | None => {
            record.hold = Some(Hold::Paused);
            Ok(())
        }
    }
}

fn source(role: &Role) -> Result<(), Refusal> {
    match role {
        Role::Source => Ok(()),
        Role::Trial(_) => Err(Refusal::Uncommitted),
        _ => Err(Refusal::NotSource { role: role.name() }),
    }
}

/// Ends the hold `which`. Nothing held is nothing to do.
pub(super) fn release(t: &mut Transition, which: Hold) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    source(&record.role)?;
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
    if record.finished == Some(act.op) {
        return Ok(());
    }
    match record.role {
        Role::Source | Role::Trial(_) if t.next.session.access == Access::Open => {
            return Err(Refusal::AlreadyOpen);
        }
        Role::Source | Role::Trial(_) | Role::HandedOver { .. } | Role::Fenced { .. } => {}
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
    signature::check(t, &act.signature)?;
    if !record.is_new(act.new) {
        return Err(Refusal::GenerationUsed);
    }
    let record = &mut t.next.record;
    record.take_over(Generation {
        epoch: record.epoch.saturating_add(1),
        id: act.new,
    });
    match record.role {
        Role::Trial(trial) if !record.lineage.ancestors.contains(&trial.of.id) => {
            return Err(Refusal::Uncommitted);
        }
        // It is as uncommitted as before.
        Role::Trial(trial) => record.base = trial.point,
        _ => record.role = Role::Source,
    }
    record.finished = Some(act.op);
    t.next.session.access = Access::Open;
    t.next.session.asked = None;
    signature::record(t, ForcedAct::Opened, act.new, &act.signature);
    Ok(())
}

/// Lets a fork go, once it is not listed any more.
pub(super) fn drop_fork(t: &mut Transition, generation: GenId) -> Result<(), Refusal> {
    let forks = &mut t.next.record.forks;
    let at = forks.iter().position(|fork| fork.generation == generation);
    let fork = forks.remove(at.ok_or(Refusal::NoSuchFork)?);
    t.after.push(Effect::DropFork(fork));
    Ok(())
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
        Role::Trial(_) => return Err(Refusal::Uncommitted),
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
