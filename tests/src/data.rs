//! Content like that of real disks, the same for the same seed.
//!
//! Real disks are part empty, part text and tables that compress, part media and archives that do
//! not. The mix is per block, so that zero detection and compression both get their share.

/// Unit of the mix: one block is of one kind.
pub const BLOCK_BYTES: usize = 4096;

/// A small, fast generator of pseudo-random numbers (splitmix64). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Fills `buf` with bytes that do not compress.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Words of the text-like blocks.
const WORDS: [&[u8]; 16] = [
    b"the ", b"order ", b"of ", b"writes ", b"is ", b"kept ", b"across ", b"disks ", b"and ",
    b"name=", b"value;", b"0x00ff ", b"INSERT ", b"INTO ", b"table ", b"\r\n",
];

/// Fills `buf` with words; compresses about as well as logs and tables do.
pub fn fill_text(random: &mut Random, buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        let word = WORDS[usize::try_from(random.below(16)).expect("below 16")];
        let n = word.len().min(buf.len() - at);
        buf[at..at + n].copy_from_slice(&word[..n]);
        at += n;
    }
}

/// Fills `buf` with the content of a mixed disk at `offset`, which must be a multiple of
/// [`BLOCK_BYTES`]: a quarter zeros, half text, a quarter random. Depends on `seed` and offset only.
pub fn fill_mixed(seed: u64, offset: u64, buf: &mut [u8]) {
    assert_eq!(
        offset % BLOCK_BYTES as u64,
        0,
        "mixed content is made block by block"
    );
    for (block, at) in buf
        .chunks_mut(BLOCK_BYTES)
        .zip((offset..).step_by(BLOCK_BYTES))
    {
        let mut random = Random::new(seed ^ at.rotate_left(17));
        match random.below(4) {
            0 => block.fill(0),
            1 => random.fill(block),
            _ => fill_text(&mut random, block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_content_depends_on_seed_and_place_only() {
        let mut whole = vec![0; 16 * BLOCK_BYTES];
        fill_mixed(7, 0, &mut whole);
        let mut part = vec![1; 4 * BLOCK_BYTES];
        fill_mixed(7, 8 * BLOCK_BYTES as u64, &mut part);
        assert_eq!(part, whole[8 * BLOCK_BYTES..12 * BLOCK_BYTES]);
        fill_mixed(8, 8 * BLOCK_BYTES as u64, &mut part);
        assert_ne!(part, whole[8 * BLOCK_BYTES..12 * BLOCK_BYTES]);
    }

    #[test]
    fn mixed_content_has_zeros_text_and_noise() {
        let mut buf = vec![0; 400 * BLOCK_BYTES];
        fill_mixed(1, 0, &mut buf);
        let blocks = || buf.chunks(BLOCK_BYTES);
        let zeros = blocks().filter(|b| b.iter().all(|&x| x == 0)).count();
        let text = blocks()
            .filter(|b| b[0] != 0 && b.iter().all(u8::is_ascii))
            .count();
        assert!((50..150).contains(&zeros), "{zeros} blocks of zeros");
        assert!((150..250).contains(&text), "{text} blocks of text");
        assert!((50..150).contains(&(400 - zeros - text)));
    }
}
