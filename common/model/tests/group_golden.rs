//! Every state with every event, as a table that people review.
//!
//! After a change that is meant: `UPDATE_GOLDEN=1 cargo test -p sitepair-model --test group_golden`,
//! then read the difference.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it does not expect"
)]

use std::fmt::Write as _;

use sitepair_model::group::{
    Access, Effect, Event, ForceOpen, GroupState, Hold, Restart, Role, Transition,
    allowed_operations, step,
};
use sitepair_model::ids::{Cycle, Digest, GenId, Generation, GroupId, Nonce, OpId, UnixMillis};
use sitepair_model::lineage::Lineage;
use sitepair_model::peer::{
    Committed, Grant, Hello, HelloAnswer, PeerSummary, RoleName, TransferBegin, TransferKind,
};

const G0: GenId = GenId::from_bytes([0x10; 16]);
const G1: GenId = GenId::from_bytes([0x11; 16]);
const FORK: GenId = GenId::from_bytes([0x12; 16]);
const FORCED: GenId = GenId::from_bytes([0x13; 16]);
const STRANGE: GenId = GenId::from_bytes([0x99; 16]);
const GROUP: GroupId = GroupId::from_bytes([7; 16]);
const OWN: Nonce = Nonce::from_bytes([1; 16]);
const PEER: Nonce = Nonce::from_bytes([2; 16]);
const NEXT_LIFE: Nonce = Nonce::from_bytes([3; 16]);
const ASKED: OpId = OpId::from_bytes([4; 16]);
const OP: OpId = OpId::from_bytes([5; 16]);
const OTHER_OP: OpId = OpId::from_bytes([6; 16]);
const BOOT: [u8; 16] = [8; 16];

fn cut(cycle: u8) -> Committed {
    Committed {
        cycle: Cycle(cycle.into()),
        digest: Digest::from_bytes([cycle; 32]),
    }
}

fn says(role: RoleName, generations: &[GenId], cycle: u8) -> PeerSummary {
    let (first, rest) = generations.split_first().unwrap();
    let lineage = rest.iter().fold(Lineage::born(*first), |lineage, next| {
        lineage.advanced(*next)
    });
    PeerSummary {
        group: GROUP,
        role,
        generation: Generation {
            epoch: u64::try_from(generations.len()).unwrap(),
            id: lineage.current,
        },
        lineage,
        cycle: Cycle(cycle.into()),
        digest: (cycle > 0).then(|| cut(cycle).digest),
    }
}

fn hello(summary: PeerSummary) -> Event {
    Event::HelloReceived(Hello {
        request: OTHER_OP,
        nonce: PEER,
        summary,
    })
}

fn answer(request: OpId, summary: PeerSummary) -> Event {
    Event::HelloAnswered(HelloAnswer {
        request,
        nonce: OWN,
        own_nonce: PEER,
        summary,
    })
}

fn grant() -> Grant {
    Grant {
        request: OP,
        to_nonce: OWN,
        group: GROUP,
        from: Generation { epoch: 1, id: G0 },
        granted: Generation { epoch: 2, id: G1 },
        base: Cycle(5),
        digest: cut(5).digest,
        reverse: true,
    }
}

fn failover(writers: usize, disconnect: bool) -> Event {
    Event::PlannedFailover {
        op: OP,
        writers,
        disconnect,
        reverse: true,
    }
}

fn act() -> ForceOpen {
    ForceOpen {
        who: "ann".to_owned(),
        why: "flood".to_owned(),
        at: UnixMillis(0),
        peer_host_stopped: true,
        typed_name_matches: true,
        new: FORCED,
    }
}

fn go(state: &GroupState, event: &Event) -> GroupState {
    step(state, event)
        .unwrap_or_else(|refusal| panic!("{event:?}: {refusal}"))
        .next
}

fn ask(state: &GroupState) -> GroupState {
    go(state, &Event::AskPeer { request: ASKED })
}

/// The state after a restart of the host, with a question on its way.
fn restarted(state: &GroupState) -> GroupState {
    let restart = Restart {
        nonce: OWN,
        boot: [9; 16],
        dead_for_ms: None,
        grace_ms: 60_000,
    };
    ask(&GroupState::restarted(state.record.clone(), &restart).next)
}

fn states() -> Vec<(&'static str, GroupState)> {
    let born = GroupState::born_source(GROUP, G0, OWN, BOOT).next;
    let met = go(&born, &hello(says(RoleName::Seeding, &[G0], 0)));
    let source = go(
        &met,
        &Event::CycleAcknowledged {
            generation: G0,
            last: cut(5),
        },
    );
    let quiescing = go(&source, &failover(0, false));
    let handed = go(
        &quiescing,
        &Event::Shipped {
            op: OP,
            last: cut(5),
            granted: G1,
        },
    );
    let first = Generation { epoch: 1, id: G0 };
    let seeding = GroupState::born_replica(GROUP, first, OWN, BOOT).next;
    let replica = go(&seeding, &hello(says(RoleName::Source, &[G0], 0)));
    let replica = go(
        &replica,
        &Event::CycleCommitted {
            generation: G0,
            last: cut(5),
        },
    );
    let taken = go(
        &replica,
        &Event::GrantReceived(Grant {
            reverse: false,
            ..grant()
        }),
    );
    let waiting = go(&taken, &Event::Promoted);
    let diverged = go(&source, &hello(says(RoleName::Source, &[G0], 5)));
    let fenced = go(&source, &hello(says(RoleName::Source, &[G0, FORK], 5)));
    vec![
        ("source, open, peer seeding", ask(&met)),
        ("source, open, replicating", ask(&source)),
        (
            "source, open, peer lost",
            ask(&go(&source, &Event::PeerLost)),
        ),
        ("source, open, paused", ask(&go(&source, &Event::Pause))),
        ("source, open, two sources", ask(&diverged)),
        ("source, closed", restarted(&source)),
        ("quiescing", ask(&quiescing)),
        (
            "quiescing, peer lost",
            ask(&go(&quiescing, &Event::PeerLost)),
        ),
        ("handed over", ask(&handed)),
        ("handed over, after a restart", restarted(&handed)),
        ("new source, promoting", ask(&taken)),
        ("new source, awaiting reverse", ask(&waiting)),
        (
            "old source as replica",
            ask(&go(&handed, &Event::GrantAnswered { request: OP })),
        ),
        ("fenced", ask(&fenced)),
        ("fenced, after a restart", restarted(&fenced)),
        ("seeding", ask(&seeding)),
        ("replica", ask(&replica)),
    ]
}

fn meetings() -> Vec<(&'static str, PeerSummary)> {
    vec![
        ("unknown group", PeerSummary::unknown(GROUP)),
        ("source g0", says(RoleName::Source, &[G0], 5)),
        ("seeding g0", says(RoleName::Seeding, &[G0], 0)),
        ("replica g0", says(RoleName::Replica, &[G0], 5)),
        ("replica g0 at 6", says(RoleName::Replica, &[G0], 6)),
        ("handed over g0", says(RoleName::HandedOver, &[G0], 5)),
        ("fenced g0", says(RoleName::Fenced, &[G0], 5)),
        ("source g0>g1", says(RoleName::Source, &[G0, G1], 5)),
        ("replica g0>g1", says(RoleName::Replica, &[G0, G1], 5)),
        ("source g0>fork", says(RoleName::Source, &[G0, FORK], 5)),
        ("source unrelated", says(RoleName::Source, &[STRANGE], 5)),
    ]
}

fn transfer(generation: GenId, kind: TransferKind) -> Event {
    Event::TransferAsked(TransferBegin {
        group: GROUP,
        generation,
        kind,
    })
}

fn cycle(from: u64, to: u64) -> TransferKind {
    TransferKind::Cycle {
        from: Cycle(from),
        to: Cycle(to),
    }
}

fn events() -> Vec<(String, Event)> {
    let mut events: Vec<(String, Event)> = Vec::new();
    for (name, summary) in meetings() {
        events.push((format!("hello: {name}"), hello(summary.clone())));
        events.push((format!("answer: {name}"), answer(ASKED, summary)));
    }
    events.extend(
        between_agents()
            .into_iter()
            .map(|(name, event)| (name.to_owned(), event)),
    );
    events.extend(
        of_a_failover()
            .into_iter()
            .map(|(name, event)| (name.to_owned(), event)),
    );
    events
}

fn between_agents() -> Vec<(&'static str, Event)> {
    let stale = answer(OTHER_OP, says(RoleName::Replica, &[G0], 5));
    vec![
        ("answer to another request", stale),
        ("ask the peer", Event::AskPeer { request: OTHER_OP }),
        ("peer lost", Event::PeerLost),
        ("offered g0", Event::Offered { generation: G0 }),
        ("transfer asked: seed g0", transfer(G0, TransferKind::Seed)),
        ("transfer asked: g0 0-1", transfer(G0, cycle(0, 1))),
        ("transfer asked: g0 4-5", transfer(G0, cycle(4, 5))),
        ("transfer asked: g0 5-6", transfer(G0, cycle(5, 6))),
        ("transfer asked: g1 5-6", transfer(G1, cycle(5, 6))),
        (
            "cycle committed: g0 6",
            Event::CycleCommitted {
                generation: G0,
                last: cut(6),
            },
        ),
        (
            "cycle committed: g1 6",
            Event::CycleCommitted {
                generation: G1,
                last: cut(6),
            },
        ),
        (
            "cycle acknowledged: g0 6",
            Event::CycleAcknowledged {
                generation: G0,
                last: cut(6),
            },
        ),
        (
            "cycle acknowledged: g1 6",
            Event::CycleAcknowledged {
                generation: G1,
                last: cut(6),
            },
        ),
    ]
}

fn of_a_failover() -> Vec<(&'static str, Event)> {
    let other_life = Grant {
        to_nonce: NEXT_LIFE,
        ..grant()
    };
    let other_cut = Grant {
        base: Cycle(6),
        ..grant()
    };
    let shipped = |cycle| Event::Shipped {
        op: OP,
        last: cut(cycle),
        granted: G1,
    };
    vec![
        ("planned failover", failover(0, false)),
        ("planned failover, 1 writer", failover(1, false)),
        ("planned failover, disconnect", failover(1, true)),
        ("cancel failover", Event::QuiesceCancelled { op: OP }),
        ("shipped 5", shipped(5)),
        ("shipped 6", shipped(6)),
        ("grant g1 at 5", Event::GrantReceived(grant())),
        ("grant g1 at 6", Event::GrantReceived(other_cut)),
        ("grant to another life", Event::GrantReceived(other_life)),
        ("grant answered", Event::GrantAnswered { request: OP }),
        ("promoted", Event::Promoted),
        ("pause", Event::Pause),
        ("resume", Event::Resume),
        ("reverse", Event::Reverse),
        ("force open", Event::ForceOpen(act())),
        (
            "withdraw",
            Event::Withdraw {
                writers: 0,
                disconnect: false,
            },
        ),
        ("peer withdrew", Event::PeerWithdrew),
    ]
}

fn generation(id: GenId) -> &'static str {
    match id {
        G0 => "g0",
        G1 => "g1",
        FORK => "fork",
        FORCED => "forced",
        _ => "?",
    }
}

fn state_text(state: &GroupState) -> String {
    let record = &state.record;
    let mut text = record.role.name().to_string();
    match &record.role {
        Role::HandedOver { granted, base, .. } => {
            write!(text, "({} at {})", generation(granted.id), base.cycle).unwrap();
        }
        Role::Fenced { by } => write!(text, "(by {})", generation(*by)).unwrap(),
        Role::Source | Role::Quiescing { .. } | Role::Seeding | Role::Replica => {}
    }
    if record.role == Role::Source {
        let open = state.session.access == Access::Open;
        text.push_str(if open { " open" } else { " closed" });
    }
    write!(
        text,
        " {}:{}",
        generation(record.lineage.current),
        record.cycle()
    )
    .unwrap();
    if let Some(through) = record.promoting {
        write!(text, " promoting({through})").unwrap();
    }
    match record.hold {
        Some(Hold::Paused) => text.push_str(" paused"),
        Some(Hold::AwaitingReverse) => text.push_str(" awaiting-reverse"),
        None => {}
    }
    if state.replicates_to().is_some() {
        text.push_str(" replicating");
    }
    if let Some(trouble) = state.session.trouble {
        write!(text, " {trouble:?}").unwrap();
    }
    text
}

fn effects_text(effects: &[Effect]) -> String {
    effects
        .iter()
        .map(effect_text)
        .collect::<Vec<_>>()
        .join(", ")
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::CloseExports { disconnect: true } => "CloseExports(disconnect)".to_owned(),
        Effect::CloseExports { disconnect: false } => "CloseExports".to_owned(),
        Effect::StartReplication(from) => format!("StartReplication({from:?})"),
        Effect::DrainAndShip { .. } => "DrainAndShip".to_owned(),
        Effect::SendHello(hello) => format!("SendHello({})", hello.summary.role),
        Effect::AnswerHello(answer) => format!("AnswerHello({})", answer.summary.role),
        Effect::SendGrant(grant) => {
            format!(
                "SendGrant({} at {})",
                generation(grant.granted.id),
                grant.base
            )
        }
        Effect::AnswerGrant { .. } => "AnswerGrant".to_owned(),
        Effect::Acknowledge(last) => format!("Acknowledge({})", last.cycle),
        Effect::Promote { through } => format!("Promote({through})"),
        Effect::BecomeReplica { at } => format!("BecomeReplica({})", at.cycle),
        Effect::OpenExports
        | Effect::StopReplication
        | Effect::AskPeer
        | Effect::OfferGroup
        | Effect::AcceptTransfer
        | Effect::Alarm(_)
        | Effect::Forget => format!("{effect:?}"),
    }
}

fn transition_text(now: Option<&GroupState>, t: &Transition) -> String {
    let mut parts = Vec::new();
    if !t.before.is_empty() {
        parts.push(format!("first {}", effects_text(&t.before)));
    }
    let text = state_text(&t.next);
    let durable = if now.is_some_and(|now| now.record == t.next.record) {
        ""
    } else {
        " [durable]"
    };
    if now.map(state_text) != Some(text.clone()) || !durable.is_empty() {
        parts.push(format!("-> {text}{durable}"));
    }
    if !t.after.is_empty() {
        parts.push(format!("then {}", effects_text(&t.after)));
    }
    if parts.is_empty() {
        "no change".to_owned()
    } else {
        parts.join("; ")
    }
}

fn table() -> String {
    let mut out = String::from(
        "# Every state with every event: what is done first, the next state, what is done then.\n\
         # Written by the test group_golden; [durable] marks a changed role record.\n",
    );
    for (name, state) in states() {
        let allowed: Vec<_> = allowed_operations(&state)
            .iter()
            .map(ToString::to_string)
            .collect();
        write!(out, "\n## {name}\n{}\n", state_text(&state)).unwrap();
        writeln!(out, "operators may: {}", allowed.join(", ")).unwrap();
        for (event_name, event) in events() {
            let result = match step(&state, &event) {
                Ok(t) => transition_text(Some(&state), &t),
                Err(refusal) => format!("refused: {refusal}"),
            };
            writeln!(out, "  {event_name:<30} {result}").unwrap();
        }
        for (restart_name, boot, gap) in [
            ("restart of the host", [9; 16], None),
            ("restart in the grace", BOOT, Some(5)),
        ] {
            let restart = Restart {
                nonce: NEXT_LIFE,
                boot,
                dead_for_ms: gap,
                grace_ms: 60_000,
            };
            let t = GroupState::restarted(state.record.clone(), &restart);
            let changed = t.next.record != state.record;
            let text = transition_text(Some(&state), &t);
            assert_eq!(changed, text.contains("[durable]"));
            writeln!(out, "  {restart_name:<30} {text}").unwrap();
        }
    }
    out
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test keeps its table up to date on request"
)]
fn the_table_is_as_reviewed() {
    let table = table();
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/group.txt");
        std::fs::write(path, table).unwrap();
        return;
    }
    let reviewed = include_str!("golden/group.txt");
    for (number, (now, then)) in table.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(
            now,
            then,
            "line {}; UPDATE_GOLDEN=1 rewrites the table",
            number + 1
        );
    }
    assert_eq!(table.lines().count(), reviewed.lines().count());
}

/// A state that refuses is left as it was, and the refusal says so in words.
#[test]
fn every_refusal_has_a_text_of_its_own() {
    for (_, state) in states() {
        for (name, event) in events() {
            if let Err(refusal) = step(&state, &event) {
                let text = refusal.to_string();
                assert!(text.len() > 20 && !text.contains("{"), "{name}: {text}");
            }
        }
    }
}
