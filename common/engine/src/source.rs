//! The source: everything the site that serves the guest does to the data path.
//!
//! Owns: the disks of one group while this site is its source ([`SourceGroup`]): the image that the
//! NBD server is given for each disk, the change maps beside the images, the gate before the
//! guest's requests, cuts, and the sending of initial replication and of cycles.
//! Receives: guest writes through [`SourceGroup::tracked`], and orders from the group's task.
//! Gives out: frames, through [`PeerEndpoint::begin`](crate::endpoint::PeerEndpoint::begin).
//!
//! Does not do: decide whether it may serve, when to cut, or whether to send; open or close images;
//! know what the peer is.
//!
//! A guest write marks its blocks in memory, and the zone they lie in on disk unless it is marked
//! already; nothing else. Bytes are read when they are sent:
//!
//! ```text
//!  guest write ──> open cycle's blocks ──cut──> sealed cycle's blocks ──sent, committed──> forgotten
//!                        ^                             │
//!                        └───────── given up ──────────┘
//! ```
//!
//! # Invariants
//! 1. What a committed cycle leaves at the peer equals every disk of the group at the cut, the same
//!    instant for all: each write that was answered before a write in it was issued is in it or in
//!    an earlier one.
//! 2. A block is forgotten only when the peer has said that it is durable there *and* the local
//!    image has been flushed since the block was last written.
//! 3. At most one cycle is sealed. Until it is resolved, its blocks keep their content for the
//!    sender or it is given up; no guest write waits for the network.
//! 4. A cycle whose commit was not answered is neither forgotten nor sent again under its number.

mod clock;
mod disk;
mod frames;
mod gate;
mod group;
mod map;
mod map_format;
mod map_load;
mod open;
mod preserve;
mod ship;
#[cfg(test)]
mod tests;

pub use group::{CutInfo, Resolution, SealedCycle, SourceError, SourceGroup, SourceProgress};
pub use open::{Fresh, Limits, SourceDisk, SourceOptions};
pub use ship::ShipError;
