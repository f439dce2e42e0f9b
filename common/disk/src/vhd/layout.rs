//! Fixed structures of a VHD file: footer, dynamic header, geometry, where blocks and footers go.
//!
//! Receives bytes, gives out checked values and the reverse. All numbers are big-endian. Bytes that we do
//! not know are kept as they are. Pure: reads and writes no file.
//!
//! Does not do: the table of blocks (see `bat`), the parent's names (see `locator`).

use crate::error::DiskError;

pub(super) const SECTOR: u64 = 512;
pub(super) const SECTOR_BYTES: usize = 512;
/// Blocks' data begins, and the file ends, on a page of the host's disk.
pub(super) const PAGE: u64 = 4096;
pub(super) const COOKIE: &[u8; 8] = b"conectix";
pub(super) const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
pub(super) const HEADER_BYTES: usize = 1024;
/// The largest disk that Windows takes: 2040 GiB.
pub(super) const MAX_DISK_BYTES: u64 = 2040 << 30;
/// Smaller blocks would make tables of gigabytes; larger ones are unheard of.
pub(super) const BLOCK_BYTES_RANGE: std::ops::RangeInclusive<u32> = (64 << 10)..=(256 << 20);

const VERSION: u32 = 0x0001_0000;
const NONE: u64 = u64::MAX;
/// Largest that the format can say. Tools that trust the geometry do not trust this one.
const MAX_CHS: Chs = Chs {
    cylinders: 65535,
    heads: 16,
    sectors: 255,
};

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

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// For lengths that are bounded by a buffer already in memory.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit host")
}

pub(super) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("a host of at most 64 bits")
}

/// One's complement of the sum of all bytes, those of the checksum at `at` taken as zero.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
    };
    !sum(bytes).wrapping_sub(sum(&bytes[at..at + 4]))
}

/// What kind of disk a footer says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

/// Geometry for machines that address by cylinder. Never the disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chs {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Chs {
    /// The format's own rule, which rounds down.
    pub(super) fn of(size_bytes: u64) -> Self {
        const CYLINDERS_MAX: u64 = 65535;
        let total = (size_bytes / SECTOR).min(CYLINDERS_MAX * 16 * 255);
        let (sectors, heads) = if total >= CYLINDERS_MAX * 16 * 63 {
            (255, 16)
        } else {
            let tracks = total / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if heads <= 16 && tracks < heads * 1024 {
                (17, heads)
            } else if total / 31 < 16 * 1024 {
                (31, 16)
            } else {
                (63, 16)
            }
        };
        let cylinders = (total / sectors / heads).min(CYLINDERS_MAX);
        Self {
            cylinders: u16::try_from(cylinders).expect("was limited"),
            heads: u8::try_from(heads).expect("at most 16"),
            sectors: u8::try_from(sectors).expect("at most 255"),
        }
    }

    pub(super) fn bytes(self) -> u64 {
        let tracks = u64::from(self.cylinders) * u64::from(self.heads);
        tracks * u64::from(self.sectors) * SECTOR
    }

    /// What we write: the rule's, if it says the exact size. Otherwise the maximum: programs that trust the geometry
    /// of creators they do not know would cut the disk.
    fn written(size_bytes: u64) -> Self {
        let chs = Self::of(size_bytes);
        if chs.bytes() == size_bytes {
            chs
        } else {
            MAX_CHS
        }
    }
}

/// The footer, or its copy at the file's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    bytes: [u8; SECTOR_BYTES],
}

/// What a new footer says.
pub(super) struct NewFooter {
    pub(super) kind: DiskType,
    pub(super) size_bytes: u64,
    pub(super) unique_id: [u8; 16],
    /// Seconds since 2000-01-01 UTC.
    pub(super) created: u32,
}

impl Footer {
    const CHECKSUM_AT: usize = 64;
    const CREATOR: &'static [u8; 4] = b"spar";
    /// Where a new file's dynamic header is: after the copy.
    pub(super) const HEADER_OFFSET: u64 = SECTOR;

    pub(super) fn new(wanted: &NewFooter) -> Self {
        let mut bytes = [0; SECTOR_BYTES];
        let (code, header): (u32, u64) = match wanted.kind {
            DiskType::Fixed => (2, NONE),
            DiskType::Dynamic => (3, Self::HEADER_OFFSET),
            DiskType::Differencing => (4, Self::HEADER_OFFSET),
        };
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &2_u32.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(&mut bytes, 16, &header.to_be_bytes());
        put(&mut bytes, 24, &wanted.created.to_be_bytes());
        put(&mut bytes, 28, Self::CREATOR);
        put(&mut bytes, 32, &VERSION.to_be_bytes());
        put(&mut bytes, 36, b"Wi2k");
        put(&mut bytes, 40, &wanted.size_bytes.to_be_bytes());
        put(&mut bytes, 60, &code.to_be_bytes());
        put(&mut bytes, 68, &wanted.unique_id);
        Self { bytes }.resized(wanted.size_bytes)
    }

    /// The same disk with another size.
    pub(super) fn resized(&self, size_bytes: u64) -> Self {
        let mut bytes = self.bytes;
        let chs = Chs::written(size_bytes);
        put(&mut bytes, 48, &size_bytes.to_be_bytes());
        put(&mut bytes, 56, &chs.cylinders.to_be_bytes());
        put(&mut bytes, 58, &[chs.heads, chs.sectors]);
        let sum = checksum(&bytes, Self::CHECKSUM_AT);
        put(&mut bytes, Self::CHECKSUM_AT, &sum.to_be_bytes());
        Self { bytes }
    }

    /// The footer in `bytes`, or what is wrong with it: then another place may hold a better one.
    pub(super) fn decode(bytes: &[u8; SECTOR_BYTES]) -> Result<Self, &'static str> {
        if !bytes.starts_with(COOKIE) {
            return Err("there is no cookie");
        }
        if u32_at(bytes, Self::CHECKSUM_AT) != checksum(bytes, Self::CHECKSUM_AT) {
            return Err("the checksum is wrong");
        }
        Ok(Self { bytes: *bytes })
    }

    /// Checks what an intact footer at `offset` says.
    pub(super) fn check(&self, offset: u64) -> Result<DiskType, DiskError> {
        let version = u32_at(&self.bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(DiskError::Unsupported {
                what: format!("VHD version {version:#010x}"),
            });
        }
        let size = self.size_bytes();
        if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_DISK_BYTES {
            let detail = format!("a disk of {size} bytes");
            return Err(corrupt("footer", offset, detail));
        }
        match u32_at(&self.bytes, 60) {
            2 => Ok(DiskType::Fixed),
            3 => Ok(DiskType::Dynamic),
            4 => Ok(DiskType::Differencing),
            other => Err(DiskError::Unsupported {
                what: format!("VHD type {other}"),
            }),
        }
    }

    /// The exact size in bytes. What the geometry says is never asked: it rounds down.
    pub(super) fn size_bytes(&self) -> u64 {
        u64_at(&self.bytes, 48)
    }

    pub(super) fn unique_id(&self) -> [u8; 16] {
        self.bytes[68..84].try_into().expect("sixteen bytes")
    }

    pub(super) fn creator(&self) -> [u8; 4] {
        self.bytes[28..32].try_into().expect("four bytes")
    }

    pub(super) fn header_offset(&self) -> u64 {
        u64_at(&self.bytes, 16)
    }

    /// Whether both describe the same disk. Sizes may differ: growing changes one after the other.
    pub(super) fn is_same_disk(&self, other: &Self) -> bool {
        let facts = |footer: &Self| {
            (
                footer.unique_id(),
                footer.header_offset(),
                u32_at(&footer.bytes, 60),
            )
        };
        facts(self) == facts(other)
    }

    pub(super) fn bytes(&self) -> &[u8; SECTOR_BYTES] {
        &self.bytes
    }
}

/// The dynamic header, of dynamic and differencing disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) bytes: Box<[u8; HEADER_BYTES]>,
}

impl Header {
    const CHECKSUM_AT: usize = 36;

    pub(super) fn new(bat_offset: u64, entries: u32, block_bytes: u32) -> Self {
        let mut bytes = Box::new([0; HEADER_BYTES]);
        put(&mut bytes[..], 0, HEADER_COOKIE);
        put(&mut bytes[..], 8, &NONE.to_be_bytes());
        put(&mut bytes[..], 24, &VERSION.to_be_bytes());
        put(&mut bytes[..], 32, &block_bytes.to_be_bytes());
        Self { bytes }.with_bat(bat_offset, entries)
    }

    /// The same header with another table. Differs in its first sector only.
    pub(super) fn with_bat(&self, bat_offset: u64, entries: u32) -> Self {
        let mut header = self.clone();
        put(&mut header.bytes[..], 16, &bat_offset.to_be_bytes());
        put(&mut header.bytes[..], 28, &entries.to_be_bytes());
        header.seal();
        header
    }

    /// Makes the checksum right.
    pub(super) fn seal(&mut self) {
        let sum = checksum(&self.bytes[..], Self::CHECKSUM_AT);
        put(&mut self.bytes[..], Self::CHECKSUM_AT, &sum.to_be_bytes());
    }

    /// The header in `bytes`, which were read at `offset`.
    pub(super) fn decode(bytes: Box<[u8; HEADER_BYTES]>, offset: u64) -> Result<Self, DiskError> {
        let bad = |detail: String| corrupt("dynamic header", offset, detail);
        if !bytes.starts_with(HEADER_COOKIE) {
            return Err(bad("there is no cookie".to_owned()));
        }
        if u32_at(&bytes[..], Self::CHECKSUM_AT) != checksum(&bytes[..], Self::CHECKSUM_AT) {
            return Err(bad("the checksum is wrong".to_owned()));
        }
        let version = u32_at(&bytes[..], 24);
        if version >> 16 != VERSION >> 16 {
            return Err(DiskError::Unsupported {
                what: format!("dynamic header version {version:#010x}"),
            });
        }
        let header = Self { bytes };
        let block = header.block_bytes();
        if !block.is_power_of_two() || !BLOCK_BYTES_RANGE.contains(&block) {
            return Err(bad(format!("blocks of {block} bytes")));
        }
        Ok(header)
    }

    pub(super) fn bat_offset(&self) -> u64 {
        u64_at(&self.bytes[..], 16)
    }

    pub(super) fn entries(&self) -> u32 {
        u32_at(&self.bytes[..], 28)
    }

    pub(super) fn block_bytes(&self) -> u32 {
        u32_at(&self.bytes[..], 32)
    }
}

/// Sizes that follow from the size of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) block_bytes: u64,
    /// The bitmap before a block's data, in whole sectors.
    pub(super) bitmap_bytes: u64,
}

impl Shape {
    pub(super) fn new(block_bytes: u32) -> Self {
        let block_bytes = u64::from(block_bytes);
        Self {
            block_bytes,
            bitmap_bytes: (block_bytes / SECTOR / 8).next_multiple_of(SECTOR),
        }
    }

    pub(super) fn blocks(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.block_bytes)
    }

    /// A block in the file: bitmap and data.
    pub(super) fn stored_bytes(self) -> u64 {
        self.bitmap_bytes + self.block_bytes
    }

    /// Where a block goes that may begin at `free`: so that its data begins on a page.
    pub(super) fn place_after(self, free: u64) -> u64 {
        (free + self.bitmap_bytes).next_multiple_of(PAGE) - self.bitmap_bytes
    }
}

/// Where the footer goes when `used` bytes are: so that the file ends with a page. Windows goes on
/// placing blocks on pages in files whose footer is there.
pub(super) fn footer_after(used: u64) -> u64 {
    (used + SECTOR).next_multiple_of(PAGE) - SECTOR
}

/// Bytes of a table of blocks in the file.
pub(super) fn bat_bytes(entries: u64) -> u64 {
    (entries * 4).next_multiple_of(SECTOR)
}
