//! A committed change log, given away as a file for other programs.
//!
//! Owns: finding the log of a disk and cycle, and its content while somebody reads it. Gives out the bytes of the file as
//! they are in the journal. A disk that a cycle did not change has no file there; it gets a log without entries, so
//! that the logs of a disk follow each other without a gap.
//!
//! Does not do: keeping the point. The file is opened before a merge can remove it, committed logs are never
//! written again, and what is open stays readable: so a reader, however slow, is in nobody's way, least of all in that of
//! a failover, which a point in use would stop.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sitepair_disk::hrl::{ContentHash, empty_log};
use sitepair_disk::storage::{BlockFile, FileExtent};
use sitepair_model::ids::{Cycle, Digest, DiskId};

use super::journal::{self, LogName, LogOrigin};
use super::{Disk, Inner, ReplicaError, ReplicaGroup};
use crate::catalog::{LogRow, PointRow};

/// Most bytes of one part.
const PART_BYTES: u64 = 1 << 20;

/// A change log that can be read whole, whatever becomes of the journal.
pub struct ChangeLog {
    file_name: String,
    file_bytes: u64,
    content_hash: Digest,
    stored: Stored,
}

enum Stored {
    File {
        path: PathBuf,
        file: Arc<dyn BlockFile>,
    },
    /// Of a disk that did not change.
    Made(Bytes),
}

/// Some bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPart {
    /// As they are, at most a mebibyte, at least one byte.
    Data(Bytes),
    /// So many zeros, which take no space.
    Hole(u64),
}

impl LogPart {
    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).unwrap_or(u64::MAX),
            Self::Hole(bytes) => *bytes,
        }
    }
}

/// What the journal has of a disk's cycle.
enum Found {
    Log(LogRow),
    /// The cycle's point and the one before; the disk did not change between them.
    Unchanged(PointRow, PointRow),
}

impl ReplicaGroup {
    /// Opens the change log of a disk's cycle. Blocks: a log that was not used before is read and checked against
    /// its hash.
    ///
    /// # Errors
    /// `NotCommitted`, `Merged`, `Merging`, `NoSuchPoint` for a cycle that went into the next one, `UnknownDisk`, `DamagedLog`.
    pub fn change_log(&self, disk: DiskId, cycle: Cycle) -> Result<ChangeLog, ReplicaError> {
        let inner = &*self.inner;
        let disk = inner.disk(disk)?;
        let (row, path, file) = {
            let _still = inner
                .log_files
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let row = match inner.find_log(disk, cycle)? {
                Found::Log(row) => row,
                Found::Unchanged(point, before) => return made(disk, &point, &before),
            };
            let path = inner.log_path(&row.file_name);
            let file = journal::open_log(&*inner.site.storage, &path)?;
            (row, path, file)
        };
        inner.checked_log(&row, &path, &file)?;
        Ok(ChangeLog {
            file_name: journal::file_name(&disk.row.name, cycle),
            file_bytes: row.file_bytes,
            content_hash: row.file_hash,
            stored: Stored::File { path, file },
        })
    }
}

impl Inner {
    fn find_log(&self, disk: &Disk, cycle: Cycle) -> Result<Found, ReplicaError> {
        let state = self.state();
        if let Some(why) = state.closed {
            return Err(ReplicaError::Closed { why });
        }
        let own = |log: &&LogRow| log.disk == disk.row.disk && log.cycle == cycle;
        if let Some(row) = state.logs.iter().find(own) {
            return Ok(Found::Log(row.clone()));
        }
        let newest = state.committed();
        if cycle > newest {
            return Err(ReplicaError::NotCommitted { cycle, newest });
        }
        match state.points.binary_search_by_key(&cycle, |p| p.cycle) {
            // The oldest point is the image, or about to be.
            Ok(0) | Err(0) => {
                let oldest = state.points.first().map_or(Cycle::NONE, |p| p.cycle);
                Err(ReplicaError::Merged { cycle, oldest })
            }
            Ok(at) => {
                let (point, before) = (&state.points[at], &state.points[at - 1]);
                // Points between these two are on their way out, and their logs are not merged yet.
                let within = |log: &LogRow| {
                    log.disk == disk.row.disk && before.cycle < log.cycle && log.cycle < cycle
                };
                if state.logs.iter().any(within) {
                    return Err(ReplicaError::Merging { cycle });
                }
                Ok(Found::Unchanged(point.clone(), before.clone()))
            }
            Err(_) => Err(ReplicaError::NoSuchPoint { cycle }),
        }
    }
}

/// The log of a disk that did not change, the same each time that it is made of the same image.
fn made(disk: &Disk, point: &PointRow, before: &PointRow) -> Result<ChangeLog, ReplicaError> {
    let origin = LogOrigin {
        name: LogName::new(point, disk.row.disk),
        previous: Some(LogName::new(before, disk.row.disk)),
        data_write_id: journal::data_write_id(disk)?,
        created: point.cut_at,
    };
    let bytes = empty_log(origin.options(), journal::hrl_time(point.cut_at));
    Ok(ChangeLog {
        file_name: journal::file_name(&disk.row.name, point.cycle),
        file_bytes: bytes.len() as u64,
        content_hash: Digest::from_bytes(ContentHash::default().digest()),
        stored: Stored::Made(bytes.into()),
    })
}

impl ChangeLog {
    /// What the file is called: `DISK.CYCLE.hrl`, as in the journal, unless it was merged with others there.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// Length of the file, holes included.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// [`ContentHash`] of what it says.
    #[must_use]
    pub fn content_hash(&self) -> Digest {
        self.content_hash
    }

    /// The part of the file that begins at `at`, or `None` at its end. Blocks.
    ///
    /// # Errors
    /// The file's.
    pub fn part(&self, at: u64) -> Result<Option<LogPart>, ReplicaError> {
        let left = self.file_bytes.saturating_sub(at);
        if left == 0 {
            return Ok(None);
        }
        let (path, file) = match &self.stored {
            Stored::File { path, file } => (path, file),
            Stored::Made(bytes) => {
                let at = usize::try_from(at).expect("within what is in memory");
                return Ok(Some(LogPart::Data(bytes.slice(at..))));
            }
        };
        let failed = |e| ReplicaError::file(format!("read {}", path.display()), e);
        let mut first = (left, FileExtent::Data);
        let mut visit = |_, length: u64, kind| {
            first = (length, kind);
            false
        };
        file.extents(at, left, &mut visit).map_err(failed)?;
        let (length, kind) = first;
        if kind == FileExtent::Hole {
            return Ok(Some(LogPart::Hole(length.min(left))));
        }
        let length = length.min(left).min(PART_BYTES);
        let mut data = vec![0; usize::try_from(length).expect("at most PART_BYTES")];
        file.read_at(&mut data, at).map_err(failed)?;
        Ok(Some(LogPart::Data(data.into())))
    }
}
