//! One disk of a group, as its guest meets it: every write is stamped, marked and, where a cycle
//! is being sent, preceded by saving what it overwrites.
//!
//! Owns: a disk's dirty sets, change map, range locks and preserved blocks; what all disks of a
//! group share on the data path ([`Traffic`]); the [`Image`] that the NBD server is given.
//! Receives: the guest's requests. Gives out: the state that the sender reads.
//!
//! Does not do: cut, send, acknowledge.
//!
//! # Invariants
//! 1. A guest write goes: gate, range lock, stamp, mark dirty, zone hot, preserve, image. Each step
//!    is needed by the one after it.
//! 2. While the tick before a write's own is not resolved, the first overwrite of each of its
//!    blocks that the sender has not taken keeps the old content.
//! 3. Preserving never fails a guest write: it gives up the cycle that is being sent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use sitepair_disk::image::Access;
use sitepair_disk::{DiskError, Geometry, Identity, Image, Run, ZeroMode};
use sitepair_model::extent::{BLOCK_BYTES, Extent};
use sitepair_model::ids::{DiskId, DiskName, UnixMillis};
use tokio::sync::Notify;

use super::clock::{CycleClock, parity};
use super::gate::Gate;
use super::map::{ChangeMap, DirtySets};
use super::preserve::{KeepError, PreserveBudget, PreserveStore};
use crate::blocks::locks::RangeLocks;
use crate::env::Env;

/// What the disks of a group share on the data path.
pub(super) struct Traffic {
    pub(super) gate: Gate,
    pub(super) clock: CycleClock,
    pub(super) budget: Arc<PreserveBudget>,
    pub(super) env: Arc<dyn Env>,
    /// The last tick that needs no preserving any more: sent, or given up.
    resolved: AtomicU64,
    /// When the first write of each tick came; 0 for none.
    first_write: [AtomicI64; 2],
    /// Wakes the sender when the cycle it sends was given up.
    pub(super) gave_up: Notify,
    pub(super) written_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
}

/// One disk of the group.
pub(super) struct Disk {
    pub(super) id: DiskId,
    pub(super) name: DiskName,
    pub(super) image: Arc<dyn Image>,
    pub(super) size_bytes: u64,
    pub(super) blocks: u64,
    pub(super) sets: Arc<DirtySets>,
    pub(super) map: ChangeMap,
    pub(super) locks: RangeLocks,
    pub(super) preserved: PreserveStore,
    /// The sender has taken the sealed blocks below this one.
    pub(super) taken_below: AtomicU64,
}

/// The image that the guest's server is given.
pub(super) struct TrackedImage {
    pub(super) disk: Arc<Disk>,
    pub(super) traffic: Arc<Traffic>,
}

/// Longest range of zeros that is handled as one write: 16 zones.
const ZEROES_AT_ONCE: u64 = 64 << 20;
/// Most blocks preserved with one read.
const PRESERVE_RUN_BLOCKS: u64 = 64;

impl Traffic {
    pub(super) fn new(env: Arc<dyn Env>, budget: PreserveBudget) -> Self {
        Self {
            gate: Gate::new(),
            clock: CycleClock::new(),
            budget: Arc::new(budget),
            env,
            resolved: AtomicU64::new(0),
            first_write: [const { AtomicI64::new(0) }; 2],
            gave_up: Notify::new(),
            written_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// Whether the blocks of the sealed `tick` are still to be preserved.
    pub(super) fn is_unresolved(&self, tick: u64) -> bool {
        self.resolved.load(SeqCst) < tick
    }

    /// Ends preserving for `tick`: it was sent, or is given up.
    pub(super) fn resolve(&self, tick: u64) {
        self.resolved.fetch_max(tick, SeqCst);
    }

    /// Gives up the sealed `tick`: nothing is preserved for it any more.
    pub(super) fn give_up(&self, tick: u64) {
        self.resolve(tick);
        self.gave_up.notify_one();
    }

    pub(super) fn note_write(&self, tick: u64) {
        let first = &self.first_write[parity(tick)];
        if first.load(Relaxed) == 0 {
            let now = self.env.now().0.max(1);
            // Another thread may have been first: then its time stands.
            let _ = first.compare_exchange(0, now, Relaxed, Relaxed);
        }
    }

    /// Forgets when `tick` was first written; with `carry` the next tick takes it over.
    pub(super) fn end_tick(&self, tick: u64, carry: bool) {
        let then = self.first_write[parity(tick)].swap(0, Relaxed);
        if carry && then != 0 {
            self.first_write[parity(tick + 1)].store(then, Relaxed);
        }
    }

    /// When the oldest write came that the replica does not have.
    pub(super) fn oldest_write(&self) -> Option<UnixMillis> {
        let times = self.first_write.iter().map(|t| t.load(Relaxed));
        times.filter(|t| *t != 0).min().map(UnixMillis)
    }
}

impl Disk {
    /// Bytes of blocks `[first, end)`: offset and length, cut at the end of the disk.
    pub(super) fn bytes_of(&self, first: u64, end: u64) -> Extent {
        let offset = first * BLOCK_BYTES;
        Extent::new(offset, (end * BLOCK_BYTES).min(self.size_bytes) - offset)
    }

    /// Keeps the content of sealed blocks in `[first, end)` that the sender still needs.
    fn preserve(&self, tick: u64, first: u64, end: u64) -> Result<(), PreserveError> {
        let sealed = self.sets.of_tick(tick);
        let mut at = first.max(self.taken_below.load(SeqCst));
        let mut buf = Vec::new();
        while let Some(run) = sealed.next_run(at, end, PRESERVE_RUN_BLOCKS) {
            at = run.end;
            if run
                .clone()
                .all(|block| self.preserved.is_settled(tick, block))
            {
                continue;
            }
            let bytes = self.bytes_of(run.start, run.end);
            buf.resize(usize::try_from(bytes.length).expect("a short run"), 0);
            self.image.read_at(&mut buf, bytes.offset)?;
            for (block, content) in run.zip(buf.chunks(4096)) {
                self.preserved.keep(tick, block, content)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum PreserveError {
    #[error("read what the guest is about to overwrite")]
    Read(#[from] DiskError),
    #[error(transparent)]
    Keep(#[from] KeepError),
}

impl TrackedImage {
    /// One change of the guest, all steps in their order (invariant 1).
    fn change(
        &self,
        extent: Extent,
        act: impl FnOnce(&dyn Image) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let (disk, traffic) = (&*self.disk, &*self.traffic);
        if !extent.fits(disk.size_bytes) {
            return Err(self.out_of_range(extent));
        }
        let _permit = traffic.gate.enter()?;
        let (first, end) = extent.blocks();
        let _range = disk.locks.lock(first, end);
        let stamp = traffic.clock.enter();
        let tick = stamp.tick();
        // Marked first, so that the zone cannot cool under us (change map's invariant 2).
        disk.sets.of_tick(tick).insert_range(first, end);
        if !disk.map.is_hot(first, end) {
            disk.map.heat(first, end)?;
        }
        traffic.note_write(tick);
        if traffic.is_unresolved(tick - 1)
            && let Err(error) = disk.preserve(tick - 1, first, end)
        {
            // The guest comes first: the cycle is given up, its blocks stay dirty (invariant 3).
            tracing::warn!(disk = %disk.name, %error, "give up the cycle that is being sent");
            traffic.give_up(tick - 1);
        }
        act(&*disk.image)?;
        traffic.written_bytes.fetch_add(extent.length, Relaxed);
        Ok(())
    }

    fn out_of_range(&self, extent: Extent) -> DiskError {
        let Extent { offset, length } = extent;
        let (name, size) = (&self.disk.name, self.disk.size_bytes);
        DiskError::Invalid {
            what: format!("{length} bytes at {offset} are not within disk {name} of {size} bytes"),
        }
    }

    /// Whether a write would wait for nothing but the image.
    fn write_is_free(&self, extent: Extent) -> bool {
        let (first, end) = extent.blocks();
        let tick = self.traffic.clock.now();
        self.disk.map.is_hot(first, end)
            && (!self.traffic.is_unresolved(tick - 1)
                || self
                    .disk
                    .sets
                    .of_tick(tick - 1)
                    .next_set(first, end)
                    .is_none())
    }
}

impl Image for TrackedImage {
    fn geometry(&self) -> Geometry {
        self.disk.image.geometry()
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        self.disk.image.identity()
    }

    fn content_identity(&self) -> Result<Identity, DiskError> {
        self.disk.image.content_identity()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.traffic.gate.check()?;
        self.disk.image.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        let extent = Extent::new(offset, buf.len() as u64);
        self.change(extent, |image| image.write_at(buf, offset, fua))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        let whole = Extent::new(offset, length);
        if !whole.fits(self.disk.size_bytes) {
            return Err(self.out_of_range(whole));
        }
        // Part by part: one request may touch more zones than may be hot. A cut between two parts
        // is one in the middle of a request that was not answered.
        let mut at = offset;
        loop {
            let part = (offset + length - at).min(ZEROES_AT_ONCE);
            let act = |image: &dyn Image| image.write_zeroes(at, part, mode, fua);
            self.change(Extent::new(at, part), act)?;
            at += part;
            if at == offset + length {
                return Ok(());
            }
        }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.write_zeroes(offset, length, ZeroMode::MayUnmap, false)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.traffic.gate.check()?;
        self.disk.image.flush()
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.traffic.gate.check()?;
        self.disk.image.extents(offset, length, visit)
    }

    fn is_quick(&self, access: Access, offset: u64, length: usize) -> bool {
        let free = match access {
            Access::Read => true,
            Access::Write => self.write_is_free(Extent::new(offset, length as u64)),
        };
        free && self.disk.image.is_quick(access, offset, length)
    }

    /// Flushes. The file itself is closed by who opened it, once the group is closed.
    fn close(&self) -> Result<(), DiskError> {
        self.disk.image.flush()
    }
}

/// Where the change map and the spill file of an image are.
pub(super) fn beside(image: &std::path::Path, ending: &str) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}
