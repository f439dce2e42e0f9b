//! Disk files as other programs see them.

mod check;
mod libvhdi;
#[cfg(feature = "qcow2")]
mod qcow2;
mod vhd;
mod vhdx;
mod vhdx_parents;
