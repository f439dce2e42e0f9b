//! Checking change logs (`.hrl`).
//!
//! Walks the metadata blocks back from the end, then reads them forward with all data.

use uuid::Uuid;

use super::catalogue::hrl as found;
use super::facts::HrlFacts;
use super::report::Report;
use super::source::{Source, to_u64, to_usize};
use crate::error::DiskError;
use crate::hrl::format::{
    BLOCK_CHECKSUM_AT, COOKIE, ENTRY_CHECKSUM_AT, EOL_AT, HEADER_BYTES, HEADER_CHECKSUM_AT,
    METADATA_BYTES_MAX, OPERATION_WRITE, SECTOR_BYTES, SLOT_BYTES, VERSION, sum,
};
use crate::vhdx::layout::{guid_at, u32_at, u64_at};

const HEADER: &str = "header";
const BLOCK: &str = "metadata block";
const ENTRY: &str = "entry";
/// Reserved from here to the end of the header.
const RESERVED_AT: usize = 126;
/// Data is read in pieces of this.
const STEP_BYTES: u64 = 1 << 20;

/// What the header says of the rest.
struct Layout {
    end: u64,
    metadata_bytes: u64,
    total_entries: u64,
}

pub(super) fn check(source: &Source<'_>, report: &mut Report) -> Result<HrlFacts, DiskError> {
    let mut facts = HrlFacts {
        file_bytes: source.length(),
        ..HrlFacts::default()
    };
    let Some(layout) = check_header(source, report, &mut facts)? else {
        return Ok(facts);
    };
    let (blocks, whole) = walk_back(source, &layout, report)?;
    facts.metadata_blocks = to_u64(blocks.len());
    // Where the block before the first one that was reached ends is known for a whole chain only.
    let mut data_from = whole.then_some(to_u64(HEADER_BYTES));
    let mut time = 0;
    for at in blocks {
        let block = Block {
            source,
            bytes: source.bytes(at, layout.metadata_bytes)?,
            at,
        };
        block.check(data_from, &mut time, report, &mut facts)?;
        data_from = Some(at + layout.metadata_bytes);
    }
    let (expected, entries) = (layout.total_entries, facts.entries);
    if whole && entries != expected {
        report.add(&found::ENTRY_COUNT, HEADER, 96, || {
            format!("expected {expected} entries, found {entries}")
        });
    }
    Ok(facts)
}

/// Whether the checksum in the four bytes at `at` holds for all the others.
fn checksum_holds(bytes: &[u8], at: usize) -> bool {
    !(sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))) == u32_at(bytes, at)
}

fn check_header(
    source: &Source<'_>,
    report: &mut Report,
    facts: &mut HrlFacts,
) -> Result<Option<Layout>, DiskError> {
    let (length, header_bytes) = (source.length(), to_u64(HEADER_BYTES));
    if length < header_bytes {
        report.add(&found::TOO_SHORT, "file", length, || {
            format!("expected at least {header_bytes} bytes, found {length}")
        });
        return Ok(None);
    }
    let header = source.bytes(0, header_bytes)?;
    if header[..8] != *COOKIE {
        report.add(&found::COOKIE, HEADER, 0, || {
            "expected \"msctlog\"".to_owned()
        });
        return Ok(None);
    }
    facts.id = Uuid::from_bytes_le(guid_at(&header, 60)).to_string();
    facts.previous_id = Uuid::from_bytes_le(guid_at(&header, 76)).to_string();
    check_fields(&header, report);
    let (version, file_type) = (u32_at(&header, 8), u32_at(&header, 104));
    if version >> 16 != VERSION >> 16 || file_type != 0 {
        report.add(&found::VERSION, HEADER, 8, || {
            format!("expected version {VERSION:#x} and type 0, found {version:#x} and {file_type}")
        });
        return Ok(None);
    }
    let metadata_bytes = u32_at(&header, 56);
    let possible = (SECTOR_BYTES..=METADATA_BYTES_MAX).contains(&metadata_bytes);
    if !possible || !metadata_bytes.is_multiple_of(SECTOR_BYTES) {
        report.add(&found::METADATA_BYTES, HEADER, 56, || {
            format!("expected a multiple of {SECTOR_BYTES} up to {METADATA_BYTES_MAX}, found {metadata_bytes}")
        });
        return Ok(None);
    }
    let metadata_bytes = u64::from(metadata_bytes);
    let end = u64_at(&header, EOL_AT);
    let eol_at = to_u64(EOL_AT);
    if end == 0 {
        report.add(&found::NOT_CLOSED, HEADER, eol_at, || {
            "expected the log's end, found 0".to_owned()
        });
        return Ok(None);
    }
    facts.closed = true;
    let smallest = header_bytes + metadata_bytes;
    if !(smallest..=length).contains(&end) {
        report.add(&found::END, HEADER, eol_at, || {
            format!("expected an end from {smallest} to {length}, found {end}")
        });
        return Ok(None);
    }
    if length > end {
        report.add(&found::AFTER_END, "file", end, || {
            format!("{} bytes follow the log's end", length - end)
        });
    }
    let size = u64_at(&header, 32);
    if size != 0 && size != end && size != length {
        report.add(&found::SIZE, HEADER, 32, || {
            format!("expected {end}, found {size}")
        });
    }
    Ok(Some(Layout {
        end,
        metadata_bytes,
        total_entries: u64_at(&header, 96),
    }))
}

fn check_fields(header: &[u8], report: &mut Report) {
    if !checksum_holds(header, HEADER_CHECKSUM_AT) {
        let found = u32_at(header, HEADER_CHECKSUM_AT);
        report.add(
            &found::HEADER_CHECKSUM,
            HEADER,
            to_u64(HEADER_CHECKSUM_AT),
            || format!("found {found:#x}, which is not the checksum of the header's bytes"),
        );
    }
    let error = u32_at(header, 52);
    if error != 0 {
        report.add(&found::HEADER_ERROR, HEADER, 52, || {
            format!("expected 0, found {error:#x}")
        });
    }
    if header[RESERVED_AT..].iter().any(|byte| *byte != 0) {
        report.add(&found::HEADER_RESERVED, HEADER, to_u64(RESERVED_AT), || {
            "expected zeros to the header's end".to_owned()
        });
    }
}

/// Places of the metadata blocks, first to last, and whether the first one was reached. Each step goes back by at
/// least one block, and holes have no valid checksum: the list is bounded by the file's bytes.
fn walk_back(
    source: &Source<'_>,
    layout: &Layout,
    report: &mut Report,
) -> Result<(Vec<u64>, bool), DiskError> {
    let size = layout.metadata_bytes;
    let mut blocks = Vec::new();
    let mut at = layout.end - size;
    let whole = loop {
        let header = source.bytes(at, to_u64(SLOT_BYTES))?;
        if !checksum_holds(&header, BLOCK_CHECKSUM_AT) {
            report.add(&found::BLOCK_CHECKSUM, BLOCK, at, || {
                "expected a block whose header's checksum holds; what is before it was not checked".to_owned()
            });
            break false;
        }
        blocks.push(at);
        let back = u64_at(&header, 0);
        if back == 0 {
            break true;
        }
        let before = at.checked_sub(back).filter(|_| back >= size);
        match before.filter(|before| *before >= to_u64(HEADER_BYTES)) {
            Some(before) => at = before,
            None => {
                report.add(&found::BLOCK_CHAIN, BLOCK, at, || {
                    format!(
                        "no block can be {back} bytes before it; what is before it was not checked"
                    )
                });
                break false;
            }
        }
    };
    blocks.reverse();
    Ok((blocks, whole))
}

struct Block<'a> {
    source: &'a Source<'a>,
    at: u64,
    bytes: Vec<u8>,
}

impl Block<'_> {
    /// Checks all entries. `data_from`: where their data begins, if known; `time`: of the entry before.
    fn check(
        &self,
        data_from: Option<u64>,
        time: &mut u32,
        report: &mut Report,
        facts: &mut HrlFacts,
    ) -> Result<(), DiskError> {
        let places = to_u64(self.bytes.len() / SLOT_BYTES - 1);
        let valid = u64::from(u32_at(&self.bytes, 8));
        if valid > places {
            report.add(&found::BLOCK_ENTRIES, BLOCK, self.at + 8, || {
                format!("expected at most {places}, found {valid}")
            });
            return Ok(());
        }
        let valid = to_usize(valid);
        let unused = &self.bytes[(1 + valid) * SLOT_BYTES..];
        if self.bytes[16..32]
            .iter()
            .chain(unused)
            .any(|byte| *byte != 0)
        {
            report.add(&found::BLOCK_RESERVED, BLOCK, self.at, || {
                "expected zeros in its header and after its entries".to_owned()
            });
        }
        facts.entries += to_u64(valid);
        let mut data = data_from;
        for index in 1..=valid {
            let entry_at = self.at + to_u64(index * SLOT_BYTES);
            let entry = &self.bytes[index * SLOT_BYTES..][..SLOT_BYTES];
            if !checksum_holds(entry, ENTRY_CHECKSUM_AT) {
                report.add(&found::ENTRY_CHECKSUM, ENTRY, entry_at, || {
                    "expected an entry whose checksum holds; the data of those after it was not checked".to_owned()
                });
                // Its length is not known, so neither are the places of the data that follows.
                return Ok(());
            }
            check_entry(entry, entry_at, time, report);
            let length = u64::from(u32_at(entry, 12));
            facts.data_bytes += length;
            let Some(from) = data else {
                continue;
            };
            if from + length > self.at {
                report.add(&found::DATA_PLACE, ENTRY, entry_at, || {
                    format!(
                        "its {length} bytes of data from {from} on reach over the block at {}",
                        self.at
                    )
                });
                return Ok(());
            }
            self.check_data(entry, entry_at, from, report, facts)?;
            data = Some(from + length);
        }
        if let Some(end) = data.filter(|end| *end != self.at) {
            report.add(&found::DATA_PLACE, BLOCK, self.at, || {
                format!("expected its data to end here, it ends at {end}")
            });
        }
        Ok(())
    }

    fn check_data(
        &self,
        entry: &[u8],
        entry_at: u64,
        from: u64,
        report: &mut Report,
        facts: &mut HrlFacts,
    ) -> Result<(), DiskError> {
        let (length, expected) = (u64::from(u32_at(entry, 12)), u32_at(entry, 21));
        if expected == 0 {
            facts.entries_without_checksum += 1;
            return Ok(());
        }
        let mut total: u32 = 0;
        let mut at = from;
        while at < from + length {
            let step = STEP_BYTES.min(from + length - at);
            total = total.wrapping_add(sum(&self.source.bytes(at, step)?));
            at += step;
        }
        if !total != expected {
            report.add(&found::DATA_CHECKSUM, "data", from, || {
                format!(
                    "expected checksum {expected:#x} of {length} bytes, found {:#x} (entry at {entry_at})",
                    !total
                )
            });
        }
        Ok(())
    }
}

fn check_entry(entry: &[u8], at: u64, time: &mut u32, report: &mut Report) {
    let (operation, location) = (entry[20], entry[25]);
    if operation != OPERATION_WRITE || location != 0 {
        report.add(&found::ENTRY_OPERATION, ENTRY, at + 20, || {
            format!("expected operation {OPERATION_WRITE} and location 0, found {operation} and {location}")
        });
    }
    let (offset, length) = (u64_at(entry, 0), u32_at(entry, 12));
    let sector = u64::from(SECTOR_BYTES);
    let whole = length.is_multiple_of(SECTOR_BYTES) && offset.is_multiple_of(sector);
    if length == 0 || !whole || offset.checked_add(u64::from(length)).is_none() {
        report.add(&found::ENTRY_RANGE, ENTRY, at, || {
            format!("expected whole sectors of a disk, found {length} bytes at {offset}")
        });
    }
    let now = u32_at(entry, 16);
    if now < *time {
        report.add(&found::ENTRY_TIME, ENTRY, at + 16, || {
            format!("expected {time} or later, found {now} (seconds since 2000)")
        });
    }
    *time = now;
}
