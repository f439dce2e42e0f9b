//! Full disks, failing disks, rotten bits.

use std::io;

use sitepair_disk::storage::fake::{Fault, FaultOn};
use sitepair_engine::endpoint::PeerError;
use sitepair_engine::replica::ReplicaError;
use sitepair_model::ids::Cycle;

use crate::support::{
    GROUP, Source, World, assert_points, content, cycles, disk_id, journal_files, seed, ship,
};

/// Sends cycle `to` until it is taken, and gives what went wrong on the way.
async fn ship_until_taken(
    group: &sitepair_engine::replica::ReplicaGroup,
    source: &mut Source,
    to: u64,
) -> Vec<PeerError> {
    let frames = source.cycle(to);
    let mut errors = Vec::new();
    while let Err(error) = ship(group, to - 1, to, &frames).await {
        errors.push(error);
        assert!(errors.len() < 100, "{errors:?}");
    }
    errors
}

#[tokio::test]
async fn any_failing_call_while_a_cycle_is_received_costs_nothing_but_a_repeat() {
    for on in [
        FaultOn::Write,
        FaultOn::Sync,
        FaultOn::SyncDir,
        FaultOn::Name,
        FaultOn::Space,
    ] {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
            for nth in 1..=8 {
                let world = World::new();
                let mut source = Source::new(40 + nth);
                let group = world.create().unwrap();
                let frames = source.cycle(1);
                ship(&group, 0, 1, &frames).await.unwrap();
                world.storage.fail(Fault {
                    on,
                    path: None,
                    nth,
                    kind,
                });
                for to in 2..=4 {
                    for error in ship_until_taken(&group, &mut source, to).await {
                        assert!(matches!(error, PeerError::Failed { .. }), "{error}");
                        let full = kind == io::ErrorKind::StorageFull;
                        assert_eq!(error.to_string().contains("no space"), full, "{error}");
                    }
                }
                assert_eq!(cycles(&group), [1, 2, 3, 4]);
                assert_points(&group, &source);
                let logs = world.catalog.logs(GROUP).unwrap().len();
                world.storage.clear_faults();
                let world = world.on(world.storage.after_kill());
                let group = world.open().unwrap();
                assert_eq!(journal_files(&world).len(), logs, "{on:?} {kind:?} {nth}");
                assert_points(&group, &source);
            }
        }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_cycles_until_there_is_space() {
    let world = World::new();
    let mut source = Source::new(2);
    let group = world.create().unwrap();
    let frames = source.cycle(1);
    ship(&group, 0, 1, &frames).await.unwrap();
    let files = journal_files(&world);
    world.storage.limit_space(Some(4096));
    let frames = loop {
        let frames = source.cycle(2);
        if frames.iter().any(|f| !f.payload.is_empty()) {
            break frames;
        }
    };
    for _ in 0..3 {
        let error = ship(&group, 1, 2, &frames).await.unwrap_err();
        assert!(error.to_string().contains("no space"), "{error}");
        assert_eq!(
            (cycles(&group), journal_files(&world)),
            (vec![1], files.clone())
        );
    }
    world.storage.limit_space(None);
    ship(&group, 1, 2, &frames).await.unwrap();
    assert_eq!(
        content(&*group.view(disk_id(0), Cycle(2)).unwrap()),
        source.disks[0]
    );
}

#[tokio::test]
async fn a_failing_image_during_initial_replication_is_told() {
    for on in [FaultOn::Write, FaultOn::Sync] {
        let world = World::new();
        let mut source = Source::new(3);
        let group = world.create().unwrap();
        let frames: Vec<_> = (0..6).map(|n| source.frame(n % 2)).collect();
        let kind = io::ErrorKind::StorageFull;
        world.storage.fail(Fault {
            on,
            path: Some(world.image_path(0)),
            nth: 1,
            kind,
        });
        let error = seed(&group, &frames).await.unwrap_err();
        assert!(matches!(error, PeerError::Failed { .. }), "{error}");
        assert!(group.points().is_empty());
        // What was not acknowledged is sent again: at once, or after a restart where a sync failed.
        let (world, group) = if on == FaultOn::Sync {
            let world = world.on(world.storage.after_kill());
            let group = world.open().unwrap();
            (world, group)
        } else {
            (world, group)
        };
        seed(&group, &frames).await.unwrap();
        source.cuts.insert(1, source.disks.clone());
        ship(&group, 0, 1, &[]).await.unwrap();
        assert_points(&group, &source);
        assert!(journal_files(&world).is_empty());
    }
}

#[tokio::test]
async fn a_failing_merge_is_repeated() {
    for on in [FaultOn::Write, FaultOn::Name, FaultOn::Read] {
        for nth in 1..=6 {
            let mut world = World::new();
            world.keep_points = 1;
            let mut source = Source::new(nth);
            let group = world.create().unwrap();
            for to in 1..=4 {
                let frames = source.cycle(to);
                ship(&group, to - 1, to, &frames).await.unwrap();
            }
            world.storage.fail(Fault {
                on,
                path: None,
                nth,
                kind: io::ErrorKind::Other,
            });
            let first = group.merge();
            world.storage.clear_faults();
            assert_points(&group, &source);
            if first.is_err() {
                group.merge().unwrap();
            }
            assert_eq!(cycles(&group), [4]);
            assert_points(&group, &source);
            assert!(world.catalog.logs(GROUP).unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn a_rotten_change_log_is_found_before_it_is_used() {
    let mut source = Source::new(7);
    let world = World::new();
    let group = world.create().unwrap();
    let frames = loop {
        let frames = source.cycle(1);
        if frames
            .iter()
            .any(|f| f.disk == disk_id(0) && !f.payload.is_empty())
        {
            break frames;
        }
    };
    ship(&group, 0, 1, &frames).await.unwrap();
    drop(group);
    let expected = source.disks[0].clone();
    let path = world.journal().join("disk0.1.hrl");
    let length = world.storage.content(&path).unwrap().len();
    let mut found = 0;
    for at in (0..length).step_by(61) {
        let rotten = world.on(world.storage.crash(0));
        let byte = rotten.storage.content(&path).unwrap()[at] ^ (1 << (at % 8));
        rotten
            .storage
            .overwrite(&path, u64::try_from(at).unwrap(), &[byte])
            .unwrap();
        let group = rotten.open().unwrap();
        let damaged = group.scrub();
        match group.view(disk_id(0), Cycle(1)) {
            // A byte that means nothing.
            Ok(view) => {
                assert!(damaged.is_empty());
                assert!(content(&*view) == expected, "byte {at} changed the disk");
            }
            Err(ReplicaError::DamagedLog { path: named, .. }) => {
                assert_eq!(named, path);
                assert!(matches!(&damaged[..], [ReplicaError::DamagedLog { .. }]));
                assert!(group.merge().is_err(), "it does not reach the image");
                found += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(found > 100, "{found} found");
}

#[tokio::test]
async fn a_missing_or_short_change_log_is_found_at_opening() {
    use sitepair_disk::storage::{OpenMode, Storage};
    let mut source = Source::new(8);
    let world = World::new();
    let group = world.create().unwrap();
    let frames = vec![source.frame(0)];
    ship(&group, 0, 1, &frames).await.unwrap();
    drop(group);
    let path = world.journal().join("disk0.1.hrl");
    let short = world.on(world.storage.crash(0));
    let file = short.storage.open(&path, OpenMode::ReadWrite).unwrap();
    file.set_length(file.length().unwrap() - 1).unwrap();
    assert!(matches!(short.open(), Err(ReplicaError::DamagedLog { .. })));
    world.storage.remove(&path).unwrap();
    let missing = world.open().err().unwrap();
    assert!(missing.to_string().contains("it is missing"), "{missing}");
}
