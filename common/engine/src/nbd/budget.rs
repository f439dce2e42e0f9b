//! Memory for payloads, charged before it is allocated.
//!
//! Owns: counters of bytes, and buffers that are charged to them. Does not do: fairness among those
//! who wait; every holder gives back within a bounded time.
//!
//! # Invariants
//! 1. A buffer's bytes are charged for as long as they are allocated. A first small step is not:
//!    the number of threads bounds it, and a reply without data never has to wait.
//! 2. Nobody waits while holding: a thread gives all its charged bytes back before it asks for more.
//! 3. Buffers that idle threads keep are together at most a quarter of a budget, so the largest
//!    request always fits in the end.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Buffers grow in steps of this. The first one is neither charged nor given back between requests.
pub(super) const STEP_BYTES: usize = 64 << 10;
/// A buffer above this size is never kept.
const KEEP_BYTES_MAX: usize = 4 << 20;

/// A number of bytes that may be in use at once.
#[derive(Debug)]
pub(super) struct Budget {
    total: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Waits until `bytes` are free, and takes them.
    fn take(&self, bytes: usize) {
        assert!(bytes <= self.total, "a request above the whole budget");
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = self
            .freed
            .wait_while(used, |used| self.total - *used < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *used += bytes;
    }

    fn give(&self, bytes: usize) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
        self.freed.notify_all();
    }

    fn is_relaxed(&self) -> bool {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) <= self.total / 4
    }
}

/// The budgets that a connection's payloads are charged to: its socket's share, then the process's.
#[derive(Debug, Clone)]
pub(super) struct Budgets {
    pub(super) socket: Arc<Budget>,
    pub(super) process: Arc<Budget>,
}

/// Bytes that a thread uses again from request to request.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    budgets: Budgets,
}

impl Buffer {
    pub(super) fn new(budgets: Budgets) -> Self {
        Self {
            bytes: Vec::new(),
            budgets,
        }
    }

    /// At least `length` bytes; their content is arbitrary. Where this buffer has to grow, it forgets
    /// its content, gives back what `other` of the same thread holds, and may wait.
    pub(super) fn at_least(&mut self, length: usize, other: &mut Self) -> &mut [u8] {
        if self.bytes.len() < length {
            let size = length.next_multiple_of(STEP_BYTES);
            self.release();
            if size > STEP_BYTES {
                // Before waiting: invariant 2.
                other.release();
                self.budgets.socket.take(size);
                self.budgets.process.take(size);
            }
            self.bytes = vec![0; size];
        }
        &mut self.bytes
    }

    /// How many bytes there are without waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Gives large memory back where it is scarce.
    pub(super) fn settle(&mut self) {
        let keep = self.bytes.len() <= STEP_BYTES
            || (self.bytes.len() <= KEEP_BYTES_MAX
                && self.budgets.socket.is_relaxed()
                && self.budgets.process.is_relaxed());
        if !keep {
            self.release();
        }
    }

    /// Gives all memory back.
    pub(super) fn release(&mut self) {
        let size = self.bytes.len();
        self.bytes = Vec::new();
        if size > STEP_BYTES {
            self.budgets.process.give(size);
            self.budgets.socket.give(size);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(total: usize) -> Budgets {
        Budgets {
            socket: Arc::new(Budget::new(total)),
            process: Arc::new(Budget::new(total)),
        }
    }

    #[test]
    fn a_buffer_is_charged_while_it_lives_and_its_first_step_never() {
        let budgets = budgets(1 << 20);
        let (mut buffer, mut other) = (Buffer::new(budgets.clone()), Buffer::new(budgets.clone()));
        assert_eq!(buffer.at_least(1, &mut other).len(), STEP_BYTES);
        assert_eq!(*budgets.process.used.lock().unwrap(), 0);
        buffer.at_least(STEP_BYTES + 1, &mut other);
        assert_eq!(*budgets.socket.used.lock().unwrap(), 2 * STEP_BYTES);
        drop(buffer);
        assert_eq!(*budgets.process.used.lock().unwrap(), 0);
        assert_eq!(*budgets.socket.used.lock().unwrap(), 0);
    }

    #[test]
    fn large_buffers_are_kept_only_while_memory_is_plenty() {
        let budgets = budgets(1 << 20);
        let mut none = Buffer::new(budgets.clone());
        let mut first = Buffer::new(budgets.clone());
        first.at_least(256 << 10, &mut none);
        first.settle();
        assert_eq!(first.len(), 256 << 10);
        let mut second = Buffer::new(budgets);
        second.at_least(128 << 10, &mut none);
        first.settle();
        assert_eq!(first.len(), 0);
    }

    #[test]
    fn a_thread_that_waits_holds_nothing() {
        let budgets = budgets(128 << 10);
        let (mut first, mut second) = (Buffer::new(budgets.clone()), Buffer::new(budgets));
        first.at_least(128 << 10, &mut second);
        // Would wait forever if the first kept its bytes.
        assert_eq!(second.at_least(128 << 10, &mut first).len(), 128 << 10);
        assert_eq!(first.len(), 0);
    }

    #[test]
    fn who_asks_for_more_than_is_free_waits_for_others() {
        let budgets = budgets(128 << 10);
        let mut none = Buffer::new(budgets.clone());
        let mut first = Buffer::new(budgets.clone());
        first.at_least(128 << 10, &mut none);
        let waiting = std::thread::spawn(move || {
            Buffer::new(budgets.clone())
                .at_least(65 << 10, &mut Buffer::new(budgets))
                .len()
        });
        assert!(!waiting.is_finished());
        first.release();
        assert_eq!(waiting.join().unwrap(), 2 * STEP_BYTES);
    }
}
