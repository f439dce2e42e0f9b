//! What a checked file is, as far as the check could tell: shown with the findings.

use serde::Serialize;

/// The file's format, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum Facts {
    /// No structure: nothing to check.
    Raw(RawFacts),
    /// A VHDX.
    Vhdx(VhdxFacts),
    /// A VHD.
    Vhd(VhdFacts),
    /// A change log.
    Hrl(HrlFacts),
}

impl Facts {
    /// The format's name.
    #[must_use]
    pub const fn format(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw",
            Self::Vhdx(_) => "vhdx",
            Self::Vhd(_) => "vhd",
            Self::Hrl(_) => "hrl",
        }
    }
}

/// How blocks of a disk take space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// All at once.
    Fixed,
    /// When they are first written.
    Dynamic,
    /// Only where they differ from a parent.
    Differencing,
}

/// State of a VHDX's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogState {
    /// Not looked at.
    #[default]
    Unknown,
    /// Empty: the disk was closed.
    Clean,
    /// It holds changes, which can be replayed.
    Dirty,
    /// It should hold changes, and cannot be replayed.
    Broken,
}

/// A raw disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RawFacts {
    /// Length of the file in bytes.
    pub file_bytes: u64,
}

/// A VHDX. What the check did not reach is none or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VhdxFacts {
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Fixed, dynamic, differencing.
    pub kind: Option<DiskKind>,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Unit of allocation in bytes.
    pub block_bytes: u64,
    /// In bytes.
    pub logical_sector_bytes: u32,
    /// In bytes.
    pub physical_sector_bytes: u32,
    /// Identity of the content.
    pub data_write_guid: Option<String>,
    /// The log.
    pub log: LogState,
    /// Changes of the log that were laid over the file in memory for this check.
    pub log_changes: u64,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks that are wholly in the file.
    pub blocks_present: u64,
    /// Blocks that are partially in the file.
    pub blocks_partial: u64,
    /// Sector bitmaps.
    pub bitmaps: u64,
    /// Bytes of the file, in whole MiB, that belong to nothing.
    pub leaked_bytes: u64,
    /// Of them, how many are at the end of the file.
    pub leaked_at_end_bytes: u64,
    /// The parent, where it was found.
    pub parent: Option<String>,
}

/// A VHD. What the check did not reach is none or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VhdFacts {
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Fixed, dynamic, differencing.
    pub kind: Option<DiskKind>,
    /// Current size of the disk in bytes.
    pub disk_bytes: u64,
    /// Size by the geometry in bytes.
    pub geometry_bytes: u64,
    /// Who made it: four characters.
    pub creator: String,
    /// The disk's id.
    pub id: Option<String>,
    /// Unit of allocation in bytes.
    pub block_bytes: u64,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks that have space.
    pub blocks_present: u64,
    /// Of them, blocks whose data begins on 4 KiB.
    pub blocks_aligned: u64,
    /// Bytes of the file that belong to nothing.
    pub leaked_bytes: u64,
    /// Where the last block or other structure before the footer ends.
    pub used_end: u64,
    /// The parent, where it was found.
    pub parent: Option<String>,
}

/// A change log. What the check did not reach is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HrlFacts {
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Whether it was closed.
    pub closed: bool,
    /// This log.
    pub id: String,
    /// The log before it.
    pub previous_id: String,
    /// Metadata blocks.
    pub metadata_blocks: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of the disk that they write.
    pub data_bytes: u64,
    /// Entries without a checksum of their data.
    pub entries_without_checksum: u64,
}
