//! Change logs given away: what they say, that they follow each other, and that nobody has to wait for their readers.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::Image;
use sitepair_disk::hrl::HrlReader;
use sitepair_disk::hrl::apply::{ApplyOptions, apply_chain, check_chain};
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{OpenMode, Storage};
use sitepair_engine::replica::{ChangeLog, LogPart, ReplicaError, ReplicaGroup};
use sitepair_model::ids::{Cycle, DiskId, GenId};

use crate::support::{
    Disks, GENERATION, GROUP, SIZES, Source, World, content, cycle_begin, disk_id, journal_files,
    seed, send_all, ship,
};

/// The file, holes filled in.
fn bytes(log: &ChangeLog) -> Vec<u8> {
    let mut file = Vec::new();
    while let Some(part) = log.part(file.len() as u64).unwrap() {
        match part {
            LogPart::Data(data) => file.extend_from_slice(&data),
            LogPart::Hole(bytes) => file.resize(file.len() + usize::try_from(bytes).unwrap(), 0),
        }
    }
    assert_eq!(file.len() as u64, log.file_bytes());
    file
}

/// A log as a tool would have it, in a folder of its own.
pub(crate) fn exported(log: &ChangeLog, to: &FakeStorage) -> HrlReader {
    let path = Path::new("/").join(log.file_name());
    let file = to.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(&bytes(log), 0).unwrap();
    let reader = HrlReader::open(to, &path).unwrap();
    assert_eq!(
        reader.content_hash().unwrap(),
        *log.content_hash().as_bytes()
    );
    reader
}

/// Applies logs to what the disk was, and gives what it is then.
fn applied(logs: &[HrlReader], disk: usize, before: &Disks) -> Vec<u8> {
    let storage = FakeStorage::new();
    let path = Path::new("/disk.raw");
    let image = RawImage::create(&storage, path, SIZES[disk]).unwrap();
    image.write_at(&before[disk], 0, false).unwrap();
    apply_chain(logs, &image, ApplyOptions::default()).unwrap();
    content(&image)
}

/// A replica whose points are 1 to `newest`, with no log of the second disk at every third.
async fn replica(world: &World, source: &mut Source, newest: u64) -> ReplicaGroup {
    let group = world.create().unwrap();
    let frames = [source.frame(0), source.frame(1)];
    seed(&group, &frames).await.unwrap();
    for cycle in 1..=newest {
        add(&group, source, cycle - 1, cycle).await;
    }
    group
}

async fn add(group: &ReplicaGroup, source: &mut Source, from: u64, to: u64) {
    let mut frames = vec![source.frame(0)];
    if !to.is_multiple_of(3) {
        frames.push(source.frame(1));
    }
    source.cuts.insert(to, source.disks.clone());
    ship(group, from, to, &frames).await.unwrap();
}

#[tokio::test]
async fn logs_bring_an_image_from_any_point_to_any_later_one() {
    let (world, mut source) = (World::new(), Source::new(5));
    let group = replica(&world, &mut source, 8).await;
    for disk in 0..SIZES.len() {
        for (from, to) in [(1, 8), (1, 2), (2, 3), (2, 4), (5, 7)] {
            let storage = FakeStorage::new();
            let chain: Vec<HrlReader> = (from + 1..=to)
                .map(|cycle| group.change_log(disk_id(disk), Cycle(cycle)).unwrap())
                .map(|log| exported(&log, &storage))
                .collect();
            let after = applied(&chain, disk, &source.cuts[&from]);
            assert!(
                after == source.cuts[&to][disk],
                "disk {disk}, {from} to {to}"
            );
        }
    }
    // A gap is told.
    let storage = FakeStorage::new();
    let ends = [3, 5].map(|cycle| group.change_log(disk_id(1), Cycle(cycle)).unwrap());
    let ends = ends.each_ref().map(|log| exported(log, &storage));
    assert!(check_chain(&ends).is_err());
}

#[tokio::test]
async fn what_is_given_away_is_the_journals_file() {
    let (world, mut source) = (World::new(), Source::new(6));
    let group = replica(&world, &mut source, 3).await;
    for row in world.catalog.logs(GROUP).unwrap() {
        let log = group.change_log(row.disk, row.cycle).unwrap();
        assert_eq!(log.file_name(), row.file_name);
        assert_eq!(log.content_hash(), row.file_hash);
        let file = world.storage.content(&world.journal().join(&row.file_name));
        assert!(bytes(&log) == file.unwrap());
    }
    // Cycle 3 did not change the second disk.
    let made = group.change_log(disk_id(1), Cycle(3)).unwrap();
    assert_eq!(made.file_name(), "disk1.3.hrl");
    assert!(!journal_files(&world).contains(&made.file_name().to_owned()));
    let again = group.change_log(disk_id(1), Cycle(3)).unwrap();
    assert!(bytes(&made) == bytes(&again));
}

/// Logs named the last log that was still in the journal as the one before, under their own generation's name: after
/// a merge none, after a cycle that did not touch the disk an older one, after a change of generation one that
/// never was.
#[tokio::test]
async fn logs_follow_each_other_across_merges_restarts_and_generations() {
    let (mut world, mut source) = (World::new(), Source::new(7));
    world.keep_points = 2;
    let mut group = replica(&world, &mut source, 4).await;
    let storage = FakeStorage::new();
    let mut chain: [Vec<HrlReader>; 2] = [Vec::new(), Vec::new()];
    let mut take = |group: &ReplicaGroup, cycle: u64| {
        for (disk, chain) in chain.iter_mut().enumerate() {
            let log = group.change_log(disk_id(disk), Cycle(cycle)).unwrap();
            chain.push(exported(&log, &storage));
        }
    };
    take(&group, 3);
    take(&group, 4);
    for cycle in 5..=7 {
        group.merge().unwrap();
        add(&group, &mut source, cycle - 1, cycle).await;
        take(&group, cycle);
    }
    drop(group);
    group = world.open().unwrap();
    let later = GenId::from_bytes([0x62; 16]);
    group.set_generation(later);
    let mut begin = cycle_begin(7, 9);
    begin.generation = later;
    let frames = [source.frame(0), source.frame(1)];
    source.cuts.insert(9, source.disks.clone());
    let mut transfer = group.begin(begin).await.unwrap();
    send_all(&mut transfer, &frames).await.unwrap();
    transfer
        .commit(crate::support::commit_of(&frames))
        .await
        .unwrap();
    take(&group, 9);
    assert_ne!(later, GENERATION);
    for (disk, chain) in chain.iter().enumerate() {
        check_chain(chain).unwrap();
        assert!(applied(chain, disk, &source.cuts[&2]) == source.cuts[&9][disk]);
    }
    let gone = group.change_log(disk_id(0), Cycle(8)).err().unwrap();
    assert!(matches!(
        gone,
        ReplicaError::NoSuchPoint { cycle: Cycle(8) }
    ));
}

#[tokio::test]
async fn a_log_that_is_being_read_is_in_nobodys_way() {
    let (mut world, mut source) = (World::new(), Source::new(8));
    world.keep_points = 1;
    let group = replica(&world, &mut source, 4).await;
    let log = group.change_log(disk_id(0), Cycle(2)).unwrap();
    let before = bytes(&log);
    assert_eq!(group.merge().unwrap(), Some(Cycle(4)));
    assert!(journal_files(&world).is_empty(), "merged and removed");
    assert!(bytes(&log) == before, "what is open stays");
    group.promote(Cycle(4)).unwrap();
    assert!(bytes(&log) == before);
    let closed = group.change_log(disk_id(0), Cycle(4)).err().unwrap();
    assert!(matches!(closed, ReplicaError::Closed { .. }), "{closed}");
}

#[tokio::test]
async fn what_is_not_in_the_journal_is_refused_with_the_reason() {
    let (mut world, mut source) = (World::new(), Source::new(9));
    world.keep_points = 2;
    let group = replica(&world, &mut source, 4).await;
    group.merge().unwrap();
    let refused = |cycle| group.change_log(disk_id(0), Cycle(cycle)).err().unwrap();
    for merged in [1, 2, 3] {
        let why = refused(merged);
        assert!(
            matches!(
                why,
                ReplicaError::Merged {
                    oldest: Cycle(3),
                    ..
                }
            ),
            "{merged}: {why}"
        );
    }
    assert!(group.change_log(disk_id(0), Cycle(4)).is_ok());
    for unknown in [5, u64::MAX] {
        let why = refused(unknown);
        assert!(
            matches!(
                why,
                ReplicaError::NotCommitted {
                    newest: Cycle(4),
                    ..
                }
            ),
            "{unknown}: {why}"
        );
    }
    let why = group
        .change_log(DiskId::from_bytes([9; 16]), Cycle(4))
        .err()
        .unwrap();
    assert!(matches!(why, ReplicaError::UnknownDisk { .. }));
    assert!(why.is_refusal());
}

#[tokio::test]
async fn a_damaged_log_is_not_given_away() {
    let (world, mut source) = (World::new(), Source::new(10));
    drop(replica(&world, &mut source, 2).await);
    let path = world.journal().join("disk0.2.hrl");
    let file = world.storage.open(&path, OpenMode::ReadWrite).unwrap();
    let reader = HrlReader::open(&world.storage, &path).unwrap();
    let mut entries = reader.entries().map(Result::unwrap);
    let at = entries.find(|entry| !entry.is_zeros).unwrap().data_offset;
    let mut byte = [0];
    file.read_at(&mut byte, at).unwrap();
    file.write_at(&[!byte[0]], at).unwrap();
    drop(file);
    let group = world.open().unwrap();
    let why = group.change_log(disk_id(0), Cycle(2)).err().unwrap();
    assert!(matches!(why, ReplicaError::DamagedLog { .. }), "{why}");
    assert!(!why.is_refusal());
    let _whole: Arc<dyn Image> = group.view(disk_id(1), Cycle(2)).unwrap();
}
