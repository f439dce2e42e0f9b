//! Change logs: `.hrl` files, version 2 of the Hyper-V Replica Log format that Microsoft publishes as `[MS-HRL]`.
//!
//! Owns: the format; [`HrlWriter`], which appends; [`HrlReader`], which trusts nothing, and [`HrlReader::recover`],
//! which finds what can be trusted of a log that was not closed; [`apply`], which brings a chain of logs into an image.
//!
//! Does not do: syncing of logs (the caller syncs once, for all files of a cycle), keeping strong hashes (the format
//! has none; [`ContentHash`] computes one, and the caller keeps it beside the file).
//!
//! # The file
//! All numbers are little-endian; structures are packed.
//!
//! ```text
//! 0      header, 4096 bytes
//! 4096   data of up to 127 entries, in the order of the entries, nothing between
//! ...    metadata block of 4096 bytes that describes them
//! ...    data, metadata block, ...
//! EOL    end: just after the last metadata block
//! ```
//!
//! Header:
//! ```text
//!   0  cookie "msctlog\0"              52  error code i32
//!   8  version u32 = 0x00020000        56  bytes of a metadata block u32: 4096, a multiple of 512
//!  12  created u32, seconds from 2000  60  id of this file, 16 bytes
//!  16  creator "ct\0\0"                76  id of the file before, 16 bytes
//!  20  creator's version u32           92  last modified u32, seconds from 2000
//!  24  original size u64               96  entries in all u64
//!  32  current size u64               104  file type u32 = 0
//!  40  checksum u32                   108  flags, 2 bytes, 0
//!  44  EOL u64                        110  data-write id of the VHDX, 16 bytes
//!                                     126  zeros to 4096
//! ```
//!
//! Metadata block: a header of 32 bytes, then entries of 32 bytes, then zeros.
//! ```text
//! header                                             entry
//!   0  distance back to the block before u64,          0  offset on the disk u64
//!      0 in the first block                            8  checksum of these 32 bytes u32
//!   8  valid entries u32                              12  bytes of data u32
//!  12  checksum of these 32 bytes u32                 16  time u32, seconds from 2000
//!  16  zeros                                          20  operation u8 = 1, write
//!                                                     21  checksum of the data u32
//!                                                     25  location u8 = 0
//!                                                     26  zeros
//! ```
//!
//! A checksum is the ones' complement of the sum of all bytes, its own field taken as 0. It does not see swapped bytes.
//! Windows leaves the checksum of the data at 0, which we read as "not given", and its header checksum does
//! not follow the published rule, so that a wrong one is told ([`HrlInfo::header_checksum_holds`]) and no more.
//! Windows begins with an empty metadata block, so that blocks without entries are read.
//!
//! The format knows only writes, so zeros are ordinary writes: an entry with its length, its data at its place in the
//! file, and that data's checksum. From 64 KiB on the file has a hole at that place: no byte of them is written, and a
//! reader that knows nothing of it reads zeros there. To us the checksum, 0xffffffff, tells that they are zeros
//! without reading them (entries are so short that the sum cannot overflow).
//!
//! # What a torn file is
//! EOL is 0 from creation until [`HrlWriter::finish`] writes the header again: a file without it was
//! not closed cleanly, and [`HrlReader::open`] refuses it. EOL is written without a sync between it and the data, so
//! *a file with EOL is complete only if the caller's sync returned* and he noted that elsewhere. What can still be
//! had of a torn file, and why, is told at [`HrlReader::recover`].

use std::fmt;

use uuid::Uuid;

use crate::error::DiskError;

pub mod apply;
mod content;
pub(crate) mod format;
mod info;
mod reader;
mod recover;
mod writer;

pub use content::ContentHash;
pub use info::HrlInfo;
pub use reader::{HrlEntries, HrlEntry, HrlReader};
pub use recover::{HrlRecovered, HrlTail};
pub use writer::{HrlOptions, HrlSealed, HrlWriter, empty_log};

/// Seconds since 2000-01-01 00:00:00 UTC, as the format counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct HrlTime(pub u32);

/// 2000-01-01 in seconds since 1970.
const EPOCH_UNIX_SECONDS: i64 = 946_684_800;

impl HrlTime {
    /// From seconds since 1970; times that the format cannot hold become its first or last second.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        let since = seconds
            .saturating_sub(EPOCH_UNIX_SECONDS)
            .clamp(0, i64::from(u32::MAX));
        Self(u32::try_from(since).unwrap_or(u32::MAX))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        i64::from(self.0) + EPOCH_UNIX_SECONDS
    }
}

/// `2017-02-08T04:13:00Z`.
impl fmt::Display for HrlTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, second) = (self.0 / 86_400, self.0 % 86_400);
        let leap = |year: u32| year.is_multiple_of(4) && (year != 2100);
        let mut year = 2000;
        while days >= 365 + u32::from(leap(year)) {
            days -= 365 + u32::from(leap(year));
            year += 1;
        }
        let lengths = [
            31,
            28 + u32::from(leap(year)),
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ];
        let mut month = 1;
        for length in lengths {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            days + 1
        )
    }
}

/// The name of a file, or of a disk's content: 16 bytes as they are in the file, in Microsoft's mixed order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HrlId(pub [u8; 16]);

impl fmt::Display for HrlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes_le(self.0).fmt(f)
    }
}

/// A change log that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HrlError {
    /// The writer died before it had finished.
    #[error("change log {name} was not closed cleanly")]
    NotClosed {
        /// The file.
        name: String,
    },
    /// Damaged, of another version, or not readable.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<HrlError> for DiskError {
    fn from(error: HrlError) -> Self {
        match error {
            HrlError::Disk(error) => error,
            HrlError::NotClosed { name } => Self::Corrupt {
                structure: "change log header",
                offset: format::EOL_AT as u64,
                detail: format!("{name} was not closed cleanly"),
            },
        }
    }
}

#[cfg(test)]
mod tests;
