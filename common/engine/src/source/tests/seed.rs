//! Initial replication.

use super::*;

const SIZE: u64 = 24 << 20;

/// An image with content that the guest wrote before it was protected.
fn used(storage: &FakeStorage) {
    let image = RawImage::create(storage, &path(1), SIZE).unwrap();
    for block in (0..4096u64).filter(|b| b % 5 != 0) {
        let value = u8::try_from(block % 251).unwrap();
        image
            .write_at(&[value; BLOCK], block * 4096, false)
            .unwrap();
    }
    image.flush().unwrap();
}

fn often() -> Limits {
    Limits {
        seed_checkpoint_bytes: 2 << 20,
        ..small()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_disk_is_seeded_while_the_guest_writes() {
    let storage = FakeStorage::new();
    used(&storage);
    let rig = Arc::new(Rig::open(storage, 1, Fresh::Seed, Cycle::NONE, often()).unwrap());
    let peer = Peer::new(&[SIZE]);
    assert!(rig.group.needs_seed());
    let info = CutInfo {
        at: UnixMillis(5),
        consistency: Consistency::Crash,
        label: None,
    };
    assert!(matches!(
        rig.group.cut(info).await,
        Err(SourceError::Seeding)
    ));
    let (guest, count) = (Arc::clone(&rig), AtomicU64::new(0));
    peer.on_frame(move |_| {
        let n = count.fetch_add(1, SeqCst);
        guest.write(1, n * 37 % 6000, 99).unwrap();
        guest.guest(1).discard(n * 4096 * 91, 8192).unwrap();
    });
    rig.group
        .seed(&peer, &CancellationToken::new())
        .await
        .unwrap();
    assert!(!rig.group.needs_seed());
    assert!(peer.0.checkpoints.load(SeqCst) >= 4);
    peer.no_hook();
    assert_eq!(rig.group.progress().seed_left_bytes, 0);
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn seeding_goes_on_where_it_was_after_a_power_loss() {
    for seed in 0..4 {
        let storage = FakeStorage::new();
        used(&storage);
        let rig = Rig::open(storage, 1, Fresh::Seed, Cycle::NONE, often()).unwrap();
        let peer = Peer::new(&[SIZE]);
        peer.0.fail_after_frames.store(9, SeqCst);
        assert!(
            rig.group
                .seed(&peer, &CancellationToken::new())
                .await
                .is_err()
        );
        rig.write(1, 5000, 77).unwrap();
        rig.guest(1).flush().unwrap();
        let total = rig.group.progress().seed_total_bytes;

        let after = rig.storage.crash(seed);
        let rig = rig.reopen(after, Cycle::NONE, often());
        assert!(!rig.group.needs_full_compare());
        assert!(rig.group.needs_seed());
        // Nine frames of 1 MiB were sent, eight of them confirmed; one zone was written since.
        assert!(rig.group.progress().seed_total_bytes <= total - (8 << 20) + ZONE_BYTES);
        peer.0.fail_after_frames.store(u64::MAX, SeqCst);
        rig.group
            .seed(&peer, &CancellationToken::new())
            .await
            .unwrap();
        rig.replicate(&peer).await;
        rig.assert_equal(&peer);
    }
}

#[tokio::test]
async fn an_empty_disk_is_seeded_with_nothing() {
    let rig = Rig::new(&[SIZE], Fresh::Seed, small());
    let peer = Peer::new(&[SIZE]);
    rig.group
        .seed(&peer, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(peer.0.seeded_bytes.load(SeqCst), 0);
    let rig = {
        let after = rig.storage.crash(0);
        rig.reopen(after, Cycle::NONE, small())
    };
    assert!(!rig.group.needs_seed(), "its end is durable");
}

#[tokio::test]
async fn a_stopped_seed_says_so() {
    let storage = FakeStorage::new();
    used(&storage);
    let rig = Rig::open(storage, 1, Fresh::Seed, Cycle::NONE, often()).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let end = rig.group.seed(&Peer::new(&[SIZE]), &stop).await;
    assert!(matches!(end, Err(ShipError::Stopped)));
    assert!(rig.group.needs_seed());
}
