//! Points between kept ones go: what stays shows what it showed before, whatever fails meanwhile.

use sitepair_disk::hrl::apply::check_chain;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_engine::replica::ReplicaGroup;
use sitepair_model::ids::Cycle;
use sitepair_model::retention::Retention;

use crate::change_logs::exported;
use crate::support::{
    GROUP, Source, World, assert_points, content, cycles, disk_id, journal_files, seed, ship,
};

/// Of cycles cut once a second: all of the last 3, then one of each 4.
fn policy() -> Retention {
    Retention {
        policy: "all:3s,4s:1h".parse().unwrap(),
        ..Retention::newest(1)
    }
}

const LAST: u64 = 14;

/// A replica with points 1 to `LAST` that are all kept so far.
async fn filled(world: &World, source: &mut Source) -> ReplicaGroup {
    let group = world.create().unwrap();
    seed(&group, &[source.frame(0), source.frame(1)])
        .await
        .unwrap();
    for to in 1..=LAST {
        ship(&group, to - 1, to, &source.cycle(to)).await.unwrap();
    }
    assert_eq!(cycles(&group), (1..=LAST).collect::<Vec<_>>());
    group
}

/// The catalogue and the folder agree, files follow one another by their names, and every hash holds.
fn assert_journal(world: &World, group: &ReplicaGroup) {
    let rows = world.catalog.logs(GROUP).unwrap();
    let mut names: Vec<_> = rows.iter().map(|r| r.file_name.clone()).collect();
    names.sort();
    assert_eq!(journal_files(world), names);
    assert!(group.scrub().is_empty());
    // Logs lead from each point to the next, also those of disks that did not change.
    let cycles: Vec<_> = group.points().iter().map(|p| p.cycle).collect();
    for disk in 0..2 {
        let storage = FakeStorage::new();
        let log =
            |cycle: &Cycle| exported(&group.change_log(disk_id(disk), *cycle).unwrap(), &storage);
        let chain: Vec<_> = cycles[1..].iter().map(log).collect();
        check_chain(&chain).unwrap();
    }
}

#[tokio::test]
async fn points_between_kept_ones_go_and_the_rest_shows_what_it_did() {
    for seed_number in 1..=8 {
        let mut world = World::new();
        let mut source = Source::new(seed_number);
        let group = filled(&world, &mut source).await;
        let held = group.view(disk_id(0), Cycle(6)).unwrap();
        let bytes = group.status().room.used_bytes;
        group.set_retention(policy());
        let plan = group.plan(None);
        group.merge().unwrap();
        let kept = [1, 4, 6, 8, 9, 10, 11, 12, 13, 14];
        assert_eq!(plan.keep, kept.map(Cycle));
        assert_eq!(cycles(&group), kept);
        assert_points(&group, &source);
        assert_journal(&world, &group);
        let freed = bytes - group.status().room.used_bytes;
        assert!(freed <= plan.frees_bytes + plan.merges_bytes);
        // A view that was open goes on; its point goes when it ends.
        assert!(content(&*held) == source.cuts[&6][0]);
        drop(held);
        group.merge().unwrap();
        assert_eq!(cycles(&group), [1, 4, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(group.plan(None).drop, []);
        // Receiving goes on after it, over a restart.
        for to in LAST + 1..=LAST + 6 {
            ship(&group, to - 1, to, &source.cycle(to)).await.unwrap();
        }
        group.merge().unwrap();
        assert_journal(&world, &group);
        drop(group);
        world = world.on(world.storage.after_kill());
        let group = world.open().unwrap();
        assert_eq!(cycles(&group), [1, 4, 8, 12, 16, 17, 18, 19, 20]);
        assert_points(&group, &source);
        assert_journal(&world, &group);
    }
}

#[tokio::test]
async fn a_crash_while_thinning_changes_no_kept_point() {
    let lives: [fn(&FakeStorage) -> FakeStorage; 4] = [
        |storage| storage.crash(0),
        |storage| storage.crash(1),
        |storage| storage.crash(77),
        FakeStorage::after_kill,
    ];
    for dies_after in 0..u64::MAX {
        let mut finished = true;
        for after in lives {
            let world = World::new();
            let mut source = Source::new(5);
            let group = filled(&world, &mut source).await;
            group.set_retention(policy());
            world
                .storage
                .die_after(world.storage.operation_count() + dies_after);
            finished = group.merge().is_ok();
            assert!(cycles(&group).contains(&LAST));
            drop(group);
            let world = world.on(after(&world.storage));
            let group = world.open().unwrap();
            assert_points(&group, &source);
            assert_journal(&world, &group);
            group.set_retention(policy());
            group.merge().unwrap();
            assert_eq!(cycles(&group), [1, 4, 8, 9, 10, 11, 12, 13, 14]);
            assert_points(&group, &source);
            assert_journal(&world, &group);
        }
        if finished {
            assert!(dies_after > 20, "{dies_after}");
            return;
        }
    }
}
