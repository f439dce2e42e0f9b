//! Random operations against a model, with clean closes, kills and growth in between.

use std::sync::Arc;

use super::super::layout::MIB;
use super::super::{CreateOptions, Kind, VhdxImage};
use super::{Random, open, path};
use crate::image::{ExtentKind, Image, Run, ZeroMode};
use crate::storage::fake::FakeStorage;

/// Each sector of 512 bytes is filled with one number; 0 is zeros.
pub(super) fn stamped(stamp: u64, sectors: u64) -> Vec<u8> {
    stamp
        .to_le_bytes()
        .repeat(usize::try_from(sectors * 64).unwrap())
}

/// The numbers of the sectors of `[from, from + count)`. Panics if a sector is torn.
pub(super) fn stamps(image: &dyn Image, from: u64, count: u64) -> Vec<u64> {
    let mut buf = vec![0; usize::try_from(count * 512).unwrap()];
    image.read_at(&mut buf, from * 512).unwrap();
    buf.chunks_exact(512)
        .map(|sector| {
            assert!(sector[..504] == sector[8..], "a sector holds two writes");
            u64::from_le_bytes(sector[..8].try_into().unwrap())
        })
        .collect()
}

pub(super) fn check(image: &dyn Image, model: &[u64], what: &str) {
    let mut at = 0;
    for expected in model.chunks(8192) {
        let count = u64::try_from(expected.len()).unwrap();
        assert!(
            stamps(image, at, count) == expected,
            "{what}: content from sector {at} on"
        );
        at += count;
    }
    let mut covered = 0;
    let size = image.geometry().size_bytes;
    image
        .extents(0, size, &mut |Run {
                                    offset,
                                    length,
                                    kind,
                                    ..
                                }| {
            assert_eq!(offset, covered);
            covered += length;
            let range = usize::try_from(offset / 512).unwrap()
                ..usize::try_from(covered.div_ceil(512)).unwrap();
            let zeros = model[range].iter().all(|stamp| *stamp == 0);
            assert!(
                zeros || kind == ExtentKind::Data,
                "{what}: {kind:?} at {offset}"
            );
            true
        })
        .unwrap();
    assert_eq!(covered, size);
}

pub(super) fn reload(image: &dyn Image, model: &mut [u64]) {
    let mut at = 0;
    for part in model.chunks_mut(8192) {
        let count = u64::try_from(part.len()).unwrap();
        part.copy_from_slice(&stamps(image, at, count));
        at += count;
    }
}

fn run(seed: u64, block_mib: u32, logical: u32, kind: Kind, sectors: u64) {
    let what = format!("seed {seed}, {block_mib} MiB blocks, {logical} byte sectors, {kind:?}");
    let storage = FakeStorage::new();
    let options = CreateOptions {
        size_bytes: sectors * 512,
        block_bytes: block_mib << 20,
        logical_sector_bytes: logical,
        physical_sector_bytes: 4096,
        kind,
        disk_id: None,
    };
    let mut image = VhdxImage::create(Arc::new(storage.clone()), path(), &options).unwrap();
    let mut model = vec![0_u64; usize::try_from(sectors).unwrap()];
    let mut random = Random(seed);
    let block = u64::from(block_mib) * MIB / 512;
    for stamp in 1..220_u64 {
        let sectors = u64::try_from(model.len()).unwrap();
        let from = random.below(sectors);
        let mut count = 1 + random.below(400).min(sectors - from - 1);
        let fua = random.below(16) == 0;
        let mut start = from;
        let choice = random.below(24);
        if (13..16).contains(&choice) {
            // Whole blocks.
            start = from / block * block;
            count = (block * (1 + random.below(2))).min(sectors - start);
        }
        let range = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        match choice {
            0..=12 => {
                image
                    .write_at(&stamped(stamp, count), start * 512, fua)
                    .unwrap();
                model[range].fill(stamp);
            }
            13..=18 => {
                let modes = [
                    ZeroMode::MayUnmap,
                    ZeroMode::FastOnly,
                    ZeroMode::KeepAllocated,
                ];
                let mode = modes[usize::try_from(random.below(3)).unwrap()];
                image
                    .write_zeroes(start * 512, count * 512, mode, fua)
                    .unwrap();
                model[range].fill(0);
            }
            19..=20 => image.flush().unwrap(),
            21 => {
                image.close().unwrap();
                image = open(&storage, false).unwrap();
            }
            22 => {
                drop(image);
                image = open(&storage, false).unwrap();
                // What was not flushed may be gone: see the crash tests. Start from what there is.
                reload(&image, &mut model);
            }
            _ => {
                let grown = (sectors + random.below(5) * u64::from(logical) / 512 * 64)
                    .next_multiple_of(u64::from(logical) / 512);
                image.resize(grown * 512).unwrap();
                model.resize(usize::try_from(grown).unwrap(), 0);
            }
        }
    }
    check(&image, &model, &what);
    image.close().unwrap();
    check(&open(&storage, true).unwrap(), &model, &what);
}

#[test]
fn random_operations_match_a_model() {
    let mut seed = 100;
    for block_mib in [1, 2, 32] {
        for logical in [512, 4096] {
            for kind in [Kind::Dynamic, Kind::Fixed] {
                seed += 1;
                let unit = u64::from(logical) / 512;
                let sectors = (u64::from(block_mib) * 2048 * 5 / 2 + 8 * seed) / unit * unit;
                run(seed, block_mib, logical, kind, sectors);
            }
        }
    }
}
