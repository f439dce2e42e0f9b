//! Tests of a whole source: real images and maps on a storage in memory, and a peer that keeps
//! what it is sent as plain bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::{DiskError, Image};
use sitepair_model::ids::{Cycle, Digest, DiskId, GenId, GroupId, OpId, UnixMillis};
use sitepair_model::peer::{
    Committed, DiskCommit, FrameExtentKind, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin,
    TransferCommit, TransferKind,
};
use sitepair_model::point::Consistency;
use sitepair_model::retention::Retention;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::endpoint::{
    DataFrame, FRAME_EXTENTS_MAX, FRAME_PAYLOAD_MAX, PeerEndpoint, PeerError, Transfer,
    TransferDigest, cycle_digest,
};
use crate::env::Env;
use crate::locked;

mod crash;
mod cut;
mod cycles;
mod seed;

const BLOCK: usize = 4096;
const ZONE_BYTES: u64 = 4 << 20;
const GROUP: GroupId = GroupId::from_bytes([9; 16]);
const GENERATION: GenId = GenId::from_bytes([8; 16]);

fn disk_id(number: u8) -> DiskId {
    DiskId::from_bytes([number; 16])
}

/// A clock that moves when it is looked at.
#[derive(Default)]
struct TestEnv(AtomicI64);

impl Env for TestEnv {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.fetch_add(1, SeqCst) + 1)
    }
    fn boot_millis(&self) -> u64 {
        0
    }
    fn boot_id(&self) -> [u8; 16] {
        [0; 16]
    }
    fn random_id(&self) -> [u8; 16] {
        [0; 16]
    }
    fn free_bytes(&self, _: &Path) -> std::io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// What happens to the commit of the next cycle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CommitFate {
    Answered,
    LostBefore,
    LostAfter,
}

type Hook = Box<dyn Fn(&DataFrame) + Send + Sync>;

/// The other site: applies what is committed, checks what it is told.
#[derive(Clone)]
struct Peer(Arc<PeerState>);

struct PeerState {
    disks: Mutex<BTreeMap<DiskId, Vec<u8>>>,
    committed: Mutex<(Cycle, Option<Digest>)>,
    fate: Mutex<CommitFate>,
    /// Called for each frame before it is taken.
    on_frame: Mutex<Option<Hook>>,
    /// Frames wait while this is false.
    flowing: watch::Sender<bool>,
    seeded_bytes: AtomicU64,
    fail_after_frames: AtomicU64,
    checkpoints: AtomicU64,
}

impl Peer {
    fn new(sizes: &[u64]) -> Self {
        let disks = (1u8..).zip(sizes);
        let zeros = |size: u64| vec![0; usize::try_from(size).unwrap()];
        Self(Arc::new(PeerState {
            disks: Mutex::new(disks.map(|(n, size)| (disk_id(n), zeros(*size))).collect()),
            committed: Mutex::new((Cycle::NONE, None)),
            fate: Mutex::new(CommitFate::Answered),
            on_frame: Mutex::new(None),
            flowing: watch::Sender::new(true),
            seeded_bytes: AtomicU64::new(0),
            fail_after_frames: AtomicU64::new(u64::MAX),
            checkpoints: AtomicU64::new(0),
        }))
    }

    fn cycle(&self) -> Cycle {
        locked(&self.0.committed).0
    }

    fn digest(&self) -> Option<Digest> {
        locked(&self.0.committed).1
    }

    fn content(&self, number: u8) -> Vec<u8> {
        locked(&self.0.disks)[&disk_id(number)].clone()
    }

    fn fate(&self, fate: CommitFate) {
        *locked(&self.0.fate) = fate;
    }

    fn on_frame(&self, hook: impl Fn(&DataFrame) + Send + Sync + 'static) {
        *locked(&self.0.on_frame) = Some(Box::new(hook));
    }

    fn no_hook(&self) {
        *locked(&self.0.on_frame) = None;
    }
}

struct PeerTransfer {
    peer: Peer,
    kind: TransferKind,
    frames: Vec<DataFrame>,
}

fn link(why: &str) -> PeerError {
    PeerError::Link {
        why: why.to_owned(),
    }
}

#[async_trait]
impl Transfer for PeerTransfer {
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError> {
        check_frame(&frame);
        let state = &self.peer.0;
        state
            .flowing
            .subscribe()
            .wait_for(|flowing| *flowing)
            .await
            .unwrap();
        if state.fail_after_frames.fetch_sub(1, SeqCst) == 0 {
            return Err(link("cut by the test"));
        }
        if let Some(hook) = &*locked(&state.on_frame) {
            hook(&frame);
        }
        if self.kind == TransferKind::Seed {
            state
                .seeded_bytes
                .fetch_add(frame.extents.iter().map(|e| e.length).sum(), SeqCst);
            apply(&mut locked(&state.disks), &frame);
        }
        self.frames.push(frame);
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        self.peer.0.checkpoints.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn commit(self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        let disks = digests(&self.frames);
        assert_eq!(
            sorted(commit.disks),
            sorted(disks.clone()),
            "both ends agree on the digests"
        );
        let TransferKind::Cycle { to, .. } = self.kind else {
            return Ok(Committed {
                cycle: Cycle::NONE,
                digest: cycle_digest(&disks),
            });
        };
        let state = &self.peer.0;
        let fate = *locked(&state.fate);
        if fate == CommitFate::LostBefore {
            return Err(link("before the commit arrived"));
        }
        let digest = cycle_digest(&disks);
        for frame in &self.frames {
            apply(&mut locked(&state.disks), frame);
        }
        *locked(&state.committed) = (to, Some(digest));
        match fate {
            CommitFate::Answered => Ok(Committed { cycle: to, digest }),
            _ => Err(link("before the answer arrived")),
        }
    }
}

fn sorted(mut disks: Vec<DiskCommit>) -> Vec<DiskCommit> {
    disks.sort_by_key(|d| d.disk);
    disks
}

fn digests(frames: &[DataFrame]) -> Vec<DiskCommit> {
    let mut all: BTreeMap<DiskId, TransferDigest> = BTreeMap::new();
    frames
        .iter()
        .for_each(|f| all.entry(f.disk).or_default().add(f));
    let commit = |(disk, digest): (&DiskId, &TransferDigest)| DiskCommit {
        disk: *disk,
        digest: digest.digest(),
        covered_bytes: digest.covered_bytes(),
    };
    all.iter().map(commit).collect()
}

fn check_frame(frame: &DataFrame) {
    assert!(!frame.extents.is_empty() && frame.extents.len() <= FRAME_EXTENTS_MAX);
    assert!(frame.payload.len() <= FRAME_PAYLOAD_MAX);
    assert_eq!(
        frame.hash.as_bytes(),
        blake3::hash(&frame.payload).as_bytes()
    );
    let data = frame
        .extents
        .iter()
        .filter(|e| e.kind == FrameExtentKind::Data);
    assert_eq!(
        data.map(|e| e.length).sum::<u64>(),
        frame.payload.len() as u64
    );
    for pair in frame.extents.windows(2) {
        assert!(
            pair[0].offset + pair[0].length <= pair[1].offset,
            "ascending, without overlap"
        );
    }
}

fn apply(disks: &mut BTreeMap<DiskId, Vec<u8>>, frame: &DataFrame) {
    let disk = disks.get_mut(&frame.disk).unwrap();
    let mut payload = &frame.payload[..];
    for extent in &frame.extents {
        let from = usize::try_from(extent.offset).unwrap();
        let length = usize::try_from(extent.length).unwrap();
        let target = &mut disk[from..from + length];
        match extent.kind {
            FrameExtentKind::Zero => target.fill(0),
            FrameExtentKind::Data => {
                let (now, rest) = payload.split_at(length);
                target.copy_from_slice(now);
                payload = rest;
            }
        }
    }
}

#[async_trait]
impl PeerEndpoint for Peer {
    async fn hello(&self, _: Hello) -> Result<HelloAnswer, PeerError> {
        Err(link("not part of these tests"))
    }
    async fn offer(&self, _: GroupOffer) -> Result<(), PeerError> {
        Err(link("not part of these tests"))
    }
    async fn settle(&self, _: GroupId, _: Retention) -> Result<Retention, PeerError> {
        Err(link("not part of these tests"))
    }
    async fn withdraw(&self, _: GroupId, _: bool) -> Result<(), PeerError> {
        Err(link("not part of these tests"))
    }
    async fn grant(&self, _: Grant) -> Result<OpId, PeerError> {
        Err(link("not part of these tests"))
    }
    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        assert_eq!((begin.group, begin.generation), (GROUP, GENERATION));
        if let TransferKind::Cycle { from, to } = begin.kind {
            assert_eq!(
                from,
                self.cycle(),
                "a cycle builds on the last committed one"
            );
            assert!(to > from);
        }
        Ok(Box::new(PeerTransfer {
            peer: self.clone(),
            kind: begin.kind,
            frames: Vec::new(),
        }))
    }
}

/// A group of disks on a storage.
struct Rig {
    storage: FakeStorage,
    group: Arc<SourceGroup>,
    images: Vec<Arc<dyn Image>>,
}

fn path(number: usize) -> PathBuf {
    PathBuf::from(format!("/disk{number}.raw"))
}

fn map_path(number: usize) -> PathBuf {
    PathBuf::from(format!("/disk{number}.raw.map"))
}

fn options(storage: &FakeStorage, acknowledged: Cycle, limits: Limits) -> SourceOptions {
    SourceOptions {
        group: GROUP,
        generation: GENERATION,
        acknowledged,
        limits,
        env: Arc::new(TestEnv::default()),
        storage: Arc::new(storage.clone()),
    }
}

fn small() -> Limits {
    Limits {
        hot_zones_max: 2,
        ..Limits::default()
    }
}

impl Rig {
    /// New disks of these sizes, with the guest let in.
    fn new(sizes: &[u64], fresh: Fresh, limits: Limits) -> Self {
        let storage = FakeStorage::new();
        for (number, size) in (1..).zip(sizes) {
            RawImage::create(&storage, &path(number), *size).unwrap();
        }
        Self::open(storage, sizes.len(), fresh, Cycle::NONE, limits).unwrap()
    }

    fn open(
        storage: FakeStorage,
        disks: usize,
        fresh: Fresh,
        acknowledged: Cycle,
        limits: Limits,
    ) -> Result<Self, SourceError> {
        let mut images: Vec<Arc<dyn Image>> = Vec::new();
        let mut opened = Vec::new();
        for number in 1..=disks {
            let image: Arc<dyn Image> =
                Arc::new(RawImage::open_whatever_it_holds(&storage, &path(number), false).unwrap());
            images.push(Arc::clone(&image));
            opened.push(SourceDisk {
                disk: disk_id(u8::try_from(number).unwrap()),
                name: format!("disk{number}").parse().unwrap(),
                image,
                image_path: path(number),
                fresh,
            });
        }
        let group = SourceGroup::open(options(&storage, acknowledged, limits), opened)?;
        group.admit();
        Ok(Self {
            storage,
            group,
            images,
        })
    }

    /// The same disks after this process is gone and `storage` is what it left.
    fn reopen(self, storage: FakeStorage, acknowledged: Cycle, limits: Limits) -> Self {
        let disks = self.images.len();
        drop(self);
        Self::open(storage, disks, Fresh::Resume, acknowledged, limits).unwrap()
    }

    fn guest(&self, number: u8) -> Arc<dyn Image> {
        self.group.tracked(disk_id(number)).unwrap()
    }

    fn write(&self, number: u8, block: u64, value: u8) -> Result<(), DiskError> {
        self.guest(number)
            .write_at(&[value; BLOCK], block * BLOCK as u64, false)
    }

    fn content(&self, number: u8) -> Vec<u8> {
        content_of(&*self.images[usize::from(number) - 1])
    }

    async fn cut(&self) -> SealedCycle {
        let info = CutInfo {
            at: UnixMillis(5),
            consistency: Consistency::Crash,
            label: None,
        };
        self.group.cut(info).await.unwrap()
    }

    async fn ship(&self, peer: &Peer, sealed: &SealedCycle) -> Result<Committed, ShipError> {
        self.group
            .ship(peer, sealed, &CancellationToken::new())
            .await
    }

    async fn replicate(&self, peer: &Peer) -> Committed {
        let sealed = self.cut().await;
        self.ship(peer, &sealed).await.unwrap()
    }

    fn assert_equal(&self, peer: &Peer) {
        for number in 1..=u8::try_from(self.images.len()).unwrap() {
            assert!(
                self.content(number) == peer.content(number),
                "disk {number} differs"
            );
        }
    }
}

fn content_of(image: &dyn Image) -> Vec<u8> {
    let size = usize::try_from(image.geometry().size_bytes).unwrap();
    let mut content = vec![0; size];
    image.read_at(&mut content, 0).unwrap();
    content
}

/// A small generator of random numbers: schedules are replayed from their seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn holds(storage: &FakeStorage, path: &Path) -> bool {
    storage.content(path).is_ok()
}
