//! The journal's files: one change log (`.hrl`) per disk and committed cycle.
//!
//! Owns their names, their ids, and what happens to files that were not committed. Does not do: the
//! format and the strong hash ([`sitepair_disk::hrl`]); which logs count (the catalogue knows).
//!
//! # Ids
//! A log's id is made of the generation that wrote the cycle, the disk and the cycle. The id of the log before it is
//! that of the same disk at the point before, whether or not that point's log is still here, and whether or not the
//! disk changed in it: so logs follow each other without a gap, also those that a tool took away one by one.
//! A log that took the place of several, because the points between them went, has the last one's id and names the one
//! before the first.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sitepair_disk::hrl::{ContentHash, HrlError, HrlId, HrlOptions, HrlReader, HrlTime, HrlWriter};
use sitepair_disk::storage::{BlockFile, OpenMode, Storage};
use sitepair_disk::{DiskError, ErrorKind};
use sitepair_model::extent::Extent;
use sitepair_model::ids::{Cycle, Digest, DiskId, DiskName, GenId, GroupId, UnixMillis};

use super::{Disk, Inner, ReplicaError};
use crate::catalog::{LogRow, PointRow};

/// Bytes read at once while a change log is checked.
const CHECK_BYTES: usize = 1 << 20;

/// A group's journal folder.
pub(super) fn dir(state_dir: &Path, group: GroupId) -> PathBuf {
    state_dir.join("journal").join(group.to_string())
}

/// The name of a committed change log.
pub(super) fn file_name(disk: &DiskName, cycle: Cycle) -> String {
    format!("{disk}.{cycle}.hrl")
}

/// Makes names in a folder durable.
pub(super) fn sync_dir(storage: &dyn Storage, path: &Path) -> Result<(), ReplicaError> {
    let synced = storage.sync_dir(path);
    synced.map_err(|e| ReplicaError::file(format!("sync folder {}", path.display()), e))
}

/// Removes what was not committed from a journal folder, and checks that what was is there, whole in length.
pub(super) fn recover(
    storage: &dyn Storage,
    dir: &Path,
    logs: &[LogRow],
) -> Result<(), ReplicaError> {
    let failed = |action: &str, e| ReplicaError::file(format!("{action} {}", dir.display()), e);
    storage
        .create_dir_all(dir)
        .map_err(|e| failed("create folder", e))?;
    let committed: HashSet<PathBuf> = logs.iter().map(|l| dir.join(&l.file_name)).collect();
    for path in storage.list(dir).map_err(|e| failed("list", e))? {
        if !committed.contains(&path) {
            tracing::info!(path = %path.display(), "removing what was not committed");
            let removed = storage.remove(&path);
            removed.map_err(|e| ReplicaError::file(format!("remove {}", path.display()), e))?;
        }
    }
    for log in logs {
        let path = dir.join(&log.file_name);
        let file = open_log(storage, &path)?;
        let length = file
            .length()
            .map_err(|e| failed("look at a change log in", e))?;
        if length != log.file_bytes {
            let why = format!("it has {length} bytes instead of {}", log.file_bytes);
            return Err(ReplicaError::DamagedLog { path, why });
        }
    }
    Ok(())
}

/// Opens a committed change log.
pub(super) fn open_log(
    storage: &dyn Storage,
    path: &Path,
) -> Result<Arc<dyn BlockFile>, ReplicaError> {
    storage
        .open(path, OpenMode::Read)
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ReplicaError::DamagedLog {
                path: path.to_owned(),
                why: "it is missing".to_owned(),
            },
            _ => ReplicaError::file(format!("open {}", path.display()), e),
        })
}

/// The name of a change log that is not committed yet. Removes the file when dropped, unless kept.
pub(super) struct PartFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    final_name: String,
    keep: bool,
}

impl PartFile {
    /// Names for the change log of a disk's cycle that a transfer is about to write.
    pub(super) fn new(inner: &Inner, disk: &DiskName, cycle: Cycle, session: u64) -> Self {
        let final_name = file_name(disk, cycle);
        let path = inner
            .journal_dir
            .join(format!("{final_name}.{session}.part"));
        Self {
            storage: Arc::clone(&inner.site.storage),
            path,
            final_name,
            keep: false,
        }
    }

    /// Names for the change log that takes the place of those of the cycles after `after` up to `point`. No log
    /// of the journal has the name: what it is merged of covers less.
    pub(super) fn merged(inner: &Inner, disk: &DiskName, after: Cycle, point: Cycle) -> Self {
        let final_name = format!("{disk}.{}-{point}.hrl", after.next());
        Self {
            storage: Arc::clone(&inner.site.storage),
            path: inner.journal_dir.join(format!("{final_name}.part")),
            final_name,
            keep: false,
        }
    }

    /// Where the file is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is called once committed.
    pub(super) fn final_name(&self) -> &str {
        &self.final_name
    }

    /// Gives it the committed name. Durable after the folder is synced.
    pub(super) fn give_name(&mut self) -> Result<(), ReplicaError> {
        let to = self.path.with_file_name(&self.final_name);
        self.storage
            .rename(&self.path, &to)
            .map_err(|e| ReplicaError::file(format!("rename {}", self.path.display()), e))?;
        self.path = to;
        Ok(())
    }

    /// Keeps the file.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        match self.storage.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It counts for nothing, and goes when the replica is opened next.
                tracing::warn!(path = %self.path.display(), %error, "an abandoned file stays");
            }
            _ => {}
        }
    }
}

/// Names what a cycle changed on a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogName {
    pub(super) generation: GenId,
    pub(super) disk: DiskId,
    pub(super) cycle: Cycle,
}

impl LogName {
    pub(super) fn new(point: &PointRow, disk: DiskId) -> Self {
        Self {
            generation: point.generation,
            disk,
            cycle: point.cycle,
        }
    }

    fn id(&self) -> HrlId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.generation.as_bytes());
        hasher.update(self.disk.as_bytes());
        hasher.update(&self.cycle.0.to_le_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        HrlId(id)
    }
}

/// What a new change log is about.
pub(super) struct LogOrigin {
    pub(super) name: LogName,
    /// The same disk at the point before; none before the first point.
    pub(super) previous: Option<LogName>,
    pub(super) data_write_id: [u8; 16],
    pub(super) created: UnixMillis,
}

impl LogOrigin {
    /// Of the cycle that is arriving.
    pub(super) fn new(inner: &Inner, disk: &Disk, cycle: Cycle) -> Result<Self, ReplicaError> {
        let data_write_id = data_write_id(disk)?;
        let (state, id) = (inner.state(), disk.row.disk);
        Ok(Self {
            name: LogName {
                generation: state.generation,
                disk: id,
                cycle,
            },
            previous: state.points.last().map(|point| LogName::new(point, id)),
            data_write_id,
            created: inner.site.env.now(),
        })
    }

    /// Of a log that says what all logs after the point `after` say up to `point`. It is named as that of `point` alone
    /// was, by which the log after it knows it.
    pub(super) fn merged(
        inner: &Inner,
        disk: &Disk,
        after: &PointRow,
        point: &PointRow,
    ) -> Result<Self, ReplicaError> {
        Ok(Self {
            name: LogName::new(point, disk.row.disk),
            previous: Some(LogName::new(after, disk.row.disk)),
            data_write_id: data_write_id(disk)?,
            created: inner.site.env.now(),
        })
    }

    pub(super) fn options(&self) -> HrlOptions {
        HrlOptions {
            unique_id: self.name.id(),
            previous_id: self.previous.map_or(HrlId::default(), |name| name.id()),
            data_write_id: HrlId(self.data_write_id),
            created: hrl_time(self.created),
        }
    }
}

/// What tells the content of a disk's image from that of others; zeros where its format has nothing.
pub(super) fn data_write_id(disk: &Disk) -> Result<[u8; 16], ReplicaError> {
    let identity = disk
        .image()?
        .identity()
        .map_err(|e| ReplicaError::disk(format!("look at {}", disk.row.path.display()), e))?;
    Ok(identity.data_write_id)
}

pub(super) fn hrl_time(at: UnixMillis) -> HrlTime {
    HrlTime::from_unix_seconds(at.0.div_euclid(1000))
}

/// Writes one change log, and computes its strong hash on the way.
pub(super) struct LogWriter {
    log: HrlWriter,
    path: PathBuf,
    hash: ContentHash,
    time: HrlTime,
}

/// A change log that is durable, but for its name.
pub(super) struct Sealed {
    /// Length of the file.
    pub(super) file_bytes: u64,
    /// The strong hash.
    pub(super) hash: Digest,
}

impl LogWriter {
    pub(super) fn create(
        storage: &dyn Storage,
        path: &Path,
        origin: &LogOrigin,
    ) -> Result<Self, ReplicaError> {
        let log = HrlWriter::create(storage, path, origin.options())
            .map_err(|e| ReplicaError::disk(format!("create {}", path.display()), e))?;
        let time = hrl_time(origin.created);
        Ok(Self {
            log,
            path: path.to_owned(),
            hash: ContentHash::default(),
            time,
        })
    }

    /// Appends a range with its bytes, at most a frame's; `None` stands for zeros.
    pub(super) fn append(
        &mut self,
        extent: Extent,
        bytes: Option<&[u8]>,
    ) -> Result<(), ReplicaError> {
        let appended = match bytes {
            // A reader tells data that is all zeros from other data, and hashes it as such.
            Some(bytes) if bytes.iter().any(|b| *b != 0) => {
                self.hash.data(extent.offset, extent.length);
                self.hash.bytes(bytes);
                self.log.append(extent.offset, bytes, self.time)
            }
            _ => {
                self.hash.zeros(extent.offset, extent.length);
                self.log
                    .append_zeros(extent.offset, extent.length, self.time)
            }
        };
        appended.map_err(|e| ReplicaError::disk(format!("write {}", self.path.display()), e))
    }

    /// Seals the log and makes its content durable.
    pub(super) fn finish(self, now: UnixMillis) -> Result<Sealed, ReplicaError> {
        let path = self.path.display();
        let sealed = self
            .log
            .finish(hrl_time(now))
            .map_err(|e| ReplicaError::disk(format!("seal {path}"), e))?;
        sealed
            .file
            .sync()
            .map_err(|e| ReplicaError::file(format!("sync {path}"), e))?;
        Ok(Sealed {
            file_bytes: sealed.bytes,
            hash: Digest::from_bytes(self.hash.digest()),
        })
    }
}

/// One entry of a change log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The range of the disk.
    pub(super) extent: Extent,
    /// Where its bytes are in the file; `None` stands for zeros.
    pub(super) file_offset: Option<u64>,
}

/// What a change log says.
pub(super) struct Content {
    /// In the file's order.
    pub(super) entries: Vec<Entry>,
}

/// Reads what a change log says, and checks that it fits the disk.
pub(super) fn read_log(
    file: &Arc<dyn BlockFile>,
    path: &Path,
    size_bytes: u64,
) -> Result<Content, ReplicaError> {
    let reader = HrlReader::of(Arc::clone(file), path.display().to_string())
        .map_err(|e| unreadable(path, e))?;
    let mut entries = Vec::new();
    for entry in reader.entries() {
        let entry = entry.map_err(|e| unreadable(path, e.into()))?;
        let extent = Extent::new(entry.offset, u64::from(entry.length));
        if !extent.fits(size_bytes) {
            let why = format!(
                "it has {} bytes at {}, off the disk",
                extent.length, extent.offset
            );
            return Err(ReplicaError::DamagedLog {
                path: path.to_owned(),
                why,
            });
        }
        let file_offset = (!entry.is_zeros).then_some(entry.data_offset);
        entries.push(Entry {
            extent,
            file_offset,
        });
    }
    Ok(Content { entries })
}

/// Tells damage from a disk that cannot be read.
fn unreadable(path: &Path, error: HrlError) -> ReplicaError {
    let error = DiskError::from(error);
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Unsupported => ReplicaError::DamagedLog {
            path: path.to_owned(),
            why: error.to_string(),
        },
        _ => ReplicaError::disk(format!("read {}", path.display()), error),
    }
}

impl Content {
    /// Reads all data and checks it against the strong hash.
    pub(super) fn verify(
        &self,
        file: &dyn BlockFile,
        path: &Path,
        row: &LogRow,
    ) -> Result<(), ReplicaError> {
        let mut hash = ContentHash::default();
        let mut buf = vec![0; CHECK_BYTES];
        for entry in &self.entries {
            let Some(file_offset) = entry.file_offset else {
                hash.zeros(entry.extent.offset, entry.extent.length);
                continue;
            };
            hash.data(entry.extent.offset, entry.extent.length);
            let mut done = 0;
            while done < entry.extent.length {
                let left = usize::try_from(entry.extent.length - done).unwrap_or(usize::MAX);
                let part = &mut buf[..left.min(CHECK_BYTES)];
                file.read_at(part, file_offset + done)
                    .map_err(|e| ReplicaError::file(format!("read {}", path.display()), e))?;
                hash.bytes(part);
                done += u64::try_from(part.len()).expect("at most a buffer");
            }
        }
        if Digest::from_bytes(hash.digest()) == row.file_hash {
            return Ok(());
        }
        let why = "its content does not match the hash in the catalogue".to_owned();
        Err(ReplicaError::DamagedLog {
            path: path.to_owned(),
            why,
        })
    }
}
