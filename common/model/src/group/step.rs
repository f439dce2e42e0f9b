//! [`step`]: the decision itself, with what follows from any change of state, and how states begin.
//!
//! The events themselves are decided next door: `meeting`, `transfer`, `failover`, `fence`, `trial`,
//! `resync`, `operator`.

use super::effect::{Effect, ReplicateFrom, Transition};
use super::event::{Event, Restart};
use super::record::{BootId, Hold, Role, RoleRecord};
use super::refusal::Refusal;
use super::{
    Access, GroupState, PeerKnown, Session, Trouble, failover, fence, meeting, operator, resync,
    transfer, trial,
};
use crate::ids::{GenId, Generation, GroupId, Nonce, OpId};
use crate::lineage::Relation;
use crate::peer::{PeerSummary, RoleName};

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
        Event::Offered { generation } => transfer::offered(&t, *generation)?,
        Event::TransferAsked(begin) => transfer::transfer_asked(&mut t, begin)?,
        Event::CycleCommitted { generation, last } => {
            transfer::cycle_committed(&mut t, *generation, *last)?
        }
        Event::CycleAcknowledged { generation, last } => {
            transfer::cycle_acknowledged(&mut t, *generation, *last)?;
        }
        Event::PlannedFailover {
            op,
            writers,
            disconnect,
            reverse,
        } => {
            let wanted = failover::Failover {
                op: *op,
                writers: *writers,
                disconnect: *disconnect,
            };
            failover::planned_failover(&mut t, wanted, *reverse)?;
        }
        Event::QuiesceCancelled { op } => failover::quiesce_cancelled(&mut t, *op)?,
        Event::Shipped { op, last, granted } => failover::shipped(&mut t, *op, *last, *granted)?,
        Event::GrantReceived(grant) => failover::grant_received(&mut t, grant)?,
        Event::GrantAnswered { request } => failover::grant_answered(&mut t, *request)?,
        Event::Promoted => failover::promoted(&mut t),
        Event::Pause => operator::pause(&mut t)?,
        Event::Resume => operator::release(&mut t, Hold::Paused)?,
        Event::Reverse => operator::release(&mut t, Hold::AwaitingReverse)?,
        Event::ForceOpen(act) => operator::force_open(&mut t, act)?,
        Event::Withdraw {
            writers,
            disconnect,
        } => operator::withdraw(&mut t, *writers, *disconnect)?,
        Event::PeerWithdrew => operator::peer_withdrew(&mut t)?,
        Event::FailOver(wanted) => trial::fail_over(&mut t, wanted)?,
        Event::CommitFailover { op } => trial::commit(&mut t, *op)?,
        Event::RollBack(wanted) => trial::roll_back(&mut t, wanted)?,
        Event::FenceReceived(request) => fence::fence_received(&mut t, request)?,
        Event::FenceAnswered(answer) => fence::fence_answered(&mut t, *answer)?,
        Event::Release { op, new } => fence::release(&mut t, *op, *new)?,
        Event::ReleaseReceived(request) => fence::release_received(&mut t, request)?,
        Event::ReleaseAnswered(answer) => fence::release_answered(&mut t, *answer)?,
        Event::GiveUp { op } => fence::give_up(&mut t, *op),
        Event::Resync { op } => resync::resync(&mut t, *op)?,
        Event::Resolve { op, new } => resync::resolve(&mut t, *op, *new)?,
        Event::DropFork { generation } => operator::drop_fork(&mut t, *generation)?,
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
            Role::Source | Role::Trial(_) if short_gap && same_boot && restart.grace_ms > 0 => {
                next.session.access = Access::Open;
            }
            // No Grant has left: a planned failover that had got no further is cancelled.
            Role::Quiescing { .. } => next.record.role = Role::Source,
            _ => {}
        }
        let mut after = Vec::new();
        if let Role::Trial(trial) = next.record.role {
            after.push(trial::open_overlay(&next.record, trial));
        }
        if let Some(promotion) = next.record.promoting {
            after.push(Effect::Promote(promotion));
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
            pending: None,
            void_grants: None,
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
        !open || matches!(t.next.record.role, Role::Source | Role::Trial(_)),
        "invariant 1: only a source is open"
    );
    if now.is_some_and(|now| now.record.role != t.next.record.role) {
        t.next.session.pending = None;
    }
    if t.next.record.role != Role::Source {
        t.next.record.resync = None;
    }

    if !now.is_some_and(GroupState::serves) && t.next.serves() {
        t.after.push(Effect::OpenExports);
    }
    let was = now.and_then(GroupState::replicates_to);
    let is = t.next.replicates_to();
    // Another life of the peer, or one that was brought up, is sent to anew.
    let receiver = |peer: &PeerKnown| (peer.nonce, peer.summary.generation.id);
    if was.map(receiver) != is.map(receiver) {
        if let Some(peer) = is {
            t.after.push(Effect::StartReplication(replicate_from(
                &t.next,
                &peer.summary,
            )));
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

fn replicate_from(state: &GroupState, peer: &PeerSummary) -> ReplicateFrom {
    if state.relation_to(peer) == Relation::Ahead {
        ReplicateFrom::Behind {
            over: peer.generation.id,
            cycle: peer.cycle,
        }
    } else if peer.role == RoleName::Seeding {
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
    t.next.session.pending = None;
}
