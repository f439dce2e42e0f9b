//! Virtual-disk files behind one trait.
//!
//! Owns: the [`Image`] trait; raw, VHD and VHDX images, and chains of them; with feature `qcow2` qcow2 too; `.hrl` change logs; the [`storage`] traits
//! under them, which tests make faulty; and what is done with whole files: [`create`], [`info`], [`convert`], [`compare`],
//! [`resize`]; and [`check`](mod@check), which shares no logic with the formats that it looks at.
//!
//! Does not do: networks, async, replication. Every call blocks; callers bring threads.

pub mod check;
pub mod chunks;
pub mod compare;
pub mod convert;
pub mod copy;
pub mod create;
pub mod error;
mod flush;
mod gate;
pub mod hrl;
pub mod image;
pub mod info;
pub mod open;
pub mod parent;
mod poison;
#[cfg(feature = "qcow2")]
pub mod qcow2;
pub mod raw;
pub mod resize;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod vhd;
pub mod vhdx;
mod walk;

pub use error::{DiskError, ErrorKind};
pub use image::{ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
pub use walk::Progress;
