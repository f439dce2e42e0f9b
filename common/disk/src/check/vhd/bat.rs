//! The block allocation table, and the sector bitmap before each block.

use super::footer::Footer;
use super::header::Header;
use super::{Owned, SECTOR, u32_at};
use crate::check::catalogue::vhd as found;
use crate::check::facts::{DiskKind, VhdFacts};
use crate::check::report::Report;
use crate::check::source::{Source, to_u64};
use crate::error::DiskError;

const STRUCTURE: &str = "BAT";
const ABSENT: u32 = u32::MAX;
const STEP_BYTES: u64 = 1 << 20;
const ALIGNED: u64 = 4096;
/// Shorter gaps are there so that data, or the footer's end, is aligned.
const PADDING_MAX: u64 = 2 * ALIGNED;
/// Entries after the disk's end that are looked at.
const BEYOND_MAX: u64 = 1 << 20;

/// A block that has space of its own: first sector of its bitmap, and its number.
type Present = (u32, u32);

struct Table<'a> {
    source: &'a Source<'a>,
    footer: &'a Footer,
    offset: u64,
    /// Blocks that the disk has.
    blocks: u64,
    block_bytes: u64,
    bitmap_bytes: u64,
    owned: Vec<Owned>,
}

pub(super) fn check(
    source: &Source<'_>,
    footer: &Footer,
    header: &Header,
    report: &mut Report,
    facts: &mut VhdFacts,
) -> Result<(), DiskError> {
    let blocks = footer.size_bytes.div_ceil(header.block_bytes);
    facts.block_bytes = header.block_bytes;
    facts.blocks = blocks;
    let entries = u64::from(header.entries);
    if entries < blocks {
        report.add(&found::BAT_TOO_SHORT, STRUCTURE, header.at + 28, || {
            format!("expected at least {blocks} entries, found {entries}")
        });
    }
    let offset = header.bat_offset;
    let length = (entries * 4).next_multiple_of(SECTOR);
    let mut owned = header.owned.clone();
    let inside = offset
        .checked_add(length)
        .is_some_and(|end| end <= footer.blocks_end);
    let over = owned
        .iter()
        .find(|owned| inside && owned.overlaps(offset, length));
    if !inside || !offset.is_multiple_of(SECTOR) || over.is_some() {
        report.add(&found::BAT_PLACE, STRUCTURE, header.at + 16, || {
            let name = over.map_or("the file's end", |owned| owned.name);
            format!("{length} bytes at {offset} are not whole sectors, or over {name}")
        });
        return Ok(());
    }
    owned.push(Owned {
        name: STRUCTURE,
        offset,
        length,
    });
    let bits = header.block_bytes / SECTOR;
    let table = Table {
        source,
        footer,
        offset,
        blocks,
        block_bytes: header.block_bytes,
        bitmap_bytes: bits.div_ceil(8).next_multiple_of(SECTOR),
        owned,
    };
    let mut present = table.read(entries.min(blocks + BEYOND_MAX), report)?;
    facts.blocks_present = to_u64(present.len());
    present.sort_unstable();
    table.check_unique(&present, report);
    table.check_alignment(&present, report, facts);
    table.check_leaks(&present, report, facts);
    if footer.kind == DiskKind::Dynamic {
        table.check_bitmaps(&present, report)?;
    }
    Ok(())
}

impl Table<'_> {
    fn at(&self, index: u32) -> u64 {
        self.offset + u64::from(index) * 4
    }

    /// Bytes of the file that a block takes, its bitmap included.
    fn length(&self) -> u64 {
        self.bitmap_bytes + self.block_bytes
    }

    fn read(&self, entries: u64, report: &mut Report) -> Result<Vec<Present>, DiskError> {
        let mut present = Vec::new();
        let (mut at, mut index) = (0, 0_u32);
        while at < entries * 4 {
            let step = STEP_BYTES.min(entries * 4 - at);
            for entry in self.source.bytes(self.offset + at, step)?.chunks_exact(4) {
                let sector = u32_at(entry, 0);
                if sector != ABSENT && self.check_place(index, sector, report) {
                    present.push((sector, index));
                }
                index = index.saturating_add(1);
            }
            at += step;
        }
        Ok(present)
    }

    /// Whether the block's space may be its own.
    fn check_place(&self, index: u32, sector: u32, report: &mut Report) -> bool {
        let (at, offset) = (self.at(index), u64::from(sector) * SECTOR);
        if u64::from(index) >= self.blocks {
            report.add(&found::BAT_BEYOND_END, STRUCTURE, at, || {
                format!(
                    "expected no space for block {index} of {}, found it at {offset}",
                    self.blocks
                )
            });
        }
        let length = self.source.length();
        if !self.source.holds(offset, self.length()) {
            report.add(&found::BAT_OUTSIDE, STRUCTURE, at, || {
                format!(
                    "block {index} has {} bytes at {offset}, the file ends at {length}",
                    self.length()
                )
            });
            return false;
        }
        let over = self
            .owned
            .iter()
            .find(|owned| owned.overlaps(offset, self.length()));
        let over = over.map(|owned| owned.name);
        let in_footer = offset + self.length() > self.footer.blocks_end;
        if let Some(name) = over.or(in_footer.then_some("footer")) {
            report.add(&found::BAT_OVERLAP, STRUCTURE, at, || {
                format!(
                    "block {index} has {} bytes at {offset}, over the {name}",
                    self.length()
                )
            });
            return false;
        }
        true
    }

    fn check_unique(&self, present: &[Present], report: &mut Report) {
        for pair in present.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let end = u64::from(first.0) * SECTOR + self.length();
            let offset = u64::from(second.0) * SECTOR;
            if end > offset {
                let (low, high) = (first.1.min(second.1), first.1.max(second.1));
                report.add(&found::BAT_SHARED, STRUCTURE, self.at(high), || {
                    format!("block {high} shares space at {offset} with block {low}")
                });
            }
        }
    }

    fn check_alignment(&self, present: &[Present], report: &mut Report, facts: &mut VhdFacts) {
        let data = |(sector, _): &&Present| u64::from(*sector) * SECTOR + self.bitmap_bytes;
        let aligned = present
            .iter()
            .filter(|block| data(block).is_multiple_of(ALIGNED));
        let aligned = to_u64(aligned.count());
        facts.blocks_aligned = aligned;
        let count = to_u64(present.len());
        if aligned > 0 && aligned < count {
            report.add(&found::ALIGNMENT, STRUCTURE, self.offset, || {
                format!("{aligned} of {count} blocks are on {ALIGNED} bytes")
            });
        }
    }

    /// Gaps between what is used, but for padding.
    fn check_leaks(&self, present: &[Present], report: &mut Report, facts: &mut VhdFacts) {
        let mut owned: Vec<(u64, u64)> = self
            .owned
            .iter()
            .map(|owned| (owned.offset, owned.end()))
            .collect();
        owned.sort_unstable();
        let mut owned = owned.into_iter().peekable();
        let blocks = present
            .iter()
            .map(|(sector, _)| u64::from(*sector) * SECTOR);
        let mut blocks = blocks
            .map(|offset| (offset, offset + self.length()))
            .peekable();
        let (mut end, mut leaked) = (0, 0);
        let mut see = |from: u64, to: u64| {
            let gap = from.saturating_sub(end);
            leaked += if gap < PADDING_MAX { 0 } else { gap };
            end = end.max(to);
        };
        loop {
            let is_block = match (owned.peek(), blocks.peek()) {
                (Some(owned), Some(block)) => block < owned,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (None, None) => break,
            };
            let next = if is_block {
                blocks.next()
            } else {
                owned.next()
            };
            if let Some((from, to)) = next {
                see(from, to);
            }
        }
        let last = self.footer.blocks_end;
        see(last, last);
        let ends = self.owned.iter().map(Owned::end);
        let last_block = present
            .last()
            .map(|(sector, _)| u64::from(*sector) * SECTOR);
        let block_end = last_block.map_or(0, |offset| offset + self.length());
        facts.used_end = ends.fold(block_end, u64::max);
        facts.leaked_bytes = leaked;
        if leaked > 0 {
            report.add(&found::LEAKED_SPACE, "file", last, || {
                format!("{leaked} bytes belong to nothing")
            });
        }
    }

    fn check_bitmaps(&self, present: &[Present], report: &mut Report) -> Result<(), DiskError> {
        let mut partial = 0_u64;
        for (sector, index) in present {
            let at = u64::from(*sector) * SECTOR;
            let from = u64::from(*index) * self.block_bytes;
            let shown = self
                .block_bytes
                .min(self.footer.size_bytes.saturating_sub(from))
                / SECTOR;
            let bitmap = self.source.bytes(at, shown.div_ceil(8))?;
            let set = bitmap
                .iter()
                .map(|byte| u64::from(byte.count_ones()))
                .sum::<u64>();
            if set == 0 && shown > 0 {
                report.add(&found::BITMAP_EMPTY, "sector bitmap", at, || {
                    format!("expected {shown} bits for the sectors of block {index}, found none")
                });
            } else if set < shown {
                partial += 1;
            }
        }
        if partial > 0 {
            report.add(&found::BITMAP_PARTIAL, "sector bitmap", self.offset, || {
                format!("{partial} blocks have bits that are not set")
            });
        }
        Ok(())
    }
}
