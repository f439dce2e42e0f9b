//! Replies of the transmission phase, simple and structured.
//!
//! Gives out headers as arrays, so that a caller can put them before a payload without copying it.

use super::{BASE_ALLOCATION_ID, Errno};

/// First four bytes of a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// First four bytes of a structured reply's chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Length of a simple reply without its payload.
pub const SIMPLE_BYTES: usize = 16;
/// Length of a chunk without its payload.
pub const CHUNK_BYTES: usize = 20;
/// Length of what comes before the data in a chunk of data: header and offset.
pub const DATA_CHUNK_BYTES: usize = CHUNK_BYTES + 8;
/// Length of a whole error chunk: header, error number, length of an empty message.
pub const ERROR_CHUNK_BYTES: usize = CHUNK_BYTES + 6;

const CHUNK_FLAG_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) | 1;

/// The range has no space.
pub const STATE_HOLE: u32 = 1 << 0;
/// The range reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// Whether more chunks of the same reply follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// This chunk is the last.
    Last,
    /// Others follow.
    Follows,
}

/// One run of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRun {
    /// Length in bytes.
    pub length: u32,
    /// `STATE_` bits.
    pub state: u32,
}

/// A simple reply; after a successful read the data follows.
#[must_use]
pub fn simple(cookie: u64, errno: Option<Errno>) -> [u8; SIMPLE_BYTES] {
    let mut out = [0; SIMPLE_BYTES];
    out[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&errno.map_or(0, Errno::code).to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// What comes before `length` bytes of data read at `offset`.
#[must_use]
pub fn data_chunk(cookie: u64, offset: u64, length: u32, more: More) -> [u8; DATA_CHUNK_BYTES] {
    let mut out = [0; DATA_CHUNK_BYTES];
    let header = chunk(cookie, CHUNK_OFFSET_DATA, length.saturating_add(8), more);
    out[..CHUNK_BYTES].copy_from_slice(&header);
    out[CHUNK_BYTES..].copy_from_slice(&offset.to_be_bytes());
    out
}

/// A whole reply that ends a request without data.
#[must_use]
pub fn none_chunk(cookie: u64) -> [u8; CHUNK_BYTES] {
    chunk(cookie, CHUNK_NONE, 0, More::Last)
}

/// A whole chunk that ends a request with an error.
#[must_use]
pub fn error_chunk(cookie: u64, errno: Errno) -> [u8; ERROR_CHUNK_BYTES] {
    let mut out = [0; ERROR_CHUNK_BYTES];
    out[..CHUNK_BYTES].copy_from_slice(&chunk(cookie, CHUNK_ERROR, 6, More::Last));
    out[CHUNK_BYTES..CHUNK_BYTES + 4].copy_from_slice(&errno.code().to_be_bytes());
    out
}

/// Appends a whole block status reply for `base:allocation`.
pub fn push_block_status(out: &mut Vec<u8>, cookie: u64, runs: &[StatusRun]) {
    let length = u32::try_from(4 + 8 * runs.len()).expect("descriptors are bounded by the caller");
    out.extend_from_slice(&chunk(cookie, CHUNK_BLOCK_STATUS, length, More::Last));
    out.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
    for run in runs {
        out.extend_from_slice(&run.length.to_be_bytes());
        out.extend_from_slice(&run.state.to_be_bytes());
    }
}

fn chunk(cookie: u64, kind: u16, length: u32, more: More) -> [u8; CHUNK_BYTES] {
    let flags = match more {
        More::Last => CHUNK_FLAG_DONE,
        More::Follows => 0,
    };
    let mut out = [0; CHUNK_BYTES];
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..].copy_from_slice(&length.to_be_bytes());
    out
}
