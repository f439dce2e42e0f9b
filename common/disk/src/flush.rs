//! Flushes that callers share.
//!
//! Owns: [`Sequencer`], which lets concurrent flushes share a round. Receives the work of a round from the format.
//!
//! Does not do: writing, syncing, or knowing what a round makes durable.
//!
//! # Invariants
//! 1. A flush returns well only after a round that began after the call, and that went well.
//! 2. One round runs at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::DiskError;
use crate::poison::Poison;

/// A panic elsewhere does not change what the lock protects; poisoning is by [`Poison`] only.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets concurrent flushes share one.
#[derive(Default)]
pub(crate) struct Sequencer {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Default)]
struct Rounds {
    begun: u64,
    ended: u64,
}

impl Sequencer {
    /// Returns after a `round` that began after the call, ours or another's. A round that fails must set
    /// `poison`: it is how those who waited for it learn of that.
    pub(crate) fn flush(
        &self,
        poison: &Poison,
        round: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut rounds = lock(&self.rounds);
        // A round that has begun may have missed our writes; the next one has them.
        let needed = rounds.begun + 1;
        loop {
            poison.check()?;
            if rounds.ended >= needed {
                return Ok(());
            }
            if rounds.begun == rounds.ended {
                rounds.begun += 1;
                drop(rounds);
                let result = round();
                lock(&self.rounds).ended += 1;
                self.ended.notify_all();
                return result;
            }
            rounds = self
                .ended
                .wait(rounds)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// How many rounds there were, and what the flushes answered: one, and some that came while it ran.
    fn flushes_that_come_during_a_round(fails: bool) -> (u64, Vec<Result<(), DiskError>>) {
        const LATE: usize = 4;
        let (sequencer, poison) = (Sequencer::default(), Poison::default());
        let made = AtomicU64::new(0);
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let results = thread::scope(|scope| {
            let (sequencer, poison, made) = (&sequencer, &poison, &made);
            let first = scope.spawn(move || {
                sequencer.flush(poison, || {
                    made.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                    if fails {
                        return Err(poison.set("sync".to_owned(), io::Error::other("bad")));
                    }
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let (started, has_started) = mpsc::channel();
            let late: Vec<_> = (0..LATE)
                .map(|_| {
                    let started = started.clone();
                    scope.spawn(move || {
                        started.send(()).unwrap();
                        sequencer.flush(poison, || {
                            made.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            for _ in 0..LATE {
                has_started.recv().unwrap();
            }
            assert_eq!(made.load(Ordering::SeqCst), 1, "invariant 2");
            end.send(()).unwrap();
            let all = std::iter::once(first).chain(late);
            all.map(|flush| flush.join().unwrap()).collect()
        });
        (made.load(Ordering::SeqCst), results)
    }

    #[test]
    fn flushes_that_come_during_a_round_have_one_after_it() {
        let (made, results) = flushes_that_come_during_a_round(false);
        assert!(results.iter().all(Result::is_ok));
        // The first round cannot serve them; how many of them share depends on the threads.
        assert!((2..=5).contains(&made), "{made} rounds");
    }

    #[test]
    fn nobody_is_served_by_a_round_that_failed() {
        let (made, results) = flushes_that_come_during_a_round(true);
        assert!(results.iter().all(Result::is_err));
        assert_eq!(made, 1, "nothing is tried again");
    }
}
