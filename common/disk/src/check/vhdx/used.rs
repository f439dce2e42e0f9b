//! Which MiB of the file are used: one bit for each.
//!
//! Does not know by whom: where two meet, the BAT is read again to tell.

use super::Span;
use crate::check::source::to_usize;
use crate::vhdx::layout::MIB;

pub(super) struct Used {
    words: Vec<u64>,
    /// Whole MiB in the file.
    file: u64,
    /// The same, with the one that the file's end cuts.
    end: u64,
}

impl Used {
    /// A file of `length` bytes, of which the first MiB is used.
    pub(super) fn new(length: u64) -> Self {
        let end = length.div_ceil(MIB);
        let mut used = Self {
            words: vec![0; to_usize(end.div_ceil(64))],
            file: length / MIB,
            end,
        };
        used.mark(Span {
            offset: 0,
            length: MIB,
        });
        used
    }

    /// Marks a range of whole MiB; what is after the file's end is left out. Gives out the first MiB of it
    /// that was used before.
    pub(super) fn mark(&mut self, span: Span) -> Option<u64> {
        let mut met = None;
        for mib in span.offset / MIB..(span.end() / MIB).min(self.end) {
            let (word, bit) = (&mut self.words[to_usize(mib / 64)], 1 << (mib % 64));
            if *word & bit != 0 {
                met = met.or(Some(mib));
            }
            *word |= bit;
        }
        met
    }

    /// MiB of the file that nobody uses: all, and those after the last used one.
    pub(super) fn leaked(&self) -> (u64, u64) {
        let is_used = |mib: u64| {
            let word = self.words.get(to_usize(mib / 64));
            word.is_some_and(|word| word >> (mib % 64) & 1 != 0)
        };
        let used: u64 = self
            .words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        // The last MiB may be used, and cut by the file's end.
        let cut = u64::from(is_used(self.file));
        let last = (0..self.end).rev().find(|mib| is_used(*mib));
        let at_end = self.file.saturating_sub(last.map_or(0, |last| last + 1));
        (self.file - (used - cut), at_end)
    }
}
