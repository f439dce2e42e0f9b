//! Folds change logs into the images: the oldest ones when retention lets points go, all of them
//! when the replica is promoted.
//!
//! The order, each step durable before the next: forget the points that go; write the newest bytes of each range
//! into the image; flush it; forget the change logs; remove their files. Whatever is repeated after a crash writes the
//! same bytes again. A crash is seen by change logs that are not after the oldest point.

use std::sync::{Arc, PoisonError};

use sitepair_disk::{DiskError, Image, ZeroMode};
use sitepair_model::extent::Extent;
use sitepair_model::ids::{Cycle, DiskId};
use sitepair_model::retention::{Plan, Policy};
use tokio_util::sync::CancellationToken;

use super::index::Bytes;
use super::view::Layers;
use super::{Disk, Inner, ReplicaError, ReplicaGroup, State, blocking, lock};
use crate::catalog::{LogRow, PointRow};

/// Bytes that one read from a change log takes.
pub(super) const FOLD_BYTES: usize = 1 << 20;

/// A replica's images when it has become the source.
pub type PromotedImages = Vec<(DiskId, Arc<dyn Image>)>;

impl ReplicaGroup {
    /// Merges whenever a commit, an ended view or a changed setting may have made it due, until `stop`. A merge
    /// under way is finished first. Errors are logged; the next commit tries again.
    pub async fn run_merges(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inner.merge_due.notified() => {}
            }
            let group = self.clone();
            let merged = blocking(move || group.merge()).await;
            self.inner.note_room();
            match merged {
                Ok(Some(cycle)) => tracing::debug!(group = %self.inner.group, %cycle, "merged"),
                Ok(None) => {}
                Err(error) => {
                    let error = error.sentence();
                    tracing::error!(group = %self.inner.group, %error, "merge failed");
                }
            }
        }
    }

    /// Lets go of the points that retention does not keep: folds into the images whatever is not after the oldest kept
    /// one, then thins out those between kept ones. In this order, for thinning takes space before it frees any.
    /// Receiving goes on meanwhile. Blocks. Gives the cycle that the images are at if anything was folded.
    ///
    /// # Errors
    /// `DamagedLog` before anything of that disk is written; those of the images' files.
    pub fn merge(&self) -> Result<Option<Cycle>, ReplicaError> {
        let inner = &*self.inner;
        let _one = lock(&inner.folding);
        inner.reopen_failed_images()?;
        let mut folded = inner.fold_due()?;
        while inner.thin_once()? {
            // Only now the true sizes are known: a cap may want more points to go.
            folded = inner.fold_due()?.or(folded);
        }
        Ok(folded)
    }

    /// What retention would let go now, by the group's policy or another one.
    #[must_use]
    pub fn plan(&self, policy: Option<&Policy>) -> Plan {
        self.inner.plan(&self.inner.state(), policy)
    }

    /// Makes the images what the newest point, `through`, shows, and gives them to the caller, who becomes
    /// the source; the replica takes no transfers from then on, and its tests end. Repeating it is harmless, also after a restart.
    /// Blocks.
    ///
    /// # Errors
    /// `NoSuchPoint` when `through` is not the newest point; `InUse` while a view is open; those of merging.
    pub fn promote(&self, through: Cycle) -> Result<PromotedImages, ReplicaError> {
        let inner = &*self.inner;
        self.end_tests()?;
        self.end_readers();
        inner.tell_of_pins();
        let _one = lock(&inner.folding);
        let forgotten = {
            let _still = lock(&inner.committing);
            inner.state().close_at(through)?
        };
        inner.reopen_failed_images()?;
        inner.forget_points(through, forgotten)?;
        inner.fold(through)?;
        inner
            .disks
            .iter()
            .map(|d| Ok((d.row.disk, d.image()?)))
            .collect()
    }
}

impl State {
    /// What to merge through, and the points that go with it; takes them off the list.
    fn due(&mut self, plan: &Plan) -> Option<(Cycle, Vec<PointRow>)> {
        if self.closed.is_some() {
            return None;
        }
        let oldest = self.points.first()?.cycle;
        // A point may have come into use since the plan was made.
        let held = self.held().first().copied();
        let kept = *plan.keep.first()?;
        let through = held.map_or(kept, |c| c.min(kept)).max(oldest);
        let unfolded = self.logs.iter().any(|l| l.cycle <= oldest);
        (through > oldest || unfolded).then(|| (through, self.take_points_before(through)))
    }

    /// Ends receiving at the newest point; takes all older points off the list.
    fn close_at(&mut self, through: Cycle) -> Result<Vec<PointRow>, ReplicaError> {
        if through == Cycle::NONE || self.committed() != through {
            return Err(ReplicaError::NoSuchPoint { cycle: through });
        }
        if let Some(cycle) = self.pins.keys().next() {
            return Err(ReplicaError::InUse { cycle: *cycle });
        }
        self.closed = Some("it was promoted to source");
        self.end_transfer();
        Ok(self.take_points_before(through))
    }

    fn take_points_before(&mut self, cycle: Cycle) -> Vec<PointRow> {
        let kept = self.points.partition_point(|p| p.cycle < cycle);
        self.points.drain(..kept).collect()
    }
}

impl Inner {
    /// Folds what is not after the oldest point that is kept; gives what the images are at then. The caller holds
    /// `folding`.
    fn fold_due(&self) -> Result<Option<Cycle>, ReplicaError> {
        let plan = self.plan(&self.state(), None);
        let Some((through, forgotten)) = self.state().due(&plan) else {
            return Ok(None);
        };
        self.forget_points(through, forgotten)?;
        self.fold(through)?;
        Ok(Some(through))
    }

    /// Forgets points durably, before a fold changes what they show: invariant 4.
    fn forget_points(&self, oldest: Cycle, points: Vec<PointRow>) -> Result<(), ReplicaError> {
        if points.is_empty() {
            return Ok(());
        }
        self.site
            .catalog
            .drop_points(self.group, oldest)
            .map_err(|error| {
                // Nothing was folded: they are as good as before.
                self.state().points.splice(0..0, points);
                ReplicaError::from(error)
            })
    }

    /// Folds all change logs up to `through`, the oldest point, and lets them go.
    fn fold(&self, through: Cycle) -> Result<(), ReplicaError> {
        let old: Vec<LogRow> = self
            .state()
            .logs
            .iter()
            .filter(|l| l.cycle <= through)
            .cloned()
            .collect();
        for disk in &self.disks {
            if old.iter().any(|l| l.disk == disk.row.disk) {
                let layers = self.layers(disk.row.disk, Cycle::NONE, through)?;
                disk.fold(&layers)?;
                disk.flush()?;
            }
        }
        {
            let _changing = self
                .log_files
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            // The images are flushed: invariant 5.
            self.site.catalog.merged(self.group, through)?;
            let mut state = self.state();
            state.logs.retain(|l| l.cycle > through);
            for point in state.points.iter_mut().filter(|p| p.cycle <= through) {
                point.logs.clear();
            }
            for log in &old {
                state.verified.remove(&log.file_name);
            }
        }
        self.remove_logs(&old);
        Ok(())
    }

    /// Removes files that count no more.
    pub(super) fn remove_logs(&self, logs: &[LogRow]) {
        for log in logs {
            let path = self.log_path(&log.file_name);
            if let Err(error) = self.site.storage.remove(&path) {
                // It counts no more, and goes when the replica is opened next.
                tracing::warn!(path = %path.display(), %error, "a merged change log stays");
            }
        }
    }
}

impl Disk {
    /// Writes the newest bytes of every range of the layers into the image.
    fn fold(&self, layers: &Layers) -> Result<(), ReplicaError> {
        let image = self.image()?;
        let mut buf = vec![0; FOLD_BYTES];
        for (extent, bytes) in layers.index.iter() {
            let written = match bytes {
                Bytes::Zero => {
                    let (offset, length) = (extent.offset, extent.length);
                    image.write_zeroes(offset, length, ZeroMode::MayUnmap, false)
                }
                Bytes::Log { log, file_offset } => {
                    let bytes = |skip| Bytes::Log {
                        log,
                        file_offset: file_offset + skip,
                    };
                    copy(extent, &mut buf, |skip, part| {
                        layers.read(bytes(skip), part)?;
                        image.write_at(part, extent.offset + skip, false)
                    })
                }
            };
            written.map_err(|e| self.write_failed(e))?;
        }
        Ok(())
    }
}

/// Goes through an extent in parts of the buffer's size: `each(skip, part)`.
pub(super) fn copy(
    extent: Extent,
    buf: &mut [u8],
    mut each: impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let mut skip = 0;
    while skip < extent.length {
        let left = usize::try_from(extent.length - skip).unwrap_or(usize::MAX);
        let part = left.min(buf.len());
        each(skip, &mut buf[..part])?;
        skip += u64::try_from(part).expect("a part of 64-bit length");
    }
    Ok(())
}
