//! Disk files as other programs see them.

mod vhdx;
