//! Receives initial replication: frames go straight into the images.
//!
//! A few frames are written at once, each by a blocking thread of its own that also checks the payload's
//! hash. They end by themselves; whoever needs them done takes all permits
//! of [`Inner::seed_writes`](super::Inner). Does not do: points.
//!
//! # Invariants
//! 1. Two frames that overlap are never on their way at the same time: the later one's bytes win.
//! 2. A checkpoint answers `Ok` only after all frames before it are in flushed images.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sitepair_disk::ZeroMode;
use sitepair_model::ids::DiskId;
use sitepair_model::peer::{Committed, TransferCommit};

use super::{Inner, ReplicaError, blocking, frame};
use crate::endpoint::{DataFrame, PeerError, Transfer, TransferDigest, cycle_digest};

/// The receiving end of initial replication.
pub(super) struct SeedTransfer {
    inner: Arc<Inner>,
    session: u64,
    received: Arc<AtomicU64>,
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
        let failure = Arc::clone(&self.failure);
        tokio::task::spawn_blocking(move || {
            match write(&inner, session, &frame) {
                Ok(bytes) => {
                    received.fetch_add(bytes, Ordering::Relaxed);
                }
                // Only the first failure is told; those after it follow from it.
                Err(error) => {
                    failure.set(error).ok();
                }
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
    let mut covered = 0;
    for (extent, bytes) in frame::pieces(frame) {
        let written = match bytes {
            Some(bytes) => image.write_at(bytes, extent.offset, false),
            None => image.write_zeroes(extent.offset, extent.length, ZeroMode::MayUnmap, false),
        };
        written.map_err(|e| disk.write_failed(e))?;
        covered += extent.length;
    }
    Ok(covered)
}
