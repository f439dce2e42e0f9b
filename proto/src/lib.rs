//! The wire contract, and its conversions to and from the words of `sitepair-model`.
//!
//! Owns: the messages and services of `sitepair/v1/*.proto` ([`v1`]), the descriptor set for server
//! reflection ([`DESCRIPTORS`]), the versions spoken ([`negotiate`]), and strict conversions ([`convert`]).
//!
//! Receives bytes of a peer that may be broken or hostile; gives out types that can be trusted.
//! Does not do: connections, or anything with files.

pub mod convert;
mod version;

pub use convert::Invalid;
pub use version::{VERSION_MAX, VERSION_MIN, Version, negotiate, spoken};

/// Generated code.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code is not ours to style"
)]
pub mod v1 {
    tonic::include_proto!("sitepair.v1");
}

/// Encoded `FileDescriptorSet` of the contract.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/sitepair.v1.descriptors.bin"));
