//! The connections of one export: who is let in, who is counted, how all of them end.
//!
//! # Invariants
//! 1. After `closing` is set no connection is added; both happen under one lock.
//! 2. A connection's thread moves its own join handle to `finished` as its last act, so that
//!    joining it never waits for a client.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sitepair_disk::Image;
use sitepair_model::nbd::{ExportFacts, Session};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::budget::{Budget, Budgets};
use super::connection::Connection;
use super::handshake::{self, Start};
use super::{Disconnect, Export, GRACE, NbdServer};

/// An export's share of the process's payload memory: one in this many, so that a single guest
/// cannot starve the others.
const SHARE: usize = 4;

/// One export behind a unix socket, or by its name behind the TLS port.
pub(super) struct Listener {
    facts: ExportFacts,
    image: Arc<dyn Image>,
    pub(super) budgets: Budgets,
    /// Threads beyond the first of each connection, in the whole process.
    pub(super) followers: Arc<AtomicUsize>,
    connections_max: usize,
    closing: AtomicBool,
    closed: CancellationToken,
    live: Mutex<Live>,
    changed: Condvar,
}

#[derive(Default)]
struct Live {
    next_id: u64,
    open: HashMap<u64, Open>,
    finished: Vec<JoinHandle<()>>,
    attached: usize,
    writers: usize,
}

struct Open {
    stream: Arc<UnixStream>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("export", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Listener {
    pub(super) fn new(server: &NbdServer, export: Export) -> Self {
        let share = Budget::new(server.limits.payload_bytes / SHARE);
        let budgets = Budgets {
            socket: Arc::new(share),
            process: Arc::clone(&server.payload),
        };
        Self {
            facts: facts_of(&export),
            image: export.image,
            budgets,
            followers: Arc::clone(&server.followers),
            connections_max: server.limits.connections_per_socket,
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
            live: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Ends when the export is closed.
    pub(super) fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }

    /// Whether no new request may start.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Clients past negotiation: all, and those that may write.
    pub(super) fn attached(&self) -> (usize, usize) {
        let live = self.lock();
        (live.attached, live.writers)
    }

    /// What clients are told of the export.
    pub(super) fn facts(&self) -> &ExportFacts {
        &self.facts
    }

    /// Serves a new connection on a thread of its own, or drops it when there are too many.
    pub(super) fn admit(self: &Arc<Self>, stream: UnixStream, start: Start) -> io::Result<()> {
        let mut live = self.lock();
        for thread in live.finished.drain(..) {
            joined(thread);
        }
        if self.is_closing() {
            return Ok(());
        }
        if live.open.len() >= self.connections_max {
            tracing::warn!(
                limit = self.connections_max,
                "too many NBD clients: one is dropped"
            );
            return Ok(());
        }
        let id = live.next_id;
        live.next_id += 1;
        let stream = Arc::new(stream);
        let (listener, theirs) = (Arc::clone(self), Arc::clone(&stream));
        let thread = thread::Builder::new().name("nbd".into()).spawn(move || {
            let entry = Entry {
                listener: &listener,
                id,
            };
            serve(&listener, &theirs, start);
            drop(theirs);
            drop(entry);
        })?;
        live.open.insert(id, Open { stream, thread });
        Ok(())
    }

    /// Ends every connection and joins every thread. Again does nothing.
    pub(super) fn close(&self, how: Disconnect) {
        self.closed.cancel();
        let mut live = self.lock();
        self.closing.store(true, Ordering::Release);
        if how == Disconnect::Graceful {
            // Wakes the thread that waits for a request; replies can still be sent.
            live.hang_up(Shutdown::Read);
            live = self.wait_until_empty(live, GRACE);
        }
        live.hang_up(Shutdown::Both);
        while !live.open.is_empty() {
            live = self.wait_until_empty(live, GRACE);
            if !live.open.is_empty() {
                tracing::warn!(
                    connections = live.open.len(),
                    "NBD close waits for the disk"
                );
            }
        }
        for thread in live.finished.drain(..) {
            joined(thread);
        }
    }

    fn wait_until_empty<'a>(
        &self,
        live: MutexGuard<'a, Live>,
        time_max: Duration,
    ) -> MutexGuard<'a, Live> {
        self.changed
            .wait_timeout_while(live, time_max, |live| !live.open.is_empty())
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn hang_up(&self, how: Shutdown) {
        for open in self.open.values() {
            // Fails where the client has gone already, which is what we want.
            let _ = open.stream.shutdown(how);
        }
    }
}

/// A connection in the table of its listener, whatever happens to its thread.
struct Entry<'a> {
    listener: &'a Listener,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut live = self.listener.lock();
        if let Some(open) = live.open.remove(&self.id) {
            live.finished.push(open.thread);
        }
        self.listener.changed.notify_all();
    }
}

/// A client that is counted.
struct Attached<'a> {
    listener: &'a Listener,
    writes: bool,
}

impl<'a> Attached<'a> {
    fn new(listener: &'a Listener, writes: bool) -> Self {
        let mut live = listener.lock();
        live.attached += 1;
        live.writers += usize::from(writes);
        drop(live);
        Self { listener, writes }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut live = self.listener.lock();
        live.attached -= 1;
        live.writers -= usize::from(self.writes);
    }
}

fn serve(listener: &Arc<Listener>, stream: &Arc<UnixStream>, start: Start) {
    let session = match handshake::negotiate(stream, std::slice::from_ref(&listener.facts), start) {
        Ok(Some(session)) => session,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(error = %crate::nbd::chain(&error), "NBD negotiation ended");
            return;
        }
    };
    transmit(listener, stream, session);
}

fn transmit(listener: &Arc<Listener>, stream: &Arc<UnixStream>, session: Session) {
    let name = &listener.facts.name;
    let attached = Attached::new(listener, !session.limits.read_only);
    tracing::info!(disk = %name, "NBD client attached");
    let image = Arc::clone(&listener.image);
    match Connection::new(
        Arc::clone(listener),
        Arc::clone(stream),
        image,
        session.limits,
    ) {
        Ok(connection) => connection.run(),
        Err(error) => tracing::warn!(%error, "prepare the socket of an NBD client"),
    }
    drop(attached);
    tracing::info!(disk = %name, "NBD client detached");
}

fn facts_of(export: &Export) -> ExportFacts {
    let geometry = export.image.geometry();
    let unit = geometry.logical_sector_bytes.max(512);
    ExportFacts {
        name: export.name.clone(),
        size_bytes: geometry.size_bytes - geometry.size_bytes % u64::from(unit),
        block_bytes_min: unit,
        read_only: geometry.read_only,
    }
}

/// Joins a thread; a panic was already reported by the panic hook.
pub(super) fn joined(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the NBD server panicked; its connection was ended");
    }
}
