//! Planned failover: rows 7 to 11.

use super::*;

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
            Effect::Promote(Promotion::BeforeServing(Cycle(5)))
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
        [
            Effect::Promote(Promotion::BeforeServing(Cycle(5))),
            Effect::AskPeer
        ]
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
