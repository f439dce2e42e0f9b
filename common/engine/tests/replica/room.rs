//! Pins, labels, and the room that a journal may take: what is held stays, the oldest of the rest goes early, and when
//! nothing can go the replica takes no cycles until there is room again.

use sitepair_engine::endpoint::PeerError;
use sitepair_engine::replica::{ReplicaError, ReplicaGroup, RoomState};
use sitepair_model::ids::Cycle;
use sitepair_model::retention::{Reason, Retention};

use crate::support::{
    GROUP, Source, World, assert_points, cycle_begin, cycles, disk_id, seed, ship,
};

/// A replica with points 1 to `last`, each with a change of the first disk.
async fn filled(world: &World, source: &mut Source, last: u64) -> ReplicaGroup {
    let group = world.create().unwrap();
    seed(&group, &[source.frame(0), source.frame(1)])
        .await
        .unwrap();
    for to in 1..=last {
        add(&group, source, to).await.unwrap();
    }
    group
}

async fn add(group: &ReplicaGroup, source: &mut Source, to: u64) -> Result<(), PeerError> {
    let frames = [source.frame(0)];
    source.cuts.insert(to, source.disks.clone());
    ship(group, to - 1, to, &frames).await.map(drop)
}

fn capped(cap_bytes: u64) -> Retention {
    Retention {
        cap_bytes: Some(cap_bytes),
        ..Retention::newest(1000)
    }
}

/// Why no cycle is taken now.
async fn refused(group: &ReplicaGroup, from: u64) -> String {
    match group.begin(cycle_begin(from, from + 1)).await.map(drop) {
        Err(PeerError::Failed { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pinned_point_outlives_retention_and_restarts_until_it_is_unpinned() {
    let mut world = World::new();
    world.keep_points = 2;
    let mut source = Source::new(11);
    let group = filled(&world, &mut source, 6).await;
    assert!(group.pin(Cycle(3)).unwrap());
    assert!(!group.pin(Cycle(3)).unwrap(), "it is");
    assert!(group.label(Cycle(3), Some("before".to_owned())).unwrap());
    assert!(matches!(
        group.pin(Cycle(99)),
        Err(ReplicaError::NoSuchPoint { .. })
    ));
    assert_eq!(group.plan(None).drop[0], (Cycle(1), Reason::Count));
    group.merge().unwrap();
    assert!(matches!(
        group.label(Cycle(1), None),
        Err(ReplicaError::NoSuchPoint { .. })
    ));
    drop(group);
    let world = world.on(world.storage.crash(1));
    let group = world.open().unwrap();
    let oldest = group.points().remove(0);
    assert_eq!((oldest.cycle, oldest.pinned), (Cycle(3), true));
    assert_eq!(oldest.label.as_deref(), Some("before"));
    for to in 7..=9 {
        add(&group, &mut source, to).await.unwrap();
        group.merge().unwrap();
    }
    assert_eq!(cycles(&group)[0], 3);
    assert_points(&group, &source);
    assert!(group.unpin(Cycle(3)).unwrap());
    assert!(!group.unpin(Cycle(3)).unwrap());
    group.merge().unwrap();
    assert_eq!(cycles(&group), [8, 9]);
    assert_points(&group, &source);
}

/// Beside a pinned point each new one would once have had all that came after the pin written anew.
#[tokio::test]
async fn a_point_that_is_held_for_long_costs_little() {
    let mut world = World::new();
    world.keep_points = 1;
    let mut source = Source::new(12);
    let group = filled(&world, &mut source, 1).await;
    group.pin(Cycle(1)).unwrap();
    let (mut shipped, mut rewritten, mut before) = (0, 0, Vec::new());
    for to in 2..=120 {
        add(&group, &mut source, to).await.unwrap();
        let rows = world.catalog.logs(GROUP).unwrap();
        shipped += rows.last().unwrap().file_bytes;
        group.merge().unwrap();
        let rows = world.catalog.logs(GROUP).unwrap();
        let new = rows
            .iter()
            .filter(|row| row.file_name.contains('-') && !before.contains(&row.file_name));
        rewritten += new.map(|row| row.file_bytes).sum::<u64>();
        before = rows.into_iter().map(|row| row.file_name).collect();
        assert!(cycles(&group).len() < 16, "{:?}", cycles(&group));
    }
    assert!(rewritten > 0);
    assert!(rewritten < 6 * shipped, "{rewritten} for {shipped}");
    assert_points(&group, &source);
}

#[tokio::test]
async fn the_oldest_points_that_nobody_holds_go_before_the_cap_is_broken() {
    let world = World::new();
    let mut source = Source::new(13);
    let group = filled(&world, &mut source, 10).await;
    let used = group.status().room.used_bytes;
    assert_eq!(group.status().room.state, RoomState::Enough);
    group.set_retention(capped(used * 10 / 9));
    assert_eq!(group.status().room.state, RoomState::Low);
    group.pin(Cycle(2)).unwrap();
    let view = group.view(disk_id(0), Cycle(4)).unwrap();
    group.set_retention(capped(used / 2));
    assert_eq!(group.status().room.state, RoomState::Making);
    let why = refused(&group, 10).await;
    assert!(why.contains("go early"), "{why}");
    let plan = group.plan(None);
    assert!(plan.drop.iter().all(|(_, why)| *why == Reason::Cap));
    group.merge().unwrap();
    let room = group.status().room;
    assert!(
        room.used_bytes <= used / 2 && room.state <= RoomState::Low,
        "{room:?}"
    );
    let left = cycles(&group);
    assert_eq!(left[..2], [2, 4], "held");
    assert!(left.len() > 3, "no more than need be: {left:?}");
    assert_points(&group, &source);
    drop(view);
    add(&group, &mut source, 11).await.unwrap();
}

#[tokio::test]
async fn a_full_journal_takes_no_cycle_until_something_can_go() {
    let world = World::new();
    let mut source = Source::new(14);
    let group = filled(&world, &mut source, 8).await;
    for cycle in 1..=8 {
        group.pin(Cycle(cycle)).unwrap();
    }
    group.set_retention(capped(1000));
    group.merge().unwrap();
    assert_eq!(group.status().room.state, RoomState::Full);
    let why = refused(&group, 8).await;
    assert!(why.contains("paused") && why.contains("unpin"), "{why}");
    assert_eq!(cycles(&group), (1..=8).collect::<Vec<_>>());
    assert_points(&group, &source);
    // Unpinned ones go by themselves, and then cycles are taken.
    for cycle in 1..=8 {
        group.unpin(Cycle(cycle)).unwrap();
    }
    assert_eq!(group.status().room.state, RoomState::Making);
    group.merge().unwrap();
    assert_eq!(cycles(&group), [8]);
    add(&group, &mut source, 9).await.unwrap();
    assert_points(&group, &source);
}

#[tokio::test]
async fn free_space_beside_the_journal_is_kept() {
    let world = World::new();
    let mut source = Source::new(15);
    let group = filled(&world, &mut source, 10).await;
    let used = group.status().room.used_bytes;
    let kept = Retention {
        min_free_bytes: 1 << 20,
        ..Retention::newest(1000)
    };
    group.set_retention(kept);
    *world.env.size_bytes.lock().unwrap() = Some(used + (4 << 20));
    group.merge().unwrap();
    assert_eq!(cycles(&group).len(), 10);
    // Somebody else fills the disk.
    *world.env.size_bytes.lock().unwrap() = Some(used / 2 + (1 << 20));
    assert_eq!(group.status().room.state, RoomState::Making);
    group.merge().unwrap();
    assert!(group.status().room.used_bytes <= used / 2);
    assert!(cycles(&group).len() > 2, "{:?}", cycles(&group));
    assert_points(&group, &source);
    // Even more, until not one log has room; then nothing can go that helps.
    *world.env.size_bytes.lock().unwrap() = Some(1000);
    group.merge().unwrap();
    assert_eq!(cycles(&group), [10]);
    assert_eq!(group.status().room.state, RoomState::Full);
    let why = refused(&group, 10).await;
    assert!(why.contains("Free space"), "{why}");
    *world.env.size_bytes.lock().unwrap() = Some(1 << 30);
    add(&group, &mut source, 11).await.unwrap();
    assert_points(&group, &source);
}

#[tokio::test]
async fn readers_hold_their_point_but_stand_in_no_failovers_way() {
    let mut world = World::new();
    world.keep_points = 1;
    let mut source = Source::new(16);
    let group = filled(&world, &mut source, 3).await;
    let reader = group.reader(disk_id(0), Cycle(2)).unwrap();
    group.merge().unwrap();
    assert_eq!(cycles(&group)[0], 2);
    assert!(group.in_use().contains(&Cycle(2)));
    let mut shown = vec![0; source.cuts[&2][0].len()];
    let mut at = 0;
    while let Some((offset, data)) = reader.next(at).unwrap() {
        let start = usize::try_from(offset).unwrap();
        shown[start..start + data.len()].copy_from_slice(&data);
        at = offset + data.len() as u64;
    }
    assert!(shown == source.cuts[&2][0]);
    drop(group.promote(Cycle(3)).unwrap());
    assert!(matches!(reader.next(0), Err(ReplicaError::Closed { .. })));
    assert!(group.reader(disk_id(0), Cycle(3)).is_err());
}
