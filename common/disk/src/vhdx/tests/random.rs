//! Random operations against a model, with clean closes, kills and growth in between.

use std::sync::Arc;

use super::super::layout::MIB;
use super::super::{CreateOptions, Kind, VhdxImage};
use super::{open, path};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::{Random, change, check, reload, rounds};

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
    for stamp in 1..=rounds(110, 220) {
        match random.below(24) {
            0..=18 => change(&image, &mut model, &mut random, block, stamp),
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
                let sectors = u64::try_from(model.len()).unwrap();
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
