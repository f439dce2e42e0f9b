//! Round trips, limits, and random bytes.

use prost::Message;
use sitepair_model::group::{FORCED_MAX, Forced, ForcedAct};
use sitepair_model::ids::{
    Cycle, Digest, DiskId, GenId, Generation, GroupId, Nonce, OpId, UnixMillis,
};
use sitepair_model::lineage::{HISTORY_MAX, Lineage};
use sitepair_model::peer::{
    Committed, Confirmation, DiskCommit, DiskOffer, FenceRequest, Grant, GroupOffer, Hello,
    HelloAnswer, ImageFormat, PeerSummary, ReleaseRequest, RoleName, TransferBegin, TransferCommit,
    TransferKind,
};
use sitepair_model::point::Consistency;
use sitepair_model::retention::Retention;

use super::*;
use crate::negotiate;

fn a_generation(n: u8) -> Generation {
    Generation {
        epoch: u64::from(n),
        id: GenId::from_bytes([n; 16]),
    }
}

fn a_summary(role: RoleName) -> PeerSummary {
    let mut lineage =
        Lineage::born(GenId::from_bytes([1; 16])).advanced(GenId::from_bytes([2; 16]));
    lineage.superseded.push(GenId::from_bytes([3; 16]));
    PeerSummary {
        group: GroupId::from_bytes([7; 16]),
        role,
        generation: a_generation(2),
        lineage,
        cycle: Cycle(42),
        digest: Some(Digest::from_bytes([9; 32])),
        forced: [
            ForcedAct::Opened,
            ForcedAct::FailedOver,
            ForcedAct::RolledBack,
        ]
        .map(|act| Forced {
            act,
            generation: GenId::from_bytes([2; 16]),
            at_peer: act == ForcedAct::FailedOver,
            who: "ann".to_owned(),
            why: "the other site burnt".to_owned(),
            at: UnixMillis(-5),
        })
        .to_vec(),
    }
}

fn a_hello(role: RoleName) -> Hello {
    Hello {
        request: OpId::from_bytes([4; 16]),
        nonce: Nonce::from_bytes([5; 16]),
        summary: a_summary(role),
    }
}

fn an_offer() -> GroupOffer {
    let disk = |n: u8, path: Option<&str>| DiskOffer {
        disk: DiskId::from_bytes([n; 16]),
        name: format!("disk{n}").parse().unwrap(),
        size_bytes: 1 << 30,
        logical_sector_bytes: 512,
        format: ImageFormat::VhdxDynamic,
        format_block_bytes: 32 << 20,
        path: path.map(str::to_owned),
    };
    GroupOffer {
        group: GroupId::from_bytes([7; 16]),
        name: "web".parse().unwrap(),
        generation: a_generation(1),
        disks: vec![disk(1, None), disk(2, Some("/srv/web/disk2.vhdx"))],
        retention: Retention {
            policy: "all:1h,1m:4h".parse().unwrap(),
            cap_bytes: Some(1 << 40),
            min_free_bytes: 1 << 30,
            revision: 3,
        },
        use_existing: true,
        interval_ms: 30_000,
    }
}

fn a_commit() -> TransferCommit {
    let disk = |n: u8| DiskCommit {
        disk: DiskId::from_bytes([n; 16]),
        digest: Digest::from_bytes([n; 32]),
        covered_bytes: 4096,
    };
    TransferCommit {
        cut_at: UnixMillis(-5),
        consistency: Consistency::Application,
        label: Some("before the upgrade".to_owned()),
        disks: vec![disk(1), disk(2)],
    }
}

/// Through the bytes of the wire, not only through the generated types.
fn over_the_wire<M: Message + Default>(message: &M) -> M {
    M::decode(&message.encode_to_vec()[..]).unwrap()
}

fn a_fence_and_a_release_survive_the_wire() {
    let fence = FenceRequest {
        request: OpId::from_bytes([4; 16]),
        nonce: Nonce::from_bytes([5; 16]),
        to_nonce: Nonce::from_bytes([6; 16]),
        group: GroupId::from_bytes([7; 16]),
        generation: a_generation(2),
        new: GenId::from_bytes([8; 16]),
    };
    let wire: v1::FenceRequest = fence.clone().into();
    assert_eq!(FenceRequest::try_from(over_the_wire(&wire)).unwrap(), fence);
    let release = ReleaseRequest {
        request: fence.request,
        nonce: fence.nonce,
        to_nonce: fence.to_nonce,
        group: fence.group,
        generation: fence.generation,
    };
    let wire: v1::ReleaseRequest = release.clone().into();
    assert_eq!(
        ReleaseRequest::try_from(over_the_wire(&wire)).unwrap(),
        release
    );
    let answer = Confirmation {
        request: fence.request,
        nonce: fence.nonce,
    };
    let version = || negotiate(crate::spoken()).unwrap();
    let wire = v1::FenceReply::of(answer, version());
    assert_eq!(
        Confirmation::try_from(over_the_wire(&wire)).unwrap(),
        answer
    );
    let wire = v1::ReleaseReply::of(answer, version());
    assert_eq!(
        Confirmation::try_from(over_the_wire(&wire)).unwrap(),
        answer
    );
}

#[test]
fn forced_acts_have_limits() {
    let with = |change: &dyn Fn(&mut Vec<Forced>)| {
        let mut hello = a_hello(RoleName::Source);
        change(&mut hello.summary.forced);
        let wire: v1::HelloRequest = hello.into();
        Hello::try_from(wire).is_ok()
    };
    assert!(with(&|acts| acts.truncate(1)));
    assert!(!with(&|acts| acts[0].why = "x".repeat(1025)));
    assert!(!with(&|acts| acts[0].who = "x".repeat(1025)));
    assert!(!with(&|acts| *acts = vec![acts[0].clone(); FORCED_MAX + 1]));
}

#[test]
fn every_message_survives_the_wire() {
    for role in [
        RoleName::Unpaired,
        RoleName::Source,
        RoleName::Quiescing,
        RoleName::HandedOver,
        RoleName::Fenced,
        RoleName::Seeding,
        RoleName::Replica,
        RoleName::Resyncing,
    ] {
        let hello = a_hello(role);
        let wire: v1::HelloRequest = hello.clone().into();
        assert_eq!(Hello::try_from(over_the_wire(&wire)).unwrap(), hello);
    }
    let answer = HelloAnswer {
        request: OpId::from_bytes([4; 16]),
        nonce: Nonce::from_bytes([5; 16]),
        own_nonce: Nonce::from_bytes([6; 16]),
        summary: PeerSummary {
            digest: None,
            ..a_summary(RoleName::Replica)
        },
    };
    let wire = v1::HelloReply::of(answer.clone(), negotiate(crate::spoken()).unwrap());
    assert_eq!(HelloAnswer::try_from(over_the_wire(&wire)).unwrap(), answer);

    a_fence_and_a_release_survive_the_wire();

    let offer = an_offer();
    let wire: v1::OfferRequest = offer.clone().into();
    assert_eq!(GroupOffer::try_from(over_the_wire(&wire)).unwrap(), offer);

    let grant = Grant {
        request: OpId::from_bytes([1; 16]),
        to_nonce: Nonce::from_bytes([2; 16]),
        group: GroupId::from_bytes([3; 16]),
        from: a_generation(4),
        granted: a_generation(5),
        base: Cycle(6),
        digest: Digest::from_bytes([7; 32]),
        reverse: true,
    };
    let wire: v1::GrantRequest = grant.clone().into();
    assert_eq!(Grant::try_from(over_the_wire(&wire)).unwrap(), grant);
}

#[test]
fn every_message_of_a_transfer_survives_the_wire() {
    for kind in [
        TransferKind::Seed,
        TransferKind::Resync {
            over: GenId::from_bytes([4; 16]),
            from: Cycle(3),
            to: Cycle(5),
        },
        TransferKind::Cycle {
            from: Cycle(0),
            to: Cycle(1),
        },
    ] {
        let begin = TransferBegin {
            group: GroupId::from_bytes([1; 16]),
            generation: GenId::from_bytes([2; 16]),
            kind,
        };
        let wire: v1::TransferBegin = begin.clone().into();
        assert_eq!(
            TransferBegin::try_from(over_the_wire(&wire)).unwrap(),
            begin
        );
    }
    let commit = a_commit();
    let wire: v1::TransferCommit = commit.clone().into();
    assert_eq!(
        TransferCommit::try_from(over_the_wire(&wire)).unwrap(),
        commit
    );
    let committed = Committed {
        cycle: Cycle(8),
        digest: Digest::from_bytes([1; 32]),
    };
    let wire: v1::TransferCommitted = committed.into();
    assert_eq!(
        Committed::try_from(over_the_wire(&wire)).unwrap(),
        committed
    );
}

#[test]
fn ids_of_another_size_are_refused() {
    for size in [0, 15, 17, 4096] {
        let mut wire: v1::HelloRequest = a_hello(RoleName::Source).into();
        wire.nonce = vec![0; size].into();
        assert_eq!(
            Hello::try_from(wire),
            Err(Invalid::Size {
                field: "nonce",
                found: size,
                expected: 16
            })
        );
    }
}

#[test]
fn lists_past_their_limit_are_refused() {
    let mut wire: v1::HelloRequest = a_hello(RoleName::Source).into();
    let ancestors = &mut wire
        .summary
        .as_mut()
        .unwrap()
        .lineage
        .as_mut()
        .unwrap()
        .ancestors;
    *ancestors = vec![vec![0; 16].into(); HISTORY_MAX + 1];
    assert!(matches!(
        Hello::try_from(wire),
        Err(Invalid::TooMany {
            field: "ancestors",
            ..
        })
    ));

    let mut wire: v1::OfferRequest = an_offer().into();
    wire.disks = vec![wire.disks[0].clone(); DISKS_MAX + 1];
    assert!(matches!(
        GroupOffer::try_from(wire),
        Err(Invalid::TooMany { field: "disks", .. })
    ));

    let mut wire: v1::TransferCommit = a_commit().into();
    wire.label = "x".repeat(LABEL_BYTES_MAX + 1);
    assert!(matches!(
        TransferCommit::try_from(wire),
        Err(Invalid::TooMany { field: "label", .. })
    ));
}

#[test]
fn retention_survives_the_wire_and_is_made_up_for_where_it_is_missing() {
    let (group, retention) = (GroupId::from_bytes([3; 16]), an_offer().retention);
    let wire = v1::SettleRequest::of(group, retention.clone());
    assert_eq!(
        over_the_wire(&wire).settled(),
        Ok((group, retention.clone()))
    );
    let wrong = v1::Retention {
        policy: "all:1h,5m".into(),
        ..retention.into()
    };
    let wrong = v1::SettleReply {
        version: 1,
        retention: Some(wrong),
    };
    assert!(matches!(wrong.settled(), Err(Invalid::Policy(_))));

    let mut older: v1::OfferRequest = an_offer().into();
    assert!(older.keep_points >= 1);
    (older.keep_points, older.retention) = (7, None);
    let offer = GroupOffer::try_from(older).unwrap();
    assert_eq!(offer.retention, Retention::newest(7));
}

#[test]
fn offers_that_make_no_sense_are_refused() {
    let spoil = |change: &dyn Fn(&mut v1::OfferRequest)| {
        let mut wire: v1::OfferRequest = an_offer().into();
        change(&mut wire);
        GroupOffer::try_from(wire).unwrap_err()
    };
    assert_eq!(
        spoil(&|w| w.disks.clear()),
        Invalid::Missing { field: "disks" }
    );
    assert!(matches!(
        spoil(&|w| w.name = "../etc".into()),
        Invalid::Name(_)
    ));
    assert!(matches!(
        spoil(&|w| w.disks[0].name = String::new()),
        Invalid::Name(_)
    ));
    let value = |e| matches!(e, Invalid::Value { .. });
    assert!(value(spoil(&|w| w.disks[0].size_bytes = 0)));
    assert!(value(spoil(&|w| w.disks[0].size_bytes = u64::MAX)));
    assert!(value(spoil(&|w| w.disks[0].size_bytes = 513)));
    assert!(value(spoil(&|w| w.disks[0].logical_sector_bytes = 0)));
    assert!(value(spoil(&|w| w.disks[0].format = 99)));
    assert!(value(spoil(&|w| w.disks[0].format = 0)));
    assert!(value(spoil(&|w| w.disks[0].path = "a\0b".into())));
    let repeated = Invalid::Repeated { field: "disks" };
    assert_eq!(
        spoil(&|w| w.disks[1].disk = w.disks[0].disk.clone()),
        repeated
    );
    assert_eq!(
        spoil(&|w| w.disks[1].name = w.disks[0].name.clone()),
        repeated
    );
}

#[test]
fn transfers_that_make_no_sense_are_refused() {
    let begin = TransferBegin {
        group: GroupId::from_bytes([1; 16]),
        generation: GenId::from_bytes([2; 16]),
        kind: TransferKind::Cycle {
            from: Cycle(3),
            to: Cycle(3),
        },
    };
    let wire: v1::TransferBegin = begin.into();
    assert!(
        TransferBegin::try_from(wire.clone()).is_err(),
        "a cycle that leads nowhere"
    );
    let without = v1::TransferBegin {
        kind: None,
        ..wire.clone()
    };
    assert_eq!(
        TransferBegin::try_from(without),
        Err(Invalid::Missing { field: "kind" })
    );
    let step = |kind| TransferStep::try_from(v1::TransferRequest { kind });
    assert!(
        matches!(step(None), Err(Invalid::Missing { .. })),
        "an unknown kind"
    );
    assert!(matches!(
        step(Some(v1::transfer_request::Kind::Begin(wire))),
        Err(Invalid::Repeated { .. })
    ));
    let mut commit: v1::TransferCommit = a_commit().into();
    commit.disks[1].disk = commit.disks[0].disk.clone();
    assert_eq!(
        TransferCommit::try_from(commit),
        Err(Invalid::Repeated { field: "disks" })
    );
}

/// xorshift; the seed is in the failure message, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

fn convert_all(bytes: &[u8]) {
    if let Ok(m) = v1::HelloRequest::decode(bytes) {
        let _ = Hello::try_from(m);
    }
    if let Ok(m) = v1::HelloReply::decode(bytes) {
        let _ = HelloAnswer::try_from(m);
    }
    if let Ok(m) = v1::OfferRequest::decode(bytes) {
        let _ = GroupOffer::try_from(m);
    }
    if let Ok(m) = v1::GrantRequest::decode(bytes) {
        let _ = Grant::try_from(m);
    }
    if let Ok(m) = v1::TransferRequest::decode(bytes) {
        let _ = TransferStep::try_from(m);
    }
    if let Ok(m) = v1::TransferBegin::decode(bytes) {
        let _ = TransferBegin::try_from(m);
    }
    if let Ok(m) = v1::TransferCommitted::decode(bytes) {
        let _ = Committed::try_from(m);
    }
}

#[test]
fn random_and_damaged_bytes_never_panic() {
    let samples = [
        v1::HelloRequest::from(a_hello(RoleName::Source)).encode_to_vec(),
        v1::OfferRequest::from(an_offer()).encode_to_vec(),
        v1::TransferCommit::from(a_commit()).encode_to_vec(),
    ];
    for seed in 1..=5_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let noise: Vec<u8> = (0..random.below(200))
            .map(|_| random.next().to_le_bytes()[0])
            .collect();
        convert_all(&noise);
        let mut damaged = samples[random.below(samples.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            damaged[at] = random.next().to_le_bytes()[0];
        }
        damaged.truncate(random.below(damaged.len()) + 1);
        convert_all(&damaged);
    }
}
