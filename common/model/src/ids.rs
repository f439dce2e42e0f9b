//! Names and numbers, each a type of its own.
//!
//! Names come from operators, peers and NBD clients; they are parsed here once and safe to use as
//! one component of a path afterwards.

use std::fmt;
use std::str::FromStr;

/// A name that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {given:?} is not valid: use 1 to {max} of a-z, A-Z, 0-9, '-', '_', '.', starting with a letter or digit",
    max = NAME_MAX
)]
pub struct InvalidName {
    /// Which kind of name, in words.
    pub what: &'static str,
    /// What was given, shortened.
    pub given: String,
}

/// Longest group, VM or disk name in bytes. Socket paths are short on Linux, and names are parts of them.
pub const NAME_MAX: usize = 40;

fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let ok = (1..=NAME_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if ok {
        Ok(())
    } else {
        Err(InvalidName {
            what,
            given: name.chars().take(NAME_MAX + 8).collect(),
        })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as text; a single, harmless path component.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                check_name($what, s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// What operators call a group: the unit that is protected, cut, failed over and reversed.
    GroupName,
    "group name"
);
name_type!(
    /// What operators call a disk, unique within its group.
    DiskName,
    "disk name"
);
name_type!(
    /// What operators call a test failover, unique within its group.
    TestName,
    "test's name"
);
name_type!(
    /// The name two agents share: the trust domain of their certificates.
    PairName,
    "pair name"
);

/// Where an agent runs. Belongs to the process and never changes; see [`Role`](crate::group::Role)
/// for what a site is to a group now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The site whose new groups are born as source.
    Primary,
    /// The other one.
    Secondary,
}

impl Site {
    /// The other site of the pair.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }

    /// `primary` or `secondary`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Site {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        match s {
            "primary" => Ok(Self::Primary),
            "secondary" => Ok(Self::Secondary),
            _ => Err(InvalidName {
                what: "site",
                given: s.chars().take(48).collect(),
            }),
        }
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps 16 random bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes, as written to disk and wire.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

id128!(
    /// A group, at both sites.
    GroupId
);
id128!(
    /// A disk of a group, at both sites.
    DiskId
);
id128!(
    /// The random part of a generation: decides, where the epoch only helps people.
    GenId
);
id128!(
    /// One agent process's life: every answer that may change a role is bound to it.
    Nonce
);
id128!(
    /// One request or operator command; the same id gives the same answer.
    OpId
);

/// Right to serve the guest, numbered: raised whenever that right moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation {
    /// For people, and for refusing quickly. Counts take-overs.
    pub epoch: u64,
    /// What decides.
    pub id: GenId,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_bytes();
        write!(
            f,
            "{}-{:02x}{:02x}{:02x}{:02x}",
            self.epoch, id[0], id[1], id[2], id[3]
        )
    }
}

/// The guest writes of a group between two cuts. Numbered from 1 within a group, never reused;
/// 0 means "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Cycle(pub u64);

impl Cycle {
    /// Before the first cycle.
    pub const NONE: Self = Self(0);

    /// The cycle after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("2^64 cycles at one a second outlast the sun"),
        )
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 256-bit strong hash (BLAKE3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps the hash's bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, as written to disk and wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Milliseconds since 1970 in UTC, as an agent's wall clock had it. Shown to people, and
/// a measure of points' ages; never decides what comes after what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMillis(pub i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a\0b",
            "-x",
            ".x",
            "ä",
            &"x".repeat(41),
        ] {
            assert!(bad.parse::<GroupName>().is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "sql_2.data", &"x".repeat(40)] {
            assert_eq!(good.parse::<DiskName>().unwrap().as_str(), good);
        }
    }
}
