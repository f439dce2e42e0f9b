//! The link of a differencing disk to its parent.
//!
//! Reads the parent's outline only, one level up: each disk of a chain is checked on its own.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;

use super::metadata::Disk;
use super::{Span, outline};
use crate::check::catalogue::vhdx as found;
use crate::check::facts::{Facts, VhdxFacts};
use crate::check::parent::{Parent, find};
use crate::check::report::{Report, Severity};
use crate::check::source::{Source, to_usize};
use crate::error::DiskError;
use crate::storage::Storage;
use crate::vhdx::layout::{Guid, NO_GUID, guid, guid_at, u16_at, u32_at};

/// The only type of locator that is known.
const LOCATOR_TYPE: Guid = guid(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);
const STRUCTURE: &str = "parent locator";
/// Keys that name the parent's file, best first.
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// Gives out the path at which the parent was found.
pub(super) fn check(
    storage: &dyn Storage,
    path: &Path,
    source: &Source<'_>,
    disk: &Disk,
    report: &mut Report,
) -> Result<Option<String>, DiskError> {
    let Some(span) = disk.locator else {
        report.add(&found::PARENT_LOCATOR, STRUCTURE, 0, || {
            "expected a metadata item that names the parent".to_owned()
        });
        return Ok(None);
    };
    let bytes = source.bytes(span.offset, span.length)?;
    let locator = parse(&bytes).and_then(|keys| Link::of(&keys));
    let link = match locator {
        Ok(link) => link,
        Err(fault) => {
            report.add(&found::PARENT_LOCATOR, STRUCTURE, span.offset, || fault);
            return Ok(None);
        }
    };
    let (place, file) = match find(storage, path, &link.names)? {
        Parent::Found(place, file) => (place, file),
        Parent::InUse(place) => {
            report.add(&found::PARENT_IN_USE, STRUCTURE, span.offset, || {
                format!("a writer has {} open", place.display())
            });
            return Ok(None);
        }
        Parent::NotFound => {
            report.add(&found::PARENT_NOT_FOUND, STRUCTURE, span.offset, || {
                format!("looked for {} in the disk's folder", link.names.join(", "))
            });
            return Ok(None);
        }
    };
    let name = place.display().to_string();
    let mut parent = Source::new(&*file, name.clone())?;
    compare(&mut parent, &name, disk, span, &link, report)?;
    Ok(Some(name))
}

fn compare(
    parent: &mut Source<'_>,
    name: &str,
    disk: &Disk,
    span: Span,
    link: &Link,
    report: &mut Report,
) -> Result<(), DiskError> {
    let facts = VhdxFacts::default();
    let mut of_parent = Report::new(Path::new(name), Facts::Vhdx(facts), 1);
    let outline = outline(parent, &mut of_parent, &mut VhdxFacts::default())?;
    let fault = of_parent
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error);
    let Some(outline) = outline.filter(|_| fault.is_none()) else {
        report.add(&found::PARENT_UNREADABLE, STRUCTURE, span.offset, || {
            let why = fault.map_or("it is damaged", |finding| finding.code);
            format!("{name}: {why}")
        });
        return Ok(());
    };
    if !link.linkages.contains(&outline.data_write) {
        report.add(&found::PARENT_CHANGED, STRUCTURE, span.offset, || {
            format!(
                "expected DataWriteGuid {} in {name}, found {}",
                Uuid::from_bytes_le(link.linkages[0]),
                Uuid::from_bytes_le(outline.data_write)
            )
        });
    }
    let (ours, theirs) = (disk.logical_sector_bytes, outline.disk.logical_sector_bytes);
    if ours != theirs {
        report.add(&found::PARENT_SECTORS, STRUCTURE, span.offset, || {
            format!("expected sectors of {ours} bytes in {name}, found {theirs}")
        });
    }
    Ok(())
}

/// What a locator says.
struct Link {
    /// DataWriteGuids that the parent may have; at least one.
    linkages: Vec<Guid>,
    /// At least one.
    names: Vec<String>,
}

impl Link {
    fn of(keys: &BTreeMap<String, String>) -> Result<Self, String> {
        let linkage = keys
            .get("parent_linkage")
            .ok_or("expected the key parent_linkage")?;
        let mut linkages = vec![
            parse_guid(linkage)
                .ok_or_else(|| format!("expected a GUID as parent_linkage, found {linkage:?}"))?,
        ];
        let second = keys
            .get("parent_linkage2")
            .and_then(|text| parse_guid(text));
        linkages.extend(second.filter(|guid| *guid != NO_GUID));
        let names: Vec<String> = PATHS
            .iter()
            .filter_map(|key| keys.get(*key))
            .cloned()
            .collect();
        if names.is_empty() {
            return Err(format!("expected one of the keys {}", PATHS.join(", ")));
        }
        Ok(Self { linkages, names })
    }
}

fn parse_guid(text: &str) -> Option<Guid> {
    Some(Uuid::try_parse(text.trim()).ok()?.to_bytes_le())
}

/// UTF-16 that is nothing else, without an end mark that some writers count in.
fn strict_utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|unit| u16_at(unit, 0));
    let units: Vec<u16> = units.collect();
    let text = String::from_utf16(&units).ok()?;
    bytes
        .len()
        .is_multiple_of(2)
        .then(|| text.trim_end_matches('\0').to_owned())
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    const HEADER_BYTES: usize = 20;
    const ENTRY_BYTES: usize = 12;
    if bytes.len() < HEADER_BYTES || guid_at(bytes, 0) != LOCATOR_TYPE {
        return Err("expected a locator of a VHDX parent".to_owned());
    }
    let count = usize::from(u16_at(bytes, 18));
    let entries = &bytes[HEADER_BYTES..];
    if entries.len() < count * ENTRY_BYTES {
        return Err(format!(
            "expected room for {count} keys in {} bytes",
            bytes.len()
        ));
    }
    let mut keys = BTreeMap::new();
    for entry in entries.chunks_exact(ENTRY_BYTES).take(count) {
        let text = |at: usize, length: usize| {
            let from = to_usize(u64::from(u32_at(entry, at)));
            let length = usize::from(u16_at(entry, length));
            bytes
                .get(from..from + length)
                .filter(|text| !text.is_empty())
                .and_then(strict_utf16)
                .ok_or_else(|| {
                    format!("expected {length} bytes of UTF-16 at {from}, inside the item")
                })
        };
        let (key, value) = (text(0, 8)?, text(4, 10)?);
        if keys.contains_key(&key) {
            return Err(format!("expected the key {key:?} once"));
        }
        keys.insert(key, value);
    }
    Ok(keys)
}
