//! Acceptor: turns TCP connections into authenticated ones, and refuses the rest, with the cause in the log.
//!
//! # Invariants
//! 1. No error of a connection ends the accept loop.
//! 2. A connection that is handed on has passed a complete mutual handshake.
//! 3. At most [`HANDSHAKES_MAX`] connections are unauthenticated, each for [`HANDSHAKE_TIMEOUT`] at most;
//!    more wait in the kernel's queue.
//! 4. An identity holds at most [`CONNECTIONS_PER_IDENTITY_MAX`] connections.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use sitepair_certs::{
    HANDSHAKE_TIMEOUT, Identity, SeenPeer, TlsError, TlsState, TlsStore, describe,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::TLS_BUFFER_BYTES;

/// Most connections whose handshake is not complete.
pub const HANDSHAKES_MAX: usize = 64;
/// Most connections of one identity.
pub const CONNECTIONS_PER_IDENTITY_MAX: usize = 8;
/// Rest after an error of accept itself (no file descriptors left): it would repeat at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who made a call: in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where from.
    pub address: SocketAddr,
    /// Who, proven by the handshake.
    pub identity: Arc<Identity>,
}

/// Why a connection was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("{}", describe(.0))]
    Handshake(io::Error),
    #[error("our own TLS settings: {0}")]
    Own(#[from] TlsError),
    #[error("the handshake ended without an identity")]
    Nobody,
    #[error(
        "{CONNECTIONS_PER_IDENTITY_MAX} connections of this identity are open: close some, or look for a program that leaks them"
    )]
    TooMany,
}

/// Accepts until `stop`, and hands authenticated connections to `ready`.
pub(super) async fn accept_loop(
    listener: TcpListener,
    store: Arc<TlsStore>,
    registry: Arc<Registry>,
    ready: mpsc::Sender<Connection>,
    stop: CancellationToken,
) {
    let unauthenticated = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    // Ends every handshake when it is dropped.
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&unauthenticated).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = handshakes.join_next() => continue,
            accepted = accepted => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accept a connection: {error}; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (registry, ready) = (Arc::clone(&registry), ready.clone());
        let state = store.current();
        handshakes.spawn(async move {
            let connection = authenticate(tcp, address, &state, &registry).await;
            // The permit is for the handshake only; a full queue must not keep others out.
            drop(permit);
            if let Some(connection) = connection {
                // Fails only when the server is stopping.
                let _ = ready.send(connection).await;
            }
        });
    }
}

async fn authenticate(
    tcp: TcpStream,
    address: SocketAddr,
    state: &TlsState,
    registry: &Arc<Registry>,
) -> Option<Connection> {
    let (config, seen) = match state.server() {
        Ok(server) => server,
        Err(error) => {
            refuse(address, &SeenPeer::default(), &error.into());
            return None;
        }
    };
    match handshake(tcp, address, TlsAcceptor::from(config), &seen, registry).await {
        Ok(connection) => {
            tracing::debug!(%address, identity = %connection.caller.identity, "connection accepted");
            Some(connection)
        }
        Err(error) => {
            refuse(address, &seen, &error);
            None
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    seen: &SeenPeer,
    registry: &Arc<Registry>,
) -> Result<Connection, Refused> {
    // Small messages must not wait for acknowledgements of earlier ones.
    tcp.set_nodelay(true).map_err(Refused::Handshake)?;
    let mut tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp))
        .await
        .map_err(|_| Refused::Slow)?
        .map_err(Refused::Handshake)?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let Some(Ok(identity)) = seen.claimed() else {
        return Err(Refused::Nobody);
    };
    let slot = registry.admit(identity).ok_or(Refused::TooMany)?;
    Ok(Connection {
        tls,
        caller: Caller {
            address,
            identity: Arc::new(identity.clone()),
        },
        closed: Box::pin(slot.close.clone().cancelled_owned()),
        _slot: slot,
    })
}

fn refuse(address: SocketAddr, seen: &SeenPeer, why: &Refused) {
    match seen.claimed() {
        Some(Ok(claimed)) => tracing::warn!(%address, %claimed, serial = claimed.serial,
            "connection refused: {why}"),
        Some(Err(nobody)) => tracing::warn!(%address, "connection refused: {why} ({nobody})"),
        None => tracing::warn!(%address, "connection refused: {why}"),
    }
}

/// The connections that are open, by identity.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    uri: String,
    serial: String,
    close: CancellationToken,
}

/// A place in the registry, given back when it is dropped.
#[derive(Debug)]
struct Slot {
    id: u64,
    close: CancellationToken,
    registry: Arc<Registry>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.registry.lock().connections.remove(&self.id);
    }
}

impl Registry {
    fn admit(self: &Arc<Self>, identity: &Identity) -> Option<Slot> {
        let uri = identity.uri();
        let mut open = self.lock();
        let same = open
            .connections
            .values()
            .filter(|entry| entry.uri == uri)
            .count();
        if same >= CONNECTIONS_PER_IDENTITY_MAX {
            return None;
        }
        let (id, close) = (open.next, CancellationToken::new());
        open.next += 1;
        let entry = Entry {
            uri,
            serial: identity.serial.clone(),
            close: close.clone(),
        };
        open.connections.insert(id, entry);
        Some(Slot {
            id,
            close,
            registry: Arc::clone(self),
        })
    }

    /// Closes the connections of certificates that are revoked now. TLS looks at a list only in handshakes.
    pub(super) fn close_revoked(&self, state: &TlsState) {
        for entry in self.lock().connections.values() {
            if state.is_revoked(&entry.serial) {
                tracing::warn!(
                    identity = entry.uri,
                    serial = entry.serial,
                    "connection closed: its certificate was revoked"
                );
                entry.close.cancel();
            }
        }
    }

    /// Closes every connection.
    pub(super) fn close_all(&self) {
        self.lock()
            .connections
            .values()
            .for_each(|entry| entry.close.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // The map is whole after every statement: a panic elsewhere cannot have torn it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Connection {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _slot: Slot,
}

impl Connection {
    /// An error once the connection is to be closed; wakes its task when that happens.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.closed
            .as_mut()
            .poll(cx)
            .map(|()| io::ErrorKind::ConnectionAborted.into())
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_closed(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
