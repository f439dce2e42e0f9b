//! The NBD codec: what bytes of the fixed newstyle protocol mean, and which bytes answer them.
//!
//! Owns: constants, the option phase as a pure state machine ([`negotiate`]), requests and their
//! validation ([`request`]), replies ([`reply`]).
//! Receives: bytes and facts of exports. Gives out: parsed values, and bytes to send.
//!
//! Does not do: reading, writing, waiting. Any bytes whatsoever are answered with a value, never
//! a panic. Extended headers are not offered (`NBD_REP_ERR_UNSUP`).

pub mod negotiate;
pub mod reply;
pub mod request;

pub use negotiate::{ExportFacts, Negotiation, Next, Session, TlsPhase};
pub use request::{Command, Request};

/// Largest payload of one request or reply in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// What clients are told to prefer as a unit, in bytes.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Longest payload of an option that we read, in bytes. Names are at most 4096 bytes.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longest name or query string, in bytes; the protocol's own limit.
pub const STRING_BYTES_MAX: usize = 4096;
/// The number under which `base:allocation` is reported.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// The one metadata context that we know.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Error numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// The disk failed.
    Io = 5,
    /// The server has no memory for it.
    NoMem = 12,
    /// A bad argument.
    Inval = 22,
    /// No space.
    NoSpc = 28,
    /// The answer would be too large.
    Overflow = 75,
    /// Not supported, or not fast.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Bytes that break the protocol so that the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The client does not speak fixed newstyle, or sets flags that nobody defined.
    #[error("the client's flags {0:#x} are not those of fixed newstyle")]
    ClientFlags(u32),
    /// An option does not begin with its magic number.
    #[error("an option begins with {0:#018x}")]
    OptionMagic(u64),
    /// An option's payload is larger than we read.
    #[error("option {code} has a payload of {length} bytes")]
    OptionTooLarge {
        /// The option.
        code: u32,
        /// Its length.
        length: u32,
    },
    /// A request does not begin with its magic number.
    #[error("a request begins with {0:#010x}")]
    RequestMagic(u32),
    /// A write's payload is larger than we read.
    #[error("a write of {0} bytes is above the limit")]
    WriteTooLarge(u32),
}

/// Takes big-endian fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    fn string(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > STRING_BYTES_MAX {
            return None;
        }
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(head).ok()
    }
}

#[cfg(test)]
mod tests;
