//! One entry of the log: pages of metadata that change together.
//!
//! ```text
//! sector 0   header 64 B, then up to 126 descriptors of 32 B
//! sector 1.. 128 descriptors each, when there are more
//! then       one data sector for each data descriptor, in their order
//! ```
//! Receives bytes, gives out a checked [`Entry`], and the reverse. Pure. Does not know the ring.

use super::layout::{
    Guid, PAGE, PAGE_BYTES, checksum, guid_at, put, to_u64, to_usize, u32_at, u64_at,
};

const HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;
const FIRST_SECTOR_DESCRIPTORS: usize = (PAGE_BYTES - HEADER_BYTES) / DESCRIPTOR_BYTES;
const SECTOR_DESCRIPTORS: usize = PAGE_BYTES / DESCRIPTOR_BYTES;

/// Content of one 4 KiB page of the file.
pub(super) type Page = Box<[u8; PAGE_BYTES]>;

/// The header of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryHeader {
    pub(super) length: u64,
    /// Offset in the ring of the oldest entry that must be applied with this one.
    pub(super) tail: u64,
    pub(super) sequence: u64,
    pub(super) guid: Guid,
    /// The file was at least this long, durably, when the entry was written.
    pub(super) flushed_file_bytes: u64,
    /// All structures fit below this.
    pub(super) last_file_bytes: u64,
    descriptors: usize,
}

/// A change of the file that an entry asks for.
#[derive(Debug)]
pub(super) enum Change {
    /// The page at this offset becomes this.
    Data(u64, Page),
    /// From this offset, this many bytes become zero.
    Zero(u64, u64),
}

impl EntryHeader {
    /// Parses the first sector. `None` when it can't start an entry of `guid` in a ring of `ring_bytes`.
    pub(super) fn decode(sector: &[u8], guid: &Guid, ring_bytes: u64) -> Option<Self> {
        if &sector[..4] != b"loge" || &guid_at(sector, 32) != guid {
            return None;
        }
        let header = Self {
            length: u64::from(u32_at(sector, 8)),
            tail: u64::from(u32_at(sector, 12)),
            sequence: u64_at(sector, 16),
            guid: *guid,
            flushed_file_bytes: u64_at(sector, 48),
            last_file_bytes: u64_at(sector, 56),
            descriptors: usize::try_from(u32_at(sector, 24)).ok()?,
        };
        let aligned = header.length.is_multiple_of(PAGE) && header.tail.is_multiple_of(PAGE);
        let inside = header.length <= ring_bytes && header.tail < ring_bytes;
        let room = to_u64(descriptor_sectors(header.descriptors)) * PAGE <= header.length;
        (aligned && inside && room && header.length > 0 && header.sequence > 0).then_some(header)
    }

    /// Checks the whole entry and takes its changes apart. `None` when anything is wrong with it.
    pub(super) fn changes(&self, bytes: &[u8]) -> Option<Vec<Change>> {
        if to_u64(bytes.len()) != self.length || u32_at(bytes, 4) != checksum(bytes) {
            return None;
        }
        let mut data_at = descriptor_sectors(self.descriptors) * PAGE_BYTES;
        let mut changes = Vec::with_capacity(self.descriptors);
        let descriptors = bytes[HEADER_BYTES..].chunks_exact(DESCRIPTOR_BYTES);
        for descriptor in descriptors.take(self.descriptors) {
            let offset = u64_at(descriptor, 16);
            if u64_at(descriptor, 24) != self.sequence || !offset.is_multiple_of(PAGE) {
                return None;
            }
            match &descriptor[..4] {
                b"desc" => {
                    let sector = bytes.get(data_at..data_at + PAGE_BYTES)?;
                    changes.push(Change::Data(offset, self.page(descriptor, sector)?));
                    data_at += PAGE_BYTES;
                }
                b"zero" => {
                    let length = u64_at(descriptor, 8);
                    if !length.is_multiple_of(PAGE) || offset.checked_add(length).is_none() {
                        return None;
                    }
                    changes.push(Change::Zero(offset, length));
                }
                _ => return None,
            }
        }
        (data_at <= bytes.len()).then_some(changes)
    }

    /// Puts a page together: its first 8 and last 4 bytes are in the descriptor.
    fn page(&self, descriptor: &[u8], sector: &[u8]) -> Option<Page> {
        let sequence = u64::from(u32_at(sector, 4)) << 32 | u64::from(u32_at(sector, 4092));
        if &sector[..4] != b"data" || sequence != self.sequence {
            return None;
        }
        let mut page = Box::new([0; PAGE_BYTES]);
        page[..8].copy_from_slice(&descriptor[8..16]);
        page[8..4092].copy_from_slice(&sector[8..4092]);
        page[4092..].copy_from_slice(&descriptor[4..8]);
        Some(page)
    }
}

/// What a new entry says apart from its pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewEntry {
    pub(super) tail: u64,
    pub(super) sequence: u64,
    pub(super) guid: Guid,
    pub(super) flushed_file_bytes: u64,
    pub(super) last_file_bytes: u64,
}

impl NewEntry {
    /// The entry's bytes, with data descriptors only.
    pub(super) fn encode(&self, pages: &[(u64, Page)]) -> Vec<u8> {
        let data_from = descriptor_sectors(pages.len()) * PAGE_BYTES;
        let mut bytes = vec![0; data_from + pages.len() * PAGE_BYTES];
        let narrow = |value: u64| u32::try_from(value).expect("within a ring under 4 GiB");
        let length = narrow(to_u64(bytes.len()));
        put(&mut bytes, 0, b"loge");
        put(&mut bytes, 8, &length.to_le_bytes());
        put(&mut bytes, 12, &narrow(self.tail).to_le_bytes());
        put(&mut bytes, 16, &self.sequence.to_le_bytes());
        put(&mut bytes, 24, &narrow(to_u64(pages.len())).to_le_bytes());
        put(&mut bytes, 32, &self.guid);
        put(&mut bytes, 48, &self.flushed_file_bytes.to_le_bytes());
        put(&mut bytes, 56, &self.last_file_bytes.to_le_bytes());
        let sequence = self.sequence.to_le_bytes();
        for (index, (offset, page)) in pages.iter().enumerate() {
            let at = HEADER_BYTES + index * DESCRIPTOR_BYTES;
            put(&mut bytes, at, b"desc");
            put(&mut bytes, at + 4, &page[4092..]);
            put(&mut bytes, at + 8, &page[..8]);
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 24, &sequence);
            let at = data_from + index * PAGE_BYTES;
            put(&mut bytes, at, b"data");
            put(&mut bytes, at + 4, &sequence[4..]);
            put(&mut bytes, at + 8, &page[8..4092]);
            put(&mut bytes, at + 4092, &sequence[..4]);
        }
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }
}

/// Length of an entry of `pages` pages in bytes.
pub(super) fn entry_bytes(pages: usize) -> u64 {
    to_u64(pages + descriptor_sectors(pages)) * PAGE
}

/// How many pages fit an entry of at most `bytes`.
pub(super) fn pages_in(bytes: u64) -> usize {
    let sectors = to_usize(bytes / PAGE);
    let mut pages = sectors.saturating_sub(1);
    while pages > 0 && pages + descriptor_sectors(pages) > sectors {
        pages -= 1;
    }
    pages
}

fn descriptor_sectors(count: usize) -> usize {
    1 + count
        .saturating_sub(FIRST_SECTOR_DESCRIPTORS)
        .div_ceil(SECTOR_DESCRIPTORS)
}
