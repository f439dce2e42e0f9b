//! The block allocation table: states, places, and who shares space with whom.
//!
//! Reads the table in pieces, a second time if blocks share space, to tell which ones.

use std::collections::BTreeMap;

use super::metadata::Disk;
use super::used::Used;
use super::{Owned, Span};
use crate::check::catalogue::vhdx as found;
use crate::check::facts::{DiskKind, VhdxFacts};
use crate::check::report::Report;
use crate::check::source::{Source, to_u64, to_usize};
use crate::error::DiskError;
use crate::vhdx::layout::{MIB, u64_at};

const STRUCTURE: &str = "BAT";
const STEP_BYTES: u64 = MIB;
const STATE: u64 = 7;
const RESERVED: u64 = 0x000F_FFF8;
/// Sectors that one bitmap, and so one chunk, tells of.
const CHUNK_SECTORS: u64 = 1 << 23;
/// Shared places that are looked up again, to name both blocks.
const SHARED_NAMED_MAX: usize = 64;

/// States of payload blocks.
mod state {
    pub(super) const NOT_PRESENT: u64 = 0;
    pub(super) const ZERO: u64 = 2;
    pub(super) const UNMAPPED: u64 = 3;
    pub(super) const PRESENT: u64 = 6;
    pub(super) const PARTIAL: u64 = 7;
}

/// What an entry is for.
#[derive(Clone, Copy)]
enum Role {
    Block(u64),
    /// The bitmap of this chunk.
    Bitmap(u64),
}

/// The table of one disk.
struct Table<'a> {
    source: &'a Source<'a>,
    disk: &'a Disk,
    region: Span,
    /// Blocks of a chunk.
    ratio: u64,
    blocks: u64,
}

impl Table<'_> {
    fn entries_needed(&self) -> u64 {
        if self.disk.has_parent {
            self.blocks.div_ceil(self.ratio) * (self.ratio + 1)
        } else {
            self.blocks + (self.blocks - 1) / self.ratio
        }
    }

    /// Entries that are needed and fit the region.
    fn entries(&self) -> u64 {
        self.entries_needed().min(self.region.length / 8)
    }

    fn role(&self, index: u64) -> Role {
        let (chunk, within) = (index / (self.ratio + 1), index % (self.ratio + 1));
        if within == self.ratio {
            Role::Bitmap(chunk)
        } else {
            Role::Block(chunk * self.ratio + within)
        }
    }

    /// Calls `each` with index and value of all entries.
    fn for_each(&self, mut each: impl FnMut(u64, u64)) -> Result<(), DiskError> {
        let end = self.entries() * 8;
        let mut at = 0;
        while at < end {
            let step = STEP_BYTES.min(end - at);
            let bytes = self.source.bytes(self.region.offset + at, step)?;
            for (index, entry) in bytes.chunks_exact(8).enumerate() {
                each(at / 8 + to_u64(index), u64_at(entry, 0));
            }
            at += step;
        }
        Ok(())
    }

    fn at(&self, index: u64) -> u64 {
        self.region.offset + index * 8
    }

    /// The space that an entry owns; none, or a length that depends on its role.
    fn space(&self, index: u64, entry: u64) -> Option<Span> {
        let offset = entry & !(MIB - 1);
        let length = match self.role(index) {
            Role::Block(_) => self.disk.block_bytes,
            Role::Bitmap(_) => MIB,
        };
        (offset != 0 && offset.checked_add(length).is_some()).then_some(Span { offset, length })
    }
}

/// The first pass over the table.
struct Pass<'a> {
    table: &'a Table<'a>,
    owned: &'a [Owned],
    used: Used,
    report: &'a mut Report,
    facts: &'a mut VhdxFacts,
    /// Places that have two owners: MiB and the second owner's index.
    shared: BTreeMap<(u64, u64), Option<u64>>,
    /// The first partial block of this chunk, whose bitmap was not seen yet.
    needs_bitmap: Option<u64>,
    without_space: u64,
    last_bitmap: Option<(u64, u64)>,
}

pub(super) fn check(
    source: &Source<'_>,
    disk: &Disk,
    region: Span,
    owned: &[Owned],
    report: &mut Report,
    facts: &mut VhdxFacts,
) -> Result<(), DiskError> {
    let table = Table {
        source,
        disk,
        region,
        ratio: CHUNK_SECTORS * u64::from(disk.logical_sector_bytes) / disk.block_bytes,
        blocks: disk.size_bytes.div_ceil(disk.block_bytes),
    };
    facts.blocks = table.blocks;
    let (needed, room) = (table.entries_needed(), region.length / 8);
    if needed > room {
        report.add(&found::BAT_TOO_SHORT, STRUCTURE, region.offset, || {
            format!("expected room for {needed} entries, found {room}")
        });
    }
    let mut used = Used::new(source.length());
    for owned in owned {
        // Overlaps of regions are found with the region table.
        used.mark(owned.span);
    }
    let mut pass = Pass {
        table: &table,
        owned,
        used,
        report,
        facts,
        shared: BTreeMap::new(),
        needs_bitmap: None,
        without_space: 0,
        last_bitmap: None,
    };
    table.for_each(|index, entry| match table.role(index) {
        Role::Block(block) => pass.block(index, block, entry),
        Role::Bitmap(chunk) => pass.bitmap(index, chunk, entry),
    })?;
    pass.finish()
}

impl Pass<'_> {
    fn block(&mut self, index: u64, block: u64, entry: u64) {
        if entry == state::NOT_PRESENT && self.table.disk.kind() != DiskKind::Fixed {
            return;
        }
        let at = self.table.at(index);
        self.check_reserved(at, entry);
        let (number, has_offset) = (entry & STATE, entry & !(MIB - 1) != 0);
        match number {
            state::PRESENT => self.facts.blocks_present += 1,
            state::PARTIAL if self.table.disk.has_parent => {
                self.facts.blocks_partial += 1;
                self.needs_bitmap = self.needs_bitmap.or(Some(index));
            }
            state::NOT_PRESENT..=state::UNMAPPED => self.without_space += 1,
            _ => {
                self.report.add(&found::BAT_STATE, STRUCTURE, at, || {
                    format!("block {block} has state {number} (entry {entry:#x})")
                });
            }
        }
        if !has_offset {
            if matches!(number, state::PRESENT | state::PARTIAL) {
                self.report.add(&found::BAT_NO_OFFSET, STRUCTURE, at, || {
                    format!("block {block} is present (entry {entry:#x})")
                });
            }
            return;
        }
        if matches!(number, state::NOT_PRESENT | state::ZERO) {
            self.report.add(&found::BAT_STRAY_OFFSET, STRUCTURE, at, || {
                format!("expected no offset for block {block} of state {number}, found entry {entry:#x}")
            });
            // It claims that space all the same.
        }
        self.check_log(index, block, entry);
        let size = self.table.disk.size_bytes;
        let from = block * self.table.disk.block_bytes;
        if from >= size {
            self.report.add(&found::BAT_PAST_DISK, STRUCTURE, at, || {
                format!("block {block} has space (entry {entry:#x}), and the disk ends at {size}")
            });
        }
        self.take(index, entry, size.saturating_sub(from), || {
            format!("block {block}")
        });
    }

    /// A log is for metadata: what it holds for a block's bytes would go over newer ones.
    fn check_log(&mut self, index: u64, block: u64, entry: u64) {
        let place = self.table.space(index, entry);
        let source = self.table.source;
        let laid = place.and_then(|place| source.first_laid(place.offset, place.end()));
        if let Some(at) = laid {
            self.report.add(&found::LOG_TARGET, "log", at, || {
                format!("expected changes of metadata, found one of block {block} at {at}")
            });
        }
    }

    fn bitmap(&mut self, index: u64, chunk: u64, entry: u64) {
        let at = self.table.at(index);
        let partial = self.needs_bitmap.take();
        self.check_reserved(at, entry);
        if !self.table.disk.has_parent {
            if entry != 0 {
                self.report.add(&found::BITMAP_STRAY, STRUCTURE, at, || {
                    format!("expected 0 for the bitmap of chunk {chunk}, found {entry:#x}")
                });
            }
            return;
        }
        let (number, has_offset) = (entry & STATE, entry & !(MIB - 1) != 0);
        if number == state::PRESENT && has_offset {
            self.facts.bitmaps += 1;
            if self.take(index, entry, MIB, || format!("the bitmap of chunk {chunk}")) {
                self.last_bitmap = Some((chunk, entry & !(MIB - 1)));
            }
            return;
        }
        if !matches!(number, state::NOT_PRESENT | state::PRESENT) || has_offset {
            self.report.add(&found::BITMAP_STATE, STRUCTURE, at, || {
                format!("expected state 0 without or 6 with an offset for the bitmap of chunk {chunk}, found {entry:#x}")
            });
        } else if number == state::PRESENT {
            self.report.add(&found::BAT_NO_OFFSET, STRUCTURE, at, || {
                format!("the bitmap of chunk {chunk} is present (entry {entry:#x})")
            });
        }
        self.report_missing(partial);
    }

    fn report_missing(&mut self, partial: Option<u64>) {
        if let Some(index) = partial {
            let at = self.table.at(index);
            self.report.add(&found::BITMAP_MISSING, STRUCTURE, at, || {
                "expected a sector bitmap for the chunk of this block".to_owned()
            });
        }
    }

    fn check_reserved(&mut self, at: u64, entry: u64) {
        if entry & RESERVED != 0 {
            self.report.add(&found::BAT_RESERVED, STRUCTURE, at, || {
                format!("expected bits 3 to 19 to be zero, found entry {entry:#x}")
            });
        }
    }

    /// Takes an entry's space, of which `shown` bytes must be in the file. False where it can't be its own.
    fn take(&mut self, index: u64, entry: u64, shown: u64, who: impl Fn() -> String) -> bool {
        let (at, length) = (self.table.at(index), self.table.source.length());
        let Some(span) = self.table.space(index, entry) else {
            self.report.add(&found::BAT_OUTSIDE, STRUCTURE, at, || {
                format!("{} is past the largest offset (entry {entry:#x})", who())
            });
            return false;
        };
        if !self.table.source.holds(span.offset, span.length.min(shown)) {
            self.report.add(&found::BAT_OUTSIDE, STRUCTURE, at, || {
                format!("{} is at {}, the file ends at {length}", who(), span.offset)
            });
            return false;
        }
        if span.end() > length {
            self.report
                .add(&found::BAT_TAIL_OUTSIDE, STRUCTURE, at, || {
                    format!("{} ends at {}, the file at {length}", who(), span.end())
                });
        }
        let over = |owned: &&Owned| owned.span.overlaps(span.offset, span.length);
        if let Some(owned) = self.owned.iter().find(over) {
            self.report.add(&found::BAT_OVERLAP, STRUCTURE, at, || {
                let place = owned.span;
                format!(
                    "{} is at {}, over the {} of {} bytes at {}",
                    who(),
                    span.offset,
                    owned.name,
                    place.length,
                    place.offset
                )
            });
            return false;
        }
        if let Some(mib) = self.used.mark(span) {
            if self.shared.len() < SHARED_NAMED_MAX {
                self.shared.insert((mib, index), None);
            } else {
                self.report.add(&found::BAT_SHARED, STRUCTURE, at, || {
                    format!("{} shares the MiB at {} with another", who(), mib * MIB)
                });
            }
            return false;
        }
        true
    }

    fn finish(mut self) -> Result<(), DiskError> {
        let partial = self.needs_bitmap.take();
        self.report_missing(partial);
        self.name_shared()?;
        self.check_last_bitmap()?;
        if self.table.disk.kind() == DiskKind::Fixed && self.without_space > 0 {
            let (count, at) = (self.without_space, self.table.region.offset);
            self.report
                .add(&found::FIXED_NOT_ALLOCATED, STRUCTURE, at, || {
                    format!("expected space for all blocks, {count} have none")
                });
        }
        let (all, at_end) = self.used.leaked();
        self.facts.leaked_bytes = all * MIB;
        self.facts.leaked_at_end_bytes = at_end * MIB;
        if all > 0 {
            let length = self.table.source.length();
            self.report.add(&found::LEAKED_SPACE, "file", length, || {
                format!("{all} MiB belong to nothing, {at_end} of them at the end of the file")
            });
        }
        Ok(())
    }

    /// Reads the table again, to tell the first owner of each shared place.
    fn name_shared(&mut self) -> Result<(), DiskError> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let (table, shared) = (self.table, &mut self.shared);
        table.for_each(|index, entry| {
            let owns = !matches!(entry & STATE, state::NOT_PRESENT | state::ZERO);
            let Some(span) = table.space(index, entry).filter(|_| owns) else {
                return;
            };
            let range = (span.offset / MIB, 0)..(span.end() / MIB, 0);
            for ((_, second), first) in shared.range_mut(range) {
                if *second != index {
                    first.get_or_insert(index);
                }
            }
        })?;
        for ((mib, second), first) in &self.shared {
            let name = |index: u64| match table.role(index) {
                Role::Block(block) => format!("block {block}"),
                Role::Bitmap(chunk) => format!("the bitmap of chunk {chunk}"),
            };
            let other = first.map_or_else(|| "another".to_owned(), name);
            self.report
                .add(&found::BAT_SHARED, STRUCTURE, table.at(*second), || {
                    format!(
                        "{} shares the MiB at {} with {other}",
                        name(*second),
                        mib * MIB
                    )
                });
        }
        Ok(())
    }

    /// Bits of sectors after the disk's end, which only the last chunk's bitmap has.
    fn check_last_bitmap(&mut self) -> Result<(), DiskError> {
        let sectors = self.table.disk.size_bytes / u64::from(self.table.disk.logical_sector_bytes);
        let last = (sectors - 1) / CHUNK_SECTORS;
        let Some((_, offset)) = self.last_bitmap.filter(|(chunk, _)| *chunk == last) else {
            return Ok(());
        };
        let first_free = sectors - last * CHUNK_SECTORS;
        let bytes = self.table.source.bytes(offset, MIB)?;
        let edge = to_usize(first_free / 8);
        let Some(after) = bytes.get(edge..).filter(|after| !after.is_empty()) else {
            return Ok(());
        };
        let partly = u64::from((after[0] >> (first_free % 8)).count_ones());
        let whole: u64 = after[1..].iter().map(|b| u64::from(b.count_ones())).sum();
        if partly + whole > 0 {
            let at = offset + first_free / 8;
            self.report
                .add(&found::BITMAP_BEYOND_END, "sector bitmap", at, || {
                    format!(
                        "expected zeros from sector {sectors} on, {} are set",
                        partly + whole
                    )
                });
        }
        Ok(())
    }
}
