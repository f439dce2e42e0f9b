//! Locks on ranges of blocks: overlapping writes go one after the other, in the order they came.
//!
//! Owns: the list of ranges that are held or asked for. First come, first served, so that the
//! sender is not starved by a guest that writes one block again and again.
//!
//! Does not do: reads. A guest that reads what it is writing gets either.

use std::sync::{Condvar, Mutex};

use crate::locked;

/// The ranges of one disk that somebody is writing.
#[derive(Default)]
pub(crate) struct RangeLocks {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
    waiting: usize,
    /// In the order of arrival: one holds its range when nothing before it overlaps.
    entries: Vec<Entry>,
}

struct Entry {
    ticket: u64,
    first: u64,
    end: u64,
}

/// A held range.
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// Waits until nobody who came earlier holds or wants a block of `[first, end)`.
    pub(crate) fn lock(&self, first: u64, end: u64) -> RangeGuard<'_> {
        let mut state = locked(&self.state);
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.entries.push(Entry { ticket, first, end });
        while state.is_behind(ticket, first, end) {
            state.waiting += 1;
            state = self
                .released
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            state.waiting -= 1;
        }
        RangeGuard {
            locks: self,
            ticket,
        }
    }
}

impl State {
    fn is_behind(&self, ticket: u64, first: u64, end: u64) -> bool {
        self.entries
            .iter()
            .take_while(|e| e.ticket != ticket)
            .any(|e| e.first < end && first < e.end)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.locks.state);
        state.entries.retain(|e| e.ticket != self.ticket);
        let somebody_waits = state.waiting > 0;
        drop(state);
        // Waking costs a system call even when nobody listens.
        if somebody_waits {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[test]
    fn overlapping_ranges_exclude_each_other() {
        let locks = RangeLocks::default();
        let busy: Vec<AtomicBool> = (0..16).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (locks, busy) = (&locks, &busy);
                scope.spawn(move || {
                    for round in 0..2000usize {
                        let first = (round * 7 + thread * 3) % 12;
                        let guard = locks.lock(first as u64, first as u64 + 4);
                        for cell in &busy[first..first + 4] {
                            assert!(!cell.swap(true, SeqCst), "two hold one block");
                        }
                        for cell in &busy[first..first + 4] {
                            cell.store(false, SeqCst);
                        }
                        drop(guard);
                    }
                });
            }
        });
        assert!(locked(&locks.state).entries.is_empty());
    }
}
