//! Which sectors of a block are in the file: one bit each, the most significant first.
//!
//! Does not do: I/O.

use super::layout::{SECTOR, Shape, to_u64, to_usize};

/// The bitmap of a block that has space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bitmap {
    /// All sectors that the disk shows are there.
    Full,
    /// Bits of all sectors of the block.
    Some(Box<[u8]>),
}

/// Bits that follow each other and are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Sector in the block.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) here: bool,
}

impl Bitmap {
    /// No sector is there.
    pub(super) fn empty(shape: Shape) -> Self {
        Self::Some(vec![0; to_usize(shape.block_bytes / SECTOR / 8)].into())
    }

    /// `bytes` as read; `shown` sectors count.
    pub(super) fn of(bytes: &[u8], shape: Shape, shown: u64) -> Self {
        let length = to_usize(shape.block_bytes / SECTOR / 8);
        Self::Some(bytes[..length].into()).settled(shown)
    }

    fn settled(self, shown: u64) -> Self {
        if self.is_here(0, shown) {
            Self::Full
        } else {
            self
        }
    }

    /// With `count` sectors from `first` on; `shown` sectors count.
    pub(super) fn with(&self, first: u64, count: u64, shown: u64) -> Self {
        let Self::Some(bits) = self else {
            return Self::Full;
        };
        let mut bits = bits.clone();
        for sector in first..first + count {
            bits[to_usize(sector / 8)] |= 0x80 >> (sector % 8);
        }
        Self::Some(bits).settled(shown)
    }

    /// Whether all `count` sectors from `first` on are there.
    pub(super) fn is_here(&self, first: u64, count: u64) -> bool {
        self.stretches(first, count).all(|stretch| stretch.here)
    }

    /// The sectors from `first` on, in runs.
    pub(super) fn stretches(&self, first: u64, count: u64) -> impl Iterator<Item = Stretch> + '_ {
        let end = first + count;
        let mut at = first;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let here = self.bit(at);
            let from = at;
            at = match self {
                Self::Full => end,
                Self::Some(bits) => end_of_run(bits, at, end, here),
            };
            Some(Stretch {
                first: from,
                count: at - from,
                here,
            })
        })
    }

    fn bit(&self, sector: u64) -> bool {
        match self {
            Self::Full => true,
            Self::Some(bits) => bits[to_usize(sector / 8)] & (0x80 >> (sector % 8)) != 0,
        }
    }

    /// The whole bitmap as it goes into the file.
    pub(super) fn encode(&self, shape: Shape) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(shape.bitmap_bytes)];
        match self {
            Self::Full => bytes[..to_usize(shape.block_bytes / SECTOR / 8)].fill(0xFF),
            Self::Some(bits) => bytes[..bits.len()].copy_from_slice(bits),
        }
        bytes
    }
}

/// The first sector from `at` on whose bit is not `here`. Bytes that are all the same are passed at once.
fn end_of_run(bits: &[u8], at: u64, end: u64, here: bool) -> u64 {
    let same = if here { 0xFF } else { 0 };
    let mut at = at;
    while at < end {
        let byte = bits[to_usize(at / 8)];
        if at.is_multiple_of(8) && byte == same {
            let whole = bits[to_usize(at / 8)..]
                .iter()
                .take_while(|byte| **byte == same);
            at += 8 * to_u64(whole.count());
        } else if (byte & (0x80 >> (at % 8)) != 0) == here {
            at += 1;
        } else {
            break;
        }
    }
    at.min(end)
}
