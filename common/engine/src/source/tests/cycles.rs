//! Cycles: what a committed one holds, whatever the guest does meanwhile.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;

const SIZE: u64 = 24 << 20;

fn preserve(memory_bytes: u64, spill_bytes: u64) -> Limits {
    Limits {
        preserve_memory_bytes: memory_bytes,
        preserve_spill_bytes: spill_bytes,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_cycle_brings_the_replica_to_the_cut() {
    // The last block is short.
    let sizes = [SIZE + 512, 8 << 20];
    let rig = Rig::new(&sizes, Fresh::InStep, Limits::default());
    let peer = Peer::new(&sizes);
    rig.write(1, 3, 7).unwrap();
    rig.write(2, 100, 8).unwrap();
    rig.guest(1)
        .write_at(&[6; 1024], SIZE - 512, false)
        .unwrap();
    let first = rig.cut().await;
    assert_eq!((first.cycle, first.dirty_bytes), (Cycle(1), 4 * 4096));
    rig.ship(&peer, &first).await.unwrap();
    rig.assert_equal(&peer);

    rig.guest(1)
        .write_zeroes(0, 16 << 20, sitepair_disk::ZeroMode::MayUnmap, false)
        .unwrap();
    rig.guest(2).discard(0, 8 << 20).unwrap();
    assert!(rig.group.progress().oldest_unreplicated_write.is_some());
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
    let progress = rig.group.progress();
    assert_eq!(progress.acknowledged, Cycle(2));
    assert_eq!((progress.open_dirty_bytes, progress.sealed_bytes), (0, 0));
    assert_eq!(progress.oldest_unreplicated_write, None);

    let empty = rig.cut().await;
    assert_eq!(empty.dirty_bytes, 0);
    assert_eq!(rig.ship(&peer, &empty).await.unwrap().cycle, Cycle(3));
}

#[tokio::test]
async fn blocks_outside_the_disk_are_refused() {
    let rig = Rig::new(&[8 << 20], Fresh::InStep, Limits::default());
    for (offset, length) in [
        (8 << 20, 512u64),
        (u64::MAX - 511, 512),
        ((8 << 20) - 512, 1024),
    ] {
        let buf = vec![0; usize::try_from(length).unwrap()];
        let kind = rig
            .guest(1)
            .write_at(&buf, offset, false)
            .unwrap_err()
            .kind();
        assert_eq!(kind, sitepair_disk::ErrorKind::Invalid);
        let zeroes = rig.guest(1).discard(offset, length);
        assert_eq!(
            zeroes.unwrap_err().kind(),
            sitepair_disk::ErrorKind::Invalid
        );
    }
    assert_eq!(rig.group.progress().open_dirty_bytes, 0);
}

/// Overwrites everything from within the transfer, after it began and before it is complete.
async fn overwritten_while_sent(limits: Limits, expect: Result<(), ()>) {
    let rig = Arc::new(Rig::new(&[SIZE], Fresh::InStep, limits));
    let peer = Peer::new(&[SIZE]);
    let blocks = 2048;
    for block in 0..blocks {
        rig.write(1, block, u8::try_from(block % 250).unwrap() + 1)
            .unwrap();
    }
    let sealed = rig.cut().await;
    let at_cut = rig.content(1);
    let guest = Arc::clone(&rig);
    let done = AtomicBool::new(false);
    peer.on_frame(move |_| {
        if !done.swap(true, SeqCst) {
            // Half a block, a whole one, zeros: each must keep what was there.
            for block in 0..blocks {
                match block % 3 {
                    0 => guest
                        .guest(1)
                        .write_at(&[255; 512], block * 4096 + 512, false)
                        .unwrap(),
                    1 => guest.write(1, block, 254).unwrap(),
                    _ => guest.guest(1).discard(block * 4096, 4096).unwrap(),
                }
            }
        }
    });
    match rig.ship(&peer, &sealed).await {
        Ok(_) => {
            assert!(expect.is_ok());
            assert!(
                peer.content(1) == at_cut,
                "the cycle is as it was at the cut"
            );
        }
        Err(ShipError::Abandoned) => assert!(expect.is_err()),
        Err(other) => panic!("{other}"),
    }
    assert_eq!(rig.group.progress().preserved_bytes, 0);
    assert!(!holds(&rig.storage, Path::new("/disk1.raw.spill")));
    peer.no_hook();
    let next = rig.replicate(&peer).await;
    assert_eq!(
        next.cycle,
        Cycle(2),
        "the number of an abandoned cycle is skipped"
    );
    rig.assert_equal(&peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn overwritten_blocks_are_sent_as_they_were() {
    overwritten_while_sent(Limits::default(), Ok(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preserved_blocks_spill_to_a_file() {
    overwritten_while_sent(preserve(64 << 10, 1 << 30), Ok(())).await;
    overwritten_while_sent(preserve(0, 1 << 30), Ok(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_that_costs_too_much_is_given_up() {
    overwritten_while_sent(preserve(64 << 10, 64 << 10), Err(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preserving_read_that_fails_costs_the_cycle_and_not_the_write() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    let peer = Peer::new(&[SIZE]);
    rig.write(1, 1, 1).unwrap();
    let sealed = rig.cut().await;
    rig.storage.fail_reads(&path(1), 4096..8192);
    rig.write(1, 1, 2).unwrap();
    rig.storage.clear_faults();
    assert!(matches!(
        rig.ship(&peer, &sealed).await,
        Err(ShipError::Abandoned)
    ));
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_goes_on_while_the_link_is_stalled() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, preserve(64 << 10, 0));
    let peer = Peer::new(&[SIZE]);
    (0..4096).for_each(|block| rig.write(1, block, 1).unwrap());
    let sealed = rig.cut().await;
    peer.0.flowing.send_replace(false);
    let stop = CancellationToken::new();
    let mut ship = std::pin::pin!(rig.group.ship(&peer, &sealed, &stop));
    tokio::select! {
        biased;
        _ = &mut ship => panic!("the link is stalled"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    // Far more than may be preserved: the cycle is given up although the peer says nothing.
    (0..4096).for_each(|block| rig.write(1, block, 2).unwrap());
    assert!(matches!(ship.await, Err(ShipError::Abandoned)));
    peer.0.flowing.send_replace(true);
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_transfer_leaves_nothing_behind() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    let peer = Peer::new(&[SIZE]);
    (0..4096).for_each(|block| rig.write(1, block, 1).unwrap());
    let sealed = rig.cut().await;
    peer.0.flowing.send_replace(false);
    let stop = CancellationToken::new();
    let shipping = rig.group.ship(&peer, &sealed, &stop);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), shipping)
            .await
            .is_err()
    );
    peer.0.flowing.send_replace(true);
    let info = CutInfo {
        at: UnixMillis(5),
        consistency: Consistency::Crash,
        label: None,
    };
    let again = rig.group.cut(info).await;
    assert!(matches!(
        again,
        Err(SourceError::SealedAlready { cycle: Cycle(1) })
    ));
    assert!(matches!(
        rig.ship(&peer, &sealed).await,
        Err(ShipError::NotSealed { .. })
    ));
    assert_eq!(rig.group.abandon().await, Resolution::Abandoned(Cycle(1)));
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
}

#[tokio::test]
async fn a_lost_answer_is_resolved_by_what_the_peer_has() {
    for fate in [CommitFate::LostBefore, CommitFate::LostAfter] {
        let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
        let peer = Peer::new(&[SIZE]);
        rig.write(1, 1, 1).unwrap();
        peer.fate(fate);
        let sealed = rig.cut().await;
        assert!(matches!(
            rig.ship(&peer, &sealed).await,
            Err(ShipError::Peer(_))
        ));
        rig.write(1, 2, 2).unwrap();
        assert_eq!(
            rig.group.abandon().await,
            Resolution::Nothing,
            "the peer may have it"
        );
        let resolution = rig
            .group
            .resolve(peer.cycle(), peer.digest())
            .await
            .unwrap();
        let (expected, dirty) = match fate {
            CommitFate::LostAfter => (Resolution::Acknowledged(Cycle(1)), 4096),
            _ => (Resolution::Abandoned(Cycle(1)), 8192),
        };
        assert_eq!(resolution, expected);
        assert_eq!(rig.group.progress().open_dirty_bytes, dirty);
        peer.fate(CommitFate::Answered);
        assert_eq!(rig.replicate(&peer).await.cycle, Cycle(2));
        rig.assert_equal(&peer);
    }
}

#[tokio::test]
async fn a_peer_that_lost_cycles_is_sent_everything() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    let peer = Peer::new(&[SIZE]);
    rig.write(1, 1, 1).unwrap();
    rig.replicate(&peer).await;
    let old = Peer::new(&[SIZE]);
    assert_eq!(
        rig.group.resolve(old.cycle(), None).await.unwrap(),
        Resolution::Nothing
    );
    assert_eq!(rig.replicate(&old).await.cycle, Cycle(2));
    rig.assert_equal(&old);
}

#[tokio::test]
async fn a_closed_gate_lets_nothing_through() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    rig.group.refuse_and_drain().await.unwrap();
    let guest = rig.guest(1);
    let closed = Some(sitepair_disk::ErrorKind::Closed);
    assert_eq!(rig.write(1, 1, 1).err().map(|e| e.kind()), closed);
    assert_eq!(
        guest.read_at(&mut [0; 512], 0).err().map(|e| e.kind()),
        closed
    );
    assert_eq!(guest.flush().err().map(|e| e.kind()), closed);
    assert_eq!(guest.discard(0, 4096).err().map(|e| e.kind()), closed);
    rig.group.admit();
    rig.write(1, 1, 1).unwrap();
    rig.group.close().await.unwrap();
    rig.group.admit();
    assert_eq!(rig.write(1, 1, 1).err().map(|e| e.kind()), closed);
}

/// Each guest writes a number to disk 1, and once that is answered the same to disk 2.
fn write_pairs(rig: &Rig, writer: u64, stop: &AtomicBool) {
    let (one, two) = (rig.guest(1), rig.guest(2));
    for number in 1u64.. {
        let mut sector = [0u8; 512];
        sector[..8].copy_from_slice(&number.to_le_bytes());
        // Eight places per writer, some sharing a block with another writer's.
        let place = (writer + (number % 8) * 13) * 512;
        one.write_at(&sector, place, false).unwrap();
        let mark = writer * 512;
        two.write_at(&sector, mark, false).unwrap();
        if stop.load(SeqCst) {
            return;
        }
    }
}

fn number_at(content: &[u8], sector: u64) -> u64 {
    let at = usize::try_from(sector * 512).unwrap();
    u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
}

fn check_pairs(peer: &Peer, writers: u64) {
    let (one, two) = (peer.content(1), peer.content(2));
    for writer in 0..writers {
        let newest = (0..8)
            .map(|slot| number_at(&one, writer + slot * 13))
            .max()
            .unwrap();
        let marked = number_at(&two, writer);
        assert!(
            newest == marked || newest == marked + 1,
            "{newest} on disk 1, {marked} on disk 2"
        );
        for back in 0..newest.min(8) {
            let number = newest - back;
            assert_eq!(
                number_at(&one, writer + (number % 8) * 13),
                number,
                "an earlier write"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cycle_holds_each_write_only_with_all_before_it() {
    let sizes = [1 << 20, 1 << 20];
    let rig = Arc::new(Rig::new(&sizes, Fresh::InStep, Limits::default()));
    let peer = Peer::new(&sizes);
    let stop = Arc::new(AtomicBool::new(false));
    let writers = 4;
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let (rig, stop) = (Arc::clone(&rig), Arc::clone(&stop));
            std::thread::spawn(move || write_pairs(&rig, writer, &stop))
        })
        .collect();
    for round in 0..150 {
        let sealed = rig.cut().await;
        match rig.ship(&peer, &sealed).await {
            Ok(_) => check_pairs(&peer, writers),
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    stop.store(true, SeqCst);
    threads.into_iter().for_each(|t| t.join().unwrap());
    rig.replicate(&peer).await;
    check_pairs(&peer, writers);
    rig.assert_equal(&peer);
}
