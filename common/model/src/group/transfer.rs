//! Bulk data: what a replica lets in and commits, and what a source hears back (rows 2 and 3, rule R3).
//!
//! Does not look at bytes: their digests are checked by whoever receives them.

use super::{Effect, Refusal, Role, Transition};
use crate::ids::GenId;
use crate::peer::{Committed, RoleName, TransferBegin, TransferKind};

pub(super) fn offered(t: &Transition, generation: GenId) -> Result<(), Refusal> {
    let record = &t.next.record;
    let repeated = matches!(record.role, Role::Seeding | Role::Replica)
        && record.lineage.current == generation;
    if repeated {
        return Ok(());
    }
    Err(Refusal::Known {
        role: record.role.name(),
        ours: record.generation(),
    })
}

/// Rule R3: only this generation, and only what follows the last committed cycle.
pub(super) fn transfer_asked(t: &mut Transition, begin: &TransferBegin) -> Result<(), Refusal> {
    let record = &t.next.record;
    if begin.group != record.group {
        return Err(Refusal::OtherGroup);
    }
    receives(t, begin.generation)?;
    if let Some(trouble) = t
        .next
        .session
        .trouble
        .filter(|trouble| trouble.is_conflict())
    {
        return Err(Refusal::Trouble { trouble });
    }
    let ours = record.cycle();
    match (begin.kind, record.last) {
        (TransferKind::Cycle { to, .. }, Some(last)) if to == last.cycle => {
            // Sent again because the acknowledgement was lost: cycles are never numbered twice.
            t.after.push(Effect::Acknowledge(last));
        }
        (TransferKind::Cycle { from, to }, _) if from == ours && to > from => {
            t.after.push(Effect::AcceptTransfer);
        }
        (TransferKind::Cycle { from, to }, _) => {
            return Err(Refusal::OtherCycle { ours, from, to });
        }
        (TransferKind::Seed, None) => t.after.push(Effect::AcceptTransfer),
        (TransferKind::Seed, Some(_)) => return Err(Refusal::Complete { ours }),
    }
    Ok(())
}

/// Whether this site keeps a replica in `generation`.
fn receives(t: &Transition, generation: GenId) -> Result<(), Refusal> {
    let record = &t.next.record;
    if !matches!(record.role, Role::Seeding | Role::Replica) {
        return Err(Refusal::NotReplica {
            role: record.role.name(),
        });
    }
    if generation != record.lineage.current {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    Ok(())
}

/// Row 3. The generation is checked again: the role may have changed since the transfer began.
pub(super) fn cycle_committed(
    t: &mut Transition,
    generation: GenId,
    last: Committed,
) -> Result<(), Refusal> {
    receives(t, generation)?;
    let record = &mut t.next.record;
    if record.last != Some(last) {
        if last.cycle <= record.cycle() {
            let from = record.cycle();
            return Err(Refusal::OtherCycle {
                ours: from,
                from,
                to: last.cycle,
            });
        }
        record.last = Some(last);
        record.role = Role::Replica;
    }
    t.after.push(Effect::Acknowledge(last));
    Ok(())
}

/// Row 2, its second half: the peer has the cycle.
pub(super) fn cycle_acknowledged(
    t: &mut Transition,
    generation: GenId,
    last: Committed,
) -> Result<(), Refusal> {
    let record = &mut t.next.record;
    if !matches!(record.role, Role::Source | Role::Quiescing { .. }) {
        return Err(Refusal::NotSource {
            role: record.role.name(),
        });
    }
    if generation != record.lineage.current {
        return Err(Refusal::OtherGeneration {
            ours: record.generation(),
        });
    }
    if record.last == Some(last) {
        return Ok(());
    }
    if last.cycle <= record.cycle() {
        let ours = record.cycle();
        return Err(Refusal::OtherCycle {
            ours,
            from: ours,
            to: last.cycle,
        });
    }
    record.last = Some(last);
    if let Some(peer) = &mut t.next.session.peer
        && peer.summary.generation.id == generation
    {
        peer.summary.role = RoleName::Replica;
        peer.summary.cycle = last.cycle;
        peer.summary.digest = Some(last.digest);
    }
    Ok(())
}
