//! What overlays may take, counted together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sitepair_disk::DiskError;
use sitepair_model::extent::BLOCK_BYTES;

/// The space of overlays that share a cap.
#[derive(Debug)]
pub struct Space {
    used: AtomicU64,
    cap: u64,
}

impl Space {
    /// For blocks of `cap_bytes` together.
    #[must_use]
    pub fn new(cap_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicU64::new(0),
            cap: cap_bytes / BLOCK_BYTES,
        })
    }

    /// Bytes of the blocks that take space.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed) * BLOCK_BYTES
    }

    pub(super) fn take(&self, blocks: u64) -> Result<(), DiskError> {
        let before = self.used.fetch_add(blocks, Ordering::Relaxed);
        if before + blocks <= self.cap || blocks == 0 {
            return Ok(());
        }
        self.give_back(blocks);
        let cap = self.cap * BLOCK_BYTES;
        Err(DiskError::io(
            format!("write to an overlay: its cap of {cap} bytes is reached"),
            std::io::ErrorKind::StorageFull.into(),
        ))
    }

    /// Counts blocks that are there already, even past the cap: what was written stays readable.
    pub(super) fn count(&self, blocks: u64) {
        self.used.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, blocks: u64) {
        self.used.fetch_sub(blocks, Ordering::Relaxed);
    }
}
