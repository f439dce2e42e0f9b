//! What the tests of all formats share: repeatable numbers, content that tells who wrote it, and what it must be.
//!
//! Owns no image: gives out bytes and models, receives images of any format. Does not do: crashes (see [`crash`]).

pub(crate) mod crash;

use std::env;

use crate::image::{ExtentKind, Image, Run, ZeroMode};

/// How often a test goes round: often enough for every day, or, where `SITEPAIR_THOROUGH` is set, for a release.
pub(crate) fn rounds(everyday: u64, thorough: u64) -> u64 {
    if env::var_os("SITEPAIR_THOROUGH").is_some_and(|set| set != "0") {
        thorough
    } else {
        everyday
    }
}

/// A small repeatable source of numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(u64::try_from(choices.len()).unwrap());
        choices[usize::try_from(index).unwrap()]
    }
}

pub(crate) fn read(image: &dyn Image, offset: u64, length: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; length];
    image.read_at(&mut buf, offset).unwrap();
    buf
}

/// All runs of an image.
pub(crate) fn runs(image: &dyn Image) -> Vec<Run> {
    let mut told = Vec::new();
    let mut each = |run| {
        told.push(run);
        true
    };
    image
        .extents(0, image.geometry().size_bytes, &mut each)
        .unwrap();
    told
}

/// All runs of an image that is no child.
pub(crate) fn extents(image: &dyn Image) -> Vec<(u64, u64, ExtentKind)> {
    let told = runs(image).into_iter();
    told.map(|run| (run.offset, run.length, run.kind)).collect()
}

/// Each sector of 512 bytes is filled with one number; 0 is zeros.
pub(crate) fn stamped(stamp: u64, sectors: u64) -> Vec<u8> {
    stamp
        .to_le_bytes()
        .repeat(usize::try_from(sectors * 64).unwrap())
}

/// The numbers of the sectors of `[from, from + count)`. Panics if a sector is torn.
pub(crate) fn stamps(image: &dyn Image, from: u64, count: u64) -> Vec<u64> {
    let mut buf = vec![0; usize::try_from(count * 512).unwrap()];
    image.read_at(&mut buf, from * 512).unwrap();
    buf.chunks_exact(512)
        .map(|sector| {
            assert!(sector[..504] == sector[8..], "a sector holds two writes");
            u64::from_le_bytes(sector[..8].try_into().unwrap())
        })
        .collect()
}

/// Sectors that are read at a time.
const PORTION: usize = 8192;

/// The image holds what the model says, and its runs hide no data.
pub(crate) fn check(image: &dyn Image, model: &[u64], what: &str) {
    let mut at = 0;
    for expected in model.chunks(PORTION) {
        let count = u64::try_from(expected.len()).unwrap();
        assert!(
            stamps(image, at, count) == expected,
            "{what}: content from sector {at} on"
        );
        at += count;
    }
    let mut covered = 0;
    for run in runs(image) {
        assert_eq!(run.offset, covered, "{what}");
        covered = run.end();
        let sectors = usize::try_from(run.offset / 512).unwrap()
            ..usize::try_from(covered.div_ceil(512)).unwrap();
        let zeros = model[sectors].iter().all(|stamp| *stamp == 0);
        assert!(zeros || run.kind == ExtentKind::Data, "{what}: {run:?}");
    }
    assert_eq!(covered, image.geometry().size_bytes);
}

/// Makes the model of what the image holds.
pub(crate) fn reload(image: &dyn Image, model: &mut [u64]) {
    let mut at = 0;
    for part in model.chunks_mut(PORTION) {
        let count = u64::try_from(part.len()).unwrap();
        part.copy_from_slice(&stamps(image, at, count));
        at += count;
    }
}

/// A random range of sectors; now and then whole blocks.
fn range(random: &mut Random, sectors: u64, block_sectors: u64) -> (u64, u64) {
    let from = random.below(sectors);
    if random.below(6) == 0 {
        let from = from / block_sectors * block_sectors;
        let count = block_sectors * (1 + random.below(2));
        return (from, count.min(sectors - from));
    }
    (from, (1 + random.below(400)).min(sectors - from))
}

/// Longer ranges are only made zero: writing them takes the time of thousands of others.
const WRITE_MAX: u64 = 16384;

/// Changes the image at random, and the model of its sectors with it.
pub(crate) fn change(
    image: &dyn Image,
    model: &mut [u64],
    random: &mut Random,
    block_sectors: u64,
    stamp: u64,
) {
    let sectors = u64::try_from(model.len()).unwrap();
    let (from, count) = range(random, sectors, block_sectors);
    let range = usize::try_from(from).unwrap()..usize::try_from(from + count).unwrap();
    let fua = random.below(12) == 0;
    let is_large = count > WRITE_MAX;
    if !is_large && random.below(3) > 0 {
        image
            .write_at(&stamped(stamp, count), from * 512, fua)
            .unwrap();
        model[range].fill(stamp);
    } else {
        let mode = random.one_of(&[
            ZeroMode::MayUnmap,
            ZeroMode::FastOnly,
            ZeroMode::KeepAllocated,
        ]);
        image
            .write_zeroes(from * 512, count * 512, mode, fua)
            .unwrap();
        model[range].fill(0);
    }
}
