//! What sitepair does: serves guests, tracks and ships their writes, keeps recovery points,
//! and changes roles when `sitepair-model` says so.
//!
//! [`source`] and [`replica`] never mention each other; they meet at [`endpoint::PeerEndpoint`].
//! Generated proto types stay inside [`wire`].

pub mod agent;
pub mod catalog;
pub mod endpoint;
pub mod env;
pub mod nbd;
pub mod replica;
pub mod source;
pub mod wire;

/// Where an agent runs.
pub mod site {
    pub use sitepair_model::ids::Site;
}
