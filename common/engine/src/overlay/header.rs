//! An overlay's header, and where things are in its file. The bytes are drawn in [the module above](super).

use std::ops::Range;
use std::path::Path;

use sitepair_disk::DiskError;
use sitepair_disk::storage::BlockFile;
use sitepair_model::extent::block_count;

use crate::blocks::sector::{SECTOR_BITS, SECTOR_BYTES};

const BYTES: usize = 4096;
const BITS_OFFSET: u64 = 4096;
/// Alignment of the live bits, and the bytes before them.
const LIVE_BYTES: u64 = 4096;
const DATA_ALIGN: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"sitepovl";
const VERSION: u32 = 1;
const CRC_OFFSET: usize = BYTES - 4;
/// Largest disk: 64 TiB, as of VHDX.
const SIZE_MAX: u64 = 1 << 46;

/// What is written once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size_bytes: u64,
    pub(super) id: [u8; 16],
    pub(super) below: [u8; 16],
}

impl Header {
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.id);
        bytes[40..56].copy_from_slice(&self.below);
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it, and checks that the file is as long as it must be.
    pub(super) fn read(file: &dyn BlockFile, path: &Path) -> Result<Self, DiskError> {
        let failed = |e| DiskError::io(format!("read {}", path.display()), e);
        let damaged = |detail: &str| DiskError::Corrupt {
            structure: "header of an overlay",
            offset: 0,
            detail: format!("{}: {detail}", path.display()),
        };
        let length = file.length().map_err(failed)?;
        if length < BITS_OFFSET {
            return Err(damaged("the file is too short"));
        }
        let mut bytes = [0; BYTES];
        file.read_at(&mut bytes, 0).map_err(failed)?;
        let crc = u32::from_le_bytes(array(&bytes, CRC_OFFSET));
        if bytes[0..8] != *MAGIC || crc != crc32c::crc32c(&bytes[..CRC_OFFSET]) {
            return Err(damaged("its signature or checksum is wrong"));
        }
        let version = u32::from_le_bytes(array(&bytes, 8));
        if version != VERSION {
            return Err(DiskError::Unsupported {
                what: format!("{}: version {version} of an overlay", path.display()),
            });
        }
        let header = Self {
            size_bytes: u64::from_le_bytes(array(&bytes, 16)),
            id: array(&bytes, 24),
            below: array(&bytes, 40),
        };
        if header.size_bytes > SIZE_MAX {
            return Err(damaged("the disk cannot be that large"));
        }
        if length < header.file_bytes() {
            return Err(damaged("the file was cut short"));
        }
        Ok(header)
    }

    /// Where the sectors of bits are.
    pub(super) fn bits(&self) -> Range<u64> {
        let sectors = block_count(self.size_bytes).div_ceil(SECTOR_BITS);
        BITS_OFFSET..Self::sector_at(sectors)
    }

    /// Offset of the `number`th sector of bits.
    pub(super) fn sector_at(number: u64) -> u64 {
        BITS_OFFSET + number * SECTOR_BYTES as u64
    }

    /// The first block that the sector of bits at `offset` speaks of.
    pub(super) fn first_block_at(offset: u64) -> u64 {
        (offset - BITS_OFFSET) / SECTOR_BYTES as u64 * SECTOR_BITS
    }

    /// Where the boot that the live bits are of is named.
    pub(super) fn live_offset(&self) -> u64 {
        self.bits().end.next_multiple_of(LIVE_BYTES)
    }

    /// Where the live bits are.
    pub(super) fn live_bits(&self) -> Range<u64> {
        let start = self.live_offset() + LIVE_BYTES;
        start..start + block_count(self.size_bytes).div_ceil(8)
    }

    /// Offset of the disk's first block.
    pub(super) fn data_offset(&self) -> u64 {
        self.live_bits().end.next_multiple_of(DATA_ALIGN)
    }

    /// Length of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.data_offset() + self.size_bytes
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("within the header")
}
