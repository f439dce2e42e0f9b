//! The two headers, and how they relate.
//!
//! Receives the file, gives out the header that counts. A log never changes headers, so they are read as they are.

use super::Span;
use crate::check::catalogue::vhdx as found;
use crate::check::report::Report;
use crate::check::source::{PAGE, Source};
use crate::error::DiskError;
use crate::vhdx::layout::{Guid, HEADER_OFFSETS, checksum, guid_at, u16_at, u32_at, u64_at};

const VERSION: u16 = 1;
/// Reserved from here to the end of the page.
const RESERVED_AT: usize = 80;

/// The header that counts.
pub(super) struct Header {
    pub(super) data_write: Guid,
    pub(super) log_guid: Guid,
    pub(super) log_version: u16,
    pub(super) log: Span,
}

/// Both slots' bytes; none where one is damaged.
pub(in crate::check) struct Slots {
    pub(in crate::check) valid: [Option<Vec<u8>>; 2],
}

impl Slots {
    /// The slot that counts. None: both are damaged, or contradict each other.
    pub(in crate::check) fn current(&self) -> Option<usize> {
        match &self.valid {
            [Some(first), Some(second)] => match sequence(first).cmp(&sequence(second)) {
                std::cmp::Ordering::Less => Some(1),
                std::cmp::Ordering::Greater => Some(0),
                std::cmp::Ordering::Equal => (first == second).then_some(0),
            },
            [Some(_), None] => Some(0),
            [None, Some(_)] => Some(1),
            [None, None] => None,
        }
    }
}

/// Reads both slots.
pub(in crate::check) fn slots(source: &Source<'_>) -> Result<Slots, DiskError> {
    let mut valid = [None, None];
    for (slot, offset) in valid.iter_mut().zip(HEADER_OFFSETS) {
        let bytes = source.bytes(offset, PAGE)?;
        let good = &bytes[..4] == b"head" && u32_at(&bytes, 4) == checksum(&bytes);
        *slot = good.then_some(bytes);
    }
    Ok(Slots { valid })
}

fn sequence(header: &[u8]) -> u64 {
    u64_at(header, 8)
}

/// Gives out the header that counts, if there is one that can be believed.
pub(super) fn check(source: &Source<'_>, report: &mut Report) -> Result<Option<Header>, DiskError> {
    let slots = slots(source)?;
    report_slots(&slots, report);
    let Some(index) = slots.current() else {
        return Ok(None);
    };
    let (current, at) = (slots.valid[index].as_ref(), HEADER_OFFSETS[index]);
    let current = current.expect("the current slot is a valid one");
    if current[RESERVED_AT..].iter().any(|byte| *byte != 0) {
        report.add(&found::HEADER_RESERVED, "header", at + 80, || {
            "expected zeros to the header's end".to_owned()
        });
    }
    let version = u16_at(current, 66);
    if version != VERSION {
        report.add(&found::HEADER_VERSION, "header", at + 66, || {
            format!("expected version {VERSION}, found {version}")
        });
        return Ok(None);
    }
    Ok(Some(Header {
        data_write: guid_at(current, 32),
        log_guid: guid_at(current, 48),
        log_version: u16_at(current, 64),
        log: Span {
            offset: u64_at(current, 72),
            length: u64::from(u32_at(current, 68)),
        },
    }))
}

fn report_slots(slots: &Slots, report: &mut Report) {
    let [first_at, second_at] = HEADER_OFFSETS;
    match &slots.valid {
        [Some(first), Some(second)] => relate(first, second, report),
        [Some(_), None] => damaged(second_at, first_at, report),
        [None, Some(_)] => damaged(first_at, second_at, report),
        [None, None] => report.add(&found::HEADERS_INVALID, "header", first_at, || {
            format!("expected a header with a valid checksum here or at {second_at}")
        }),
    }
}

fn damaged(bad: u64, good: u64, report: &mut Report) {
    report.add(&found::HEADER_INVALID, "header", bad, || {
        format!("expected \"head\" and a valid checksum; the header at {good} has them")
    });
}

fn relate(first: &[u8], second: &[u8], report: &mut Report) {
    let (older, newer) = (
        sequence(first).min(sequence(second)),
        sequence(first).max(sequence(second)),
    );
    let at = HEADER_OFFSETS[usize::from(sequence(first) > sequence(second))];
    if older == newer && first == second {
        report.add(&found::HEADERS_TWINS, "header", at, || {
            format!("both have sequence number {newer}")
        });
        return;
    }
    if older == newer {
        report.add(&found::HEADERS_CONFLICT, "header", at, || {
            format!(
                "both have sequence number {newer}, and differ: which one counts cannot be told"
            )
        });
        return;
    }
    let mut differ = Vec::new();
    for (name, from, to) in [
        ("FileWriteGuid", 16, 32),
        ("DataWriteGuid", 32, 48),
        ("LogGuid", 48, 64),
        ("versions", 64, 68),
        ("place of the log", 68, 80),
    ] {
        if first[from..to] != second[from..to] {
            differ.push(name);
        }
    }
    if newer - older > 1 || !differ.is_empty() {
        report.add(&found::HEADERS_APART, "header", at, || {
            format!(
                "sequence numbers {older} and {newer}; different: {}",
                if differ.is_empty() {
                    "nothing else".to_owned()
                } else {
                    differ.join(", ")
                }
            )
        });
    }
}
