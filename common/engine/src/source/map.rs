//! The change map of one disk: which blocks the peer does not have yet, durably.
//!
//! Owns: the dirty sets in memory, and the file `IMAGE.map` (drawn in the module `map_format`).
//! Receives: "a guest write is about to reach these blocks", "these blocks are acknowledged".
//! Gives out: the right to go on, once a crash can no longer forget that write.
//!
//! Does not do: flush the image, or decide what is acknowledged. Whoever takes blocks out of the
//! dirty sets has had the replica's word that they are durable there, *and* has flushed the image
//! since they were last written.
//!
//! # Invariants
//! 1. Saved bitmap united with the blocks of hot zones covers every dirty block, at every instant
//!    and under any torn, lost or reordered write of the file.
//! 2. A writer marks its blocks in the dirty sets first and asks whether the zone is hot second; a
//!    zone is cooled by making it not hot first and looking for dirty blocks second. Either the
//!    writer sees that the zone is no longer hot, or the cooling sees the block.
//! 3. Only the holder of the I/O lock changes the file, makes zones hot or cold, or moves blocks
//!    from one dirty set to another.
//! 4. A failed sync is final: no zone becomes hot afterwards.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use sitepair_disk::storage::{BlockFile, OpenMode, Storage};
use sitepair_disk::{DiskError, Identity};
use sitepair_model::ids::{Cycle, GenId};

use super::clock::parity;
use super::map_format::{Header, Layout};
use crate::blocks::sector::{SECTOR_BITS, Sector, encode_sector};
use crate::blocks::set::BlockSet;
use crate::locked;

/// Blocks of one disk that the replica does not have, by why it does not.
pub(super) struct DirtySets {
    /// Written by the guest; the place of a tick is its parity.
    cycles: [BlockSet; 2],
    /// Of initial replication.
    pub(super) seed: BlockSet,
}

impl DirtySets {
    pub(super) fn new(blocks: u64) -> Self {
        Self {
            cycles: [BlockSet::new(blocks), BlockSet::new(blocks)],
            seed: BlockSet::new(blocks),
        }
    }

    /// The set of blocks written under `tick`, the current one or that before it.
    pub(super) fn of_tick(&self, tick: u64) -> &BlockSet {
        &self.cycles[parity(tick)]
    }

    /// The first dirty block of `[from, end)`.
    fn next(&self, from: u64, end: u64) -> Option<u64> {
        let all = [&self.cycles[0], &self.cycles[1], &self.seed];
        all.into_iter()
            .filter_map(|set| set.next_set(from, end))
            .min()
    }

    fn in_range(&self, first: u64, end: u64) -> impl Iterator<Item = u64> {
        std::iter::successors(self.next(first, end), move |b| self.next(b + 1, end))
    }
}

/// The change map of one disk.
pub(super) struct ChangeMap {
    path: PathBuf,
    file: Arc<dyn BlockFile>,
    layout: Layout,
    sets: Arc<DirtySets>,
    /// One bit for each zone that is durably hot.
    hot: Box<[AtomicU64]>,
    hot_count: AtomicU64,
    hot_max: u64,
    /// Zones that somebody waits for.
    wanted: Mutex<Vec<u64>>,
    io: Mutex<MapIo>,
}

/// What belongs to the holder of the file.
struct MapIo {
    header: Header,
    /// Sectors of the saved bitmap that may not be empty in the file.
    saved: BTreeSet<u64>,
    /// Where the next search for a zone to cool begins.
    hand: u64,
    failed: Option<String>,
}

/// What a map begins with.
pub(super) struct MapStart {
    pub(super) header: Header,
    pub(super) saved: BTreeSet<u64>,
    pub(super) hot: Vec<u64>,
    pub(super) hot_max: u64,
}

impl ChangeMap {
    /// Makes a new map from what `sets` hold; a file that is there is replaced.
    pub(super) fn create(
        storage: &dyn Storage,
        path: &Path,
        header: Header,
        sets: Arc<DirtySets>,
        hot_max: u64,
    ) -> io::Result<Self> {
        match storage.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = storage.open(path, OpenMode::CreateNew)?;
        let layout = Layout::new(header.size_bytes);
        file.set_length(layout.file_bytes())?;
        match file.allocate(0, layout.bitmap_offset()) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            _ => {}
        }
        let start = MapStart {
            header,
            saved: BTreeSet::new(),
            hot: Vec::new(),
            hot_max,
        };
        let map = Self::new(path, file, sets, start);
        let mut io = locked(&map.io);
        map.write_saved(&mut io, 0, layout.blocks)?;
        // The bitmap is durable before a header vouches for it; until then the map counts as lost.
        map.file.sync()?;
        map.write_header(&mut io, |_| {})?;
        drop(io);
        storage.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(map)
    }

    /// Goes on with a file that was read by [`load`](super::map_load::load).
    pub(super) fn new(
        path: &Path,
        file: Arc<dyn BlockFile>,
        sets: Arc<DirtySets>,
        start: MapStart,
    ) -> Self {
        let layout = Layout::new(start.header.size_bytes);
        let map = Self {
            path: path.to_owned(),
            file,
            layout,
            sets,
            hot: (0..layout.zones.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            hot_count: AtomicU64::new(0),
            hot_max: start.hot_max,
            wanted: Mutex::default(),
            io: Mutex::new(MapIo {
                header: start.header,
                saved: start.saved,
                hand: 0,
                failed: None,
            }),
        };
        start.hot.into_iter().for_each(|zone| map.set_hot(zone));
        map
    }

    /// Whether writes to blocks `[first, end)`, already marked dirty, may reach the image now.
    pub(super) fn is_hot(&self, first: u64, end: u64) -> bool {
        let (zone, stop) = Layout::zones_of(first, end);
        (zone..stop).all(|z| self.zone_is_hot(z))
    }

    /// Makes the zones of blocks `[first, end)` durably hot. The blocks are marked dirty already
    /// (invariant 2). One sync serves all who wait.
    pub(super) fn heat(&self, first: u64, end: u64) -> Result<(), DiskError> {
        let (zone, stop) = Layout::zones_of(first, end);
        locked(&self.wanted).extend((zone..stop).filter(|z| !self.zone_is_hot(*z)));
        let mut io = locked(&self.io);
        if self.is_hot(first, end) {
            return Ok(());
        }
        if let Some(first) = &io.failed {
            return Err(DiskError::Poisoned {
                first: first.clone(),
            });
        }
        // What waited here is taken by the first who gets the lock; ours may have been made hot
        // and cooled again since.
        let mut zones: BTreeSet<u64> = std::mem::take(&mut *locked(&self.wanted))
            .into_iter()
            .collect();
        zones.extend(zone..stop);
        zones.retain(|z| !self.zone_is_hot(*z));
        self.heat_round(&mut io, &zones)
            .map_err(|error| self.fail(&mut io, error))
    }

    fn heat_round(&self, io: &mut MapIo, zones: &BTreeSet<u64>) -> io::Result<()> {
        let wanted = zones.len() as u64;
        let count = self.hot_zones();
        let mut sectors: BTreeSet<u64> = zones.iter().map(|z| z / SECTOR_BITS).collect();
        if count + wanted > self.hot_max {
            let surplus = count + wanted - self.hot_max;
            // Some more than needed, so that not every round has to cool.
            let cooled = self.cool(io, surplus + self.hot_max / 8)?;
            sectors.extend(cooled.iter().map(|z| z / SECTOR_BITS));
        }
        for sector in sectors {
            let first = sector * SECTOR_BITS;
            let bits = (first..(first + SECTOR_BITS).min(self.layout.zones))
                .filter(|z| self.zone_is_hot(*z) || zones.contains(z))
                .map(|z| z - first);
            self.file
                .write_at(&encode_sector(bits), Layout::log_sector_at(sector))?;
        }
        self.file.sync()?;
        // Durable before any writer may go on: invariant 1.
        zones.iter().for_each(|z| self.set_hot(*z));
        Ok(())
    }

    /// Makes up to `count` zones not hot in memory; the caller makes that durable. Zones without a
    /// dirty block first; then zones whose blocks are put into the saved bitmap.
    fn cool(&self, io: &mut MapIo, count: u64) -> io::Result<Vec<u64>> {
        let mut cooled = Vec::new();
        let mut dirty = Vec::new();
        for zone in self.hot_from(io.hand) {
            if cooled.len() as u64 >= count {
                break;
            }
            let (first, end) = self.layout.blocks_of_zone(zone);
            self.clear_hot(zone);
            // Not hot first, the blocks second: invariant 2.
            if self.sets.next(first, end).is_none() {
                cooled.push(zone);
            } else {
                self.set_hot(zone);
                dirty.push(zone);
            }
        }
        let missing = usize::try_from(count)
            .unwrap_or(usize::MAX)
            .saturating_sub(cooled.len());
        dirty.truncate(missing);
        if !dirty.is_empty() {
            cooled.extend(self.cool_dirty(io, dirty)?);
        }
        io.hand = cooled.last().map_or(0, |z| z + 1);
        Ok(cooled)
    }

    /// Cools zones that hold dirty blocks, by saving those.
    fn cool_dirty(&self, io: &mut MapIo, zones: Vec<u64>) -> io::Result<Vec<u64>> {
        for zone in &zones {
            self.clear_hot(*zone);
        }
        for zone in &zones {
            let (first, end) = self.layout.blocks_of_zone(*zone);
            if let Err(error) = self.write_saved(io, first, end) {
                // No room for the bitmap: the cap bounds recovery, it is not worth a guest's write.
                tracing::warn!(map = %self.path.display(), %error, "save dirty blocks; more zones stay hot than wanted");
                zones.iter().for_each(|z| self.set_hot(*z));
                return Ok(Vec::new());
            }
        }
        // Saved before cold: invariant 1.
        self.file.sync()?;
        Ok(zones)
    }

    /// Rewrites the saved bitmap around blocks `[first, end)` from the dirty sets. A block that
    /// becomes dirty meanwhile is in a hot zone, or waits in [`heat`](Self::heat) for our lock.
    fn write_saved(&self, io: &mut MapIo, first: u64, end: u64) -> io::Result<()> {
        let mut touched: BTreeSet<u64> = io
            .saved
            .range(first / SECTOR_BITS..end.div_ceil(SECTOR_BITS))
            .copied()
            .collect();
        let mut at = first;
        while let Some(block) = self.sets.next(at, end) {
            touched.insert(block / SECTOR_BITS);
            at = (block / SECTOR_BITS + 1) * SECTOR_BITS;
        }
        let mut run: Vec<u8> = Vec::new();
        let mut run_from = 0;
        for sector in touched {
            let content = self.saved_sector(sector);
            if content == [0; 512] {
                io.saved.remove(&sector);
            } else {
                io.saved.insert(sector);
            }
            let follows = run_from + run.len() as u64 / 512 == sector;
            if !follows || run.len() >= SAVE_RUN_BYTES {
                self.write_sectors(run_from, &run)?;
                run.clear();
            }
            if run.is_empty() {
                run_from = sector;
            }
            run.extend_from_slice(&content);
        }
        self.write_sectors(run_from, &run)
    }

    fn write_sectors(&self, first: u64, run: &[u8]) -> io::Result<()> {
        if run.is_empty() {
            return Ok(());
        }
        self.file.write_at(run, self.layout.bitmap_sector_at(first))
    }

    fn saved_sector(&self, sector: u64) -> Sector {
        let (first, end) = self.layout.blocks_of_sector(sector);
        encode_sector(self.sets.in_range(first, end).map(|b| b - first))
    }

    /// Empties sectors of the saved bitmap that hold no dirty block any more. Not synced: if it is
    /// lost, more is sent after a crash.
    pub(super) fn forget_clean(&self) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        let clean: Vec<u64> = io
            .saved
            .iter()
            .copied()
            .filter(|s| {
                let (first, end) = self.layout.blocks_of_sector(*s);
                self.sets.next(first, end).is_none()
            })
            .collect();
        for sector in clean {
            self.file
                .write_at(&[0; 512], self.layout.bitmap_sector_at(sector))
                .map_err(|error| self.fail(&mut io, error))?;
            io.saved.remove(&sector);
        }
        Ok(())
    }

    /// Makes durable that blocks of `[first, end)` left the seed set.
    pub(super) fn save_progress(&self, first: u64, end: u64) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        self.write_saved(&mut io, first, end)
            .and_then(|()| self.file.sync())
            .map_err(|error| self.fail(&mut io, error))
    }

    /// Moves all blocks of `from` into `into`, both among this map's sets.
    pub(super) fn merge_sets(&self, from: &BlockSet, into: &BlockSet) {
        // Under the lock, because a zone must not be cooled while blocks are between two sets:
        // invariant 3.
        let _io = locked(&self.io);
        into.absorb(from);
        from.clear();
    }

    /// Notes that initial replication is complete.
    pub(super) fn seed_done(&self) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        let blocks = self.layout.blocks;
        self.write_saved(&mut io, 0, blocks)
            .and_then(|()| self.write_header(&mut io, |h| h.seeding = false))
            .map_err(|error| self.fail(&mut io, error))
    }

    /// Binds the map to another generation.
    pub(super) fn adopt(&self, generation: GenId, base: Cycle) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        let bind = |h: &mut Header| (h.generation, h.acknowledged) = (generation, base);
        self.write_header(&mut io, bind)
            .map_err(|error| self.fail(&mut io, error))
    }

    /// Notes what a clean stop leaves: all dirty blocks saved, all zones cold, the image as it is.
    pub(super) fn stop(&self, identity: Identity, acknowledged: Cycle) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        self.stop_steps(&mut io, identity, acknowledged)
            .map_err(|error| self.fail(&mut io, error))
    }

    fn stop_steps(
        &self,
        io: &mut MapIo,
        identity: Identity,
        acknowledged: Cycle,
    ) -> io::Result<()> {
        // Saved, synced, and only then cold: invariant 1.
        self.write_saved(io, 0, self.layout.blocks)?;
        self.file.sync()?;
        let hot: Vec<u64> = self.hot_from(0).collect();
        let sectors: BTreeSet<u64> = hot.iter().map(|z| z / SECTOR_BITS).collect();
        hot.iter().for_each(|z| self.clear_hot(*z));
        for sector in sectors {
            self.file
                .write_at(&[0; 512], Layout::log_sector_at(sector))?;
        }
        self.file.sync()?;
        self.write_header(io, |h| {
            h.acknowledged = acknowledged;
            h.clean = Some(identity);
        })
    }

    /// Writes header fields that the caller changes, durably, into the slot whose turn it is.
    fn write_header(&self, io: &mut MapIo, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = io.header.clone();
        change(&mut header);
        header.sequence += 1;
        self.file.write_at(&header.encode(), header.slot_at())?;
        self.file.sync()?;
        io.header = header;
        Ok(())
    }

    /// Takes a loaded map into use: from here on it no longer counts as stopped cleanly. Done
    /// before the first guest write, or the next start would miss that the image has changed.
    pub(super) fn start(&self) -> Result<(), DiskError> {
        let mut io = self.usable()?;
        let steps = self
            .rewrite_log(&io)
            .and_then(|()| self.write_header(&mut io, |h| h.clean = None));
        steps.map_err(|error| self.fail(&mut io, error))
    }

    /// Writes hot zones again; a damaged sector becomes valid by that.
    fn rewrite_log(&self, _io: &MapIo) -> io::Result<()> {
        let sectors: BTreeSet<u64> = self.hot_from(0).map(|z| z / SECTOR_BITS).collect();
        for sector in sectors {
            let first = sector * SECTOR_BITS;
            let end = (first + SECTOR_BITS).min(self.layout.zones);
            let bits = (first..end)
                .filter(|z| self.zone_is_hot(*z))
                .map(|z| z - first);
            self.file
                .write_at(&encode_sector(bits), Layout::log_sector_at(sector))?;
        }
        Ok(())
    }

    /// Zones that are hot now.
    pub(super) fn hot_zones(&self) -> u64 {
        self.hot_count.load(SeqCst)
    }

    fn zone_is_hot(&self, zone: u64) -> bool {
        self.hot[hot_word(zone)].load(SeqCst) & (1 << (zone % 64)) != 0
    }

    fn set_hot(&self, zone: u64) {
        if self.hot[hot_word(zone)].fetch_or(1 << (zone % 64), SeqCst) & (1 << (zone % 64)) == 0 {
            self.hot_count.fetch_add(1, SeqCst);
        }
    }

    fn clear_hot(&self, zone: u64) {
        if self.hot[hot_word(zone)].fetch_and(!(1 << (zone % 64)), SeqCst) & (1 << (zone % 64)) != 0
        {
            self.hot_count.fetch_sub(1, SeqCst);
        }
    }

    /// Hot zones, beginning at `hand` and going round once.
    fn hot_from(&self, hand: u64) -> impl Iterator<Item = u64> {
        let words = self.hot.len() as u64;
        let start = hand / 64 % words.max(1);
        (0..words)
            .map(move |step| (start + step) % words)
            .flat_map(move |word| {
                let bits = self.hot[usize::try_from(word).expect("an index")].load(SeqCst);
                (0..64)
                    .filter(move |bit| bits & (1 << bit) != 0)
                    .map(move |bit| word * 64 + bit)
            })
    }

    fn usable(&self) -> Result<MutexGuard<'_, MapIo>, DiskError> {
        let io = locked(&self.io);
        match &io.failed {
            Some(first) => Err(DiskError::Poisoned {
                first: first.clone(),
            }),
            None => Ok(io),
        }
    }

    fn fail(&self, io: &mut MapIo, error: io::Error) -> DiskError {
        let action = format!("write change map {}", self.path.display());
        tracing::error!(map = %self.path.display(), %error, "the change map failed; writes to zones that are not hot are refused");
        io.failed = Some(format!("{action}: {error}"));
        DiskError::io(action, error)
    }
}

/// Most bytes of the saved bitmap written at once.
const SAVE_RUN_BYTES: usize = 1 << 20;

fn hot_word(zone: u64) -> usize {
    usize::try_from(zone / 64).expect("an index of a table that is in memory fits")
}
