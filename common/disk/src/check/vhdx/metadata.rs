//! The metadata region: its table and the items that say what the disk is.

use std::collections::HashSet;

use super::Span;
use crate::check::catalogue::vhdx as found;
use crate::check::facts::DiskKind;
use crate::check::report::Report;
use crate::check::source::{Source, to_u64};
use crate::error::DiskError;
use crate::vhdx::layout::{Guid, KIB64, MAX_DISK_BYTES, MIB, guid_at, u16_at, u32_at, u64_at};
use crate::vhdx::metadata::{
    DISK_ID, DISK_SIZE, FILE_PARAMETERS, INCOMPLETE_FILE, LOGICAL_SECTOR, PARENT_LOCATOR,
    PHYSICAL_SECTOR,
};

const ENTRY_BYTES: usize = 32;
const ENTRIES_MAX: usize = 2047;
const USER_ENTRIES_MAX: usize = 1024;
const FLAG_USER: u32 = 1;
const FLAG_REQUIRED: u32 = 4;
const FLAGS_ALL: u32 = 7;
const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
const BLOCK_BYTES_MIN: u64 = MIB;
const BLOCK_BYTES_MAX: u64 = 256 * MIB;

/// An item that is known.
struct Known {
    guid: Guid,
    name: &'static str,
    /// Of its value; `None`: any.
    length: Option<u64>,
    flags: u32,
}

const KNOWN: [Known; 6] = [
    known(FILE_PARAMETERS, "file parameters", Some(8), 4),
    known(DISK_SIZE, "disk size", Some(8), 6),
    known(DISK_ID, "disk id", Some(16), 6),
    known(LOGICAL_SECTOR, "logical sector size", Some(4), 6),
    known(PHYSICAL_SECTOR, "physical sector size", Some(4), 6),
    known(PARENT_LOCATOR, "parent locator", None, 4),
];

const fn known(guid: Guid, name: &'static str, length: Option<u64>, flags: u32) -> Known {
    Known {
        guid,
        name,
        length,
        flags,
    }
}

/// What the items say, all of it possible.
pub(super) struct Disk {
    pub(super) block_bytes: u64,
    pub(super) leave_allocated: bool,
    pub(super) has_parent: bool,
    pub(super) size_bytes: u64,
    pub(super) logical_sector_bytes: u32,
    pub(super) physical_sector_bytes: u32,
    /// Of the file.
    pub(super) locator: Option<Span>,
}

impl Disk {
    pub(super) fn kind(&self) -> DiskKind {
        if self.has_parent {
            DiskKind::Differencing
        } else if self.leave_allocated {
            DiskKind::Fixed
        } else {
            DiskKind::Dynamic
        }
    }
}

/// One entry of the table, its place inside the region.
struct Item {
    guid: Guid,
    user: bool,
    /// Of the file.
    span: Span,
}

pub(super) fn check(
    source: &Source<'_>,
    region: Span,
    report: &mut Report,
) -> Result<Option<Disk>, DiskError> {
    let table = source.bytes(region.offset, KIB64)?;
    let count = usize::from(u16_at(&table, 10));
    if &table[..8] != b"metadata" || count > ENTRIES_MAX {
        report.add(
            &found::METADATA_TABLE,
            "metadata table",
            region.offset,
            || format!("expected \"metadata\" and at most {ENTRIES_MAX} entries, found {count}"),
        );
        return Ok(None);
    }
    if u16_at(&table, 8) != 0 || table[12..32].iter().any(|byte| *byte != 0) {
        report.add(
            &found::METADATA_RESERVED,
            "metadata table",
            region.offset + 8,
            || "expected zeros around the count".to_owned(),
        );
    }
    let mut items: Vec<Item> = Vec::new();
    let mut seen = HashSet::new();
    for (index, entry) in table[32..]
        .chunks_exact(ENTRY_BYTES)
        .take(count)
        .enumerate()
    {
        let at = region.offset + to_u64(32 + index * ENTRY_BYTES);
        let item = check_entry(entry, at, region, report);
        if !seen.insert((guid_at(entry, 0), u32_at(entry, 24) & FLAG_USER)) {
            report.add(&found::METADATA_TWICE, "metadata table", at, || {
                format!("expected {} once", name(&guid_at(entry, 0)))
            });
            continue;
        }
        items.extend(item);
    }
    let users = seen.iter().filter(|(_, user)| *user != 0).count();
    if users > USER_ENTRIES_MAX {
        report.add(
            &found::METADATA_TABLE,
            "metadata table",
            region.offset,
            || format!("expected at most {USER_ENTRIES_MAX} user items, found {users}"),
        );
    }
    check_disjoint(&mut items, report);
    read_disk(source, region, &items, report)
}

fn name(guid: &Guid) -> String {
    let known = KNOWN.iter().find(|known| known.guid == *guid);
    known.map_or_else(
        || format!("item {}", uuid::Uuid::from_bytes_le(*guid)),
        |known| known.name.to_owned(),
    )
}

fn check_entry(entry: &[u8], at: u64, region: Span, report: &mut Report) -> Option<Item> {
    const TABLE: &str = "metadata table";
    let (guid, flags) = (guid_at(entry, 0), u32_at(entry, 24));
    let (offset, length) = (u64::from(u32_at(entry, 16)), u64::from(u32_at(entry, 20)));
    let user = flags & FLAG_USER != 0;
    if flags & !FLAGS_ALL != 0 || u32_at(entry, 28) != 0 {
        report.add(&found::METADATA_RESERVED, TABLE, at + 24, || {
            format!("expected no other flags than {FLAGS_ALL:#x}, found {flags:#x}")
        });
    }
    let known = KNOWN.iter().find(|known| !user && known.guid == guid);
    if guid[..4] == INCOMPLETE_FILE {
        report.add(&found::METADATA_INCOMPLETE, TABLE, at, || {
            "expected no mark of a half-made file".to_owned()
        });
    } else if let Some(known) = known {
        if flags & FLAGS_ALL != known.flags {
            report.add(&found::METADATA_FLAGS, TABLE, at + 24, || {
                format!(
                    "expected {:#x} for the {}, found {flags:#x}",
                    known.flags, known.name
                )
            });
        }
        if known.length.is_some_and(|expected| expected != length) {
            report.add(&found::METADATA_LENGTH, TABLE, at + 20, || {
                format!("{length} bytes for the {}", known.name)
            });
            return None;
        }
    } else if flags & FLAG_REQUIRED != 0 {
        report.add(&found::METADATA_UNKNOWN_REQUIRED, TABLE, at, || {
            format!("{} is required and not known", name(&guid))
        });
    } else {
        report.add(&found::METADATA_UNKNOWN, TABLE, at, || {
            format!("{} is optional and not known", name(&guid))
        });
    }
    let inside = offset >= KIB64 && offset + length <= region.length && length <= MIB;
    if !inside && length > 0 {
        report.add(&found::METADATA_PLACE, TABLE, at + 16, || {
            format!(
                "expected at most {MIB} bytes from {KIB64} on in a region of {}, found {length} at {offset} for {}",
                region.length, name(&guid)
            )
        });
        return None;
    }
    Some(Item {
        guid,
        user,
        span: Span {
            offset: region.offset + offset,
            length,
        },
    })
}

fn check_disjoint(items: &mut [Item], report: &mut Report) {
    items.sort_by_key(|item| item.span.offset);
    let mut end = 0;
    for item in items.iter().filter(|item| item.span.length > 0) {
        if item.span.offset < end {
            report.add(
                &found::METADATA_OVERLAP,
                "metadata item",
                item.span.offset,
                || {
                    format!(
                        "expected {} after {end}, where the one before it ends",
                        name(&item.guid)
                    )
                },
            );
        }
        end = end.max(item.span.end());
    }
}

fn read_disk(
    source: &Source<'_>,
    region: Span,
    items: &[Item],
    report: &mut Report,
) -> Result<Option<Disk>, DiskError> {
    let find = |guid: Guid| items.iter().find(|item| !item.user && item.guid == guid);
    let mut values = Vec::new();
    for known in KNOWN.iter().filter(|known| known.length.is_some()) {
        match find(known.guid) {
            Some(item) => values.push((
                item.span.offset,
                source.bytes(item.span.offset, item.span.length)?,
            )),
            None => report.add(
                &found::METADATA_MISSING,
                "metadata table",
                region.offset,
                || format!("expected a sound item {}", known.name),
            ),
        }
    }
    let [parameters, size, _id, logical, physical] = &values[..] else {
        return Ok(None);
    };
    let flags = u32_at(&parameters.1, 4);
    if flags & !(LEAVE_ALLOCATED | HAS_PARENT) != 0 {
        report.add(
            &found::METADATA_RESERVED,
            "file parameters",
            parameters.0 + 4,
            || format!("expected no other flags than 3, found {flags:#x}"),
        );
    }
    let disk = Disk {
        block_bytes: u64::from(u32_at(&parameters.1, 0)),
        leave_allocated: flags & LEAVE_ALLOCATED != 0,
        has_parent: flags & HAS_PARENT != 0,
        size_bytes: u64_at(&size.1, 0),
        logical_sector_bytes: u32_at(&logical.1, 0),
        physical_sector_bytes: u32_at(&physical.1, 0),
        locator: find(PARENT_LOCATOR).map(|item| item.span),
    };
    let block = disk.block_bytes;
    let mut possible = true;
    let mut expect = |holds: bool, at: u64, what: &str| {
        if !holds {
            possible = false;
            report.add(&found::METADATA_VALUE, "metadata item", at, || {
                what.to_owned()
            });
        }
    };
    let block_holds =
        block.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block);
    expect(
        block_holds,
        parameters.0,
        &format!("blocks of {block} bytes"),
    );
    for (at, bytes) in [
        (logical.0, disk.logical_sector_bytes),
        (physical.0, disk.physical_sector_bytes),
    ] {
        expect(
            matches!(bytes, 512 | 4096),
            at,
            &format!("sectors of {bytes} bytes"),
        );
    }
    let bytes = disk.size_bytes;
    let sector = u64::from(disk.logical_sector_bytes).max(1);
    let size_holds = (1..=MAX_DISK_BYTES).contains(&bytes) && bytes.is_multiple_of(sector);
    expect(size_holds, size.0, &format!("a disk of {bytes} bytes"));
    Ok(possible.then_some(disk))
}
