//! A failover to a point until it is committed or rolled back: rows 13, 15 and 16.

use super::*;

const OVERLAY: Effect = Effect::OpenOverlay {
    point: Cycle(5),
    generation: GenId::from_bytes([G1; 16]),
};

const FORK: Fork = Fork {
    generation: GenId::from_bytes([G1; 16]),
    since: Cycle(5),
};

fn forced_over(peer: PeerStatement) -> Event {
    let signed = Signature {
        peer,
        ..signature()
    };
    Event::FailOver(FailOver {
        forced: Some(signed),
        ..take_over(None)
    })
}

fn another_point(writers: usize) -> Event {
    Event::FailOver(FailOver {
        op: op(34),
        new: gen_id(70),
        writers,
        ..take_over(Some(3))
    })
}

#[test]
fn row_13_a_trial_is_recorded_then_its_overlay_is_made_then_it_opens() {
    let t = go(&asked_to_take_over(), &fenced_for(30, 50));
    assert_eq!(t.after, [OVERLAY, Effect::OpenExports]);
    let trial = Trial {
        point: Cycle(5),
        of: replica().record.generation(),
        base: Cycle::NONE,
        commit_at: None,
    };
    let record = &t.next.record;
    assert_eq!(record.role, Role::Trial(trial));
    assert_eq!((record.last, record.base), (Some(cut(5)), Cycle(5)));
    changes_nothing(&t.next, &Event::FailOver(take_over(None)));
    let restarted = restart(&t.next);
    assert!(!restarted.next.serves());
    assert_eq!(restarted.after, [OVERLAY, Effect::AskPeer]);
}

#[test]
fn row_13_an_older_point_leaves_the_newer_ones_known() {
    let nine = Event::CycleCommitted {
        generation: gen_id(G0),
        last: cut(9),
    };
    let newer = go(&replica(), &nine).next;
    let asked = go(&newer, &Event::FailOver(take_over(Some(5)))).next;
    let trial = go(&asked, &fenced_for(30, 50)).next;
    assert_eq!(trial.record.base, Cycle(5));
    assert_eq!(trial.record.last, Some(cut(9)));
    for missing in [0, 10] {
        assert!(matches!(
            refusal(&newer, &Event::FailOver(take_over(Some(missing)))),
            Refusal::NoSuchPoint { .. }
        ));
    }
}

#[test]
fn row_13_a_forced_failover_is_signed_and_shown() {
    let alone = go(&replica(), &Event::PeerLost).next;
    let t = go(&alone, &forced_over(PeerStatement::HostOff));
    assert!(t.next.serves());
    let act = &t.next.record.forced[0];
    assert_eq!((act.act, act.at_peer), (ForcedAct::FailedOver, false));
    assert_eq!(act.generation, gen_id(G1));
    assert_eq!(
        refusal(&replica(), &forced_over(PeerStatement::HostOff)),
        Refusal::PeerReachable
    );
    assert!(matches!(
        refusal(&alone, &forced_over(PeerStatement::None)),
        Refusal::NotSigned { .. }
    ));
}

#[test]
fn rule_7_a_peer_that_may_come_back_alone_is_waited_for() {
    let alone = go(&replica(), &Event::PeerLost).next;
    let forced = |silent_for_ms, alive_for_ms, grace_ms| {
        let stopped = PeerStatement::AgentStopped {
            silent_for_ms,
            alive_for_ms,
            grace_ms,
        };
        step(&alone, &forced_over(stopped)).map(|t| t.next.serves())
    };
    let heard = |silent_ms| {
        Err(Refusal::PeerHeard {
            silent_ms,
            needed_ms: 90_000,
        })
    };
    assert_eq!(forced(Some(90_000), 500_000, 60_000), Ok(true));
    assert_eq!(forced(Some(89_999), 500_000, 60_000), heard(89_999));
    // What came before this life is not known.
    assert_eq!(forced(None, 80_000, 60_000), heard(80_000));
    assert_eq!(forced(None, 90_000, 60_000), Ok(true));
    assert_eq!(forced(Some(90_000), 1_000, 60_000), heard(1_000));
    assert_eq!(forced(Some(1), 1, 0), Ok(true));
}

#[test]
fn a_site_without_a_point_or_on_another_errand_does_not_fail_over() {
    let first = replica().record.generation();
    let seeding = GroupState::born_replica(group(), first, nonce(50), BOOT).next;
    for state in [seeding, source(), quiescing(), handed_over(), fenced()] {
        assert!(matches!(
            refusal(&state, &Event::FailOver(take_over(None))),
            Refusal::NotReplica { .. }
        ));
    }
}

#[test]
fn row_13_another_point_keeps_what_was_written_as_a_fork() {
    let trial = on_trial();
    assert_eq!(
        refusal(&trial, &another_point(1)),
        Refusal::WritersAttached { writers: 1 }
    );
    let t = go(&trial, &another_point(0));
    let closed = Effect::CloseExports { disconnect: false };
    assert_eq!(t.before, [closed, Effect::KeepFork(FORK)]);
    let overlay = Effect::OpenOverlay {
        point: Cycle(3),
        generation: gen_id(70),
    };
    assert_eq!(t.after, [overlay, Effect::OpenExports]);
    assert_eq!(t.next.record.forks, [FORK]);
    assert_eq!(t.next.record.lineage.ancestors, [gen_id(G0)]);
    assert_eq!(t.next.record.lineage.superseded, [gen_id(G1)]);
    let closed = restart(&trial).next;
    assert_eq!(refusal(&closed, &another_point(0)), Refusal::Closed);
}

#[test]
fn row_15_a_commit_serves_on_while_the_journal_is_folded_in() {
    let commit = Event::CommitFailover { op: op(31) };
    let t = go(&on_trial(), &commit);
    let promote = Effect::Promote(Promotion::WhileServing(Cycle(5)));
    assert_eq!(t.before, []);
    assert_eq!(t.after, [promote.clone(), Effect::AskPeer]);
    assert!(t.next.serves());
    assert_eq!(t.next.record.role, Role::Source);
    changes_nothing(&t.next, &commit);
    assert_eq!(restart(&t.next).after, [promote, Effect::AskPeer]);
    let unwanted = Event::CommitFailover { op: op(36) };
    assert_eq!(refusal(&source(), &unwanted), Refusal::NoTrial);
}

#[test]
fn row_16_a_rollback_keeps_a_fork_and_leaves_the_generation_behind() {
    let met = on_trial_and_met();
    assert_eq!(
        met.session.trouble, None,
        "a fenced peer is as it should be"
    );
    let t = go(&met, &roll_back(None));
    let closed = Effect::CloseExports { disconnect: false };
    assert_eq!(t.before, [closed, Effect::KeepFork(FORK)]);
    let record = &t.next.record;
    assert_eq!(record.role, Role::Replica);
    assert_eq!(record.generation(), replica().record.generation());
    assert_eq!((record.last, record.base), (Some(cut(5)), Cycle::NONE));
    assert_eq!(record.lineage.superseded, [gen_id(G1)]);
    assert_eq!(record.forks, [FORK]);
    changes_nothing(&t.next, &roll_back(None));
    let same = FailOver {
        op: op(37),
        ..take_over(None)
    };
    assert_eq!(
        refusal(&t.next, &Event::FailOver(same)),
        Refusal::GenerationUsed
    );
}

#[test]
fn row_16_a_rollback_needs_a_peer_that_does_not_serve_or_a_signature() {
    let alone = go(&on_trial(), &Event::PeerLost).next;
    assert_eq!(refusal(&alone, &roll_back(None)), Refusal::NeedsSignature);
    let signed = || roll_back(Some(signature()));
    let t = go(&alone, &signed());
    assert_eq!(t.next.record.forced[0].act, ForcedAct::RolledBack);
    let unfenced = says(RoleName::Source, &[G0], 5);
    let met = go(&on_trial(), &says_hello(1, unfenced)).next;
    assert!(matches!(
        refusal(&met, &roll_back(None)),
        Refusal::PeerServes { .. }
    ));
    assert_eq!(refusal(&met, &signed()), Refusal::PeerReachable);
    let Event::RollBack(wanted) = roll_back(None) else {
        unreachable!("it is one");
    };
    let writers = RollBack {
        writers: 1,
        ..wanted
    };
    assert_eq!(
        refusal(&on_trial_and_met(), &Event::RollBack(writers)),
        Refusal::WritersAttached { writers: 1 }
    );
}

#[test]
fn restart_table_trial() {
    let closed = restart(&on_trial()).next;
    assert!(closed.wants_answer());
    let serves_after = |role| answered(&closed, 1, says(role, &[G0], 5)).next.serves();
    assert!(serves_after(RoleName::Fenced));
    assert!(!serves_after(RoleName::Source));
    let forced = go(&closed, &Event::ForceOpen(act())).next;
    assert!(forced.serves());
    assert!(matches!(forced.record.role, Role::Trial(_)));
    assert_eq!(restart(&forced).after, [OVERLAY, Effect::AskPeer]);
    let back = go(&forced, &roll_back(Some(signature())));
    assert_eq!(back.before.last(), Some(&Effect::KeepFork(FORK)));
    let lineage = &back.next.record.lineage;
    assert_eq!(lineage.current, gen_id(G0));
    assert_eq!(lineage.superseded, [gen_id(99), gen_id(G1)]);
}

#[test]
fn a_trial_that_lost_is_a_replica_with_a_fork() {
    let mut kept = says(RoleName::Source, &[G0, 40], 5);
    kept.lineage.superseded = vec![gen_id(G1)];
    let t = go(&on_trial(), &says_hello(1, kept));
    let closed = Effect::CloseExports { disconnect: true };
    assert_eq!(t.before, [closed, Effect::KeepFork(FORK)]);
    assert_eq!(t.next.record.role, Role::Replica);
    assert_eq!(t.next.record.forks, [FORK]);
    assert_eq!(t.next.session.trouble, Some(Trouble::BehindPeer));
}

#[test]
fn nothing_else_is_done_with_an_uncommitted_failover() {
    let others = [
        Event::Pause,
        Event::Resume,
        Event::Reverse,
        Event::Withdraw {
            writers: 0,
            disconnect: false,
        },
        Event::Resync { op: op(1) },
        Event::Resolve {
            op: op(1),
            new: gen_id(70),
        },
        failover(0, false),
    ];
    for event in others {
        assert_eq!(refusal(&on_trial(), &event), Refusal::Uncommitted);
    }
    assert_eq!(on_trial_and_met().replicates_to(), None);
    assert_eq!(
        allowed_operations(&on_trial_and_met()),
        [
            Operation::FailOver,
            Operation::CommitFailover,
            Operation::RollBack
        ]
    );
}

#[test]
fn too_many_forks_stop_what_would_make_more() {
    let mut full = on_trial();
    let other = Fork {
        generation: gen_id(80),
        since: Cycle(1),
    };
    full.record.forks = vec![other; FORKS_MAX - 1];
    assert!(matches!(
        refusal(&full, &another_point(0)),
        Refusal::TooManyForks { .. }
    ));
    let dropping = |n| Event::DropFork {
        generation: gen_id(n),
    };
    let t = go(&full, &dropping(80));
    assert_eq!(t.after, [Effect::DropFork(other)]);
    assert_eq!(t.next.record.forks.len(), FORKS_MAX - 2);
    assert_eq!(refusal(&full, &dropping(81)), Refusal::NoSuchFork);
}
