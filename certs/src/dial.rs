//! The connection to an agent: TCP, TLS 1.3, and the certainty of who answers.
//!
//! Used by agents for each other and by the operator's command. Does not do: gRPC, retries.

use std::time::Duration;

use rustls::pki_types::ServerName;
use sitepair_model::ids::{PairName, Site};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::TlsError;
use crate::identity::dns_name;
use crate::store::TlsState;
use crate::verify::describe;

/// Longest wait for a TCP connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an agent could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody answered in time.
    #[error("connect to {address}: no answer within {} s", .after.as_secs())]
    Silent {
        /// Where to.
        address: String,
        /// How long was waited.
        after: Duration,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {address}: {}", describe(.source))]
    Handshake {
        /// With whom.
        address: String,
        /// The library's reason.
        source: std::io::Error,
    },
    /// Our own configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The pair's name cannot be part of a DNS name.
    #[error("pair name {pair} cannot be part of a DNS name")]
    PairName {
        /// The pair.
        pair: PairName,
    },
}

/// The DNS name in the certificate of an agent.
#[must_use]
pub fn agent_dns_name(pair: &PairName, site: Site) -> String {
    dns_name(pair, site)
}

/// Connects to the agent of `site` at `address` (`HOST:PORT`). In TLS 1.3 a refusal of our own certificate shows
/// only afterwards, as an error of the first read.
///
/// # Errors
/// [`DialError`].
pub async fn dial(
    state: &TlsState,
    site: Site,
    address: &str,
) -> Result<TlsStream<TcpStream>, DialError> {
    let pair = &state.identity().pair;
    let name = ServerName::try_from(dns_name(pair, site))
        .map_err(|_| DialError::PairName { pair: pair.clone() })?;
    let config = state.client(site)?;
    let silent = |after| DialError::Silent {
        address: address.to_owned(),
        after,
    };
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| silent(CONNECT_TIMEOUT))?
        .map_err(|source| DialError::Connect {
            address: address.to_owned(),
            source,
        })?;
    // Without it small messages wait for acknowledgements of earlier ones.
    tcp.set_nodelay(true).map_err(|source| DialError::Connect {
        address: address.to_owned(),
        source,
    })?;
    timeout(
        HANDSHAKE_TIMEOUT,
        TlsConnector::from(config).connect(name, tcp),
    )
    .await
    .map_err(|_| silent(HANDSHAKE_TIMEOUT))?
    .map_err(|source| DialError::Handshake {
        address: address.to_owned(),
        source,
    })
}
