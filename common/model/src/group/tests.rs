//! Each row of the state machine, and who may open after a restart.

use super::*;
use crate::ids::{Cycle, Digest, GenId, Generation, GroupId, UnixMillis};
use crate::lineage::Lineage;
use crate::peer::{Committed, Grant, TransferBegin, TransferKind};

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

fn act() -> ForceOpen {
    ForceOpen {
        who: "ann".to_owned(),
        why: "the other site is flooded".to_owned(),
        at: UnixMillis(1),
        peer_host_stopped: true,
        typed_name_matches: true,
        new: gen_id(99),
    }
}

#[test]
fn row_1_a_source_is_born_open_and_a_replica_seeding() {
    let source = GroupState::born_source(group(), gen_id(G0), nonce(1), BOOT);
    assert!(source.next.serves());
    assert_eq!(source.after, [Effect::AskPeer, Effect::OpenExports]);
    let met = answered(&source.next, 50, says(RoleName::Seeding, &[G0], 0));
    assert_eq!(
        met.after,
        [Effect::StartReplication(ReplicateFrom::Nothing)]
    );
    assert!(!replica().serves());
}

#[test]
fn row_1_a_source_offers_the_group_to_a_peer_that_does_not_know_it() {
    let born = GroupState::born_source(group(), gen_id(G0), nonce(1), BOOT).next;
    let again = restart(&born).next;
    assert!(!again.serves());
    let met = answered(&again, 50, PeerSummary::unknown(group()));
    assert_eq!(met.after, [Effect::OfferGroup, Effect::OpenExports]);
}

#[test]
fn a_peer_that_forgot_the_group_opens_nothing() {
    let closed = restart(&source()).next;
    let met = answered(&closed, 50, PeerSummary::unknown(group()));
    assert_eq!(met.after, [Effect::Alarm(Trouble::PeerForgot)]);
    assert!(!met.next.serves());
}

#[test]
fn row_2_an_acknowledged_cycle_is_remembered_once_and_never_goes_back() {
    let source = source();
    assert_eq!(source.record.cycle(), Cycle(5));
    let ack = |generation, last| Event::CycleAcknowledged { generation, last };
    assert_eq!(go(&source, &ack(gen_id(G0), cut(5))).next, source);
    assert!(matches!(
        refusal(&source, &ack(gen_id(G0), cut(4))),
        Refusal::OtherCycle { .. }
    ));
    assert!(matches!(
        refusal(&source, &ack(gen_id(G1), cut(6))),
        Refusal::OtherGeneration { .. }
    ));
    let next = go(&source, &ack(gen_id(G0), cut(7))).next;
    assert_eq!(next.record.cycle(), Cycle(7));
    assert_eq!(next.record.seq, source.record.seq + 1);
}

#[test]
fn row_3_a_replica_takes_only_what_follows_in_its_generation() {
    let asks = |generation: u8, from, to| {
        Event::TransferAsked(TransferBegin {
            group: group(),
            generation: gen_id(generation),
            kind: TransferKind::Cycle {
                from: Cycle(from),
                to: Cycle(to),
            },
        })
    };
    let replica = replica();
    assert_eq!(
        go(&replica, &asks(G0, 5, 6)).after,
        [Effect::AcceptTransfer]
    );
    // Cycles that were abandoned leave gaps in the numbers.
    assert_eq!(
        go(&replica, &asks(G0, 5, 9)).after,
        [Effect::AcceptTransfer]
    );
    assert_eq!(
        go(&replica, &asks(G0, 4, 5)).after,
        [Effect::Acknowledge(cut(5))]
    );
    assert!(matches!(
        refusal(&replica, &asks(G0, 4, 6)),
        Refusal::OtherCycle { .. }
    ));
    assert!(matches!(
        refusal(&replica, &asks(G0, 6, 7)),
        Refusal::OtherCycle { .. }
    ));
    assert!(matches!(
        refusal(&replica, &asks(G0, 5, 4)),
        Refusal::OtherCycle { .. }
    ));
    assert!(matches!(
        refusal(&replica, &asks(G1, 5, 6)),
        Refusal::OtherGeneration { .. }
    ));
    assert!(matches!(
        refusal(&source(), &asks(G0, 5, 6)),
        Refusal::NotReplica { .. }
    ));
    let seed = TransferBegin {
        group: group(),
        generation: gen_id(G0),
        kind: TransferKind::Seed,
    };
    let seed = Event::TransferAsked(seed);
    assert!(matches!(refusal(&replica, &seed), Refusal::Complete { .. }));
    let seeding = GroupState::born_replica(
        group(),
        Generation {
            epoch: 1,
            id: gen_id(G0),
        },
        nonce(50),
        BOOT,
    );
    assert_eq!(go(&seeding.next, &seed).after, [Effect::AcceptTransfer]);
    assert_eq!(
        go(&seeding.next, &asks(G0, 0, 1)).after,
        [Effect::AcceptTransfer]
    );
}

#[test]
fn row_3_a_committed_cycle_is_recorded_before_it_is_acknowledged() {
    let replica = replica();
    assert_eq!(replica.record.role, Role::Replica);
    let commit = |generation, last| Event::CycleCommitted { generation, last };
    let t = go(&replica, &commit(gen_id(G0), cut(6)));
    assert_eq!(t.next.record.last, Some(cut(6)));
    assert_eq!(t.after, [Effect::Acknowledge(cut(6))]);
    let repeated = go(&t.next, &commit(gen_id(G0), cut(6)));
    assert_eq!(repeated.next, t.next);
    assert_eq!(repeated.after, [Effect::Acknowledge(cut(6))]);
    assert!(matches!(
        refusal(&t.next, &commit(gen_id(G0), cut(5))),
        Refusal::OtherCycle { .. }
    ));
    // The transfer was under way when the right to serve came.
    let late = refusal(&new_source(), &commit(gen_id(G0), cut(6)));
    assert!(matches!(late, Refusal::NotReplica { .. }));
}

#[test]
fn row_4_a_restart_voids_rights_and_an_unfinished_failover() {
    let t = restart(&source());
    assert_eq!(t.next.session.access, Access::Closed);
    assert_eq!(t.after, [Effect::AskPeer]);
    assert_eq!(restart(&quiescing()).next.record.role, Role::Source);
    assert_eq!(restart(&handed_over()).next.record, handed_over().record);
    assert!(restart(&source()).next.record.seq > source().record.seq);
}

#[test]
fn row_5_only_the_answer_to_this_request_in_this_life_opens() {
    let closed = restart(&source()).next;
    let same = says(RoleName::Replica, &[G0], 5);
    let t = answered(&closed, 50, same.clone());
    assert_eq!(
        t.after,
        [
            Effect::OpenExports,
            Effect::StartReplication(ReplicateFrom::Cycle(Cycle(5)))
        ]
    );

    let asked = go(&closed, &Event::AskPeer { request: op(201) }).next;
    let answer = |request, to| {
        let summary = same.clone();
        Event::HelloAnswered(HelloAnswer {
            request,
            nonce: to,
            own_nonce: nonce(50),
            summary,
        })
    };
    let stale = [answer(op(201), nonce(1)), answer(op(202), nonce(2))];
    for old in &stale {
        assert_eq!(refusal(&asked, old), Refusal::StaleAnswer);
    }
    let newer = go(&asked, &Event::AskPeer { request: op(203) }).next;
    assert_eq!(
        refusal(&newer, &answer(op(201), nonce(2))),
        Refusal::StaleAnswer
    );
    let lost = go(&asked, &Event::PeerLost).next;
    assert_eq!(
        refusal(&lost, &answer(op(201), nonce(2))),
        Refusal::StaleAnswer
    );
    // What the peer says unasked may be old.
    assert!(!go(&closed, &says_hello(50, same)).next.serves());
}

#[test]
fn row_6_whoever_was_left_behind_closes_then_records_then_answers() {
    let moved_on = says_hello(51, says(RoleName::Source, &[G0, 40], 5));
    for state in [source(), quiescing(), handed_over()] {
        let t = go(&state, &moved_on);
        let closed = Effect::CloseExports { disconnect: true };
        assert_eq!(t.before.last(), Some(&closed));
        assert_eq!(t.next.record.role, Role::Fenced { by: gen_id(40) });
        assert!(matches!(
            t.after.as_slice(),
            [Effect::AnswerHello(answer), Effect::Alarm(Trouble::BehindPeer)]
                if answer.summary.role == RoleName::Fenced
        ));
    }
    let stopped = go(&source(), &moved_on).before;
    assert_eq!(stopped.first(), Some(&Effect::StopReplication));
}

#[test]
fn row_7_a_planned_failover_needs_a_current_replica_and_no_writer() {
    let source = source();
    assert_eq!(
        refusal(&source, &failover(2, false)),
        Refusal::WritersAttached { writers: 2 }
    );
    let t = go(&source, &failover(2, true));
    assert_eq!(
        t.next.record.role,
        Role::Quiescing {
            op: op(1),
            reverse: true
        }
    );
    assert_eq!(
        t.after,
        [
            Effect::CloseExports { disconnect: true },
            Effect::DrainAndShip { op: op(1) }
        ]
    );
    assert_eq!(
        go(&t.next, &failover(0, false)).after,
        [],
        "I8: the same operation again"
    );
    let other = Event::PlannedFailover {
        op: op(9),
        writers: 0,
        disconnect: false,
        reverse: true,
    };
    assert!(matches!(refusal(&t.next, &other), Refusal::Busy { .. }));

    let lost = go(&source, &Event::PeerLost).next;
    assert_eq!(
        refusal(&lost, &failover(0, false)),
        Refusal::PeerNotReachable
    );
    let paused = go(&source, &Event::Pause).next;
    assert_eq!(
        refusal(&paused, &failover(0, false)),
        Refusal::Held { hold: Hold::Paused }
    );
    assert_eq!(
        refusal(&restart(&source).next, &failover(0, false)),
        Refusal::Closed
    );
    let born = GroupState::born_source(group(), gen_id(G0), nonce(1), BOOT).next;
    let seeding = go(&born, &says_hello(50, says(RoleName::Seeding, &[G0], 0))).next;
    assert!(matches!(
        refusal(&seeding, &failover(0, false)),
        Refusal::PeerNotReplica { .. }
    ));
    assert!(matches!(
        refusal(&replica(), &failover(0, false)),
        Refusal::NotSource { .. }
    ));
}

#[test]
fn row_7_the_last_cycle_is_shipped_again_when_the_peer_is_back() {
    let lost = go(&quiescing(), &Event::PeerLost);
    assert_eq!(lost.before, [Effect::StopReplication]);
    assert_eq!(refusal(&lost.next, &shipped()), Refusal::PeerNotReachable);
    let back = answered(&lost.next, 51, says(RoleName::Replica, &[G0], 5));
    assert_eq!(
        back.after,
        [
            Effect::StartReplication(ReplicateFrom::Cycle(Cycle(5))),
            Effect::DrainAndShip { op: op(1) }
        ]
    );
}

#[test]
fn row_8_a_cancelled_failover_serves_again_at_once_and_asks() {
    let cancel = Event::QuiesceCancelled { op: op(1) };
    let t = go(&quiescing(), &cancel);
    assert_eq!(t.before, [Effect::StopReplication]);
    assert_eq!(t.next.record.role, Role::Source);
    assert!(t.next.serves());
    assert_eq!(t.after, [Effect::AskPeer, Effect::OpenExports]);
    let asked = go(&t.next, &Event::AskPeer { request: op(50) }).next;
    let met = answered(&asked, 50, says(RoleName::Replica, &[G0], 5));
    assert!(matches!(met.after[..], [Effect::StartReplication(_)]));
    assert_eq!(refusal(&handed_over(), &cancel), Refusal::HandedOver);
    assert!(matches!(
        refusal(&source(), &cancel),
        Refusal::NothingToCancel { .. }
    ));
}

#[test]
fn row_8_a_failover_cancelled_without_a_link_serves_again_too() {
    let lost = go(&quiescing(), &Event::PeerLost).next;
    let t = go(&lost, &Event::QuiesceCancelled { op: op(1) });
    assert!(t.next.serves());
    assert_eq!(t.next.record.may_reopen, Some(t.next.session.boot));
}

#[test]
fn row_8_a_failover_cancelled_in_a_conflict_stays_closed() {
    let claims = says_hello(9, says(RoleName::Source, &[G0], 5));
    let conflict = go(&quiescing(), &claims).next;
    assert_eq!(conflict.session.trouble, Some(Trouble::TwoSources));
    let t = go(&conflict, &Event::QuiesceCancelled { op: op(1) });
    assert_eq!(t.next.record.role, Role::Source);
    assert!(!t.next.serves());
    assert!(t.next.wants_answer());
}

#[test]
fn row_8_a_restart_in_a_planned_failover_leaves_a_closed_source() {
    let t = restart(&quiescing());
    assert_eq!(t.next.record.role, Role::Source);
    assert!(!t.next.serves());
}

#[test]
fn row_9_only_an_acknowledged_cut_is_handed_over() {
    let behind = Event::Shipped {
        op: op(1),
        last: cut(6),
        granted: gen_id(G1),
    };
    assert_eq!(
        refusal(&quiescing(), &behind),
        Refusal::NotAcknowledged {
            shipped: Cycle(6),
            acknowledged: Cycle(5)
        }
    );
    let used = Event::Shipped {
        op: op(1),
        last: cut(5),
        granted: gen_id(G0),
    };
    assert_eq!(refusal(&quiescing(), &used), Refusal::GenerationUsed);
    let t = go(&quiescing(), &shipped());
    assert_eq!(t.before, [Effect::StopReplication]);
    assert_eq!(t.after, [Effect::SendGrant(grant_of(50))]);
    assert_eq!(t.next.record.role.name(), RoleName::HandedOver);
    assert_eq!(go(&t.next, &shipped()).next, t.next);
}

#[test]
fn row_10_a_grant_is_taken_once_and_opens_when_the_image_is_ready() {
    let grant = Event::GrantReceived(grant_of(50));
    let taken = go(&replica(), &grant);
    assert_eq!(
        taken.after,
        [
            Effect::AnswerGrant { request: op(1) },
            Effect::Promote { through: Cycle(5) }
        ]
    );
    assert_eq!(taken.next.record.generation(), grant_of(50).granted);
    assert_eq!(taken.next.record.base, Cycle(5));
    assert!(!taken.next.serves());
    let ready = go(&taken.next, &Event::Promoted);
    assert!(ready.next.serves());
    assert!(ready.after.contains(&Effect::OpenExports));

    // I8, in this life and in the next.
    for state in [&ready.next, &restart(&ready.next).next] {
        let again = go(state, &grant);
        assert_eq!(again.after, [Effect::AnswerGrant { request: op(1) }]);
        assert_eq!(again.next, *state);
    }
}

#[test]
fn row_10_a_grant_for_another_life_cut_or_generation_is_refused() {
    let replica = replica();
    let refused = |change: &dyn Fn(&mut Grant)| {
        let mut grant = grant_of(50);
        change(&mut grant);
        refusal(&replica, &Event::GrantReceived(grant))
    };
    assert_eq!(refused(&|g| g.to_nonce = nonce(49)), Refusal::StaleGrant);
    assert!(matches!(
        refused(&|g| g.base = Cycle(4)),
        Refusal::OtherCut { .. }
    ));
    assert!(matches!(
        refused(&|g| g.digest = cut(4).digest),
        Refusal::OtherCut { .. }
    ));
    assert!(matches!(
        refused(&|g| g.from.id = gen_id(3)),
        Refusal::OtherGeneration { .. }
    ));
    assert_eq!(refused(&|g| g.granted.epoch = 7), Refusal::GenerationUsed);
    assert_eq!(
        refused(&|g| g.group = GroupId::from_bytes([0; 16])),
        Refusal::OtherGroup
    );
    let grant = Event::GrantReceived(grant_of(1));
    assert!(matches!(
        refusal(&source(), &grant),
        Refusal::NotReplica { .. }
    ));
}

#[test]
fn row_10_promotion_that_a_crash_interrupts_is_repeated_before_anything_opens() {
    let taken = go(&replica(), &Event::GrantReceived(grant_of(50))).next;
    let t = restart(&taken);
    assert_eq!(
        t.after,
        [Effect::Promote { through: Cycle(5) }, Effect::AskPeer]
    );
    let met = answered(&t.next, 1, says(RoleName::Replica, &[G0, G1], 5));
    assert_eq!(met.next.session.access, Access::Open);
    assert!(!met.next.serves());
    let ready = go(&met.next, &Event::Promoted);
    assert!(ready.after.contains(&Effect::OpenExports));
    // The other order: ready first, confirmed later.
    let ready = go(&t.next, &Event::Promoted).next;
    assert!(!ready.serves());
    assert!(
        answered(&ready, 1, says(RoleName::Replica, &[G0, G1], 5))
            .next
            .serves()
    );
}

#[test]
fn row_10_without_reverse_replication_waits_for_the_operator() {
    let mut grant = grant_of(50);
    grant.reverse = false;
    let taken = go(&replica(), &Event::GrantReceived(grant)).next;
    let ready = go(&taken, &Event::Promoted).next;
    let met = go(
        &ready,
        &says_hello(1, says(RoleName::Replica, &[G0, G1], 5)),
    )
    .next;
    assert!(met.serves());
    assert_eq!(met.replicates_to(), None);
    assert_eq!(
        refusal(&met, &Event::Resume),
        Refusal::HeldOtherwise {
            hold: Hold::AwaitingReverse
        }
    );
    assert_eq!(
        refusal(&met, &Event::Pause),
        Refusal::Held {
            hold: Hold::AwaitingReverse
        }
    );
    let reversed = go(&met, &Event::Reverse);
    assert_eq!(
        reversed.after,
        [Effect::StartReplication(ReplicateFrom::Cycle(Cycle(5)))]
    );
}

#[test]
fn row_11_the_old_source_becomes_a_replica_without_copying() {
    let took = says(RoleName::Source, &[G0, G1], 5);
    let by_hello = go(&handed_over(), &says_hello(50, took.clone()));
    let by_answer = answered(&handed_over(), 50, took);
    let by_grant = go(&handed_over(), &Event::GrantAnswered { request: op(1) });
    for t in [&by_hello, &by_answer, &by_grant] {
        assert_eq!(t.next.record.role, Role::Replica);
        assert_eq!(t.next.record.generation(), grant_of(50).granted);
        assert_eq!(t.next.record.last, Some(cut(5)));
        assert_eq!(t.after.first(), Some(&Effect::BecomeReplica { at: cut(5) }));
        assert_eq!(
            go(&t.next, &failover(0, false)).next,
            t.next,
            "I8: done already"
        );
    }
    let other = Event::GrantAnswered { request: op(8) };
    assert_eq!(refusal(&handed_over(), &other), Refusal::StaleAnswer);
    assert_eq!(refusal(&source(), &other), Refusal::StaleAnswer);
}

#[test]
fn row_14_a_forced_act_needs_every_signature_and_an_unreachable_peer() {
    let closed = restart(&source()).next;
    let changed = |change: &dyn Fn(&mut ForceOpen)| {
        let mut act = act();
        change(&mut act);
        refusal(&closed, &Event::ForceOpen(act))
    };
    assert!(matches!(
        changed(&|a| a.who.clear()),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.why = "  ".to_owned()),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.why = "x".repeat(2000)),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.peer_host_stopped = false),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.typed_name_matches = false),
        Refusal::NotSigned { .. }
    ));
    assert_eq!(changed(&|a| a.new = gen_id(G0)), Refusal::GenerationUsed);
    let forced = Event::ForceOpen(act());
    assert_eq!(refusal(&source(), &forced), Refusal::AlreadyOpen);
    assert_eq!(refusal(&handed_over(), &forced), Refusal::PeerReachable);
    assert!(matches!(
        refusal(&replica(), &forced),
        Refusal::NotSource { .. }
    ));
    assert!(matches!(
        refusal(&quiescing(), &forced),
        Refusal::Busy { .. }
    ));
}

#[test]
fn row_14_a_forced_act_opens_in_a_new_generation_and_is_remembered() {
    for state in [source(), handed_over(), fenced()] {
        let closed = restart(&state).next;
        let t = go(&closed, &Event::ForceOpen(act()));
        assert_eq!(t.after, [Effect::OpenExports]);
        assert_eq!(t.next.record.lineage.current, gen_id(99));
        assert!(t.next.record.lineage.left_behind(gen_id(G0)));
        assert_eq!(t.next.record.forced[0].who, "ann");
    }
    // Never the granted generation: the peer may have taken it.
    let closed = restart(&handed_over()).next;
    let granted = ForceOpen {
        new: gen_id(G1),
        ..act()
    };
    assert_eq!(
        refusal(&closed, &Event::ForceOpen(granted)),
        Refusal::GenerationUsed
    );
}

#[test]
fn row_14_the_replica_of_a_forced_source_is_behind_and_gets_nothing() {
    let closed = restart(&source()).next;
    let open = go(&closed, &Event::ForceOpen(act())).next;
    let met = answered(&open, 51, says(RoleName::Replica, &[G0], 5));
    assert_eq!(met.after, [Effect::Alarm(Trouble::PeerBehind)]);
    assert!(met.next.serves());
    let told = go(&replica(), &says_hello(2, met.next.summary()));
    assert_eq!(told.next.session.trouble, Some(Trouble::BehindPeer));
    assert_eq!(told.next.record, replica().record);
}

#[test]
fn row_19_diverged_sites_say_so_and_neither_opens_nor_closes() {
    let theirs = says(RoleName::Source, &[G0, 40], 5);
    let closed = restart(&handed_over()).next;
    let open = go(&closed, &Event::ForceOpen(act())).next;
    let t = go(&open, &says_hello(51, theirs.clone()));
    assert!(t.next.serves());
    assert_eq!(t.next.session.trouble, Some(Trouble::Diverged));
    assert!(t.after.contains(&Effect::Alarm(Trouble::Diverged)));
    // The alarm is not raised again by the next meeting.
    let again = go(&t.next, &says_hello(51, theirs.clone()));
    assert!(!again.after.contains(&Effect::Alarm(Trouble::Diverged)));
    // In conflict a source does not reopen alone.
    assert!(!restart_in(&t.next, BOOT, Some(1)).next.serves());
    let met = answered(&restart(&open).next, 51, theirs);
    assert!(!met.next.serves());
    assert!(met.after.contains(&Effect::Alarm(Trouble::Diverged)));
}

#[test]
fn a_history_of_something_else_is_refused() {
    let stranger = says_hello(51, says(RoleName::Source, &[200], 5));
    assert_eq!(refusal(&source(), &stranger), Refusal::Unrelated);
    let mut other = says(RoleName::Replica, &[G0], 5);
    other.group = GroupId::from_bytes([0; 16]);
    assert_eq!(
        refusal(&source(), &says_hello(50, other)),
        Refusal::OtherGroup
    );
    let mut torn = says(RoleName::Replica, &[G0], 5);
    torn.generation.id = gen_id(G1);
    assert!(matches!(
        refusal(&source(), &says_hello(50, torn)),
        Refusal::Invalid { .. }
    ));
}

#[test]
fn restart_table_source() {
    let closed = restart(&source()).next;
    let fenced_behind = says(RoleName::Fenced, &[G0], 5);
    assert!(answered(&closed, 51, fenced_behind).next.serves());
    let forced = restart(&go(&closed, &Event::ForceOpen(act())).next).next;
    let ahead = answered(&forced, 51, says(RoleName::Replica, &[G0], 5)).next;
    assert!(ahead.serves(), "ahead of a peer that is no source");
    for still_serving in [RoleName::Source, RoleName::Quiescing, RoleName::HandedOver] {
        let met = answered(&closed, 51, says(still_serving, &[G0], 5)).next;
        assert!(!met.serves());
        assert_eq!(met.session.trouble, Some(Trouble::TwoSources));
    }
    let behind = answered(&closed, 51, says(RoleName::Source, &[G0, 40], 5)).next;
    assert_eq!(behind.record.role, Role::Fenced { by: gen_id(40) });
    assert!(closed.wants_answer());
}

#[test]
fn restart_table_handed_over() {
    let closed = restart(&handed_over()).next;
    assert!(!closed.serves());
    let repeat = answered(&closed, 51, says(RoleName::Replica, &[G0], 5));
    assert_eq!(
        repeat.after,
        [Effect::SendGrant(grant_of(51))],
        "to the peer's new life"
    );
    let took = answered(&closed, 51, says(RoleName::Source, &[G0, G1], 5)).next;
    assert_eq!(took.record.role, Role::Replica);
}

#[test]
fn restart_table_the_others_stay_what_they_are() {
    for state in [replica(), fenced()] {
        let t = restart(&state);
        assert_eq!(t.next.record, state.record);
        assert_eq!(t.after, [Effect::AskPeer]);
        let met = answered(&t.next, 51, says(RoleName::Source, &[G0], 5));
        assert_eq!(met.next.record.role, state.record.role);
        assert!(!met.next.serves());
    }
}

#[test]
fn a_source_that_was_open_reopens_alone_in_the_same_boot_within_the_grace() {
    assert!(restart_in(&source(), BOOT, Some(60_000)).next.serves());
    assert!(!restart_in(&source(), BOOT, Some(60_001)).next.serves());
    assert!(!restart_in(&source(), BOOT, None).next.serves());
    assert!(!restart_in(&source(), OTHER_BOOT, Some(1)).next.serves());
    assert!(!restart_in(&quiescing(), BOOT, Some(1)).next.serves());
    assert!(!restart_in(&handed_over(), BOOT, Some(1)).next.serves());
    // Closed since the host's restart: dying once more is no way to open.
    let closed = restart(&source()).next;
    assert!(!restart_in(&closed, OTHER_BOOT, Some(1)).next.serves());
}

#[test]
fn pause_stops_replication_and_resume_goes_on_where_it_was() {
    let paused = go(&source(), &Event::Pause);
    assert_eq!(paused.before, [Effect::StopReplication]);
    assert!(paused.next.serves());
    let restarted = restart(&paused.next).next;
    let met = answered(&restarted, 50, says(RoleName::Replica, &[G0], 5)).next;
    assert!(met.serves());
    assert_eq!(met.replicates_to(), None);
    assert_eq!(
        go(&met, &Event::Resume).after,
        [Effect::StartReplication(ReplicateFrom::Cycle(Cycle(5)))]
    );
}

#[test]
fn a_new_life_of_the_peer_starts_replication_anew() {
    let t = go(
        &source(),
        &says_hello(51, says(RoleName::Replica, &[G0], 5)),
    );
    assert_eq!(t.before, [Effect::StopReplication]);
    assert!(
        t.after
            .contains(&Effect::StartReplication(ReplicateFrom::Cycle(Cycle(5))))
    );
}

/// The source's change map knows only what came after the acknowledged cycle.
#[test]
fn a_replica_that_lost_what_it_acknowledged_is_sent_nothing() {
    let older = says(RoleName::Replica, &[G0], 4);
    let mut other = says(RoleName::Replica, &[G0], 5);
    other.digest = Some(cut(9).digest);
    for summary in [older.clone(), other, says(RoleName::Seeding, &[G0], 0)] {
        let t = go(&source(), &says_hello(51, summary));
        assert_eq!(t.before, [Effect::StopReplication]);
        assert_eq!(
            t.after.last(),
            Some(&Effect::Alarm(Trouble::ReplicaChanged))
        );
        assert!(t.next.serves());
        let mended = go(&t.next, &says_hello(52, says(RoleName::Replica, &[G0], 5))).next;
        assert!(mended.replicates_to().is_some());
    }
    // Older words of the same life were overtaken by the acknowledgement.
    let late = go(&source(), &says_hello(50, older)).next;
    assert_eq!(late.session, source().session);
}

#[test]
fn a_peer_that_is_not_at_the_hand_over_cut_is_reported() {
    let t = go(
        &handed_over(),
        &says_hello(51, says(RoleName::Replica, &[G0], 6)),
    );
    assert!(matches!(
        t.after.as_slice(),
        [Effect::AnswerHello(_), Effect::Alarm(Trouble::OtherCut)]
    ));
}

#[test]
fn protection_ends_at_the_source_and_the_peer_ends_only_replicas() {
    let end = |writers, disconnect| Event::Withdraw {
        writers,
        disconnect,
    };
    assert_eq!(
        refusal(&source(), &end(1, false)),
        Refusal::WritersAttached { writers: 1 }
    );
    let t = go(&source(), &end(1, true));
    assert_eq!(
        t.before,
        [
            Effect::StopReplication,
            Effect::CloseExports { disconnect: true }
        ]
    );
    assert_eq!(t.after, [Effect::Forget]);
    assert!(matches!(
        refusal(&handed_over(), &end(0, false)),
        Refusal::Busy { .. }
    ));
    assert_eq!(
        refusal(&replica(), &end(0, false)),
        Refusal::WithdrawAtSource
    );
    assert_eq!(go(&replica(), &Event::PeerWithdrew).after, [Effect::Forget]);
    assert!(matches!(
        refusal(&source(), &Event::PeerWithdrew),
        Refusal::NotReplica { .. }
    ));
}

#[test]
fn an_offer_repeated_is_harmless_and_one_that_contradicts_is_refused() {
    let offer = |generation| Event::Offered {
        generation: gen_id(generation),
    };
    assert_eq!(go(&replica(), &offer(G0)).next, replica());
    assert!(matches!(
        refusal(&replica(), &offer(G1)),
        Refusal::Known { .. }
    ));
    assert!(matches!(
        refusal(&source(), &offer(G0)),
        Refusal::Known { .. }
    ));
}

#[test]
fn operators_are_offered_what_would_not_be_refused() {
    use Operation::{Cut, ForceOpen, Pause, PlannedFailover, Resume, Reverse, Unprotect};
    assert_eq!(
        allowed_operations(&source()),
        [Cut, Pause, PlannedFailover, Unprotect]
    );
    let paused = go(&source(), &Event::Pause).next;
    assert_eq!(allowed_operations(&paused), [Resume, Unprotect]);
    assert_eq!(allowed_operations(&quiescing()), []);
    assert_eq!(allowed_operations(&handed_over()), []);
    assert_eq!(
        allowed_operations(&restart(&handed_over()).next),
        [ForceOpen]
    );
    assert_eq!(allowed_operations(&replica()), []);
    let mut grant = grant_of(50);
    grant.reverse = false;
    let held = go(&replica(), &Event::GrantReceived(grant)).next;
    assert_eq!(allowed_operations(&held), [Reverse, Unprotect]);
}
