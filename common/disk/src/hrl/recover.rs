//! What can be trusted of a log that was not closed cleanly, or whose end is damaged.
//!
//! Owns: the search for metadata blocks without an end to begin from. Receives a file; gives out a [`HrlReader`] of
//! the part that is proven, and why it ends where it ends. Does not do: repairing the file; it is never written.
//!
//! # Which entries are trusted, and why
//! The data comes before the block that describes it, and nothing names the blocks from the front. So every sector is
//! looked at, and a metadata block counts if all of this holds:
//!
//! 1. its own checksum, and that of each of its entries;
//! 2. its distance back leads to a block that counts, or is 0 and it is the first;
//! 3. the lengths of its entries add up exactly to the room between that block (or the header) and itself. So a log
//!    that lies in the data of a log, as a file of the guest's, is not taken for this one: it lies at another place;
//! 4. no other block that counts has the same distance to cover. A guest can write what looks like a block, at the
//!    right place, into its own disk; where two blocks contend, neither is believed, and the log ends before both.
//!
//! A block can be on the disk and its data not: nothing was synced between them. So of the blocks that count, entries
//! are trusted in their order, up to the first
//!
//! 5. whose data's checksum does not hold, or
//! 6. whose data's checksum is not given (0, as Windows leaves it): what was lost cannot be told from what is there.
//!
//! In a log that was closed, the writer vouches for an entry without a checksum; in one that was not, nobody does.
//!
//! What this cannot see: a checksum is a sum, so that swapped bytes pass; and if a forged block's true rival was lost
//! with the tail, the forged one is alone, and counts. It can only say what the guest could have
//! written to that disk itself. Blocks that do not begin in a sector are not found; no writer of sectors makes them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::format::{self, BlockHeader, SLOT_BYTES};
use super::{HrlError, HrlReader};
use crate::error::{DiskError, ErrorKind};
use crate::storage::{BlockFile, FileExtent, OpenMode, Storage};

/// The file is looked through in pieces of this.
const SCAN_BYTES: u64 = 1 << 20;
const SECTOR: u64 = format::SECTOR_BYTES as u64;
/// Blocks are read whole to see whether they count. True ones together are no longer than the file; a file
/// made to cost more than twice that, and this, is given up.
const CANDIDATE_BYTES_MIN: u64 = 16 << 20;
/// Stands for "no block before", as no block begins in the header.
const NONE: u64 = 0;

/// Why a recovered log ends where it ends. Offsets are in the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HrlTail {
    /// Nothing is missing: it was closed cleanly, and all of it holds.
    Closed,
    /// Nothing lies behind the last block.
    Open,
    /// Behind the last block lies what no block describes.
    Torn {
        /// Where it begins.
        at: u64,
        /// How much it is.
        bytes: u64,
    },
    /// Several blocks contend for what lies behind this place.
    Contended {
        /// End of the last block before them.
        at: u64,
    },
    /// An entry's data is not what was written.
    Lost {
        /// Where the data is.
        at: u64,
    },
    /// An entry's data has no checksum.
    Unproven {
        /// Where the data is.
        at: u64,
    },
}

/// What was found of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HrlRecovered {
    /// Entries that are trusted; [`HrlReader::entries`] gives these.
    pub entries: u64,
    /// Entries of all blocks that were found.
    pub found: u64,
    /// Why it ends there.
    pub tail: HrlTail,
}

impl HrlReader {
    /// Opens a log, closed or not, damaged or not, and finds its trusted beginning; see the module's source for which
    /// entries these are. Reads all of the file.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] and [`DiskError::Unsupported`] when the header is of no use; the storage's.
    pub fn recover(storage: &dyn Storage, path: &Path) -> Result<(Self, HrlRecovered), HrlError> {
        let name = path.display().to_string();
        let file = storage
            .open(path, OpenMode::Read)
            .map_err(|e| DiskError::io(format!("open change log {name}"), e))?;
        Self::recover_of(file, name)
    }

    /// As [`recover`](Self::recover), on a file that is open; `name` is for messages.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub fn recover_of(
        file: Arc<dyn BlockFile>,
        name: String,
    ) -> Result<(Self, HrlRecovered), HrlError> {
        if let Some((reader, entries)) = closed_and_whole(&file, &name)? {
            let whole = HrlRecovered {
                entries,
                found: entries,
                tail: HrlTail::Closed,
            };
            return Ok((reader, whole));
        }
        let mut reader = Self::without_blocks(file, name)?;
        let mut tail = Scan::of(&reader)?.chain(&mut reader)?;
        let (mut trusted, mut found, mut ended) = (0, 0, false);
        for entry in reader.entries_found() {
            let entry = entry?;
            found += 1;
            if ended {
                continue;
            }
            let at = entry.data_offset;
            let stop = match (entry.data_checksum, reader.verify_entry(&entry)) {
                (None, _) => Some(HrlTail::Unproven { at }),
                (Some(_), Err(e)) if e.kind() == ErrorKind::Corrupt => Some(HrlTail::Lost { at }),
                (Some(_), Err(e)) => return Err(e.into()),
                (Some(_), Ok(())) => None,
            };
            match stop {
                None => trusted += 1,
                Some(stop) => (tail, ended) = (stop, true),
            }
        }
        reader.trusted = Some(trusted);
        let recovered = HrlRecovered {
            entries: trusted,
            found,
            tail,
        };
        Ok((reader, recovered))
    }

    /// Entries of all blocks that are known, whatever the header says of their number.
    fn entries_found(&self) -> impl Iterator<Item = Result<super::HrlEntry, DiskError>> {
        let size = u64::from(self.metadata_bytes);
        let starts = std::iter::once(format::HEADER_BYTES as u64)
            .chain(self.blocks.iter().map(move |block| block + size));
        let blocks = self.blocks.iter().zip(starts);
        blocks.flat_map(|(at, start)| match self.read_block_at(*at, start) {
            Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        })
    }
}

/// The reader and the number of entries of a log that needs no recovery.
fn closed_and_whole(
    file: &Arc<dyn BlockFile>,
    name: &str,
) -> Result<Option<(HrlReader, u64)>, HrlError> {
    let reader = match HrlReader::of(Arc::clone(file), name.to_owned()) {
        Ok(reader) => reader,
        Err(HrlError::NotClosed { .. }) => return Ok(None),
        Err(HrlError::Disk(e)) if e.kind() == ErrorKind::Corrupt => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut entries = 0;
    for entry in reader.entries() {
        match entry.and_then(|entry| reader.verify_entry(&entry)) {
            Ok(()) => entries += 1,
            Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Some((reader, entries)))
}

/// The blocks that count, rules 1 to 3.
struct Scan {
    /// The block before ([`NONE`] for the first), and the block.
    links: BTreeSet<(u64, u64)>,
    counting: BTreeSet<u64>,
    length: u64,
    read_bytes: u64,
}

impl Scan {
    fn of(reader: &HrlReader) -> Result<Self, DiskError> {
        let name = &reader.name;
        let failed = |e| DiskError::io(format!("look through change log {name}"), e);
        let length = reader.file.length().map_err(failed)?;
        let mut scan = Self {
            links: BTreeSet::new(),
            counting: BTreeSet::new(),
            length,
            read_bytes: 0,
        };
        let first = format::HEADER_BYTES as u64;
        let mut pieces = Vec::new();
        let mut each = |at: u64, bytes: u64, found: FileExtent| {
            // No block begins in a hole: its checksum is not 0.
            if found == FileExtent::Data {
                pieces.push((at / SECTOR * SECTOR, at + bytes));
            }
            true
        };
        if length > first {
            reader
                .file
                .extents(first, length - first, &mut each)
                .map_err(failed)?;
        }
        let mut buf = Vec::new();
        for (start, end) in pieces {
            let mut at = start;
            while at < end {
                let piece = SCAN_BYTES.min(end.min(length) - at);
                buf.resize(usize::try_from(piece).expect("at most SCAN_BYTES"), 0);
                let read = reader.file.read_at(&mut buf, at);
                read.map_err(|e| reader.failed("data", at, e))?;
                scan.look_at(reader, at, &buf)?;
                at += piece;
            }
        }
        Ok(scan)
    }

    fn look_at(&mut self, reader: &HrlReader, start: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let size = u64::from(reader.metadata_bytes);
        for (at, sector) in (start..).step_by(512).zip(bytes.chunks(512)) {
            let slot = sector.first_chunk::<SLOT_BYTES>();
            let Some(header) = slot.and_then(BlockHeader::decode) else {
                continue;
            };
            if at + size > self.length {
                break;
            }
            let (before, data_offset) = match header.distance_back {
                0 => (NONE, format::HEADER_BYTES as u64),
                back => match at.checked_sub(back) {
                    Some(before) if self.counting.contains(&before) => (before, before + size),
                    _ => continue,
                },
            };
            if data_offset > at {
                continue;
            }
            self.read_bytes += size;
            if self.read_bytes > 2 * self.length + CANDIDATE_BYTES_MIN {
                let what = format!("change log {}, full of false metadata,", reader.name);
                return Err(DiskError::Unsupported { what });
            }
            match reader.read_block_at(at, data_offset) {
                Ok(_) => {
                    self.counting.insert(at);
                    self.links.insert((before, at));
                }
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Follows the blocks from the first on, and gives them to the reader; rule 4.
    fn chain(&self, reader: &mut HrlReader) -> Result<HrlTail, DiskError> {
        let size = u64::from(reader.metadata_bytes);
        let (mut last, mut end) = (NONE, format::HEADER_BYTES as u64);
        loop {
            let mut next = self.links.range((last, 0)..=(last, u64::MAX));
            match (next.next(), next.next()) {
                (None, _) => break,
                (Some(_), Some(_)) => return Ok(HrlTail::Contended { at: end }),
                (Some((_, at)), None) => {
                    (last, end) = (*at, at + size);
                    reader.blocks.push(*at);
                }
            }
        }
        Ok(match self.length.saturating_sub(end) {
            0 => HrlTail::Open,
            bytes => HrlTail::Torn { at: end, bytes },
        })
    }
}

#[cfg(test)]
mod tests;
