//! Receives initial replication: frames go straight into the images.
//!
//! A few frames are written at once, each by a blocking thread of its own that also checks the payload's
//! hash. They end by themselves; whoever needs them done takes all permits
//! of [`Inner::seed_writes`](super::Inner). Now and then one of them flushes what was written so far, while
//! the others go on: so a checkpoint finds little left to flush. Does not do: points.
//!
//! # Invariants
//! 1. Two frames that overlap are never on their way at the same time: the later one's bytes win.
//! 2. A checkpoint answers `Ok` only after all frames before it are in flushed images.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sitepair_disk::{DiskError, ExtentKind, Image, ZeroMode};
use sitepair_model::extent::Extent;
use sitepair_model::ids::DiskId;
use sitepair_model::peer::{Committed, TransferCommit};

use super::{Inner, ReplicaError, blocking, frame};
use crate::endpoint::{DataFrame, PeerError, Transfer, TransferDigest, cycle_digest};

/// The receiving end of initial replication.
pub(super) struct SeedTransfer {
    inner: Arc<Inner>,
    session: u64,
    received: Arc<AtomicU64>,
    /// Bytes written since somebody last began to flush.
    unflushed: Arc<AtomicU64>,
    disks: BTreeMap<DiskId, Progress>,
    /// The first failure of a write; final for this transfer.
    failure: Arc<OnceLock<ReplicaError>>,
}

#[derive(Default)]
struct Progress {
    digest: TransferDigest,
    /// End of the highest range that may still be on its way.
    highest: u64,
}

impl SeedTransfer {
    pub(super) fn new(inner: Arc<Inner>, session: u64, received: Arc<AtomicU64>) -> Self {
        let (disks, failure) = (BTreeMap::new(), Arc::default());
        Self {
            inner,
            session,
            received,
            unflushed: Arc::default(),
            disks,
            failure,
        }
    }

    fn check(&self) -> Result<(), PeerError> {
        match self.failure.get() {
            Some(error) => Err(error.into()),
            None => Ok(self.inner.check_session(self.session)?),
        }
    }

    /// Waits until nothing is on its way, and gives the first failure.
    async fn drain(&mut self) -> Result<(), PeerError> {
        self.inner.drain_seed_writes().await?;
        self.disks.values_mut().for_each(|d| d.highest = 0);
        self.check()
    }

    async fn flush(&mut self) -> Result<(), PeerError> {
        self.drain().await?;
        let inner = Arc::clone(&self.inner);
        let written: Vec<_> = self.disks.keys().copied().collect();
        blocking(move || written.into_iter().try_for_each(|d| inner.disk(d)?.flush())).await?;
        // A newer transfer may have opened the image anew under us: then this flush proves nothing.
        self.check()
    }

    fn check_commit(&self, commit: &TransferCommit) -> Result<(), ReplicaError> {
        let received = self
            .disks
            .iter()
            .map(|(disk, progress)| (*disk, &progress.digest));
        super::cycle::check_commit(received, commit)
    }
}

#[async_trait]
impl Transfer for SeedTransfer {
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError> {
        self.check()?;
        self.inner.disk(frame.disk)?;
        let first = frame.extents.first().map_or(0, |e| e.offset);
        let highest = self.disks.get(&frame.disk).map_or(0, |d| d.highest);
        if first < highest {
            self.drain().await?;
        }
        let permit = Arc::clone(&self.inner.seed_writes).acquire_owned().await;
        let permit = permit.map_err(|_| ReplicaError::Voided)?;
        let progress = self.disks.entry(frame.disk).or_default();
        progress.digest.add(&frame);
        let end = frame
            .extents
            .last()
            .map_or(0, |e| e.offset.saturating_add(e.length));
        progress.highest = progress.highest.max(end);
        let inner = Arc::clone(&self.inner);
        let (session, received) = (self.session, Arc::clone(&self.received));
        let (unflushed, failure) = (Arc::clone(&self.unflushed), Arc::clone(&self.failure));
        tokio::task::spawn_blocking(move || {
            let done = write(&inner, session, &frame).and_then(|bytes| {
                received.fetch_add(bytes, Ordering::Relaxed);
                flush_ahead(&inner, &unflushed, &frame)
            });
            if let Err(error) = done {
                // Only the first failure is told; those after it follow from it.
                failure.set(error).ok();
            }
            // Who waits for the permit may then count on it that we hold nothing.
            drop((frame, inner, failure));
            drop(permit);
        });
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        self.flush().await
    }

    async fn commit(mut self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        self.check_commit(&commit)?;
        self.flush().await?;
        let cycle = self.inner.state().committed();
        Ok(Committed {
            cycle,
            digest: cycle_digest(&commit.disks),
        })
    }
}

impl Drop for SeedTransfer {
    fn drop(&mut self) {
        self.inner.transfer_ended(self.session);
    }
}

/// Writes a frame into its image; gives the bytes covered.
fn write(inner: &Inner, session: u64, frame: &DataFrame) -> Result<u64, ReplicaError> {
    let disk = inner.disk(frame.disk)?;
    frame::check(frame, disk.row.size_bytes)?;
    // Our permit is taken: a newer transfer waits for us, or is seen here.
    inner.check_session(session)?;
    let image = disk.image()?;
    let failed = |e| disk.write_failed(e);
    let mut stretch = Stretch::new(&*image);
    let mut covered = 0;
    for (extent, bytes) in frame::pieces(frame) {
        if bytes.is_none() && extent.length >= HOLE_BYTES_MIN {
            zero(&*image, extent).map_err(failed)?;
        } else {
            stretch.push(extent, bytes).map_err(failed)?;
        }
        covered += extent.length;
    }
    stretch.end().map_err(failed)?;
    Ok(covered)
}

/// Flushes the frame's image if much was written since the last time. What the disk does meanwhile is not left
/// for the checkpoint, which the sender waits for.
fn flush_ahead(
    inner: &Inner,
    unflushed: &AtomicU64,
    frame: &DataFrame,
) -> Result<(), ReplicaError> {
    let written = u64::try_from(frame.payload.len()).unwrap_or(u64::MAX);
    if unflushed.fetch_add(written, Ordering::Relaxed) + written < FLUSH_AHEAD_BYTES {
        return Ok(());
    }
    unflushed.store(0, Ordering::Relaxed);
    inner.disk(frame.disk)?.flush()
}

/// Makes a range read as zeros. A new image is all holes: looking costs less than making one anew.
fn zero(image: &dyn Image, extent: Extent) -> Result<(), DiskError> {
    let mut is_hole = true;
    image.extents(extent.offset, extent.length, &mut |run| {
        is_hole = run.kind == ExtentKind::Hole;
        is_hole
    })?;
    if is_hole {
        return Ok(());
    }
    image.write_zeroes(extent.offset, extent.length, ZeroMode::MayUnmap, false)
}

/// Neighbouring pieces of a frame, to be written at once.
struct Stretch<'a> {
    image: &'a dyn Image,
    pieces: Vec<(Extent, Option<&'a [u8]>)>,
    length: u64,
    joined: Vec<u8>,
}

impl<'a> Stretch<'a> {
    fn new(image: &'a dyn Image) -> Self {
        Self {
            image,
            pieces: Vec::new(),
            length: 0,
            joined: Vec::new(),
        }
    }

    fn push(&mut self, extent: Extent, bytes: Option<&'a [u8]>) -> Result<(), DiskError> {
        let follows = self
            .pieces
            .last()
            .is_some_and(|(last, _)| last.checked_end() == Some(extent.offset));
        if !follows || self.length + extent.length > STRETCH_BYTES_MAX {
            self.end()?;
        }
        self.pieces.push((extent, bytes));
        self.length += extent.length;
        Ok(())
    }

    /// Writes what there is.
    fn end(&mut self) -> Result<(), DiskError> {
        let Some(&(first, bytes)) = self.pieces.first() else {
            return Ok(());
        };
        let has_data = self.pieces.iter().any(|(_, bytes)| bytes.is_some());
        let whole = Extent::new(first.offset, self.length);
        let written = match bytes {
            _ if !has_data => zero(self.image, whole),
            Some(bytes) if self.pieces.len() == 1 => {
                self.image.write_at(bytes, first.offset, false)
            }
            _ => {
                self.join();
                self.image.write_at(&self.joined, first.offset, false)
            }
        };
        self.pieces.clear();
        self.length = 0;
        written
    }

    fn join(&mut self) {
        self.joined.clear();
        for (extent, bytes) in &self.pieces {
            match bytes {
                Some(bytes) => self.joined.extend_from_slice(bytes),
                None => {
                    let zeros = usize::try_from(extent.length).expect("shorter than a stretch");
                    self.joined.resize(self.joined.len() + zeros, 0);
                }
            }
        }
    }
}

/// Shorter zeros are written with the data around them. The source had space for them, too; a hole for each
/// would cost a call, and leave the file in small pieces.
const HOLE_BYTES_MIN: u64 = 64 << 10;
/// Most bytes written at once, unless a single piece is longer.
const STRETCH_BYTES_MAX: u64 = 1 << 20;
/// Bytes written between two flushes on the way.
const FLUSH_AHEAD_BYTES: u64 = 32 << 20;
