//! Bringing a chain of change logs into an image.
//!
//! Receives logs in their order and an image; gives out what was written, and flushes the image at the end. Does not
//! do: closing the image; going back (a log that is older than the image sets it back, and only the ids could tell).
//!
//! # Invariants
//! 1. Before the first byte is written, all logs were read whole: their chain, their ids, each entry's place on the
//!    disk and each checksum. A refusal leaves the image as it was.
//! 2. Entries are written in the order of the logs, and within a log in the order of its entries. So the same chain
//!    may be applied again, after a crash for instance: the last write of a place wins, each time the same.
//! 3. What [`apply_chain`] answered for is durable: the image was flushed after the last write.

use super::{HrlEntry, HrlId, HrlReader};
use crate::error::DiskError;
use crate::image::{Image, ZeroMode};

/// Data is copied in pieces of this.
const COPY_BYTES: usize = 1 << 20;
/// Images are written in sectors of this.
const SECTOR_BYTES: u64 = 512;

/// What an operator has to say by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplyOptions {
    /// Apply what was recovered of the last log although it was not closed cleanly.
    pub partial: bool,
    /// Apply although the image's data-write id is not the logs'. An image has a new one after each session that wrote,
    /// so that also a chain that was applied only in part needs this.
    pub any_disk: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Entries.
    pub entries: u64,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
}

/// Why logs were not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The log does not follow the one before it.
    #[error(
        "change log {log} follows {expects}, not {before}: name all logs between them, in their order"
    )]
    Gap {
        /// The log.
        log: String,
        /// The id that it names as the one before.
        expects: HrlId,
        /// The id of the log before it.
        before: HrlId,
    },
    /// A log is there twice.
    #[error("change log {log} has the id of another one before it")]
    Twice {
        /// The log.
        log: String,
    },
    /// The log is another disk's, or the image was changed since.
    #[error(
        "change log {log} belongs to a disk with the data-write id {has}, and the image has {image}"
    )]
    OtherDisk {
        /// The log.
        log: String,
        /// The log's id.
        has: HrlId,
        /// The image's.
        image: HrlId,
    },
    /// An entry lies beyond the disk's end, or is not in sectors.
    #[error(
        "change log {log} writes {length} bytes at {offset}, which are not sectors of an image of {size_bytes} bytes"
    )]
    Outside {
        /// The log.
        log: String,
        /// The entry's place.
        offset: u64,
        /// The entry's length.
        length: u32,
        /// The image's size.
        size_bytes: u64,
    },
    /// The log was not closed.
    #[error(
        "change log {log} was not closed cleanly: only its first {entries} entries can be trusted"
    )]
    NotClosed {
        /// The log.
        log: String,
        /// Entries that can be trusted.
        entries: u64,
    },
    /// A log that is not the last was not closed.
    #[error("change log {log} was not closed cleanly, so that no log can follow it")]
    PartialBefore {
        /// The log.
        log: String,
    },
    /// A log cannot be read.
    #[error("read the change logs before applying them")]
    Log(#[source] DiskError),
    /// The image cannot be written. What was written before stays; apply the same chain again.
    #[error("apply change log {log}")]
    Image {
        /// The log.
        log: String,
        /// The cause.
        #[source]
        source: DiskError,
    },
}

impl ApplyError {
    /// Whether the image is certainly as it was.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Image { .. })
    }
}

/// As [`apply_chain`] of one log.
///
/// # Errors
/// As [`apply_chain`].
pub fn apply(
    log: &HrlReader,
    image: &dyn Image,
    options: ApplyOptions,
) -> Result<Applied, ApplyError> {
    apply_chain(std::slice::from_ref(log), image, options)
}

/// Checks all logs and writes them to the image, then flushes it. Applied again, it changes nothing.
///
/// # Errors
/// [`ApplyError`]; all but [`ApplyError::Image`] before a byte was written.
pub fn apply_chain(
    logs: &[HrlReader],
    image: &dyn Image,
    options: ApplyOptions,
) -> Result<Applied, ApplyError> {
    check_closed(logs, options)?;
    check_chain(logs)?;
    let geometry = image.geometry();
    if geometry.read_only {
        let what = "the image is open for reading only".to_owned();
        return Err(ApplyError::Log(DiskError::Invalid { what }));
    }
    if let (Some(first), false) = (logs.first(), options.any_disk) {
        check_disk(first, image)?;
    }
    for log in logs {
        check_entries(log, geometry.size_bytes)?;
    }
    // Nothing was written until here: invariant 1.
    let mut applied = Applied::default();
    let mut buf = vec![0; COPY_BYTES];
    for log in logs {
        let written = write_entries(log, image, &mut buf, &mut applied);
        written.map_err(|source| failed(log, source))?;
    }
    match (image.flush(), logs.last()) {
        (Err(source), Some(last)) => Err(failed(last, source)),
        _ => Ok(applied),
    }
}

/// Checks that each log follows the one before it.
///
/// # Errors
/// [`ApplyError::Gap`], [`ApplyError::Twice`].
pub fn check_chain(logs: &[HrlReader]) -> Result<(), ApplyError> {
    for (index, log) in logs.iter().enumerate().skip(1) {
        let before = logs[index - 1].info().unique_id;
        let info = log.info();
        let name = || log.name().to_owned();
        // Logs without an id follow nothing, and nothing follows them.
        if info.previous_id != before || before == HrlId::default() {
            return Err(ApplyError::Gap {
                log: name(),
                expects: info.previous_id,
                before,
            });
        }
        let earlier = &logs[..index];
        if earlier
            .iter()
            .any(|log| log.info().unique_id == info.unique_id)
        {
            return Err(ApplyError::Twice { log: name() });
        }
    }
    Ok(())
}

fn check_closed(logs: &[HrlReader], options: ApplyOptions) -> Result<(), ApplyError> {
    for (index, log) in logs.iter().enumerate() {
        let Some(entries) = log.trusted else { continue };
        let log = log.name().to_owned();
        if index + 1 < logs.len() {
            return Err(ApplyError::PartialBefore { log });
        }
        if !options.partial {
            return Err(ApplyError::NotClosed { log, entries });
        }
    }
    Ok(())
}

/// Only the first log is compared: those after it are tied to it by their ids, and the image's id may have changed
/// while they were made.
fn check_disk(log: &HrlReader, image: &dyn Image) -> Result<(), ApplyError> {
    let identity = image.identity().map_err(ApplyError::Log)?;
    let (has, image) = (log.info().data_write_id, HrlId(identity.data_write_id));
    let unknown = HrlId::default();
    if has == image || has == unknown || image == unknown {
        return Ok(());
    }
    let log = log.name().to_owned();
    Err(ApplyError::OtherDisk { log, has, image })
}

fn check_entries(log: &HrlReader, size_bytes: u64) -> Result<(), ApplyError> {
    for entry in log.entries() {
        let entry = entry.map_err(ApplyError::Log)?;
        let HrlEntry { offset, length, .. } = entry;
        let end = offset.checked_add(u64::from(length));
        let sectors = |number: u64| number.is_multiple_of(SECTOR_BYTES);
        if !end.is_some_and(|end| end <= size_bytes && sectors(end)) || !sectors(offset) {
            return Err(ApplyError::Outside {
                log: log.name().to_owned(),
                offset,
                length,
                size_bytes,
            });
        }
        log.verify_entry(&entry).map_err(ApplyError::Log)?;
    }
    Ok(())
}

fn write_entries(
    log: &HrlReader,
    image: &dyn Image,
    buf: &mut [u8],
    applied: &mut Applied,
) -> Result<(), DiskError> {
    for entry in log.entries() {
        let entry = entry?;
        if entry.is_zeros {
            let length = u64::from(entry.length);
            image.write_zeroes(entry.offset, length, ZeroMode::MayUnmap, false)?;
            applied.zero_bytes += length;
        } else {
            write_data(log, &entry, image, buf)?;
            applied.data_bytes += u64::from(entry.length);
        }
        applied.entries += 1;
    }
    Ok(())
}

fn write_data(
    log: &HrlReader,
    entry: &HrlEntry,
    image: &dyn Image,
    buf: &mut [u8],
) -> Result<(), DiskError> {
    let mut within = 0;
    while within < entry.length {
        let rest = usize::try_from(entry.length - within).unwrap_or(COPY_BYTES);
        let piece = &mut buf[..rest.min(COPY_BYTES)];
        log.read_entry_data(entry, within, piece)?;
        image.write_at(piece, entry.offset + u64::from(within), false)?;
        within += u32::try_from(piece.len()).expect("at most COPY_BYTES");
    }
    Ok(())
}

fn failed(log: &HrlReader, source: DiskError) -> ApplyError {
    let log = log.name().to_owned();
    ApplyError::Image { log, source }
}

#[cfg(test)]
mod tests;
