//! Fencing on request, and the release of a fenced site: rows 6, 12 and 21.

use super::*;

fn released(request: u8, to: u8) -> Event {
    Event::ReleaseAnswered(Confirmation {
        request: op(request),
        nonce: nonce(to),
    })
}

fn release_request() -> ReleaseRequest {
    ReleaseRequest {
        request: op(40),
        nonce: nonce(1),
        to_nonce: nonce(50),
        group: group(),
        generation: source().record.generation(),
    }
}

fn release() -> Event {
    Event::Release {
        op: op(40),
        new: gen_id(60),
    }
}

/// [`fenced_on_request`], having met the replica again and asked to be released.
fn waiting_for_release() -> GroupState {
    let met = answered(&fenced_on_request(), 50, says(RoleName::Replica, &[G0], 5));
    go(&met.next, &release()).next
}

#[test]
fn row_12_the_replica_asks_and_changes_nothing_yet() {
    let t = go(&replica(), &Event::FailOver(take_over(None)));
    assert_eq!(t.next.record, replica().record);
    assert_eq!(t.after, [Effect::SendFence(fence_request())]);
    changes_nothing(&t.next, &Event::FailOver(take_over(None)));
}

#[test]
fn row_12_only_a_peer_of_the_same_generation_that_may_serve_is_asked() {
    for summary in [
        says(RoleName::Replica, &[G0], 5),
        says(RoleName::Source, &[G0, 40], 5),
    ] {
        let met = go(&replica(), &says_hello(1, summary)).next;
        assert!(matches!(
            refusal(&met, &Event::FailOver(take_over(None))),
            Refusal::PeerElsewhere { .. }
        ));
    }
    let alone = go(&replica(), &Event::PeerLost).next;
    assert_eq!(
        refusal(&alone, &Event::FailOver(take_over(None))),
        Refusal::NeedsSignature
    );
}

#[test]
fn row_12_a_fence_is_answered_after_closing_and_recording() {
    let fence = Event::FenceReceived(fence_request());
    for state in [source(), quiescing(), handed_over()] {
        let t = go(&state, &fence);
        let closed = Effect::CloseExports { disconnect: true };
        assert_eq!(t.before.last(), Some(&closed));
        assert_eq!(t.next.record.role, Role::Fenced { by: gen_id(G1) });
        let answer = Confirmation {
            request: op(30),
            nonce: nonce(50),
        };
        assert_eq!(t.after, [Effect::AnswerFence(answer)]);
        let again = go(&t.next, &fence);
        assert_eq!((again.next, again.after), (t.next, t.after), "I8");
    }
}

#[test]
fn row_12_a_fence_for_another_life_generation_or_role_is_refused() {
    let refused = |state: &GroupState, change: &dyn Fn(&mut FenceRequest)| {
        let mut request = fence_request();
        change(&mut request);
        refusal(state, &Event::FenceReceived(request))
    };
    assert_eq!(
        refused(&source(), &|r| r.to_nonce = nonce(9)),
        Refusal::StaleRequest
    );
    assert!(matches!(
        refused(&source(), &|r| r.generation.id = gen_id(3)),
        Refusal::OtherGeneration { .. }
    ));
    assert_eq!(
        refused(&source(), &|r| r.group = GroupId::from_bytes([0; 16])),
        Refusal::OtherGroup
    );
    assert!(matches!(
        refused(&replica(), &|r| r.to_nonce = nonce(50)),
        Refusal::NotSource { .. }
    ));
    let trial = on_trial();
    let to_trial = |r: &mut FenceRequest| {
        r.to_nonce = nonce(50);
        r.generation = trial.record.generation();
    };
    assert_eq!(refused(&trial, &to_trial), Refusal::Uncommitted);
}

#[test]
fn rule_2_only_the_answer_to_this_fence_in_this_life_takes_over() {
    let asked = asked_to_take_over();
    for stale in [fenced_for(31, 50), fenced_for(30, 49)] {
        assert_eq!(refusal(&asked, &stale), Refusal::StaleAnswer);
    }
    let answer = fenced_for(30, 50);
    assert_eq!(refusal(&replica(), &answer), Refusal::StaleAnswer);
    for void in [
        Event::PeerLost,
        Event::GiveUp { op: op(30) },
        Event::ReleaseReceived(release_request()),
    ] {
        let later = go(&asked, &void).next;
        assert_eq!(refusal(&later, &answer), Refusal::StaleAnswer, "{void:?}");
    }
    let newer = FailOver {
        op: op(33),
        ..take_over(None)
    };
    let newer = go(&asked, &Event::FailOver(newer)).next;
    assert_eq!(refusal(&newer, &answer), Refusal::StaleAnswer);
    assert!(go(&newer, &fenced_for(33, 50)).next.serves());
}

#[test]
fn row_21_a_release_needs_a_replica_of_the_same_generation() {
    let fenced = fenced_on_request();
    let alone = go(&fenced, &Event::PeerLost).next;
    assert_eq!(refusal(&alone, &release()), Refusal::PeerNotReachable);
    let on_trial = says(RoleName::Source, &[G0, G1], 5);
    let met = go(&fenced, &says_hello(50, on_trial)).next;
    assert!(matches!(
        refusal(&met, &release()),
        Refusal::PeerElsewhere { .. }
    ));
    assert!(matches!(
        refusal(&source(), &release()),
        Refusal::NotFenced { .. }
    ));
    changes_nothing(&waiting_for_release(), &release());
}

#[test]
fn row_21_the_replica_drops_its_failover_before_it_answers() {
    let asked = Event::ReleaseReceived(release_request());
    let t = go(&asked_to_take_over(), &asked);
    assert_eq!(t.next.session.pending, None);
    let answer = Confirmation {
        request: op(40),
        nonce: nonce(1),
    };
    assert_eq!(t.after, [Effect::AnswerRelease(answer)]);
    let mut to_trial = release_request();
    to_trial.generation = on_trial().record.generation();
    assert!(matches!(
        refusal(&on_trial(), &Event::ReleaseReceived(to_trial)),
        Refusal::NotReplica { .. }
    ));
}

#[test]
fn row_21_a_released_site_serves_in_a_new_generation() {
    let asked = waiting_for_release();
    for stale in [released(41, 1), released(40, 2)] {
        assert_eq!(refusal(&asked, &stale), Refusal::StaleAnswer);
    }
    let t = go(&asked, &released(40, 1));
    assert!(t.next.serves());
    assert_eq!(t.next.record.role, Role::Source);
    assert_eq!(t.next.record.lineage.current, gen_id(60));
    changes_nothing(&t.next, &release());
}

#[test]
fn rule_2_answering_a_fence_voids_the_own_release() {
    let fence = Event::FenceReceived(fence_request());
    let fenced = go(&waiting_for_release(), &fence).next;
    assert_eq!(refusal(&fenced, &released(40, 1)), Refusal::StaleAnswer);
}

/// A Grant that was sent before the fence may come after the release.
#[test]
fn a_grant_from_before_the_fence_is_void() {
    let grant = Event::GrantReceived(grant_of(50));
    let asked = Event::ReleaseReceived(release_request());
    let released = go(&replica(), &asked).next;
    assert_eq!(refusal(&released, &grant), Refusal::VoidGrant);
    let back = go(&on_trial_and_met(), &roll_back(None)).next;
    assert_eq!(refusal(&back, &grant), Refusal::VoidGrant);
}
