//! The log as it is written, and the two headers.
//!
//! Owns: the ring's write position, the log's identity and sequence, the current header.
//! Receives pages to make durable together; tells nothing back but success.
//!
//! Does not do: choosing what to log, or when (see `durable`).
//!
//! # Invariants
//! 1. An entry's tail is the oldest entry whose pages may not be durable in their places.
//! 2. An entry never overwrites the head entry, nor anything from the head's tail on. Entries of
//!    at most a third of the ring keep this without a look at the ring.
//! 3. The headers name a log only when an entry of it is durable.
//! 4. A page is written to its place only after its entry is durable.

use super::entry::{NewEntry, Page, pages_in};
use super::layout::{
    Guid, HEADER_OFFSETS, Header, NO_GUID, PAGE, PAGE_BYTES, Span, current_header, random_guid,
    to_u64, to_usize,
};
use super::replay::View;
use crate::error::DiskError;
use crate::storage::BlockFile;
use std::io;

/// The two headers, and which of them is current.
pub(super) struct Headers {
    slot: usize,
    pub(super) current: Header,
}

impl Headers {
    /// Reads both and takes the current one.
    pub(super) fn read(view: &View) -> Result<Self, DiskError> {
        let mut slots = [None, None];
        for (slot, offset) in slots.iter_mut().zip(HEADER_OFFSETS) {
            let mut bytes = [0; PAGE_BYTES];
            view.read(&mut bytes, offset)?;
            *slot = Header::decode(&bytes);
        }
        let (slot, current) = current_header(slots)?;
        Ok(Self { slot, current })
    }

    /// Changes both headers, one after the other: a torn one leaves the other valid. Two syncs.
    pub(super) fn update(
        &mut self,
        file: &dyn BlockFile,
        change: impl FnOnce(&mut Header),
    ) -> io::Result<()> {
        let mut header = self.current.clone();
        change(&mut header);
        for _ in 0..2 {
            header.sequence += 1;
            let slot = 1 - self.slot;
            file.write_at(&header.encode(), HEADER_OFFSETS[slot])?;
            file.sync()?;
            (self.slot, self.current) = (slot, header.clone());
        }
        Ok(())
    }
}

/// Length of the file, as entries tell it.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileLength {
    /// Durable.
    pub(super) flushed: u64,
    /// All structures fit below it.
    pub(super) last: u64,
}

/// The log of one writable session.
pub(super) struct Journal {
    ring: Span,
    guid: Guid,
    sequence: u64,
    /// Offset in the ring where the next entry goes.
    next: u64,
    /// Offset in the ring of the newest entry, while its pages may not be durable in their places.
    unsettled: Option<u64>,
}

impl Journal {
    pub(super) fn new(ring: Span) -> Self {
        Self {
            ring,
            guid: NO_GUID,
            sequence: 0,
            next: 0,
            unsettled: None,
        }
    }

    /// Identity of the log, once it was begun.
    pub(super) fn guid(&self) -> Guid {
        self.guid
    }

    /// Most pages in one entry (invariant 2).
    pub(super) fn max_pages(&self) -> usize {
        pages_in(self.ring.length / 3)
    }

    /// Writes the empty first entry of a log with a new identity. After a sync, headers may name it.
    pub(super) fn begin(&mut self, file: &dyn BlockFile, length: FileLength) -> io::Result<()> {
        let random = random_guid();
        self.guid = random_guid();
        // Random, so that entries of former sessions can't continue ours; far from overflow.
        self.sequence = super::layout::u64_at(&random, 0) >> 2;
        self.append(file, &[], length)
    }

    /// Writes an entry with `pages`. The caller syncs, and then calls [`settle`](Self::settle).
    pub(super) fn append(
        &mut self,
        file: &dyn BlockFile,
        pages: &[(u64, Page)],
        length: FileLength,
    ) -> io::Result<()> {
        assert!(
            pages.len() <= self.max_pages(),
            "an entry takes at most a third of the ring"
        );
        self.sequence += 1;
        let at = self.next;
        let entry = NewEntry {
            tail: self.unsettled.unwrap_or(at),
            sequence: self.sequence,
            guid: self.guid,
            flushed_file_bytes: length.flushed,
            last_file_bytes: length.last,
        };
        let bytes = entry.encode(pages);
        let first = bytes.len().min(to_usize(self.ring.length - at));
        file.write_at(&bytes[..first], self.ring.offset + at)?;
        if first < bytes.len() {
            file.write_at(&bytes[first..], self.ring.offset)?;
        }
        self.unsettled = Some(at);
        self.next = (at + to_u64(bytes.len())) % self.ring.length;
        assert!(self.next.is_multiple_of(PAGE), "entries are whole pages");
        Ok(())
    }

    /// Writes the newest entry's pages to their places; the entry is durable (invariant 4).
    pub(super) fn settle(&self, file: &dyn BlockFile, pages: &[(u64, Page)]) -> io::Result<()> {
        for (offset, page) in pages {
            file.write_at(&page[..], *offset)?;
        }
        Ok(())
    }

    /// Whether pages were written to their places and not yet synced.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// A sync has returned that began after the newest entry's pages were in their places.
    pub(super) fn all_settled(&mut self) {
        self.unsettled = None;
    }
}
