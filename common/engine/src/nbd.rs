//! NBD server: how guests reach their disks.
//!
//! Owns: sockets, the TLS port, connections and their threads. Receives: images to serve ([`Export`]).
//! Gives out: an [`ExportHandle`] per socket or name at the port, which counts the attached clients and ends them.
//!
//! Does not do: tracking, fencing, permission to serve. Those are layers of the image; a request
//! that the image refuses is answered with the image's error. Requests never run on the tokio
//! runtime: it only accepts connections and carries TLS.
//!
//! # One connection
//! ```text
//! socket -> reader --(one thread at a time holds it)--> request
//!              quick: answered by the holder, which keeps the reader
//!              slow:  the holder passes the reader on, then works and answers alone
//! ```
//! A request that the page cache can answer therefore costs no hand-over between threads, and a
//! slow one delays nobody. Threads appear when all others are busy and end when idle.
//!
//! # Invariants
//! 1. A request is answered after the image has done it, never before.
//! 2. Memory for payloads is charged to a budget before it is allocated, and a client that stalls in
//!    the middle of a payload or reply loses its connection after a bounded time.
//! 3. Every thread is joined by the end of [`ExportHandle::close`].

mod budget;
mod connection;
mod handshake;
mod listener;
mod reader;
mod registry;
mod status;
mod tls;
mod unix;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use sitepair_disk::Image;
use sitepair_model::cause::chain;
use sitepair_model::nbd::PAYLOAD_BYTES_MAX;
use tokio::net::TcpListener;

use budget::Budget;
use listener::Listener;
use registry::Registration;
use unix::SocketFile;

pub use registry::TlsPort;
pub use tls::TlsSource;

/// Requests of one connection that run at the same time.
const THREADS_PER_CONNECTION_MAX: usize = 16;
/// Threads of all connections together, without the first one of each.
const FOLLOWERS_MAX: usize = 1024;
/// How long negotiation may take, TLS included.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a client may let us wait in the middle of a payload or reply.
const STALL_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a graceful close waits for replies to be taken before it hangs up.
const GRACE: Duration = Duration::from_secs(5);

/// One disk to serve.
#[derive(Clone)]
pub struct Export {
    /// Name that clients ask for: the disk's name on a unix socket, where the empty name stands for it
    /// too; `GROUP/DISK` at the TLS port.
    pub name: String,
    /// The disk.
    pub image: Arc<dyn Image>,
}

/// What one process allows all its NBD clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NbdLimits {
    /// Memory for payloads in bytes, in the whole process; at least eight times the largest payload.
    pub payload_bytes: usize,
    /// Connections to one export by one way, unix socket or TLS.
    pub connections_per_socket: usize,
}

impl Default for NbdLimits {
    fn default() -> Self {
        Self {
            payload_bytes: 256 << 20,
            connections_per_socket: 16,
        }
    }
}

/// How clients are let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disconnect {
    /// What was read is done and answered; what was not read is left for the client to send again
    /// elsewhere. After five seconds, as `Now`.
    Graceful,
    /// Connections are cut. Requests that already run finish, without an answer.
    Now,
}

/// A socket that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another server listens there.
    #[error("another process already serves {0}")]
    InUse(PathBuf),
    /// Something else has this name.
    #[error("{0} exists and is not a socket; remove it or choose another run_dir")]
    NotASocket(PathBuf),
    /// A file operation on the socket or its directory.
    #[error("{action} {path}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The TCP socket cannot be used.
    #[error("use the TCP socket")]
    Tcp(#[source] io::Error),
    /// The port has an export of this name.
    #[error("{0:?} is served over TLS already")]
    NameInUse(String),
    /// Called from outside a tokio runtime.
    #[error("no runtime to accept connections on")]
    NoRuntime,
}

/// The NBD server of a process: what its sockets share.
#[derive(Debug, Clone)]
pub struct NbdServer {
    limits: NbdLimits,
    payload: Arc<Budget>,
    followers: Arc<AtomicUsize>,
}

impl NbdServer {
    /// A server without sockets.
    #[must_use]
    pub fn new(limits: NbdLimits) -> Self {
        let largest = usize::try_from(PAYLOAD_BYTES_MAX).unwrap_or(usize::MAX);
        let payload_bytes = limits.payload_bytes.max(largest.saturating_mul(8));
        Self {
            limits: NbdLimits {
                payload_bytes,
                ..limits
            },
            payload: Arc::new(Budget::new(payload_bytes)),
            followers: Arc::default(),
        }
    }

    /// Serves one disk on a unix socket (mode 0660). A directory that is missing is made with mode
    /// 0750; a socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left behind.
    pub fn bind_unix(&self, path: &Path, export: Export) -> Result<ExportHandle, BindError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let (socket, file) = unix::bind(path)?;
        let listener = Arc::new(Listener::new(self, export));
        runtime.spawn(unix::accept(socket, Arc::clone(&listener)));
        Ok(ExportHandle {
            listener,
            name: Some(Name::Unix(file)),
        })
    }

    /// Serves disks on a TCP socket, behind TLS only; they are added and taken away afterwards. `tls` is asked
    /// for the configuration of each new connection, so that certificates can be replaced; it decides which
    /// clients are let in.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn open_tls(&self, socket: TcpListener, tls: TlsSource) -> Result<TlsPort, BindError> {
        TlsPort::open(self.clone(), socket, tls)
    }
}

/// What clients find an export by; gone when this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held for what dropping it does")]
enum Name {
    Unix(SocketFile),
    Tls(Registration),
}

/// One export that is being served. Dropping it is `close(Disconnect::Now)`.
#[derive(Debug)]
pub struct ExportHandle {
    listener: Arc<Listener>,
    name: Option<Name>,
}

impl ExportHandle {
    /// Clients that are past negotiation.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.listener.attached().0
    }

    /// Clients that are past negotiation and may write.
    #[must_use]
    pub fn writers(&self) -> usize {
        self.listener.attached().1
    }

    /// Stops accepting, removes the socket or the name, ends all connections and joins their threads. Blocks
    /// until requests that run have finished: from async code, call it in `spawn_blocking`.
    pub fn close(mut self, how: Disconnect) {
        self.end(how);
    }

    fn end(&mut self, how: Disconnect) {
        // The name first: a client that reconnects must not reach a socket that will not answer.
        self.name = None;
        self.listener.close(how);
    }
}

impl Drop for ExportHandle {
    fn drop(&mut self) {
        self.end(Disconnect::Now);
    }
}
