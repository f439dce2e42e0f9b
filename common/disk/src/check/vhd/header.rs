//! The dynamic header: block size, place of the BAT, what names the parent.

use super::footer::{Footer, VERSION};
use super::{Owned, SECTOR, checksum_holds, id_at, u32_at, u64_at};
use crate::check::catalogue::vhd as found;
use crate::check::facts::DiskKind;
use crate::check::report::Report;
use crate::check::source::Source;
use crate::error::DiskError;

const COOKIE: &[u8; 8] = b"cxsparse";
const HEADER_BYTES: u64 = 1024;
const STRUCTURE: &str = "dynamic header";
const CHECKSUM_AT: usize = 36;
const LOCATORS_AT: usize = 576;
const LOCATOR_BYTES: usize = 24;
const LOCATORS: usize = 8;
const BLOCK_BYTES_MIN: u32 = 4096;
const BLOCK_BYTES_MAX: u32 = 1 << 30;

/// A name of the parent, somewhere in the file.
pub(super) struct Locator {
    /// Of its entry.
    pub(super) at: u64,
    pub(super) code: [u8; 4],
    pub(super) space: u32,
    pub(super) length: u32,
    pub(super) offset: u64,
}

pub(super) struct Header {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) bat_offset: u64,
    pub(super) entries: u32,
    pub(super) block_bytes: u64,
    pub(super) locators: Vec<Locator>,
    /// What the footer's copy, the header and the locators own.
    pub(super) owned: Vec<Owned>,
}

impl Header {
    pub(super) fn parent_id(&self) -> [u8; 16] {
        id_at(&self.bytes, 40)
    }
}

pub(super) fn check(
    source: &Source<'_>,
    footer: &Footer,
    report: &mut Report,
) -> Result<Option<Header>, DiskError> {
    let at = footer.data_offset;
    let inside = at
        .checked_add(HEADER_BYTES)
        .is_some_and(|end| end <= footer.blocks_end);
    if !inside || at < SECTOR || !at.is_multiple_of(SECTOR) {
        report.add(&found::HEADER_PLACE, STRUCTURE, 16, || {
            format!(
                "expected whole sectors from {SECTOR} to {}, found {at}",
                footer.blocks_end
            )
        });
        return Ok(None);
    }
    let bytes = source.bytes(at, HEADER_BYTES)?;
    if bytes[..8] != *COOKIE || !checksum_holds(&bytes, CHECKSUM_AT) {
        report.add(&found::HEADER_INVALID, STRUCTURE, at, || {
            "expected \"cxsparse\" and a valid checksum".to_owned()
        });
        return Ok(None);
    }
    let version = u32_at(&bytes, 24);
    if version != VERSION {
        report.add(&found::VERSION, STRUCTURE, at + 24, || {
            format!("expected {VERSION:#x}, found {version:#x}")
        });
        return Ok(None);
    }
    let next = u64_at(&bytes, 8);
    let reserved = bytes[60..64].iter().chain(&bytes[768..]);
    if !matches!(next, u64::MAX | 0xFFFF_FFFF) || reserved.into_iter().any(|byte| *byte != 0) {
        report.add(&found::HEADER_RESERVED, STRUCTURE, at + 8, || {
            format!("expected all bits set and zeros in reserved fields, found {next:#x}")
        });
    }
    let block_bytes = u32_at(&bytes, 32);
    let possible = (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes);
    if !possible || !block_bytes.is_power_of_two() {
        report.add(&found::BLOCK_SIZE, STRUCTURE, at + 32, || {
            format!("expected a power of two from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}, found {block_bytes}")
        });
        return Ok(None);
    }
    let mut header = Header {
        at,
        bat_offset: u64_at(&bytes, 16),
        entries: u32_at(&bytes, 28),
        block_bytes: u64::from(block_bytes),
        locators: locators(&bytes, at),
        owned: vec![
            Owned {
                name: "footer copy",
                offset: 0,
                length: SECTOR,
            },
            Owned {
                name: STRUCTURE,
                offset: at,
                length: HEADER_BYTES,
            },
        ],
        bytes,
    };
    check_locators(&mut header, footer, report);
    Ok(Some(header))
}

fn locators(bytes: &[u8], at: u64) -> Vec<Locator> {
    let entries = bytes[LOCATORS_AT..].chunks_exact(LOCATOR_BYTES);
    let places = (at..).skip(LOCATORS_AT).step_by(LOCATOR_BYTES);
    entries
        .take(LOCATORS)
        .zip(places)
        .map(|(entry, at)| Locator {
            at,
            code: entry[..4].try_into().expect("four bytes"),
            space: u32_at(entry, 4),
            length: u32_at(entry, 8),
            offset: u64_at(entry, 16),
        })
        .filter(|locator| locator.code != [0; 4])
        .collect()
}

fn check_locators(header: &mut Header, footer: &Footer, report: &mut Report) {
    if footer.kind != DiskKind::Differencing {
        if !header.locators.is_empty() || header.parent_id() != [0; 16] {
            report.add(&found::PARENT_STRAY, STRUCTURE, header.at + 40, || {
                "expected no parent's id and no locators".to_owned()
            });
        }
        return;
    }
    let mut sound = Vec::new();
    for locator in header.locators.drain(..) {
        // Windows counts the space in bytes, others in sectors; the length is in bytes for all.
        let length = u64::from(locator.length);
        let space = match u64::from(locator.space) {
            bytes if bytes >= length && bytes.is_multiple_of(SECTOR) => bytes,
            _ => length.next_multiple_of(SECTOR),
        };
        let end = locator.offset.checked_add(space);
        if end.is_none_or(|end| end > footer.blocks_end) {
            report.add(&found::PARENT_LOCATOR, "parent locator", locator.at, || {
                format!(
                    "{length} bytes at {} are not inside the file",
                    locator.offset
                )
            });
            continue;
        }
        let over = |owned: &&Owned| owned.overlaps(locator.offset, space);
        if let Some(owned) = header.owned.iter().find(over).filter(|_| space > 0) {
            report.add(&found::PARENT_LOCATOR, "parent locator", locator.at, || {
                format!(
                    "{length} bytes at {} are over the {}",
                    locator.offset, owned.name
                )
            });
            continue;
        }
        header.owned.push(Owned {
            name: "parent locator",
            offset: locator.offset,
            length: space,
        });
        sound.push(locator);
    }
    header.locators = sound;
}
