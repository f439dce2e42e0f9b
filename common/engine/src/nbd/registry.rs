//! The TCP port behind TLS: exports come and go while it listens.
//!
//! Owns: the accepting task and the table of exports by name. Each export counts and ends its own
//! clients, exactly as one behind a unix socket does.
//!
//! # Invariants
//! 1. An export that is closing is no longer in the table: whoever negotiates afterwards does not see it, and
//!    whoever chose it before is not admitted by it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::listener::Listener;
use super::{BindError, Export, ExportHandle, Name, NbdServer, TlsSource, tls};

/// What the port and its exports share.
#[derive(Debug, Default)]
pub(super) struct Registry {
    exports: Mutex<BTreeMap<String, Arc<Listener>>>,
    closed: CancellationToken,
}

impl Registry {
    /// Ends when the port is closed.
    pub(super) fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }

    /// The exports now, by name.
    pub(super) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Listener>>> {
        // Every change is one call of the map: a panic elsewhere leaves it whole.
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export's name at the port; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Arc<Registry>,
    name: String,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.name);
    }
}

/// A TCP port that serves exports over TLS, by their exact names.
#[derive(Debug)]
pub struct TlsPort {
    server: NbdServer,
    registry: Arc<Registry>,
    address: SocketAddr,
    accepting: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl TlsPort {
    pub(super) fn open(
        server: NbdServer,
        socket: TcpListener,
        tls: TlsSource,
    ) -> Result<Self, BindError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let address = socket.local_addr().map_err(BindError::Tcp)?;
        let registry = Arc::new(Registry::default());
        let accepting = runtime.spawn(tls::accept(socket, tls, Arc::clone(&registry)));
        Ok(Self {
            server,
            registry,
            address,
            accepting: tokio::sync::Mutex::new(Some(accepting)),
        })
    }

    /// Serves one more disk, until the handle is closed.
    ///
    /// # Errors
    /// [`BindError::NameInUse`].
    pub fn add(&self, export: Export) -> Result<ExportHandle, BindError> {
        let name = export.name.clone();
        let mut exports = self.registry.lock();
        if exports.contains_key(&name) {
            return Err(BindError::NameInUse(name));
        }
        let listener = Arc::new(Listener::new(&self.server, export));
        exports.insert(name.clone(), Arc::clone(&listener));
        let registration = Registration {
            registry: Arc::clone(&self.registry),
            name,
        };
        Ok(ExportHandle {
            listener,
            name: Some(Name::Tls(registration)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, and waits for the last replies of exports that were closed before. Clients of
    /// exports that were not are cut off after ten seconds.
    pub async fn close(&self) {
        self.registry.closed.cancel();
        if let Some(accepting) = self.accepting.lock().await.take() {
            // A panic in it was reported by the panic hook.
            let _ = accepting.await;
        }
    }
}

impl Drop for TlsPort {
    fn drop(&mut self) {
        self.registry.closed.cancel();
    }
}
