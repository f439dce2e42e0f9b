//! Mutations without coverage: for machines that have no libFuzzer, and for the normal tests.
//!
//! Everything follows from a seed and a number, so that a finding can be made again from these two.

/// Longest input that mutations make.
const INPUT_BYTES_MAX: usize = 256 << 10;
const MUTATIONS_MAX: u64 = 6;
/// Numbers at which parsers break.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    127,
    128,
    255,
    511,
    512,
    4096,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX,
];

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Of the run with number `run` of a seed.
    #[must_use]
    pub fn new(seed: u64, run: u64) -> Self {
        Self(seed ^ run.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

/// An input made from one of `corpus`, or from two.
///
/// # Panics
/// On an empty corpus.
#[must_use]
pub fn mutated(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = corpus[rng.below(corpus.len())].clone();
    for _ in 0..=rng.number() % MUTATIONS_MAX {
        mutate(&mut input, corpus, rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    if input.is_empty() {
        input.push(rng.byte());
    }
    let at = rng.below(input.len());
    let room = input.len() - at;
    match rng.below(8) {
        0 => input[at] ^= 1 << rng.below(8),
        1 => input[at] = rng.byte(),
        2 | 3 => {
            let width = [1, 2, 4, 8][rng.below(4)].min(room);
            let mut number = NUMBERS[rng.below(NUMBERS.len())];
            if rng.below(2) == 0 {
                number = number.wrapping_add(rng.number() % 5).wrapping_sub(2);
            }
            let bytes = if rng.below(4) == 0 {
                number.to_be_bytes()
            } else {
                number.to_le_bytes()
            };
            input[at..at + width].copy_from_slice(&bytes[..width]);
        }
        4 => {
            // A piece of the same input elsewhere: one structure for another.
            let from = rng.below(input.len());
            let length = (1 + rng.below(64)).min(room).min(input.len() - from);
            input.copy_within(from..from + length, at);
        }
        5 => {
            let length = (1 + rng.below(32)).min(room);
            input.drain(at..at + length);
        }
        6 => {
            let bytes: Vec<u8> = (0..1 + rng.below(32)).map(|_| rng.byte()).collect();
            input.splice(at..at, bytes);
        }
        _ => {
            let other = &corpus[rng.below(corpus.len())];
            if !other.is_empty() {
                let from = rng.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}
