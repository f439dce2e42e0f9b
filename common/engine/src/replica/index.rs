//! Which change log has the newest bytes of each range of a disk.
//!
//! Receives the entries of change logs, oldest first; answers who has the newest version of a range.
//! Does not do: reading them.
//!
//! # Invariants
//! 1. Pieces do not overlap and are not empty.
//! 2. A later insert wins over an earlier one, byte by byte.

use std::collections::BTreeMap;

use sitepair_model::extent::Extent;

/// Where the bytes of a piece are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// In a change log: which one, and where in its file.
    Log { log: usize, file_offset: u64 },
    /// Nowhere: they are zeros.
    Zero,
}

impl Bytes {
    /// The place of the bytes `skip` further on.
    fn skipped(self, skip: u64) -> Self {
        match self {
            Self::Log { log, file_offset } => Self::Log {
                log,
                file_offset: file_offset + skip,
            },
            Self::Zero => Self::Zero,
        }
    }
}

/// A range of a disk with the place of its newest bytes; `None` is "not in any change log".
pub(super) type Piece = (Extent, Option<Bytes>);

/// Ranges of a disk, and where their newest bytes are.
#[derive(Debug, Default)]
pub(super) struct RangeIndex {
    /// From a piece's first byte to one past its last, and the place of its bytes.
    pieces: BTreeMap<u64, (u64, Bytes)>,
}

impl RangeIndex {
    /// Puts a range over what was there. The range must lie within a disk, so that its end fits.
    pub(super) fn insert(&mut self, extent: Extent, bytes: Bytes) {
        if extent.length == 0 {
            return;
        }
        let (start, end) = (extent.offset, extent.offset + extent.length);
        if let Some((&before, &(before_end, place))) = self.pieces.range(..start).next_back()
            && before_end > start
        {
            self.pieces.insert(before, (start, place));
            if before_end > end {
                self.pieces
                    .insert(end, (before_end, place.skipped(end - before)));
            }
        }
        while let Some((&covered, &(covered_end, place))) = self.pieces.range(start..end).next() {
            self.pieces.remove(&covered);
            if covered_end > end {
                self.pieces
                    .insert(end, (covered_end, place.skipped(end - covered)));
            }
        }
        self.pieces.insert(start, (end, bytes));
    }

    /// Visits `extent` in ascending pieces that cover it.
    pub(super) fn visit<E>(
        &self,
        extent: Extent,
        mut visit: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = extent.offset + extent.length;
        let mut at = extent.offset;
        if at == end {
            return Ok(());
        }
        let first = self
            .pieces
            .range(..=at)
            .next_back()
            .filter(|(_, (e, _))| *e > at)
            .map(|(s, _)| *s);
        for (&start, &(piece_end, place)) in self.pieces.range(first.unwrap_or(at)..end) {
            if start > at {
                visit((Extent::new(at, start - at), None))?;
                at = start;
            }
            let until = piece_end.min(end);
            visit((Extent::new(at, until - at), Some(place.skipped(at - start))))?;
            at = until;
        }
        if at < end {
            visit((Extent::new(at, end - at), None))
        } else {
            Ok(())
        }
    }

    /// All pieces, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Extent, Bytes)> {
        self.pieces
            .iter()
            .map(|(start, (end, bytes))| (Extent::new(*start, end - start), *bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A byte's place, as a model keeps it: the log and the byte's own offset there.
    fn place(bytes: Option<Bytes>, skip: u64) -> Option<(usize, u64)> {
        match bytes {
            None => None,
            Some(Bytes::Zero) => Some((usize::MAX, 0)),
            Some(Bytes::Log { log, file_offset }) => Some((log, file_offset + skip)),
        }
    }

    #[test]
    fn the_newest_insert_wins_byte_by_byte() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..200 {
            let mut index = RangeIndex::default();
            let mut model = [None; 64];
            for log in 0..usize::try_from(next(24)).unwrap() {
                let offset = next(64);
                let extent = Extent::new(offset, next(65 - offset));
                let bytes = match next(3) {
                    0 => Bytes::Zero,
                    _ => Bytes::Log {
                        log,
                        file_offset: next(1000),
                    },
                };
                index.insert(extent, bytes);
                for i in 0..extent.length {
                    model[usize::try_from(offset + i).unwrap()] = place(Some(bytes), i);
                }
            }
            let from = next(64);
            let window = Extent::new(from, next(65 - from));
            let mut at = window.offset;
            index
                .visit(window, |(extent, bytes)| {
                    assert_eq!(extent.offset, at, "pieces ascend without gaps");
                    assert!(extent.length > 0);
                    for i in 0..extent.length {
                        let byte = usize::try_from(extent.offset + i).unwrap();
                        assert_eq!(place(bytes, i), model[byte]);
                    }
                    at += extent.length;
                    Ok::<(), Infallible>(())
                })
                .unwrap();
            assert_eq!(at, window.offset + window.length);
        }
    }
}
