//! What is refused leaves nothing behind.

use std::sync::atomic::Ordering;

use sitepair_disk::storage::{OpenMode, Storage};
use sitepair_engine::endpoint::PeerError;
use sitepair_engine::replica::{Existing, ReplicaError, ReplicaGroup, image_path};
use sitepair_model::ids::{Digest, DiskId, GenId, GroupId};
use sitepair_model::peer::{FrameExtent, FrameExtentKind, ImageFormat, TransferBegin};

use crate::support::{
    BLOCK, SIZES, Source, World, assert_points, commit_of, content, cycle_begin, cycles,
    data_frame, disk_id, journal_files, seed, seed_begin, send_all, ship,
};

async fn with_points(world: &World, source: &mut Source) -> ReplicaGroup {
    let group = world.create().unwrap();
    for next in 1..=2 {
        let frames = source.cycle(next);
        ship(&group, next - 1, next, &frames).await.unwrap();
    }
    group
}

#[tokio::test]
async fn only_the_own_generation_and_the_next_cycle_are_received() {
    let world = World::new();
    let group = with_points(&world, &mut Source::new(1)).await;
    let other = GenId::from_bytes([1; 16]);
    for begin in [
        TransferBegin {
            generation: other,
            ..cycle_begin(2, 3)
        },
        TransferBegin {
            group: GroupId::from_bytes([1; 16]),
            ..cycle_begin(2, 3)
        },
        cycle_begin(1, 3),
        cycle_begin(3, 4),
        cycle_begin(2, 1),
        cycle_begin(1, 2),
        seed_begin(),
    ] {
        let refused = group.begin(begin.clone()).await.err().expect("refused");
        assert!(
            matches!(refused, PeerError::Refused { .. }),
            "{begin:?}: {refused}"
        );
    }
    let again = group.begin(cycle_begin(1, 2)).await.err().unwrap();
    assert!(
        again.to_string().contains("committed here already"),
        "{again}"
    );
    group.set_generation(other);
    assert!(group.begin(cycle_begin(2, 3)).await.is_err());
    let follows = TransferBegin {
        generation: other,
        ..cycle_begin(2, 3)
    };
    assert!(group.begin(follows).await.is_ok());
}

#[tokio::test]
async fn a_bad_frame_or_commit_leaves_nothing() {
    let world = World::new();
    let mut source = Source::new(2);
    let group = with_points(&world, &mut source).await;
    let committed = journal_files(&world);
    let good = || data_frame(0, vec![data(0, BLOCK)], vec![1; 4096]);
    let mut wrong_hash = good();
    wrong_hash.hash = Digest::from_bytes([0; 32]);
    let mut unknown = good();
    unknown.disk = DiskId::from_bytes([99; 16]);
    let outside = data_frame(0, vec![data(SIZES[0], BLOCK)], vec![1; 4096]);
    for bad in [wrong_hash, unknown, outside] {
        let frames = [good(), bad];
        let mut transfer = group.begin(cycle_begin(2, 3)).await.unwrap();
        let result = match send_all(&mut transfer, &frames).await {
            Ok(()) => transfer.commit(commit_of(&frames)).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(
            matches!(result, Err(PeerError::Refused { .. })),
            "{result:?}"
        );
        assert_eq!(journal_files(&world), committed);
    }

    let mut wrong_digest = commit_of(&[good()]);
    wrong_digest.disks[0].digest = Digest::from_bytes([0; 32]);
    let mut wrong_size = commit_of(&[good()]);
    wrong_size.disks[0].covered_bytes += 1;
    let missing = commit_of(&[]);
    let surplus = commit_of(&[good(), data_frame(1, vec![data(0, BLOCK)], vec![1; 4096])]);
    for commit in [wrong_digest, wrong_size, missing, surplus] {
        let mut transfer = group.begin(cycle_begin(2, 3)).await.unwrap();
        transfer.send(good()).await.unwrap();
        let refused = transfer.commit(commit).await.unwrap_err();
        assert!(matches!(refused, PeerError::Refused { .. }), "{refused}");
        assert_eq!(journal_files(&world), committed);
    }
    assert_eq!(cycles(&group), [1, 2]);
    assert_points(&group, &source);
    let frames = source.cycle(3);
    ship(&group, 2, 3, &frames).await.unwrap();
    assert_points(&group, &source);
}

fn data(offset: u64, length: u64) -> FrameExtent {
    FrameExtent {
        offset,
        length,
        kind: FrameExtentKind::Data,
    }
}

#[tokio::test]
async fn a_bad_frame_of_a_seed_is_told_at_its_checkpoint() {
    let world = World::new();
    let group = world.create().unwrap();
    let mut bad = data_frame(0, vec![data(0, BLOCK)], vec![1; 4096]);
    bad.hash = Digest::from_bytes([0; 32]);
    let mut transfer = group.begin(seed_begin()).await.unwrap();
    transfer.send(bad).await.unwrap();
    assert!(matches!(
        transfer.checkpoint().await,
        Err(PeerError::Refused { .. })
    ));
    let image = world.storage.content(&world.image_path(0)).unwrap();
    assert!(image.iter().all(|b| *b == 0));
}

#[tokio::test]
async fn a_newer_transfer_voids_the_older() {
    let world = World::new();
    let mut source = Source::new(3);
    let group = with_points(&world, &mut source).await;
    let frames = source.cycle(3);
    let mut older = group.begin(cycle_begin(2, 3)).await.unwrap();
    send_all(&mut older, &frames).await.unwrap();
    let mut newer = group.begin(cycle_begin(2, 3)).await.unwrap();
    assert!(older.commit(commit_of(&frames)).await.is_err());
    send_all(&mut newer, &frames).await.unwrap();
    newer.commit(commit_of(&frames)).await.unwrap();
    assert_eq!(cycles(&group), [1, 2, 3]);
    assert_points(&group, &source);
}

#[tokio::test]
async fn a_dropped_transfer_leaves_nothing() {
    let world = World::new();
    let mut source = Source::new(4);
    let group = with_points(&world, &mut source).await;
    let committed = journal_files(&world);
    let mut transfer = group.begin(cycle_begin(2, 3)).await.unwrap();
    transfer
        .send(data_frame(0, vec![data(0, BLOCK)], vec![1; 4096]))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();
    assert_eq!(group.status().receiving_bytes, Some(BLOCK));
    assert_eq!(journal_files(&world).len(), committed.len() + 1);
    drop(transfer);
    while journal_files(&world) != committed {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_agent_may_refuse_a_commit() {
    let world = World::new();
    let mut source = Source::new(5);
    let group = with_points(&world, &mut source).await;
    let committed = journal_files(&world);
    world.role.refuses.store(true, Ordering::Relaxed);
    let frames = [data_frame(0, vec![data(0, BLOCK)], vec![1; 4096])];
    let refused = ship(&group, 2, 3, &frames).await.unwrap_err();
    assert!(
        refused.to_string().contains("the role changed"),
        "{refused}"
    );
    assert_eq!(
        (cycles(&group), journal_files(&world)),
        (vec![1, 2], committed)
    );
}

#[tokio::test]
async fn existing_files_are_left_alone_unless_allowed() {
    let world = World::new();
    world
        .storage
        .create_dir_all("/replicas/web".as_ref())
        .unwrap();
    let path = world.image_path(1);
    let file = world.storage.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(&[0x55; 4096], 0).unwrap();
    file.sync().unwrap();
    drop(file);
    assert!(matches!(world.create(), Err(ReplicaError::Exists { path: p }) if p == path));
    assert!(!world.storage.exists(&world.image_path(0)).unwrap());

    let small = world
        .create_with(Existing::WriteOver)
        .err()
        .expect("too small");
    let sizes = matches!(
        small,
        ReplicaError::WrongSize { has_bytes: 4096, needs_bytes, .. } if needs_bytes == SIZES[1]
    );
    assert!(sizes, "{small}");
    assert!(
        !world.storage.exists(&world.image_path(0)).unwrap(),
        "ours goes"
    );
    assert_eq!(
        world.storage.content(&path).unwrap(),
        [0x55; 4096],
        "theirs stays"
    );
    assert!(world.catalog.groups().unwrap().is_empty());

    world
        .storage
        .open(&path, OpenMode::ReadWrite)
        .unwrap()
        .set_length(SIZES[1])
        .unwrap();
    let group = world.create_with(Existing::WriteOver).unwrap();
    let owned: Vec<bool> = world.catalog.groups().unwrap()[0]
        .disks
        .iter()
        .map(|d| d.owned)
        .collect();
    assert_eq!(owned, [true, false]);
    // Nothing of the old content shines through: initial replication sends no zeros.
    let mut source = Source::new(9);
    seed(&group, &[]).await.unwrap();
    source.cuts.insert(1, source.disks.clone());
    ship(&group, 0, 1, &[]).await.unwrap();
    let view = group
        .view(disk_id(1), sitepair_model::ids::Cycle(1))
        .unwrap();
    assert!(content(&*view).iter().all(|b| *b == 0));
}

/// Files were once emptied one after the other, before the next one was looked at.
#[tokio::test]
async fn no_existing_file_is_emptied_when_another_is_of_no_use() {
    let world = World::new();
    let folder = "/replicas/web".as_ref();
    world.storage.create_dir_all(folder).unwrap();
    for (disk, length) in [(0, SIZES[0]), (1, 4096)] {
        let path = world.image_path(disk);
        let file = world.storage.open(&path, OpenMode::CreateNew).unwrap();
        file.set_length(length).unwrap();
        file.write_at(&[0x55; 4096], 0).unwrap();
    }
    let refused = world
        .create_with(Existing::WriteOver)
        .err()
        .expect("refused");
    assert!(
        matches!(refused, ReplicaError::WrongSize { .. }),
        "{refused}"
    );
    let first = world.storage.content(&world.image_path(0)).unwrap();
    assert_eq!(first[..4096], [0x55; 4096]);
}

#[tokio::test]
async fn a_closed_replica_takes_nothing_and_opens_again() {
    let world = World::new();
    let mut source = Source::new(1);
    let group = with_points(&world, &mut source).await;
    group.close().unwrap();
    assert!(group.begin(cycle_begin(2, 3)).await.is_err());
    assert!(group.merge().unwrap().is_none());
    drop(group);
    assert_points(&world.open().unwrap(), &source);
}

#[test]
fn a_peers_path_is_absolute_and_straight() {
    let site = World::new().site();
    let (group, disk) = ("web".parse().unwrap(), "data".parse().unwrap());
    let path = |offered| image_path(&site, &group, &disk, ImageFormat::VhdxDynamic, offered);
    assert_eq!(
        path(None).unwrap(),
        std::path::Path::new("/replicas/web/data.vhdx")
    );
    assert_eq!(
        path(Some("/pool/x.vhdx")).unwrap(),
        std::path::Path::new("/pool/x.vhdx")
    );
    assert!(path(Some("x.vhdx")).is_err());
    assert!(path(Some("/pool/../etc/x")).is_err());
}
