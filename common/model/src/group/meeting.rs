//! What a site learns when it hears what the peer is to the group, by a Hello or by an answer.
//!
//! Owns the comparison of the two sites' histories and what follows from it; see [`super::step`]
//! for everything else.

use super::record::{FORCED_MAX, FORCED_TEXT_MAX_BYTES, Forced};
use super::refusal::Refusal;
use super::step::close_role;
use super::{Access, Effect, PeerKnown, Role, Transition, Trouble, trial};
use crate::ids::{Cycle, Generation, OpId};
use crate::lineage::{HISTORY_MAX, Relation};
use crate::peer::{Committed, Grant, Hello, HelloAnswer, PeerSummary, RoleName};

/// How the peer's words came, which decides what they are good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// In a Hello of its own: may be old, so it can only take rights away.
    Hello,
    /// In answer to the outstanding request: said after this site asked, so it may open.
    Answer,
}

pub(super) fn hello_received(t: &mut Transition, hello: &Hello) -> Result<(), Refusal> {
    check(t, &hello.summary)?;
    let peer = PeerKnown {
        nonce: hello.nonce,
        summary: hello.summary.clone(),
    };
    meet(t, peer, Words::Hello)?;
    let answer = t.next.hello_answer(hello);
    t.after.push(Effect::AnswerHello(answer));
    repeat_grant(t);
    Ok(())
}

pub(super) fn hello_answered(t: &mut Transition, answer: &HelloAnswer) -> Result<(), Refusal> {
    let session = &mut t.next.session;
    if answer.nonce != session.nonce || session.asked != Some(answer.request) {
        return Err(Refusal::StaleAnswer);
    }
    session.asked = None;
    check(t, &answer.summary)?;
    let peer = PeerKnown {
        nonce: answer.own_nonce,
        summary: answer.summary.clone(),
    };
    meet(t, peer, Words::Answer)?;
    repeat_grant(t);
    Ok(())
}

/// The peer is outside: its words are checked before they mean anything.
fn check(t: &Transition, peer: &PeerSummary) -> Result<(), Refusal> {
    if peer.group != t.next.record.group {
        return Err(Refusal::OtherGroup);
    }
    if peer.role == RoleName::Unpaired {
        return Ok(());
    }
    let lineage = &peer.lineage;
    if lineage.current != peer.generation.id {
        return Err(Refusal::Invalid {
            what: "its generation is not its history's current one",
        });
    }
    if lineage.ancestors.len().max(lineage.superseded.len()) > HISTORY_MAX {
        return Err(Refusal::Invalid {
            what: "its history is too long",
        });
    }
    let too_long = |act: &Forced| act.who.len().max(act.why.len()) > FORCED_TEXT_MAX_BYTES;
    if peer.forced.len() > FORCED_MAX || peer.forced.iter().any(too_long) {
        return Err(Refusal::Invalid {
            what: "its list of forced acts is too long",
        });
    }
    Ok(())
}

fn meet(t: &mut Transition, peer: PeerKnown, words: Words) -> Result<(), Refusal> {
    if peer.summary.role == RoleName::Unpaired {
        t.next.session.peer = Some(peer);
        meet_stranger(t, words);
        return Ok(());
    }
    let relation = t.next.relation_to(&peer.summary);
    if relation == Relation::Unrelated {
        return Err(Refusal::Unrelated);
    }
    let theirs = peer.summary.generation.id;
    match (&t.next.record.role, relation) {
        (
            Role::HandedOver {
                op, granted, base, ..
            },
            _,
        ) if theirs == granted.id => {
            let (op, granted, base) = (*op, *granted, *base);
            become_replica(t, op, granted, base);
            if words == Words::Answer {
                t.after.push(Effect::AskPeer);
            }
        }
        (Role::Source | Role::Quiescing { .. } | Role::HandedOver { .. }, Relation::Behind) => {
            // Closed and flushed before the record says so, and both before the peer hears of it.
            t.before.push(Effect::CloseExports { disconnect: true });
            close_role(t, Role::Fenced { by: theirs });
        }
        (Role::Trial(trial), Relation::Behind) => {
            // What was written on trial is a fork, and below it is a replica as before.
            trial::abandon(t, *trial, true);
        }
        (Role::Source | Role::Trial(_), Relation::Same | Relation::Ahead)
            if words == Words::Answer && !may_serve(peer.summary.role) =>
        {
            t.next.session.access = Access::Open;
        }
        _ => {}
    }
    t.next.record.note_peers_forced(&peer.summary.forced);
    let peer = newest(t.next.session.peer.take(), peer);
    t.next.session.trouble = trouble(t, &peer.summary);
    t.next.session.peer = Some(peer);
    Ok(())
}

/// Words and acknowledgements may overtake each other; within one life a replica only moves forward.
fn newest(known: Option<PeerKnown>, heard: PeerKnown) -> PeerKnown {
    match known {
        Some(known)
            if known.nonce == heard.nonce
                && known.summary.generation == heard.summary.generation
                && known.summary.cycle > heard.summary.cycle =>
        {
            known
        }
        _ => heard,
    }
}

/// The peer does not know the group: it never heard of it, or forgot it.
fn meet_stranger(t: &mut Transition, words: Words) {
    let nothing_there = t.next.record.last.is_none();
    t.next.session.trouble = (!nothing_there).then_some(Trouble::PeerForgot);
    if t.next.record.role == Role::Source && nothing_there {
        // It had no complete point to take over with, so nobody else can be serving.
        if words == Words::Answer {
            t.next.session.access = Access::Open;
        }
        t.after.push(Effect::OfferGroup);
    }
}

/// Row 11: the peer took what was granted; this image is the cut that the peer began with.
pub(super) fn become_replica(t: &mut Transition, op: OpId, granted: Generation, base: Committed) {
    let record = &mut t.next.record;
    record.role = Role::Replica;
    record.last = Some(base);
    record.take_over(granted);
    record.finished = Some(op);
    record.hold = None;
    t.after.push(Effect::BecomeReplica { at: base });
}

/// Repeats the Grant to the peer's present life, as long as it has not taken it.
fn repeat_grant(t: &mut Transition) {
    if let Some(grant) = grant(t) {
        t.after.push(Effect::SendGrant(grant));
    }
}

/// The Grant that is due, when this site has handed over and the peer is a replica that can take it.
pub(super) fn grant(t: &Transition) -> Option<Grant> {
    let record = &t.next.record;
    let Role::HandedOver {
        op,
        granted,
        base,
        reverse,
    } = &record.role
    else {
        return None;
    };
    let peer = t.next.session.peer.as_ref()?;
    let can_take = peer.summary.role == RoleName::Replica
        && is_at(&peer.summary, base)
        && t.next.relation_to(&peer.summary) == Relation::Same;
    can_take.then(|| Grant {
        request: *op,
        to_nonce: peer.nonce,
        group: record.group,
        from: record.generation(),
        granted: *granted,
        base: base.cycle,
        digest: base.digest,
        reverse: *reverse,
    })
}

/// Whether a site with this role has, or may get back without asking us, the right to serve.
pub(super) fn may_serve(role: RoleName) -> bool {
    matches!(
        role,
        RoleName::Source | RoleName::Quiescing | RoleName::HandedOver
    )
}

pub(super) fn trouble(t: &Transition, peer: &PeerSummary) -> Option<Trouble> {
    let ours = t.next.record.role.name();
    match t.next.relation_to(peer) {
        Relation::Diverged | Relation::Unrelated => Some(Trouble::Diverged),
        Relation::Same if may_serve(ours) && may_serve(peer.role) => Some(Trouble::TwoSources),
        Relation::Same => match &t.next.record.role {
            Role::HandedOver { base, .. } if !is_at(peer, base) => Some(Trouble::OtherCut),
            Role::Source | Role::Quiescing { .. } if !holds_acknowledged(t, peer) => {
                Some(Trouble::ReplicaChanged)
            }
            _ => None,
        },
        // A peer that may serve is told by our Hello that it is behind, and steps down by itself.
        Relation::Ahead if matches!(t.next.record.role, Role::Trial(_)) => None,
        Relation::Ahead if t.next.resyncs(peer) => None,
        Relation::Ahead if may_serve(ours) && !may_serve(peer.role) => Some(Trouble::PeerBehind),
        Relation::Ahead => None,
        Relation::Behind => Some(Trouble::BehindPeer),
    }
}

/// Whether the peer has at least what it acknowledged.
fn holds_acknowledged(t: &Transition, peer: &PeerSummary) -> bool {
    t.next
        .record
        .last
        .is_none_or(|last| peer.cycle > last.cycle || is_at(peer, &last))
}

fn is_at(peer: &PeerSummary, cut: &Committed) -> bool {
    peer.cycle == cut.cycle && peer.digest == Some(cut.digest)
}

/// Whether the peer keeps a complete replica of this generation, as far as this site knows.
pub(super) fn is_current_replica(t: &Transition, peer: &PeerSummary) -> bool {
    peer.role == RoleName::Replica
        && peer.cycle != Cycle::NONE
        && t.next.relation_to(peer) == Relation::Same
}
