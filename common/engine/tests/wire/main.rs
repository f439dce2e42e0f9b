//! The wire over real TCP and TLS on the loopback interface: handshakes, roles, transfers, failures.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod handshake;
mod services;
mod support;
mod transfer;
