//! What a qcow2 header says that decides whether we open the file: crate imago trusts more than we do.
//!
//! Does not do: anything behind the header.

use crate::error::DiskError;
use crate::storage::BlockFile;

/// A header of version 3 without its extensions, big-endian.
const HEADER_BYTES: usize = 104;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
/// Dirty, corrupt, external data, compression type, extended L2 entries: what we know of.
const KNOWN: u64 = 0b1_1111;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The fields that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    version: u32,
    backing_offset: u64,
    cluster_bits: u32,
    pub(super) size_bytes: u64,
    encryption: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcounts_offset: u64,
    refcounts_clusters: u32,
    snapshots: u32,
    incompatible: u64,
    autoclear: u64,
    /// Bits of a refcount are two to the power of this.
    refcount_order: u32,
}

impl Header {
    pub(super) fn read(file: &dyn BlockFile, name: &str) -> Result<Self, DiskError> {
        let failed = |e| DiskError::io(format!("read the header of {name}"), e);
        let length = file.length().map_err(failed)?;
        let mut bytes = [0; HEADER_BYTES];
        let there = usize::try_from(length).map_or(HEADER_BYTES, |n| n.min(HEADER_BYTES));
        file.read_at(&mut bytes[..there], 0).map_err(failed)?;
        if !bytes.starts_with(b"QFI\xfb") || there < 72 {
            return Err(damaged(0, format!("{name} is not a qcow2 image")));
        }
        let u32_at = |at: usize| {
            u32::from_be_bytes(bytes[at..at + 4].try_into().expect("within the header"))
        };
        let u64_at = |at: usize| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("within the header"))
        };
        let version = u32_at(4);
        let features = |at: usize| if version >= 3 { u64_at(at) } else { 0 };
        Ok(Self {
            version,
            backing_offset: u64_at(8),
            cluster_bits: u32_at(20),
            size_bytes: u64_at(24),
            encryption: u32_at(32),
            l1_entries: u32_at(36),
            l1_offset: u64_at(40),
            refcounts_offset: u64_at(48),
            refcounts_clusters: u32_at(56),
            snapshots: u32_at(60),
            incompatible: features(72),
            autoclear: features(88),
            refcount_order: if version >= 3 { u32_at(96) } else { 4 },
        })
    }

    pub(super) fn cluster_bytes(&self) -> u32 {
        1 << self.cluster_bits.min(*CLUSTER_BITS.end())
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        u64::from(self.cluster_bytes())
    }

    /// Offset and bytes.
    pub(super) fn l1_table(&self) -> (u64, u64) {
        (self.l1_offset, u64::from(self.l1_entries) * 8)
    }

    /// Offset and bytes.
    pub(super) fn refcount_table(&self) -> (u64, u64) {
        let bytes = u64::from(self.refcounts_clusters) << self.cluster_bits;
        (self.refcounts_offset, bytes)
    }

    /// Offset and bytes of the data of a compressed cluster.
    pub(super) fn compressed(&self, entry: u64) -> (u64, u64) {
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & !(3 << 62)) >> bits;
        (offset, (sectors + 1) * 512 - offset % 512)
    }

    /// Refcounts of one cluster of them.
    pub(super) fn counts_per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Whether the refcount with that number in a block is not 0.
    pub(super) fn is_counted(&self, block: &[u8], number: u64) -> bool {
        let bit = number << self.refcount_order;
        let byte = usize::try_from(bit / 8).expect("within a cluster");
        match self.refcount_order {
            // Several in a byte, the first in its lowest bits.
            0..3 => (block[byte] >> (bit % 8)) & ((1 << (1_u32 << self.refcount_order)) - 1) != 0,
            _ => block[byte..byte + (1 << (self.refcount_order - 3))]
                .iter()
                .any(|b| *b != 0),
        }
    }

    /// Where in a block the last byte of the refcount with that number is; none where counts are less than a byte.
    pub(super) fn count_at(&self, number: u64) -> Option<u64> {
        let bytes = 1_u64 << self.refcount_order.checked_sub(3)?;
        Some((number + 1) * bytes - 1)
    }

    /// Whether it was not closed: its refcounts may be wrong.
    pub(super) fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// Refuses what we cannot serve, and tables that are larger than the file, before anything is read into memory.
    pub(super) fn check(&self, length: u64, name: &str, read_only: bool) -> Result<(), DiskError> {
        let unsupported = |what: String| Err(DiskError::Unsupported { what });
        if !(2..=3).contains(&self.version) {
            return unsupported(format!("version {} of qcow2 image {name}", self.version));
        }
        if self.backing_offset != 0 {
            return unsupported(format!(
                "qcow2 image {name} with a backing file (make it whole with qemu-img convert)"
            ));
        }
        if self.incompatible & EXTERNAL_DATA != 0 {
            return unsupported(format!("qcow2 image {name} with its data in another file"));
        }
        if self.incompatible & (COMPRESSION_TYPE | EXTENDED_L2 | !KNOWN) != 0 {
            let bits = self.incompatible;
            return unsupported(format!("qcow2 image {name} with features {bits:#x}"));
        }
        if self.encryption != 0 {
            return unsupported(format!("qcow2 image {name}, which is encrypted,"));
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(512) {
            let size = self.size_bytes;
            return unsupported(format!(
                "qcow2 image {name} of {size} bytes (not sectors of 512)"
            ));
        }
        if !read_only {
            self.check_for_writing(name)?;
        }
        self.check_tables(length, name)
    }

    fn check_for_writing(&self, name: &str) -> Result<(), DiskError> {
        let why = if self.version < 3 {
            "of version 2, which cannot be marked while it is open (qemu-img amend -o compat=1.1),"
        } else if self.incompatible & CORRUPT != 0 {
            "which is marked as corrupt (repair it with qemu-img check -r all),"
        } else if self.snapshots > 0 {
            "which has internal snapshots (delete them with qemu-img snapshot -d),"
        } else if self.autoclear != 0 {
            "which has bitmaps that writing would make wrong (remove them with qemu-img bitmap),"
        } else {
            return Ok(());
        };
        let what = format!("writing to qcow2 image {name}, {why}");
        Err(DiskError::Unsupported { what })
    }

    fn check_tables(&self, length: u64, name: &str) -> Result<(), DiskError> {
        if !CLUSTER_BITS.contains(&self.cluster_bits) {
            let detail = format!("clusters of 2^{} bytes in {name}", self.cluster_bits);
            return Err(damaged(20, detail));
        }
        if self.refcount_order > 6 {
            let detail = format!("refcounts of 2^{} bits in {name}", self.refcount_order);
            return Err(damaged(96, detail));
        }
        for (at, (offset, bytes)) in [(40, self.l1_table()), (48, self.refcount_table())] {
            let end = offset.checked_add(bytes);
            if end.is_none_or(|end| end > length) {
                let detail = format!("{bytes} bytes at {offset} are not in {name} of {length}");
                return Err(damaged(at, detail));
            }
        }
        // One entry of L1 leads to one cluster of L2 entries, 8 bytes each.
        let per_entry = 1_u64 << (2 * self.cluster_bits - 3);
        if self.size_bytes.div_ceil(per_entry) > u64::from(self.l1_entries) {
            let detail = format!("the L1 table of {name} is too short for the disk's size");
            return Err(damaged(36, detail));
        }
        Ok(())
    }
}

fn damaged(offset: u64, detail: String) -> DiskError {
    DiskError::Corrupt {
        structure: "qcow2 header",
        offset,
        detail,
    }
}
