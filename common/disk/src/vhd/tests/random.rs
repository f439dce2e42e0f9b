//! Random operations against a model, with clean closes, kills and growth in between.

use std::path::Path;
use std::sync::Arc;

use super::super::{ChildOptions, CreateOptions, Kind, VhdImage};
use super::{create, open_chain, options, path};
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::{Random, change, check, rounds, stamped};

pub(super) const PARENT: &str = "/parent.vhd";

/// A new disk of a kind. A parent has a stamp of 7 in every other run of 100 sectors of its first half.
pub(super) fn make(storage: &FakeStorage, wanted: &CreateOptions) -> (VhdImage, Vec<u64>) {
    let sectors = usize::try_from(wanted.size_bytes / 512).unwrap();
    let mut model = vec![0; sectors];
    if wanted.kind != Kind::Differencing {
        return (create(storage, wanted), model);
    }
    let below = CreateOptions {
        kind: Kind::Dynamic,
        ..wanted.clone()
    };
    let parent_path = Path::new(PARENT);
    let shared = || Arc::new(storage.clone());
    let parent = VhdImage::create(shared(), parent_path, &below).unwrap();
    for from in (0..sectors / 2 - 100).step_by(200) {
        let offset = u64::try_from(from).unwrap() * 512;
        parent.write_at(&stamped(7, 100), offset, false).unwrap();
        model[from..from + 100].fill(7);
    }
    parent.close().unwrap();
    drop(parent);
    let parent = Arc::new(VhdImage::open(shared(), parent_path, true).unwrap());
    let over = ChildOptions {
        parent_path: parent_path.to_owned(),
        block_bytes: wanted.block_bytes,
    };
    let child = VhdImage::create_child(shared(), path(), &parent, &over).unwrap();
    (child, model)
}

pub(super) fn reopen(storage: &FakeStorage, kind: Kind, read_only: bool) -> VhdImage {
    let files = [path(), Path::new(PARENT)];
    let count = if kind == Kind::Differencing { 2 } else { 1 };
    open_chain(storage, &files[..count], read_only).unwrap()
}

fn run(seed: u64, wanted: &CreateOptions) {
    let what = format!("seed {seed}, {wanted:?}");
    let mut storage = FakeStorage::new();
    let (mut image, mut model) = make(&storage, wanted);
    let kind = wanted.kind;
    let mut random = Random(seed);
    let block_sectors = u64::from(wanted.block_bytes) / 512;
    for turn in 1..=rounds(130, 260) {
        match random.below(24) {
            0..=18 => change(&image, &mut model, &mut random, block_sectors, turn),
            19..=20 => image.flush().unwrap(),
            21 => {
                image.close().unwrap();
                image = reopen(&storage, kind, false);
            }
            22 => {
                // Nothing that was answered is lost.
                let after = storage.after_kill();
                drop(image);
                storage = after;
                image = reopen(&storage, kind, false);
            }
            _ if kind == Kind::Differencing => check(&image, &model, &what),
            _ => {
                let grown = u64::try_from(model.len()).unwrap() + random.below(500);
                image.resize(grown * 512).unwrap();
                model.resize(usize::try_from(grown).unwrap(), 0);
            }
        }
    }
    check(&image, &model, &what);
    image.close().unwrap();
    check(&reopen(&storage, kind, true), &model, &what);
}

#[test]
fn random_operations_match_a_model() {
    let mut seed = 200;
    for block_kib in [64, 512, 2048, 4096] {
        for kind in [Kind::Dynamic, Kind::Fixed, Kind::Differencing] {
            if kind == Kind::Fixed && block_kib != 512 {
                continue;
            }
            seed += 1;
            let sectors = u64::from(block_kib) * 2 * 5 / 2 + 2000 + seed;
            let wanted = CreateOptions {
                kind,
                ..options(sectors * 512, block_kib)
            };
            run(seed, &wanted);
        }
    }
}
