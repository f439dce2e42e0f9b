//! Disk files as other programs see them.

mod vhd;
mod vhdx;
mod vhdx_parents;
