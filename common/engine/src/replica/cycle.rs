//! Receives a cycle: frames become one change log per disk, and the commit makes them a point.
//!
//! A blocking thread writes what arrives, in order, and commits. It ends when it has committed or failed, or
//! when the transfer is dropped; then it removes what it wrote. Until the commit, files have
//! names of their own (`DISK.CYCLE.hrl.SESSION.part`), so that a voided transfer is in nobody's way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sitepair_model::ids::{Cycle, DiskId, UnixMillis};
use sitepair_model::peer::{Committed, TransferCommit};
use tokio::sync::{mpsc, oneshot};

use super::journal::{self, LogOrigin, LogWriter, PartFile};
use super::{Disk, Inner, ReplicaError, frame, lock};
use crate::catalog::{LogRow, PointRow};
use crate::endpoint::{DataFrame, PeerError, Transfer, TransferDigest, cycle_digest};

/// Frames that wait for the writing thread.
const QUEUE_FRAMES: usize = 8;

/// Room is looked for each time that so much was written.
const LOOK_BYTES: u64 = 16 << 20;

/// The receiving end of a cycle.
pub(super) struct CycleTransfer {
    orders: mpsc::Sender<Order>,
    failure: Arc<OnceLock<ReplicaError>>,
}

enum Order {
    Frame(DataFrame),
    Checkpoint(oneshot::Sender<()>),
    Commit(
        TransferCommit,
        oneshot::Sender<Result<Committed, PeerError>>,
    ),
}

impl CycleTransfer {
    /// Starts the writing thread; it ends with the transfer.
    pub(super) fn start(
        inner: Arc<Inner>,
        session: u64,
        received: Arc<AtomicU64>,
        cycle: Cycle,
    ) -> Self {
        let (orders, mut queue) = mpsc::channel(QUEUE_FRAMES);
        let failure = Arc::new(OnceLock::new());
        let writer = Writer {
            inner,
            session,
            received,
            cycle,
            disks: BTreeMap::new(),
            written_bytes: 0,
            looked_at_bytes: 0,
        };
        let told = Arc::clone(&failure);
        tokio::task::spawn_blocking(move || {
            let result = writer.run(&mut queue);
            if let Err(error) = result {
                told.set(error).ok();
            }
            // The reason is there before anybody can see that the queue is gone.
            drop(queue);
        });
        Self { orders, failure }
    }

    /// Why the writing thread has gone.
    fn failed(&self) -> PeerError {
        self.failure.get().unwrap_or(&ReplicaError::Voided).into()
    }

    async fn order(&self, order: Order) -> Result<(), PeerError> {
        self.orders.send(order).await.map_err(|_| self.failed())
    }
}

#[async_trait]
impl Transfer for CycleTransfer {
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError> {
        self.order(Order::Frame(frame)).await
    }

    /// Waits until the frames were written. They are durable once the cycle is committed, not before.
    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Checkpoint(done)).await?;
        if answer.await.is_ok() {
            return Ok(());
        }
        self.orders.closed().await;
        Err(self.failed())
    }

    async fn commit(self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Commit(commit, done)).await?;
        if let Ok(answer) = answer.await {
            return answer;
        }
        // It failed before it came to the order: it has said why by the time that its queue is gone.
        self.orders.closed().await;
        Err(self.failed())
    }
}

/// The writing thread of one transfer.
struct Writer {
    inner: Arc<Inner>,
    session: u64,
    received: Arc<AtomicU64>,
    cycle: Cycle,
    disks: BTreeMap<DiskId, Received>,
    /// Bytes that went into files, and how many had when room was looked for last.
    written_bytes: u64,
    looked_at_bytes: u64,
}

/// What arrived for one disk.
struct Received {
    digest: TransferDigest,
    log: LogWriter,
    part: PartFile,
}

impl Writer {
    /// Ends with a commit, a failure, or the transfer. When it answers, nothing of it is left.
    fn run(mut self, queue: &mut mpsc::Receiver<Order>) -> Result<(), ReplicaError> {
        loop {
            match queue.blocking_recv() {
                None => {
                    self.ended();
                    return Ok(());
                }
                Some(Order::Frame(frame)) => {
                    if let Err(error) = self.write(&frame) {
                        self.ended();
                        return Err(error);
                    }
                }
                Some(Order::Checkpoint(done)) => {
                    done.send(()).ok();
                }
                Some(Order::Commit(commit, done)) => {
                    let result = self.commit(&commit);
                    self.ended();
                    // Whether anybody still waits for the answer does not matter: it is committed.
                    done.send(result.map_err(PeerError::from)).ok();
                    return Ok(());
                }
            }
        }
    }

    fn ended(self) {
        self.inner.transfer_ended(self.session);
    }

    fn write(&mut self, frame: &DataFrame) -> Result<(), ReplicaError> {
        self.inner.check_session(self.session)?;
        let disk = self.inner.disk(frame.disk)?;
        frame::check(frame, disk.row.size_bytes)?;
        let received = match self.disks.entry(frame.disk) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Received::create(
                &self.inner,
                disk,
                self.cycle,
                self.session,
            )?),
        };
        for (extent, bytes) in frame::pieces(frame) {
            received.log.append(extent, bytes)?;
            self.received.fetch_add(extent.length, Ordering::Relaxed);
        }
        received.digest.add(frame);
        self.written_bytes += frame.payload.len() as u64;
        if self.written_bytes - self.looked_at_bytes >= LOOK_BYTES {
            self.looked_at_bytes = self.written_bytes;
            self.inner.check_free(self.written_bytes)?;
        }
        Ok(())
    }

    fn commit(&mut self, commit: &TransferCommit) -> Result<Committed, ReplicaError> {
        check_commit(
            self.disks.iter().map(|(disk, r)| (*disk, &r.digest)),
            commit,
        )?;
        let mut logs = Vec::with_capacity(self.disks.len());
        let mut parts = Vec::with_capacity(self.disks.len());
        for (disk, received) in std::mem::take(&mut self.disks) {
            let (log, part) = received.finish(disk, self.cycle, self.inner.site.env.now())?;
            logs.push(log);
            parts.push(part);
        }
        let inner = Arc::clone(&self.inner);
        let _still = lock(&inner.committing);
        // The files are given away: those that are not kept are gone before another transfer may use their names.
        self.commit_files(commit, logs, parts)
    }

    fn commit_files(
        &self,
        commit: &TransferCommit,
        logs: Vec<LogRow>,
        mut parts: Vec<PartFile>,
    ) -> Result<Committed, ReplicaError> {
        let inner = &*self.inner;
        inner.check_session(self.session)?;
        parts.iter_mut().try_for_each(PartFile::give_name)?;
        // Names before the transaction that mentions them: invariant 1.
        if !parts.is_empty() {
            journal::sync_dir(&*inner.site.storage, &inner.journal_dir)?;
        }
        let point = PointRow {
            cycle: self.cycle,
            generation: inner.state().generation,
            cut_at: commit.cut_at,
            consistency: commit.consistency,
            label: commit.label.clone(),
            pinned: false,
            digest: cycle_digest(&commit.disks),
            logs,
        };
        let result = inner.record(&point);
        if result.as_ref().err().is_none_or(may_be_committed) {
            parts.into_iter().for_each(PartFile::keep);
        }
        result.map(|()| Committed {
            cycle: point.cycle,
            digest: point.digest,
        })
    }
}

impl Inner {
    /// Commits a point together with the agent's role record. The caller holds `committing`.
    fn record(&self, point: &PointRow) -> Result<(), ReplicaError> {
        let mut recorded = false;
        let result = self.role.commit(point.cycle, point.digest, &mut |role| {
            self.site.catalog.commit_cycle(self.group, point, role)?;
            recorded = true;
            Ok(())
        });
        let mut state = self.state();
        if recorded {
            // It is durable, whatever the agent makes of it.
            state.logs.extend(point.logs.iter().cloned());
            state.points.push(point.clone());
            state.wanted_bytes = 0;
            drop(state);
            self.merge_due.notify_one();
        } else if result.as_ref().err().is_some_and(may_be_committed) {
            state.closed = Some("the catalogue failed; restart the agent");
        }
        match (recorded, result) {
            (true, _) => Ok(()),
            (false, Err(error)) => Err(error),
            (false, Ok(())) => Err(ReplicaError::NotAllowed {
                why: "no role record was given".to_owned(),
            }),
        }
    }
}

/// Whether the transaction that failed may turn out to be durable after a restart; its files must then be there.
fn may_be_committed(error: &ReplicaError) -> bool {
    matches!(error, ReplicaError::Catalog(e) if !e.changed_nothing())
}

impl Received {
    fn create(
        inner: &Inner,
        disk: &Disk,
        cycle: Cycle,
        session: u64,
    ) -> Result<Self, ReplicaError> {
        let part = PartFile::new(inner, &disk.row.name, cycle, session);
        let origin = LogOrigin::new(inner, disk, cycle)?;
        let log = LogWriter::create(&*inner.site.storage, part.path(), &origin)?;
        Ok(Self {
            digest: TransferDigest::default(),
            log,
            part,
        })
    }

    /// Seals the log and makes its content durable.
    fn finish(
        self,
        disk: DiskId,
        cycle: Cycle,
        now: UnixMillis,
    ) -> Result<(LogRow, PartFile), ReplicaError> {
        let covered_bytes = self.digest.covered_bytes();
        let sealed = self.log.finish(now)?;
        let row = LogRow {
            disk,
            cycle,
            file_name: self.part.final_name().to_owned(),
            file_bytes: sealed.file_bytes,
            file_hash: sealed.hash,
            covered_bytes,
        };
        Ok((row, self.part))
    }
}

/// Checks that a commit names exactly the disks that were received, with the same digests.
pub(super) fn check_commit<'a>(
    received: impl Iterator<Item = (DiskId, &'a TransferDigest)>,
    commit: &TransferCommit,
) -> Result<(), ReplicaError> {
    let mut sent: BTreeMap<_, _> = commit.disks.iter().map(|d| (d.disk, d)).collect();
    let bad = |why: String| Err(ReplicaError::BadCommit { why });
    if sent.len() != commit.disks.len() {
        return bad("a disk is named twice".to_owned());
    }
    for (disk, digest) in received {
        let Some(told) = sent.remove(&disk) else {
            return bad(format!("disk {disk} is not in it"));
        };
        if told.digest != digest.digest() || told.covered_bytes != digest.covered_bytes() {
            return bad(format!("disk {disk} has another digest or size"));
        }
    }
    match sent.keys().next() {
        None => Ok(()),
        Some(disk) => bad(format!("nothing was received for disk {disk}")),
    }
}
