//! The group's clock of cycles: stamps guest writes, and cuts without stopping them.
//!
//! Owns: one tick counter, and for each parity of it the number of writes in flight.
//! Gives out: [`Stamp`]s to writes, and at a cut the wait for those stamped before it.
//!
//! Does not do: cycle numbers. Ticks count cuts of this process's life; the group maps them to
//! cycles.
//!
//! # Invariants
//! 1. Stamps taken later are never lower.
//! 2. Once [`CycleClock::drained`] returned for a tick, no write stamped with it is in flight.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::Notify;

/// Counts cuts, and the writes between them.
pub(super) struct CycleClock {
    tick: AtomicU64,
    in_flight: [AtomicU64; 2],
    left: Notify,
}

/// The right of one write to go on within a cycle; the cycle is not complete before it is dropped.
pub(super) struct Stamp<'a> {
    clock: &'a CycleClock,
    tick: u64,
}

impl CycleClock {
    pub(super) fn new() -> Self {
        Self {
            tick: AtomicU64::new(1),
            in_flight: [const { AtomicU64::new(0) }; 2],
            left: Notify::new(),
        }
    }

    /// The tick that writes are stamped with now.
    pub(super) fn now(&self) -> u64 {
        self.tick.load(SeqCst)
    }

    /// Stamps a write. Taken once the write holds its range lock: otherwise a write stamped later
    /// could reach the same block first, and be sent with the earlier cycle.
    pub(super) fn enter(&self) -> Stamp<'_> {
        loop {
            let tick = self.now();
            self.in_flight[parity(tick)].fetch_add(1, SeqCst);
            // Still the same tick: whoever cuts from here on sees us in flight (invariant 2).
            if self.now() == tick {
                return Stamp { clock: self, tick };
            }
            self.leave(tick);
        }
    }

    /// Ends the current tick and returns it. Never waits: later writes go on under the next one.
    pub(super) fn cut(&self) -> u64 {
        self.tick.fetch_add(1, SeqCst)
    }

    /// Waits until the writes stamped with `tick`, which has been cut, are done.
    pub(super) async fn drained(&self, tick: u64) {
        loop {
            let mut left = pin!(self.left.notified());
            left.as_mut().enable();
            if self.in_flight[parity(tick)].load(SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }

    fn leave(&self, tick: u64) {
        let before = self.in_flight[parity(tick)].fetch_sub(1, SeqCst);
        assert!(before > 0, "a stamp is given back once");
        if before == 1 && self.now() != tick {
            self.left.notify_waiters();
        }
    }
}

impl Stamp<'_> {
    /// The tick it was taken in.
    pub(super) fn tick(&self) -> u64 {
        self.tick
    }
}

impl Drop for Stamp<'_> {
    fn drop(&mut self) {
        self.clock.leave(self.tick);
    }
}

/// Which of two alternating places belongs to a tick.
pub(super) fn parity(tick: u64) -> usize {
    usize::from(tick & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_cut_waits_for_earlier_writes_and_not_for_later_ones() {
        let clock = CycleClock::new();
        let early = clock.enter();
        let cut = clock.cut();
        assert_eq!(early.tick(), cut);
        let late = clock.enter();
        assert_eq!(late.tick(), cut + 1);
        let wait = Duration::from_secs(1);
        assert!(
            tokio::time::timeout(wait, clock.drained(cut))
                .await
                .is_err()
        );
        drop(early);
        tokio::time::timeout(wait, clock.drained(cut))
            .await
            .expect("only a later write is left");
        drop(late);
    }
}
