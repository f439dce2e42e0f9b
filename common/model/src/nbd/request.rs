//! Requests of the transmission phase: parsing, and the checks that need no disk.
//!
//! Receives the 28 bytes of a request. Gives out a [`Request`], and the error it deserves before
//! the disk is asked. Does not hold payloads.

use crate::extent::Extent;

use super::{Errno, Fields, PAYLOAD_BYTES_MAX, ProtocolError};

/// Length of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// First four bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// Durable before it is answered.
pub const FLAG_FUA: u16 = 1 << 0;
/// Zeros must keep their space.
pub const FLAG_NO_HOLE: u16 = 1 << 1;
/// A read is answered in one chunk.
pub const FLAG_DF: u16 = 1 << 2;
/// One block status descriptor is enough.
pub const FLAG_REQ_ONE: u16 = 1 << 3;
/// Fail rather than write zeros slowly.
pub const FLAG_FAST_ZERO: u16 = 1 << 4;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the payload follows the request.
    Write,
    /// The client goes away; there is no answer.
    Disconnect,
    /// Make everything answered before durable.
    Flush,
    /// Give space back.
    Trim,
    /// Read ahead.
    Cache,
    /// Write zeros.
    WriteZeroes,
    /// Tell what is allocated.
    BlockStatus,
    /// A number that we do not know.
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of this.
    pub block_bytes_min: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether structured replies were agreed on.
    pub structured: bool,
    /// Whether `base:allocation` was agreed on.
    pub base_allocation: bool,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// `FLAG_` bits.
    pub flags: u16,
    /// What is asked.
    pub command: Command,
    /// The client's name for the request; opaque.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub length: u32,
}

impl Request {
    /// Parses a request.
    ///
    /// # Errors
    /// [`ProtocolError`] when the stream cannot be followed any more: no magic number, or a payload
    /// that is too large to read.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().unwrap_or_default();
        let request = Self {
            flags: fields.u16().unwrap_or_default(),
            command: Command::from(fields.u16().unwrap_or_default()),
            cookie: fields.u64().unwrap_or_default(),
            offset: fields.u64().unwrap_or_default(),
            length: fields.u32().unwrap_or_default(),
        };
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError::RequestMagic(magic));
        }
        if request.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::WriteTooLarge(request.length));
        }
        Ok(request)
    }

    /// Bytes that follow the request.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write {
            self.length
        } else {
            0
        }
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The error this request deserves before the disk is asked, if any.
    #[must_use]
    pub fn refusal(&self, limits: &RequestLimits) -> Option<Errno> {
        if self.flags & !self.flags_known(limits) != 0 {
            return Some(Errno::Inval);
        }
        if limits.read_only && self.writes() {
            return Some(Errno::Perm);
        }
        match self.command {
            Command::Disconnect | Command::Flush => None,
            Command::Unknown(_) => Some(Errno::Inval),
            Command::BlockStatus if !limits.base_allocation || self.length == 0 => {
                Some(Errno::Inval)
            }
            Command::Read if self.length > PAYLOAD_BYTES_MAX => Some(Errno::Overflow),
            Command::Read
            | Command::Write
            | Command::Trim
            | Command::Cache
            | Command::WriteZeroes
            | Command::BlockStatus => self.range_refusal(limits),
        }
    }

    fn range_refusal(&self, limits: &RequestLimits) -> Option<Errno> {
        if !Extent::new(self.offset, u64::from(self.length)).fits(limits.size_bytes) {
            let beyond_end = match self.command {
                Command::Write | Command::WriteZeroes => Errno::NoSpc,
                _ => Errno::Inval,
            };
            return Some(beyond_end);
        }
        let unit = limits.block_bytes_min.max(1);
        let aligned =
            self.offset.is_multiple_of(u64::from(unit)) && self.length.is_multiple_of(unit);
        (!aligned).then_some(Errno::Inval)
    }

    fn writes(&self) -> bool {
        matches!(
            self.command,
            Command::Write | Command::Trim | Command::WriteZeroes
        )
    }

    /// FUA is harmless on every command, and allowed there; the others belong to one command each.
    fn flags_known(&self, limits: &RequestLimits) -> u16 {
        FLAG_FUA
            | match self.command {
                Command::Read if limits.structured => FLAG_DF,
                Command::WriteZeroes => FLAG_NO_HOLE | FLAG_FAST_ZERO,
                Command::BlockStatus => FLAG_REQ_ONE,
                _ => 0,
            }
    }
}
