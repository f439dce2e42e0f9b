//! Repairs: what is mended, what is not touched, and crashes in the middle.

use std::sync::Arc;

use super::vhd::{FIRST, STEP, dynamic};
use super::vhdx::{HEADERS, good, options, set_bat};
use super::*;
use crate::ErrorKind;
use crate::image::Image;
use crate::parent::Parents;
use crate::storage::Storage;
use crate::storage::fake::What;
use crate::vhdx::layout::MIB;
use crate::vhdx::{Kind as DiskShape, VhdxImage};

const TABLES: [usize; 2] = [196_608, 262_144];

fn shared(storage: &FakeStorage) -> Arc<dyn Storage> {
    Arc::new(storage.clone())
}

fn checked(storage: &FakeStorage) -> Report {
    check(storage, path(), CheckOptions::default()).unwrap()
}

fn inside() -> Parents {
    Parents::Inside("/".into())
}

fn mended(storage: &FakeStorage) -> Repaired {
    repair(&shared(storage), path(), &checked(storage), &inside()).unwrap()
}

/// The codes that a repair of the bytes answers, and the file after it, which is clean.
#[track_caller]
fn mends(bytes: &[u8]) -> (Vec<&'static str>, Vec<u8>) {
    let storage = storage_of(&[("/disk", bytes)]);
    let repaired = mended(&storage);
    assert_eq!(repaired.after.worst, None, "{:#?}", repaired.after.findings);
    assert_eq!(repaired.refused, None);
    assert!(!storage.has_unsynced(path()));
    assert_eq!(checked(&storage), repaired.after);
    let done = repaired.done.iter().map(|mended| mended.code).collect();
    (done, storage.content(path()).unwrap())
}

fn damaged_vhdx(places: &[usize]) -> Vec<u8> {
    let mut bytes = good();
    for at in places {
        bytes[*at] ^= 1;
    }
    bytes
}

#[test]
fn headers_and_region_tables_are_mended_from_their_copies() {
    let read = |bytes: &[u8]| {
        let storage = storage_of(&[("/disk", bytes)]);
        let image = VhdxImage::open(shared(&storage), path(), true).unwrap();
        let mut content = vec![0; 4 << 20];
        image.read_at(&mut content, 0).unwrap();
        content
    };
    for slot in 0..2 {
        let header = damaged_vhdx(&[HEADERS[slot] + 9]);
        let (done, after) = mends(&header);
        assert_eq!(done, ["vhdx-header-invalid"]);
        assert_eq!(read(&after), read(&header));
        let table = damaged_vhdx(&[TABLES[slot] + 40]);
        let (done, after) = mends(&table);
        assert_eq!(done, ["vhdx-region-table-invalid"]);
        assert!(after[TABLES[0]..TABLES[1]] == after[TABLES[1]..TABLES[1] + 65_536]);
        assert_eq!(read(&after), read(&table));
        let (done, _) = mends(&damaged_vhdx(&[HEADERS[slot], TABLES[1 - slot]]));
        assert_eq!(done, ["vhdx-header-invalid", "vhdx-region-table-invalid"]);
    }
}

#[test]
fn a_dirty_log_is_replayed() {
    let storage = FakeStorage::new();
    let image = VhdxImage::create(
        Arc::new(storage.clone()),
        path(),
        &options(16, DiskShape::Dynamic),
    )
    .unwrap();
    image.write_at(&[5; 4096], 3 * MIB, true).unwrap();
    let after = storage.crash(0);
    drop(image);
    let bytes = after.content(path()).unwrap();
    let (done, bytes) = mends(&bytes);
    assert_eq!(done, ["vhdx-log-dirty"]);
    let storage = storage_of(&[("/disk", &bytes)]);
    let image = VhdxImage::open(shared(&storage), path(), true).unwrap();
    let mut content = vec![0; 4096];
    image.read_at(&mut content, 3 * MIB).unwrap();
    assert_eq!(content, [5; 4096]);
}

#[test]
fn footers_of_a_vhd_are_mended_from_each_other() {
    let good = dynamic();
    let end = good.len() - 512;
    let mut copy = good.clone();
    copy[..512].fill(1);
    assert_eq!(mends(&copy), (vec!["vhd-copy-invalid"], good.clone()));
    let mut destroyed = good.clone();
    destroyed[end..].fill(3);
    assert_eq!(
        mends(&destroyed),
        (vec!["vhd-footer-invalid"], good.clone())
    );
    assert_eq!(
        mends(&good[..end]),
        (vec!["vhd-footer-invalid"], good.clone())
    );
    assert_eq!(
        mends(&good[..end + 100]),
        (vec!["vhd-footer-invalid"], good.clone())
    );
    // Cut within a block: that block is lost, and nothing is written.
    let storage = storage_of(&[("/disk", &good[..FIRST + STEP + 5120])]);
    let repaired = mended(&storage);
    assert_eq!(
        faults(&repaired.after),
        ["vhd-bat-outside", "vhd-footer-invalid"]
    );
    assert!(repaired.done.is_empty() && repaired.refused.is_some());
    assert!(storage.content(path()).unwrap() == good[..FIRST + STEP + 5120]);
}

#[test]
fn a_file_with_errors_is_not_touched() {
    let mut bytes = damaged_vhdx(&[HEADERS[0]]);
    set_bat(&mut bytes, 5, 4 << 20 | 6);
    let storage = storage_of(&[("/disk", &bytes)]);
    let repaired = mended(&storage);
    assert!(repaired.done.is_empty());
    assert!(repaired.refused.unwrap().contains("cannot be mended"));
    assert!(storage.content(path()).unwrap() == bytes);
    let clean = storage_of(&[("/disk", &good())]);
    let repaired = mended(&clean);
    assert!(repaired.done.is_empty() && repaired.refused.is_none());
    assert_eq!(clean.content(path()).unwrap().len(), good().len());
    let mut leaking = good();
    leaking.extend(vec![0; 1 << 20]);
    let storage = storage_of(&[("/disk", &leaking)]);
    let repaired = mended(&storage);
    assert!(repaired.done.is_empty() && repaired.refused.is_some());
    assert!(storage.content(path()).unwrap() == leaking);
}

#[test]
fn a_file_that_changed_or_is_in_use_is_not_touched() {
    let bytes = damaged_vhdx(&[HEADERS[0]]);
    let storage = storage_of(&[("/disk", &bytes)]);
    let report = checked(&storage);
    let reader = open_locked(&storage, path(), true).unwrap();
    let refusal = repair(&shared(&storage), path(), &report, &inside()).unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Locked);
    drop(reader);
    storage.overwrite(path(), TABLES[0] as u64, &[0]).unwrap();
    let refusal = repair(&shared(&storage), path(), &report, &inside()).unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Invalid);
    assert!(
        storage.operations().iter().all(|operation| {
            !matches!(operation.what, What::Write { offset, .. } if offset > 0)
        })
    );
}

#[test]
fn a_power_loss_within_a_repair_leaves_a_file_that_can_be_repaired() {
    let vhdx = damaged_vhdx(&[HEADERS[1], TABLES[0]]);
    let mut vhd = dynamic();
    vhd[..512].fill(1);
    for bytes in [vhdx, vhd] {
        let whole = storage_of(&[("/disk", &bytes)]);
        let before = whole.operation_count();
        mended(&whole);
        for count in before..whole.operation_count() {
            for seed in 0..4 {
                let storage = storage_of(&[("/disk", &bytes)]);
                let report = checked(&storage);
                storage.die_after(count);
                repair(&shared(&storage), path(), &report, &inside()).unwrap_err();
                let after = storage.crash(seed);
                assert_eq!(
                    checked(&after).counts.errors,
                    0,
                    "operation {count}, seed {seed}"
                );
                assert_eq!(
                    mended(&after).after.worst,
                    None,
                    "operation {count}, seed {seed}"
                );
            }
        }
    }
}
