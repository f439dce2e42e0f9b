//! Which version of the contract two agents speak.

use crate::convert::Invalid;
use crate::v1;

/// Oldest version of the contract that this agent speaks.
pub const VERSION_MIN: u32 = 1;
/// Newest version of the contract that this agent speaks.
pub const VERSION_MAX: u32 = 1;

/// A version that both ends speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What this agent says of itself in its first message.
#[must_use]
pub fn spoken() -> Option<v1::Versions> {
    Some(v1::Versions {
        min: VERSION_MIN,
        max: VERSION_MAX,
    })
}

/// The newest version that both ends speak.
///
/// # Errors
/// [`Invalid::Version`] when there is none.
pub fn negotiate(peer: Option<v1::Versions>) -> Result<Version, Invalid> {
    let peer = peer.ok_or(Invalid::Missing { field: "versions" })?;
    let highest = peer.max.min(VERSION_MAX);
    if highest >= peer.min.max(VERSION_MIN) {
        Ok(Version(highest))
    } else {
        Err(Invalid::Version {
            min: peer.min,
            max: peer.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        let ask = |min, max| {
            negotiate(Some(v1::Versions { min, max }))
                .map(Version::number)
                .ok()
        };
        assert_eq!(ask(1, 1), Some(1));
        assert_eq!(ask(0, 9), Some(1));
        assert_eq!(ask(2, 9), None);
        assert_eq!(ask(0, 0), None);
        assert_eq!(ask(9, 1), None);
        assert_eq!(negotiate(None), Err(Invalid::Missing { field: "versions" }));
    }
}
