//! A crash at every state-changing operation: what was acknowledged is there, everything else never happened.

use sitepair_disk::storage::fake::FakeStorage;
use sitepair_engine::replica::{ReplicaGroup, finish_discards};
use sitepair_model::ids::Cycle;

use crate::support::{
    GROUP, Source, World, assert_points, content, cycles, journal_files, seed, ship,
};

/// What was acknowledged before the process died.
#[derive(Default)]
struct Told {
    created: bool,
    seeded: bool,
    newest: u64,
    promoted: bool,
}

const LAST: u64 = 5;

/// Creates, seeds, ships, merges, restarts, promotes; stops at the first error.
async fn live(world: &World, source: &mut Source) -> Told {
    let mut told = Told::default();
    let Ok(mut group) = world.create() else {
        return told;
    };
    told.created = true;
    let seeding: Vec<_> = (0..4).map(|n| source.frame(n % 2)).collect();
    let cuts: Vec<_> = (1..=LAST).map(|c| source.cycle(c)).collect();
    if seed(&group, &seeding).await.is_err() {
        return told;
    }
    told.seeded = true;
    for (to, frames) in (1..=LAST).zip(&cuts) {
        if ship(&group, to - 1, to, frames).await.is_err() {
            return told;
        }
        told.newest = to;
        if to % 2 == 0 && group.merge().is_err() {
            return told;
        }
        if to == 3 {
            drop(group);
            let Ok(again) = world.open() else { return told };
            group = again;
        }
    }
    told.promoted = group.promote(Cycle(LAST)).is_ok();
    told
}

/// Opens what is left, checks it, and goes on to the end.
async fn check_and_go_on(world: &World, source: &Source, told: &Told, seed_number: u64) {
    finish_discards(&world.site()).unwrap();
    if world.catalog.groups().unwrap().is_empty() {
        assert!(!told.created);
        // Nothing is in the way of trying again.
        drop(world.create().unwrap());
        return;
    }
    let group = world.open().unwrap();
    let newest = group.committed().map_or(0, |(cycle, _)| cycle.0);
    assert!(
        newest == told.newest || newest == told.newest + 1,
        "{newest} or {}",
        told.newest
    );
    assert_points(&group, source);
    let logs = world.catalog.logs(GROUP).unwrap().len();
    assert_eq!(
        journal_files(world).len(),
        logs,
        "only what was committed is there"
    );
    if !told.seeded {
        return;
    }
    go_on(&group, source, newest, seed_number).await;
}

async fn go_on(group: &ReplicaGroup, source: &Source, newest: u64, seed_number: u64) {
    // The same source again, from the start: it makes the same frames.
    let mut again = Source::new(seed_number);
    (0..4).for_each(|n| drop(again.frame(n % 2)));
    for to in 1..=LAST {
        let frames = again.cycle(to);
        if to > newest {
            ship(group, to - 1, to, &frames).await.unwrap();
        }
    }
    assert_points(group, source);
    group.merge().unwrap();
    assert_points(group, source);
    assert_eq!(*cycles(group).last().unwrap(), LAST);
    for (n, (_, image)) in group.promote(Cycle(LAST)).unwrap().iter().enumerate() {
        assert_eq!(content(&**image), source.cuts[&LAST][n]);
    }
}

#[tokio::test]
async fn a_crash_at_any_operation_loses_nothing_that_was_acknowledged() {
    let lives: [fn(&FakeStorage) -> FakeStorage; 4] = [
        |storage| storage.crash(0),
        |storage| storage.crash(1),
        |storage| storage.crash(77),
        FakeStorage::after_kill,
    ];
    for seed_number in 1..=2 {
        let operations = {
            let world = World {
                keep_points: 2,
                ..World::new()
            };
            let told = live(&world, &mut Source::new(seed_number)).await;
            assert!(told.promoted);
            world.storage.operation_count()
        };
        assert!(operations > 60, "{operations}");
        for dies_after in 0..operations {
            for after in lives {
                let world = World {
                    keep_points: 2,
                    ..World::new()
                };
                world.storage.die_after(dies_after);
                let mut source = Source::new(seed_number);
                let told = live(&world, &mut source).await;
                let left = world.on(after(&world.storage));
                check_and_go_on(&left, &source, &told, seed_number).await;
            }
        }
    }
}
