//! The gate before the guest's requests: the right to serve, as something that can be taken back.
//!
//! Owns: one counter of requests in flight, and whether new ones are let in.
//!
//! Does not do: decide. The group's state machine says when the gate opens and closes.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sitepair_disk::DiskError;
use tokio::sync::Notify;

const CLOSED: u64 = 1 << 63;

/// Closed when made.
pub(super) struct Gate {
    state: AtomicU64,
    left: Notify,
}

/// One request's stay behind the gate.
pub(super) struct Permit<'a>(&'a Gate);

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(CLOSED),
            left: Notify::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.load(SeqCst) & CLOSED == 0
    }

    /// Lets one request in.
    pub(super) fn enter(&self) -> Result<Permit<'_>, DiskError> {
        let before = self.state.fetch_add(1, SeqCst);
        let permit = Permit(self);
        if before & CLOSED == 0 {
            Ok(permit)
        } else {
            Err(refused())
        }
    }

    /// Refuses without letting in, for requests that change nothing.
    pub(super) fn check(&self) -> Result<(), DiskError> {
        if self.is_open() {
            Ok(())
        } else {
            Err(refused())
        }
    }

    pub(super) fn open(&self) {
        self.state.fetch_and(!CLOSED, SeqCst);
    }

    /// Refuses new requests, and waits for those in flight.
    pub(super) async fn close_and_drain(&self) {
        self.state.fetch_or(CLOSED, SeqCst);
        loop {
            let mut left = pin!(self.left.notified());
            left.as_mut().enable();
            if self.state.load(SeqCst) & !CLOSED == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, SeqCst) == CLOSED | 1 {
            self.0.left.notify_waiters();
        }
    }
}

fn refused() -> DiskError {
    DiskError::Closed {
        why: "this site does not serve the group's guest now",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_gate_refuses_and_waits_for_those_inside() {
        let gate = Gate::new();
        assert!(gate.enter().is_err());
        gate.open();
        let inside = gate.enter().unwrap();
        let mut closing = pin!(gate.close_and_drain());
        assert!(futures_poll_once(closing.as_mut()).await.is_none());
        assert!(gate.enter().is_err());
        assert!(gate.check().is_err());
        drop(inside);
        closing.await;
    }

    async fn futures_poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
