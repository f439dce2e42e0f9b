//! Bulk data and holding it: rows 2 and 3.

use super::*;

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
    use Operation::{Cut, FailOver, ForceOpen, Pause, PlannedFailover, Resume, Reverse, Unprotect};
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
    assert_eq!(allowed_operations(&replica()), [FailOver]);
    let mut grant = grant_of(50);
    grant.reverse = false;
    let held = go(&replica(), &Event::GrantReceived(grant)).next;
    assert_eq!(allowed_operations(&held), [Reverse, Unprotect]);
}
