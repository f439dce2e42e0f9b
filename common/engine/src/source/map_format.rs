//! The bytes of a change map, `IMAGE.map`.
//!
//! Little-endian. Three parts, one after the other:
//!
//! ```text
//! offset        length      content
//! 0             4096        header slot 0
//! 4096          4096        header slot 1
//! 8192          512 x L     activity log: one bit for each zone of 4 MiB, set while it is hot
//! B             512 x S     saved bitmap: one bit for each block of 4 KiB, set if it was dirty
//!
//! L = ceil(zones / 4064)    B = 8192 + 512 x L, rounded up to 4096    S = ceil(blocks / 4064)
//! ```
//!
//! A header slot; the valid one with the higher sequence number counts. Slots are written in turn,
//! each synced before the next, so that a torn one leaves the other:
//!
//! ```text
//! offset  length  content
//! 0       8       "sitepmap"
//! 8       4       version, 1
//! 12      4       flags: bit 0 stopped cleanly, bit 1 initial replication is not complete
//! 16      8       sequence number
//! 24      16      disk id
//! 40      16      group id
//! 56      16      generation id
//! 72      8       size of the disk in bytes
//! 80      8       last acknowledged cycle known when the slot was written
//! 88      16      image identity at the clean stop: data write id
//! 104     8       the same: length of the file
//! 112     16      the same: modification time in nanoseconds since 1970, signed
//! 128     3964    zeros
//! 4092    4       CRC-32C of bytes 0 to 4091
//! ```
//!
//! A sector of the log and of the bitmap is one of [`sector`](crate::blocks::sector). One whose checksum is wrong
//! counts as all ones: more is sent, nothing is forgotten.

use sitepair_disk::Identity;
use sitepair_model::extent::{BLOCK_BYTES, block_count};
use sitepair_model::ids::{Cycle, DiskId, GenId, GroupId};

use crate::blocks::sector::{SECTOR_BITS, SECTOR_BYTES};

/// Blocks in one zone of the activity log.
pub(super) const ZONE_BLOCKS: u64 = 1024;
/// Bytes of one header slot.
pub(super) const SLOT_BYTES: usize = 4096;

const LOG_OFFSET: u64 = 8192;
const MAGIC: &[u8; 8] = b"sitepmap";
const VERSION: u32 = 1;
const FLAG_CLEAN: u32 = 1;
const FLAG_SEEDING: u32 = 2;
const CRC_OFFSET: usize = SLOT_BYTES - 4;

/// Where things are in the map of a disk of some size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) zones: u64,
}

impl Layout {
    pub(super) fn new(size_bytes: u64) -> Self {
        let blocks = block_count(size_bytes);
        Self {
            blocks,
            zones: blocks.div_ceil(ZONE_BLOCKS),
        }
    }

    pub(super) fn log_sectors(self) -> u64 {
        self.zones.div_ceil(SECTOR_BITS)
    }

    pub(super) fn bitmap_sectors(self) -> u64 {
        self.blocks.div_ceil(SECTOR_BITS)
    }

    pub(super) fn log_sector_at(sector: u64) -> u64 {
        LOG_OFFSET + sector * SECTOR_BYTES as u64
    }

    pub(super) fn bitmap_offset(self) -> u64 {
        Self::log_sector_at(self.log_sectors()).next_multiple_of(BLOCK_BYTES)
    }

    pub(super) fn bitmap_sector_at(self, sector: u64) -> u64 {
        self.bitmap_offset() + sector * SECTOR_BYTES as u64
    }

    pub(super) fn file_bytes(self) -> u64 {
        self.bitmap_sector_at(self.bitmap_sectors())
    }

    /// Zones that blocks `[first, end)` lie in: first, and one past the last.
    pub(super) fn zones_of(first: u64, end: u64) -> (u64, u64) {
        (first / ZONE_BLOCKS, end.div_ceil(ZONE_BLOCKS))
    }

    /// Blocks of a zone: first, and one past the last.
    pub(super) fn blocks_of_zone(self, zone: u64) -> (u64, u64) {
        (
            zone * ZONE_BLOCKS,
            ((zone + 1) * ZONE_BLOCKS).min(self.blocks),
        )
    }

    /// Blocks of a bitmap sector: first, and one past the last.
    pub(super) fn blocks_of_sector(self, sector: u64) -> (u64, u64) {
        (
            sector * SECTOR_BITS,
            ((sector + 1) * SECTOR_BITS).min(self.blocks),
        )
    }
}

/// What a header slot says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) disk: DiskId,
    pub(super) group: GroupId,
    pub(super) generation: GenId,
    pub(super) size_bytes: u64,
    pub(super) acknowledged: Cycle,
    /// Identity of the image at a clean stop; `None` while the map is in use.
    pub(super) clean: Option<Identity>,
    /// Whether initial replication is not complete.
    pub(super) seeding: bool,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        let mut flags = 0;
        if self.clean.is_some() {
            flags |= FLAG_CLEAN;
        }
        if self.seeding {
            flags |= FLAG_SEEDING;
        }
        let identity = self.clean.unwrap_or_default();
        slot[0..8].copy_from_slice(MAGIC);
        slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
        slot[12..16].copy_from_slice(&flags.to_le_bytes());
        slot[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        slot[24..40].copy_from_slice(self.disk.as_bytes());
        slot[40..56].copy_from_slice(self.group.as_bytes());
        slot[56..72].copy_from_slice(self.generation.as_bytes());
        slot[72..80].copy_from_slice(&self.size_bytes.to_le_bytes());
        slot[80..88].copy_from_slice(&self.acknowledged.0.to_le_bytes());
        slot[88..104].copy_from_slice(&identity.data_write_id);
        slot[104..112].copy_from_slice(&identity.file_bytes.to_le_bytes());
        slot[112..128].copy_from_slice(&identity.modified_ns.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..CRC_OFFSET]);
        slot[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// The header in a slot, or `None` when the slot holds none (torn, never written, foreign).
    pub(super) fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Self> {
        let crc = crc32c::crc32c(&slot[..CRC_OFFSET]);
        let flags = u32::from_le_bytes(array(slot, 12));
        let known = slot[0..8] == *MAGIC
            && u32::from_le_bytes(array(slot, 8)) == VERSION
            && u32::from_le_bytes(array(slot, CRC_OFFSET)) == crc
            && flags & !(FLAG_CLEAN | FLAG_SEEDING) == 0;
        if !known {
            return None;
        }
        let identity = Identity {
            data_write_id: array(slot, 88),
            file_bytes: u64::from_le_bytes(array(slot, 104)),
            modified_ns: i128::from_le_bytes(array(slot, 112)),
        };
        Some(Self {
            sequence: u64::from_le_bytes(array(slot, 16)),
            disk: DiskId::from_bytes(array(slot, 24)),
            group: GroupId::from_bytes(array(slot, 40)),
            generation: GenId::from_bytes(array(slot, 56)),
            size_bytes: u64::from_le_bytes(array(slot, 72)),
            acknowledged: Cycle(u64::from_le_bytes(array(slot, 80))),
            clean: (flags & FLAG_CLEAN != 0).then_some(identity),
            seeding: flags & FLAG_SEEDING != 0,
        })
    }

    /// Which slot this header belongs in.
    pub(super) fn slot_at(&self) -> u64 {
        (self.sequence & 1) * SLOT_BYTES as u64
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("a slice of N bytes is an array of N")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_a_damaged_one_does_not() {
        let header = Header {
            sequence: 7,
            disk: DiskId::from_bytes([1; 16]),
            group: GroupId::from_bytes([2; 16]),
            generation: GenId::from_bytes([3; 16]),
            size_bytes: 1 << 40,
            acknowledged: Cycle(99),
            clean: Some(Identity {
                data_write_id: [4; 16],
                file_bytes: 5,
                modified_ns: -6,
            }),
            seeding: true,
        };
        let slot = header.encode();
        assert_eq!(Header::decode(&slot), Some(header));
        for at in [0, 8, 12, 90, 4000, 4095] {
            let mut bad = slot;
            bad[at] ^= 0x40;
            assert_eq!(Header::decode(&bad), None, "byte {at}");
        }
        assert_eq!(Header::decode(&[0; SLOT_BYTES]), None);
    }

    #[test]
    fn the_parts_of_the_file_do_not_overlap() {
        for size in [512, 4096, 1 << 30, (1 << 46) + 512] {
            let layout = Layout::new(size);
            assert!(layout.bitmap_offset() >= Layout::log_sector_at(layout.log_sectors()));
            assert!(layout.bitmap_sectors() * SECTOR_BITS >= layout.blocks);
            assert!(layout.zones * ZONE_BLOCKS >= layout.blocks);
        }
    }
}
