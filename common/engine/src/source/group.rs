//! A group of disks at its source: the gate, cuts, and what becomes of a cycle.
//!
//! Owns: which cycle is sealed and how far it got, the last acknowledged cycle, the generation.
//! One transfer runs at a time; its reader may outlive a dropped future for a moment, which is why
//! whoever changes the sets takes the transfer's slot first.
//!
//! ```text
//!            cut            ship                 all sent
//!   (none) ──────> Ready ──────────> Sending ──────────────> Committing(digest)
//!     ^              │                  │                        │        │ no answer
//!     │              └── given up ──────┤                        │        v
//!     │                                 v                        │     resolve
//!     └──────────── merged into the open cycle, or forgotten <───┴────────┘
//! ```

use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};

use sitepair_disk::{DiskError, Image};
use sitepair_model::extent::BLOCK_BYTES;
use sitepair_model::ids::{Cycle, Digest, DiskId, DiskName, GenId, GroupId, UnixMillis};
use sitepair_model::point::Consistency;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::disk::{Disk, TrackedImage, Traffic};
use super::open::{FIRST_TICK, Limits, SourceDisk, SourceOptions, on_disk, open_disk};
use super::preserve::PreserveBudget;
use crate::locked;

/// What could not be done at the source of a group.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file beside the image cannot be opened or made.
    #[error("open the {what} of disk {disk}")]
    Open {
        /// The disk.
        disk: DiskName,
        /// Which file.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An image or a change map failed.
    #[error("serve disk {disk}")]
    Disk {
        /// The disk.
        disk: DiskName,
        /// The cause.
        #[source]
        source: DiskError,
    },
    /// A cycle is sealed already, and not resolved.
    #[error("cycle {cycle} is sealed already; ship or resolve it before the next cut")]
    SealedAlready {
        /// That cycle.
        cycle: Cycle,
    },
    /// Initial replication is not complete; there is nothing that a cycle could build on.
    #[error("initial replication is not complete; no cycle can be cut before")]
    Seeding,
    /// The group was closed.
    #[error("the group is closed")]
    Closed,
}

/// What a cut is to be known for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutInfo {
    /// Instant of the cut by this site's clock.
    pub at: UnixMillis,
    /// What the point will promise.
    pub consistency: Consistency,
    /// The operator's name for it.
    pub label: Option<String>,
}

/// A cycle that ended, and is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedCycle {
    /// Its number.
    pub cycle: Cycle,
    /// Bytes of the blocks that changed; 0 if the guest wrote nothing.
    pub dirty_bytes: u64,
    /// What the cut is known for.
    pub info: CutInfo,
}

/// What became of the sealed cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// None was sealed.
    Nothing,
    /// The peer has it.
    Acknowledged(Cycle),
    /// The peer does not have it: its blocks are in the open cycle, its number is skipped.
    Abandoned(Cycle),
}

/// How far a source is; a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceProgress {
    /// Bytes that initial replication had to send when the group was opened.
    pub seed_total_bytes: u64,
    /// Bytes of it that the replica has not confirmed as durable.
    pub seed_left_bytes: u64,
    /// Bytes of blocks changed since the last cut.
    pub open_dirty_bytes: u64,
    /// Bytes of blocks in the sealed cycle.
    pub sealed_bytes: u64,
    /// Bytes of disk covered by what was sent since the group was opened, zeros included.
    pub sent_bytes: u64,
    /// Bytes kept because the guest overwrote them before they were sent.
    pub preserved_bytes: u64,
    /// Hot zones of all disks.
    pub hot_zones: u64,
    /// Bytes that the guest has written since the group was opened.
    pub guest_written_bytes: u64,
    /// Last cycle that the replica has committed.
    pub acknowledged: Cycle,
    /// When the oldest guest write came that the replica does not have. What was dirty already when
    /// the group was opened counts from then.
    pub oldest_unreplicated_write: Option<UnixMillis>,
}

/// The disks of one group, while this site is its source. Dropping it without
/// [`close`](Self::close) is a crash as far as the change maps are concerned.
pub struct SourceGroup {
    pub(super) shared: Arc<Shared>,
}

/// What also outlives a dropped future, in threads that are about to end.
pub(super) struct Shared {
    pub(super) group: GroupId,
    pub(super) limits: Limits,
    pub(super) traffic: Arc<Traffic>,
    pub(super) disks: Vec<Arc<Disk>>,
    seed_total_bytes: u64,
    distrusted: Vec<(DiskId, String)>,
    pub(super) control: Mutex<Control>,
    transfer: Arc<Semaphore>,
}

/// What the orders of the group's task change.
pub(super) struct Control {
    pub(super) generation: GenId,
    pub(super) acknowledged: Cycle,
    next_cycle: Cycle,
    pub(super) seeding: bool,
    closed: bool,
    pub(super) sealed: Option<Sealed>,
}

/// The sealed cycle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) cycle: Cycle,
    pub(super) tick: u64,
    pub(super) phase: Phase,
}

/// How far the sealed cycle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not sent yet.
    Ready,
    /// Being sent, or broken off: the peer was not asked to commit it.
    Sending,
    /// The peer was asked to commit this digest.
    Committing(Digest),
}

/// The one transfer that may run; shared by its sender and its reader.
pub(super) type Slot = Arc<OwnedSemaphorePermit>;

impl SourceGroup {
    /// Opens the disks. Blocks on files. The gate is closed until [`admit`](Self::admit).
    ///
    /// # Errors
    /// When an image or a file beside it fails. A change map that cannot be trusted is no error: see
    /// [`needs_full_compare`](Self::needs_full_compare).
    pub fn open(options: SourceOptions, disks: Vec<SourceDisk>) -> Result<Arc<Self>, SourceError> {
        let limits = &options.limits;
        let budget = PreserveBudget::new(limits.preserve_memory_bytes, limits.preserve_spill_bytes);
        let traffic = Arc::new(Traffic::new(Arc::clone(&options.env), budget));
        let mut acknowledged = options.acknowledged;
        let (mut opened, mut distrusted) = (Vec::new(), Vec::new());
        let mut seeding = false;
        for disk in disks {
            let found = open_disk(&options, &traffic, disk)?;
            acknowledged = acknowledged.max(found.acknowledged);
            seeding |= found.seeding;
            distrusted.extend(found.distrusted.map(|reason| (found.disk.id, reason)));
            opened.push(Arc::new(found.disk));
        }
        if opened
            .iter()
            .any(|d| d.sets.of_tick(FIRST_TICK).count() > 0)
        {
            traffic.note_write(FIRST_TICK);
        }
        let seed_blocks: u64 = opened.iter().map(|d| d.sets.seed.count()).sum();
        let control = Control {
            generation: options.generation,
            acknowledged,
            next_cycle: acknowledged.next(),
            seeding,
            closed: false,
            sealed: None,
        };
        let shared = Arc::new(Shared {
            group: options.group,
            limits: options.limits,
            traffic,
            disks: opened,
            seed_total_bytes: seed_blocks * BLOCK_BYTES,
            distrusted,
            control: Mutex::new(control),
            transfer: Arc::new(Semaphore::new(1)),
        });
        Ok(Arc::new(Self { shared }))
    }

    /// The image to serve to the guest for a disk.
    #[must_use]
    pub fn tracked(&self, disk: DiskId) -> Option<Arc<dyn Image>> {
        let disk = Arc::clone(self.shared.disks.iter().find(|d| d.id == disk)?);
        Some(Arc::new(TrackedImage {
            disk,
            traffic: Arc::clone(&self.shared.traffic),
        }))
    }

    /// Whether a change map was missing, damaged or not of this image, so that a whole disk is sent
    /// again.
    #[must_use]
    pub fn needs_full_compare(&self) -> bool {
        !self.shared.distrusted.is_empty()
    }

    /// The disks that are sent again as a whole, and why.
    #[must_use]
    pub fn full_compare_reasons(&self) -> &[(DiskId, String)] {
        &self.shared.distrusted
    }

    /// Lets the guest's requests in.
    pub fn admit(&self) {
        let control = locked(&self.shared.control);
        if !control.closed {
            self.shared.traffic.gate.open();
        }
    }

    /// Refuses the guest's requests, waits for those in flight, and flushes the images.
    ///
    /// # Errors
    /// When an image cannot be flushed. Requests are refused all the same.
    pub async fn refuse_and_drain(&self) -> Result<(), SourceError> {
        self.shared.traffic.gate.close_and_drain().await;
        self.blocking(Shared::flush_all).await
    }

    /// Whether initial replication is not complete.
    #[must_use]
    pub fn needs_seed(&self) -> bool {
        locked(&self.shared.control).seeding
    }

    /// Ends the open cycle, at the same instant for all disks. Guest writes go on; this waits for
    /// those that began before.
    ///
    /// # Errors
    /// While another cycle is sealed, before initial replication is complete, and after `close`.
    pub async fn cut(&self, info: CutInfo) -> Result<SealedCycle, SourceError> {
        self.shared.may_cut()?;
        // A reader of the cycle before may not have ended, and must not take blocks of this one.
        let slot = self.slot().await;
        let (cycle, tick) = self.shared.seal()?;
        drop(slot);
        self.shared.traffic.clock.drained(tick).await;
        let dirty_bytes = self.shared.bytes_in(|d| d.sets.of_tick(tick).count());
        tracing::debug!(group = %self.shared.group, %cycle, dirty_bytes, "cut");
        Ok(SealedCycle {
            cycle,
            dirty_bytes,
            info,
        })
    }

    /// Settles what became of the sealed cycle, by what the peer says it has: after a transfer whose
    /// commit was not answered, and on each new session. Harmless when none is sealed.
    ///
    /// # Errors
    /// When a change map fails.
    pub async fn resolve(
        &self,
        peer_cycle: Cycle,
        peer_digest: Option<Digest>,
    ) -> Result<Resolution, SourceError> {
        let slot = self.slot().await;
        self.drain_sealed().await;
        self.blocking(move |shared| {
            let _slot = slot;
            shared.resolve(peer_cycle, peer_digest)
        })
        .await
    }

    /// Gives up the sealed cycle, if there is one and the peer was not asked to commit it: its
    /// blocks return to the open cycle. For a cut that is not to be shipped.
    pub async fn abandon(&self) -> Resolution {
        let slot = self.slot().await;
        self.drain_sealed().await;
        self.blocking(move |shared| {
            let _slot = slot;
            match shared.sealed() {
                Some(Sealed {
                    phase: Phase::Committing(_),
                    ..
                })
                | None => Resolution::Nothing,
                Some(sealed) => shared.abandon(sealed),
            }
        })
        .await
    }

    /// Binds the group to another generation, which begins after cycle `base`. A sealed cycle is
    /// given up: what was sent in the old generation and not acknowledged is dirty again.
    ///
    /// # Errors
    /// When a change map cannot be written; some disks may be bound already, so repeat it.
    pub async fn adopt_generation(
        &self,
        generation: GenId,
        base: Cycle,
    ) -> Result<(), SourceError> {
        let slot = self.slot().await;
        self.drain_sealed().await;
        self.blocking(move |shared| {
            let _slot = slot;
            shared.adopt(generation, base)
        })
        .await
    }

    /// Stops cleanly: refuses the guest, drains, flushes, and saves the change maps so that the next
    /// start sends nothing twice. The images may be closed afterwards, and must not be written.
    ///
    /// # Errors
    /// When an image or a change map fails; the next start then treats this as a crash.
    pub async fn close(&self) -> Result<(), SourceError> {
        locked(&self.shared.control).closed = true;
        self.shared.traffic.gate.close_and_drain().await;
        let slot = self.slot().await;
        self.drain_sealed().await;
        self.blocking(move |shared| {
            let _slot = slot;
            shared.stop()
        })
        .await
    }

    /// How far it is. Cheap.
    #[must_use]
    pub fn progress(&self) -> SourceProgress {
        let shared = &self.shared;
        let now = shared.traffic.clock.now();
        let control = locked(&shared.control);
        SourceProgress {
            seed_total_bytes: shared.seed_total_bytes,
            seed_left_bytes: shared.bytes_in(|d| d.sets.seed.count()),
            open_dirty_bytes: shared.bytes_in(|d| d.sets.of_tick(now).count()),
            sealed_bytes: shared.bytes_in(|d| d.sets.of_tick(now - 1).count()),
            sent_bytes: shared.traffic.sent_bytes.load(Relaxed),
            preserved_bytes: shared.traffic.budget.used(),
            hot_zones: shared.disks.iter().map(|d| d.map.hot_zones()).sum(),
            guest_written_bytes: shared.traffic.written_bytes.load(Relaxed),
            acknowledged: control.acknowledged,
            oldest_unreplicated_write: shared.traffic.oldest_write(),
        }
    }

    /// Waits until no other transfer runs, its reader included.
    pub(super) async fn slot(&self) -> Slot {
        let permit = Arc::clone(&self.shared.transfer).acquire_owned().await;
        Arc::new(permit.expect("the semaphore is never closed"))
    }

    /// Waits for the guest writes of the sealed cycle, if a cut was broken off before they ended.
    async fn drain_sealed(&self) {
        if let Some(sealed) = self.shared.sealed() {
            self.shared.traffic.clock.drained(sealed.tick).await;
        }
    }

    /// Does blocking work on a thread for it; the work goes on if the caller is dropped.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> T {
        let shared = Arc::clone(&self.shared);
        join(tokio::task::spawn_blocking(move || work(&shared))).await
    }
}

impl Shared {
    fn may_cut(&self) -> Result<(), SourceError> {
        let control = locked(&self.control);
        if control.closed {
            return Err(SourceError::Closed);
        }
        if control.seeding {
            return Err(SourceError::Seeding);
        }
        match control.sealed {
            Some(Sealed { cycle, .. }) => Err(SourceError::SealedAlready { cycle }),
            None => Ok(()),
        }
    }

    fn seal(&self) -> Result<(Cycle, u64), SourceError> {
        self.may_cut()?;
        let mut control = locked(&self.control);
        // Nothing is taken yet; before the tick, because writes preserve from the tick on.
        self.disks
            .iter()
            .for_each(|d| d.taken_below.store(0, SeqCst));
        let tick = self.traffic.clock.cut();
        let cycle = control.next_cycle;
        control.next_cycle = cycle.next();
        control.sealed = Some(Sealed {
            cycle,
            tick,
            phase: Phase::Ready,
        });
        Ok((cycle, tick))
    }

    pub(super) fn sealed(&self) -> Option<Sealed> {
        locked(&self.control).sealed
    }

    fn resolve(
        &self,
        peer_cycle: Cycle,
        peer_digest: Option<Digest>,
    ) -> Result<Resolution, SourceError> {
        let resolution = match self.sealed() {
            Some(Sealed {
                cycle,
                tick,
                phase: Phase::Committing(digest),
            }) if peer_cycle == cycle && peer_digest == Some(digest) => {
                self.acknowledge(cycle, tick);
                Resolution::Acknowledged(cycle)
            }
            Some(sealed) => {
                if peer_cycle == sealed.cycle {
                    // Its blocks are all dirty again, so that the next cycle repairs it.
                    tracing::error!(group = %self.group, cycle = %peer_cycle, "the peer has another content of this cycle");
                }
                self.abandon(sealed)
            }
            None => Resolution::Nothing,
        };
        self.set_base(peer_cycle)?;
        Ok(resolution)
    }

    /// Makes `base` the cycle that the next transfer builds on.
    fn set_base(&self, base: Cycle) -> Result<(), SourceError> {
        let acknowledged = locked(&self.control).acknowledged;
        if base < acknowledged {
            tracing::error!(group = %self.group, peer = %base, %acknowledged, "the peer lost cycles that it had acknowledged; all disks are sent again");
            let open = self.traffic.clock.now();
            for disk in &self.disks {
                disk.sets.of_tick(open).insert_range(0, disk.blocks);
                disk.map
                    .save_progress(0, disk.blocks)
                    .map_err(on_disk(&disk.name))?;
            }
        }
        let mut control = locked(&self.control);
        control.acknowledged = base;
        control.next_cycle = control.next_cycle.max(base.next());
        Ok(())
    }

    /// Forgets the sealed cycle: the peer has it durably, and the images were flushed since its
    /// writes were done (invariant 2 of the module `source`).
    pub(super) fn acknowledge(&self, cycle: Cycle, tick: u64) {
        self.traffic.resolve(tick);
        for disk in &self.disks {
            disk.sets.of_tick(tick).clear();
            disk.preserved.close_tick(tick);
            if let Err(error) = disk.map.forget_clean() {
                // What stays in the file is sent again after a crash; the next write tells.
                tracing::warn!(disk = %disk.name, %error, "shrink the saved bitmap");
            }
        }
        self.traffic.end_tick(tick, false);
        let mut control = locked(&self.control);
        control.acknowledged = cycle;
        // Last: the next cut needs the set of this one, empty.
        control.sealed = None;
    }

    /// Returns the sealed cycle's blocks to the open cycle.
    pub(super) fn abandon(&self, sealed: Sealed) -> Resolution {
        let Sealed { cycle, tick, .. } = sealed;
        self.traffic.resolve(tick);
        for disk in &self.disks {
            disk.map
                .merge_sets(disk.sets.of_tick(tick), disk.sets.of_tick(tick + 1));
            disk.preserved.close_tick(tick);
        }
        self.traffic.end_tick(tick, true);
        locked(&self.control).sealed = None;
        tracing::info!(group = %self.group, %cycle, "cycle given up; its blocks are sent with the next");
        Resolution::Abandoned(cycle)
    }

    fn adopt(&self, generation: GenId, base: Cycle) -> Result<(), SourceError> {
        if let Some(sealed) = self.sealed() {
            self.abandon(sealed);
        }
        self.set_base(base)?;
        for disk in &self.disks {
            disk.map
                .adopt(generation, base)
                .map_err(on_disk(&disk.name))?;
        }
        locked(&self.control).generation = generation;
        Ok(())
    }

    fn flush_all(&self) -> Result<(), SourceError> {
        self.disks
            .iter()
            .try_for_each(|d| d.image.flush().map_err(on_disk(&d.name)))
    }

    fn stop(&self) -> Result<(), SourceError> {
        if let Some(sealed) = self.sealed() {
            self.abandon(sealed);
        }
        let acknowledged = locked(&self.control).acknowledged;
        // Flushed before its identity is taken, and before zones are cold.
        self.flush_all()?;
        for disk in &self.disks {
            let stop = || disk.map.stop(disk.image.content_identity()?, acknowledged);
            stop().map_err(on_disk(&disk.name))?;
        }
        Ok(())
    }

    fn bytes_in(&self, blocks: impl Fn(&Disk) -> u64) -> u64 {
        self.disks.iter().map(|d| blocks(d)).sum::<u64>() * BLOCK_BYTES
    }
}

/// Waits for a thread of ours, and passes its panic on.
pub(super) async fn join<T>(task: tokio::task::JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
