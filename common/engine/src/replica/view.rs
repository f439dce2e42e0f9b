//! Views: a disk as it was at a recovery point, read-only.
//!
//! A view is the image overlaid by change logs, through an index of ranges in memory. The point
//! is pinned as long as the view lives. Does not do: writes; another layer takes those.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use sitepair_disk::storage::BlockFile;
use sitepair_disk::{DiskError, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use sitepair_model::extent::Extent;
use sitepair_model::ids::{Cycle, DiskId};

use super::index::{Bytes, Piece, RangeIndex};
use super::{Inner, ReplicaError, ReplicaGroup, State, journal};
use crate::catalog::LogRow;

impl ReplicaGroup {
    /// Shows a disk as it was at the point `cycle`. The point is kept as long as the view lives. Blocks: the
    /// change logs that were not used before are read and checked against their hashes.
    ///
    /// # Errors
    /// `NoSuchPoint`, `UnknownDisk`, `DamagedLog`.
    pub fn view(&self, disk: DiskId, cycle: Cycle) -> Result<Arc<dyn Image>, ReplicaError> {
        let pin = Pin::new(&self.inner, cycle)?;
        let disk = self.inner.disk(disk)?;
        let id = self.inner.state_id(disk.row.disk, cycle)?;
        let layers = self.inner.layers(disk.row.disk, Cycle::NONE, cycle)?;
        let base = disk.image()?;
        let geometry = Geometry {
            read_only: true,
            ..base.geometry()
        };
        Ok(Arc::new(View {
            base,
            layers,
            geometry,
            id,
            closed: AtomicBool::new(false),
            _pin: pin,
        }))
    }
}

/// Keeps a point from being merged away.
pub(super) struct Pin {
    inner: Arc<Inner>,
    cycle: Cycle,
}

impl Pin {
    pub(super) fn new(inner: &Arc<Inner>, cycle: Cycle) -> Result<Self, ReplicaError> {
        let mut state = inner.state();
        if let Some(why) = state.closed {
            return Err(ReplicaError::Closed { why });
        }
        if state
            .points
            .binary_search_by_key(&cycle, |p| p.cycle)
            .is_err()
        {
            return Err(ReplicaError::NoSuchPoint { cycle });
        }
        *state.pins.entry(cycle).or_default() += 1;
        drop(state);
        Ok(Self {
            inner: Arc::clone(inner),
            cycle,
        })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        unpin(&mut self.inner.state(), self.cycle);
        self.inner.merge_due.notify_one();
    }
}

/// Takes one pin off a point.
pub(super) fn unpin(state: &mut State, cycle: Cycle) {
    if let Some(count) = state.pins.get_mut(&cycle) {
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&cycle);
        }
    }
}

/// A change log's row and its open file.
type OpenLog = (LogRow, Arc<dyn BlockFile>);

/// Change logs of one disk, checked, and where the newest bytes are.
pub(super) struct Layers {
    files: Vec<(PathBuf, Arc<dyn BlockFile>)>,
    pub(super) index: RangeIndex,
}

impl Layers {
    /// Fills `buf` from a piece of the index.
    pub(super) fn read(&self, bytes: Bytes, buf: &mut [u8]) -> Result<(), DiskError> {
        match bytes {
            Bytes::Zero => {
                buf.fill(0);
                Ok(())
            }
            Bytes::Log { log, file_offset } => {
                let (path, file) = &self.files[log];
                file.read_at(buf, file_offset).map_err(|e| {
                    let length = buf.len();
                    let path = path.display();
                    DiskError::io(format!("read {length} bytes at {file_offset} of {path}"), e)
                })
            }
        }
    }
}

impl Inner {
    /// Names the content of a disk at a point: what is above it, and was made earlier, must be above the same.
    fn state_id(&self, disk: DiskId, cycle: Cycle) -> Result<[u8; 16], ReplicaError> {
        let state = self.state();
        let at = state.points.binary_search_by_key(&cycle, |p| p.cycle);
        let point = &state.points[at.map_err(|_| ReplicaError::NoSuchPoint { cycle })?];
        let mut hasher = blake3::Hasher::new();
        hasher.update(disk.as_bytes());
        hasher.update(&cycle.0.to_le_bytes());
        hasher.update(point.generation.as_bytes());
        hasher.update(point.digest.as_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Ok(id)
    }

    /// The journal's change logs of one disk after a cycle, up to another.
    pub(super) fn layers(
        &self,
        disk: DiskId,
        after: Cycle,
        through: Cycle,
    ) -> Result<Layers, ReplicaError> {
        let opened = self.open_logs(disk, after, through)?;
        let mut index = RangeIndex::default();
        let mut files = Vec::with_capacity(opened.len());
        for (log, (row, file)) in opened.into_iter().enumerate() {
            let path = self.log_path(&row.file_name);
            let content = self.checked_log(&row, &path, &file)?;
            for entry in content.entries {
                let bytes = match entry.file_offset {
                    Some(file_offset) => Bytes::Log { log, file_offset },
                    None => Bytes::Zero,
                };
                index.insert(entry.extent, bytes);
            }
            files.push((path, file));
        }
        Ok(Layers { files, index })
    }

    /// Opens them before a merge that ends meanwhile can remove them; open files stay readable.
    fn open_logs(
        &self,
        disk: DiskId,
        after: Cycle,
        through: Cycle,
    ) -> Result<Vec<OpenLog>, ReplicaError> {
        let _still = self
            .log_files
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let wanted: Vec<LogRow> = state
            .logs
            .iter()
            .filter(|l| l.disk == disk && l.cycle > after && l.cycle <= through)
            .cloned()
            .collect();
        drop(state);
        wanted
            .into_iter()
            .map(|row| {
                let path = self.log_path(&row.file_name);
                journal::open_log(&*self.site.storage, &path).map(|file| (row, file))
            })
            .collect()
    }

    /// Reads what a change log says; the first time in this process, also whether it says what was committed.
    pub(super) fn checked_log(
        &self,
        row: &LogRow,
        path: &std::path::Path,
        file: &Arc<dyn BlockFile>,
    ) -> Result<journal::Content, ReplicaError> {
        let size_bytes = self.disk(row.disk)?.row.size_bytes;
        let content = journal::read_log(file, path, size_bytes)?;
        if !self.state().verified.contains(&row.file_name) {
            content.verify(&**file, path, row)?;
            self.state().verified.insert(row.file_name.clone());
        }
        Ok(content)
    }

    /// Reads a change log to its end and checks it against its hash, whether or not that was done before.
    pub(super) fn scrub_log(&self, row: &LogRow) -> Result<(), ReplicaError> {
        let path = self.log_path(&row.file_name);
        let file = {
            let _still = self
                .log_files
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if !self.state().logs.iter().any(|l| l == row) {
                // Merged since the list was made.
                return Ok(());
            }
            journal::open_log(&*self.site.storage, &path)?
        };
        self.state().verified.remove(&row.file_name);
        self.checked_log(row, &path, &file).map(drop)
    }
}

/// A disk at a recovery point.
struct View {
    base: Arc<dyn Image>,
    layers: Layers,
    geometry: Geometry,
    id: [u8; 16],
    closed: AtomicBool,
    _pin: Pin,
}

impl View {
    fn check(&self, offset: u64, length: u64) -> Result<Extent, DiskError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(DiskError::Closed {
                why: "the view was closed",
            });
        }
        let extent = Extent::new(offset, length);
        let size = self.geometry.size_bytes;
        let aligned = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        if !aligned || !extent.fits(size) {
            let what = format!("{length} bytes at {offset} of a view of {size} bytes");
            return Err(DiskError::Invalid { what });
        }
        Ok(extent)
    }

    fn refuse_write(&self) -> DiskError {
        DiskError::Invalid {
            what: "a view of a recovery point is read-only".to_owned(),
        }
    }
}

/// Unit of requests in bytes.
const SECTOR: u64 = 512;

/// Ends a visit of the index.
enum Stop {
    Asked,
    Failed(DiskError),
}

impl Image for View {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    /// A view never changes: its id is that of the disk at the point.
    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity {
            data_write_id: self.id,
            ..Identity::default()
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let length = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let extent = self.check(offset, length)?;
        let mut rest = buf;
        self.layers.index.visit(extent, |(piece, bytes)| {
            let length = usize::try_from(piece.length).expect("part of a buffer");
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            match bytes {
                Some(bytes) => self.layers.read(bytes, part),
                None => self.base.read_at(part, piece.offset),
            }
        })
    }

    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> Result<(), DiskError> {
        Err(self.refuse_write())
    }

    fn write_zeroes(
        &self,
        _offset: u64,
        _length: u64,
        _mode: ZeroMode,
        _fua: bool,
    ) -> Result<(), DiskError> {
        Err(self.refuse_write())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        let extent = self.check(offset, length)?;
        let result = self.layers.index.visit(extent, |(piece, bytes): Piece| {
            let mut going = true;
            let ours = |kind| Run::here(piece.offset, piece.length, kind);
            match bytes {
                Some(Bytes::Log { .. }) => going = visit(ours(ExtentKind::Data)),
                Some(Bytes::Zero) => going = visit(ours(ExtentKind::Hole)),
                None => self
                    .base
                    .extents(piece.offset, piece.length, &mut |run| {
                        going = visit(run);
                        going
                    })
                    .map_err(Stop::Failed)?,
            }
            if going { Ok(()) } else { Err(Stop::Asked) }
        });
        match result {
            Ok(()) | Err(Stop::Asked) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
