use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::fake::{FakeStorage, Fault, FaultOn};

use super::*;

mod drain;

const SIZE: u64 = 40 * BLOCK_BYTES + 512;
const CAP: u64 = 1 << 30;
const ID: [u8; 16] = [7; 16];
const BOOT: [u8; 16] = [1; 16];
const NEXT_BOOT: [u8; 16] = [2; 16];

fn path() -> &'static Path {
    Path::new("/o")
}

/// The disk below, without a writer.
fn below(storage: &FakeStorage) -> Arc<dyn Image> {
    Arc::new(RawImage::open(storage, Path::new("/below"), true).unwrap())
}

/// A storage with a disk below of pattern bytes, and what that disk holds.
fn world() -> (FakeStorage, Vec<u8>) {
    let storage = FakeStorage::new();
    let content: Vec<u8> = (0..SIZE)
        .map(|i| u8::try_from(i / 512 % 251).unwrap() | 1)
        .collect();
    let file = storage
        .open(Path::new("/below"), OpenMode::CreateNew)
        .unwrap();
    file.write_at(&content, 0).unwrap();
    file.sync().unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    (storage, content)
}

fn create(storage: &FakeStorage, cap: u64) -> Overlay {
    Overlay::create(storage, path(), below(storage), ID, BOOT, Space::new(cap)).unwrap()
}

fn open(storage: &FakeStorage) -> Result<Overlay, DiskError> {
    open_in(storage, BOOT)
}

fn open_in(storage: &FakeStorage, boot: [u8; 16]) -> Result<Overlay, DiskError> {
    Overlay::open(storage, path(), below(storage), boot, Space::new(CAP))
}

fn content(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(SIZE).unwrap()];
    image.read_at(&mut all, 0).unwrap();
    all
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A range of whole sectors.
    fn extent(&mut self) -> Extent {
        let first = self.below(SIZE / 512);
        let most = (SIZE / 512 - first).min(if self.below(4) == 0 { 64 } else { 12 });
        Extent::new(first * 512, (1 + self.below(most)) * 512)
    }
}

/// Does one random change to an overlay and to its model.
fn change(overlay: &Overlay, model: &mut [u8], random: &mut Random) -> Result<Extent, DiskError> {
    let extent = random.extent();
    let range = usize::try_from(extent.offset).unwrap()
        ..usize::try_from(extent.offset + extent.length).unwrap();
    match random.below(5) {
        0 => {
            let mode = [
                ZeroMode::MayUnmap,
                ZeroMode::KeepAllocated,
                ZeroMode::FastOnly,
            ];
            let mode = mode[usize::try_from(random.below(3)).unwrap()];
            model[range].fill(0);
            overlay.write_zeroes(extent.offset, extent.length, mode, false)?;
        }
        1 => {
            model[range].fill(0);
            overlay.discard(extent.offset, extent.length)?;
        }
        _ => {
            let byte = u8::try_from(random.below(255)).unwrap() + 1;
            model[range.clone()].fill(byte);
            overlay.write_at(&model[range], extent.offset, random.below(16) == 0)?;
        }
    }
    Ok(extent)
}

#[test]
fn reads_what_was_written_above_what_is_below_and_after_opening_anew() {
    for seed in 1..20 {
        let (storage, mut model) = world();
        let mut random = Random(seed);
        let mut overlay = create(&storage, CAP);
        assert_eq!(content(&overlay), model);
        for step in 0..120 {
            change(&overlay, &mut model, &mut random).unwrap();
            assert_eq!(content(&overlay), model, "seed {seed} step {step}");
            if random.below(30) == 0 {
                overlay.close().unwrap();
                drop(overlay);
                overlay = open(&storage).unwrap();
                assert_eq!(
                    content(&overlay),
                    model,
                    "seed {seed} step {step} opened anew"
                );
            }
        }
        check_extents(&overlay, &model);
    }
}

/// Extents cover the disk in order, and say zeros only where there are.
fn check_extents(overlay: &Overlay, model: &[u8]) {
    let mut at = 0;
    overlay
        .extents(0, SIZE, &mut |run| {
            assert_eq!(run.offset, at);
            at = run.end();
            let range = usize::try_from(run.offset).unwrap()..usize::try_from(at).unwrap();
            assert!(run.kind == ExtentKind::Data || model[range].iter().all(|b| *b == 0));
            true
        })
        .unwrap();
    assert_eq!(at, SIZE);
}

#[test]
fn what_is_below_never_changes_and_is_copied_up_by_the_block() {
    let (storage, before) = world();
    let overlay = create(&storage, CAP);
    overlay
        .write_at(&[9; 512], 5 * BLOCK_BYTES + 1024, false)
        .unwrap();
    assert_eq!(overlay.space.used_bytes(), BLOCK_BYTES);
    let mut written = Vec::new();
    overlay.for_each_written(|extent| written.push(extent));
    assert_eq!(written, [Extent::new(5 * BLOCK_BYTES, BLOCK_BYTES)]);
    assert_eq!(content(&*below(&storage)), before);
}

/// What each sector may hold after a power loss: its value at the last flush, and all since.
struct Allowed {
    now: Vec<u8>,
    sectors: Vec<Vec<u8>>,
    /// The state that a change which failed was to lead to.
    failed: Option<Vec<u8>>,
}

impl Allowed {
    fn new(now: Vec<u8>) -> Self {
        let sectors = now.chunks(512).map(|s| vec![s[0]]).collect();
        Self {
            now,
            sectors,
            failed: None,
        }
    }

    /// Does one random change.
    fn change(&mut self, overlay: &Overlay, random: &mut Random) -> Result<Extent, DiskError> {
        let mut next = self.now.clone();
        let done = change(overlay, &mut next, random);
        for (s, values) in self.sectors.iter_mut().enumerate() {
            // A change that failed may be there, in part.
            if next[s * 512] != self.now[s * 512] || done.is_err() {
                values.push(next[s * 512]);
            }
        }
        if done.is_ok() {
            self.now = next;
        } else {
            self.failed = Some(next);
        }
        done
    }

    /// What each sector may hold after a kill: what was answered, and what failed, in part or whole.
    fn last(&self) -> Vec<Vec<u8>> {
        let failed = self.failed.as_ref().unwrap_or(&self.now).chunks(512);
        let pairs = self.now.chunks(512).zip(failed);
        pairs.map(|(now, next)| vec![now[0], next[0]]).collect()
    }

    fn flushed(&mut self) {
        let now = self.now.chunks(512).map(|s| vec![s[0]]);
        self.sectors = now.collect();
    }

    fn check(&self, found: &[u8], what: &str) {
        for ((s, values), sector) in self.sectors.iter().enumerate().zip(found.chunks(512)) {
            assert!(
                values.iter().any(|v| sector.iter().all(|b| b == v)),
                "{what} sector {s}: {} of {values:?}",
                sector[0]
            );
        }
    }
}

#[test]
fn after_a_power_loss_every_sector_is_old_or_new_and_flushed_ones_are_new() {
    for seed in 1..40 {
        let (storage, model) = world();
        let mut random = Random(seed);
        let overlay = create(&storage, CAP);
        let mut allowed = Allowed::new(model);
        let dies = 30 + random.below(80);
        storage.die_after(storage.operation_count() + dies);
        for _ in 0..60 {
            if allowed.change(&overlay, &mut random).is_err() {
                break;
            }
            if random.below(5) == 0 {
                if overlay.flush().is_err() {
                    break;
                }
                allowed.flushed();
            }
        }
        drop(overlay);
        for crash in 0..6 {
            let left = storage.crash(crash);
            let found = content(&open_in(&left, NEXT_BOOT).unwrap());
            allowed.check(&found, &format!("seed {seed} crash {crash}"));
        }
    }
}

#[test]
fn a_flush_costs_two_syncs_and_one_where_no_block_is_new() {
    let (storage, _) = world();
    let overlay = create(&storage, CAP);
    let syncs = || storage.counters(path()).syncs;
    let before = syncs();
    overlay.write_at(&[1; 8192], 0, false).unwrap();
    assert_eq!(syncs(), before, "an allocation costs none");
    overlay.flush().unwrap();
    assert_eq!(syncs(), before + 2);
    overlay.write_at(&[2; 8192], 0, false).unwrap();
    overlay.flush().unwrap();
    assert_eq!(syncs(), before + 3);
}

#[test]
fn the_cap_refuses_new_blocks_only() {
    let (storage, _) = world();
    let overlay = create(&storage, 2 * BLOCK_BYTES);
    overlay.write_at(&[1; 8192], 0, false).unwrap();
    let full = overlay
        .write_at(&[1; 512], 2 * BLOCK_BYTES, false)
        .unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    assert!(full.to_string().contains("its cap of 8192 bytes"), "{full}");
    overlay.write_at(&[3; 8192], 0, false).unwrap();
    // Zeros take no space, and give some back.
    overlay.discard(0, 30 * BLOCK_BYTES).unwrap();
    assert_eq!(overlay.space.used_bytes(), 0);
    overlay.write_at(&[1; 512], 2 * BLOCK_BYTES, false).unwrap();
}

#[test]
fn a_failed_sync_is_final() {
    let (storage, _) = world();
    let overlay = create(&storage, CAP);
    overlay.write_at(&[1; 512], 0, false).unwrap();
    storage.fail(Fault {
        on: FaultOn::Sync,
        path: Some(path().to_owned()),
        nth: 1,
        kind: std::io::ErrorKind::Other,
    });
    assert!(overlay.flush().is_err());
    let mut buf = [0; 512];
    for later in [overlay.flush(), overlay.read_at(&mut buf, 0)] {
        assert_eq!(later.unwrap_err().kind(), ErrorKind::Poisoned);
    }
}

#[test]
fn damage_and_another_disk_below_are_told() {
    let (storage, _) = world();
    let overlay = create(&storage, CAP);
    overlay.write_at(&[1; 512], 0, false).unwrap();
    overlay.close().unwrap();
    drop(overlay);
    let file = storage.open(path(), OpenMode::ReadWrite).unwrap();
    for (at, kind) in [(30, ErrorKind::Corrupt), (4096 + 9, ErrorKind::Corrupt)] {
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 4], at).unwrap();
        assert_eq!(open(&storage).err().unwrap().kind(), kind, "offset {at}");
        file.write_at(&byte, at).unwrap();
    }
    open(&storage).unwrap();
    let other = storage
        .open(Path::new("/other"), OpenMode::CreateNew)
        .unwrap();
    other.set_length(SIZE + 512).unwrap();
    let other = Arc::new(RawImage::open(&storage, Path::new("/other"), true).unwrap());
    let refused = Overlay::open(&storage, path(), other, BOOT, Space::new(CAP))
        .err()
        .unwrap();
    assert_eq!(refused.kind(), ErrorKind::Parent);
}

#[test]
fn writers_of_one_block_lose_nothing() {
    let (storage, before) = world();
    let overlay = create(&storage, CAP);
    std::thread::scope(|scope| {
        for sector in 0..8u8 {
            let overlay = &overlay;
            scope.spawn(move || {
                for block in 0..40 {
                    let at = block * BLOCK_BYTES + u64::from(sector) * 512;
                    overlay.write_at(&[sector + 100; 512], at, false).unwrap();
                    if block % 8 == 0 {
                        overlay.flush().unwrap();
                    }
                }
            });
        }
    });
    let found = content(&overlay);
    for sector in 0..320 {
        let expected = u8::try_from(sector % 8).unwrap() + 100;
        assert_eq!(found[sector * 512], expected, "sector {sector}");
    }
    assert_eq!(found[320 * 512..], before[320 * 512..]);
}

#[test]
fn a_killed_process_takes_nothing_that_was_answered() {
    for seed in 1..30 {
        let (mut storage, mut model) = world();
        let mut random = Random(seed);
        for life in 0..4 {
            let overlay = match life {
                0 => create(&storage, CAP),
                _ => open(&storage).unwrap(),
            };
            assert_eq!(content(&overlay), model, "seed {seed} life {life}");
            for _ in 0..random.below(40) {
                change(&overlay, &mut model, &mut random).unwrap();
            }
            storage = storage.after_kill();
        }
        // What the next process flushes is durable, also what the one before it wrote.
        let overlay = open(&storage).unwrap();
        overlay.flush().unwrap();
        drop(overlay);
        for crash in 0..4 {
            let overlay = open_in(&storage.crash(crash), NEXT_BOOT).unwrap();
            assert_eq!(content(&overlay), model, "seed {seed} crash {crash}");
        }
    }
}
