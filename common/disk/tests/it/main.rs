//! Disk files as other programs see them.

mod vhdx;
mod vhdx_parents;
