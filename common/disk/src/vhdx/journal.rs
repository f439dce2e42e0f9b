//! The log as it is written, and the two headers.
//!
//! Owns: the ring's write position, the log's identity and sequence, the current header.
//! Receives pages to make durable together; tells nothing back but success.
//!
//! Does not do: choosing what to log, or when (see `durable`).
//!
//! # Invariants
//! 1. An entry's tail is the oldest entry whose pages may not be durable in their places.
//! 2. An entry never overwrites the head entry, nor anything from the head's tail on, be it the newest head or the
//!    newest one known to be durable. Entries, and all notes between two of them, take at most an eighth of
//!    the ring each, so an entry that starts a lap ends before the tail of the last one, which lies within half a
//!    ring of its end.
//! 3. The headers name a log only when an entry of it is durable.
//! 4. A page is written to its place only after its entry is durable.
//! 5. What a reader needs lies in one piece: an entry never runs over the end of the ring, and none before it is
//!    needed when a lap starts. Two zeroed pages follow the newest entry, so that what an earlier lap left behind is
//!    never taken for its continuation. Readers exist that, without the former, ignore entries at the end of the
//!    ring, and without the latter, search it for ever.

use super::entry::{NewEntry, Page, entry_bytes, pages_in};
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

/// Zeros after the newest entry (invariant 5).
const GAP: u64 = 2 * PAGE;

/// The log of one writable session.
pub(super) struct Journal {
    ring: Span,
    guid: Guid,
    sequence: u64,
    /// Offset in the ring where the next entry goes, if it fits there.
    next: u64,
    /// Offset in the ring of the newest entry, while its pages may not be durable in their places.
    unsettled: Option<u64>,
    /// Offset in the ring of the oldest note since the newest entry.
    noted: Option<u64>,
}

impl Journal {
    pub(super) fn new(ring: Span) -> Self {
        Self {
            ring,
            guid: NO_GUID,
            sequence: 0,
            next: 0,
            unsettled: None,
            noted: None,
        }
    }

    /// Identity of the log, once it was begun.
    pub(super) fn guid(&self) -> Guid {
        self.guid
    }

    /// Most bytes of an entry, and of the notes between two (invariant 2).
    fn share(&self) -> u64 {
        self.ring.length / 8 - GAP
    }

    /// Most pages in one entry. Notes together hold no more.
    pub(super) fn max_pages(&self) -> usize {
        pages_in(self.share())
    }

    /// Writes the empty first entry of a log with a new identity. After a sync, headers may name it.
    pub(super) fn begin(&mut self, file: &dyn BlockFile, length: FileLength) -> io::Result<()> {
        let random = random_guid();
        self.guid = random_guid();
        // Random, so that entries of former sessions can't continue ours; far from overflow.
        self.sequence = super::layout::u64_at(&random, 0) >> 2;
        self.append(file, &[], length)
    }

    /// Whether an entry of `pages` pages starts a lap: then everything must be settled before.
    pub(super) fn starts_lap(&self, pages: usize) -> bool {
        self.next + entry_bytes(pages) + GAP > self.ring.length
    }

    /// Pages before the end of the ring.
    #[cfg(test)]
    pub(super) fn room(&self) -> u64 {
        (self.ring.length - self.next) / PAGE
    }

    /// Writes an entry with `pages`, those of all notes since the last one among them. The caller syncs, and then
    /// calls [`settle`](Self::settle).
    pub(super) fn append(
        &mut self,
        file: &dyn BlockFile,
        pages: &[(u64, Page)],
        length: FileLength,
    ) -> io::Result<()> {
        assert!(
            pages.len() <= self.max_pages(),
            "an entry takes at most an eighth of the ring"
        );
        if self.starts_lap(pages.len()) {
            assert!(self.unsettled.is_none(), "a lap starts when all is settled");
            self.next = 0;
            self.noted = None;
        }
        let at = self.next;
        self.write(file, pages, length)?;
        self.noted = None;
        self.unsettled = Some(at);
        Ok(())
    }

    /// Writes an entry with `pages` that outlives this process but not the host: no sync follows, and the pages are
    /// not put into their places. The caller appends them again, later. `false` when the ring has no room for
    /// it; then nothing was written.
    pub(super) fn note(
        &mut self,
        file: &dyn BlockFile,
        pages: &[(u64, Page)],
        length: FileLength,
    ) -> io::Result<bool> {
        let from = self.noted.unwrap_or(self.next);
        let takes = self.next - from + entry_bytes(pages.len());
        if takes > self.share() || self.starts_lap(pages.len()) {
            return Ok(false);
        }
        self.write(file, pages, length)?;
        self.noted = Some(from);
        Ok(true)
    }

    fn write(
        &mut self,
        file: &dyn BlockFile,
        pages: &[(u64, Page)],
        length: FileLength,
    ) -> io::Result<()> {
        self.sequence += 1;
        let at = self.next;
        let entry = NewEntry {
            tail: self.unsettled.or(self.noted).unwrap_or(at),
            sequence: self.sequence,
            guid: self.guid,
            flushed_file_bytes: length.flushed,
            last_file_bytes: length.last,
        };
        let mut bytes = entry.encode(pages);
        self.next = at + to_u64(bytes.len());
        bytes.resize(bytes.len() + to_usize(GAP), 0);
        file.write_at(&bytes, self.ring.offset + at)
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
