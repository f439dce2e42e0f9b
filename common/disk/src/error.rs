//! What can go wrong with a disk file.

use std::io;

/// Class of a [`DiskError`], for callers that branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is out of range, unaligned, or for a read-only image.
    Invalid,
    /// The file breaks its format's rules.
    Corrupt,
    /// The file or request asks for what we do not do.
    Unsupported,
    /// The parent of a differencing disk is missing, not allowed, or not the one it was.
    Parent,
    /// Somebody else has the file open.
    Locked,
    /// No such file.
    NotFound,
    /// No room.
    NoSpace,
    /// The image is closed, or its gate is.
    Closed,
    /// An earlier failure of a sync or of metadata; open the file anew.
    Poisoned,
    /// The operating system's error.
    Io,
}

/// An operation on a disk file that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Out of range, unaligned, or for a read-only image.
    #[error("{what}")]
    Invalid {
        /// What was asked and why it cannot be.
        what: String,
    },
    /// The file breaks its format's rules.
    #[error("{structure} at offset {offset} is damaged: {detail}")]
    Corrupt {
        /// The structure, in the format's own words.
        structure: &'static str,
        /// Where in the file.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// Asks for what we do not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked.
        what: String,
    },
    /// The parent of a differencing disk is missing, not allowed, or not the one it was.
    #[error("{image} cannot be used without its parent: {why}")]
    Parent {
        /// The child.
        image: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Somebody else has the file open.
    #[error("{what} is in use by another process")]
    Locked {
        /// The file.
        what: String,
    },
    /// The image is closed, or its gate is.
    #[error("the disk is not open for this: {why}")]
    Closed {
        /// Why.
        why: &'static str,
    },
    /// An earlier failure is final until the file is opened anew.
    #[error("the disk failed earlier ({first}) and must be opened anew")]
    Poisoned {
        /// The first failure.
        first: String,
    },
    /// The operating system's error.
    #[error("{action}")]
    Io {
        /// What was tried, on what.
        action: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// An I/O error while doing `action` ("read 4096 bytes at 0 of disk.vhdx").
    #[must_use]
    pub fn io(action: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            action: action.into(),
            source,
        }
    }

    /// Its class.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Parent { .. } => ErrorKind::Parent,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::Closed { .. } => ErrorKind::Closed,
            Self::Poisoned { .. } => ErrorKind::Poisoned,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            },
        }
    }
}
