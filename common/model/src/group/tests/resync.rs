//! Resync, and the resolution of a divergence: rows 17 to 20.

use super::*;

const RESYNC: Event = Event::Resync {
    op: OpId::from_bytes([50; 16]),
};
const RESOLVE: Event = Event::Resolve {
    op: OpId::from_bytes([51; 16]),
    new: GenId::from_bytes([61; 16]),
};

/// [`committed`], having met the old source, which is fenced.
fn ahead() -> GroupState {
    answered(&committed(), 1, says(RoleName::Fenced, &[G0], 5)).next
}

/// A fenced source, having met the new one.
fn behind() -> GroupState {
    let ahead = says(RoleName::Source, &[G0, G1], 5);
    answered(&fenced_on_request(), 50, ahead).next
}

fn begin(over: u8, from: u64, to: u64) -> Event {
    Event::TransferAsked(TransferBegin {
        group: group(),
        generation: gen_id(G1),
        kind: TransferKind::Resync {
            over: gen_id(over),
            from: Cycle(from),
            to: Cycle(to),
        },
    })
}

fn resynced(cycle: u8) -> Event {
    Event::CycleCommitted {
        generation: gen_id(G1),
        last: cut(cycle),
    }
}

#[test]
fn row_17_a_peer_behind_is_sent_nothing_until_an_operator_says_so() {
    assert_eq!(ahead().session.trouble, Some(Trouble::PeerBehind));
    assert_eq!(ahead().replicates_to(), None);
    let t = go(&ahead(), &RESYNC);
    let start = Effect::StartReplication(ReplicateFrom::Behind {
        over: gen_id(G0),
        cycle: Cycle(5),
    });
    assert_eq!(t.after.as_slice(), std::slice::from_ref(&start));
    assert_eq!(t.next.session.trouble, None);
    changes_nothing(&t.next, &RESYNC);
    // The word outlives a restart.
    let again = restart(&t.next).next;
    let met = answered(&again, 1, says(RoleName::Fenced, &[G0], 5));
    assert!(met.after.contains(&start));
}

#[test]
fn row_17_what_cannot_be_known_as_changes_is_not_sent_as_changes() {
    let mut other = says(RoleName::Fenced, &[G0], 5);
    other.digest = Some(cut(9).digest);
    let older = says(RoleName::Replica, &[G0], 4);
    for summary in [other, older, says(RoleName::Seeding, &[G0], 0)] {
        let met = answered(&committed(), 1, summary).next;
        assert!(matches!(refusal(&met, &RESYNC), Refusal::NotBehind { .. }));
    }
    assert!(matches!(
        refusal(&source(), &RESYNC),
        Refusal::NotBehind { .. }
    ));
    assert!(matches!(
        refusal(&replica(), &RESYNC),
        Refusal::NotSource { .. }
    ));
    let folding = go(&on_trial_and_met(), &Event::CommitFailover { op: op(31) }).next;
    assert_eq!(refusal(&folding, &RESYNC), Refusal::Promoting);
    let alone = go(&committed(), &Event::PeerLost).next;
    assert_eq!(refusal(&alone, &RESYNC), Refusal::PeerNotReachable);
    let closed = restart(&committed()).next;
    assert_eq!(refusal(&closed, &RESYNC), Refusal::Closed);
}

#[test]
fn row_17_the_peer_that_was_brought_up_is_replicated_to_as_before() {
    let sending = go(&ahead(), &RESYNC).next;
    let acknowledged = Event::CycleAcknowledged {
        generation: gen_id(G1),
        last: cut(7),
    };
    let t = go(&sending, &acknowledged);
    assert_eq!(t.next.record.resync, None);
    let start = Effect::StartReplication(ReplicateFrom::Cycle(Cycle(7)));
    assert_eq!(t.after, [start]);
    // When the acknowledgement is lost, the next meeting tells.
    let met = answered(&sending, 1, says(RoleName::Replica, &[G0, G1], 7));
    assert_eq!(met.before, [Effect::StopReplication]);
    assert_eq!(met.after, t.after);
}

#[test]
fn row_18_a_fenced_site_keeps_a_fork_before_it_takes_anything() {
    let fork = Fork {
        generation: gen_id(G0),
        since: Cycle(5),
    };
    let t = go(&behind(), &begin(G0, 5, 7));
    assert_eq!(t.next, behind());
    assert_eq!(t.after, [Effect::KeepFork(fork), Effect::AcceptTransfer]);
    let t = go(&t.next, &resynced(7));
    let record = &t.next.record;
    assert_eq!(record.role, Role::Replica);
    assert_eq!(record.lineage, says(RoleName::Source, &[G0, G1], 5).lineage);
    assert_eq!((record.epoch, record.last), (2, Some(cut(7))));
    assert_eq!(record.forks, [fork]);
    assert_eq!(t.after, [Effect::Acknowledge(cut(7))]);
    // I8: begun again, or committed again.
    for event in [begin(G0, 5, 7), resynced(7)] {
        let again = go(&t.next, &event);
        assert_eq!((again.next, again.after), (t.next.clone(), t.after.clone()));
    }
}

#[test]
fn row_18_a_replica_that_is_behind_keeps_its_points() {
    let ahead = says(RoleName::Source, &[G0, G1], 5);
    let met = go(&replica(), &says_hello(1, ahead)).next;
    assert_eq!(go(&met, &begin(G0, 5, 7)).after, [Effect::AcceptTransfer]);
    let t = go(&met, &resynced(7));
    assert_eq!(t.next.record.forks, []);
    assert_eq!(t.next.record.generation().id, gen_id(G1));
}

#[test]
fn row_18_only_what_was_made_for_this_state_is_let_in() {
    assert!(matches!(
        refusal(&behind(), &begin(G1, 5, 7)),
        Refusal::OtherGeneration { .. }
    ));
    for (from, to) in [(4, 7), (6, 7), (5, 5)] {
        assert!(matches!(
            refusal(&behind(), &begin(G0, from, to)),
            Refusal::OtherCycle { .. }
        ));
    }
    let alone = go(&behind(), &Event::PeerLost).next;
    for event in [begin(G0, 5, 7), resynced(7)] {
        assert_eq!(refusal(&alone, &event), Refusal::PeerNotReachable);
    }
    assert!(matches!(
        refusal(&source(), &begin(G0, 5, 7)),
        Refusal::NotReplica { .. }
    ));
    // Forced open meanwhile: what is sent was made for what was there before.
    let forced = go(&alone, &Event::ForceOpen(act())).next;
    assert!(matches!(
        refusal(&forced, &resynced(7)),
        Refusal::NotReplica { .. }
    ));
    let mut full = behind();
    let other = Fork {
        generation: gen_id(80),
        since: Cycle(1),
    };
    full.record.forks = vec![other; FORKS_MAX];
    assert!(matches!(
        refusal(&full, &begin(G0, 5, 7)),
        Refusal::TooManyForks { .. }
    ));
}

/// Two sites that were both forced open, and have met.
fn parted() -> (GroupState, GroupState) {
    let forced = go(&restart(&source()).next, &Event::ForceOpen(act())).next;
    let theirs = committed();
    let ours = answered(&forced, 50, theirs.summary()).next;
    let theirs = answered(&theirs, 2, ours.summary()).next;
    (ours, theirs)
}

#[test]
fn row_20_one_side_is_kept_and_the_other_steps_down() {
    let (ours, theirs) = parted();
    assert_eq!(ours.session.trouble, Some(Trouble::Diverged));
    assert_eq!(theirs.session.trouble, Some(Trouble::Diverged));
    let t = go(&ours, &RESOLVE);
    assert!(t.next.serves());
    assert_eq!(t.after.first(), Some(&Effect::AskPeer));
    changes_nothing(&t.next, &RESOLVE);
    let told = go(&theirs, &says_hello(2, t.next.summary()));
    assert_eq!(told.next.record.role, Role::Fenced { by: gen_id(61) });
    let met = answered(&t.next, 50, told.next.summary()).next;
    assert_eq!(met.session.trouble, Some(Trouble::PeerBehind));
    assert!(go(&met, &RESYNC).next.replicates_to().is_some());
}

#[test]
fn row_20_only_what_diverged_is_resolved_and_with_the_peer() {
    assert_eq!(refusal(&source(), &RESOLVE), Refusal::NotDiverged);
    assert!(matches!(
        refusal(&replica(), &RESOLVE),
        Refusal::NotSource { .. }
    ));
    let (ours, _) = parted();
    let alone = go(&ours, &Event::PeerLost).next;
    assert_eq!(refusal(&alone, &RESOLVE), Refusal::PeerNotReachable);
    let used = Event::Resolve {
        op: op(51),
        new: gen_id(G1),
    };
    assert_eq!(refusal(&ours, &used), Refusal::GenerationUsed);
}
