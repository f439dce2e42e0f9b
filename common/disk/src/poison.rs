//! The failure that ends the use of a file: after a failed sync nobody knows what of it is on the disk.
//!
//! Owns: the first such failure of a file or an image. Gives it out to everybody who comes later.
//!
//! Does not do: deciding which failures are final.
//!
//! # Invariants
//! 1. The first failure stays: every later check gives it out.

use std::io;
use std::sync::OnceLock;

use crate::error::DiskError;

/// The first failure that made the file unusable.
#[derive(Default)]
pub(crate) struct Poison(OnceLock<String>);

impl Poison {
    /// The failure, if there was one.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    pub(crate) fn check(&self) -> Result<(), DiskError> {
        match self.first() {
            None => Ok(()),
            Some(first) => Err(DiskError::Poisoned {
                first: first.to_owned(),
            }),
        }
    }

    /// Remembers the failure of a file below an image, if it is the first. Whether it is.
    pub(crate) fn remember(&self, failure: String) -> bool {
        self.0.set(failure).is_ok()
    }

    /// Remembers the failure of an image, if it is the first, and gives it out as an error.
    pub(crate) fn set(&self, action: String, source: io::Error) -> DiskError {
        let first = format!("{action}: {source}");
        if self.remember(first.clone()) {
            tracing::error!(failure = first, "the image is poisoned");
        }
        DiskError::io(action, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays() {
        let poison = Poison::default();
        poison.check().unwrap();
        let failed = poison.set("sync of a".to_owned(), io::Error::other("first"));
        assert!(matches!(failed, DiskError::Io { .. }));
        let _ = poison.set("sync of b".to_owned(), io::Error::other("second"));
        assert!(!poison.remember("third".to_owned()));
        let Err(DiskError::Poisoned { first }) = poison.check() else {
            panic!("it is poisoned");
        };
        assert_eq!(first, "sync of a: first");
    }
}
