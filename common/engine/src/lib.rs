//! What sitepair does: serves guests, tracks and ships their writes, keeps recovery points,
//! and changes roles when `sitepair-model` says so.
//!
//! [`source`] and [`replica`] never mention each other; they meet at [`endpoint::PeerEndpoint`].
//! Generated proto types stay inside [`wire`].

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod agent;
mod blocks;
pub mod catalog;
pub mod endpoint;
pub mod env;
pub mod nbd;
pub mod overlay;
pub mod replica;
pub mod source;
pub mod wire;

/// Where an agent runs.
pub mod site {
    pub use sitepair_model::ids::Site;
}

/// Locks a mutex whose content stays whole even if a holder panicked.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
