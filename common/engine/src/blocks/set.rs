//! A set of numbers below a fixed bound, as a bitmap of three levels.
//!
//! Owns: pages of 32,768 bits, allocated when their first bit is set. An empty set for a disk of
//! 64 TiB takes 24 KiB; work is proportional to the pages that were ever touched.
//! Gives out: atomic changes from many threads, and runs in ascending order.
//!
//! Does not do: locking between several numbers. A reader that races with a writer sees each bit
//! before or after; all operations on bits are sequentially consistent, which the change map
//! relies on when it cools a zone.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

const WORD_BITS: u64 = 64;
const PAGE_WORDS: usize = 512;
const PAGE_BITS: u64 = 32_768;
const MIDDLE_PAGES: usize = 512;
const MIDDLE_BITS: u64 = 16_777_216;

type Page = [AtomicU64; PAGE_WORDS];
type Middle = [OnceLock<Box<Page>>; MIDDLE_PAGES];

/// A set of block numbers (or of any other numbers from 0).
pub(crate) struct BlockSet {
    length: u64,
    root: Box<[OnceLock<Box<Middle>>]>,
    count: AtomicI64,
}

impl BlockSet {
    /// An empty set of numbers below `length`.
    pub(crate) fn new(length: u64) -> Self {
        let roots = (0..length.div_ceil(MIDDLE_BITS))
            .map(|_| OnceLock::new())
            .collect();
        Self {
            length,
            root: roots,
            count: AtomicI64::new(0),
        }
    }

    /// All members are below this.
    pub(crate) fn bound(&self) -> u64 {
        self.length
    }

    /// How many numbers are in the set; approximate while others change it.
    pub(crate) fn count(&self) -> u64 {
        u64::try_from(self.count.load(SeqCst)).unwrap_or(0)
    }

    /// Adds `[first, end)`.
    pub(crate) fn insert_range(&self, first: u64, end: u64) {
        assert!(
            end <= self.length,
            "a block set holds only blocks of its disk"
        );
        for_each_word(first, end, |word, mask| {
            let cell = &self.page_or_new(word * WORD_BITS)[word_in_page(word)];
            if cell.load(SeqCst) & mask != mask {
                let before = cell.fetch_or(mask, SeqCst);
                self.count
                    .fetch_add(i64::from((mask & !before).count_ones()), SeqCst);
            }
        });
    }

    /// Takes `[first, end)` out.
    pub(crate) fn remove_range(&self, first: u64, end: u64) {
        for_each_word(first, end.min(self.length), |word, mask| {
            if let Some(page) = self.page(word * WORD_BITS) {
                let before = page[word_in_page(word)].fetch_and(!mask, SeqCst);
                self.count
                    .fetch_sub(i64::from((mask & before).count_ones()), SeqCst);
            }
        });
    }

    /// Whether `number` is in the set.
    #[cfg(test)]
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.next_set(number, number + 1).is_some()
    }

    /// The first member of `[from, end)`.
    pub(crate) fn next_set(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min(self.length);
        let mut at = from;
        while at < end {
            let Some(middle) = self.root[index(at / MIDDLE_BITS)].get() else {
                at = (at / MIDDLE_BITS + 1) * MIDDLE_BITS;
                continue;
            };
            let Some(page) = middle[index(at % MIDDLE_BITS / PAGE_BITS)].get() else {
                at = (at / PAGE_BITS + 1) * PAGE_BITS;
                continue;
            };
            let page_end = (at / PAGE_BITS + 1) * PAGE_BITS;
            if let Some(found) = first_in_page(page, at, page_end.min(end), 0) {
                return Some(found);
            }
            at = page_end;
        }
        None
    }

    /// The first number of `[from, end)` that is not a member, or `end`.
    fn next_clear(&self, from: u64, end: u64) -> u64 {
        let mut at = from;
        while at < end {
            let Some(page) = self.page(at) else { return at };
            let page_end = (at / PAGE_BITS + 1) * PAGE_BITS;
            if let Some(found) = first_in_page(page, at, page_end.min(end), u64::MAX) {
                return found;
            }
            at = page_end;
        }
        end
    }

    /// The first run of members in `[from, end)`, cut at `longest` numbers.
    pub(crate) fn next_run(&self, from: u64, end: u64, longest: u64) -> Option<Range<u64>> {
        let end = end.min(self.length);
        let first = self.next_set(from, end)?;
        Some(first..self.next_clear(first, end.min(first.saturating_add(longest))))
    }

    /// Empties the set. Its pages stay for the next content.
    pub(crate) fn clear(&self) {
        self.for_each_touched(|_, page| {
            for cell in page {
                let before = cell.swap(0, SeqCst);
                self.count.fetch_sub(i64::from(before.count_ones()), SeqCst);
            }
        });
    }

    /// Adds all of `other`.
    pub(crate) fn absorb(&self, other: &Self) {
        other.for_each_touched(|first, page| {
            for (bits, at) in page
                .iter()
                .map(|c| c.load(SeqCst))
                .zip((first..).step_by(64))
            {
                if bits != 0 {
                    let cell = &self.page_or_new(at)[word_in_page(at / WORD_BITS)];
                    let before = cell.fetch_or(bits, SeqCst);
                    self.count
                        .fetch_add(i64::from((bits & !before).count_ones()), SeqCst);
                }
            }
        });
    }

    fn for_each_touched(&self, mut visit: impl FnMut(u64, &Page)) {
        for (middle, base) in self.root.iter().zip((0..).step_by(MIDDLE_PAGES * 32_768)) {
            for (page, offset) in middle.get().into_iter().flat_map(|m| m.iter()).zip(0u64..) {
                if let Some(page) = page.get() {
                    visit(base + offset * PAGE_BITS, page);
                }
            }
        }
    }

    fn page(&self, number: u64) -> Option<&Page> {
        let middle = self.root.get(index(number / MIDDLE_BITS))?.get()?;
        middle[index(number % MIDDLE_BITS / PAGE_BITS)]
            .get()
            .map(|page| &**page)
    }

    fn page_or_new(&self, number: u64) -> &Page {
        let middle = self.root[index(number / MIDDLE_BITS)]
            .get_or_init(|| Box::new([const { OnceLock::new() }; MIDDLE_PAGES]));
        middle[index(number % MIDDLE_BITS / PAGE_BITS)]
            .get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE_WORDS]))
    }
}

/// The first bit of `[from, end)`, all within one page, that differs from those of `skip`.
fn first_in_page(page: &Page, from: u64, end: u64, skip: u64) -> Option<u64> {
    let mut at = from;
    while at < end {
        let bits = page[word_in_page(at / WORD_BITS)].load(SeqCst) ^ skip;
        let left = bits >> (at % WORD_BITS);
        if left != 0 {
            let found = at + u64::from(left.trailing_zeros());
            return (found < end).then_some(found);
        }
        at = (at / WORD_BITS + 1) * WORD_BITS;
    }
    None
}

fn for_each_word(first: u64, end: u64, mut visit: impl FnMut(u64, u64)) {
    let mut at = first;
    while at < end {
        let stop = end.min((at / WORD_BITS + 1) * WORD_BITS);
        let ones = u64::MAX >> (WORD_BITS - (stop - at));
        visit(at / WORD_BITS, ones << (at % WORD_BITS));
        at = stop;
    }
}

fn word_in_page(word: u64) -> usize {
    index(word) % PAGE_WORDS
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("an index of a table that is in memory fits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_agrees_with_a_simple_one() {
        let length = MIDDLE_BITS + 3 * PAGE_BITS + 17;
        let set = BlockSet::new(length);
        let mut model = BTreeSet::new();
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..400 {
            let near = [0, PAGE_BITS - 40, MIDDLE_BITS - 60, length - 200][index(random(4))];
            let first = near + random(150);
            let end = (first + random(200)).min(length).max(first);
            if random(3) == 0 {
                set.remove_range(first, end);
                model.retain(|n| !(first..end).contains(n));
            } else {
                set.insert_range(first, end);
                model.extend(first..end);
            }
        }
        let mut found = BTreeSet::new();
        let mut at = 0;
        while let Some(run) = set.next_run(at, length, 37) {
            assert!(run.end - run.start <= 37);
            at = run.end;
            found.extend(run);
        }
        assert_eq!(found, model);
        assert_eq!(set.count(), u64::try_from(model.len()).unwrap());

        let other = BlockSet::new(length);
        other.insert_range(5, 9);
        other.absorb(&set);
        assert!(other.contains(5));
        assert!(model.iter().all(|n| other.contains(*n)));
        other.clear();
        assert_eq!((other.count(), other.next_set(0, length)), (0, None));
    }

    #[test]
    fn threads_lose_no_bit() {
        let set = BlockSet::new(100_000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let set = &set;
                scope.spawn(move || {
                    (0..25_000).for_each(|n| set.insert_range(n * 4 + thread, n * 4 + thread + 1))
                });
            }
        });
        assert_eq!(set.count(), 100_000);
        assert_eq!(set.next_run(0, 100_000, u64::MAX), Some(0..100_000));
    }
}
