//! Checking VHDX files.
//!
//! Owns: the order of the parts: headers, log (laid over the file in memory), regions, metadata, BAT, parent. Each
//! part is given what the ones before found; where one cannot be believed, those that need it are left out.

mod bat;
mod header;
mod log;
mod metadata;
mod parent;
mod region;
mod used;

use std::path::Path;

pub(super) use self::header::slots;
use self::metadata::Disk;
pub(super) use self::region::is_valid as is_valid_region_table;
use super::catalogue::vhdx as found;
use super::facts::{DiskKind, LogState, VhdxFacts};
use super::report::Report;
use super::source::Source;
use crate::error::DiskError;
use crate::storage::Storage;
use crate::vhdx::layout::{FILE_SIGNATURE, FIRST_FREE, MIB};

/// A range of the file in bytes. `end` is only asked of ranges that are inside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    offset: u64,
    length: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.offset + self.length
    }

    fn overlaps(self, offset: u64, length: u64) -> bool {
        self.offset < offset + length && offset < self.end()
    }
}

/// A range of the file that something owns.
#[derive(Debug, Clone, Copy)]
struct Owned {
    name: &'static str,
    span: Span,
}

/// Whether a range may be the log or a region: whole MiB, some, after the headers, inside the file.
fn well_placed(source: &Source<'_>, span: Span) -> bool {
    span.offset.is_multiple_of(MIB)
        && span.length.is_multiple_of(MIB)
        && span.length > 0
        && span.offset >= FIRST_FREE
        && source.holds(span.offset, span.length)
}

/// What is known of a disk before its blocks are looked at.
struct Outline {
    data_write: [u8; 16],
    owned: Vec<Owned>,
    bat: Span,
    disk: Disk,
}

pub(super) fn check(
    storage: &dyn Storage,
    path: &Path,
    source: &mut Source<'_>,
    report: &mut Report,
) -> Result<VhdxFacts, DiskError> {
    let mut facts = VhdxFacts {
        file_bytes: source.length(),
        ..VhdxFacts::default()
    };
    let Some(outline) = outline(source, report, &mut facts)? else {
        return Ok(facts);
    };
    let Outline {
        owned, bat, disk, ..
    } = outline;
    facts.kind = Some(disk.kind());
    facts.disk_bytes = disk.size_bytes;
    facts.block_bytes = disk.block_bytes;
    facts.logical_sector_bytes = disk.logical_sector_bytes;
    facts.physical_sector_bytes = disk.physical_sector_bytes;
    bat::check(source, &disk, bat, &owned, report, &mut facts)?;
    match disk.kind() {
        DiskKind::Differencing => {
            facts.parent = parent::check(storage, path, source, &disk, report)?;
        }
        DiskKind::Fixed | DiskKind::Dynamic => {
            if let Some(locator) = disk.locator {
                report.add(
                    &found::PARENT_LOCATOR_STRAY,
                    "parent locator",
                    locator.offset,
                    || "the file parameters say that there is no parent".to_owned(),
                );
            }
        }
    }
    Ok(facts)
}

/// Checks everything up to the metadata; lays the log over the file.
fn outline(
    source: &mut Source<'_>,
    report: &mut Report,
    facts: &mut VhdxFacts,
) -> Result<Option<Outline>, DiskError> {
    let length = source.length();
    if length < FIRST_FREE {
        report.add(&found::TOO_SHORT, "file", length, || {
            format!("expected at least {FIRST_FREE} bytes, found {length}")
        });
        return Ok(None);
    }
    if source.bytes(0, 8)? != FILE_SIGNATURE {
        report.add(&found::IDENTIFIER, "file identifier", 0, || {
            "expected \"vhdxfile\"".to_owned()
        });
        return Ok(None);
    }
    if !length.is_multiple_of(MIB) {
        report.add(&found::FILE_LENGTH, "file", length, || {
            format!("found {length} bytes")
        });
    }
    let Some(header) = header::check(source, report)? else {
        return Ok(None);
    };
    facts.data_write_guid = Some(uuid::Uuid::from_bytes_le(header.data_write).to_string());
    let replayed = log::check(source, &header, report)?;
    facts.log = replayed.state;
    facts.log_changes = replayed.changes;
    if !matches!(replayed.state, LogState::Clean | LogState::Dirty) {
        return Ok(None);
    }
    let Some(regions) = region::check(source, replayed.place, report)? else {
        return Ok(None);
    };
    let Some(disk) = metadata::check(source, regions.metadata, report)? else {
        return Ok(None);
    };
    Ok(Some(Outline {
        data_write: header.data_write,
        owned: regions.owned,
        bat: regions.bat,
        disk,
    }))
}
