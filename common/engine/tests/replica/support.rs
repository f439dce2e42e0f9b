//! A site with a replica on storage that can fail, and a source that knows what every point must show.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sitepair_disk::Image;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_engine::catalog::{Catalog, CatalogError, DiskRow, GroupRow, PointRow, SqliteCatalog};
use sitepair_engine::endpoint::{DataFrame, PeerError, Transfer, TransferDigest, cycle_digest};
use sitepair_engine::env::{Env, HostEnv};
use sitepair_engine::replica::{CommitRole, Existing, ReplicaError, ReplicaGroup, ReplicaSite};
use sitepair_model::ids::{Cycle, Digest, DiskId, GenId, GroupId, UnixMillis};
use sitepair_model::peer::{
    Committed, DiskCommit, FrameExtent, FrameExtentKind, ImageFormat, TransferBegin,
    TransferCommit, TransferKind,
};
use sitepair_model::point::Consistency;
use sitepair_model::retention::Retention;

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const GENERATION: GenId = GenId::from_bytes([0x61; 16]);
pub(crate) const GROUP: GroupId = GroupId::from_bytes([0x67; 16]);
/// The second disk ends in a short block.
pub(crate) const SIZES: [u64; 2] = [24 * BLOCK, 9 * BLOCK + 512];

pub(crate) fn disk_id(n: usize) -> DiskId {
    DiskId::from_bytes([u8::try_from(n).unwrap() + 1; 16])
}

/// Writes the cycle's number as role record; can be told to refuse.
#[derive(Default)]
pub(crate) struct Role {
    pub(crate) refuses: AtomicBool,
}

impl CommitRole for Role {
    fn commit(
        &self,
        cycle: Cycle,
        _digest: Digest,
        record: &mut dyn FnMut(&[u8]) -> Result<(), CatalogError>,
    ) -> Result<(), ReplicaError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(ReplicaError::NotAllowed {
                why: "the role changed".to_owned(),
            });
        }
        Ok(record(&cycle.0.to_le_bytes())?)
    }
}

/// One site: its storage, its catalogue, and the group's row.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) storage: FakeStorage,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) role: Arc<Role>,
    pub(crate) format: ImageFormat,
    pub(crate) keep_points: u32,
    pub(crate) env: Arc<Disk>,
}

/// The host's clocks, and a file system of some size of which journals take their part.
pub(crate) struct Disk {
    storage: Mutex<FakeStorage>,
    /// All of its bytes; none for a disk without an end.
    pub(crate) size_bytes: Mutex<Option<u64>>,
}

impl Env for Disk {
    fn now(&self) -> UnixMillis {
        HostEnv.now()
    }
    fn boot_millis(&self) -> u64 {
        HostEnv.boot_millis()
    }
    fn boot_id(&self) -> [u8; 16] {
        HostEnv.boot_id()
    }
    fn random_id(&self) -> [u8; 16] {
        HostEnv.random_id()
    }
    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let Some(size) = *self.size_bytes.lock().unwrap() else {
            return Ok(u64::MAX);
        };
        let storage = self.storage.lock().unwrap();
        let files = storage.list(folder)?;
        let taken = |file: &PathBuf| storage.content(file).map_or(0, |bytes| bytes.len() as u64);
        Ok(size.saturating_sub(files.iter().map(taken).sum()))
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let storage = FakeStorage::new();
        let env = Disk {
            storage: Mutex::new(storage.clone()),
            size_bytes: Mutex::new(None),
        };
        Self {
            env: Arc::new(env),
            storage,
            catalog: Arc::new(SqliteCatalog::in_memory().unwrap()),
            role: Arc::default(),
            format: ImageFormat::Raw,
            keep_points: 1000,
        }
    }

    /// The same site on what is left of its storage.
    pub(crate) fn on(&self, storage: FakeStorage) -> Self {
        *self.env.storage.lock().unwrap() = storage.clone();
        Self {
            storage,
            ..self.clone()
        }
    }

    pub(crate) fn site(&self) -> ReplicaSite {
        ReplicaSite {
            storage: Arc::new(self.storage.clone()),
            catalog: Arc::clone(&self.catalog),
            env: Arc::clone(&self.env) as _,
            state_dir: PathBuf::from("/state"),
            replica_dir: PathBuf::from("/replicas"),
        }
    }

    pub(crate) fn image_path(&self, disk: usize) -> PathBuf {
        let extension = if self.format == ImageFormat::Raw {
            "raw"
        } else {
            "vhdx"
        };
        PathBuf::from(format!("/replicas/web/disk{disk}.{extension}"))
    }

    pub(crate) fn journal(&self) -> PathBuf {
        Path::new("/state/journal").join(GROUP.to_string())
    }

    pub(crate) fn row(&self) -> GroupRow {
        let disk = |(n, size_bytes): (usize, &u64)| DiskRow {
            disk: disk_id(n),
            name: format!("disk{n}").parse().unwrap(),
            path: self.image_path(n),
            size_bytes: *size_bytes,
            format: self.format,
            logical_sector_bytes: 512,
            format_block_bytes: if self.format == ImageFormat::Raw {
                0
            } else {
                1 << 20
            },
            owned: false,
        };
        GroupRow {
            group: GROUP,
            name: "web".parse().unwrap(),
            interval_ms: 1000,
            retention: Retention::newest(self.keep_points),
            created_at: UnixMillis(0),
            settings: String::new(),
            disks: SIZES.iter().enumerate().map(disk).collect(),
        }
    }

    pub(crate) fn create(&self) -> Result<ReplicaGroup, ReplicaError> {
        self.create_with(Existing::Refuse)
    }

    pub(crate) fn create_with(&self, existing: Existing) -> Result<ReplicaGroup, ReplicaError> {
        let role = Arc::clone(&self.role) as Arc<dyn CommitRole>;
        ReplicaGroup::create(
            self.site(),
            &self.row(),
            existing,
            b"seeding",
            GENERATION,
            role,
        )
    }

    pub(crate) fn open(&self) -> Result<ReplicaGroup, ReplicaError> {
        let groups = self.catalog.groups()?;
        let mut row = groups
            .into_iter()
            .find(|g| g.group == GROUP)
            .expect("it was created");
        row.retention = Retention::newest(self.keep_points);
        let role = Arc::clone(&self.role) as Arc<dyn CommitRole>;
        ReplicaGroup::open(self.site(), &row, GENERATION, role)
    }

    pub(crate) fn base_point(cycle: u64) -> PointRow {
        PointRow {
            cycle: Cycle(cycle),
            generation: GENERATION,
            cut_at: UnixMillis(0),
            consistency: Consistency::Crash,
            label: None,
            pinned: false,
            digest: Digest::from_bytes([0; 32]),
            logs: Vec::new(),
        }
    }
}

/// Reproducible randomness (xorshift).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(crate) type Disks = Vec<Vec<u8>>;

/// A source that feeds frames and remembers its disks at every cut.
pub(crate) struct Source {
    pub(crate) rng: Rng,
    pub(crate) disks: Disks,
    pub(crate) cuts: BTreeMap<u64, Disks>,
}

impl Source {
    pub(crate) fn new(seed: u64) -> Self {
        let disks = SIZES
            .iter()
            .map(|s| vec![0; usize::try_from(*s).unwrap()])
            .collect();
        Self {
            rng: Rng::new(seed),
            disks,
            cuts: BTreeMap::new(),
        }
    }

    /// Changes some blocks of one disk, and gives the frame that says so.
    pub(crate) fn frame(&mut self, disk: usize) -> DataFrame {
        let size = SIZES[disk];
        let (mut extents, mut payload) = (Vec::new(), Vec::new());
        let mut at = self.rng.below(size.div_ceil(BLOCK)) * BLOCK;
        while at < size && extents.len() < 4 {
            let length = ((1 + self.rng.below(3)) * BLOCK).min(size - at);
            let kind = match self.rng.below(3) {
                0 => FrameExtentKind::Zero,
                _ => FrameExtentKind::Data,
            };
            let start = usize::try_from(at).unwrap();
            let bytes = &mut self.disks[disk][start..start + usize::try_from(length).unwrap()];
            match kind {
                FrameExtentKind::Zero => bytes.fill(0),
                FrameExtentKind::Data => {
                    let value = u8::try_from(self.rng.below(256)).unwrap();
                    bytes
                        .iter_mut()
                        .zip(0_u8..=255)
                        .for_each(|(b, i)| *b = value ^ i);
                    bytes[0] = value;
                    payload.extend_from_slice(bytes);
                }
            }
            extents.push(FrameExtent {
                offset: at,
                length,
                kind,
            });
            at += length + self.rng.below(3) * BLOCK;
        }
        data_frame(disk, extents, payload)
    }

    /// The frames of a cycle that changes some of the disks, or none; `cycle`'s cut is remembered.
    pub(crate) fn cycle(&mut self, cycle: u64) -> Vec<DataFrame> {
        let mut frames = Vec::new();
        for disk in 0..SIZES.len() {
            for _ in 0..self.rng.below(4) {
                frames.push(self.frame(disk));
            }
        }
        self.cuts.insert(cycle, self.disks.clone());
        frames
    }
}

pub(crate) fn data_frame(disk: usize, extents: Vec<FrameExtent>, payload: Vec<u8>) -> DataFrame {
    let payload = Bytes::from(payload);
    let hash = Digest::from_bytes(*blake3::hash(&payload).as_bytes());
    DataFrame {
        disk: disk_id(disk),
        extents,
        payload,
        hash,
    }
}

pub(crate) fn cycle_begin(from: u64, to: u64) -> TransferBegin {
    let kind = TransferKind::Cycle {
        from: Cycle(from),
        to: Cycle(to),
    };
    TransferBegin {
        group: GROUP,
        generation: GENERATION,
        kind,
    }
}

pub(crate) fn seed_begin() -> TransferBegin {
    TransferBegin {
        group: GROUP,
        generation: GENERATION,
        kind: TransferKind::Seed,
    }
}

pub(crate) fn commit_of(frames: &[DataFrame]) -> TransferCommit {
    let mut digests: BTreeMap<DiskId, TransferDigest> = BTreeMap::new();
    frames
        .iter()
        .for_each(|f| digests.entry(f.disk).or_default().add(f));
    let disks = digests
        .iter()
        .map(|(disk, digest)| DiskCommit {
            disk: *disk,
            digest: digest.digest(),
            covered_bytes: digest.covered_bytes(),
        })
        .collect();
    TransferCommit {
        cut_at: UnixMillis(77),
        consistency: Consistency::Crash,
        label: None,
        disks,
    }
}

pub(crate) async fn send_all(
    transfer: &mut Box<dyn Transfer>,
    frames: &[DataFrame],
) -> Result<(), PeerError> {
    for frame in frames {
        transfer.send(frame.clone()).await?;
    }
    Ok(())
}

/// Sends a whole cycle and commits it; its cut was so many seconds after 1970 as its number says.
pub(crate) async fn ship(
    group: &ReplicaGroup,
    from: u64,
    to: u64,
    frames: &[DataFrame],
) -> Result<Committed, PeerError> {
    let mut transfer = group.begin(cycle_begin(from, to)).await?;
    send_all(&mut transfer, frames).await?;
    let commit = TransferCommit {
        cut_at: UnixMillis(i64::try_from(to).unwrap() * 1000),
        ..commit_of(frames)
    };
    let committed = transfer.commit(commit.clone()).await?;
    assert_eq!(committed.cycle, Cycle(to));
    assert_eq!(committed.digest, cycle_digest(&commit.disks));
    Ok(committed)
}

/// Sends frames as initial replication, with a checkpoint at the end.
pub(crate) async fn seed(group: &ReplicaGroup, frames: &[DataFrame]) -> Result<(), PeerError> {
    let mut transfer = group.begin(seed_begin()).await?;
    send_all(&mut transfer, frames).await?;
    transfer.checkpoint().await?;
    transfer.commit(commit_of(frames)).await?;
    Ok(())
}

pub(crate) fn content(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(image.geometry().size_bytes).unwrap()];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Every kept point shows exactly what the source had at its cut.
pub(crate) fn assert_points(group: &ReplicaGroup, source: &Source) {
    for point in group.points() {
        let expected = &source.cuts[&point.cycle.0];
        for (n, disk) in expected.iter().enumerate() {
            let view = group.view(disk_id(n), point.cycle).unwrap();
            assert!(
                content(&*view) == *disk,
                "disk {n} at point {}",
                point.cycle
            );
            view.close().unwrap();
        }
    }
}

pub(crate) fn cycles(group: &ReplicaGroup) -> Vec<u64> {
    group.points().iter().map(|p| p.cycle.0).collect()
}

/// Files in the journal folder.
pub(crate) fn journal_files(world: &World) -> Vec<String> {
    let files = world.storage.list(&world.journal()).unwrap();
    files
        .iter()
        .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}
