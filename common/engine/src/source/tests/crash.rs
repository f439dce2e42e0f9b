//! Stops and crashes: what is dirty at the next start covers what the replica lacks.

use super::*;

const SIZE: u64 = 16 << 20;
const ZONES: u64 = SIZE / ZONE_BYTES;

/// Runs a random guest with cuts and transfers until the storage dies or the schedule ends.
async fn run(rig: &Rig, peer: &Peer, random: &mut Random, steps: u64) {
    for _ in 0..steps {
        let (disk, zone) = (
            1 + u8::try_from(random.below(2)).unwrap(),
            random.below(ZONES),
        );
        let block = zone * 1024 + random.below(40);
        // Failures are the storage's death: the guest sees errors, and goes on.
        let _ = match random.below(10) {
            0 => rig.guest(disk).flush(),
            1 => rig.guest(disk).discard(block * 4096, 3 * 4096),
            2 => rig.guest(disk).write_at(&[3; 4096], block * 4096, true),
            _ => rig.write(disk, block, u8::try_from(random.below(255)).unwrap() + 1),
        };
        if random.below(12) == 0 {
            cycle(rig, peer, random).await;
        }
    }
}

async fn cycle(rig: &Rig, peer: &Peer, random: &mut Random) {
    let fates = [
        CommitFate::Answered,
        CommitFate::Answered,
        CommitFate::LostBefore,
        CommitFate::LostAfter,
    ];
    peer.fate(fates[usize::try_from(random.below(4)).unwrap()]);
    let info = CutInfo {
        at: UnixMillis(5),
        consistency: Consistency::Crash,
        label: None,
    };
    if let Ok(sealed) = rig.group.cut(info).await
        && rig.ship(peer, &sealed).await.is_err()
    {
        let _ = rig.group.resolve(peer.cycle(), peer.digest()).await;
    }
    peer.fate(CommitFate::Answered);
}

async fn dies_and_converges(seed: u64) {
    let mut random = Random(seed);
    let sizes = [SIZE, SIZE];
    let mut rig = Rig::new(&sizes, Fresh::InStep, small());
    let peer = Peer::new(&sizes);
    for life in 0..3 {
        if random.below(4) > 0 {
            let lives = rig.storage.operation_count() + random.below(250);
            rig.storage.die_after(lives);
        }
        run(&rig, &peer, &mut random, 60).await;
        let after = match random.below(3) {
            0 => rig.storage.after_kill(),
            _ => rig.storage.crash(random.below(6)),
        };
        rig = rig.reopen(after, peer.cycle(), small());
        assert!(
            !rig.group.needs_full_compare(),
            "seed {seed}, life {life}: the map is trusted"
        );
        rig.replicate(&peer).await;
        for disk in [1, 2] {
            assert!(
                rig.content(disk) == peer.content(disk),
                "seed {seed}, life {life}, disk {disk}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_crash_the_replica_converges() {
    for seed in 0..30 {
        dies_and_converges(seed).await;
    }
}

/// One disk whose cap is one hot zone, written all over until the storage dies.
fn write_over_the_cap(dies_after: Option<u64>) -> Rig {
    let limits = Limits {
        hot_zones_max: 1,
        ..Limits::default()
    };
    let rig = Rig::new(&[3 * ZONE_BYTES], Fresh::InStep, limits);
    if let Some(count) = dies_after {
        rig.storage.die_after(rig.storage.operation_count() + count);
    }
    for step in 0..6u64 {
        // Each zone's write is durable before the next zone is heated, which cools this one.
        let _ = rig
            .guest(1)
            .write_at(&[7; BLOCK], (step % 3 * 1024 + step) * 4096, true);
    }
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn no_instant_of_cooling_a_dirty_zone_forgets_it() {
    let rig = write_over_the_cap(None);
    let whole = rig.storage.operation_count();
    for count in 0..whole {
        let rig = write_over_the_cap(Some(count));
        if !rig.storage.is_dead() {
            break;
        }
        // Others at each death: a seed keeps the same ones of the first few sectors.
        for seed in count * 8..count * 8 + 8 {
            let after = rig.storage.crash(seed);
            let limits = Limits::default();
            let next = Rig::open(after, 1, Fresh::Resume, Cycle::NONE, limits).unwrap();
            assert!(!next.group.needs_full_compare());
            let peer = Peer::new(&[3 * ZONE_BYTES]);
            next.replicate(&peer).await;
            assert!(
                next.content(1) == peer.content(1),
                "death after {count}, crash {seed}"
            );
        }
    }
}

#[tokio::test]
async fn a_crash_sends_hot_zones_again_and_no_more() {
    let sizes = [64 << 20];
    let rig = Rig::new(&sizes, Fresh::InStep, Limits::default());
    let peer = Peer::new(&sizes);
    rig.write(1, 5, 1).unwrap();
    rig.write(1, 5000, 1).unwrap();
    rig.replicate(&peer).await;
    let after = rig.storage.crash(0);
    let rig = rig.reopen(after, Cycle(1), Limits::default());
    assert_eq!(rig.group.progress().open_dirty_bytes, 2 * ZONE_BYTES);
}

#[tokio::test]
async fn the_cap_on_hot_zones_holds_and_saves_what_is_dirty() {
    let sizes = [64 << 20];
    let rig = Rig::new(&sizes, Fresh::InStep, small());
    let peer = Peer::new(&sizes);
    for zone in 0..16 {
        rig.write(1, zone * 1024, 1).unwrap();
        assert!(rig.group.progress().hot_zones <= 2);
    }
    let after = rig.storage.crash(0);
    let rig = rig.reopen(after, Cycle::NONE, small());
    let dirty = rig.group.progress().open_dirty_bytes;
    assert_eq!(
        dirty,
        14 * 4096 + 2 * ZONE_BYTES,
        "14 saved blocks and two hot zones"
    );
    rig.replicate(&peer).await;
    // What was saved and is acknowledged has left the file.
    let rig = {
        let after = rig.storage.after_kill();
        rig.reopen(after, Cycle(1), small())
    };
    assert_eq!(rig.group.progress().open_dirty_bytes, 2 * ZONE_BYTES);
}

#[tokio::test]
async fn a_clean_stop_sends_nothing_twice() {
    let sizes = [SIZE];
    let rig = Rig::new(&sizes, Fresh::InStep, Limits::default());
    let peer = Peer::new(&sizes);
    rig.write(1, 1, 1).unwrap();
    rig.replicate(&peer).await;
    rig.write(1, 2000, 2).unwrap();
    let _sealed = rig.cut().await;
    rig.write(1, 3000, 3).unwrap();
    rig.group.close().await.unwrap();
    let after = rig.storage.crash(0);
    let rig = rig.reopen(after, Cycle(1), Limits::default());
    assert_eq!(rig.group.full_compare_reasons(), []);
    let progress = rig.group.progress();
    assert_eq!((progress.open_dirty_bytes, progress.hot_zones), (8192, 0));
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
}

#[tokio::test]
async fn what_the_map_cannot_know_is_sent_again() {
    type Harm = fn(&FakeStorage);
    let harms: [(Harm, &str); 4] = [
        (
            |s| s.overwrite(&path(1), 8192, &[9; 512]).unwrap(),
            "changed by others",
        ),
        (
            |s| sitepair_disk::storage::Storage::remove(s, &map_path(1)).unwrap(),
            "no change map",
        ),
        (
            |s| s.overwrite(&map_path(1), 0, &[1; 8192]).unwrap(),
            "no header",
        ),
        (
            |s| {
                s.content(&map_path(1))
                    .and_then(|c| {
                        let bytes = other_disk(&c);
                        s.overwrite(&map_path(1), 0, &bytes)
                    })
                    .unwrap()
            },
            "belongs to",
        ),
    ];
    for (harm, why) in harms {
        let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
        let peer = Peer::new(&[SIZE]);
        rig.write(1, 1, 1).unwrap();
        rig.replicate(&peer).await;
        rig.group.close().await.unwrap();
        harm(&rig.storage);
        let after = rig.storage.after_kill();
        let rig = rig.reopen(after, Cycle(1), Limits::default());
        let reasons = rig.group.full_compare_reasons();
        assert!(reasons[0].1.contains(why), "{reasons:?}");
        assert_eq!(rig.group.progress().open_dirty_bytes, SIZE);
        rig.replicate(&peer).await;
        rig.assert_equal(&peer);
    }
}

/// Both header slots, rewritten for another disk.
fn other_disk(map: &[u8]) -> Vec<u8> {
    let mut bytes = map[..8192].to_vec();
    for slot in bytes.chunks_mut(4096) {
        slot[24] ^= 1;
        let crc = crc32c::crc32c(&slot[..4092]);
        slot[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

#[tokio::test]
async fn a_damaged_sector_of_the_log_counts_as_hot() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    let peer = Peer::new(&[SIZE]);
    rig.write(1, 1, 1).unwrap();
    rig.storage
        .overwrite(&map_path(1), 8192 + 100, &[0xff; 7])
        .unwrap();
    let after = rig.storage.after_kill();
    let rig = rig.reopen(after, Cycle::NONE, Limits::default());
    assert_eq!(rig.group.progress().hot_zones, ZONES);
    assert_eq!(rig.group.progress().open_dirty_bytes, SIZE);
    rig.replicate(&peer).await;
    rig.assert_equal(&peer);
    rig.group.close().await.unwrap();
    let after = rig.storage.crash(0);
    let rig = rig.reopen(after, Cycle(1), Limits::default());
    assert_eq!(rig.group.progress().open_dirty_bytes, 0);
}

#[tokio::test]
async fn a_generation_is_adopted_durably() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    rig.write(1, 1, 1).unwrap();
    let _sealed = rig.cut().await;
    let next = GenId::from_bytes([77; 16]);
    rig.group.adopt_generation(next, Cycle(4)).await.unwrap();
    assert_eq!(
        rig.group.progress().open_dirty_bytes,
        4096,
        "the sealed cycle is dirty again"
    );
    assert_eq!(rig.cut().await.cycle, Cycle(5));
    let after = rig.storage.crash(0);
    let rig = rig.reopen(after, Cycle(4), Limits::default());
    assert!(
        rig.group.full_compare_reasons()[0].1.contains("generation"),
        "not the one it left"
    );
}

#[tokio::test]
async fn a_map_that_fails_refuses_new_zones_only() {
    let rig = Rig::new(&[SIZE], Fresh::InStep, Limits::default());
    rig.write(1, 1, 1).unwrap();
    rig.storage.fail(sitepair_disk::storage::fake::Fault {
        on: sitepair_disk::storage::fake::FaultOn::Sync,
        path: Some(map_path(1)),
        nth: 1,
        kind: std::io::ErrorKind::Other,
    });
    assert!(rig.write(1, 2000, 1).is_err());
    assert!(rig.write(1, 2000, 1).is_err(), "a failed sync is final");
    rig.write(1, 2, 1).unwrap();
    assert_eq!(rig.content(1)[2000 * BLOCK], 0, "nothing reached the image");
}
