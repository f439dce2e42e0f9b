//! Reading a change log that somebody else may have made, or damaged.
//!
//! # Invariants
//! 1. `blocks` holds the offsets of all metadata blocks, ascending, not overlapping, between the header and the end.
//!    The walk back from the end moves by at least one block at each step, so it ends.
//! 2. An entry that was given out has its data between the block before its own and its own.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::format::{self, BlockHeader, Header, RawEntry, SLOT_BYTES};
use super::info::read_header;
use super::{HrlError, HrlInfo, HrlTime};
use crate::error::DiskError;
use crate::storage::{BlockFile, OpenMode, Storage};

/// Most metadata blocks of a file: their offsets are in memory (64 MiB). With 4 KiB entries, 4 TiB of data.
const BLOCKS_MAX: usize = 1 << 23;
/// Checksums of data are verified in pieces of this.
const VERIFY_BYTES: usize = 1 << 20;

/// One write that the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HrlEntry {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// Bytes, at least 1.
    pub length: u32,
    /// Where its data is in the log file.
    pub data_offset: u64,
    /// When it was logged.
    pub time: HrlTime,
    /// The data's checksum, where it is given.
    pub data_checksum: Option<u32>,
    /// The data is all zeros: there is no need to read it.
    pub is_zeros: bool,
}

/// A log, opened for reading: closed and whole, or what [`recover`](Self::recover) found of it.
pub struct HrlReader {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) name: String,
    info: HrlInfo,
    pub(super) metadata_bytes: u32,
    end: u64,
    pub(super) blocks: Vec<u64>,
    /// How many entries are given out, where it is not what the header says: a recovered log's.
    pub(super) trusted: Option<u64>,
}

impl HrlReader {
    /// Opens a log and finds its metadata blocks.
    ///
    /// # Errors
    /// [`HrlError::NotClosed`]; [`DiskError::Corrupt`] naming the structure and place; [`DiskError::Unsupported`] for
    /// another version; the storage's.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Self, HrlError> {
        let name = path.display().to_string();
        let file = storage
            .open(path, OpenMode::Read)
            .map_err(|e| DiskError::io(format!("open change log {name}"), e))?;
        Self::of(file, name)
    }

    /// As [`open`](Self::open), on a file that is open; `name` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(file: Arc<dyn BlockFile>, name: String) -> Result<Self, HrlError> {
        let (header, holds) = read_header(&*file, &name)?;
        check_header(&header, &name)?;
        if header.eol == 0 {
            return Err(HrlError::NotClosed { name });
        }
        let length = length_of(&*file, &name)?;
        let first = format::HEADER_BYTES as u64;
        let smallest = first + u64::from(header.metadata_bytes);
        if !(smallest..=length).contains(&header.eol) {
            let detail = format!("the end, {}, is not within the {length} bytes", header.eol);
            return Err(header_damage(format::EOL_AT, detail).into());
        }
        let mut reader = Self {
            file,
            name,
            info: HrlInfo::of(&header, holds),
            metadata_bytes: header.metadata_bytes,
            end: header.eol,
            blocks: Vec::new(),
            trusted: None,
        };
        reader.find_blocks()?;
        Ok(reader)
    }

    /// A reader that knows no blocks yet, whatever the header says of the end.
    pub(super) fn without_blocks(file: Arc<dyn BlockFile>, name: String) -> Result<Self, HrlError> {
        let (header, holds) = read_header(&*file, &name)?;
        check_header(&header, &name)?;
        Ok(Self {
            end: length_of(&*file, &name)?,
            file,
            name,
            info: HrlInfo::of(&header, holds),
            metadata_bytes: header.metadata_bytes,
            blocks: Vec::new(),
            trusted: None,
        })
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was not closed cleanly, or is damaged, so that this is only its beginning.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.trusted.is_some()
    }

    /// What its header says.
    #[must_use]
    pub fn info(&self) -> &HrlInfo {
        &self.info
    }

    /// All entries, in the order in which they were appended, each checked. Ends after the first error.
    #[must_use]
    pub fn entries(&self) -> HrlEntries<'_> {
        HrlEntries {
            reader: self,
            next_block: 0,
            block: Vec::new().into_iter(),
            given: 0,
            done: false,
        }
    }

    /// Fills `buf` with an entry's data from `within` on. When that is all of its data, it is verified.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] past the entry's end, [`DiskError::Corrupt`] when the checksum does not hold, the storage's.
    pub fn read_entry_data(
        &self,
        entry: &HrlEntry,
        within: u32,
        buf: &mut [u8],
    ) -> Result<(), DiskError> {
        let length = u64::from(entry.length);
        let end = u64::from(within).saturating_add(buf.len() as u64);
        if end > length {
            let what = format!("bytes {within} to {end} of an entry of {length} bytes");
            return Err(DiskError::Invalid { what });
        }
        // Invariant 2 for entries of ours; a made-up one just fails to be read.
        let at = entry.data_offset.saturating_add(u64::from(within));
        self.file
            .read_at(buf, at)
            .map_err(|e| self.failed("data", at, e))?;
        if buf.len() as u64 == length {
            return self.check_data(entry, format::sum(buf));
        }
        Ok(())
    }

    /// Reads an entry's data and compares it with its checksum, where there is one.
    ///
    /// # Errors
    /// As [`read_entry_data`](Self::read_entry_data).
    pub fn verify_entry(&self, entry: &HrlEntry) -> Result<(), DiskError> {
        if entry.data_checksum.is_none() {
            return Ok(());
        }
        let mut total: u32 = 0;
        let mut rest = u64::from(entry.length);
        let mut at = entry.data_offset;
        let mut buf = vec![
            0;
            usize::try_from(rest)
                .unwrap_or(VERIFY_BYTES)
                .min(VERIFY_BYTES)
        ];
        while rest > 0 {
            let piece = usize::try_from(rest).unwrap_or(VERIFY_BYTES).min(buf.len());
            self.file
                .read_at(&mut buf[..piece], at)
                .map_err(|e| self.failed("data", at, e))?;
            total = total.wrapping_add(format::sum(&buf[..piece]));
            at += piece as u64;
            rest -= piece as u64;
        }
        self.check_data(entry, total)
    }

    fn check_data(&self, entry: &HrlEntry, sum: u32) -> Result<(), DiskError> {
        match entry.data_checksum {
            Some(expected) if expected != !sum => Err(DiskError::Corrupt {
                structure: "change log data",
                offset: entry.data_offset,
                detail: format!("its checksum in {} does not hold", self.name),
            }),
            _ => Ok(()),
        }
    }

    /// Walks back from the end; invariant 1.
    fn find_blocks(&mut self) -> Result<(), DiskError> {
        let first = format::HEADER_BYTES as u64;
        let size = u64::from(self.metadata_bytes);
        let mut at = self.end - size;
        loop {
            let mut bytes = [0; SLOT_BYTES];
            self.file
                .read_at(&mut bytes, at)
                .map_err(|e| self.failed("metadata", at, e))?;
            let header = BlockHeader::decode(&bytes)
                .ok_or_else(|| self.block_damage(at, "its checksum does not hold".into()))?;
            let slots = self.metadata_bytes / 32 - 1;
            if header.valid_entries > slots {
                let detail = format!("{} entries in {slots} places", header.valid_entries);
                return Err(self.block_damage(at, detail));
            }
            if self.blocks.len() == BLOCKS_MAX {
                let what = format!("change log {} of more than {BLOCKS_MAX} blocks", self.name);
                return Err(DiskError::Unsupported { what });
            }
            self.blocks.push(at);
            if header.distance_back == 0 {
                break;
            }
            let before = at
                .checked_sub(header.distance_back)
                .filter(|before| *before >= first);
            at = match before {
                Some(before) if header.distance_back >= size => before,
                _ => {
                    let detail = format!("no block is {} before it", header.distance_back);
                    return Err(self.block_damage(at, detail));
                }
            };
        }
        self.blocks.reverse();
        Ok(())
    }

    /// Reads and checks all entries of one block.
    fn read_block(&self, index: usize) -> Result<Vec<HrlEntry>, DiskError> {
        let data_offset = match index.checked_sub(1) {
            None => format::HEADER_BYTES as u64,
            Some(before) => self.blocks[before] + u64::from(self.metadata_bytes),
        };
        self.read_block_at(self.blocks[index], data_offset)
    }

    /// As `read_block`, of a block at `at` whose data begins at `data_offset`.
    pub(super) fn read_block_at(
        &self,
        at: u64,
        mut data_offset: u64,
    ) -> Result<Vec<HrlEntry>, DiskError> {
        let size = usize::try_from(self.metadata_bytes).expect("at most METADATA_BYTES_MAX");
        let mut block = vec![0; size];
        self.file
            .read_at(&mut block, at)
            .map_err(|e| self.failed("metadata", at, e))?;
        let mut slots = block
            .chunks_exact(SLOT_BYTES)
            .map(|slot| <&[u8; SLOT_BYTES]>::try_from(slot).expect("chunks are exact"));
        // Checked again: the file may have changed since it was opened.
        let header = slots
            .next()
            .and_then(BlockHeader::decode)
            .ok_or_else(|| self.block_damage(at, "its checksum does not hold".into()))?;
        let valid = usize::try_from(header.valid_entries).unwrap_or(usize::MAX);
        let mut entries = Vec::with_capacity(valid.min(size / SLOT_BYTES));
        for slot in slots.take(valid) {
            let entry = self.check_entry(at, RawEntry::decode(slot), data_offset)?;
            data_offset += u64::from(entry.length);
            entries.push(entry);
        }
        if data_offset != at {
            let detail = format!("its data ends at {data_offset} instead of before it");
            return Err(self.block_damage(at, detail));
        }
        Ok(entries)
    }

    /// Invariant 2.
    fn check_entry(
        &self,
        block: u64,
        entry: Option<RawEntry>,
        data_offset: u64,
    ) -> Result<HrlEntry, DiskError> {
        let Some(entry) = entry else {
            return Err(self.block_damage(block, "an entry's checksum does not hold".into()));
        };
        let RawEntry {
            offset,
            length,
            time,
            operation,
            data_checksum,
        } = entry;
        if operation != format::OPERATION_WRITE {
            let detail = format!("operation {operation} of an entry is not known");
            return Err(self.block_damage(block, detail));
        }
        let ends = offset.checked_add(u64::from(length)).is_some();
        if length == 0 || !ends || data_offset + u64::from(length) > block {
            let detail = format!("an entry of {length} bytes for offset {offset} does not fit");
            return Err(self.block_damage(block, detail));
        }
        let is_zeros = data_checksum == format::ZEROS_CHECKSUM && length <= format::SUM_EXACT_MAX;
        let data_checksum = (data_checksum != 0).then_some(data_checksum);
        Ok(HrlEntry {
            offset,
            length,
            data_offset,
            time,
            data_checksum,
            is_zeros,
        })
    }

    fn block_damage(&self, offset: u64, detail: String) -> DiskError {
        let detail = format!("{detail} (in {})", self.name);
        DiskError::Corrupt {
            structure: "change log metadata",
            offset,
            detail,
        }
    }

    pub(super) fn failed(&self, what: &'static str, at: u64, error: io::Error) -> DiskError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.block_damage(at, format!("the file ends before its {what}"));
        }
        DiskError::io(
            format!("read {what} at {at} of change log {}", self.name),
            error,
        )
    }
}

fn check_header(header: &Header, name: &str) -> Result<(), HrlError> {
    if header.version >> 16 != format::VERSION >> 16 {
        let what = format!("version {:#x} of change log {name}", header.version);
        return Err(DiskError::Unsupported { what }.into());
    }
    if header.file_type != 0 {
        let what = format!("type {} of change log {name}", header.file_type);
        return Err(DiskError::Unsupported { what }.into());
    }
    let size = header.metadata_bytes;
    let allowed = format::SECTOR_BYTES..=format::METADATA_BYTES_MAX;
    if !size.is_multiple_of(format::SECTOR_BYTES) || !allowed.contains(&size) {
        return Err(header_damage(56, format!("metadata blocks of {size} bytes")).into());
    }
    Ok(())
}

fn length_of(file: &dyn BlockFile, name: &str) -> Result<u64, DiskError> {
    file.length()
        .map_err(|e| DiskError::io(format!("read the length of change log {name}"), e))
}

fn header_damage(at: usize, detail: String) -> DiskError {
    DiskError::Corrupt {
        structure: "change log header",
        offset: at as u64,
        detail,
    }
}

/// Iterator over a log's entries; holds one metadata block.
pub struct HrlEntries<'a> {
    reader: &'a HrlReader,
    next_block: usize,
    block: std::vec::IntoIter<HrlEntry>,
    given: u64,
    done: bool,
}

impl Iterator for HrlEntries<'_> {
    type Item = Result<HrlEntry, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if self.reader.trusted == Some(self.given) {
                self.done = true;
                return None;
            }
            if let Some(entry) = self.block.next() {
                self.given += 1;
                return Some(Ok(entry));
            }
            if self.next_block == self.reader.blocks.len() {
                self.done = true;
                return self.check_total().err().map(Err);
            }
            match self.reader.read_block(self.next_block) {
                Ok(entries) => self.block = entries.into_iter(),
                Err(e) => {
                    self.done = true;
                    return Some(Err(e));
                }
            }
            self.next_block += 1;
        }
        None
    }
}

impl HrlEntries<'_> {
    /// An end that points at an earlier block would drop entries in silence.
    fn check_total(&self) -> Result<(), DiskError> {
        let expected = self.reader.info.total_entries;
        if self.given == expected {
            return Ok(());
        }
        let detail = format!(
            "{} entries instead of the {expected} that {} says it has",
            self.given, self.reader.name
        );
        Err(header_damage(96, detail))
    }
}
