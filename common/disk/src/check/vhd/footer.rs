//! The footer at the file's end, and its copy at the start of dynamic and differencing disks.

use uuid::Uuid;

use super::{SECTOR, checksum_holds, id_at, u16_at, u32_at, u64_at};
use crate::check::catalogue::vhd as found;
use crate::check::facts::{DiskKind, VhdFacts};
use crate::check::report::Report;
use crate::check::source::Source;
use crate::error::DiskError;

pub(in crate::check) const COOKIE: &[u8; 8] = b"conectix";
pub(in crate::check) const FOOTER_BYTES: u64 = 512;
/// What very old programs wrote.
const OLD_FOOTER_BYTES: u64 = 511;
pub(super) const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 64;
const RESERVED_AT: usize = 85;
const SIZE_BYTES_MAX: u64 = 2040 << 30;
const GEOMETRY_MAX: (u16, u8, u8) = (65535, 16, 255);
const STRUCTURE: &str = "footer";
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Both places of the footer; none where it is damaged, or not expected.
pub(in crate::check) struct Footers {
    /// With where it begins.
    pub(in crate::check) end: Option<(u64, Vec<u8>)>,
    pub(in crate::check) copy: Option<Vec<u8>>,
    /// The footer at the end has 511 bytes.
    old: bool,
}

/// What the footer that counts says.
pub(super) struct Footer {
    pub(super) kind: DiskKind,
    pub(super) size_bytes: u64,
    /// Of the dynamic header.
    pub(super) data_offset: u64,
    /// Where blocks must end: before the footer, or at the file's end where there is none.
    pub(super) blocks_end: u64,
}

fn is_valid(footer: &[u8]) -> bool {
    footer[..8] == *COOKIE && checksum_holds(footer, CHECKSUM_AT)
}

fn has_copy(footer: &[u8]) -> bool {
    matches!(u32_at(footer, 60), DYNAMIC | DIFFERENCING)
}

/// Whether the file's end looks like a footer.
pub(in crate::check) fn ends_with_footer(source: &Source<'_>) -> Result<bool, DiskError> {
    let length = source.length();
    if length < FOOTER_BYTES {
        return Ok(false);
    }
    let last = source.bytes(length - FOOTER_BYTES, FOOTER_BYTES)?;
    Ok(last.starts_with(COOKIE) || last[1..].starts_with(COOKIE))
}

/// Reads both places. A file shorter than a footer has none.
pub(in crate::check) fn footers(source: &Source<'_>) -> Result<Footers, DiskError> {
    let mut footers = Footers {
        end: None,
        copy: None,
        old: false,
    };
    let length = source.length();
    if length < FOOTER_BYTES {
        return Ok(footers);
    }
    let last = source.bytes(length - FOOTER_BYTES, FOOTER_BYTES)?;
    let shifted: Vec<u8> = last[1..].iter().copied().chain([0]).collect();
    if is_valid(&last) {
        footers.end = Some((length - FOOTER_BYTES, last));
    } else if is_valid(&shifted) {
        footers.end = Some((length - OLD_FOOTER_BYTES, shifted));
        footers.old = true;
    }
    // A fixed disk begins with what the guest wrote, which may look like anything.
    if footers.end.as_ref().is_none_or(|(_, end)| has_copy(end)) {
        let copy = source.bytes(0, FOOTER_BYTES)?;
        // Alone, it counts only if it says that it is a copy.
        let counts = footers.end.is_some() || has_copy(&copy);
        footers.copy = Some(copy).filter(|copy| is_valid(copy) && counts);
    }
    Ok(footers)
}

/// Gives out what the footer that counts says, if that can be believed.
pub(super) fn check(
    source: &Source<'_>,
    report: &mut Report,
    facts: &mut VhdFacts,
) -> Result<Option<Footer>, DiskError> {
    let length = source.length();
    if length < FOOTER_BYTES {
        report.add(&found::TOO_SHORT, "file", length, || {
            format!("expected at least {FOOTER_BYTES} bytes, found {length}")
        });
        return Ok(None);
    }
    let footers = footers(source)?;
    let expected_at = length - FOOTER_BYTES;
    let (at, footer) = match (&footers.end, &footers.copy) {
        (Some((at, end)), Some(copy)) => {
            compare(end, copy, report);
            (*at, end)
        }
        (Some((at, end)), None) => {
            if has_copy(end) {
                report.add(&found::COPY_INVALID, "footer copy", 0, || {
                    format!("expected the footer that is at {at}")
                });
            }
            (*at, end)
        }
        (None, Some(copy)) => {
            report.add(&found::FOOTER_INVALID, STRUCTURE, expected_at, || {
                "expected the footer whose copy is at 0".to_owned()
            });
            (0, copy)
        }
        (None, None) => {
            report.add(&found::FOOTERS_INVALID, STRUCTURE, expected_at, || {
                "expected \"conectix\" and a valid checksum here or, in a dynamic disk, at 0"
                    .to_owned()
            });
            return Ok(None);
        }
    };
    if footers.old {
        report.add(&found::FOOTER_OLD, STRUCTURE, at, || {
            format!("expected {FOOTER_BYTES} bytes, found {OLD_FOOTER_BYTES}")
        });
    } else if !length.is_multiple_of(SECTOR) {
        report.add(&found::FILE_LENGTH, "file", length, || {
            format!("expected a multiple of {SECTOR}, found {length} bytes")
        });
    }
    let blocks_end = footers.end.as_ref().map_or(length, |(at, _)| *at);
    Ok(check_fields(footer, at, blocks_end, report, facts))
}

fn compare(end: &[u8], copy: &[u8], report: &mut Report) {
    let fields = [
        ("version", 12, 16),
        ("data offset", 16, 24),
        ("current size", 48, 56),
        ("geometry", 56, 60),
        ("type", 60, 64),
        ("id", 68, 84),
    ];
    let differ: Vec<&str> = fields
        .into_iter()
        .filter(|(_, from, to)| end[*from..*to] != copy[*from..*to])
        .map(|(name, ..)| name)
        .collect();
    if !differ.is_empty() {
        report.add(&found::FOOTERS_DIFFER, "footer copy", 0, || {
            format!(
                "expected the footer's bytes; different: {}",
                differ.join(", ")
            )
        });
    } else if end != copy {
        report.add(&found::FOOTERS_APART, "footer copy", 0, || {
            "expected the footer's bytes".to_owned()
        });
    }
}

fn check_fields(
    footer: &[u8],
    at: u64,
    blocks_end: u64,
    report: &mut Report,
    facts: &mut VhdFacts,
) -> Option<Footer> {
    let version = u32_at(footer, 12);
    if version != VERSION {
        report.add(&found::VERSION, STRUCTURE, at + 12, || {
            format!("expected {VERSION:#x}, found {version:#x}")
        });
        return None;
    }
    let kind = match u32_at(footer, 60) {
        FIXED => DiskKind::Fixed,
        DYNAMIC => DiskKind::Dynamic,
        DIFFERENCING => DiskKind::Differencing,
        other => {
            report.add(&found::TYPE, STRUCTURE, at + 60, || {
                format!("expected 2, 3 or 4, found {other}")
            });
            return None;
        }
    };
    let (features, reserved) = (u32_at(footer, 8), &footer[RESERVED_AT..]);
    if features & !1 != 2 || reserved.iter().any(|byte| *byte != 0) {
        report.add(&found::FOOTER_RESERVED, STRUCTURE, at + 8, || {
            format!("expected features 2 or 3 and zeros from {RESERVED_AT} on, found features {features:#x}")
        });
    }
    if footer[84] != 0 {
        report.add(&found::SAVED_STATE, STRUCTURE, at + 84, || {
            format!("expected 0, found {}", footer[84])
        });
    }
    let size_bytes = u64_at(footer, 48);
    facts.kind = Some(kind);
    facts.disk_bytes = size_bytes;
    let creator = footer[28..32].iter().filter(|byte| byte.is_ascii_graphic());
    facts.creator = creator.map(|byte| char::from(*byte)).collect();
    facts.id = Some(Uuid::from_bytes(id_at(footer, 68)).to_string());
    if !(1..=SIZE_BYTES_MAX).contains(&size_bytes) || !size_bytes.is_multiple_of(SECTOR) {
        report.add(&found::SIZE, STRUCTURE, at + 48, || {
            format!("expected whole sectors up to {SIZE_BYTES_MAX}, found {size_bytes} bytes")
        });
        return None;
    }
    check_geometry(footer, at, size_bytes, report, facts);
    let data_offset = u64_at(footer, 16);
    if kind == DiskKind::Fixed && data_offset != u64::MAX {
        report.add(&found::DATA_OFFSET, STRUCTURE, at + 16, || {
            format!("expected all bits set, found {data_offset}")
        });
    }
    Some(Footer {
        kind,
        size_bytes,
        data_offset,
        blocks_end,
    })
}

fn check_geometry(footer: &[u8], at: u64, size: u64, report: &mut Report, facts: &mut VhdFacts) {
    let (cylinders, heads, sectors) = (u16_at(footer, 56), footer[58], footer[59]);
    let count = u64::from(cylinders) * u64::from(heads) * u64::from(sectors);
    facts.geometry_bytes = count * SECTOR;
    // The largest geometry stands for "see the size".
    if count * SECTOR != size && (cylinders, heads, sectors) != GEOMETRY_MAX {
        report.add(&found::GEOMETRY, STRUCTURE, at + 56, || {
            format!(
                "{cylinders} cylinders, {heads} heads and {sectors} sectors are {} bytes, the disk has {size}",
                count * SECTOR
            )
        });
    }
}

/// The disk's id.
pub(super) fn id(footers: &Footers) -> Option<[u8; 16]> {
    let end = footers.end.as_ref().map(|(_, end)| end);
    end.or(footers.copy.as_ref())
        .map(|footer| id_at(footer, 68))
}
