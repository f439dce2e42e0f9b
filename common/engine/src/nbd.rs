//! NBD server: how guests reach their disks.
//!
//! Owns: sockets, connections and their threads. Receives: images to serve ([`Export`]). Gives out:
//! an [`ExportHandle`] per socket, which counts the attached clients and ends them.
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
mod status;
mod tls;
mod unix;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use sitepair_disk::Image;
use sitepair_model::nbd::PAYLOAD_BYTES_MAX;

use budget::Budget;
use listener::Listener;
use unix::SocketFile;

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
    /// Name that clients ask for: the disk's name. Where a socket has one export only, the empty
    /// name stands for it too.
    pub name: String,
    /// The disk.
    pub image: Arc<dyn Image>,
}

/// What one process allows all its NBD clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NbdLimits {
    /// Memory for payloads in bytes, in the whole process; at least eight times the largest payload.
    pub payload_bytes: usize,
    /// Connections to one socket.
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
    /// The TCP address could not be had.
    #[error("listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
        let listener = Arc::new(Listener::new(self, vec![export]));
        runtime.spawn(unix::accept(socket, Arc::clone(&listener)));
        Ok(ExportHandle {
            listener,
            file: Some(file),
            address: None,
        })
    }

    /// Serves disks on TCP, behind TLS only. `tls` is asked for the configuration of each new
    /// connection, so that certificates can be replaced; it decides which clients are let in.
    ///
    /// # Errors
    /// [`BindError`] when the address cannot be had.
    pub fn bind_tcp_tls(
        &self,
        address: SocketAddr,
        tls: TlsSource,
        exports: Vec<Export>,
    ) -> Result<ExportHandle, BindError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let (socket, bound) =
            tls::bind(address).map_err(|source| BindError::Tcp { address, source })?;
        let listener = Arc::new(Listener::new(self, exports));
        runtime.spawn(tls::accept(socket, tls, Arc::clone(&listener)));
        Ok(ExportHandle {
            listener,
            file: None,
            address: Some(bound),
        })
    }
}

/// One socket that is being served. Dropping it is `close(Disconnect::Now)`.
#[derive(Debug)]
pub struct ExportHandle {
    listener: Arc<Listener>,
    file: Option<SocketFile>,
    address: Option<SocketAddr>,
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

    /// The TCP address, with the port that was chosen; `None` for a unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops accepting, removes the socket, ends all connections and joins their threads. Blocks
    /// until requests that run have finished: from async code, call it in `spawn_blocking`.
    pub fn close(mut self, how: Disconnect) {
        self.end(how);
    }

    fn end(&mut self, how: Disconnect) {
        // The name first: a client that reconnects must not reach a socket that will not answer.
        self.file = None;
        self.listener.close(how);
    }
}

impl Drop for ExportHandle {
    fn drop(&mut self) {
        self.end(Disconnect::Now);
    }
}

/// An error and its causes as one sentence.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
