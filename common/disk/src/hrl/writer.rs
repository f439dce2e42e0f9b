//! Appending to a change log.
//!
//! # Invariants
//! 1. The file is `written` bytes long as far as we wrote it, then `buffer` follows; both grow only at the end, but for
//!    the header, which is written at the start and at the end.
//! 2. The data of `slots` lies in their order just before the end, after the last metadata block.
//! 3. Memory is bounded: one buffer and one metadata block, whatever is appended.

use std::path::Path;
use std::sync::Arc;

use super::format::{self, BlockHeader, Header, RawEntry};
use super::{HrlId, HrlTime};
use crate::error::DiskError;
use crate::storage::{BlockFile, OpenMode, Storage};

/// Writes to the file are of this many bytes, but for the last, and where zeros are skipped.
const BUFFER_BYTES: usize = 256 << 10;
/// Longest data of one entry: what a reader wants to hold in memory.
const DATA_BYTES_MAX: usize = 1 << 20;
/// Longest run of zeros of one entry: the longest whose checksum proves that it is zeros.
const ZERO_BYTES_MAX: u32 = format::SUM_EXACT_MAX;
/// Shorter zeros are written: a hole would cost a write of its own.
const HOLE_BYTES_MIN: u32 = 64 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
const SLOTS: usize = format::METADATA_BYTES / format::SLOT_BYTES - 1;

/// What a new log says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HrlOptions {
    /// Names this file.
    pub unique_id: HrlId,
    /// Names the file before it in the chain; zeros for the first.
    pub previous_id: HrlId,
    /// [`Identity::data_write_id`](crate::Identity::data_write_id) of the image; zeros where it has none.
    pub data_write_id: HrlId,
    /// Now.
    pub created: HrlTime,
}

/// A finished log that is not yet durable.
pub struct HrlSealed {
    /// The file: the caller syncs it, then its directory.
    pub file: Arc<dyn BlockFile>,
    /// Its length in bytes, holes included.
    pub bytes: u64,
    /// Entries in it.
    pub entries: u64,
}

/// All bytes of a closed log without entries, as [`HrlWriter`] would make it: of a disk that did not change.
#[must_use]
pub fn empty_log(options: HrlOptions, closed: HrlTime) -> Vec<u8> {
    let mut bytes = vec![0; format::HEADER_BYTES + format::METADATA_BYTES];
    let end = bytes.len() as u64;
    let header = Header {
        eol: end,
        current_size: end,
        last_modified: closed.max(options.created),
        ..header_of(options)
    };
    bytes[..format::HEADER_BYTES].copy_from_slice(&header.encode());
    let block = BlockHeader {
        distance_back: 0,
        valid_entries: 0,
    };
    bytes[format::HEADER_BYTES..][..format::SLOT_BYTES].copy_from_slice(&block.encode());
    bytes
}

/// The header of a log that is open.
fn header_of(options: HrlOptions) -> Header {
    Header {
        cookie: *format::COOKIE,
        version: format::VERSION,
        created: options.created,
        creator: format::CREATOR,
        creator_version: format::CREATOR_VERSION,
        original_size: 0,
        current_size: 0,
        eol: 0,
        error_code: 0,
        metadata_bytes: 4096,
        unique_id: options.unique_id,
        previous_id: options.previous_id,
        last_modified: options.created,
        total_entries: 0,
        file_type: 0,
        data_write_id: options.data_write_id,
    }
}

/// Writes one log from start to end. Dropped without [`finish`](Self::finish), it leaves a file that says that it was
/// not closed cleanly.
pub struct HrlWriter {
    file: Arc<dyn BlockFile>,
    name: String,
    header: Header,
    buffer: Vec<u8>,
    written: u64,
    slots: Vec<RawEntry>,
    last_block: Option<u64>,
    failed: Option<String>,
}

impl HrlWriter {
    /// Creates a log at a path where nothing is.
    ///
    /// # Errors
    /// The storage's, `AlreadyExists` among them.
    pub fn create(
        storage: &dyn Storage,
        path: &Path,
        options: HrlOptions,
    ) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let file = storage
            .open(path, OpenMode::CreateNew)
            .map_err(|e| DiskError::io(format!("create change log {name}"), e))?;
        let header = header_of(options);
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend_from_slice(&header.encode());
        let slots = Vec::with_capacity(SLOTS);
        Ok(Self {
            file,
            name,
            header,
            buffer,
            written: 0,
            slots,
            last_block: None,
            failed: None,
        })
    }

    /// Bytes of the log so far, holes included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.header.total_entries
    }

    /// Appends a write of `data` at `offset` of the disk. Long data becomes several entries.
    ///
    /// # Errors
    /// The storage's; final for this log.
    pub fn append(&mut self, offset: u64, data: &[u8], time: HrlTime) -> Result<(), DiskError> {
        self.check_end(offset, data.len() as u64)?;
        let mut at = offset;
        for piece in data.chunks(DATA_BYTES_MAX) {
            self.put(piece)?;
            let length = u32::try_from(piece.len()).expect("at most DATA_BYTES_MAX");
            self.push(RawEntry {
                offset: at,
                length,
                time,
                operation: format::OPERATION_WRITE,
                data_checksum: format::checksum(piece),
            })?;
            at += u64::from(length);
        }
        Ok(())
    }

    /// Appends a write of zeros, which take no space in the log beyond their entries.
    ///
    /// # Errors
    /// The storage's; final for this log.
    pub fn append_zeros(
        &mut self,
        offset: u64,
        length: u64,
        time: HrlTime,
    ) -> Result<(), DiskError> {
        self.check_end(offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = u32::try_from(end - at)
                .unwrap_or(u32::MAX)
                .min(ZERO_BYTES_MAX);
            self.skip(piece)?;
            self.push(RawEntry {
                offset: at,
                length: piece,
                time,
                operation: format::OPERATION_WRITE,
                data_checksum: format::ZEROS_CHECKSUM,
            })?;
            at += u64::from(piece);
        }
        Ok(())
    }

    /// Closes the log: last metadata block, then the header with its end. Not durable until the caller has synced it.
    ///
    /// # Errors
    /// The storage's; the file is then worth nothing, whatever its header says.
    pub fn finish(mut self, now: HrlTime) -> Result<HrlSealed, DiskError> {
        self.check_end(0, 0)?;
        if !self.slots.is_empty() || self.last_block.is_none() {
            self.put_block()?;
        }
        let bytes = self.bytes();
        self.write_out()?;
        self.header.eol = bytes;
        self.header.current_size = bytes;
        // A clock that was set back does not make a file older than its birth.
        self.header.last_modified = now.max(self.header.created);
        let header = self.header.encode();
        self.file
            .write_at(&header, 0)
            .map_err(|e| self.failed_at(0, e))?;
        Ok(HrlSealed {
            file: self.file,
            bytes,
            entries: self.header.total_entries,
        })
    }

    fn check_end(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if let Some(first) = &self.failed {
            return Err(DiskError::Poisoned {
                first: first.clone(),
            });
        }
        match offset.checked_add(length) {
            Some(_) => Ok(()),
            None => Err(DiskError::Invalid {
                what: format!("{length} bytes at {offset} have no end"),
            }),
        }
    }

    /// Adds an entry whose data is already at the end; invariant 2.
    fn push(&mut self, entry: RawEntry) -> Result<(), DiskError> {
        self.slots.push(entry);
        self.header.total_entries += 1;
        if self.slots.len() == SLOTS {
            self.put_block()
        } else {
            Ok(())
        }
    }

    fn put_block(&mut self) -> Result<(), DiskError> {
        let at = self.bytes();
        let header = BlockHeader {
            distance_back: self.last_block.map_or(0, |last| at - last),
            valid_entries: u32::try_from(self.slots.len()).expect("at most SLOTS"),
        };
        let mut block = [0; format::METADATA_BYTES];
        let encoded =
            std::iter::once(header.encode()).chain(self.slots.drain(..).map(RawEntry::encode));
        for (slot, bytes) in block.chunks_exact_mut(format::SLOT_BYTES).zip(encoded) {
            slot.copy_from_slice(&bytes);
        }
        self.last_block = Some(at);
        self.put(&block)
    }

    /// Appends bytes, writing whenever the buffer is full.
    fn put(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.buffer.is_empty() && rest.len() >= BUFFER_BYTES {
                return self.write_end(rest);
            }
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == BUFFER_BYTES {
                self.write_out()?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Appends zeros by not writing them. What follows (a metadata block, at least) extends the file over them.
    fn skip(&mut self, length: u32) -> Result<(), DiskError> {
        if length < HOLE_BYTES_MIN {
            let length = usize::try_from(length).expect("less than HOLE_BYTES_MIN");
            return self.put(&ZEROS[..length]);
        }
        self.write_out()?;
        self.written += u64::from(length);
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), DiskError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = if buffer.is_empty() {
            Ok(())
        } else {
            self.write_end(&buffer)
        };
        buffer.clear();
        self.buffer = buffer;
        result
    }

    fn write_end(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        if let Err(e) = self.file.write_at(bytes, self.written) {
            let error = self.failed_at(self.written, e);
            self.failed = Some(error.to_string());
            return Err(error);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn failed_at(&self, offset: u64, error: std::io::Error) -> DiskError {
        DiskError::io(format!("write change log {} at {offset}", self.name), error)
    }
}
