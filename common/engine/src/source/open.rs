//! Opens a group's disks for a source: what is dirty at the start, and whether that can be trusted.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sitepair_disk::storage::Storage;
use sitepair_disk::{DiskError, ExtentKind, Image};
use sitepair_model::extent::Extent;
use sitepair_model::ids::{Cycle, DiskId, DiskName, GenId, GroupId};

use super::disk::{Disk, Traffic, beside};
use super::group::SourceError;
use super::map::{ChangeMap, DirtySets, MapStart};
use super::map_format::{Header, Layout};
use super::map_load::{Expected, load};
use super::preserve::PreserveStore;
use crate::blocks::locks::RangeLocks;
use crate::blocks::set::BlockSet;
use crate::env::Env;

/// What a source may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory for blocks that the guest overwrites before they are sent, per group.
    pub preserve_memory_bytes: u64,
    /// Space in spill files for the same, once memory is used up.
    pub preserve_spill_bytes: u64,
    /// Zones of 4 MiB per disk that may be hot; what a crash makes us send again is at most these.
    pub hot_zones_max: u64,
    /// Initial replication makes its progress durable after so many bytes...
    pub seed_checkpoint_bytes: u64,
    /// ... or so much time.
    pub seed_checkpoint_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            preserve_memory_bytes: 64 << 20,
            preserve_spill_bytes: 1 << 30,
            hot_zones_max: 4096,
            seed_checkpoint_bytes: 256 << 20,
            seed_checkpoint_interval: Duration::from_secs(10),
        }
    }
}

/// What a group's source is opened with.
#[derive(Clone)]
pub struct SourceOptions {
    /// The group.
    pub group: GroupId,
    /// The generation in which this site is source.
    pub generation: GenId,
    /// The last cycle that the replica is known to have committed.
    pub acknowledged: Cycle,
    /// What may be used up.
    pub limits: Limits,
    /// Clock.
    pub env: Arc<dyn Env>,
    /// Where change maps and spill files are.
    pub storage: Arc<dyn Storage>,
}

/// One disk of a group that is opened.
pub struct SourceDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its name, for people.
    pub name: DiskName,
    /// Its open image.
    pub image: Arc<dyn Image>,
    /// The image's file: the change map is beside it, as `IMAGE.map`.
    pub image_path: PathBuf,
    /// What the replica has of it.
    pub fresh: Fresh,
}

/// What is known about the replica of a disk that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// It has zeros: all allocated blocks are to be sent.
    Seed,
    /// It is equal, as after a hand-over: nothing is to be sent.
    InStep,
    /// The change map says.
    Resume,
}

/// A disk that was opened, and what was found.
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) acknowledged: Cycle,
    pub(super) seeding: bool,
    /// Why everything counts as dirty although the map should have known.
    pub(super) distrusted: Option<String>,
}

/// The tick that a newly opened group is in.
pub(super) const FIRST_TICK: u64 = 1;

/// Opens one disk; blocks.
pub(super) fn open_disk(
    options: &SourceOptions,
    traffic: &Traffic,
    source: SourceDisk,
) -> Result<Opened, SourceError> {
    let name = source.name.clone();
    let io = |what: &'static str| {
        let disk = name.clone();
        move |source: io::Error| SourceError::Open { disk, what, source }
    };
    let spill = beside(&source.image_path, ".spill");
    let preserved = PreserveStore::new(
        Arc::clone(&options.storage),
        spill,
        Arc::clone(&traffic.budget),
    )
    .map_err(io("spill file"))?;
    let size_bytes = source.image.geometry().size_bytes;
    let layout = Layout::new(size_bytes);
    let sets = Arc::new(DirtySets::new(layout.blocks));
    let begin = MapBegin {
        options,
        source: &source,
        size_bytes,
        layout,
        sets: &sets,
    };
    let (map, start) = match source.fresh {
        Fresh::Seed => {
            mark_allocated(&*source.image, size_bytes, &sets.seed).map_err(on_disk(&name))?;
            (
                begin.create(true).map_err(io("new change map"))?,
                Start::fresh(true),
            )
        }
        Fresh::InStep => (
            begin.create(false).map_err(io("new change map"))?,
            Start::fresh(false),
        ),
        Fresh::Resume => begin.resume()?,
    };
    let disk = Disk {
        id: source.disk,
        name: source.name,
        image: source.image,
        size_bytes,
        blocks: layout.blocks,
        sets,
        map,
        locks: RangeLocks::default(),
        preserved,
        taken_below: AtomicU64::new(0),
    };
    let Start {
        acknowledged,
        seeding,
        distrusted,
    } = start;
    Ok(Opened {
        disk,
        acknowledged,
        seeding,
        distrusted,
    })
}

struct Start {
    acknowledged: Cycle,
    seeding: bool,
    distrusted: Option<String>,
}

impl Start {
    fn fresh(seeding: bool) -> Self {
        Self {
            acknowledged: Cycle::NONE,
            seeding,
            distrusted: None,
        }
    }
}

struct MapBegin<'a> {
    options: &'a SourceOptions,
    source: &'a SourceDisk,
    size_bytes: u64,
    layout: Layout,
    sets: &'a Arc<DirtySets>,
}

impl MapBegin<'_> {
    fn path(&self) -> PathBuf {
        beside(&self.source.image_path, ".map")
    }

    fn create(&self, seeding: bool) -> io::Result<ChangeMap> {
        let header = Header {
            sequence: 0,
            disk: self.source.disk,
            group: self.options.group,
            generation: self.options.generation,
            size_bytes: self.size_bytes,
            acknowledged: self.options.acknowledged,
            clean: None,
            seeding,
        };
        let hot_max = self.options.limits.hot_zones_max;
        let storage = &*self.options.storage;
        ChangeMap::create(
            storage,
            &self.path(),
            header,
            Arc::clone(self.sets),
            hot_max,
        )
    }

    fn resume(&self) -> Result<(ChangeMap, Start), SourceError> {
        let name = &self.source.name;
        let expected = Expected {
            disk: self.source.disk,
            group: self.options.group,
            generation: self.options.generation,
            size_bytes: self.size_bytes,
            identity: (self.source.image.content_identity()).map_err(on_disk(name))?,
        };
        let loaded = match load(&*self.options.storage, &self.path(), &expected) {
            Ok(loaded) => loaded,
            Err(reason) => return self.distrust(reason),
        };
        if loaded.damaged_sectors > 0 {
            let sectors = loaded.damaged_sectors;
            tracing::error!(disk = %name, sectors, "parts of the change map are damaged; all blocks they stand for are sent again");
        }
        let seeding = loaded.header.seeding;
        let into = if seeding {
            &self.sets.seed
        } else {
            self.sets.of_tick(FIRST_TICK)
        };
        into.absorb(&loaded.dirty);
        let acknowledged = loaded.header.acknowledged;
        let start = MapStart {
            header: loaded.header,
            saved: loaded.saved,
            hot: loaded.hot,
            hot_max: self.options.limits.hot_zones_max,
        };
        let map = ChangeMap::new(&self.path(), loaded.file, Arc::clone(self.sets), start);
        map.start().map_err(on_disk(name))?;
        Ok((
            map,
            Start {
                acknowledged,
                seeding,
                distrusted: None,
            },
        ))
    }

    /// Takes every block as dirty, holes too: the replica may have anything there.
    fn distrust(&self, reason: String) -> Result<(ChangeMap, Start), SourceError> {
        let name = &self.source.name;
        tracing::error!(disk = %name, %reason, "the change map cannot be trusted; the whole disk is sent again");
        let seeding = self.options.acknowledged == Cycle::NONE;
        let into = if seeding {
            &self.sets.seed
        } else {
            self.sets.of_tick(FIRST_TICK)
        };
        into.insert_range(0, self.layout.blocks);
        let map = self.create(seeding).map_err(|source| SourceError::Open {
            disk: name.clone(),
            what: "new change map",
            source,
        })?;
        Ok((
            map,
            Start {
                distrusted: Some(reason),
                ..Start::fresh(seeding)
            },
        ))
    }
}

pub(super) fn on_disk(name: &DiskName) -> impl Fn(DiskError) -> SourceError + use<> {
    let disk = name.clone();
    move |source| SourceError::Disk {
        disk: disk.clone(),
        source,
    }
}

fn mark_allocated(image: &dyn Image, size_bytes: u64, set: &BlockSet) -> Result<(), DiskError> {
    image.extents(0, size_bytes, &mut |run| {
        if run.kind == ExtentKind::Data {
            let (first, end) = Extent::new(run.offset, run.length).blocks();
            set.insert_range(first, end);
        }
        true
    })
}
