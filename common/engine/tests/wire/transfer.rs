//! Transfers: everything arrives, and whatever goes wrong is noticed at both ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sitepair_engine::endpoint::{
    DataFrame, FRAME_PAYLOAD_MAX, PeerEndpoint, PeerError, TransferDigest, cycle_digest,
};
use sitepair_engine::wire::{LinkTiming, WINDOW_BYTES};
use sitepair_model::ids::{Cycle, DiskId, Site};
use sitepair_model::peer::{TransferBegin, TransferKind};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    FakePeer, Linked, Pki, TestServer, a_begin, a_commit, a_frame, remote, timing, until_down,
    until_up, within,
};

fn pattern(seed: u8, size: usize) -> Bytes {
    (0..size)
        .map(|i| seed ^ i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
        .collect()
}

fn same(a: &DataFrame, b: &DataFrame) -> bool {
    a.disk == b.disk && a.extents == b.extents && a.hash == b.hash && a.payload == b.payload
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(waiting).await;
}

#[tokio::test]
async fn frames_arrive_in_order_and_the_commit_is_answered() {
    let linked = Linked::new(FakePeer::default()).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    let mut digests: HashMap<DiskId, TransferDigest> = HashMap::new();
    let mut sent = Vec::new();
    for n in 0..40_u8 {
        let size = [0, 1, 4096, 70_000, FRAME_PAYLOAD_MAX][usize::from(n) % 5];
        let mut frame = a_frame(1 + n % 2, u64::from(n) << 21, pattern(n, size));
        frame.extents.retain(|extent| extent.length > 0);
        digests.entry(frame.disk).or_default().add(&frame);
        sent.push(frame.clone());
        transfer.send(frame).await.unwrap();
    }
    transfer.checkpoint().await.unwrap();
    assert_eq!(
        linked.fake.frames.lock().unwrap().len(),
        sent.len(),
        "a checkpoint covers all"
    );
    let commit = a_commit(&digests);
    let committed = transfer.commit(commit.clone()).await.unwrap();
    assert_eq!(committed.cycle, Cycle(2));
    assert_eq!(committed.digest, cycle_digest(&commit.disks));
    let received = linked.fake.frames.lock().unwrap();
    assert!(received.iter().zip(&sent).all(|(a, b)| same(a, b)));
    let expected = [
        "begin Cycle { from: Cycle(1), to: Cycle(2) }",
        "checkpoint",
        "commit",
    ];
    assert_eq!(linked.fake.log(), expected);
}

#[tokio::test]
async fn a_commit_that_does_not_fit_is_refused() {
    let linked = Linked::new(FakePeer::default()).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    let frame = a_frame(1, 0, pattern(1, 4096));
    let mut digests: HashMap<DiskId, TransferDigest> = HashMap::new();
    digests
        .entry(frame.disk)
        .or_default()
        .add(&a_frame(1, 0, pattern(2, 4096)));
    transfer.send(frame).await.unwrap();
    let error = transfer.commit(a_commit(&digests)).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Refused { why } if why.contains("digests")),
        "{error}"
    );
}

#[tokio::test]
async fn a_transfer_that_is_dropped_is_abandoned_at_the_other_end() {
    let linked = Linked::new(FakePeer::default()).await;
    let begin = TransferBegin {
        kind: TransferKind::Seed,
        ..a_begin()
    };
    let mut transfer = linked.remote.begin(begin).await.unwrap();
    transfer
        .send(a_frame(1, 0, pattern(1, 4096)))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();
    drop(transfer);
    until(|| {
        linked
            .fake
            .log()
            .last()
            .is_some_and(|last| last == "abandoned")
    })
    .await;
}

#[tokio::test]
async fn malformed_frames_never_reach_the_endpoint() {
    let linked = Linked::new(FakePeer::default()).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    let mut frame = a_frame(1, 0, pattern(1, 4096));
    frame.payload = pattern(1, 4095);
    let sent = async {
        transfer.send(frame).await?;
        transfer.checkpoint().await
    };
    let error = within(sent).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Refused { why } if why.contains("payload")),
        "{error}"
    );
    assert!(linked.fake.frames.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_sender_waits_while_its_window_is_full() {
    let fake = FakePeer {
        gate: Arc::new(Semaphore::new(0)),
        ..FakePeer::default()
    };
    let linked = Linked::new(fake).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    let payload = pattern(7, FRAME_PAYLOAD_MAX);
    let mut taken = 0;
    for n in 0_u64.. {
        let sending = transfer.send(a_frame(1, n << 21, payload.clone()));
        if tokio::time::timeout(Duration::from_millis(500), sending)
            .await
            .is_err()
        {
            break;
        }
        taken += 1;
        assert!(
            taken * FRAME_PAYLOAD_MAX <= WINDOW_BYTES,
            "the window has no end"
        );
    }
    assert_eq!(
        taken,
        WINDOW_BYTES / FRAME_PAYLOAD_MAX - 1,
        "the window was used"
    );
    linked.fake.gate.add_permits(1000);
    within(transfer.checkpoint()).await.unwrap();
    assert_eq!(linked.fake.frames.lock().unwrap().len(), taken);
}

#[tokio::test]
async fn a_receiver_that_makes_no_progress_is_noticed() {
    let fake = FakePeer {
        gate: Arc::new(Semaphore::new(1)),
        ..FakePeer::default()
    };
    let timing = LinkTiming {
        stall_max: Duration::from_millis(400),
        ..timing()
    };
    let linked = Linked::with_timing(fake, timing).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    let sending = async {
        for n in 0_u64.. {
            transfer
                .send(a_frame(1, n << 21, pattern(7, FRAME_PAYLOAD_MAX)))
                .await?;
        }
        Ok::<(), PeerError>(())
    };
    let error = within(sending).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Link { why } if why.contains("no progress")),
        "{error}"
    );
}

#[tokio::test]
async fn a_receiver_that_is_busy_but_alive_is_waited_for() {
    let fake = FakePeer {
        checkpoint_takes: Duration::from_secs(8),
        ..FakePeer::default()
    };
    let timing = LinkTiming {
        stall_max: Duration::from_secs(7),
        ..timing()
    };
    let linked = Linked::with_timing(fake, timing).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    transfer
        .send(a_frame(1, 0, pattern(1, 4096)))
        .await
        .unwrap();
    within(transfer.checkpoint()).await.unwrap();
}

/// A TCP proxy whose connections can be cut, or go silent; new ones go through.
struct Proxy {
    address: std::net::SocketAddr,
    cut: Arc<Notify>,
    silence: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    async fn start(to: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new(Notify::new());
        let silence = Arc::new(Notify::new());
        let forwarding = forward(listener, to, Arc::clone(&cut), Arc::clone(&silence));
        let task = tokio::spawn(forwarding);
        Self {
            address,
            cut,
            silence,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn cut(&self) {
        self.cut.notify_waiters();
    }
}

async fn forward(
    listener: TcpListener,
    to: std::net::SocketAddr,
    cut: Arc<Notify>,
    silence: Arc<Notify>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let (cut, silence) = (Arc::clone(&cut), Arc::clone(&silence));
        connections.spawn(async move {
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = cut.notified() => {}
                // Both connections stay open, and nothing passes any more.
                () = silence.notified() => std::future::pending().await,
            }
        });
    }
}

#[tokio::test]
async fn a_black_hole_is_noticed() {
    let pki = Pki::new();
    let store = pki.agent(Site::Primary, false);
    let server = TestServer::start(store, Site::Primary, Arc::new(FakePeer::default())).await;
    let proxy = Proxy::start(server.address).await;
    let timing = LinkTiming {
        keepalive: Duration::from_millis(300),
        ..timing()
    };
    let remote = remote(proxy.address, &pki.agent(Site::Secondary, false), timing);
    until_up(&remote).await;
    proxy.silence.notify_waiters();
    let why = until_down(&remote).await;
    assert!(why.contains("no sign of life"), "{why}");
    until_up(&remote).await;
}

#[tokio::test]
async fn a_link_cut_in_a_transfer_is_noticed_at_both_ends_and_mended() {
    let pki = Pki::new();
    let fake = Arc::new(FakePeer::default());
    let store = pki.agent(Site::Primary, false);
    let server = TestServer::start(store, Site::Primary, Arc::clone(&fake)).await;
    let proxy = Proxy::start(server.address).await;
    let remote = remote(proxy.address, &pki.agent(Site::Secondary, false), timing());
    until_up(&remote).await;
    let mut transfer = remote.begin(a_begin()).await.unwrap();
    transfer
        .send(a_frame(1, 0, pattern(1, 4096)))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();

    let since = Instant::now();
    proxy.cut();
    let sending = async {
        loop {
            transfer.send(a_frame(1, 0, pattern(1, 4096))).await?;
            transfer.checkpoint().await?;
        }
    };
    let error: Result<(), PeerError> = within(sending).await;
    assert!(matches!(error, Err(PeerError::Link { .. })), "{error:?}");
    assert!(!until_down(&remote).await.is_empty());
    assert!(since.elapsed() < Duration::from_secs(30));
    until(|| fake.log().contains(&"abandoned".to_owned())).await;

    until_up(&remote).await;
    remote.begin(a_begin()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_ends_its_transfers() {
    let linked = Linked::new(FakePeer::default()).await;
    let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
    transfer
        .send(a_frame(1, 0, pattern(1, 4096)))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();
    linked.server.end().await;
    let error = transfer.checkpoint().await.unwrap_err();
    assert!(matches!(&error, PeerError::Link { .. }), "{error}");
    assert_eq!(linked.fake.log().last().unwrap(), "abandoned");
}
