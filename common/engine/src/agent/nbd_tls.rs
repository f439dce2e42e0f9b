//! The agent's TCP port for guests of other hosts: NBD behind the agent's own TLS.
//!
//! Receives: `[nbd] listen` and the TLS files, looked at anew for each connection. Gives out: the port
//! that groups add their disks to while they serve them, under the names `GROUP/DISK`, and those of tests, `GROUP/DISK~TEST`.

use std::fmt::Display;
use std::sync::Arc;

use sitepair_certs::TlsStore;
use sitepair_model::ids::GroupName;
use tokio::net::TcpListener;

use super::Context;
use crate::nbd::{BindError, TlsPort};
use crate::wire::roles::ATTACH;

/// The port, and how clients of other hosts name it.
pub(super) struct NbdTls {
    pub(super) port: TlsPort,
    /// `HOST:PORT`, as configured.
    authority: String,
}

impl NbdTls {
    /// How a hypervisor elsewhere names a disk. It has to be told as well which name to expect in the agent's
    /// certificate, for which this form has no place (`tls-hostname` of QEMU).
    pub(super) fn uri(&self, group: &GroupName, disk: &impl Display) -> String {
        format!("nbds://{}/{group}/{disk}", self.authority)
    }
}

impl Context {
    /// Serves guests over TLS too, at `socket`, from the next group on that opens. `address` is the configured
    /// one. Once only: a second port is refused by keeping the first.
    pub(super) fn serve_tls(
        &self,
        address: &str,
        socket: TcpListener,
        store: &Arc<TlsStore>,
    ) -> Result<(), BindError> {
        let shown = Arc::clone(store);
        let tls = Arc::new(move || shown.current().plain_server(ATTACH));
        let port = self.nbd.open_tls(socket, tls)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let opened = NbdTls {
            authority: format!("{host}:{}", port.address().port()),
            port,
        };
        // Fails only when there is one already; the new one closes as it is dropped.
        let _ = self.nbd_tls.set(opened);
        Ok(())
    }

    /// Stops listening, when the groups have closed their exports.
    pub(super) async fn close_tls(&self) {
        if let Some(tls) = self.nbd_tls() {
            tls.port.close().await;
        }
    }

    /// The TLS port, if the agent has one.
    pub(super) fn nbd_tls(&self) -> Option<&NbdTls> {
        self.nbd_tls.get()
    }
}
