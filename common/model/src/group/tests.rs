//! Each row of the state machine, and who may open after a restart. Here: the states and messages
//! that the tests begin with.

mod fence;
mod forced;
mod planned;
mod replication;
mod restart;
mod resync;
mod trial;

use super::*;
use crate::ids::{Cycle, Digest, GenId, Generation, GroupId, UnixMillis};
use crate::lineage::Lineage;
use crate::peer::{
    Committed, Confirmation, FenceRequest, Grant, ReleaseRequest, TransferBegin, TransferKind,
};

const BOOT: BootId = [1; 16];
const OTHER_BOOT: BootId = [2; 16];
const G0: u8 = 10;
const G1: u8 = 11;

fn gen_id(n: u8) -> GenId {
    GenId::from_bytes([n; 16])
}

fn nonce(n: u8) -> Nonce {
    Nonce::from_bytes([n; 16])
}

fn op(n: u8) -> OpId {
    OpId::from_bytes([n; 16])
}

fn group() -> GroupId {
    GroupId::from_bytes([77; 16])
}

fn cut(cycle: u8) -> Committed {
    Committed {
        cycle: Cycle(u64::from(cycle)),
        digest: Digest::from_bytes([cycle; 32]),
    }
}

fn grant_of(to: u8) -> Grant {
    Grant {
        request: op(1),
        to_nonce: nonce(to),
        group: group(),
        from: Generation {
            epoch: 1,
            id: gen_id(G0),
        },
        granted: Generation {
            epoch: 2,
            id: gen_id(G1),
        },
        base: Cycle(5),
        digest: cut(5).digest,
        reverse: true,
    }
}

/// What a peer says of itself, in the lineage that the listed generations make.
fn says(role: RoleName, generations: &[u8], cycle: u8) -> PeerSummary {
    let (first, rest) = generations.split_first().expect("at least one generation");
    let lineage = rest
        .iter()
        .fold(Lineage::born(gen_id(*first)), |lineage, next| {
            lineage.advanced(gen_id(*next))
        });
    PeerSummary {
        group: group(),
        role,
        generation: Generation {
            epoch: u64::try_from(generations.len()).expect("few"),
            id: lineage.current,
        },
        lineage,
        cycle: Cycle(u64::from(cycle)),
        digest: (cycle > 0).then(|| cut(cycle).digest),
        forced: Vec::new(),
    }
}

fn says_hello(from: u8, summary: PeerSummary) -> Event {
    Event::HelloReceived(Hello {
        request: op(200),
        nonce: nonce(from),
        summary,
    })
}

fn go(now: &GroupState, event: &Event) -> Transition {
    step(now, event).unwrap_or_else(|refusal| panic!("{event:?} was refused: {refusal}"))
}

fn refusal(now: &GroupState, event: &Event) -> Refusal {
    match step(now, event) {
        Err(refusal) => refusal,
        Ok(t) => panic!("{event:?} was not refused: {t:?}"),
    }
}

/// Asks the peer and lets it answer.
fn answered(now: &GroupState, from: u8, summary: PeerSummary) -> Transition {
    let asked = go(now, &Event::AskPeer { request: op(201) }).next;
    let answer = HelloAnswer {
        request: op(201),
        nonce: asked.session.nonce,
        own_nonce: nonce(from),
        summary,
    };
    go(&asked, &Event::HelloAnswered(answer))
}

/// A source that serves, with cycle 5 at a replica in life 50.
fn source() -> GroupState {
    let born = GroupState::born_source(group(), gen_id(G0), nonce(1), BOOT).next;
    let met = answered(&born, 50, says(RoleName::Seeding, &[G0], 0)).next;
    go(
        &met,
        &Event::CycleAcknowledged {
            generation: gen_id(G0),
            last: cut(5),
        },
    )
    .next
}

/// The replica of [`source`], in life 50, which knows the source in life 1.
fn replica() -> GroupState {
    let generation = Generation {
        epoch: 1,
        id: gen_id(G0),
    };
    let born = GroupState::born_replica(group(), generation, nonce(50), BOOT).next;
    let met = go(&born, &says_hello(1, says(RoleName::Source, &[G0], 0))).next;
    go(
        &met,
        &Event::CycleCommitted {
            generation: gen_id(G0),
            last: cut(5),
        },
    )
    .next
}

fn failover(writers: usize, disconnect: bool) -> Event {
    Event::PlannedFailover {
        op: op(1),
        writers,
        disconnect,
        reverse: true,
    }
}

fn quiescing() -> GroupState {
    go(&source(), &failover(0, false)).next
}

fn shipped() -> Event {
    Event::Shipped {
        op: op(1),
        last: cut(5),
        granted: gen_id(G1),
    }
}

fn handed_over() -> GroupState {
    go(&quiescing(), &shipped()).next
}

fn fenced() -> GroupState {
    go(
        &source(),
        &says_hello(51, says(RoleName::Source, &[G0, G1], 5)),
    )
    .next
}

fn new_source() -> GroupState {
    let taken = go(&replica(), &Event::GrantReceived(grant_of(50))).next;
    go(&taken, &Event::Promoted).next
}

fn restart(state: &GroupState) -> Transition {
    restart_in(state, OTHER_BOOT, None)
}

fn restart_in(state: &GroupState, boot: BootId, dead_for_ms: Option<u64>) -> Transition {
    let record = RoleRecord::decode(&state.record.encode()).unwrap();
    let new_life = Restart {
        nonce: nonce(2),
        boot,
        dead_for_ms,
        grace_ms: 60_000,
    };
    GroupState::restarted(record, &new_life)
}

fn signature() -> Signature {
    Signature {
        who: "ann".to_owned(),
        why: "the other site is flooded".to_owned(),
        at: UnixMillis(1),
        typed_name_matches: true,
        peer: PeerStatement::HostOff,
    }
}

fn act() -> ForceOpen {
    ForceOpen {
        op: op(90),
        signature: signature(),
        new: gen_id(99),
    }
}

fn take_over(point: Option<u64>) -> FailOver {
    FailOver {
        op: op(30),
        point: point.map(Cycle),
        new: gen_id(G1),
        commit_at: None,
        writers: 0,
        disconnect: false,
        forced: None,
    }
}

fn roll_back(forced: Option<Signature>) -> Event {
    Event::RollBack(RollBack {
        op: op(32),
        writers: 0,
        disconnect: false,
        forced,
    })
}

/// The answer to a fence.
fn fenced_for(request: u8, to: u8) -> Event {
    Event::FenceAnswered(Confirmation {
        request: op(request),
        nonce: nonce(to),
    })
}

fn fence_request() -> FenceRequest {
    FenceRequest {
        request: op(30),
        nonce: nonce(50),
        to_nonce: nonce(1),
        group: group(),
        generation: source().record.generation(),
        new: gen_id(G1),
    }
}

/// The replica of [`source`], which asked to take over at its newest point.
fn asked_to_take_over() -> GroupState {
    go(&replica(), &Event::FailOver(take_over(None))).next
}

/// [`replica`] once the source has fenced itself: an uncommitted failover.
fn on_trial() -> GroupState {
    go(&asked_to_take_over(), &fenced_for(30, 50)).next
}

/// [`on_trial`], having met the fenced source.
fn on_trial_and_met() -> GroupState {
    let fenced = says(RoleName::Fenced, &[G0], 5);
    go(&on_trial(), &says_hello(1, fenced)).next
}

/// [`on_trial`], committed and folded in.
fn committed() -> GroupState {
    let t = go(&on_trial(), &Event::CommitFailover { op: op(31) }).next;
    go(&t, &Event::Promoted).next
}

/// [`source`] after it granted the fence.
fn fenced_on_request() -> GroupState {
    go(&source(), &Event::FenceReceived(fence_request())).next
}

/// A step that repeats one that was taken: I8.
fn changes_nothing(now: &GroupState, event: &Event) {
    let again = go(now, event);
    assert_eq!(again.next, *now, "{event:?}");
    assert!(
        again.before.is_empty() && again.after.is_empty(),
        "{event:?}"
    );
}
