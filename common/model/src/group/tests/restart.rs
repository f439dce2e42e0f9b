//! Births, restarts, and who may open after one: rows 1 and 4 to 6.

use super::*;

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
