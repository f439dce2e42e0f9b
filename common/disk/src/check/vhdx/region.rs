//! The region table and its copy.
//!
//! Gives out where the BAT and the metadata are, and everything that regions and the log own.

use std::collections::HashSet;

use super::{Owned, Span, well_placed};
use crate::check::catalogue::vhdx as found;
use crate::check::report::Report;
use crate::check::source::{Source, to_u64};
use crate::error::DiskError;
use crate::vhdx::layout::{
    BAT_REGION, Guid, KIB64, MAX_REGIONS, METADATA_REGION, REGION_TABLE_OFFSETS, checksum, guid_at,
    u32_at, u64_at,
};

const ENTRIES_AT: usize = 16;
const ENTRY_BYTES: usize = 32;
const REQUIRED: u32 = 1;

pub(super) struct Regions {
    pub(super) bat: Span,
    pub(super) metadata: Span,
    pub(super) owned: Vec<Owned>,
}

/// Whether a table has signature, checksum and a possible number of entries.
pub(in crate::check) fn is_valid(table: &[u8]) -> bool {
    &table[..4] == b"regi" && u32_at(table, 4) == checksum(table) && u32_at(table, 8) <= MAX_REGIONS
}

pub(super) fn check(
    source: &Source<'_>,
    log: Span,
    report: &mut Report,
) -> Result<Option<Regions>, DiskError> {
    let Some((at, table)) = choose(source, report)? else {
        return Ok(None);
    };
    let mut owned = vec![Owned {
        name: "log",
        span: log,
    }];
    let (mut bat, mut metadata) = (None, None);
    let mut seen = HashSet::new();
    if u32_at(&table, 12) != 0 {
        report.add(&found::REGION_RESERVED, "region table", at + 12, || {
            "expected zero after the count".to_owned()
        });
    }
    for (index, entry) in entries(&table).enumerate() {
        let entry_at = at + to_u64(ENTRIES_AT + index * ENTRY_BYTES);
        let guid = guid_at(entry, 0);
        let span = Span {
            offset: u64_at(entry, 16),
            length: u64::from(u32_at(entry, 24)),
        };
        if !seen.insert(guid) {
            report.add(&found::REGION_TWICE, "region table", entry_at, || {
                format!("expected {} once", name(&guid))
            });
            continue;
        }
        check_flags(&guid, u32_at(entry, 28), entry_at, report);
        if !well_placed(source, span) {
            let length = source.length();
            report.add(&found::REGION_PLACE, "region table", entry_at, || {
                format!(
                    "expected whole MiB from 1 MiB on inside the file of {length} bytes, found {} bytes at {} for {}",
                    span.length, span.offset, name(&guid)
                )
            });
            continue;
        }
        let name = if guid == BAT_REGION {
            bat = Some(span);
            "BAT region"
        } else if guid == METADATA_REGION {
            metadata = Some(span);
            "metadata region"
        } else {
            "region that is not known"
        };
        owned.push(Owned { name, span });
    }
    for (guid, name) in [(BAT_REGION, "BAT"), (METADATA_REGION, "metadata")] {
        if !seen.contains(&guid) {
            report.add(&found::REGION_MISSING, "region table", at, || {
                format!("expected a {name} region")
            });
        }
    }
    check_disjoint(&mut owned, report);
    Ok(bat.zip(metadata).map(|(bat, metadata)| Regions {
        bat,
        metadata,
        owned,
    }))
}

/// The table that counts: the first of the valid ones.
fn choose(source: &Source<'_>, report: &mut Report) -> Result<Option<(u64, Vec<u8>)>, DiskError> {
    let [first_at, second_at] = REGION_TABLE_OFFSETS;
    let first = Some(source.bytes(first_at, KIB64)?).filter(|table| is_valid(table));
    let second = Some(source.bytes(second_at, KIB64)?).filter(|table| is_valid(table));
    let damaged = |bad: u64, good: u64, report: &mut Report| {
        report.add(&found::REGION_TABLE_INVALID, "region table", bad, || {
            format!("expected \"regi\" and a valid checksum; the table at {good} has them")
        });
    };
    Ok(match (first, second) {
        (Some(first), Some(second)) => {
            if !entries(&first).eq(entries(&second)) {
                report.add(
                    &found::REGION_TABLES_DIFFER,
                    "region table",
                    second_at,
                    || format!("expected the entries of the table at {first_at}"),
                );
            }
            Some((first_at, first))
        }
        (Some(first), None) => {
            damaged(second_at, first_at, report);
            Some((first_at, first))
        }
        (None, Some(second)) => {
            damaged(first_at, second_at, report);
            Some((second_at, second))
        }
        (None, None) => {
            report.add(
                &found::REGION_TABLES_INVALID,
                "region table",
                first_at,
                || format!("expected a table with a valid checksum here or at {second_at}"),
            );
            None
        }
    })
}

fn entries(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = usize::try_from(u32_at(table, 8)).unwrap_or(usize::MAX);
    table[ENTRIES_AT..].chunks_exact(ENTRY_BYTES).take(count)
}

fn name(guid: &Guid) -> String {
    format!("region {}", uuid::Uuid::from_bytes_le(*guid))
}

fn check_flags(guid: &Guid, flags: u32, at: u64, report: &mut Report) {
    if flags & !REQUIRED != 0 {
        report.add(&found::REGION_RESERVED, "region table", at + 28, || {
            format!("expected 0 or 1, found {flags:#x}")
        });
    }
    let required = flags & REQUIRED != 0;
    let known = *guid == BAT_REGION || *guid == METADATA_REGION;
    match (known, required) {
        (true, true) => {}
        (true, false) => report.add(&found::REGION_NOT_REQUIRED, "region table", at + 28, || {
            format!("expected 1 for {}", name(guid))
        }),
        (false, true) => report.add(&found::REGION_UNKNOWN_REQUIRED, "region table", at, || {
            format!("{} is required and not known", name(guid))
        }),
        (false, false) => report.add(&found::REGION_UNKNOWN, "region table", at, || {
            format!("{} is optional and not known", name(guid))
        }),
    }
}

fn check_disjoint(owned: &mut [Owned], report: &mut Report) {
    owned.sort_by_key(|owned| owned.span.offset);
    let mut before: Option<Owned> = None;
    for &next in owned.iter() {
        if let Some(before) = before.filter(|before| before.span.end() > next.span.offset) {
            report.add(&found::REGION_OVERLAP, next.name, next.span.offset, || {
                format!(
                    "expected it after the {}, which ends at {}",
                    before.name,
                    before.span.end()
                )
            });
        }
        if before.is_none_or(|before| before.span.end() < next.span.end()) {
            before = Some(next);
        }
    }
}
