//! Conversions between the wire's messages and the model's words.
//!
//! From the wire they are strict: every id has its exact size, every list its limit, every name is
//! parsed. To the wire they cannot fail.

mod hello;
mod offer;
mod transfer;

#[cfg(test)]
mod tests;

pub use transfer::TransferStep;

use bytes::Bytes;
use sitepair_model::ids::{Digest, DiskId, GenId, Generation, GroupId, InvalidName, Nonce, OpId};
use sitepair_model::retention::PolicyError;

use crate::v1;

/// Most disks of one group.
pub const DISKS_MAX: usize = 64;
/// Longest label of a recovery point in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Longest path that an operator may name for a replica's image, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Largest disk in bytes: 64 TiB, the most that VHDX knows.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Why a message of the peer was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A field that must be there is not.
    #[error("field {field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// An id or a digest has another size.
    #[error("field {field} has {found} bytes instead of {expected}")]
    Size {
        /// The field.
        field: &'static str,
        /// Its size.
        found: usize,
        /// What it should be.
        expected: usize,
    },
    /// A list or a text is longer than allowed.
    #[error("field {field} has {found} entries or bytes, more than {max}")]
    TooMany {
        /// The field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A number or a kind outside what the contract allows.
    #[error("field {field} has the value {found}, which is not allowed")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// Something that appears twice and must not.
    #[error("field {field} lists the same twice")]
    Repeated {
        /// The field.
        field: &'static str,
    },
    /// A name that is not one of ours.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A retention policy that is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No version in common.
    #[error(
        "the other agent speaks versions {min} to {max} of the protocol, this one {own_min} to {own_max}: upgrade the older agent",
        own_min = crate::VERSION_MIN,
        own_max = crate::VERSION_MAX
    )]
    Version {
        /// The oldest it speaks.
        min: u32,
        /// The newest it speaks.
        max: u32,
    },
}

/// Reads an id or digest of exactly `N` bytes.
///
/// # Errors
/// [`Invalid::Size`].
pub fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], Invalid> {
    bytes.try_into().map_err(|_| Invalid::Size {
        field,
        found: bytes.len(),
        expected: N,
    })
}

/// Copies an id or digest for the wire.
#[must_use]
pub fn to_bytes(id: &[u8]) -> Bytes {
    Bytes::copy_from_slice(id)
}

fn limit(field: &'static str, found: usize, max: usize) -> Result<(), Invalid> {
    if found > max {
        Err(Invalid::TooMany { field, found, max })
    } else {
        Ok(())
    }
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or(Invalid::Missing { field })
}

fn unknown_kind(field: &'static str, value: i32) -> Invalid {
    Invalid::Value {
        field,
        found: u64::try_from(value).unwrap_or(0),
    }
}

fn group_id(bytes: &[u8]) -> Result<GroupId, Invalid> {
    fixed("group", bytes).map(GroupId::from_bytes)
}

fn disk_id(bytes: &[u8]) -> Result<DiskId, Invalid> {
    fixed("disk", bytes).map(DiskId::from_bytes)
}

fn gen_id(field: &'static str, bytes: &[u8]) -> Result<GenId, Invalid> {
    fixed(field, bytes).map(GenId::from_bytes)
}

fn nonce(field: &'static str, bytes: &[u8]) -> Result<Nonce, Invalid> {
    fixed(field, bytes).map(Nonce::from_bytes)
}

fn op_id(bytes: &[u8]) -> Result<OpId, Invalid> {
    fixed("request", bytes).map(OpId::from_bytes)
}

fn digest(bytes: &[u8]) -> Result<Digest, Invalid> {
    fixed("digest", bytes).map(Digest::from_bytes)
}

fn generation(field: &'static str, value: Option<v1::Generation>) -> Result<Generation, Invalid> {
    let value = present(field, value)?;
    Ok(Generation {
        epoch: value.epoch,
        id: gen_id(field, &value.id)?,
    })
}

impl From<Generation> for v1::Generation {
    fn from(value: Generation) -> Self {
        Self {
            epoch: value.epoch,
            id: to_bytes(value.id.as_bytes()),
        }
    }
}
