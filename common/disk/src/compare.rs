//! Comparing two images by content, whatever their formats.
//!
//! Receives two images; several threads read what either has data for, and nothing where both have holes. Where one
//! image is longer, its tail is compared with zeros.
//!
//! Does not do: judging. Whether a longer image with a tail of zeros is the same is the caller's to say.

use std::sync::{Mutex, PoisonError};

use crate::error::DiskError;
use crate::image::Image;
use crate::walk::{
    GRAIN_BYTES, Go, PIECE_BYTES, Progress, Runs, Stretch, is_zero, piece_length, share_out,
};

/// Most bytes of each image that a difference shows.
const SHOWN_BYTES: usize = 16;

/// A comparison that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The first image cannot be read.
    #[error("read the first image")]
    First(#[source] DiskError),
    /// The second image cannot be read.
    #[error("read the second image")]
    Second(#[source] DiskError),
    /// [`Progress::stop`] was called.
    #[error("stopped before the end")]
    Stopped,
}

/// What two images have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Size of the first image in bytes.
    pub first_bytes: u64,
    /// Size of the second image in bytes.
    pub second_bytes: u64,
    /// Where they differ first; `None` if they hold the same up to the shorter's end, and the rest of the longer one is
    /// zeros.
    pub difference: Option<Difference>,
}

/// The first place where two images differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of the first byte that differs.
    pub offset: u64,
    /// What the first image has from there: a few bytes, none past its end.
    pub first: Vec<u8>,
    /// What the second image has from there.
    pub second: Vec<u8>,
}

/// Compares two images by content.
///
/// # Errors
/// [`CompareError`]: nothing is known then.
pub fn compare(
    first: &dyn Image,
    second: &dyn Image,
    progress: &Progress,
) -> Result<Compared, CompareError> {
    let sizes = [first.geometry().size_bytes, second.geometry().size_bytes];
    let mut pieces = Pieces {
        sides: [Runs::new(first, sizes[0]), Runs::new(second, sizes[1])],
        progress,
    };
    let found: Mutex<Option<Difference>> = Mutex::new(None);
    share_out(
        || pieces.next(),
        Buffers::new,
        |buffers, piece| {
            let Some(difference) = buffers.compare(first, second, piece)? else {
                progress.add(piece.length);
                return Ok(Go::On);
            };
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            // Pieces before this one are with other threads, which look to their end.
            if found.as_ref().is_none_or(|f| difference.offset < f.offset) {
                *found = Some(difference);
            }
            Ok(Go::Enough)
        },
    )?;
    Ok(Compared {
        first_bytes: sizes[0],
        second_bytes: sizes[1],
        difference: found.into_inner().unwrap_or_else(PoisonError::into_inner),
    })
}

/// A range in which each side is of one kind.
#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    length: u64,
    sides: [Side; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Data,
    Zeros,
    /// The image is shorter.
    Ended,
}

struct Pieces<'a> {
    sides: [Runs<'a>; 2],
    progress: &'a Progress,
}

impl Pieces<'_> {
    /// The next range that at least one side has data for.
    fn next(&mut self) -> Result<Option<Piece>, CompareError> {
        loop {
            if self.progress.is_stopped() {
                return Err(CompareError::Stopped);
            }
            let [first, second] = &mut self.sides;
            let heads = [
                first.peek().map_err(CompareError::First)?,
                second.peek().map_err(CompareError::Second)?,
            ];
            let Some(offset) = heads.iter().flatten().map(|run| run.offset).min() else {
                return Ok(None);
            };
            let sides = heads.map(side);
            let has_data = sides.contains(&Side::Data);
            let shortest = heads.iter().flatten().map(|run| run.length).min();
            let most = if has_data {
                piece_length(offset)
            } else {
                u64::MAX
            };
            let length = shortest.unwrap_or(0).min(most);
            first.take(length).map_err(CompareError::First)?;
            second.take(length).map_err(CompareError::Second)?;
            if has_data {
                return Ok(Some(Piece {
                    offset,
                    length,
                    sides,
                }));
            }
            self.progress.add(length);
        }
    }
}

fn side(run: Option<Stretch>) -> Side {
    match run {
        None => Side::Ended,
        Some(run) if run.is_data => Side::Data,
        Some(_) => Side::Zeros,
    }
}

struct Buffers([Vec<u8>; 2]);

impl Buffers {
    fn new() -> Self {
        let bytes = usize::try_from(PIECE_BYTES).expect("a piece fits memory");
        Self([vec![0; bytes], vec![0; bytes]])
    }

    fn compare(
        &mut self,
        first: &dyn Image,
        second: &dyn Image,
        piece: Piece,
    ) -> Result<Option<Difference>, CompareError> {
        let length = usize::try_from(piece.length).expect("a piece fits memory");
        let [a, b] = &mut self.0;
        let (a, b) = (&mut a[..length], &mut b[..length]);
        let offset = piece.offset;
        match piece.sides {
            [Side::Data, Side::Data] => {
                first.read_at(a, offset).map_err(CompareError::First)?;
                second.read_at(b, offset).map_err(CompareError::Second)?;
            }
            [Side::Data, _] => {
                first.read_at(a, offset).map_err(CompareError::First)?;
                if is_zero(a) {
                    return Ok(None);
                }
                b.fill(0);
            }
            [_, Side::Data] => {
                second.read_at(b, offset).map_err(CompareError::Second)?;
                if is_zero(b) {
                    return Ok(None);
                }
                a.fill(0);
            }
            [Side::Zeros | Side::Ended, Side::Zeros | Side::Ended] => return Ok(None),
        }
        let shown = |side, bytes: &[u8], at: usize| match side {
            Side::Ended => Vec::new(),
            Side::Data | Side::Zeros => bytes[at..].iter().copied().take(SHOWN_BYTES).collect(),
        };
        Ok(first_difference(a, b).map(|at| Difference {
            offset: offset + at as u64,
            first: shown(piece.sides[0], a, at),
            second: shown(piece.sides[1], b, at),
        }))
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let grains = a.chunks(GRAIN_BYTES).zip(b.chunks(GRAIN_BYTES));
    let (index, (a, b)) = grains.enumerate().find(|(_, (a, b))| a != b)?;
    let within = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(index * GRAIN_BYTES + within)
}

#[cfg(test)]
mod tests;
