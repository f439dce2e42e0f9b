//! [`step`]: the decision itself, event by event.

use super::effect::{Effect, ReplicateFrom, Transition};
use super::event::{Event, ForceOpen, Restart};
use super::meeting;
use super::record::{BootId, FORCED_MAX, FORCED_TEXT_MAX_BYTES, Forced, Hold, Role, RoleRecord};
use super::refusal::Refusal;
use super::{Access, GroupState, Session, Trouble};
use crate::ids::{GenId, Generation, GroupId, Nonce, OpId};
use crate::peer::{Committed, Grant, PeerSummary, RoleName, TransferBegin, TransferKind};

/// Decides what `event` does to `now`. The only place where a group's state changes.
///
/// # Errors
/// A [`Refusal`] when the event changes nothing because it must not: its text is for the operator
/// or the peer.
pub fn step(now: &GroupState, event: &Event) -> Result<Transition, Refusal> {
    let mut t = Transition {
        before: Vec::new(),
        next: now.clone(),
        after: Vec::new(),
    };
    match event {
        Event::AskPeer { request } => ask_peer(&mut t, *request),
        Event::HelloReceived(hello) => meeting::hello_received(&mut t, hello)?,
        Event::HelloAnswered(answer) => meeting::hello_answered(&mut t, answer)?,
        Event::PeerLost => peer_lost(&mut t),
        Event::Offered { generation } => offered(&t, *generation)?,
        Event::TransferAsked(begin) => transfer_asked(&mut t, begin)?,
        Event::CycleCommitted { generation, last } => cycle_committed(&mut t, *generation, *last)?,
        Event::CycleAcknowledged { generation, last } => {
            cycle_acknowledged(&mut t, *generation, *last)?;
        }
        Event::PlannedFailover {
            op,
            writers,
            disconnect,
            reverse,
        } => {
            let wanted = Failover {
                op: *op,
                writers: *writers,
                disconnect: *disconnect,
            };
            planned_failover(&mut t, wanted, *reverse)?;
        }
        Event::QuiesceCancelled { op } => quiesce_cancelled(&mut t, *op)?,
        Event::Shipped { op, last, granted } => shipped(&mut t, *op, *last, *granted)?,
        Event::GrantReceived(grant) => grant_received(&mut t, grant)?,
        Event::GrantAnswered { request } => grant_answered(&mut t, *request)?,
        Event::Promoted => promoted(&mut t),
        Event::Pause => pause(&mut t)?,
        Event::Resume => release(&mut t, Hold::Paused)?,
        Event::Reverse => release(&mut t, Hold::AwaitingReverse)?,
        Event::ForceOpen(act) => force_open(&mut t, act)?,
        Event::Withdraw {
            writers,
            disconnect,
        } => withdraw(&mut t, *writers, *disconnect)?,
        Event::PeerWithdrew => peer_withdrew(&mut t)?,
    }
    Ok(finish(t, Some(now)))
}

impl GroupState {
    /// Row 1, here: a group begins, with this site as its open source. The record is not durable
    /// yet.
    pub fn born_source(group: GroupId, first: GenId, nonce: Nonce, boot: BootId) -> Transition {
        let generation = Generation {
            epoch: 1,
            id: first,
        };
        let record = RoleRecord::born(group, Role::Source, generation);
        let mut next = Self {
            record,
            session: Session::new(nonce, boot),
        };
        next.session.access = Access::Open;
        finish(
            Transition {
                before: Vec::new(),
                next,
                after: vec![Effect::AskPeer],
            },
            None,
        )
    }

    /// Row 1, at the other site: the peer offers a group that is not known here. The record is not
    /// durable yet.
    pub fn born_replica(
        group: GroupId,
        generation: Generation,
        nonce: Nonce,
        boot: BootId,
    ) -> Transition {
        let record = RoleRecord::born(group, Role::Seeding, generation);
        let next = Self {
            record,
            session: Session::new(nonce, boot),
        };
        finish(
            Transition {
                before: Vec::new(),
                next,
                after: Vec::new(),
            },
            None,
        )
    }

    /// Row 4: a new life finds the record that an earlier one left. The rights that the earlier life
    /// had are gone, but for the same-boot grace.
    pub fn restarted(record: RoleRecord, restart: &Restart) -> Transition {
        let found = record.clone();
        let mut next = Self {
            record,
            session: Session::new(restart.nonce, restart.boot),
        };
        let short_gap = restart
            .dead_for_ms
            .is_some_and(|gap| gap <= restart.grace_ms);
        let same_boot = next.record.may_reopen == Some(restart.boot);
        match next.record.role {
            Role::Source if short_gap && same_boot && restart.grace_ms > 0 => {
                next.session.access = Access::Open;
            }
            // No Grant has left: a planned failover that had got no further is cancelled.
            Role::Quiescing { .. } => next.record.role = Role::Source,
            _ => {}
        }
        let mut after = Vec::new();
        if let Some(through) = next.record.promoting {
            after.push(Effect::Promote { through });
        }
        after.push(Effect::AskPeer);
        let mut t = finish(
            Transition {
                before: Vec::new(),
                next,
                after,
            },
            None,
        );
        if t.next.record != found {
            t.next.record.seq = found.seq + 1;
        }
        t
    }
}

impl Session {
    fn new(nonce: Nonce, boot: BootId) -> Self {
        Self {
            nonce,
            boot,
            access: Access::Closed,
            asked: None,
            peer: None,
            trouble: None,
        }
    }
}

/// What follows from the difference between two states, whatever the event was.
fn finish(mut t: Transition, now: Option<&GroupState>) -> Transition {
    let open = t.next.session.access == Access::Open;
    let conflict = t.next.session.trouble.is_some_and(Trouble::is_conflict);
    t.next.record.may_reopen = (open && !conflict).then_some(t.next.session.boot);
    assert!(
        !open || t.next.record.role == Role::Source,
        "invariant 1: only a source is open"
    );

    if !now.is_some_and(GroupState::serves) && t.next.serves() {
        t.after.push(Effect::OpenExports);
    }
    let was = now.and_then(GroupState::replicates_to);
    let is = t.next.replicates_to();
    if was.map(|peer| peer.nonce) != is.map(|peer| peer.nonce) {
        if let Some(peer) = is {
            t.after
                .push(Effect::StartReplication(replicate_from(&peer.summary)));
            if let Role::Quiescing { op, .. } = t.next.record.role {
                t.after.push(Effect::DrainAndShip { op });
            }
        }
        if was.is_some() {
            t.before.insert(0, Effect::StopReplication);
        }
    }
    if let Some(trouble) = t.next.session.trouble
        && now.and_then(|now| now.session.trouble) != Some(trouble)
    {
        t.after.push(Effect::Alarm(trouble));
    }
    if let Some(now) = now
        && t.next.record != now.record
    {
        t.next.record.seq = now.record.seq + 1;
    }
    t
}

fn replicate_from(peer: &PeerSummary) -> ReplicateFrom {
    if peer.role == RoleName::Seeding {
        ReplicateFrom::Nothing
    } else {
        ReplicateFrom::Cycle(peer.cycle)
    }
}

/// Gives up the right to serve, for another role.
pub(super) fn close_role(t: &mut Transition, role: Role) {
    t.next.session.access = Access::Closed;
    t.next.record.role = role;
}

fn ask_peer(t: &mut Transition, request: OpId) {
    t.next.session.asked = Some(request);
    t.after.push(Effect::SendHello(t.next.hello(request)));
}

fn peer_lost(t: &mut Transition) {
    t.next.session.peer = None;
    t.next.session.asked = None;
}

fn offered(t: &Transition, generation: GenId) -> Result<(), Refusal> {
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
fn transfer_asked(t: &mut Transition, begin: &TransferBegin) -> Result<(), Refusal> {
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
fn cycle_committed(t: &mut Transition, generation: GenId, last: Committed) -> Result<(), Refusal> {
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
fn cycle_acknowledged(
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

struct Failover {
    op: OpId,
    writers: usize,
    disconnect: bool,
}

/// Row 7.
fn planned_failover(t: &mut Transition, wanted: Failover, reverse: bool) -> Result<(), Refusal> {
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
        Role::Source | Role::Fenced { .. } | Role::Seeding | Role::Replica => {
            Ok(record.finished == Some(op))
        }
    }
}

/// Whether this is a source that serves its guest without anything being wrong.
fn ready_source(t: &Transition) -> Result<(), Refusal> {
    let state = &t.next;
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

fn refuse_writers(writers: usize, disconnect: bool) -> Result<(), Refusal> {
    if writers > 0 && !disconnect {
        return Err(Refusal::WritersAttached { writers });
    }
    Ok(())
}

/// Row 8.
fn quiesce_cancelled(t: &mut Transition, op: OpId) -> Result<(), Refusal> {
    match t.next.record.role {
        Role::Quiescing { op: running, .. } if running == op => {
            close_role(t, Role::Source);
            t.after.push(Effect::AskPeer);
            Ok(())
        }
        Role::HandedOver { op: running, .. } if running == op => Err(Refusal::HandedOver),
        _ => Err(Refusal::NothingToCancel { op }),
    }
}

/// Row 9. The hand-over is durable before the Grant leaves: invariant 3.
fn shipped(t: &mut Transition, op: OpId, last: Committed, granted: GenId) -> Result<(), Refusal> {
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
fn grant_received(t: &mut Transition, grant: &Grant) -> Result<(), Refusal> {
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
    record.promoting = Some(grant.base);
    record.hold = (!grant.reverse).then_some(Hold::AwaitingReverse);
    t.next.session.access = Access::Open;
    t.after.push(Effect::AnswerGrant {
        request: grant.request,
    });
    t.after.push(Effect::Promote {
        through: grant.base,
    });
    Ok(())
}

/// Row 11, by the answer to the Grant itself: the granted generation is durable at the peer.
fn grant_answered(t: &mut Transition, request: OpId) -> Result<(), Refusal> {
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

fn promoted(t: &mut Transition) {
    if t.next.record.promoting.take().is_some() {
        t.after.push(Effect::AskPeer);
    }
}

fn pause(t: &mut Transition) -> Result<(), Refusal> {
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
fn release(t: &mut Transition, which: Hold) -> Result<(), Refusal> {
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
fn force_open(t: &mut Transition, act: &ForceOpen) -> Result<(), Refusal> {
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

fn withdraw(t: &mut Transition, writers: usize, disconnect: bool) -> Result<(), Refusal> {
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
fn peer_withdrew(t: &mut Transition) -> Result<(), Refusal> {
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
