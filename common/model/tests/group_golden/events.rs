//! Every event of the table.

use crate::states::*;
use sitepair_model::group::{Event, PeerStatement};
use sitepair_model::ids::{Cycle, GenId, Generation};
use sitepair_model::peer::{
    Confirmation, FenceRequest, Grant, PeerSummary, ReleaseRequest, RoleName, TransferBegin,
    TransferKind,
};

pub(crate) fn meetings() -> Vec<(&'static str, PeerSummary)> {
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

pub(crate) fn transfer(generation: GenId, kind: TransferKind) -> Event {
    Event::TransferAsked(TransferBegin {
        group: GROUP,
        generation,
        kind,
    })
}

pub(crate) fn cycle(from: u64, to: u64) -> TransferKind {
    TransferKind::Cycle {
        from: Cycle(from),
        to: Cycle(to),
    }
}

pub(crate) fn events() -> Vec<(String, Event)> {
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
            .chain(of_an_unplanned_failover())
            .chain(after_a_failover())
            .map(|(name, event)| (name.to_owned(), event)),
    );
    events
}

pub(crate) fn between_agents() -> Vec<(&'static str, Event)> {
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

pub(crate) fn of_a_failover() -> Vec<(&'static str, Event)> {
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

pub(crate) fn of_an_unplanned_failover() -> Vec<(&'static str, Event)> {
    let g0 = Generation { epoch: 1, id: G0 };
    let confirmation = |request| Confirmation {
        request,
        nonce: OWN,
    };
    let stopped = PeerStatement::AgentStopped {
        silent_for_ms: Some(1_000),
        alive_for_ms: 500_000,
        grace_ms: 60_000,
    };
    vec![
        ("fail over", take_over(None, None)),
        ("fail over to 3", take_over(Some(3), None)),
        ("fail over to 9", take_over(Some(9), None)),
        (
            "fail over, host off",
            take_over(None, Some(PeerStatement::HostOff)),
        ),
        (
            "fail over, agent stopped 1 s",
            take_over(None, Some(stopped)),
        ),
        ("fence answered", Event::FenceAnswered(confirmation(NEW_OP))),
        (
            "fence answered, another",
            Event::FenceAnswered(confirmation(OP)),
        ),
        (
            "fence from g0",
            Event::FenceReceived(FenceRequest {
                request: OTHER_OP,
                nonce: PEER,
                to_nonce: OWN,
                group: GROUP,
                generation: g0,
                new: FORK,
            }),
        ),
        ("commit", Event::CommitFailover { op: NEXT_OP }),
        ("roll back", roll_back(None)),
        (
            "roll back, host off",
            roll_back(Some(PeerStatement::HostOff)),
        ),
    ]
}

pub(crate) fn after_a_failover() -> Vec<(&'static str, Event)> {
    let g0 = Generation { epoch: 1, id: G0 };
    let confirmation = |request| Confirmation {
        request,
        nonce: OWN,
    };
    let resync = |over, to| TransferKind::Resync {
        over,
        from: Cycle(5),
        to: Cycle(to),
    };
    vec![
        ("resync", Event::Resync { op: NEXT_OP }),
        (
            "resync asked: fork over g0 5-8",
            transfer(FORK, resync(G0, 8)),
        ),
        (
            "resync asked: fork over g1 5-8",
            transfer(FORK, resync(G1, 8)),
        ),
        (
            "cycle committed: fork 8",
            Event::CycleCommitted {
                generation: FORK,
                last: cut(8),
            },
        ),
        (
            "cycle acknowledged: new 8",
            Event::CycleAcknowledged {
                generation: NEW,
                last: cut(8),
            },
        ),
        (
            "resolve",
            Event::Resolve {
                op: NEXT_OP,
                new: STRANGE,
            },
        ),
        (
            "release",
            Event::Release {
                op: NEXT_OP,
                new: STRANGE,
            },
        ),
        (
            "release from g0",
            Event::ReleaseReceived(ReleaseRequest {
                request: OTHER_OP,
                nonce: PEER,
                to_nonce: OWN,
                group: GROUP,
                generation: g0,
            }),
        ),
        ("release answered", Event::ReleaseAnswered(confirmation(OP))),
        ("give up", Event::GiveUp { op: OP }),
        ("drop fork new", Event::DropFork { generation: NEW }),
    ]
}
