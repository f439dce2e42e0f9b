//! Every state of the table, and the words of peers and operators that lead there.

use sitepair_model::group::{
    Event, FailOver, ForceOpen, GroupState, PeerStatement, Restart, RollBack, Signature, step,
};
use sitepair_model::ids::{Cycle, Digest, GenId, Generation, GroupId, Nonce, OpId, UnixMillis};
use sitepair_model::lineage::Lineage;
use sitepair_model::peer::{Committed, Grant, Hello, HelloAnswer, PeerSummary, RoleName};

pub(crate) const G0: GenId = GenId::from_bytes([0x10; 16]);
pub(crate) const G1: GenId = GenId::from_bytes([0x11; 16]);
pub(crate) const FORK: GenId = GenId::from_bytes([0x12; 16]);
pub(crate) const FORCED: GenId = GenId::from_bytes([0x13; 16]);
pub(crate) const NEW: GenId = GenId::from_bytes([0x14; 16]);
pub(crate) const NEW_OP: OpId = OpId::from_bytes([0x15; 16]);
pub(crate) const NEXT_OP: OpId = OpId::from_bytes([0x16; 16]);
pub(crate) const STRANGE: GenId = GenId::from_bytes([0x99; 16]);
pub(crate) const GROUP: GroupId = GroupId::from_bytes([7; 16]);
pub(crate) const OWN: Nonce = Nonce::from_bytes([1; 16]);
pub(crate) const PEER: Nonce = Nonce::from_bytes([2; 16]);
pub(crate) const NEXT_LIFE: Nonce = Nonce::from_bytes([3; 16]);
pub(crate) const ASKED: OpId = OpId::from_bytes([4; 16]);
pub(crate) const OP: OpId = OpId::from_bytes([5; 16]);
pub(crate) const OTHER_OP: OpId = OpId::from_bytes([6; 16]);
pub(crate) const BOOT: [u8; 16] = [8; 16];

pub(crate) fn cut(cycle: u8) -> Committed {
    Committed {
        cycle: Cycle(cycle.into()),
        digest: Digest::from_bytes([cycle; 32]),
    }
}

pub(crate) fn says(role: RoleName, generations: &[GenId], cycle: u8) -> PeerSummary {
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
        forced: Vec::new(),
    }
}

pub(crate) fn hello(summary: PeerSummary) -> Event {
    Event::HelloReceived(Hello {
        request: OTHER_OP,
        nonce: PEER,
        summary,
    })
}

pub(crate) fn answer(request: OpId, summary: PeerSummary) -> Event {
    Event::HelloAnswered(HelloAnswer {
        request,
        nonce: OWN,
        own_nonce: PEER,
        summary,
    })
}

pub(crate) fn grant() -> Grant {
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

pub(crate) fn failover(writers: usize, disconnect: bool) -> Event {
    Event::PlannedFailover {
        op: OP,
        writers,
        disconnect,
        reverse: true,
    }
}

pub(crate) fn signature(peer: PeerStatement) -> Signature {
    Signature {
        who: "ann".to_owned(),
        why: "flood".to_owned(),
        at: UnixMillis(0),
        typed_name_matches: true,
        peer,
    }
}

pub(crate) fn act() -> ForceOpen {
    ForceOpen {
        op: OTHER_OP,
        signature: signature(PeerStatement::HostOff),
        new: FORCED,
    }
}

pub(crate) fn take_over(point: Option<u64>, forced: Option<PeerStatement>) -> Event {
    Event::FailOver(FailOver {
        op: NEW_OP,
        point: point.map(Cycle),
        new: NEW,
        commit_at: None,
        writers: 0,
        disconnect: false,
        forced: forced.map(signature),
    })
}

pub(crate) fn roll_back(forced: Option<PeerStatement>) -> Event {
    Event::RollBack(RollBack {
        op: OTHER_OP,
        writers: 0,
        disconnect: false,
        forced: forced.map(signature),
    })
}

pub(crate) fn go(state: &GroupState, event: &Event) -> GroupState {
    step(state, event)
        .unwrap_or_else(|refusal| panic!("{event:?}: {refusal}"))
        .next
}

pub(crate) fn ask(state: &GroupState) -> GroupState {
    go(state, &Event::AskPeer { request: ASKED })
}

/// The state after a restart of the host, with a question on its way.
pub(crate) fn restarted(state: &GroupState) -> GroupState {
    let restart = Restart {
        nonce: OWN,
        boot: [9; 16],
        dead_for_ms: None,
        grace_ms: 60_000,
    };
    ask(&GroupState::restarted(state.record.clone(), &restart).next)
}

pub(crate) fn states() -> Vec<(&'static str, GroupState)> {
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
    let others = later_states(&source, &replica, &fenced);
    let first = vec![
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
    ];
    first.into_iter().chain(others).collect()
}

/// Those of failovers to a point, and what follows.
fn later_states(
    source: &GroupState,
    replica: &GroupState,
    fenced: &GroupState,
) -> Vec<(&'static str, GroupState)> {
    let alone = go(replica, &Event::PeerLost);
    let trial = go(&alone, &take_over(None, Some(PeerStatement::HostOff)));
    let met = go(&trial, &hello(says(RoleName::Fenced, &[G0], 5)));
    let committed = go(&met, &Event::CommitFailover { op: OTHER_OP });
    let ahead = go(
        &go(&committed, &Event::Promoted),
        &hello(says(RoleName::Fenced, &[G0], 5)),
    );
    let resyncing = go(&ahead, &Event::Resync { op: OP });
    let released = go(fenced, &hello(says(RoleName::Replica, &[G0], 5)));
    let released = go(&released, &Event::Release { op: OP, new: NEW });
    let forced = go(
        &restarted(&go(source, &Event::PeerLost)),
        &Event::ForceOpen(act()),
    );
    let parted = go(&forced, &hello(says(RoleName::Source, &[G0, FORK], 5)));
    vec![
        (
            "replica, waiting for the fence",
            go(replica, &take_over(None, None)),
        ),
        ("trial, alone", ask(&trial)),
        ("trial, peer fenced", ask(&met)),
        ("trial, after a restart", restarted(&trial)),
        ("committed, folding in", ask(&committed)),
        ("committed, peer behind", ask(&ahead)),
        ("committed, resync", ask(&resyncing)),
        ("fenced, waiting for release", ask(&released)),
        ("forced open, diverged", ask(&parted)),
    ]
}
