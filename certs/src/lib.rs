//! Identities: who is at the other end of a connection, and how both ends prove it.
//!
//! Owns: the names in certificates ([`Identity`]), the pair's private CA ([`Ca`]), the files of
//! certificates and keys ([`write_key`], [`write_public`]), the TLS configurations of both ends
//! ([`TlsStore`]), reloaded without a restart, and the connection to an agent ([`dial`]).
//!
//! Does not do: deciding what an identity may do (the engine's role table does), or gRPC.

mod ca;
mod dial;
mod error;
mod files;
mod identity;
mod store;
mod verify;

#[cfg(test)]
mod tests;

pub use ca::{AGENT_DAYS, CA_DAYS, CRL_DAYS, Ca, IssueError, Issued, OPERATOR_DAYS, Validity};
pub use dial::{CONNECT_TIMEOUT, DialError, HANDSHAKE_TIMEOUT, agent_dns_name, dial};
pub use error::TlsError;
pub use files::{PEM_BYTES_MAX, write_key, write_public};
pub use identity::{Holder, Identity, IdentityError, PersonName, parse_holder};
pub use store::{Expected, TlsPaths, TlsState, TlsStore};
pub use verify::{Admits, SeenPeer, describe};
