//! Disk files as other programs see them.

mod check;
mod vhd;
mod vhdx;
mod vhdx_parents;
