//! Reading a file whose log may hold changes that are not yet in their places.
//!
//! Owns: [`View`], the file as it is once its log is applied. The log is always applied in
//! memory first, so that a file is checked whole before a writable open changes a byte of it;
//! a read-only open stays that way.
//!
//! Does not do: writing the log (see `journal`).
//!
//! # Invariants
//! 1. Changes are taken from the tail entry to the head, in order; the last one of a byte wins.
//! 2. Only a run whose head names a tail inside the run is believed; the highest head wins.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::entry::{Change, EntryHeader, Page};
use super::layout::{
    Guid, Header, NO_GUID, PAGE, PAGE_BYTES, REGION_TABLE_OFFSETS, Span, corrupt, to_u64, to_usize,
};
use crate::error::DiskError;
use crate::storage::{BlockFile, FileExtent};

/// Larger logs are refused: a scan reads all of it. The usual size is 1 MiB.
const MAX_LOG_BYTES: u64 = 256 << 20;
/// Entries checked may be so many times the ring, or somebody has made them overlap on purpose.
const MAX_CHECKED_RINGS: u64 = 16;
/// Zeros are written in steps of this where the host cannot do it for us.
const ZERO_STEP: usize = 1 << 20;

/// The file as it is once its log is applied.
pub(super) struct View {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) name: String,
    /// Length of the real file.
    real_bytes: u64,
    /// Length once the log is applied.
    pub(super) length: u64,
    pages: BTreeMap<u64, Page>,
    /// Zeroed ranges; pages lie above them.
    zeros: Vec<Span>,
}

impl View {
    /// The file without a log.
    pub(super) fn new(file: Arc<dyn BlockFile>, name: String) -> Result<Self, DiskError> {
        let length = file
            .length()
            .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
        let (pages, zeros) = (BTreeMap::new(), Vec::new());
        Ok(Self {
            file,
            name,
            real_bytes: length,
            length,
            pages,
            zeros,
        })
    }

    /// Whether nothing lies over the file.
    pub(super) fn is_plain(&self) -> bool {
        self.pages.is_empty() && self.zeros.is_empty() && self.real_bytes == self.length
    }

    /// Fills `buf` from `offset`.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let failed = |length: usize, e| {
            DiskError::io(
                format!("read {length} bytes at {offset} of {}", self.name),
                e,
            )
        };
        if self.is_plain() {
            return self
                .file
                .read_at(buf, offset)
                .map_err(|e| failed(buf.len(), e));
        }
        let end = offset.saturating_add(to_u64(buf.len()));
        if end > self.length {
            return Err(failed(buf.len(), io::ErrorKind::UnexpectedEof.into()));
        }
        let real = to_usize(self.real_bytes.clamp(offset, end) - offset);
        let (stored, grown) = buf.split_at_mut(real);
        self.file
            .read_at(stored, offset)
            .map_err(|e| failed(real, e))?;
        grown.fill(0);
        for zero in &self.zeros {
            let (from, to) = (zero.offset.max(offset), zero.end().min(end));
            if from < to {
                buf[to_usize(from - offset)..to_usize(to - offset)].fill(0);
            }
        }
        for (&at, page) in self.pages.range(offset.saturating_sub(PAGE - 1)..end) {
            let (from, to) = (at.max(offset), (at + PAGE).min(end));
            buf[to_usize(from - offset)..to_usize(to - offset)]
                .copy_from_slice(&page[to_usize(from - at)..to_usize(to - at)]);
        }
        Ok(())
    }

    /// The parts of `span`, whole pages, that may hold anything but zeros.
    pub(super) fn data_in(&self, span: Span) -> Result<Vec<Span>, DiskError> {
        let mut found: Vec<Span> = Vec::new();
        if !self.is_plain() {
            return Ok(vec![span]);
        }
        let mut visit = |offset: u64, length: u64, kind| {
            let first = offset / PAGE * PAGE;
            let end = (offset + length).next_multiple_of(PAGE).min(span.end());
            match found.last_mut() {
                _ if kind == FileExtent::Hole => {}
                Some(last) if last.end() >= first => last.length = end - last.offset,
                _ => found.push(Span {
                    offset: first,
                    length: end - first,
                }),
            }
            true
        };
        match self.file.extents(span.offset, span.length, &mut visit) {
            Ok(()) => Ok(found),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(vec![span]),
            Err(e) => Err(DiskError::io(format!("list extents of {}", self.name), e)),
        }
    }

    /// Reads the log that `header` names and lays its changes over the file. Nothing is written.
    pub(super) fn replay(&mut self, header: &Header) -> Result<(), DiskError> {
        if header.log_guid == NO_GUID {
            return Ok(());
        }
        if header.log_version != 0 {
            let what = format!("a VHDX log of version {}", header.log_version);
            return Err(DiskError::Unsupported { what });
        }
        if header.log.length > MAX_LOG_BYTES {
            let what = format!("a VHDX log of {} bytes", header.log.length);
            return Err(DiskError::Unsupported { what });
        }
        let ring = Ring {
            view: self,
            span: header.log,
            guid: header.log_guid,
        };
        let run = ring.active_run()?;
        let head = *run.last().expect("a run has a head");
        if self.length < head.1.flushed_file_bytes {
            return Err(corrupt(
                "file length",
                self.length,
                format!(
                    "the log says that at least {} existed",
                    head.1.flushed_file_bytes
                ),
            ));
        }
        let mut changes = Vec::new();
        for (at, entry) in &run {
            let bytes = ring.read(*at, entry.length)?;
            changes.extend(entry.changes(&bytes).ok_or_else(|| {
                corrupt(
                    "log entry",
                    header.log.offset + at,
                    "it changed while it was read",
                )
            })?);
        }
        let limit = self.length.max(head.1.last_file_bytes);
        // Invariant 1.
        for change in changes {
            self.lay(change, header.log, limit)?;
        }
        self.length = self.length.max(head.1.last_file_bytes);
        tracing::info!(
            file = self.name,
            entries = run.len(),
            pages = self.pages.len(),
            "log replayed"
        );
        Ok(())
    }

    /// Lays one change over the file. `limit`: where the log says that the file ends.
    fn lay(&mut self, change: Change, log: Span, limit: u64) -> Result<(), DiskError> {
        let span = match &change {
            Change::Data(offset, _) => Span {
                offset: *offset,
                length: PAGE,
            },
            Change::Zero(offset, length) => Span {
                offset: *offset,
                length: *length,
            },
        };
        if span.offset < REGION_TABLE_OFFSETS[0] || span.end() > limit || span.overlaps(log) {
            return Err(corrupt(
                "log entry",
                log.offset,
                format!(
                    "it changes {} bytes at {}, which no log may",
                    span.length, span.offset
                ),
            ));
        }
        match change {
            Change::Data(offset, page) => {
                self.pages.insert(offset, page);
            }
            Change::Zero(offset, length) => {
                let gone: Vec<u64> = self
                    .pages
                    .range(offset..offset + length)
                    .map(|(&at, _)| at)
                    .collect();
                for at in gone {
                    self.pages.remove(&at);
                }
                self.zeros.push(span);
            }
        }
        Ok(())
    }

    /// Writes what lies over the file into it, and grows it. The caller syncs.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.real_bytes < self.length {
            self.file.set_length(self.length)?;
            self.real_bytes = self.length;
        }
        for zero in std::mem::take(&mut self.zeros) {
            write_zeros(self.file.as_ref(), zero)?;
        }
        for (offset, page) in std::mem::take(&mut self.pages) {
            self.file.write_at(&page[..], offset)?;
        }
        Ok(())
    }
}

/// Makes a range of the file read as zeros, and leaves it allocated where the host can do so.
pub(super) fn write_zeros(file: &dyn BlockFile, span: Span) -> io::Result<()> {
    match file.zero_range(span.offset, span.length) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        other => return other,
    }
    let zeros = vec![0; ZERO_STEP.min(to_usize(span.length))];
    let mut at = span.offset;
    while at < span.end() {
        let step = to_usize((span.end() - at).min(to_u64(zeros.len())));
        file.write_at(&zeros[..step], at)?;
        at += to_u64(step);
    }
    Ok(())
}

/// The log as a ring of entries, for reading.
struct Ring<'a> {
    view: &'a View,
    span: Span,
    guid: Guid,
}

impl Ring<'_> {
    /// The entries to apply, tail first, each with its offset in the ring (invariant 2).
    fn active_run(&self) -> Result<Vec<(u64, EntryHeader)>, DiskError> {
        let entries = self.valid_entries()?;
        let next = |at: u64, entry: &EntryHeader| {
            let at = (at + entry.length) % self.span.length;
            let follows = |next: &EntryHeader| Some(next.sequence) == entry.sequence.checked_add(1);
            entries
                .get(&at)
                .filter(|next| follows(next))
                .map(|next| (at, *next))
        };
        let followed: HashSet<u64> = entries
            .iter()
            .filter_map(|(&at, entry)| Some(next(at, entry)?.0))
            .collect();
        let mut heads: Vec<(u64, EntryHeader)> = entries
            .iter()
            .filter(|(at, entry)| next(**at, entry).is_none())
            .map(|(at, entry)| (*at, *entry))
            .collect();
        heads.sort_unstable_by_key(|(_, head)| std::cmp::Reverse(head.sequence));
        for (head_at, head) in heads {
            let Some(tail) = entries.get(&head.tail) else {
                continue;
            };
            let mut run = vec![(head.tail, *tail)];
            while let Some((at, entry)) = run.last().copied().filter(|(at, _)| *at != head_at) {
                let Some(step) = next(at, &entry).filter(|_| run.len() <= entries.len()) else {
                    break;
                };
                run.push(step);
            }
            if run.last().is_some_and(|(at, _)| *at == head_at) {
                return Ok(run);
            }
        }
        Err(corrupt(
            "log",
            self.span.offset,
            format!(
                "the header says that it holds changes, but none of {} entries in {} runs ends a whole one",
                entries.len(),
                entries.len() - followed.len()
            ),
        ))
    }

    fn valid_entries(&self) -> Result<HashMap<u64, EntryHeader>, DiskError> {
        let mut entries = HashMap::new();
        let mut checked = 0;
        let mut sector = [0; PAGE_BYTES];
        for at in (0..self.span.length).step_by(PAGE_BYTES) {
            self.view.read(&mut sector, self.span.offset + at)?;
            let Some(entry) = EntryHeader::decode(&sector, &self.guid, self.span.length) else {
                continue;
            };
            checked += entry.length;
            if checked > MAX_CHECKED_RINGS * self.span.length {
                return Err(corrupt(
                    "log",
                    self.span.offset,
                    "its entries overlap endlessly",
                ));
            }
            if entry.changes(&self.read(at, entry.length)?).is_some() {
                entries.insert(at, entry);
            }
        }
        Ok(entries)
    }

    /// Reads from offset `at` of the ring, around its end.
    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; to_usize(length)];
        let first = to_usize(length.min(self.span.length - at));
        self.view.read(&mut bytes[..first], self.span.offset + at)?;
        self.view.read(&mut bytes[first..], self.span.offset)?;
        Ok(bytes)
    }
}
