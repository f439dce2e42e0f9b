//! Bytes of the structures, both ways. No files here.

use super::{HrlId, HrlTime};

pub(crate) const HEADER_BYTES: usize = 4096;
pub(crate) const COOKIE: &[u8; 8] = b"msctlog\0";
pub(crate) const VERSION: u32 = 0x0002_0000;
pub(super) const CREATOR: [u8; 4] = *b"ct\0\0";
/// Ours: major 1, minor 0.
pub(super) const CREATOR_VERSION: u32 = 0x0001_0000;
/// Bytes of a metadata block that we write.
pub(super) const METADATA_BYTES: usize = 4096;
/// Largest metadata block that we read.
pub(crate) const METADATA_BYTES_MAX: u32 = 1 << 20;
pub(crate) const SECTOR_BYTES: u32 = 512;
/// A block's header, and each of its entries.
pub(crate) const SLOT_BYTES: usize = 32;
pub(crate) const OPERATION_WRITE: u8 = 1;
pub(crate) const EOL_AT: usize = 44;
pub(crate) const HEADER_CHECKSUM_AT: usize = 40;
pub(crate) const BLOCK_CHECKSUM_AT: usize = 12;
pub(crate) const ENTRY_CHECKSUM_AT: usize = 8;

/// The checksum of data that is all zeros, and of nothing.
pub(super) const ZEROS_CHECKSUM: u32 = u32::MAX;
/// As long as data is not longer than this, the sum of its bytes cannot overflow.
pub(super) const SUM_EXACT_MAX: u32 = 16 << 20;

/// Sum of bytes, modulo 2^32.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    // Short runs have sums that fit 16 bits, which the compiler adds up many at a time.
    bytes.chunks(256).fold(0, |total: u32, run| {
        let part: u16 = run
            .iter()
            .fold(0, |part: u16, byte| part.wrapping_add(u16::from(*byte)));
        total.wrapping_add(u32::from(part))
    })
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    !sum(bytes)
}

/// The checksum of a structure whose own field is at `at`.
fn checksum_without(bytes: &[u8], at: usize) -> u32 {
    !(sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..])))
}

/// Fields in their order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .expect("callers pass a whole structure");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cookie: [u8; 8],
    pub(super) version: u32,
    pub(super) created: HrlTime,
    pub(super) creator: [u8; 4],
    pub(super) creator_version: u32,
    pub(super) original_size: u64,
    pub(super) current_size: u64,
    pub(super) eol: u64,
    pub(super) error_code: i32,
    pub(super) metadata_bytes: u32,
    pub(super) unique_id: HrlId,
    pub(super) previous_id: HrlId,
    pub(super) last_modified: HrlTime,
    pub(super) total_entries: u64,
    pub(super) file_type: u32,
    pub(super) data_write_id: HrlId,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&self.cookie);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.created.0.to_le_bytes());
        bytes.extend_from_slice(&self.creator);
        bytes.extend_from_slice(&self.creator_version.to_le_bytes());
        bytes.extend_from_slice(&self.original_size.to_le_bytes());
        bytes.extend_from_slice(&self.current_size.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.eol.to_le_bytes());
        bytes.extend_from_slice(&self.error_code.to_le_bytes());
        bytes.extend_from_slice(&self.metadata_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.unique_id.0);
        bytes.extend_from_slice(&self.previous_id.0);
        bytes.extend_from_slice(&self.last_modified.0.to_le_bytes());
        bytes.extend_from_slice(&self.total_entries.to_le_bytes());
        bytes.extend_from_slice(&self.file_type.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.data_write_id.0);
        let mut header = [0; HEADER_BYTES];
        header[..bytes.len()].copy_from_slice(&bytes);
        put_checksum(&mut header, HEADER_CHECKSUM_AT);
        header
    }

    /// The fields, and whether the checksum holds.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> (Self, bool) {
        let mut fields = Fields(bytes);
        let (cookie, version) = (fields.bytes(), fields.u32());
        let (created, creator) = (HrlTime(fields.u32()), fields.bytes());
        let (creator_version, original_size) = (fields.u32(), fields.u64());
        let (current_size, checksum) = (fields.u64(), fields.u32());
        let header = Self {
            cookie,
            version,
            created,
            creator,
            creator_version,
            original_size,
            current_size,
            eol: fields.u64(),
            error_code: i32::from_le_bytes(fields.bytes()),
            metadata_bytes: fields.u32(),
            unique_id: HrlId(fields.bytes()),
            previous_id: HrlId(fields.bytes()),
            last_modified: HrlTime(fields.u32()),
            total_entries: fields.u64(),
            file_type: fields.u32(),
            data_write_id: {
                let _flags: [u8; 2] = fields.bytes();
                HrlId(fields.bytes())
            },
        };
        (
            header,
            checksum == checksum_without(bytes, HEADER_CHECKSUM_AT),
        )
    }
}

/// The start of a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) distance_back: u64,
    pub(super) valid_entries: u32,
}

impl BlockHeader {
    pub(super) fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.distance_back.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.valid_entries.to_le_bytes());
        put_checksum(&mut bytes, BLOCK_CHECKSUM_AT);
        bytes
    }

    /// `None` where the checksum does not hold.
    pub(super) fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let header = Self {
            distance_back: fields.u64(),
            valid_entries: fields.u32(),
        };
        (fields.u32() == checksum_without(bytes, BLOCK_CHECKSUM_AT)).then_some(header)
    }
}

/// One entry of a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) time: HrlTime,
    pub(super) operation: u8,
    pub(super) data_checksum: u32,
}

impl RawEntry {
    pub(super) fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.time.0.to_le_bytes());
        bytes[20] = self.operation;
        bytes[21..25].copy_from_slice(&self.data_checksum.to_le_bytes());
        put_checksum(&mut bytes, ENTRY_CHECKSUM_AT);
        bytes
    }

    /// `None` where the checksum does not hold.
    pub(super) fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (offset, checksum) = (fields.u64(), fields.u32());
        let entry = Self {
            offset,
            length: fields.u32(),
            time: HrlTime(fields.u32()),
            operation: fields.bytes::<1>()[0],
            data_checksum: fields.u32(),
        };
        (checksum == checksum_without(bytes, ENTRY_CHECKSUM_AT)).then_some(entry)
    }
}

fn put_checksum(bytes: &mut [u8], at: usize) {
    let checksum = checksum_without(bytes, at);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}
