//! The log: a small replay of its own, in memory.
//!
//! Receives the header, lays what the log would change over the [`Source`]. Entries are believed that have the
//! header's LogGuid and a checksum that holds, as a run of ascending sequence numbers from the entry that the newest
//! one names as tail.

use std::collections::BTreeMap;

use super::header::Header;
use super::{Span, well_placed};
use crate::check::catalogue::vhdx as found;
use crate::check::facts::LogState;
use crate::check::report::Report;
use crate::check::source::{PAGE, Source, to_u64, to_usize};
use crate::error::DiskError;
use crate::vhdx::layout::{
    Guid, MIB, NO_GUID, REGION_TABLE_OFFSETS, checksum, guid_at, u32_at, u64_at,
};

/// Longer logs are not read.
const LOG_BYTES_MAX: u64 = 256 << 20;
/// All entries together may be so many times the log's length; else they were made to overlap.
const LOGS_READ_MAX: u64 = 16;
const ENTRY_HEADER_BYTES: u64 = 64;
const DESCRIPTOR_BYTES: u64 = 32;

/// What was found of the log.
pub(super) struct Replayed {
    pub(super) state: LogState,
    /// Where the log is; only where the state is clean or dirty.
    pub(super) place: Span,
    pub(super) changes: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    length: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
}

enum Change {
    Page(u64, Box<[u8]>),
    Zeros(u64, u64),
}

struct Ring<'a> {
    source: &'a Source<'a>,
    place: Span,
    guid: Guid,
}

/// Checks the log that `header` names.
pub(super) fn check(
    source: &mut Source<'_>,
    header: &Header,
    report: &mut Report,
) -> Result<Replayed, DiskError> {
    let place = header.log;
    let answer = |state, changes| Replayed {
        state,
        place,
        changes,
    };
    if !well_placed(source, place) {
        report.add(&found::LOG_PLACE, "log", place.offset, || {
            format!(
                "expected whole MiB from 1 MiB on inside the file of {} bytes, found {} bytes at {}",
                source.length(),
                place.length,
                place.offset
            )
        });
        return Ok(answer(LogState::Broken, 0));
    }
    if header.log_guid == NO_GUID {
        return Ok(answer(LogState::Clean, 0));
    }
    if header.log_version != 0 {
        let version = header.log_version;
        report.add(&found::LOG_VERSION, "log", place.offset, || {
            format!("expected version 0, found {version}")
        });
        return Ok(answer(LogState::Unknown, 0));
    }
    if place.length > LOG_BYTES_MAX {
        report.add(&found::LOG_TOO_LONG, "log", place.offset, || {
            format!(
                "at most {LOG_BYTES_MAX} bytes are read, it has {}",
                place.length
            )
        });
        return Ok(answer(LogState::Unknown, 0));
    }
    let ring = Ring {
        source,
        place,
        guid: header.log_guid,
    };
    let Some((run, changes)) = ring.replay(report)? else {
        return Ok(answer(LogState::Broken, 0));
    };
    let head = run.last().expect("a run has a newest entry").1;
    if !check_targets(source, place, &changes, head.last, report) {
        return Ok(answer(LogState::Broken, 0));
    }
    let count = to_u64(changes.len());
    for change in changes {
        match change {
            Change::Page(at, page) => source.lay_page(at, page),
            Change::Zeros(from, to) if from < to => source.lay_zeros(from, to),
            Change::Zeros(..) => {}
        }
    }
    report.add(&found::LOG_DIRTY, "log", place.offset, || {
        format!("{} entries change {count} pages or ranges", run.len())
    });
    Ok(answer(LogState::Dirty, count))
}

/// Whether a log may change what this one does. Grows the file to `last`, where the log says that it ends.
fn check_targets(
    source: &mut Source<'_>,
    place: Span,
    changes: &[Change],
    last: u64,
    report: &mut Report,
) -> bool {
    let limit = source.length().max(last);
    for change in changes {
        let (from, to) = match change {
            Change::Page(at, _) => (*at, at.saturating_add(PAGE)),
            Change::Zeros(from, to) => (*from, *to),
        };
        let in_log = from < place.end() && place.offset < to;
        if from < REGION_TABLE_OFFSETS[0] || to > limit || in_log {
            report.add(&found::LOG_TARGET, "log", place.offset, || {
                format!("expected changes of metadata before {limit}, found one of {from} to {to}")
            });
            return false;
        }
    }
    let possible = source.grow(last);
    if !possible {
        report.add(&found::LOG_TARGET, "log", place.offset, || {
            format!("it makes the file {last} bytes long")
        });
    }
    possible
}

type Run = Vec<(u64, Entry)>;

impl Ring<'_> {
    /// The entries that count, oldest first, and all their changes in order.
    fn replay(&self, report: &mut Report) -> Result<Option<(Run, Vec<Change>)>, DiskError> {
        let at = self.place.offset;
        let Some(entries) = self.scan(report)? else {
            return Ok(None);
        };
        let Some(run) = self.newest_run(&entries) else {
            report.add(&found::LOG_BROKEN, "log", at, || {
                format!(
                    "expected entries of log {}, found {}, none of which ends a whole run",
                    uuid::Uuid::from_bytes_le(self.guid),
                    entries.len()
                )
            });
            return Ok(None);
        };
        let head = run.last().expect("a run has a newest entry").1;
        let length = self.source.length();
        if length < head.flushed {
            report.add(&found::LOG_TRUNCATED, "file", length, || {
                format!("expected at least {} bytes, found {length}", head.flushed)
            });
            return Ok(None);
        }
        let mut changes = Vec::new();
        for (from, entry) in &run {
            let bytes = self.bytes(*from, entry.length)?;
            // The check holds a lock, but not every program asks for one.
            let Some(more) = changes_of(&bytes, entry.sequence) else {
                report.add(&found::LOG_BROKEN, "log entry", at + from, || {
                    "it changed while it was read".to_owned()
                });
                return Ok(None);
            };
            changes.extend(more);
        }
        Ok(Some((run, changes)))
    }

    /// All whole entries, by their place in the log.
    fn scan(&self, report: &mut Report) -> Result<Option<BTreeMap<u64, Entry>>, DiskError> {
        let mut entries = BTreeMap::new();
        let mut looked_at = 0;
        for at in (0..self.place.length).step_by(to_usize(PAGE)) {
            let start = self
                .source
                .bytes(self.place.offset + at, ENTRY_HEADER_BYTES)?;
            let Some(entry) = self.entry(&start) else {
                continue;
            };
            looked_at += entry.length;
            if looked_at > LOGS_READ_MAX * self.place.length {
                report.add(&found::LOG_TANGLED, "log", self.place.offset, || {
                    format!("entries are longer together than {LOGS_READ_MAX} times the log")
                });
                return Ok(None);
            }
            let bytes = self.bytes(at, entry.length)?;
            let whole = u32_at(&bytes, 4) == checksum(&bytes);
            if whole && changes_of(&bytes, entry.sequence).is_some() {
                entries.insert(at, entry);
            }
        }
        Ok(Some(entries))
    }

    fn entry(&self, start: &[u8]) -> Option<Entry> {
        if &start[..4] != b"loge" || guid_at(start, 32) != self.guid {
            return None;
        }
        let entry = Entry {
            length: u64::from(u32_at(start, 8)),
            tail: u64::from(u32_at(start, 12)),
            sequence: u64_at(start, 16),
            flushed: u64_at(start, 48),
            last: u64_at(start, 56),
        };
        let whole = entry.length.is_multiple_of(PAGE) && entry.tail.is_multiple_of(PAGE);
        let inside = (PAGE..=self.place.length).contains(&entry.length)
            && entry.tail < self.place.length
            && entry.last <= u64::MAX - MIB;
        (whole && inside && entry.sequence > 0).then_some(entry)
    }

    /// The run that ends with the highest sequence number, of those whose end names a tail within the run.
    fn newest_run(&self, entries: &BTreeMap<u64, Entry>) -> Option<Run> {
        let next = |at: u64, entry: &Entry| {
            let at = (at + entry.length) % self.place.length;
            let next = entries.get(&at)?;
            (entry.sequence.checked_add(1) == Some(next.sequence)).then_some((at, *next))
        };
        let mut ends: Vec<(u64, Entry)> = entries.iter().map(|(at, e)| (*at, *e)).collect();
        ends.retain(|(at, entry)| next(*at, entry).is_none());
        ends.sort_by_key(|(_, entry)| entry.sequence);
        while let Some((end_at, end)) = ends.pop() {
            let Some(tail) = entries.get(&end.tail) else {
                continue;
            };
            // Sequence numbers ascend, so that a walk ends.
            let mut run = vec![(end.tail, *tail)];
            while let Some((at, entry)) = run.last().copied() {
                if at == end_at {
                    return Some(run);
                }
                let Some(step) = next(at, &entry) else {
                    break;
                };
                run.push(step);
            }
        }
        None
    }

    /// Bytes of the log from `at` on, around its end.
    fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>, DiskError> {
        let before = length.min(self.place.length - at);
        let mut bytes = self.source.bytes(self.place.offset + at, before)?;
        bytes.extend(self.source.bytes(self.place.offset, length - before)?);
        Ok(bytes)
    }
}

/// Takes an entry apart. `None` when it is not whole.
fn changes_of(entry: &[u8], sequence: u64) -> Option<Vec<Change>> {
    let count = u64::from(u32_at(entry, 24));
    let described = ENTRY_HEADER_BYTES + count * DESCRIPTOR_BYTES;
    let mut data = usize::try_from(described.next_multiple_of(PAGE)).ok()?;
    if data > entry.len() {
        return None;
    }
    let mut changes = Vec::new();
    for descriptor in entry[64..]
        .chunks_exact(32)
        .take(usize::try_from(count).ok()?)
    {
        let at = u64_at(descriptor, 16);
        if u64_at(descriptor, 24) != sequence || !at.is_multiple_of(PAGE) {
            return None;
        }
        match &descriptor[..4] {
            b"zero" => {
                let length = u64_at(descriptor, 8);
                if !length.is_multiple_of(PAGE) {
                    return None;
                }
                changes.push(Change::Zeros(at, at.checked_add(length)?));
            }
            b"desc" => {
                let sector = entry.get(data..data + 4096)?;
                data += 4096;
                let (high, low) = (u32_at(sector, 4), u32_at(sector, 4092));
                if &sector[..4] != b"data" || (u64::from(high) << 32 | u64::from(low)) != sequence {
                    return None;
                }
                let parts = [&descriptor[8..16], &sector[8..4092], &descriptor[4..8]];
                changes.push(Change::Page(at, parts.concat().into()));
            }
            _ => return None,
        }
    }
    Some(changes)
}
