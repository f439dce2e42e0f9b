use std::path::Path;
use std::sync::Arc;

use super::super::{HrlOptions, HrlTime, HrlWriter};
use super::*;
use crate::raw::RawImage;
use crate::storage::Storage;
use crate::storage::fake::{FakeStorage, What};
use crate::vhdx::{CreateOptions, Kind, VhdxImage};

const SIZE: u64 = 1 << 20;
const IMAGE: &str = "/disk.raw";

/// Writes log `number`, which follows the one before it, and gives its path.
fn log(storage: &FakeStorage, number: u8, writes: &[(u64, Vec<u8>)]) -> String {
    log_of_disk(storage, number, HrlId::default(), writes)
}

fn log_of_disk(
    storage: &FakeStorage,
    number: u8,
    data_write_id: HrlId,
    writes: &[(u64, Vec<u8>)],
) -> String {
    let path = format!("/{number}.hrl");
    let options = HrlOptions {
        unique_id: HrlId([number; 16]),
        previous_id: HrlId([number - 1; 16]),
        data_write_id,
        created: HrlTime(1),
    };
    let mut writer = HrlWriter::create(storage, Path::new(&path), options).unwrap();
    for (offset, data) in writes {
        if data.iter().all(|byte| *byte == 0) {
            let length = data.len() as u64;
            writer.append_zeros(*offset, length, HrlTime(1)).unwrap();
        } else {
            writer.append(*offset, data, HrlTime(1)).unwrap();
        }
    }
    writer.finish(HrlTime(2)).unwrap();
    path
}

fn open(storage: &FakeStorage, paths: &[String]) -> Vec<HrlReader> {
    let all = paths
        .iter()
        .map(|path| HrlReader::open(storage, Path::new(path)).unwrap());
    all.collect()
}

fn three_logs(storage: &FakeStorage) -> Vec<String> {
    vec![
        log(storage, 1, &[(0, vec![1; 4096]), (8192, vec![2; 512])]),
        log(
            storage,
            2,
            &[(512, vec![0; 1024]), (SIZE - 512, vec![3; 512])],
        ),
        log(storage, 3, &[(512, vec![4; 512]), (512, vec![5; 512])]),
    ]
}

fn expected() -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(SIZE).unwrap()];
    disk[..4096].fill(1);
    disk[8192..8704].fill(2);
    disk[512..1536].fill(0);
    let end = disk.len();
    disk[end - 512..].fill(3);
    disk[512..1024].fill(5);
    disk
}

fn image(storage: &FakeStorage) -> RawImage {
    RawImage::create(storage, Path::new(IMAGE), SIZE).unwrap()
}

fn content(image: &dyn Image) -> Vec<u8> {
    let mut disk = vec![0xee; usize::try_from(image.geometry().size_bytes).unwrap()];
    image.read_at(&mut disk, 0).unwrap();
    disk
}

fn changes(storage: &FakeStorage) -> usize {
    let operations = storage.operations();
    let image = operations.iter().filter(|o| o.path == Path::new(IMAGE));
    image.filter(|o| !matches!(o.what, What::Sync)).count()
}

#[test]
fn a_chain_is_applied_in_order_and_is_durable() {
    let storage = FakeStorage::new();
    let logs = open(&storage, &three_logs(&storage));
    let image = image(&storage);
    let applied = apply_chain(&logs, &image, ApplyOptions::default()).unwrap();
    assert_eq!(applied.entries, 6);
    assert_eq!(
        (applied.data_bytes, applied.zero_bytes),
        (4096 + 4 * 512, 1024)
    );
    assert!(content(&image) == expected());
    assert!(!storage.has_unsynced(Path::new(IMAGE)));
}

#[test]
fn applying_twice_is_harmless() {
    let storage = FakeStorage::new();
    let logs = open(&storage, &three_logs(&storage));
    let image = image(&storage);
    for _ in 0..2 {
        apply_chain(&logs, &image, ApplyOptions::default()).unwrap();
        assert!(content(&image) == expected());
    }
}

/// Killed at any write, then applied again: as if it had been applied once.
#[test]
fn a_crash_in_between_is_repeated() {
    let mut deaths = 0;
    for after in 0.. {
        let storage = FakeStorage::new();
        let paths = three_logs(&storage);
        drop(image(&storage));
        storage.sync_dir(Path::new("/")).unwrap();
        let opened = RawImage::open(&storage, Path::new(IMAGE), false).unwrap();
        storage.die_after(storage.operation_count() + after);
        let logs = open(&storage, &paths);
        if apply_chain(&logs, &opened, ApplyOptions::default()).is_ok() {
            break;
        }
        deaths += 1;
        // The logs were durable, of course; only the image is at the mercy of the power.
        let later = storage.crash(after);
        let fresh = FakeStorage::new();
        let logs = open(&fresh, &three_logs(&fresh));
        let opened = RawImage::open(&later, Path::new(IMAGE), false).unwrap();
        apply_chain(&logs, &opened, ApplyOptions::default()).unwrap();
        assert!(content(&opened) == expected(), "after {after}");
    }
    assert!(deaths > 5, "{deaths}");
}

fn refused(storage: &FakeStorage, logs: &[HrlReader], image: &dyn Image) -> ApplyError {
    let before = changes(storage);
    let error = apply_chain(logs, image, ApplyOptions::default()).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(changes(storage), before, "{error}");
    error
}

#[test]
fn a_gap_and_a_wrong_order_are_refused_before_a_byte_is_written() {
    let storage = FakeStorage::new();
    let paths = three_logs(&storage);
    let image = image(&storage);
    for order in [[0, 2].as_slice(), &[1, 0], &[0, 0], &[0, 1, 0], &[2, 1, 0]] {
        let chosen: Vec<_> = order.iter().map(|i| paths[*i].clone()).collect();
        let error = refused(&storage, &open(&storage, &chosen), &image);
        assert!(
            matches!(error, ApplyError::Gap { .. }),
            "{order:?}: {error}"
        );
    }
    // A part of the chain in the right order is a chain.
    let logs = open(&storage, &paths[1..]);
    apply_chain(&logs, &image, ApplyOptions::default()).unwrap();
}

#[test]
fn logs_without_ids_are_no_chain() {
    let storage = FakeStorage::new();
    let mut logs = Vec::new();
    for name in ["/a", "/b"] {
        let options = HrlOptions::default();
        let writer = HrlWriter::create(&storage, Path::new(name), options).unwrap();
        writer.finish(HrlTime(1)).unwrap();
        logs.push(HrlReader::open(&storage, Path::new(name)).unwrap());
    }
    let error = refused(&storage, &logs, &image(&storage));
    assert!(matches!(error, ApplyError::Gap { .. }), "{error}");
}

#[test]
fn an_entry_outside_the_disk_is_refused_before_a_byte_is_written() {
    for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (100, 512), (0, 100)] {
        let storage = FakeStorage::new();
        let paths = [
            log(&storage, 1, &[(0, vec![1; 512])]),
            log(&storage, 2, &[(0, vec![1; 512]), (offset, vec![7; length])]),
        ];
        let error = refused(&storage, &open(&storage, &paths), &image(&storage));
        assert!(matches!(error, ApplyError::Outside { .. }), "{error}");
    }
}

#[test]
fn damaged_data_is_refused_before_a_byte_is_written() {
    let storage = FakeStorage::new();
    let paths = three_logs(&storage);
    storage.overwrite(Path::new(&paths[2]), 4096, &[9]).unwrap();
    let error = refused(&storage, &open(&storage, &paths), &image(&storage));
    assert!(matches!(error, ApplyError::Log(_)), "{error}");
}

#[test]
fn a_log_of_another_disk_is_refused_unless_told_otherwise() {
    let storage = FakeStorage::new();
    let options = CreateOptions {
        size_bytes: 4 << 20,
        block_bytes: 1 << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind: Kind::Dynamic,
        disk_id: None,
    };
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let image = VhdxImage::create(shared, Path::new(IMAGE), &options).unwrap();
    let own = HrlId(image.identity().unwrap().data_write_id);
    assert_ne!(own, HrlId::default());
    let paths = [
        log_of_disk(&storage, 1, HrlId([7; 16]), &[(0, vec![1; 512])]),
        log_of_disk(&storage, 5, own, &[(512, vec![2; 512])]),
        // Raw images have no id to put into a log.
        log_of_disk(&storage, 8, HrlId::default(), &[(1024, vec![3; 512])]),
    ];
    let logs = open(&storage, &paths);
    let error = refused(&storage, &logs[..1], &image);
    assert!(matches!(error, ApplyError::OtherDisk { .. }), "{error}");
    apply(&logs[1], &image, ApplyOptions::default()).unwrap();
    apply(&logs[2], &image, ApplyOptions::default()).unwrap();
    let options = ApplyOptions {
        any_disk: true,
        ..ApplyOptions::default()
    };
    apply(&logs[0], &image, options).unwrap();
    let mut disk = [0; 1536];
    image.read_at(&mut disk, 0).unwrap();
    assert_eq!(
        disk.chunks(512).map(|s| s[0]).collect::<Vec<_>>(),
        [1, 2, 3]
    );
}

#[test]
fn a_log_that_was_not_closed_is_applied_only_when_told_so_and_only_last() {
    let storage = FakeStorage::new();
    let paths = three_logs(&storage);
    for path in &paths {
        storage.overwrite(Path::new(path), 44, &[0; 8]).unwrap();
    }
    let recover = |path: &String| HrlReader::recover(&storage, Path::new(path)).unwrap().0;
    let image = image(&storage);
    let last = [recover(&paths[2])];
    let error = refused(&storage, &last, &image);
    assert!(
        matches!(error, ApplyError::NotClosed { entries: 2, .. }),
        "{error}"
    );
    let partial = ApplyOptions {
        partial: true,
        ..ApplyOptions::default()
    };
    apply_chain(&last, &image, partial).unwrap();
    assert_eq!(content(&image)[512..1024], [5; 512]);
    let two = [recover(&paths[0]), recover(&paths[1])];
    let error = apply_chain(&two, &image, partial).unwrap_err();
    assert!(matches!(error, ApplyError::PartialBefore { .. }), "{error}");
}

#[test]
fn an_image_for_reading_is_refused() {
    let storage = FakeStorage::new();
    let logs = open(&storage, &three_logs(&storage));
    drop(image(&storage));
    let image = RawImage::open(&storage, Path::new(IMAGE), true).unwrap();
    refused(&storage, &logs, &image);
}
