//! Sends: initial replication, and sealed cycles.
//!
//! Owns: the order of a transfer. A reader thread makes frames ahead of it; this side hands them to
//! the peer, and lets go of blocks once the peer's word and the local flush are both there.
//!
//! Does not do: retry. A cycle whose commit was asked for and not answered waits for
//! [`SourceGroup::resolve`]; any other failure gives it up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sitepair_disk::DiskError;
use sitepair_model::ids::{Cycle, Digest};
use sitepair_model::peer::{
    Committed, DiskCommit, FrameExtent, TransferBegin, TransferCommit, TransferKind,
};
use sitepair_model::point::Consistency;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::frames::{FRAMES_AHEAD, Pass, Piece, ReadEnd, Reader};
use super::group::{Phase, Sealed, SealedCycle, Shared, Slot, SourceGroup, join};
use crate::endpoint::{PeerEndpoint, PeerError, Transfer, cycle_digest};
use crate::locked;

/// Why a transfer did not end with the peer's commit.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// It was told to stop.
    #[error("the transfer was stopped")]
    Stopped,
    /// The guest overwrote more than could be preserved, or that failed: the cycle's blocks are in
    /// the open cycle again.
    #[error("the cycle was given up in favour of the guest's writes")]
    Abandoned,
    /// That cycle is not the sealed one, or was sent already.
    #[error("cycle {cycle} is not waiting to be sent")]
    NotSealed {
        /// The cycle that was asked for.
        cycle: Cycle,
    },
    /// The peer said no, or could not be reached.
    #[error("send to the peer")]
    Peer(#[from] PeerError),
    /// An image or change map here failed.
    #[error("read what is to be sent")]
    Disk(#[from] DiskError),
}

/// How sending a cycle failed.
enum Broken {
    /// The peer was not asked to commit, so it has not.
    Before(ShipError),
    /// It was asked, and the answer is not known.
    Open(ShipError),
}

impl SourceGroup {
    /// Sends a sealed cycle.
    ///
    /// # Errors
    /// When the peer was not yet asked to commit, the cycle is given up: its blocks are in the open
    /// cycle. After that, only [`resolve`](Self::resolve) knows; until then no cut is possible.
    pub async fn ship(
        &self,
        peer: &dyn PeerEndpoint,
        sealed: &SealedCycle,
        stop: &CancellationToken,
    ) -> Result<Committed, ShipError> {
        let slot = self.slot().await;
        let (state, begin) = self.shared.start_sending(sealed)?;
        self.shared.traffic.clock.drained(state.tick).await;
        match self
            .send_cycle(peer, sealed, state, begin, stop, &slot)
            .await
        {
            Ok(committed) => {
                self.blocking(move |shared| {
                    shared.acknowledge(state.cycle, state.tick);
                    drop(slot);
                })
                .await;
                Ok(committed)
            }
            Err(Broken::Before(error)) => {
                self.blocking(move |shared| {
                    shared.abandon(state);
                    drop(slot);
                })
                .await;
                Err(error)
            }
            Err(Broken::Open(error)) => Err(error),
        }
    }

    async fn send_cycle(
        &self,
        peer: &dyn PeerEndpoint,
        sealed: &SealedCycle,
        state: Sealed,
        begin: TransferBegin,
        stop: &CancellationToken,
        slot: &Slot,
    ) -> Result<Committed, Broken> {
        let pass = Pass::Sealed(state.tick);
        let (transfer, disks) = self
            .send_all(peer, begin, pass, stop, slot)
            .await
            .map_err(Broken::Before)?;
        let digest = cycle_digest(&disks);
        // From here on the peer may have it, whatever we hear.
        self.shared.set_phase(Phase::Committing(digest));
        let commit = TransferCommit {
            cut_at: sealed.info.at,
            consistency: sealed.info.consistency,
            label: sealed.info.label.clone(),
            disks,
        };
        let answer = or_stop(stop, transfer.commit(commit))
            .await
            .map_err(Broken::Open)?;
        check_answer(answer, state.cycle, digest).map_err(|e| Broken::Open(e.into()))
    }

    /// Sends all blocks of a cycle, and meanwhile flushes the images they are in, as forgetting them
    /// needs both.
    async fn send_all(
        &self,
        peer: &dyn PeerEndpoint,
        begin: TransferBegin,
        pass: Pass,
        stop: &CancellationToken,
        slot: &Slot,
    ) -> Result<(Box<dyn Transfer>, Vec<DiskCommit>), ShipError> {
        let Pass::Sealed(tick) = pass else {
            unreachable!("initial replication has its own order")
        };
        let mut transfer = or_stop(stop, peer.begin(begin)).await?;
        let flush = self.blocking(move |shared| shared.flush_changed(tick));
        let send = self.pump(&mut *transfer, pass, stop, slot, None);
        let (sent, flushed) = tokio::join!(send, flush);
        let disks = sent?;
        flushed?;
        Ok((transfer, disks))
    }

    /// Sends what the replica needs before its first cycle: every block of the seed set. Can be
    /// repeated after any failure, and after a restart, and goes on where the last checkpoint was.
    ///
    /// # Errors
    /// As [`ShipError`] says; what was confirmed stays confirmed.
    pub async fn seed(
        &self,
        peer: &dyn PeerEndpoint,
        stop: &CancellationToken,
    ) -> Result<(), ShipError> {
        let slot = self.slot().await;
        if !self.needs_seed() {
            return Ok(());
        }
        let begin = self.shared.begin(TransferKind::Seed);
        let mut transfer = or_stop(stop, peer.begin(begin)).await?;
        let mut progress = SeedProgress::new(&self.shared);
        let disks = self
            .pump(&mut *transfer, Pass::Seed, stop, &slot, Some(&mut progress))
            .await?;
        let commit = TransferCommit {
            cut_at: self.shared.traffic.env.now(),
            consistency: Consistency::Crash,
            label: None,
            disks,
        };
        or_stop(stop, transfer.commit(commit)).await?;
        self.blocking(move |shared| {
            let _slot = slot;
            shared.finish_seed()
        })
        .await?;
        tracing::info!(group = %self.shared.group, "initial replication is complete");
        Ok(())
    }

    /// Runs the reader of a pass and hands its frames to the peer; joins the reader.
    async fn pump(
        &self,
        transfer: &mut dyn Transfer,
        pass: Pass,
        stop: &CancellationToken,
        slot: &Slot,
        progress: Option<&mut SeedProgress>,
    ) -> Result<Vec<DiskCommit>, ShipError> {
        let (pieces, mut incoming) = mpsc::channel(FRAMES_AHEAD);
        let stop_reading = stop.child_token();
        // Also when this future is dropped: the reader holds the slot until it ends.
        let _guard = stop_reading.clone().drop_guard();
        let reader = Reader {
            pass,
            disks: self.shared.disks.clone(),
            traffic: Arc::clone(&self.shared.traffic),
            pieces,
            stop: stop_reading.clone(),
        };
        let reader_slot = Arc::clone(slot);
        let reading = tokio::task::spawn_blocking(move || {
            let _slot = reader_slot;
            reader.run()
        });
        let sent = self
            .send_pieces(transfer, pass, &mut incoming, stop, progress)
            .await;
        stop_reading_if(sent.is_err(), &stop_reading);
        drop(incoming);
        let read = join(reading).await;
        sent?;
        read.map_err(|end| match end {
            ReadEnd::Stopped => ShipError::Stopped,
            ReadEnd::Abandoned => ShipError::Abandoned,
            ReadEnd::Disk(error) => ShipError::Disk(error),
        })
    }

    async fn send_pieces(
        &self,
        transfer: &mut dyn Transfer,
        pass: Pass,
        incoming: &mut mpsc::Receiver<Piece>,
        stop: &CancellationToken,
        mut progress: Option<&mut SeedProgress>,
    ) -> Result<(), ShipError> {
        while let Some(piece) = incoming.recv().await {
            let covered = covered_bytes(&piece.frame.extents);
            let (disk, done_below) = (piece.disk, piece.done_below);
            self.unless_given_up(pass, or_stop(stop, transfer.send(piece.frame)))
                .await?;
            self.shared.traffic.sent_bytes.fetch_add(covered, Relaxed);
            if let Some(progress) = &mut progress {
                progress.note(disk, done_below, covered);
                if progress.is_due(&self.shared) {
                    or_stop(stop, transfer.checkpoint()).await?;
                    self.confirm(progress).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits for `work`, unless the guest's writes make the cycle that is sent a lost cause.
    async fn unless_given_up(
        &self,
        pass: Pass,
        work: impl Future<Output = Result<(), ShipError>>,
    ) -> Result<(), ShipError> {
        let Pass::Sealed(tick) = pass else {
            return work.await;
        };
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.shared.traffic.gave_up.notified() => {
                    // The note may be about an earlier tick.
                    if !self.shared.traffic.is_unresolved(tick) {
                        return Err(ShipError::Abandoned);
                    }
                }
            }
        }
    }

    /// Lets go of what the peer has confirmed as durable.
    async fn confirm(&self, progress: &mut SeedProgress) -> Result<(), ShipError> {
        let ranges = progress.take_confirmed();
        self.blocking(move |shared| {
            for (disk, (first, end)) in shared.disks.iter().zip(ranges) {
                if first < end {
                    shared.forget_seeded(disk, first, end)?;
                }
            }
            Ok(())
        })
        .await
    }
}

impl Shared {
    fn begin(&self, kind: TransferKind) -> TransferBegin {
        TransferBegin {
            group: self.group,
            generation: locked(&self.control).generation,
            kind,
        }
    }

    fn start_sending(&self, asked: &SealedCycle) -> Result<(Sealed, TransferBegin), ShipError> {
        let mut control = locked(&self.control);
        let from = control.acknowledged;
        let sealed = match &mut control.sealed {
            Some(sealed) if sealed.cycle == asked.cycle && sealed.phase == Phase::Ready => {
                sealed.phase = Phase::Sending;
                *sealed
            }
            _ => return Err(ShipError::NotSealed { cycle: asked.cycle }),
        };
        drop(control);
        Ok((
            sealed,
            self.begin(TransferKind::Cycle {
                from,
                to: sealed.cycle,
            }),
        ))
    }

    fn set_phase(&self, phase: Phase) {
        if let Some(sealed) = &mut locked(&self.control).sealed {
            sealed.phase = phase;
        }
    }

    /// Flushes the images that have blocks in the sealed `tick`, whose writes are done.
    fn flush_changed(&self, tick: u64) -> Result<(), DiskError> {
        let changed = |d: &&Arc<Disk>| d.sets.of_tick(tick).count() > 0;
        self.disks
            .iter()
            .filter(changed)
            .try_for_each(|d| d.image.flush())
    }

    /// Takes blocks out of the seed set that are durable at the peer.
    fn forget_seeded(&self, disk: &Disk, first: u64, end: u64) -> Result<(), DiskError> {
        // Flushed first: what was read from memory and sent must not be lost here and forgotten.
        disk.image.flush()?;
        disk.sets.seed.remove_range(first, end);
        disk.map.save_progress(first, end)
    }

    fn finish_seed(&self) -> Result<(), DiskError> {
        for disk in &self.disks {
            disk.image.flush()?;
            disk.sets.seed.clear();
            // Durable before the first cycle: initial replication must not write into an image
            // that has recovery points.
            disk.map.seed_done()?;
        }
        locked(&self.control).seeding = false;
        Ok(())
    }
}

/// How far initial replication is within one transfer.
struct SeedProgress {
    /// For each disk: confirmed below this block, and sent below that one.
    disks: Vec<(u64, u64)>,
    sent_since: u64,
    last: Instant,
}

impl SeedProgress {
    fn new(shared: &Shared) -> Self {
        Self {
            disks: vec![(0, 0); shared.disks.len()],
            sent_since: 0,
            last: Instant::now(),
        }
    }

    fn note(&mut self, disk: usize, done_below: u64, covered: u64) {
        self.disks[disk].1 = done_below;
        self.sent_since += covered;
    }

    fn is_due(&self, shared: &Shared) -> bool {
        let waited: Duration = self.last.elapsed();
        self.sent_since >= shared.limits.seed_checkpoint_bytes
            || waited >= shared.limits.seed_checkpoint_interval
    }

    /// Ranges that all sent frames cover, as a checkpoint has just confirmed them.
    fn take_confirmed(&mut self) -> Vec<(u64, u64)> {
        let ranges = self.disks.clone();
        self.disks.iter_mut().for_each(|d| d.0 = d.1);
        self.sent_since = 0;
        self.last = Instant::now();
        ranges
    }
}

fn covered_bytes(extents: &[FrameExtent]) -> u64 {
    extents.iter().map(|e| e.length).sum()
}

fn check_answer(answer: Committed, cycle: Cycle, digest: Digest) -> Result<Committed, PeerError> {
    if answer.cycle == cycle && answer.digest == digest {
        return Ok(answer);
    }
    let has = answer.cycle;
    Err(PeerError::Failed {
        why: format!("it committed cycle {has} when asked for {cycle}, or another content"),
    })
}

fn stop_reading_if(failed: bool, token: &CancellationToken) {
    if failed {
        token.cancel();
    }
}

async fn or_stop<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, PeerError>>,
) -> Result<T, ShipError> {
    tokio::select! {
        () = stop.cancelled() => Err(ShipError::Stopped),
        done = work => Ok(done?),
    }
}
