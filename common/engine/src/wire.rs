//! The wire: mutual TLS, who may call what, and both ends of the contract between agents.
//!
//! Owns: the acceptor and its limits ([`serve`]), the table of who may call what ([`roles`]), the
//! `Replication` service that calls the agent's [`PeerEndpoint`](crate::endpoint::PeerEndpoint), and
//! [`RemotePeer`], which is that endpoint for the agent at the other site.
//!
//! Receives TLS files that [`sitepair_certs`] checked. Gives out calls with the caller's proven
//! identity ([`Caller`], in the extensions of every request), and the state of the link.
//!
//! Does not do: decisions about groups, or anything with disks. Generated types of `sitepair-proto` end here.

mod accept;
mod client;
mod codec;
pub mod control;
mod frame;
mod link;
mod replication;
pub mod roles;
mod server;
mod status;
mod transfer;

pub use accept::{CONNECTIONS_PER_IDENTITY_MAX, Caller, HANDSHAKES_MAX};
pub use client::RemotePeer;
pub use link::{LinkConfig, LinkState, LinkTiming};
pub use server::{ServeError, Services, serve};
pub use status::status_of;
pub use transfer::WINDOW_BYTES;

/// HTTP/2 window of one stream in bytes; above the transfer window, so that only the latter limits.
const STREAM_WINDOW_BYTES: u32 = 24 << 20;
/// HTTP/2 window of one connection in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Largest HTTP/2 frame in bytes, and how much the TLS layer takes at once. They belong together: a
/// larger frame alone is slower.
const HTTP2_FRAME_BYTES: u32 = 512 << 10;
/// The same, for the TLS layer.
const TLS_BUFFER_BYTES: usize = 512 << 10;
/// Most bytes of headers of one request.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Largest message other than a frame of a transfer, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Silence on a connection before it is asked for a sign of life, and how long that may take.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);
