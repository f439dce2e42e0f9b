//! The replica of a group: images, a journal of change logs above them, and the recovery points
//! that both make up.
//!
//! Owns: the group's image files while this site is its replica, and its journal folder
//! (`STATE_DIR/journal/GROUP_ID/`). Receives transfers of bulk data; gives out recovery points,
//! read-only views of them, and, once promoted, the images themselves.
//!
//! Does not do: roles. It is told its generation, and asks the agent for the role record to commit with
//! each cycle ([`CommitRole`]).
//!
//! # Invariants
//! 1. A cycle is committed by one transaction of the catalogue, after all of its files and their names are
//!    durable. Before it, nothing of the cycle counts; after it, all of it does.
//! 2. The state at a point is the image overlaid by all change logs of the journal up to its cycle, oldest first.
//! 3. An image changes only by initial replication, while there is no point, and by folding change logs
//!    up to the oldest point's cycle. So no fold changes what a point shows, and repeating one is harmless.
//! 4. A point is forgotten durably before the first fold that would change what it shows; a point in use is not forgotten.
//! 5. A change log is removed only after the flushed image, or a durable log of a later cycle, holds its content and
//!    the catalogue says so.
//! 6. A change log's content is checked against its strong hash before its first use in this process.
//! 7. One transfer at a time: a newer one voids the older, and starts only when nothing of the older is on
//!    its way into an image.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use sitepair_disk::storage::Storage;
use sitepair_disk::{DiskError, ErrorKind, Image};
use sitepair_model::ids::{Cycle, Digest, DiskId, GenId, GroupId, TestName, UnixMillis};
use sitepair_model::peer::{TransferBegin, TransferKind};
use sitepair_model::point::RecoveryPoint;
use sitepair_model::retention::Retention;
use tokio::sync::{Notify, Semaphore};

use crate::catalog::{Catalog, CatalogError, DiskRow, GroupRow, LogRow, PointRow, TestRow};
use crate::endpoint::{PeerError, Transfer};
use crate::env::Env;

mod change_log;
mod create;
mod cycle;
mod error;
mod frame;
mod images;
mod index;
mod journal;
mod merge;
mod note;
mod reader;
mod room;
mod seed;
mod test_failover;
mod thin;
mod view;

pub use change_log::{ChangeLog, LogPart};
pub use create::{Existing, finish_discards, image_path};
pub use error::ReplicaError;
pub use merge::PromotedImages;
pub use reader::PointReader;
pub use room::{Lack, Room, RoomState};
pub use test_failover::TestFailover;

/// Where a site keeps its replicas.
#[derive(Clone)]
pub struct ReplicaSite {
    /// The files.
    pub storage: Arc<dyn Storage>,
    /// What is known of them.
    pub catalog: Arc<dyn Catalog>,
    /// Times in change logs, for people.
    pub env: Arc<dyn Env>,
    /// Journals are below it.
    pub state_dir: PathBuf,
    /// Images without a path of their own are below it.
    pub replica_dir: PathBuf,
}

/// Commits cycles together with the agent's role record.
pub trait CommitRole: Send + Sync {
    /// The files of `cycle` are durable: makes the role record that names it, and passes it to
    /// `record` once, which commits both. The agent holds its role still meanwhile, and believes the cycle
    /// only when `record` said `Ok`. Called from a blocking thread.
    ///
    /// # Errors
    /// `record`'s, or [`ReplicaError::NotAllowed`] without having called it.
    fn commit(
        &self,
        cycle: Cycle,
        digest: Digest,
        record: &mut dyn FnMut(&[u8]) -> Result<(), CatalogError>,
    ) -> Result<(), ReplicaError>;
}

/// What a replica is doing, cheaply told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Recovery points.
    pub points: usize,
    /// Bytes of change logs that are not merged yet, and how many there may be.
    pub room: Room,
    /// Cut of the newest point by the source's clock.
    pub newest_cut_at: Option<UnixMillis>,
    /// Bytes that the transfer under way has covered, zeros included.
    pub receiving_bytes: Option<u64>,
}

/// The replica of one group. Clones are the same replica.
#[derive(Clone)]
pub struct ReplicaGroup {
    inner: Arc<Inner>,
}

struct Inner {
    site: ReplicaSite,
    group: GroupId,
    journal_dir: PathBuf,
    disks: Vec<Disk>,
    role: Arc<dyn CommitRole>,
    retention: Mutex<Retention>,
    state: Mutex<State>,
    /// Held while a cycle is committed, and while a transfer begins.
    committing: Mutex<()>,
    /// Held while change logs are folded.
    folding: Mutex<()>,
    /// Held while something is noted about a point.
    noting: Mutex<()>,
    /// Read-held while a view opens its change logs, write-held while the journal lets some go.
    log_files: RwLock<()>,
    merge_due: Notify,
    /// The room that was last logged.
    told: Mutex<RoomState>,
    /// One permit for each write of initial replication that is on its way.
    seed_writes: Arc<Semaphore>,
}

struct Disk {
    row: DiskRow,
    /// None between a failure and the file's being opened anew.
    image: RwLock<Option<Arc<dyn Image>>>,
    /// A flush failed: the file must be opened anew before it is used again.
    failed: AtomicBool,
}

struct State {
    generation: GenId,
    /// Oldest first.
    points: Vec<PointRow>,
    /// By cycle; also those of forgotten points, until they are folded.
    logs: Vec<LogRow>,
    /// Points in use, and how many times: by views, and by tests whether or not they are open.
    pins: BTreeMap<Cycle, usize>,
    tests: BTreeMap<TestName, TestRow>,
    readers: reader::Readers,
    /// Change logs that were checked against their hash.
    verified: HashSet<String>,
    /// Number of the transfer that counts.
    session: u64,
    received: Option<Arc<AtomicU64>>,
    closed: Option<&'static str>,
    /// What a cycle that found too little room would need at least, until one is committed.
    wanted_bytes: u64,
}

impl State {
    fn committed(&self) -> Cycle {
        self.points.last().map_or(Cycle::NONE, |p| p.cycle)
    }
}

impl ReplicaGroup {
    /// Opens the replica of a group after a restart: drops what was not committed, checks that what was
    /// is there. Blocks.
    ///
    /// # Errors
    /// `DamagedLog` for a change log that is missing or cut short; those of the images' files.
    pub fn open(
        site: ReplicaSite,
        group: &GroupRow,
        generation: GenId,
        role: Arc<dyn CommitRole>,
    ) -> Result<Self, ReplicaError> {
        let disks = group
            .disks
            .iter()
            .map(|row| images::open(&site.storage, row).map(|image| Disk::new(row, image)))
            .collect::<Result<Vec<_>, _>>()?;
        Self::with_disks(site, group, disks, generation, role)
    }

    /// Makes a replica of what was the source, after a planned failover: the images as they are become the
    /// point `base`, and nothing is copied. The images must be closed. Repeating it is harmless: a journal that
    /// is at `base` or past it is left as it is, since cycles are never reused. Blocks.
    ///
    /// # Errors
    /// As [`open`](Self::open), and the catalogue's.
    pub fn adopt(
        site: ReplicaSite,
        group: &GroupRow,
        base: &PointRow,
        generation: GenId,
        role: Arc<dyn CommitRole>,
    ) -> Result<Self, ReplicaError> {
        let newest = site.catalog.points(group.group)?.pop();
        if newest.is_none_or(|newest| newest.cycle < base.cycle) {
            site.catalog.reset_journal(group.group, base)?;
        }
        Self::open(site, group, generation, role)
    }

    fn with_disks(
        site: ReplicaSite,
        group: &GroupRow,
        disks: Vec<Disk>,
        generation: GenId,
        role: Arc<dyn CommitRole>,
    ) -> Result<Self, ReplicaError> {
        let journal_dir = journal::dir(&site.state_dir, group.group);
        let points = site.catalog.points(group.group)?;
        let logs = site.catalog.logs(group.group)?;
        journal::recover(&*site.storage, &journal_dir, &logs)?;
        let tests = test_failover::recover(&site, group.group)?;
        let mut pins = BTreeMap::new();
        for test in tests.values() {
            *pins.entry(test.cycle).or_default() += 1;
        }
        let state = State {
            generation,
            points,
            logs,
            pins,
            tests,
            readers: reader::Readers::default(),
            verified: HashSet::new(),
            session: 0,
            received: None,
            closed: None,
            wanted_bytes: 0,
        };
        let inner = Inner {
            site,
            group: group.group,
            journal_dir,
            disks,
            role,
            retention: Mutex::new(group.retention.clone()),
            state: Mutex::new(state),
            committing: Mutex::new(()),
            folding: Mutex::new(()),
            noting: Mutex::new(()),
            log_files: RwLock::new(()),
            merge_due: Notify::new(),
            told: Mutex::new(RoomState::Enough),
            seed_writes: Arc::new(Semaphore::new(SEED_WRITES)),
        };
        // A merge may have been interrupted.
        inner.merge_due.notify_one();
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Opens a transfer and voids the one before it.
    ///
    /// # Errors
    /// `Refused` for another group or generation, for a cycle that does not follow the last committed one, and
    /// for initial replication once there is a point; `Failed` when a damaged image cannot be opened anew.
    pub async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        let inner = Arc::clone(&self.inner);
        let kind = begin.kind;
        let (session, received) = blocking(move || inner.admit(&begin)).await?;
        // Writes of an older transfer that passed its check end before ours start: invariant 7.
        self.inner.drain_seed_writes().await?;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.reopen_failed_images()).await?;
        let inner = Arc::clone(&self.inner);
        Ok(match kind {
            TransferKind::Seed => Box::new(seed::SeedTransfer::new(inner, session, received)),
            TransferKind::Cycle { to, .. } | TransferKind::Resync { to, .. } => {
                Box::new(cycle::CycleTransfer::start(inner, session, received, to))
            }
        })
    }

    /// The recovery points, oldest first.
    #[must_use]
    pub fn points(&self) -> Vec<RecoveryPoint> {
        self.inner
            .state()
            .points
            .iter()
            .map(PointRow::recovery_point)
            .collect()
    }

    /// The newest committed cycle with its digest.
    #[must_use]
    pub fn committed(&self) -> Option<(Cycle, Digest)> {
        self.inner
            .state()
            .points
            .last()
            .map(|p| (p.cycle, p.digest))
    }

    /// What the replica is doing.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let state = self.inner.state();
        ReplicaStatus {
            points: state.points.len(),
            room: self.inner.room(&state),
            newest_cut_at: state.points.last().map(|p| p.cut_at),
            receiving_bytes: state.received.as_ref().map(|r| r.load(Ordering::Relaxed)),
        }
    }

    /// Changes what is kept; the next merge goes by it.
    pub fn set_retention(&self, retention: Retention) {
        *lock(&self.inner.retention) = retention;
        self.inner.merge_due.notify_one();
    }

    /// Follows the source into another generation that goes on from the last committed cycle here. Voids the
    /// transfer under way.
    pub fn set_generation(&self, generation: GenId) {
        let _still = lock(&self.inner.committing);
        let mut state = self.inner.state();
        state.generation = generation;
        state.end_transfer();
    }

    /// Reads all change logs and checks them against their hashes. Blocks. Gives the damaged ones.
    #[must_use]
    pub fn scrub(&self) -> Vec<ReplicaError> {
        let logs = self.inner.state().logs.clone();
        logs.iter()
            .filter_map(|row| self.inner.scrub_log(row).err())
            .collect()
    }

    /// Ends the replica until it is opened anew: voids the transfer under way, waits for a commit or a merge, and
    /// leaves the images as after a clean shutdown. Views that are still open fail from then on. Blocks.
    ///
    /// # Errors
    /// The first image's that cannot be flushed or closed; the others are closed all the same.
    pub fn close(&self) -> Result<(), ReplicaError> {
        let inner = &*self.inner;
        self.end_readers();
        let _one = lock(&inner.folding);
        let _still = lock(&inner.committing);
        {
            let mut state = inner.state();
            state.closed = Some("the agent stops");
            state.end_transfer();
        }
        inner.close_images()
    }

    /// Ends the replica for good: forgets the group, removes its journal, and with `DeleteImages` the image
    /// files that we created. Blocks.
    ///
    /// # Errors
    /// `InUse` while a point is in use; the catalogue's. Files that cannot be removed now go at the next
    /// [`finish_discards`].
    pub fn remove(&self, images: RemoveImages) -> Result<(), ReplicaError> {
        create::remove(&self.inner, images)
    }
}

/// What becomes of image files when their group is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveImages {
    /// They stay.
    Keep,
    /// Those that we created are removed.
    DeleteOwned,
}

impl State {
    /// Voids the transfer under way.
    fn end_transfer(&mut self) {
        self.session += 1;
        self.received = None;
    }
}

impl Disk {
    fn new(row: &DiskRow, image: Arc<dyn Image>) -> Self {
        Self {
            row: row.clone(),
            image: RwLock::new(Some(image)),
            failed: AtomicBool::new(false),
        }
    }

    fn image(&self) -> Result<Arc<dyn Image>, ReplicaError> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image.clone().ok_or(ReplicaError::Closed {
            why: "an image of it is not open",
        })
    }

    fn close(&self) -> Result<(), ReplicaError> {
        let image = self
            .image
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        image.map_or(Ok(()), |image| {
            image
                .close()
                .map_err(|e| ReplicaError::disk(format!("close {}", self.row.path.display()), e))
        })
    }

    /// Flushes the image; a failure makes the next transfer or merge open it anew.
    fn flush(&self) -> Result<(), ReplicaError> {
        self.image()?.flush().map_err(|e| {
            self.failed.store(true, Ordering::Release);
            ReplicaError::disk(format!("flush {}", self.row.path.display()), e)
        })
    }

    /// A failed write, as an error; notes whether the image must be opened anew.
    fn write_failed(&self, source: DiskError) -> ReplicaError {
        if source.kind() == ErrorKind::Poisoned {
            self.failed.store(true, Ordering::Release);
        }
        ReplicaError::disk(format!("write to {}", self.row.path.display()), source)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn disk(&self, disk: DiskId) -> Result<&Disk, ReplicaError> {
        self.disks
            .iter()
            .find(|d| d.row.disk == disk)
            .ok_or(ReplicaError::UnknownDisk { disk })
    }

    /// Closes all images, and tells of the first failure. Writes of initial replication see that their transfer
    /// is void, or hold the image until they are done.
    fn close_images(&self) -> Result<(), ReplicaError> {
        let closed: Vec<_> = self.disks.iter().map(Disk::close).collect();
        closed.into_iter().collect()
    }

    fn log_path(&self, file_name: &str) -> PathBuf {
        self.journal_dir.join(file_name)
    }

    /// Checks a transfer against what is here, and makes it the one that counts.
    fn admit(&self, begin: &TransferBegin) -> Result<(u64, Arc<AtomicU64>), ReplicaError> {
        // A commit that is under way is in the catalogue, or failed, before we compare.
        let _still = lock(&self.committing);
        let mut state = self.state();
        if let Some(why) = state.closed {
            return Err(ReplicaError::Closed { why });
        }
        if begin.group != self.group || begin.generation != state.generation {
            return Err(ReplicaError::WrongGeneration);
        }
        match begin.kind {
            TransferKind::Seed if !state.points.is_empty() => {
                return Err(ReplicaError::AlreadySeeded);
            }
            TransferKind::Seed => {}
            TransferKind::Cycle { from, to } => {
                state.follows(from, to)?;
                self.check_room(&state)?;
            }
            // It is for a replica of another generation, and ours is the sender's.
            TransferKind::Resync { .. } => return Err(ReplicaError::WrongGeneration),
        }
        state.end_transfer();
        let received = Arc::new(AtomicU64::new(0));
        state.received = Some(Arc::clone(&received));
        Ok((state.session, received))
    }

    fn check_session(&self, session: u64) -> Result<(), ReplicaError> {
        if self.state().session == session {
            Ok(())
        } else {
            Err(ReplicaError::Voided)
        }
    }

    /// The transfer is over, unless a newer one took its place.
    fn transfer_ended(&self, session: u64) {
        let mut state = self.state();
        if state.session == session {
            state.received = None;
        }
    }

    async fn drain_seed_writes(&self) -> Result<(), ReplicaError> {
        let all = u32::try_from(SEED_WRITES).expect("a few");
        let permits = self.seed_writes.acquire_many(all).await;
        permits.map(drop).map_err(|_| ReplicaError::Voided)
    }

    fn reopen_failed_images(&self) -> Result<(), ReplicaError> {
        for disk in &self.disks {
            if !disk.failed.load(Ordering::Acquire) {
                continue;
            }
            let mut image = disk.image.write().unwrap_or_else(PoisonError::into_inner);
            // The file is locked by the old handle: it goes first.
            *image = None;
            *image = Some(images::open(&self.site.storage, &disk.row)?);
            disk.failed.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl State {
    fn follows(&self, from: Cycle, to: Cycle) -> Result<(), ReplicaError> {
        let committed = self.committed();
        match self.points.last() {
            Some(newest) if to == newest.cycle => Err(ReplicaError::AlreadyCommitted {
                cycle: newest.cycle,
                digest: newest.digest,
            }),
            _ if from == committed && to > from => Ok(()),
            _ => Err(ReplicaError::WrongCycle {
                from,
                to,
                committed,
            }),
        }
    }
}

/// Locks; a panic of another holder does not make what is behind it unusable, since every change of it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file work off the async runtime; it goes on to its end even when nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(ReplicaError::Closed {
            why: "the agent is stopping",
        }),
    }
}

/// Writes of initial replication on their way into images of one group at a time: enough to keep two cores and
/// a disk busy, few enough that memory stays at as many frames.
const SEED_WRITES: usize = 4;
