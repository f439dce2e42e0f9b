//! Bulk data: what a replica lets in and commits, and what a source hears back (rows 2 and 3, rule R3).
//!
//! Does not look at bytes: their digests are checked by whoever receives them.

use super::{Effect, Refusal, Role, Transition, resync};
use crate::ids::{Cycle, GenId};
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
    if begin.group != t.next.record.group {
        return Err(Refusal::OtherGroup);
    }
    match begin.kind {
        TransferKind::Seed => seed_asked(t, begin.generation),
        TransferKind::Cycle { from, to } => cycle_asked(t, begin.generation, from, to),
        TransferKind::Resync { over, from, to } => resync::asked(t, begin, over, from, to),
    }
}

fn seed_asked(t: &mut Transition, generation: GenId) -> Result<(), Refusal> {
    receives_now(t, generation)?;
    if t.next.record.last.is_some() {
        return Err(Refusal::Complete {
            ours: t.next.record.cycle(),
        });
    }
    t.after.push(Effect::AcceptTransfer);
    Ok(())
}

fn cycle_asked(
    t: &mut Transition,
    generation: GenId,
    from: Cycle,
    to: Cycle,
) -> Result<(), Refusal> {
    receives_now(t, generation)?;
    let ours = t.next.record.cycle();
    match t.next.record.last {
        // Sent again because the acknowledgement was lost: cycles are never numbered twice.
        Some(last) if to == last.cycle => t.after.push(Effect::Acknowledge(last)),
        _ if from == ours && to > from => t.after.push(Effect::AcceptTransfer),
        _ => return Err(Refusal::OtherCycle { ours, from, to }),
    }
    Ok(())
}

/// Whether this site keeps a replica in `generation`, and nothing contradicts that.
fn receives_now(t: &Transition, generation: GenId) -> Result<(), Refusal> {
    receives(t, generation)?;
    match t.next.session.trouble {
        Some(trouble) if trouble.is_conflict() => Err(Refusal::Trouble { trouble }),
        _ => Ok(()),
    }
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
    if generation != t.next.record.lineage.current {
        return resync::committed(t, generation, last);
    }
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
    let brought_up = record.resync.take();
    let (ours, lineage) = (record.generation(), record.lineage.clone());
    if let Some(peer) = &mut t.next.session.peer
        && (peer.summary.generation.id == generation
            || brought_up == Some(peer.summary.generation.id))
    {
        peer.summary.generation = ours;
        peer.summary.lineage = lineage;
        peer.summary.role = RoleName::Replica;
        peer.summary.cycle = last.cycle;
        peer.summary.digest = Some(last.digest);
    }
    Ok(())
}
