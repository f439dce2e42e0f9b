//! Cycles, merges, views, promotion, restarts: against a model that keeps whole disks.

use std::sync::Arc;

use sitepair_disk::{ErrorKind, ExtentKind, ZeroMode};
use sitepair_engine::replica::{RemoveImages, ReplicaError, ReplicaGroup};
use sitepair_model::ids::Cycle;
use sitepair_model::peer::ImageFormat;

use crate::support::{
    BLOCK, SIZES, Source, World, assert_points, content, cycles, disk_id, journal_files, seed, ship,
};

/// A replica with a seed that was fuzzy (the source went on writing), and one cycle.
async fn seeded(world: &World, source: &mut Source) -> ReplicaGroup {
    let group = world.create().unwrap();
    let seeding: Vec<_> = (0..6).map(|n| source.frame(n % SIZES.len())).collect();
    seed(&group, &seeding).await.unwrap();
    assert!(
        group.points().is_empty(),
        "initial replication makes no point"
    );
    let closing = source.cycle(1);
    ship(&group, 0, 1, &closing).await.unwrap();
    group
}

#[tokio::test]
async fn every_kept_point_equals_the_source_at_its_cut() {
    for seed in 1..=12 {
        let mut world = World::new();
        world.format = match seed % 6 {
            0 => ImageFormat::VhdxDynamic,
            2 => ImageFormat::VhdDynamic,
            4 => ImageFormat::VhdFixed,
            _ => ImageFormat::Raw,
        };
        world.keep_points = 5;
        let mut source = Source::new(seed);
        let mut group = seeded(&world, &mut source).await;
        let mut newest = 1;
        for _ in 0..25 {
            match source.rng.below(5) {
                0 => drop(group.merge().unwrap()),
                1 => {
                    drop(group);
                    world = world.on(world.storage.after_kill());
                    group = world.open().unwrap();
                }
                _ => {
                    // Cycles that the source abandoned leave gaps.
                    let next = newest + 1 + source.rng.below(2);
                    let frames = source.cycle(next);
                    ship(&group, newest, next, &frames).await.unwrap();
                    newest = next;
                }
            }
            assert_points(&group, &source);
            assert_eq!(group.committed().unwrap().0, Cycle(newest), "seed {seed}");
        }
        group.merge().unwrap();
        assert!(group.points().len() <= 5);
        let logs: usize = world.catalog.logs(crate::support::GROUP).unwrap().len();
        assert_eq!(
            journal_files(&world).len(),
            logs,
            "merged change logs are gone"
        );
        assert_points(&group, &source);
        assert!(group.scrub().is_empty());
    }
}

#[tokio::test]
async fn an_empty_cycle_is_a_point() {
    let world = World::new();
    let mut source = Source::new(1);
    let group = seeded(&world, &mut source).await;
    source.cuts.insert(2, source.disks.clone());
    ship(&group, 1, 2, &[]).await.unwrap();
    assert_eq!(cycles(&group), [1, 2]);
    assert_eq!(group.points()[1].journal_bytes, 0);
    assert_points(&group, &source);
    let role = world.catalog.role(crate::support::GROUP).unwrap().unwrap();
    assert_eq!(role, 2_u64.to_le_bytes(), "the role record names the cycle");
}

#[tokio::test]
async fn a_point_in_view_is_not_merged_away() {
    let mut world = World::new();
    world.keep_points = 1;
    let mut source = Source::new(3);
    let group = seeded(&world, &mut source).await;
    for next in 2..=5 {
        let frames = source.cycle(next);
        ship(&group, next - 1, next, &frames).await.unwrap();
    }
    let held = group.view(disk_id(0), Cycle(3)).unwrap();
    assert_eq!(group.merge().unwrap(), Some(Cycle(3)));
    // The one between goes when merging its log is worth it.
    assert!([&[3, 4, 5][..], &[3, 5]].contains(&&cycles(&group)[..]));
    assert_eq!(content(&*held), source.cuts[&3][0]);
    assert!(matches!(
        group.promote(Cycle(5)),
        Err(ReplicaError::InUse { cycle: Cycle(3) })
    ));
    assert!(matches!(
        group.remove(RemoveImages::Keep),
        Err(ReplicaError::InUse { .. })
    ));
    assert_eq!(group.merge().unwrap(), None);
    assert!(matches!(
        group.view(disk_id(0), Cycle(2)),
        Err(ReplicaError::NoSuchPoint { .. })
    ));
    let later = group.view(disk_id(0), Cycle(5)).unwrap();
    drop(held);
    assert_eq!(
        group.merge().unwrap(),
        Some(Cycle(5)),
        "the image may reach a point in use"
    );
    assert_eq!(content(&*later), source.cuts[&5][0]);
    assert_points(&group, &source);
}

#[tokio::test]
async fn a_view_is_read_only_and_tells_its_extents() {
    let world = World::new();
    let mut source = Source::new(4);
    let group = seeded(&world, &mut source).await;
    for next in 2..=4 {
        let frames = source.cycle(next);
        ship(&group, next - 1, next, &frames).await.unwrap();
    }
    let view = group.view(disk_id(1), Cycle(4)).unwrap();
    assert!(view.geometry().read_only);
    assert_eq!(
        view.write_at(&[0; 512], 0, false).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    let zeroed = view.write_zeroes(0, BLOCK, ZeroMode::MayUnmap, false);
    assert_eq!(zeroed.unwrap_err().kind(), ErrorKind::Invalid);
    let mut past_the_end = vec![0; 1024];
    let read = view.read_at(&mut past_the_end, SIZES[1] - 512);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Invalid);

    let expected = &source.cuts[&4][1];
    let mut at = 512;
    view.extents(512, SIZES[1] - 512, &mut |run| {
        assert_eq!(run.offset, at);
        at = run.end();
        let range = usize::try_from(run.offset).unwrap()..usize::try_from(at).unwrap();
        if run.kind != ExtentKind::Data {
            assert!(expected[range].iter().all(|b| *b == 0));
        }
        true
    })
    .unwrap();
    assert_eq!(at, SIZES[1]);
    let mut visits = 0;
    view.extents(0, SIZES[1], &mut |_| {
        visits += 1;
        false
    })
    .unwrap();
    assert_eq!(visits, 1, "a visitor may stop");
    view.close().unwrap();
    assert_eq!(
        view.read_at(&mut [0; 512], 0).unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[tokio::test]
async fn promotion_gives_images_and_adoption_takes_them_back() {
    let mut world = World::new();
    let mut source = Source::new(5);
    let group = seeded(&world, &mut source).await;
    for next in 2..=4 {
        let frames = source.cycle(next);
        ship(&group, next - 1, next, &frames).await.unwrap();
    }
    assert!(matches!(
        group.promote(Cycle(3)),
        Err(ReplicaError::NoSuchPoint { .. })
    ));
    drop(group.promote(Cycle(4)).unwrap());
    let images = group.promote(Cycle(4)).unwrap();
    for (n, (disk, image)) in images.iter().enumerate() {
        assert_eq!(*disk, disk_id(n));
        assert_eq!(content(&**image), source.cuts[&4][n]);
    }
    assert!(journal_files(&world).is_empty());
    let frames = source.cycle(5);
    let refused = ship(&group, 4, 5, &frames).await.unwrap_err();
    assert!(refused.to_string().contains("promoted"), "{refused}");

    // The guest writes here, then the direction is reversed: the image as it is becomes the base.
    images[0].1.write_at(&[9; 512], 0, false).unwrap();
    images[0].1.flush().unwrap();
    source.disks = source.cuts[&4].clone();
    source.disks[0][..512].fill(9);
    source.cuts.insert(7, source.disks.clone());
    drop(images);
    drop(group);
    world = world.on(world.storage.crash(0));
    let row = world.catalog.groups().unwrap().remove(0);
    let role = Arc::clone(&world.role);
    let base = World::base_point(7);
    let group =
        ReplicaGroup::adopt(world.site(), &row, &base, crate::support::GENERATION, role).unwrap();
    assert_eq!(cycles(&group), [7]);
    assert_points(&group, &source);
    let frames = source.cycle(8);
    ship(&group, 7, 8, &frames).await.unwrap();
    assert_points(&group, &source);

    // Adopting again, as after a crash, takes nothing back.
    let world = world.on(world.storage.after_kill());
    let role = Arc::clone(&world.role);
    let group =
        ReplicaGroup::adopt(world.site(), &row, &base, crate::support::GENERATION, role).unwrap();
    assert_eq!(cycles(&group), [7, 8]);
    assert_points(&group, &source);
}

#[tokio::test]
async fn removal_leaves_no_files_of_ours() {
    use sitepair_disk::storage::Storage;
    let world = World::new();
    let mut source = Source::new(6);
    let group = seeded(&world, &mut source).await;
    group.remove(RemoveImages::DeleteOwned).unwrap();
    assert!(world.catalog.groups().unwrap().is_empty());
    assert!(!world.storage.exists(&world.journal()).unwrap());
    assert!(!world.storage.exists(&world.image_path(0)).unwrap());

    let group = seeded(&world, &mut Source::new(7)).await;
    group.remove(RemoveImages::Keep).unwrap();
    assert!(world.storage.exists(&world.image_path(0)).unwrap());
}

#[tokio::test]
async fn merges_run_in_the_background_until_stopped() {
    let mut world = World::new();
    world.keep_points = 2;
    let mut source = Source::new(8);
    let group = seeded(&world, &mut source).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let merging = tokio::spawn({
        let (group, stop) = (group.clone(), stop.clone());
        async move { group.run_merges(stop).await }
    });
    for next in 2..=9 {
        let frames = source.cycle(next);
        ship(&group, next - 1, next, &frames).await.unwrap();
    }
    while group.points().len() > 2 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    merging.await.unwrap();
    assert_eq!(cycles(&group), [8, 9]);
    assert_points(&group, &source);
    assert_eq!(group.status().points, 2);
}
