//! Checking VHD files: fixed, dynamic, differencing.
//!
//! Owns: the order of the parts: footer and its copy, dynamic header, BAT, parent.

mod bat;
mod footer;
mod header;
mod parent;

use std::path::Path;

pub(super) use self::footer::{COOKIE, FOOTER_BYTES, ends_with_footer, footers};
use super::catalogue::vhd as found;
use super::facts::{DiskKind, VhdFacts};
use super::report::Report;
use super::source::Source;
use crate::error::DiskError;
use crate::storage::Storage;

/// Unit of the format's places, in bytes.
const SECTOR: u64 = 512;

/// A range of the file that something other than a block owns.
#[derive(Debug, Clone, Copy)]
struct Owned {
    name: &'static str,
    offset: u64,
    length: u64,
}

impl Owned {
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    fn overlaps(&self, offset: u64, length: u64) -> bool {
        self.offset < offset + length && offset < self.end()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..at + 16].try_into().expect("sixteen bytes")
}

/// Whether the checksum in the four bytes at `at` holds: the ones' complement of the sum of all others.
fn checksum_holds(bytes: &[u8], at: usize) -> bool {
    let others = bytes[..at].iter().chain(&bytes[at + 4..]);
    let sum = others.fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    u32_at(bytes, at) == !sum
}

pub(super) fn check(
    storage: &dyn Storage,
    path: &Path,
    source: &Source<'_>,
    report: &mut Report,
) -> Result<VhdFacts, DiskError> {
    let mut facts = VhdFacts {
        file_bytes: source.length(),
        ..VhdFacts::default()
    };
    let Some(footer) = footer::check(source, report, &mut facts)? else {
        return Ok(facts);
    };
    if footer.kind == DiskKind::Fixed {
        check_fixed(&footer, report, &mut facts);
        return Ok(facts);
    }
    let Some(header) = header::check(source, &footer, report)? else {
        return Ok(facts);
    };
    bat::check(source, &footer, &header, report, &mut facts)?;
    if footer.kind == DiskKind::Differencing {
        facts.parent = parent::check(storage, path, source, &header, report)?;
    }
    Ok(facts)
}

fn check_fixed(footer: &footer::Footer, report: &mut Report, facts: &mut VhdFacts) {
    let (size, room) = (footer.size_bytes, footer.blocks_end);
    if size > room {
        report.add(&found::FIXED_LENGTH, "file", room, || {
            format!("expected {size} bytes before the footer, found {room}")
        });
    } else if size < room {
        facts.leaked_bytes = room - size;
        report.add(&found::LEAKED_SPACE, "file", size, || {
            format!("{} bytes follow the disk", room - size)
        });
    }
}
