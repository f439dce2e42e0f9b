//! What sitepair decides, and the words it decides in.
//!
//! Owns: names and numbers ([`ids`]), extents and blocks ([`extent`]), lineage and the group's
//! state machine ([`lineage`], [`group`]), recovery points ([`point`]) and their retention
//! ([`retention`]), what two agents say to each other ([`peer`]), the NBD codec ([`nbd`]), and errors
//! as text ([`cause`]).
//!
//! Does not do: anything. No runtime, file, socket, clock or randomness; times and random values
//! are arguments. That is what lets every decision be tested exhaustively.

pub mod cause;
pub mod extent;
pub mod group;
pub mod ids;
pub mod lineage;
pub mod nbd;
pub mod peer;
pub mod point;
pub mod retention;
