//! Test failovers: points to be written to, while everything else goes on.

use std::path::{Path, PathBuf};

use sitepair_disk::Image;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_engine::catalog::TestRow;
use sitepair_engine::replica::{ReplicaError, ReplicaGroup};
use sitepair_model::ids::{Cycle, TestName, UnixMillis};

use crate::support::{GROUP, Source, World, assert_points, content, cycles, disk_id, seed, ship};

fn name(text: &str) -> TestName {
    text.parse().unwrap()
}

fn row(test: &str, cycle: u64) -> TestRow {
    TestRow {
        name: name(test),
        cycle: Cycle(cycle),
        cap_bytes: 1 << 30,
        who: "somebody".to_owned(),
        started_at: UnixMillis(1),
        expires_at: UnixMillis(2),
        whole: false,
    }
}

/// A replica with points 1 to `last`.
async fn replica(world: &World, source: &mut Source, last: u64) -> ReplicaGroup {
    let group = world.create().unwrap();
    seed(&group, &[source.frame(0), source.frame(1)])
        .await
        .unwrap();
    for cycle in 1..=last {
        let frames = source.cycle(cycle);
        ship(&group, cycle - 1, cycle, &frames).await.unwrap();
    }
    group
}

/// All files below the folder of tests.
fn files(storage: &FakeStorage) -> Vec<PathBuf> {
    let folder = Path::new("/state/tests").join(GROUP.to_string());
    let tests = storage.list(&folder).unwrap_or_default();
    tests
        .iter()
        .flat_map(|test| storage.list(test).unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn a_test_is_written_to_while_points_come_and_go() {
    let mut world = World::new();
    world.keep_points = 1;
    let mut source = Source::new(1);
    let group = replica(&world, &mut source, 3).await;
    let [old, new] = [("old", 2), ("new", 3)].map(|(n, c)| group.start_test(row(n, c)).unwrap());
    for (test, cycle) in [(&old, 2), (&new, 3)] {
        for (disk, (id, overlay)) in test.disks.iter().enumerate() {
            assert_eq!(*id, disk_id(disk));
            assert_eq!(content(&**overlay), source.cuts[&cycle][disk]);
            overlay.write_at(&[0xAB; 1024], 512, true).unwrap();
        }
    }
    assert!(old.space.used_bytes() > 0);
    let again = group.start_test(row("old", 3));
    assert!(matches!(again, Err(ReplicaError::TestExists { .. })));
    for cycle in 4..=6 {
        let frames = source.cycle(cycle);
        ship(&group, cycle - 1, cycle, &frames).await.unwrap();
        group.merge().unwrap();
    }
    let held = cycles(&group);
    assert_eq!(held[..2], [2, 3], "held by the tests");
    assert_eq!(held.last(), Some(&6));
    assert_points(&group, &source);
    let mut expected = source.cuts[&2][0].clone();
    expected[512..1536].fill(0xAB);
    assert_eq!(content(&*old.disks[0].1), expected);

    drop(old);
    group.end_test(&name("old")).unwrap();
    group.merge().unwrap();
    assert_eq!(cycles(&group)[..], held[1..]);
    drop(new);
    drop(group.promote(Cycle(6)).unwrap());
    assert!(group.tests().is_empty(), "the failover ended the other one");
    assert_eq!(files(&world.storage), Vec::<PathBuf>::new());
    assert!(world.catalog.tests(GROUP).unwrap().is_empty());
}

#[tokio::test]
async fn a_test_goes_on_after_a_restart_and_holds_its_point() {
    let mut world = World::new();
    world.keep_points = 1;
    let mut source = Source::new(2);
    let group = replica(&world, &mut source, 2).await;
    let test = group.start_test(row("drill", 1)).unwrap();
    let disk = &test.disks[1].1;
    disk.write_at(&[7; 4096], 4096, false).unwrap();
    disk.flush().unwrap();
    drop((test, group));
    let world = world.on(world.storage.after_kill());
    let group = world.open().unwrap();
    group.merge().unwrap();
    assert_eq!(cycles(&group), [1, 2]);
    let test = group.open_test(&name("drill")).unwrap();
    assert_eq!(
        test.row,
        TestRow {
            whole: true,
            ..row("drill", 1)
        }
    );
    let mut expected = source.cuts[&1][1].clone();
    expected[4096..8192].fill(7);
    assert_eq!(content(&*test.disks[1].1), expected);
    drop(test);
    group.end_test(&name("drill")).unwrap();
    let gone = group.end_test(&name("drill"));
    assert!(matches!(gone, Err(ReplicaError::NoSuchTest { .. })));
}

#[tokio::test]
async fn a_crash_leaves_a_whole_test_or_none() {
    // Beginning and ending take some thirty changes of files; the bound stops the search for the last.
    for dies in 0..200 {
        let world = World::new();
        let mut source = Source::new(3);
        let group = replica(&world, &mut source, 2).await;
        let before = world.storage.operation_count();
        world.storage.die_after(before + dies);
        let begun = group.start_test(row("drill", 2)).map(drop);
        let ended = begun.is_ok().then(|| group.end_test(&name("drill")));
        let lived = !world.storage.is_dead();
        drop(group);
        let rows = world.catalog.tests(GROUP).unwrap();
        for crash in 0..3 {
            // Each life begins with the catalogue as the crash left it.
            for row in &rows {
                world.catalog.put_test(GROUP, row).unwrap();
            }
            let world = world.on(world.storage.crash(crash));
            let group = world.open().unwrap();
            match &group.tests()[..] {
                [] => assert_eq!(files(&world.storage), Vec::<PathBuf>::new(), "dies {dies}"),
                [test] => {
                    assert!(test.whole);
                    let test = group.open_test(&test.name).unwrap();
                    assert_eq!(content(&*test.disks[0].1), source.cuts[&2][0]);
                }
                _ => panic!("more tests than were begun"),
            }
            assert_points(&group, &source);
        }
        if lived && ended.is_some_and(|e| e.is_ok()) {
            return;
        }
    }
    panic!("it never lived to the end");
}
