//! Fixed structures of a VHDX file: identifier, headers, region tables, BAT entries.
//!
//! Receives bytes, gives out parsed values and the reverse. Pure: reads and writes no file.
//! Does not do: the log (see `entry`), metadata items (see `metadata`).

use uuid::Uuid;

use crate::error::DiskError;

/// A GUID as it is stored: the first three fields little-endian.
pub(crate) type Guid = [u8; 16];

pub(crate) const NO_GUID: Guid = [0; 16];
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const KIB64: u64 = 64 << 10;
pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const PAGE: u64 = 4096;

pub(crate) const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
pub(crate) const HEADER_OFFSETS: [u64; 2] = [KIB64, 2 * KIB64];
pub(crate) const REGION_TABLE_OFFSETS: [u64; 2] = [3 * KIB64, 4 * KIB64];
pub(super) const REGION_TABLE_BYTES: usize = 64 << 10;
/// Everything from here on belongs to the log, a region or a block.
pub(crate) const FIRST_FREE: u64 = MIB;

pub(crate) const BAT_REGION: Guid = guid(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);
pub(crate) const METADATA_REGION: Guid = guid(0x8B7C_A206_4790_4B9A_B8FE_575F_050F_886E);

/// The largest disk the format knows.
pub(crate) const MAX_DISK_BYTES: u64 = 64 << 40;
pub(crate) const MAX_REGIONS: u32 = 2047;

pub(crate) const fn guid(value: u128) -> Guid {
    Uuid::from_u128(value).to_bytes_le()
}

pub(crate) fn random_guid() -> Guid {
    Uuid::new_v4().to_bytes_le()
}

pub(super) fn corrupt(
    structure: &'static str,
    offset: u64,
    detail: impl Into<String>,
) -> DiskError {
    DiskError::Corrupt {
        structure,
        offset,
        detail: detail.into(),
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn guid_at(bytes: &[u8], at: usize) -> Guid {
    bytes[at..at + 16].try_into().expect("sixteen bytes")
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// For lengths that are bounded by a buffer already in memory.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit host")
}

pub(super) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("a host of at most 64 bits")
}

/// CRC-32C of `bytes` with the four bytes at 4 taken as zero, as all VHDX structures have it.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}

/// A range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Span {
    /// The first byte after it. Spans are checked to lie in the file before this is asked.
    pub(super) const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub(super) fn overlaps(self, other: Span) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Checks the rule for the log and all regions: whole MiB, after the headers, inside the file.
    pub(super) fn check(
        self,
        structure: &'static str,
        at: u64,
        file_bytes: u64,
    ) -> Result<(), DiskError> {
        let aligned = self.offset.is_multiple_of(MIB) && self.length.is_multiple_of(MIB);
        if !aligned || self.length == 0 || self.offset < FIRST_FREE {
            return Err(corrupt(
                structure,
                at,
                format!(
                    "{} bytes at {} are not whole mebibytes",
                    self.length, self.offset
                ),
            ));
        }
        match self.offset.checked_add(self.length) {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(corrupt(
                structure,
                at,
                format!(
                    "{} bytes at {} end after the file of {file_bytes}",
                    self.length, self.offset
                ),
            )),
        }
    }
}

/// One of the two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) file_write: Guid,
    pub(super) data_write: Guid,
    /// All zeros: the log is empty.
    pub(super) log_guid: Guid,
    pub(super) log_version: u16,
    pub(super) version: u16,
    pub(super) log: Span,
}

impl Header {
    /// `None` when the signature or the checksum is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if &bytes[..4] != b"head" || u32_at(bytes, 4) != checksum(bytes) {
            return None;
        }
        Some(Self {
            sequence: u64_at(bytes, 8),
            file_write: guid_at(bytes, 16),
            data_write: guid_at(bytes, 32),
            log_guid: guid_at(bytes, 48),
            log_version: u16_at(bytes, 64),
            version: u16_at(bytes, 66),
            log: Span {
                offset: u64_at(bytes, 72),
                length: u64::from(u32_at(bytes, 68)),
            },
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        put(&mut bytes, 0, b"head");
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write);
        put(&mut bytes, 32, &self.data_write);
        put(&mut bytes, 48, &self.log_guid);
        put(&mut bytes, 64, &self.log_version.to_le_bytes());
        put(&mut bytes, 66, &self.version.to_le_bytes());
        let log_bytes = u32::try_from(self.log.length).expect("read from, or made as, 32 bits");
        put(&mut bytes, 68, &log_bytes.to_le_bytes());
        put(&mut bytes, 72, &self.log.offset.to_le_bytes());
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }
}

/// The slot and content of the current header: the only valid one, or the one with the larger
/// sequence number. Equal numbers are fine when the headers are equal, too.
pub(super) fn current_header(slots: [Option<Header>; 2]) -> Result<(usize, Header), DiskError> {
    match slots {
        [Some(first), Some(second)] => {
            if first.sequence == second.sequence && first != second {
                return Err(corrupt(
                    "header",
                    HEADER_OFFSETS[0],
                    format!(
                        "both headers have sequence number {}, and differ",
                        first.sequence
                    ),
                ));
            }
            if second.sequence > first.sequence {
                Ok((1, second))
            } else {
                Ok((0, first))
            }
        }
        [Some(first), None] => Ok((0, first)),
        [None, Some(second)] => Ok((1, second)),
        [None, None] => Err(corrupt(
            "header",
            HEADER_OFFSETS[0],
            "neither header has a valid checksum",
        )),
    }
}

/// An entry of the region table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) guid: Guid,
    pub(super) span: Span,
    pub(super) required: bool,
}

/// `None` when signature, checksum or count are wrong.
pub(super) fn decode_regions(bytes: &[u8]) -> Option<Vec<Region>> {
    if &bytes[..4] != b"regi" || u32_at(bytes, 4) != checksum(bytes) {
        return None;
    }
    let count = u32_at(bytes, 8);
    if count > MAX_REGIONS {
        return None;
    }
    let regions = bytes[16..]
        .chunks_exact(32)
        .take(usize::try_from(count).ok()?);
    Some(
        regions
            .map(|entry| Region {
                guid: guid_at(entry, 0),
                span: Span {
                    offset: u64_at(entry, 16),
                    length: u64::from(u32_at(entry, 24)),
                },
                required: u32_at(entry, 28) & 1 != 0,
            })
            .collect(),
    )
}

pub(super) fn encode_regions(regions: &[Region]) -> Vec<u8> {
    let mut bytes = vec![0; REGION_TABLE_BYTES];
    put(&mut bytes, 0, b"regi");
    let count = u32::try_from(regions.len()).expect("two regions");
    put(&mut bytes, 8, &count.to_le_bytes());
    for (index, region) in regions.iter().enumerate() {
        let at = 16 + index * 32;
        put(&mut bytes, at, &region.guid);
        put(&mut bytes, at + 16, &region.span.offset.to_le_bytes());
        let length = u32::try_from(region.span.length).expect("a region under 4 GiB");
        put(&mut bytes, at + 24, &length.to_le_bytes());
        put(
            &mut bytes,
            at + 28,
            &u32::from(region.required).to_le_bytes(),
        );
    }
    let crc = checksum(&bytes);
    put(&mut bytes, 4, &crc.to_le_bytes());
    bytes
}

/// An entry of the BAT, as it is stored: state in bits 0 to 2, mebibyte in 20 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatEntry(pub(super) u64);

const STATE_MASK: u64 = 7;
const RESERVED_MASK: u64 = 0x000F_FFF8;
const ZERO: u64 = 2;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// All of them here, from this offset of the file on.
    Here(u64),
    /// Those that the sector bitmap names here, the others in the parent.
    Partly(u64),
    /// In the parent.
    Parent,
    /// Nowhere: they are zeros.
    Zeros,
}

impl BatEntry {
    /// Reads as zeros, has no space; what whole-block trims and new dynamic disks have.
    pub(super) const ZERO: Self = Self(ZERO);
    /// The largest entry of a state without space and without anything wrong.
    pub(super) const LAST_BLANK: u64 = 3;

    /// The block lies at `offset` of the file, a multiple of 1 MiB. Also for sector bitmaps.
    pub(super) fn present(offset: u64) -> Self {
        assert!(offset.is_multiple_of(MIB), "blocks lie on whole mebibytes");
        Self(offset | FULLY_PRESENT)
    }

    /// As `present`, for the sectors that the block's bitmap names.
    pub(super) fn partial(offset: u64) -> Self {
        assert!(offset.is_multiple_of(MIB), "blocks lie on whole mebibytes");
        Self(offset | PARTIALLY_PRESENT)
    }

    /// Where the block's bytes are. Without a parent, what would be there is zeros.
    pub(super) fn found(self, has_parent: bool) -> Found {
        match self.0 & STATE_MASK {
            0 if has_parent => Found::Parent,
            FULLY_PRESENT => Found::Here(self.space()),
            PARTIALLY_PRESENT => Found::Partly(self.space()),
            _ => Found::Zeros,
        }
    }

    /// Offset of the space that the entry owns in whatever state; 0 for none.
    pub(super) fn space(self) -> u64 {
        self.0 & !(MIB - 1)
    }

    /// What is wrong with it as a payload entry, other than its place.
    pub(super) fn fault(self, has_parent: bool) -> Option<String> {
        if self.0 & RESERVED_MASK != 0 {
            return Some(format!("entry {:#x} has reserved bits set", self.0));
        }
        match self.0 & STATE_MASK {
            0..=3 => None,
            FULLY_PRESENT | PARTIALLY_PRESENT if self.space() == 0 => {
                Some("the block is present without an offset".to_owned())
            }
            FULLY_PRESENT => None,
            PARTIALLY_PRESENT if has_parent => None,
            PARTIALLY_PRESENT => {
                Some("the block is partially present in a disk without a parent".to_owned())
            }
            state => Some(format!("state {state} does not exist")),
        }
    }

    /// What is wrong with it as the entry of a sector bitmap, other than its place.
    pub(super) fn bitmap_fault(self, has_parent: bool) -> Option<String> {
        match self.0 {
            0 => None,
            _ if !has_parent => Some("a sector bitmap in a disk without a parent".to_owned()),
            _ if self.0 & RESERVED_MASK != 0
                || self.0 & STATE_MASK != FULLY_PRESENT
                || self.space() == 0 =>
            {
                Some(format!("{:#x} is no entry of a sector bitmap", self.0))
            }
            _ => None,
        }
    }
}

/// Arithmetic of blocks, chunks and BAT entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) block_bytes: u64,
    /// Bytes for which a sector bitmap has one bit.
    pub(super) sector_bytes: u64,
    /// Payload entries between two sector-bitmap entries.
    pub(super) chunk_ratio: u64,
    pub(super) has_parent: bool,
}

impl Shape {
    pub(super) fn new(block_bytes: u32, logical_sector_bytes: u32, has_parent: bool) -> Self {
        let block_bytes = u64::from(block_bytes);
        let sector_bytes = u64::from(logical_sector_bytes);
        Self {
            block_bytes,
            sector_bytes,
            chunk_ratio: (1 << 23) * sector_bytes / block_bytes,
            has_parent,
        }
    }

    pub(super) fn blocks(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.block_bytes)
    }

    /// Index in the BAT of a payload block.
    pub(super) fn bat_index(self, block: u64) -> u64 {
        block + block / self.chunk_ratio
    }

    /// Index in the BAT of the bitmap of a chunk.
    pub(super) fn bitmap_index(self, chunk: u64) -> u64 {
        (chunk + 1) * self.chunk_ratio + chunk
    }

    pub(super) fn is_bitmap_entry(self, index: u64) -> bool {
        index % (self.chunk_ratio + 1) == self.chunk_ratio
    }

    /// The block of a payload entry.
    pub(super) fn block_at(self, index: u64) -> u64 {
        index - index / (self.chunk_ratio + 1)
    }

    /// Entries that a disk of this size needs: with a parent, also the bitmap of the last chunk.
    pub(super) fn bat_entries(self, size_bytes: u64) -> u64 {
        let blocks = self.blocks(size_bytes);
        if self.has_parent {
            blocks.div_ceil(self.chunk_ratio) * (self.chunk_ratio + 1)
        } else {
            blocks + (blocks - 1) / self.chunk_ratio
        }
    }
}
