//! Forced acts, and what two sites say that moved apart: rows 14 and 19.

use super::*;

#[test]
fn row_14_a_forced_act_needs_every_signature_and_an_unreachable_peer() {
    let closed = restart(&source()).next;
    let changed = |change: &dyn Fn(&mut ForceOpen)| {
        let mut act = act();
        change(&mut act);
        refusal(&closed, &Event::ForceOpen(act))
    };
    assert!(matches!(
        changed(&|a| a.signature.who.clear()),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.signature.why = "  ".to_owned()),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.signature.why = "x".repeat(2000)),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.signature.peer = PeerStatement::None),
        Refusal::NotSigned { .. }
    ));
    assert!(matches!(
        changed(&|a| a.signature.typed_name_matches = false),
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
        let again = go(&t.next, &Event::ForceOpen(act()));
        assert_eq!(again.next, t.next, "I8: the same operation again");
    }
    // Never the granted generation: the peer may have taken it.
    let closed = restart(&handed_over()).next;
    let granted = ForceOpen {
        op: op(91),
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
    let act = &told.next.record.forced[0];
    assert!(act.at_peer, "both sites show a forced act");
    assert_eq!((act.act, act.who.as_str()), (ForcedAct::Opened, "ann"));
    let role = (told.next.record.role.clone(), told.next.record.generation());
    assert_eq!(role, (Role::Replica, replica().record.generation()));
    let again = go(&told.next, &says_hello(2, met.next.summary()));
    assert_eq!(again.next.record, told.next.record);
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
