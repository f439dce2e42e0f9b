//! What is kept of a group is the same at both sites, whoever was told; and a journal without room holds replication
//! up in the open, for as long as need be.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sitepair_engine::agent::status::Health;
use sitepair_engine::agent::{CommandError, Done, Note, RetentionChange};
use sitepair_model::retention::{Policy, Retention};

use crate::pair::{Death, Pair, group};

fn keeping(policy: &str) -> RetentionChange {
    RetentionChange {
        policy: Some(policy.parse().unwrap()),
        ..RetentionChange::default()
    }
}

async fn told(pair: &Pair, site: usize, policy: &str) -> Result<Done, CommandError> {
    let operator = pair.operator(site);
    operator.set_retention(&group(), keeping(policy)).await
}

async fn retention(pair: &Pair, site: usize) -> Option<Retention> {
    pair.status(site).await.map(|status| status.retention)
}

async fn both_keep(pair: &Pair, policy: &str) {
    let wanted: Policy = policy.parse().unwrap();
    pair.until("both sites know the policy", async |pair: &Pair| {
        let here = [retention(pair, 0).await, retention(pair, 1).await];
        here.into_iter()
            .flatten()
            .filter(|r| r.policy == wanted)
            .count()
            == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_the_other_site_also_later() {
    let mut pair = Pair::protected(31, 0).await;
    assert!(pair.write(1).await);
    pair.settled(0).await;
    both_keep(&pair, "newest:1000").await;
    assert!(told(&pair, 0, "newest:7").await.unwrap().changed);
    assert!(!told(&pair, 0, "newest:7").await.unwrap().changed);
    both_keep(&pair, "newest:7").await;
    // The replica's site may be told as well.
    assert!(told(&pair, 1, "all:1h,1m:4h").await.unwrap().changed);
    both_keep(&pair, "all:1h,1m:4h").await;
    assert!(matches!(
        told(&pair, 1, "newest:4000000").await,
        Err(CommandError::Invalid(_))
    ));

    // The other site is away, and learns it when it is back; what it was told before does not come back with it.
    pair.crash(1, Death::Process);
    let later = told(&pair, 0, "newest:9").await.unwrap();
    assert!(later.message.contains("newest:9"));
    pair.start(1).await;
    both_keep(&pair, "newest:9").await;
    pair.crash(0, Death::Host(3));
    pair.start(0).await;
    pair.settled(0).await;
    both_keep(&pair, "newest:9").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_pauses_replication_in_the_open_and_it_resumes_by_itself() {
    let mut pair = Pair::protected(32, 0).await;
    let free = RetentionChange {
        min_free_bytes: Some(1 << 20),
        ..RetentionChange::default()
    };
    pair.operator(1)
        .set_retention(&group(), free)
        .await
        .unwrap();
    assert!(pair.write(1).await);
    pair.settled(0).await;
    let first = pair.checked_cut(0).await;
    let note = pair.operator(1).note(&group(), first, Note::Pin).await;
    assert!(note.unwrap().changed);
    // Somebody else fills the replica's disk.
    pair.sites[1].env.free_bytes.store(0, Ordering::Relaxed);
    assert!(pair.write(977).await);
    pair.until("the replica says that it is full", async |pair: &Pair| {
        let status = pair.status(1).await.unwrap();
        let said = status.messages.iter().any(|m| m.contains("paused"));
        said && status.health == Health::Critical
    })
    .await;
    pair.until(
        "the source says why it does not send",
        async |pair: &Pair| {
            let status = pair.status(0).await.unwrap();
            let said = status
                .messages
                .iter()
                .any(|m| m.contains("the journal takes"));
            said && status.health >= Health::Warning
        },
    )
    .await;
    let points = pair
        .operator(1)
        .points(&group(), None)
        .await
        .unwrap()
        .points;
    assert!(
        points
            .iter()
            .any(|p| p.point.cycle == first && p.point.pinned)
    );
    assert!(pair.write(1977).await, "the guest goes on");

    pair.sites[1]
        .env
        .free_bytes
        .store(1 << 30, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(15)).await;
    pair.settled(0).await;
    pair.checked_cut(0).await;
    let status = pair.status(1).await.unwrap();
    assert_eq!((status.health, status.messages), (Health::Ok, Vec::new()));
}
