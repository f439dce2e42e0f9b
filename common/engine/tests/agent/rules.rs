//! Who may open after a restart, what operators may do when, and what becomes of a planned failover that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sitepair_disk::open::Format;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::{Fault, FaultOn};
use sitepair_engine::agent::CommandError;
use sitepair_engine::agent::status::JobState;
use sitepair_engine::endpoint::PeerEndpoint;
use sitepair_model::ids::{GenId, Generation, Nonce, OpId};
use sitepair_model::lineage::Lineage;
use sitepair_model::peer::{Hello, PeerSummary, RoleName};

use crate::link::{Call, Strike, Trap, When};
use crate::pair::{Death, Pair, SIZES, deleting, disk_path, group};

async fn with_writes(seed: u64) -> Pair {
    let mut pair = Pair::protected(seed, 0).await;
    for n in 0..20 {
        assert!(pair.write(n * 977).await);
    }
    pair.settled(0).await;
    pair
}

/// Lets time pass, and gives who serves the guest then.
async fn served_after(pair: &Pair, time: Duration) -> Option<usize> {
    tokio::time::sleep(time).await;
    pair.server().await
}

#[tokio::test(start_paused = true)]
async fn a_killed_agent_reopens_alone_in_the_same_boot_within_the_grace() {
    let mut pair = with_writes(1).await;
    pair.link.set_up(false);
    pair.crash(0, Death::Process);
    pair.start(0).await;
    assert_eq!(served_after(&pair, Duration::from_secs(5)).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_may_not_reopen_alone_waits_for_the_other_site() {
    for why in ["the host restarted", "dead for too long", "no grace"] {
        let mut pair = with_writes(2).await;
        pair.link.set_up(false);
        match why {
            "the host restarted" => pair.crash(0, Death::Host(1)),
            "dead for too long" => {
                pair.crash(0, Death::Process);
                pair.set_dead_for(0, Some(61_000));
            }
            _ => {
                pair.grace = Duration::ZERO;
                pair.crash(0, Death::Process);
            }
        }
        pair.start(0).await;
        let served = served_after(&pair, Duration::from_secs(30)).await;
        assert_eq!(served, None, "{why}");
        pair.link.set_up(true);
        pair.settled(0).await;
        assert!(pair.write(5).await, "{why}");
    }
}

/// A link that died during a planned failover used to leave the guest without a site until it came back.
#[tokio::test(start_paused = true)]
async fn a_failover_whose_link_dies_gives_the_guest_back_at_once() {
    for call in [Call::Begin, Call::Frame, Call::Commit] {
        let mut pair = with_writes(3).await;
        for n in 0..9 {
            assert!(pair.write(n * 313).await);
        }
        pair.link.set_trap(Trap {
            call,
            skip: 0,
            when: When::Before,
            strike: Strike::Cut,
        });
        let operator = pair.operator(0);
        let op = operator
            .planned_failover(&group(), None, true, true)
            .await
            .unwrap();
        assert_eq!(served_after(&pair, Duration::from_secs(2)).await, Some(0));
        assert_eq!(
            operator.job(op).unwrap().borrow().state,
            JobState::Failed,
            "{call:?}"
        );
        assert!(pair.write(77).await, "{call:?}");
        pair.link.set_up(true);
        pair.settled(0).await;
        pair.checked_cut(0).await;
        pair.fail_over(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failover_handed_over_waits_for_the_other_site_and_nobody_else_opens() {
    let mut pair = with_writes(4).await;
    pair.link.set_trap(Trap {
        call: Call::Grant,
        skip: 0,
        when: When::Before,
        strike: Strike::Cut,
    });
    let operator = pair.operator(0);
    operator
        .planned_failover(&group(), None, true, true)
        .await
        .unwrap();
    assert_eq!(served_after(&pair, Duration::from_secs(20)).await, None);
    assert_eq!(pair.role(0).await, Some(RoleName::HandedOver));
    for death in [Death::Process, Death::Host(0)] {
        pair.crash(0, death);
        pair.start(0).await;
        assert_eq!(served_after(&pair, Duration::from_secs(20)).await, None);
    }
    pair.link.set_up(true);
    pair.settled(1).await;
    assert!(pair.write(3).await);
}

#[tokio::test(start_paused = true)]
async fn a_forced_act_needs_its_signature_and_an_unreachable_peer() {
    let mut pair = with_writes(5).await;
    let sign = async |pair: &Pair, site: usize, name: &'static str, stopped: bool| {
        let who = ("ann".to_owned(), "flood".to_owned());
        let operator = pair.operator(site);
        operator
            .force_open(&group(), who.0, who.1, name, stopped)
            .await
            .map(|done| done.changed)
    };
    assert!(sign(&pair, 0, "web", true).await.is_err(), "open already");
    assert!(sign(&pair, 1, "web", true).await.is_err(), "a replica");
    pair.crash(1, Death::Process);
    pair.crash(0, Death::Host(1));
    pair.start(0).await;
    assert_eq!(served_after(&pair, Duration::from_secs(9)).await, None);
    assert!(sign(&pair, 0, "wbe", true).await.is_err());
    assert!(sign(&pair, 0, "web", false).await.is_err());
    assert!(sign(&pair, 0, "web", true).await.unwrap());
    assert_eq!(served_after(&pair, Duration::from_secs(1)).await, Some(0));
    assert!(pair.write(5).await);
    let status = pair.status(0).await.unwrap();
    assert!(status.messages.iter().any(|m| m.contains("flood")));
    // The other site comes back: it is behind, serves nobody, and is sent nothing.
    pair.start(1).await;
    assert_eq!(served_after(&pair, Duration::from_secs(20)).await, Some(0));
    assert_eq!(pair.role(1).await, Some(RoleName::Replica));
}

#[tokio::test(start_paused = true)]
async fn a_paused_group_tracks_and_resumes_where_it_was() {
    let mut pair = with_writes(6).await;
    let operator = pair.operator(0);
    assert!(operator.pause(&group()).await.unwrap().changed);
    assert!(!operator.pause(&group()).await.unwrap().changed);
    let before = pair
        .operator(1)
        .points(&group(), None)
        .await
        .unwrap()
        .points
        .len();
    for n in 0..9 {
        assert!(pair.write(n * 313).await);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(
        pair.operator(1)
            .points(&group(), None)
            .await
            .unwrap()
            .points
            .len(),
        before
    );
    assert!(matches!(
        operator.cut(&group(), None).await,
        Err(CommandError::Refused(_))
    ));
    let refused = operator.planned_failover(&group(), None, true, true).await;
    assert!(matches!(refused, Err(CommandError::Refused(_))));
    assert!(operator.resume(&group()).await.unwrap().changed);
    pair.settled(0).await;
    pair.checked_cut(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_failover_without_reverse_waits_for_the_operator() {
    let mut pair = with_writes(7).await;
    let operator = pair.operator(0);
    operator
        .planned_failover(&group(), None, true, false)
        .await
        .unwrap();
    pair.until("served there", async |pair: &Pair| {
        pair.server().await == Some(1)
    })
    .await;
    assert!(pair.write(9).await);
    let points =
        |status: sitepair_engine::agent::status::GroupStatus| status.replica.unwrap().points;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(points(pair.status(0).await.unwrap()), 1);
    pair.operator(1).reverse(&group()).await.unwrap();
    pair.settled(1).await;
    pair.checked_cut(1).await;
}

#[tokio::test(start_paused = true)]
async fn protection_ends_at_both_sites_and_can_begin_again() {
    let mut pair = with_writes(8).await;
    let at_replica = pair.operator(1).unprotect(&group(), deleting()).await;
    assert!(matches!(at_replica, Err(CommandError::Refused(_))));
    pair.link.set_up(false);
    let alone = pair.operator(0).unprotect(&group(), deleting()).await;
    assert!(matches!(alone, Err(CommandError::Unreachable(_))));
    assert_eq!(pair.server().await, Some(0), "nothing has changed");
    pair.link.set_up(true);
    pair.settled(0).await;
    pair.operator(0)
        .unprotect(&group(), deleting())
        .await
        .unwrap();
    assert!(pair.status(0).await.is_none());
    assert!(pair.status(1).await.is_none());
    assert_eq!(pair.server().await, None);
    pair.protect(0).await.unwrap();
    pair.settled(0).await;
    pair.checked_cut(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_at_the_replica_stops_points_not_the_guest() {
    let mut pair = with_writes(9).await;
    pair.sites[1].storage.limit_space(Some(0));
    for n in 0..9 {
        assert!(pair.write(n * 313).await);
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(pair.write(1).await, "the guest goes on");
    let status = pair.status(0).await.unwrap();
    assert!(!status.messages.is_empty(), "and operators are told");
    pair.check_points(1).await;
    pair.sites[1].storage.limit_space(None);
    pair.settled(0).await;
    pair.checked_cut(0).await;
    pair.check_points(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_at_the_source_makes_no_wrong_point() {
    let mut pair = with_writes(10).await;
    for n in 0..9 {
        assert!(pair.write(n * 313).await);
    }
    pair.sites[0].storage.fail(Fault {
        on: FaultOn::Sync,
        path: Some(disk_path(0)),
        nth: 1,
        kind: std::io::ErrorKind::Other,
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!pair.flush().await, "a failed flush is final");
    assert!(!pair.write(0).await, "for all that comes after it");
    pair.check_points(1).await;
    // A start finds what is on the disk, and what the replica has is brought to that.
    pair.guest.lost = crate::guest::Lost::Unflushed;
    pair.crash(0, Death::Process);
    pair.start(0).await;
    pair.settled(0).await;
    assert!(pair.write(4).await);
    pair.checked_cut(0).await;
    pair.check_points(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_and_start_sends_nothing_twice() {
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let mut pair = Pair::with_disks(11, SIZES, format);
        pair.begin(0).await;
        for n in 0..50 {
            assert!(pair.write(n * 977).await);
        }
        pair.checked_cut(0).await;
        for site in 0..2 {
            pair.stop(site).await;
            pair.start(site).await;
            pair.settled(0).await;
            let sent = pair.status(0).await.unwrap().source.unwrap().sent_bytes;
            if site == 0 {
                assert_eq!(sent, 0, "{format}");
            }
        }
        assert!(pair.write(4).await);
        pair.fail_over(0).await;
    }
}

/// The change map forgets nothing in a crash, and does not ask for everything either.
#[tokio::test(start_paused = true)]
async fn after_a_crash_hot_zones_are_sent_not_the_whole_disk() {
    const ZONE: u64 = 4 << 20;
    for death in [Death::Process, Death::Host(5)] {
        let mut pair = Pair::with_disks(12, [8 * ZONE, 64 * 4096], Format::Raw);
        pair.hot_zones = 2;
        pair.begin(0).await;
        for n in 0..64 {
            assert!(pair.write(n * 2 * 1024).await);
        }
        pair.settled(0).await;
        pair.checked_cut(0).await;
        for n in 0..3 {
            assert!(pair.write(n * 2 * 8192).await);
        }
        let before = pair.status(0).await.unwrap().source.unwrap();
        assert!(u64::from(before.hot_zones) <= 4, "{before:?}");
        pair.crash(0, death);
        pair.start(0).await;
        pair.settled(0).await;
        assert!(pair.write(1).await);
        pair.checked_cut(0).await;
        let sent = pair.status(0).await.unwrap().source.unwrap().sent_bytes;
        let bound = u64::from(before.hot_zones) * ZONE + before.open_dirty_bytes + ZONE;
        assert!(sent <= bound, "{sent} bytes sent, at most {bound}");
        assert!(sent < 4 * ZONE, "{sent} bytes sent of {}", 8 * ZONE);
        pair.check_points(1).await;
    }
}

/// Each answer used to be voided by the next question when a link was slower than the agent was patient.
#[tokio::test(start_paused = true)]
async fn a_slow_link_answers_in_the_end() {
    let mut pair = with_writes(13).await;
    pair.link.set_hello_takes(Duration::from_secs(3));
    pair.crash(0, Death::Host(1));
    pair.start(0).await;
    pair.settled(0).await;
    assert!(pair.write(1).await);
}

/// A site that learns that it was left behind, and cannot record it, used to open its exports again.
#[tokio::test(start_paused = true)]
async fn a_fence_that_cannot_be_recorded_keeps_the_site_closed() {
    let mut pair = with_writes(14).await;
    let status = pair.status(0).await.unwrap();
    let next = GenId::from_bytes([0x77; 16]);
    let hello = Hello {
        request: OpId::from_bytes([1; 16]),
        nonce: Nonce::from_bytes([2; 16]),
        summary: PeerSummary {
            group: status.id,
            role: RoleName::Source,
            generation: Generation {
                epoch: status.generation.epoch + 1,
                id: next,
            },
            lineage: Lineage::born(status.generation.id).advanced(next),
            cycle: status.cycle,
            digest: None,
            forced: Vec::new(),
        },
    };
    let mortal = Arc::clone(pair.sites[0].mortal.as_ref().unwrap());
    mortal.set_full(true);
    assert!(pair.face(0).hello(hello).await.is_err());
    assert_eq!(served_after(&pair, Duration::from_secs(5)).await, None);
    mortal.set_full(false);
    assert_eq!(served_after(&pair, Duration::from_secs(5)).await, None);
    assert_eq!(pair.role(0).await, Some(RoleName::Fenced));
    assert!(!pair.write(1).await);
}

#[tokio::test(start_paused = true)]
async fn a_site_that_stops_while_it_promotes_opens_after_its_next_start() {
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let mut pair = Pair::with_disks(15, SIZES, format);
        pair.begin(0).await;
        for n in 0..50 {
            assert!(pair.write(n * 977).await);
        }
        pair.settled(0).await;
        let operator = pair.operator(0);
        let name = group();
        let op = operator.planned_failover(&name, None, true, true);
        op.await.unwrap();
        while pair.role(1).await != Some(RoleName::Source) {
            tokio::task::yield_now().await;
        }
        pair.stop(1).await;
        pair.set_dead_for(1, None);
        pair.start(1).await;
        pair.settled(1).await;
        pair.shut_guest_down();
        assert!(pair.write(5).await);
        pair.checked_cut(1).await;
    }
}

/// A replica's images used to be dropped at a stop: a VHDX then opened with a log to replay.
#[tokio::test(start_paused = true)]
async fn a_stopped_agent_leaves_images_as_after_a_clean_shutdown() {
    let mut pair = Pair::with_disks(16, SIZES, Format::Vhdx);
    pair.keep_points = 1;
    pair.begin(0).await;
    for n in 0..50 {
        assert!(pair.write(n * 977).await);
    }
    pair.settled(0).await;
    pair.checked_cut(0).await;
    pair.stop(1).await;
    pair.stop(0).await;
    for (site, dir) in [(0, "/disks"), (1, "/replicas/web")] {
        let storage = &pair.sites[site].storage;
        for file in storage.list(Path::new(dir)).unwrap() {
            if file.extension().is_some_and(|e| e == "map") {
                continue;
            }
            let bytes = storage.content(&file).unwrap();
            assert!(log_is_empty(&bytes), "site {site} {}", file.display());
        }
    }
}

/// Whether a VHDX says that it has no log to replay: the log's GUID in its newer header is zero.
fn log_is_empty(vhdx: &[u8]) -> bool {
    let header = |at: usize| {
        assert_eq!(&vhdx[at..at + 4], b"head");
        let sequence = u64::from_le_bytes(vhdx[at + 8..at + 16].try_into().unwrap());
        (sequence, vhdx[at + 48..at + 64].iter().all(|b| *b == 0))
    };
    let (_, empty) = header(64 << 10).max(header(128 << 10));
    empty
}
