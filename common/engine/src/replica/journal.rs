//! The journal's files: one change log (`.hrl`) per disk and committed cycle.
//!
//! Owns their names, their strong hash, and what happens to files that were not committed. Does not do: the
//! format ([`sitepair_disk::hrl`]); which logs count (the catalogue knows).
//!
//! The strong hash is BLAKE3 over, in the file's order: for data, an entry's offset u64, length u64, kind u8 = 1, and
//! its bytes; for zeros, a run's offset u64, length u64, kind u8 = 2 (little-endian). A run of zeros is
//! as long as entries of zeros go on from each other. So zeros cost nothing however long they are, and every byte
//! that could reach a disk is covered.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sitepair_disk::hrl::{HrlError, HrlId, HrlOptions, HrlReader, HrlTime, HrlWriter};
use sitepair_disk::storage::{BlockFile, OpenMode, Storage};
use sitepair_disk::{DiskError, ErrorKind};
use sitepair_model::extent::Extent;
use sitepair_model::ids::{Cycle, Digest, DiskId, DiskName, GenId, GroupId, UnixMillis};

use super::{Disk, Inner, ReplicaError};
use crate::catalog::LogRow;

/// Bytes read at once while a change log is checked.
const CHECK_BYTES: usize = 1 << 20;

/// A group's journal folder.
pub(super) fn dir(state_dir: &Path, group: GroupId) -> PathBuf {
    state_dir.join("journal").join(group.to_string())
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
        let final_name = format!("{disk}.{cycle}.hrl");
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

/// The strong hash of a change log, as it grows.
#[derive(Default)]
struct LogHash {
    hasher: blake3::Hasher,
    /// Zeros that may go on.
    zeros: Option<Extent>,
}

impl LogHash {
    /// Adds an entry of data, whose bytes follow.
    fn data(&mut self, extent: Extent) {
        self.end_zeros();
        self.head(extent, 1);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn zeros(&mut self, extent: Extent) {
        match &mut self.zeros {
            Some(run) if run.checked_end() == Some(extent.offset) => run.length += extent.length,
            _ => {
                self.end_zeros();
                self.zeros = Some(extent);
            }
        }
    }

    fn end_zeros(&mut self) {
        if let Some(run) = self.zeros.take() {
            self.head(run, 2);
        }
    }

    fn head(&mut self, extent: Extent, kind: u8) {
        self.hasher.update(&extent.offset.to_le_bytes());
        self.hasher.update(&extent.length.to_le_bytes());
        self.hasher.update(&[kind]);
    }

    fn digest(mut self) -> Digest {
        self.end_zeros();
        Digest::from_bytes(*self.hasher.finalize().as_bytes())
    }
}

/// What a new change log is about.
pub(super) struct LogOrigin {
    pub(super) generation: GenId,
    pub(super) disk: DiskId,
    pub(super) cycle: Cycle,
    /// The disk's log before it in the journal.
    pub(super) previous: Option<Cycle>,
    pub(super) data_write_id: [u8; 16],
    pub(super) created: UnixMillis,
}

impl LogOrigin {
    pub(super) fn new(inner: &Inner, disk: &Disk, cycle: Cycle) -> Result<Self, ReplicaError> {
        let identity = disk.image()?.identity();
        let what = || format!("look at {}", disk.row.path.display());
        let state = inner.state();
        let own = state.logs.iter().filter(|l| l.disk == disk.row.disk);
        Ok(Self {
            generation: state.generation,
            disk: disk.row.disk,
            cycle,
            previous: own.map(|l| l.cycle).next_back(),
            data_write_id: identity
                .map_err(|e| ReplicaError::disk(what(), e))?
                .data_write_id,
            created: inner.site.env.now(),
        })
    }

    /// Names a log by what it is about, so that the one after it knows the name.
    fn id(&self, cycle: Cycle) -> HrlId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.generation.as_bytes());
        hasher.update(self.disk.as_bytes());
        hasher.update(&cycle.0.to_le_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        HrlId(id)
    }

    fn options(&self) -> HrlOptions {
        HrlOptions {
            unique_id: self.id(self.cycle),
            previous_id: self
                .previous
                .map_or(HrlId::default(), |cycle| self.id(cycle)),
            data_write_id: HrlId(self.data_write_id),
            created: hrl_time(self.created),
        }
    }
}

fn hrl_time(at: UnixMillis) -> HrlTime {
    HrlTime::from_unix_seconds(at.0.div_euclid(1000))
}

/// Writes one change log, and computes its strong hash on the way.
pub(super) struct LogWriter {
    log: HrlWriter,
    path: PathBuf,
    hash: LogHash,
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
            hash: LogHash::default(),
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
                self.hash.data(extent);
                self.hash.bytes(bytes);
                self.log.append(extent.offset, bytes, self.time)
            }
            _ => {
                self.hash.zeros(extent);
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
            hash: self.hash.digest(),
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
        let mut hash = LogHash::default();
        let mut buf = vec![0; CHECK_BYTES];
        for entry in &self.entries {
            let Some(file_offset) = entry.file_offset else {
                hash.zeros(entry.extent);
                continue;
            };
            hash.data(entry.extent);
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
        if hash.digest() == row.file_hash {
            return Ok(());
        }
        let why = "its content does not match the hash in the catalogue".to_owned();
        Err(ReplicaError::DamagedLog {
            path: path.to_owned(),
            why,
        })
    }
}
