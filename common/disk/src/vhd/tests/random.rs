//! Random operations against a model, with clean closes, kills and growth in between.

use std::path::Path;
use std::sync::Arc;

use super::super::{ChildOptions, CreateOptions, Kind, VhdImage};
use super::{Random, create, open_chain, options, path};
use crate::image::{ExtentKind, Image, Run, ZeroMode};
use crate::storage::fake::FakeStorage;

pub(super) const PARENT: &str = "/parent.vhd";

/// Each sector of 512 bytes is filled with one number; 0 is zeros.
pub(super) fn stamped(stamp: u64, sectors: u64) -> Vec<u8> {
    stamp
        .to_le_bytes()
        .repeat(usize::try_from(sectors * 64).unwrap())
}

/// The numbers of the sectors of `[from, from + count)`. Panics if a sector is torn.
pub(super) fn stamps(image: &VhdImage, from: u64, count: u64) -> Vec<u64> {
    let mut buf = vec![0; usize::try_from(count * 512).unwrap()];
    image.read_at(&mut buf, from * 512).unwrap();
    buf.chunks_exact(512)
        .map(|sector| {
            assert!(sector[..504] == sector[8..], "a sector holds two writes");
            u64::from_le_bytes(sector[..8].try_into().unwrap())
        })
        .collect()
}

pub(super) fn check(image: &VhdImage, model: &[u64], what: &str) {
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
    for turn in 1..=260 {
        let sectors = u64::try_from(model.len()).unwrap();
        let start = random.below(sectors);
        let most = if turn % 8 == 0 { 9000 } else { 300 };
        let count = (1 + random.below(most)).min(sectors - start);
        let range = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        let fua = random.below(8) == 0;
        match random.below(24) {
            0..=12 => {
                image
                    .write_at(&stamped(turn, count), start * 512, fua)
                    .unwrap();
                model[range].fill(turn);
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
                let grown = sectors + random.below(500);
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
