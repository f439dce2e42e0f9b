//! Disk files as other programs see them.

mod vhd;
mod check;
mod vhdx;
mod vhdx_parents;
