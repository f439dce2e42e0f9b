//! Blocks of 4 KiB as the source's tracking and overlays keep them: sets in memory, sets on disk, locks on ranges.

pub(crate) mod locks;
pub(crate) mod sector;
pub(crate) mod set;
