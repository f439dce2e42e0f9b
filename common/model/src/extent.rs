//! Ranges of a disk, in bytes and in blocks.

/// Bytes in one block: the unit of tracking.
pub const BLOCK_BYTES: u64 = 4096;

/// A range of a disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Extent {
    /// A range of `length` bytes at `offset`.
    #[must_use]
    pub const fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }

    /// First byte after the range, or `None` when it does not fit 64 bits.
    #[must_use]
    pub const fn checked_end(self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }

    /// Whether the range lies within a disk of `size` bytes.
    #[must_use]
    pub const fn fits(self, size: u64) -> bool {
        match self.checked_end() {
            Some(end) => end <= size,
            None => false,
        }
    }

    /// The blocks that the range touches, wholly or in part: first, and one past the last.
    #[must_use]
    pub const fn blocks(self) -> (u64, u64) {
        if self.length == 0 {
            return (self.offset / BLOCK_BYTES, self.offset / BLOCK_BYTES);
        }
        (
            self.offset / BLOCK_BYTES,
            (self.offset + (self.length - 1)) / BLOCK_BYTES + 1,
        )
    }
}

/// Number of blocks on a disk of `size_bytes`; the last one may be short.
#[must_use]
pub const fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_touches_every_block_it_has_a_byte_in() {
        assert_eq!(Extent::new(0, 0).blocks(), (0, 0));
        assert_eq!(Extent::new(0, 1).blocks(), (0, 1));
        assert_eq!(Extent::new(4095, 2).blocks(), (0, 2));
        assert_eq!(Extent::new(512, 512).blocks(), (0, 1));
        assert_eq!(
            Extent::new(u64::MAX - 4095, 4096).blocks(),
            (u64::MAX / 4096, u64::MAX / 4096 + 1)
        );
        assert!(!Extent::new(u64::MAX, 1).fits(u64::MAX));
    }
}
