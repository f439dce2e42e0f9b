//! Free loopback ports.
//!
//! A port is held by a listener until just before the process that wants it starts. Somebody else
//! may still take it in that moment, so whoever starts the process must be ready to try again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

/// A loopback port that nobody else can bind until [`release`](Self::release).
#[derive(Debug)]
pub struct ReservedPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl ReservedPort {
    /// Lets the kernel choose a free port and holds it.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn reserve() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("reserve a loopback port")?;
        let address = listener.local_addr().context("ask for the reserved port")?;
        Ok(Self { listener, address })
    }

    /// The address that is held.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets go, for a process that binds it right away.
    pub fn release(self) -> SocketAddr {
        drop(self.listener);
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_taken_until_released() {
        let port = ReservedPort::reserve().unwrap();
        assert!(TcpListener::bind(port.address()).is_err());
        let address = port.release();
        TcpListener::bind(address).unwrap();
    }
}
