//! Overlays that go down into what is below.

use super::*;

/// The disk below, with the right to write.
fn base(storage: &FakeStorage) -> Arc<dyn Image> {
    Arc::new(RawImage::open(storage, Path::new("/below"), false).unwrap())
}

fn open_to_sink(storage: &FakeStorage, boot: [u8; 16]) -> Overlay {
    let base = base(storage);
    let below = Arc::clone(&base);
    let overlay = Overlay::open(storage, path(), below, boot, Space::new(CAP)).unwrap();
    overlay.sink_into(base);
    overlay
}

/// An overlay that has blocks, in a storage, and what it shows.
fn filled(random: &mut Random) -> (FakeStorage, Vec<u8>) {
    let (storage, mut model) = world();
    let overlay = create(&storage, CAP);
    for _ in 0..20 {
        change(&overlay, &mut model, random).unwrap();
    }
    overlay.close().unwrap();
    (storage, model)
}

#[test]
fn it_goes_down_while_it_is_written_to_until_nothing_is_left() {
    for seed in 1..30 {
        let mut random = Random(seed);
        let (storage, mut model) = filled(&mut random);
        let mut overlay = open_to_sink(&storage, BOOT);
        let mut left = u64::MAX;
        for step in 0..60 {
            change(&overlay, &mut model, &mut random).unwrap();
            match random.below(8) {
                0 => {
                    let now = overlay.drain().unwrap();
                    assert!(now <= left);
                    left = now;
                }
                1 => {
                    drop(overlay);
                    overlay = open_to_sink(&storage, BOOT);
                }
                _ => {}
            }
            assert_eq!(content(&overlay), model, "seed {seed} step {step}");
        }
        while overlay.drain().unwrap() > 0 {}
        assert_eq!((overlay.held_bytes(), overlay.space.used_bytes()), (0, 0));
        // It stays so, and what it shows is what is below.
        change(&overlay, &mut model, &mut random).unwrap();
        assert_eq!(overlay.held_bytes(), 0);
        overlay.close().unwrap();
        drop(overlay);
        assert_eq!(content(&*below(&storage)), model, "seed {seed}");
    }
}

/// An overlay whose process was killed before it saved anything, and what its sectors may hold.
fn killed(random: &mut Random) -> (FakeStorage, Allowed) {
    let (storage, model) = world();
    let overlay = create(&storage, CAP);
    let mut allowed = Allowed::new(model);
    for _ in 0..20 {
        allowed.change(&overlay, random).unwrap();
    }
    (storage.after_kill(), allowed)
}

/// Power is lost, or the process killed, at each operation of files.
#[test]
fn whenever_it_stops_on_its_way_down_nothing_is_lost() {
    for seed in 1..=80 {
        let mut random = Random(seed);
        let (storage, mut allowed) = if seed % 2 == 0 {
            killed(&mut random)
        } else {
            let (storage, model) = filled(&mut random);
            (storage, Allowed::new(model))
        };
        let overlay = open_to_sink(&storage, BOOT);
        let dies = random.below(120);
        storage.die_after(storage.operation_count() + dies);
        for _ in 0..40 {
            let done = allowed.change(&overlay, &mut random).map(drop);
            let done = done.and_then(|()| match random.below(4) {
                0 => overlay.drain().map(drop),
                1 => overlay.flush().map(|()| allowed.flushed()),
                _ => Ok(()),
            });
            if done.is_err() {
                break;
            }
        }
        drop(overlay);
        for crash in 0..6 {
            let left = storage.crash(crash);
            let overlay = open_to_sink(&left, NEXT_BOOT);
            let what = format!("seed {seed} dies {dies} crash {crash}");
            allowed.check(&content(&overlay), &what);
            while overlay.drain().unwrap() > 0 {}
            allowed.check(&content(&overlay), &what);
        }
        let overlay = open_to_sink(&storage.after_kill(), BOOT);
        let what = format!("seed {seed} dies {dies} killed");
        let kept = Allowed {
            // All but the change that failed is as it was answered.
            sectors: allowed.last(),
            ..allowed
        };
        kept.check(&content(&overlay), &what);
    }
}

#[test]
fn writers_go_on_while_it_goes_down() {
    let (storage, before) = world();
    let overlay = create(&storage, CAP);
    overlay.write_at(&[99; 40 * 4096], 0, false).unwrap();
    overlay.close().unwrap();
    drop(overlay);
    let overlay = open_to_sink(&storage, BOOT);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let overlay = &overlay;
            scope.spawn(move || {
                for round in 0..40 {
                    for block in 0..40 {
                        let at = block * BLOCK_BYTES + u64::from(thread) * 512;
                        overlay
                            .write_at(&[thread + round; 512], at, block == 7)
                            .unwrap();
                    }
                }
            });
        }
        scope.spawn(|| while overlay.drain().unwrap() > 0 {});
    });
    let found = content(&overlay);
    for (number, sector) in found.chunks(512).take(320).enumerate() {
        let thread = u8::try_from(number % 8).unwrap();
        let expected = if thread < 4 { thread + 39 } else { 99 };
        assert_eq!(sector, [expected; 512], "sector {number}");
    }
    assert_eq!(found[320 * 512..], before[320 * 512..]);
}

/// A disk that is written to through the overlay above it while it is flushed.
struct Meddled {
    image: Arc<dyn Image>,
    /// Who writes, whether with a flush of its own, and how many flushes go by before.
    by: Mutex<Option<(Arc<Overlay>, bool, u32)>>,
}

impl Image for Meddled {
    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }
    fn identity(&self) -> Result<Identity, DiskError> {
        self.image.identity()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.image.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        self.image.write_at(buf, offset, fua)
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.image.write_zeroes(offset, length, mode, fua)
    }
    fn flush(&self) -> Result<(), DiskError> {
        let by = locked(&self.by).take();
        match by {
            Some((overlay, fua, 0)) => overlay.write_at(&[200; 512], 0, fua)?,
            Some((overlay, fua, left)) => *locked(&self.by) = Some((overlay, fua, left - 1)),
            None => {}
        }
        self.image.flush()
    }
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.image.extents(offset, length, visit)
    }
    fn close(&self) -> Result<(), DiskError> {
        self.image.close()
    }
}

#[test]
fn what_is_written_between_the_copy_and_its_end_stays() {
    for fua in [false, true] {
        let (storage, _) = world();
        let overlay = create(&storage, CAP);
        overlay.write_at(&[99; 8 * 4096], 0, true).unwrap();
        drop(overlay);
        let base = base(&storage);
        let below = Arc::clone(&base);
        let overlay = Overlay::open(&storage, path(), below, BOOT, Space::new(CAP)).unwrap();
        let overlay = Arc::new(overlay);
        let meddled = Arc::new(Meddled {
            image: base,
            by: Mutex::default(),
        });
        let image: Arc<dyn Image> = Arc::clone(&meddled) as Arc<dyn Image>;
        overlay.sink_into(image);
        // The first flush comes before the copy.
        *locked(&meddled.by) = Some((Arc::clone(&overlay), fua, 1));
        assert!(overlay.drain().unwrap() <= BLOCK_BYTES);
        if !fua {
            overlay.flush().unwrap();
        }
        let first = |overlay: &Overlay| content(overlay)[0];
        assert_eq!(first(&overlay), 200);
        for crash in 0..4 {
            let left = storage.crash(crash);
            assert_eq!(first(&open_to_sink(&left, NEXT_BOOT)), 200, "crash {crash}");
        }
        while overlay.drain().unwrap() > 0 {}
        assert_eq!(first(&overlay), 200);
    }
}
