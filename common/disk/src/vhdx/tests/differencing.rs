//! Differencing disks: chains against a model, what is here and what is the parent's, bitmaps.

use std::path::Path;
use std::sync::Arc;

use super::super::layout::{MIB, PAGE};
use super::super::{CreateOptions, VhdxImage};
use super::options;
use super::over::{base, child, level, open_chain, open_vhdx};
use crate::image::{Access, ExtentKind, Image, ZeroMode};
use crate::storage::fake::FakeStorage;
use crate::tests::{Random, change, check, extents, reload, rounds, stamped, stamps};

/// State of the BAT entry at `index` of a file.
fn state(storage: &FakeStorage, path: &Path, index: u64) -> u64 {
    let content = storage.content(path).unwrap();
    let at = usize::try_from(super::super::create::BAT_OFFSET + index * 8).unwrap();
    u64::from_le_bytes(content[at..at + 8].try_into().unwrap()) & 7
}

/// Random operations on `image` and on the model of its sectors.
fn scribble(image: &VhdxImage, model: &mut [u64], random: &mut Random, stamps_from: u64) {
    let block_sectors = u64::from(image.geometry().block_bytes) / 512;
    for stamp in stamps_from..stamps_from + rounds(30, 60) {
        if random.below(16) == 0 {
            image.flush().unwrap();
        } else {
            change(image, model, random, block_sectors, stamp);
        }
    }
}

fn run_chain(seed: u64, blocks_mib: [u32; 3], logical: u32, sectors: u64) {
    let what = format!("seed {seed}, blocks {blocks_mib:?} MiB, {logical} byte sectors");
    let storage = FakeStorage::new();
    let unit = u64::from(logical) / 512;
    let sectors = sectors / unit * unit;
    let wanted = CreateOptions {
        logical_sector_bytes: logical,
        size_bytes: sectors * 512,
        ..options(0, blocks_mib[0])
    };
    let mut model = vec![0; usize::try_from(sectors).unwrap()];
    let mut random = Random(seed);
    let image = VhdxImage::create(Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    scribble(&image, &mut model, &mut random, 1000);
    image.close().unwrap();
    for (number, block_mib) in blocks_mib.into_iter().enumerate().skip(1) {
        let parent = level(number - 1);
        let mut below = model.clone();
        let image = child(&storage, &level(number), &parent, block_mib).unwrap();
        check(&image, &model, &format!("{what}, level {number} when new"));
        let first = 10_000 * u64::try_from(number).unwrap();
        scribble(&image, &mut model, &mut random, first);
        check(&image, &model, &format!("{what}, level {number}"));
        image.close().unwrap();
        // Reopened, once after a kill, and grown.
        let image = open_vhdx(&storage, &level(number), false).unwrap();
        scribble(&image, &mut model, &mut random, first + 1000);
        drop(image);
        let image = open_vhdx(&storage, &level(number), false).unwrap();
        check(
            &image,
            &model,
            &format!("{what}, level {number} after a kill"),
        );
        let grown = u64::try_from(model.len()).unwrap() + 8 * random.below(9000);
        image.resize(grown * 512).unwrap();
        model.resize(usize::try_from(grown).unwrap(), 0);
        scribble(&image, &mut model, &mut random, first + 2000);
        image.close().unwrap();
        let image = open_chain(&storage, &level(number), true).unwrap();
        check(
            &*image,
            &model,
            &format!("{what}, level {number} in the end"),
        );
        let image = open_chain(&storage, &parent, true).unwrap();
        reload(&*image, &mut below);
        check(
            &*image,
            &below,
            &format!("{what}, the parent of level {number}"),
        );
    }
}

#[test]
fn random_operations_on_chains_match_a_model() {
    let mut seed = 500;
    for blocks_mib in [[1, 1, 1], [2, 1, 32], [1, 2, 256], [32, 256, 2]] {
        for logical in [512, 4096] {
            seed += 1;
            run_chain(seed, blocks_mib, logical, 5 * 2048 + 8 * seed);
        }
    }
}

#[test]
fn a_sector_is_here_or_the_parents() {
    let storage = FakeStorage::new();
    base(&storage, 8 * MIB, 0, 4 * 2048);
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    assert_eq!(stamps(&image, 0, 4), [1000; 4]);
    image.write_at(&stamped(5, 2), 512, false).unwrap();
    assert_eq!(stamps(&image, 0, 4), [1000, 5, 5, 1000]);
    // Where the parent has only zeros, a block is taken whole.
    image.write_at(&stamped(6, 1), 5 * MIB, false).unwrap();
    // Zeros are not the parent's, whole or in part.
    image.discard(2 * MIB, MIB).unwrap();
    image
        .write_zeroes(3 * MIB, 4096, ZeroMode::MayUnmap, false)
        .unwrap();
    assert_eq!(stamps(&image, 2 * 2048, 2048), [0; 2048]);
    assert_eq!(stamps(&image, 3 * 2048, 9), [0, 0, 0, 0, 0, 0, 0, 0, 1000]);
    // Zeros over zeros change nothing.
    image
        .write_zeroes(6 * MIB, 4096, ZeroMode::MayUnmap, false)
        .unwrap();
    assert_eq!(
        extents(&image),
        [
            (0, 512, ExtentKind::Data),
            (512, 1024, ExtentKind::Data),
            (1536, 2 * MIB - 1536, ExtentKind::Data),
            (2 * MIB, MIB, ExtentKind::Hole),
            (3 * MIB, 4096, ExtentKind::Data),
            (3 * MIB + 4096, MIB - 4096, ExtentKind::Data),
            (4 * MIB, MIB, ExtentKind::Hole),
            (5 * MIB, 4096, ExtentKind::Data),
            (5 * MIB + 4096, MIB - 4096, ExtentKind::Hole),
            (6 * MIB, 2 * MIB, ExtentKind::Hole),
        ]
    );
    image.write_at(&stamped(7, 2044), 1536, false).unwrap();
    image.write_at(&stamped(7, 1), 0, false).unwrap();
    image.close().unwrap();
    let states = [0, 1, 2, 3, 4, 5].map(|index| state(&storage, &level(1), index));
    assert_eq!(
        states,
        [7, 0, 2, 7, 0, 6],
        "PARTIAL, NOT_PRESENT, ZERO, PARTIAL, NOT_PRESENT, FULL"
    );
    let bitmap = state(&storage, &level(1), 8192 / 2);
    assert_eq!(bitmap, 6, "the chunk's bitmap");
    // The last sector of a block makes it whole.
    let image = open_vhdx(&storage, &level(1), false).unwrap();
    image.write_at(&stamped(8, 1), 2047 * 512, false).unwrap();
    assert_eq!(stamps(&image, 2046, 3), [7, 8, 1000]);
    image.close().unwrap();
    assert_eq!(state(&storage, &level(1), 0), 6);
}

#[test]
fn extents_tell_which_file_of_a_chain_has_what() {
    let storage = FakeStorage::new();
    base(&storage, 4 * MIB, 0, 3 * 2048);
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    image.write_at(&stamped(5, 8), 16 * 512, false).unwrap();
    image.discard(MIB, MIB).unwrap();
    image.close().unwrap();
    drop(image);
    let image = child(&storage, &level(2), &level(1), 2).unwrap();
    // Past its parents' end it is alone.
    image.resize(6 * MIB).unwrap();
    image.write_at(&stamped(6, 8), 0, false).unwrap();
    let mut told = Vec::new();
    image
        .extents(0, 6 * MIB, &mut |run| {
            told.push((run.offset, run.length, run.kind, run.level));
            true
        })
        .unwrap();
    use ExtentKind::{Data, Hole};
    assert_eq!(
        told,
        [
            (0, 4096, Data, 0),
            (4096, 4096, Data, 2),
            (8192, 4096, Data, 1),
            (12288, MIB - 12288, Data, 2),
            (MIB, MIB, Hole, 1),
            (2 * MIB, MIB, Data, 2),
            (3 * MIB, MIB, Hole, 2),
            (4 * MIB, 2 * MIB, Hole, 0),
        ]
    );
}

#[test]
fn a_part_of_a_large_sector_brings_the_rest_of_it_along() {
    let storage = FakeStorage::new();
    let wanted = CreateOptions {
        logical_sector_bytes: 4096,
        ..options(4 * MIB, 1)
    };
    let image = VhdxImage::create(Arc::new(storage.clone()), &level(0), &wanted).unwrap();
    image.write_at(&stamped(9, 4096), 0, false).unwrap();
    image.close().unwrap();
    let image = child(&storage, &level(1), &level(0), 2).unwrap();
    image.write_at(&stamped(3, 10), 3 * 512, false).unwrap();
    let mut wanted = [9; 24];
    wanted[3..13].fill(3);
    assert_eq!(stamps(&image, 0, 24), wanted);
    image
        .write_zeroes(14 * 512, 512, ZeroMode::KeepAllocated, false)
        .unwrap();
    wanted[14] = 0;
    image.close().unwrap();
    let image = open_chain(&storage, &level(1), true).unwrap();
    assert_eq!(stamps(&*image, 0, 24), wanted);
}

#[test]
fn overwriting_what_is_here_needs_no_change_of_metadata() {
    let storage = FakeStorage::new();
    base(&storage, 8 * MIB, 0, 8 * 2048);
    let image = child(&storage, &level(1), &level(0), 2).unwrap();
    image.write_at(&stamped(1, 8), 4096, true).unwrap();
    assert!(image.is_quick(Access::Write, 4096, 4096));
    assert!(!image.is_quick(Access::Write, 4096, 8192), "the parent's");
    assert!(!image.is_quick(Access::Write, 4 * MIB, 512));
    let count = storage.operation_count();
    image.write_at(&stamped(2, 8), 4096, true).unwrap();
    assert_eq!(storage.operation_count(), count + 1, "one durable write");
    let syncs = || storage.counters(&level(1)).syncs;
    let before = syncs();
    image.write_at(&stamped(3, 8), 2 * MIB, false).unwrap();
    assert_eq!(syncs(), before + 1, "bytes before bits, then a note");
    image.flush().unwrap();
    assert_eq!(syncs(), before + 2);
    image.write_at(&stamped(3, 8), 2 * MIB, false).unwrap();
    image.flush().unwrap();
    assert_eq!(syncs(), before + 3);
}

#[test]
fn writers_of_one_chunk_share_its_bitmap() {
    let storage = FakeStorage::new();
    base(&storage, 16 * MIB, 0, 16 * 2048);
    let image = child(&storage, &level(1), &level(0), 1).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let image = &image;
            scope.spawn(move || {
                for turn in 0..16_u64 {
                    let from = turn * 2048 + thread * 8;
                    image
                        .write_at(&stamped(thread + 1, 8), from * 512, false)
                        .unwrap();
                }
            });
        }
    });
    let killed = open_chain(&storage.after_kill(), &level(1), true).unwrap();
    for turn in 0..16 {
        let found = stamps(&*killed, turn * 2048, 72);
        assert!(found[64..] == [1000; 8]);
        for (thread, found) in (1..).zip(found[..64].chunks(8)) {
            assert_eq!(found, [thread; 8], "block {turn}");
        }
    }
    image.close().unwrap();
    let bytes = storage.content(&level(1)).unwrap().len();
    assert_eq!(bytes, super::EMPTY + (17 << 20), "16 blocks and one bitmap");
}

#[test]
fn bitmaps_in_memory_are_bounded() {
    let storage = FakeStorage::new();
    base(&storage, 64 << 30, 0, 8);
    // One sector in each of 2200 pages of bitmaps, most of them over a parent's block.
    let image = VhdxImage::create(
        Arc::new(storage.clone()),
        Path::new("/wide.vhdx"),
        &options(64 << 30, 256),
    )
    .unwrap();
    for block in 0..256 {
        image.write_at(&[1; 512], block * 256 * MIB, false).unwrap();
    }
    image.close().unwrap();
    let image = child(&storage, &level(1), Path::new("/wide.vhdx"), 256).unwrap();
    for page in 0..2200_u64 {
        image
            .write_at(&stamped(page + 1, 1), page * PAGE * 8 * 512, false)
            .unwrap();
        if page % 100 == 99 {
            image.flush().unwrap();
        }
    }
    let loaded = image
        .gate
        .with(|core| Ok(core.bitmaps.pages_in_memory()))
        .unwrap();
    assert!(loaded <= 2048, "{loaded}");
    for page in (0..2200_u64).step_by(7) {
        assert_eq!(stamps(&image, page * PAGE * 8, 1), [page + 1]);
    }
}
