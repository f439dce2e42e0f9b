//! A disk at a recovery point, given away as a stream.
//!
//! Owns: a view that holds its point, and the list of all of them. Does not do: standing in a failover's way. Whoever needs the point
//! ends its readers, and waits for one chunk at most; a reader learns that at its next chunk.

use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use sitepair_disk::chunks::next_chunk;
use sitepair_disk::{Geometry, Image};
use sitepair_model::ids::{Cycle, DiskId};

use super::{Inner, ReplicaError, ReplicaGroup, lock};

/// The view, until somebody ends it.
type Revocable = Mutex<Option<Arc<dyn Image>>>;

/// The readers of a group.
#[derive(Default)]
pub(super) struct Readers(Vec<Weak<Revocable>>);

/// Reads a disk at a point, from its start to its end.
pub struct PointReader {
    view: Arc<Revocable>,
    geometry: Geometry,
}

impl ReplicaGroup {
    /// A reader of a disk at the point `cycle`, which stays as long as the reader does. Blocks, as [`view`](Self::view).
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn reader(&self, disk: DiskId, cycle: Cycle) -> Result<PointReader, ReplicaError> {
        let view = self.view(disk, cycle)?;
        let geometry = view.geometry();
        let view = Arc::new(Mutex::new(Some(view)));
        let mut state = self.inner.state();
        if let Some(why) = state.closed {
            return Err(ReplicaError::Closed { why });
        }
        let readers = &mut state.readers.0;
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(&view));
        drop(state);
        Ok(PointReader { view, geometry })
    }

    pub(super) fn end_readers(&self) {
        self.inner.end_readers();
    }
}

impl Inner {
    /// Ends all readers: their points are not in use any more.
    pub(super) fn end_readers(&self) {
        let readers = std::mem::take(&mut self.state().readers.0);
        for view in readers.iter().filter_map(Weak::upgrade) {
            // Its pin locks the state, and so must be dropped without that lock.
            let ended = lock(&view).take();
            drop(ended);
        }
    }
}

impl PointReader {
    /// What the disk is like.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The next chunk from `at` on that is not all zeros, with its offset; `None` at the end of the disk. Blocks.
    ///
    /// # Errors
    /// `Closed` once it was ended; those of the files.
    pub fn next(&self, at: u64) -> Result<Option<(u64, Bytes)>, ReplicaError> {
        let view = lock(&self.view);
        let image = view.as_ref().ok_or(ReplicaError::Closed {
            why: "a failover or a stop took the recovery point",
        })?;
        let mut chunk = Vec::new();
        let found = next_chunk(&**image, at, &mut chunk);
        let found = found.map_err(|e| ReplicaError::disk("read a recovery point", e))?;
        Ok(found.map(|offset| (offset, chunk.into())))
    }
}
