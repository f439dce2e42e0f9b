use super::*;
use crate::ErrorKind;
use crate::storage::fake::{FakeStorage, Fault, FaultOn};
use crate::storage::host::HostStorage;
use crate::tests::crash::{Model, step};
use crate::tests::{Random, rounds, stamped, stamps};

const SIZE: u64 = 1 << 20;

fn path() -> &'static Path {
    Path::new("/disk.raw")
}

fn fake() -> (FakeStorage, RawImage) {
    let storage = FakeStorage::new();
    let image = RawImage::create(&storage, path(), SIZE).unwrap();
    (storage, image)
}

fn kind_of<T>(result: Result<T, DiskError>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(e) => e.kind(),
    }
}

fn runs(image: &RawImage) -> Vec<(u64, u64, ExtentKind)> {
    let mut found = Vec::new();
    let mut each = |run: Run| {
        assert_eq!(run.level, 0);
        found.push((run.offset, run.length, run.kind));
        true
    };
    image
        .extents(0, image.geometry().size_bytes, &mut each)
        .unwrap();
    found
}

#[test]
fn a_new_image_survives_a_power_loss() {
    let (storage, image) = fake();
    assert_eq!(image.geometry().size_bytes, SIZE);
    drop(image);
    let after = storage.crash(0);
    let image = RawImage::open(&after, path(), false).unwrap();
    assert_eq!(runs(&image), [(0, SIZE, ExtentKind::Hole)]);
}

#[test]
fn sizes_are_sectors() {
    let storage = FakeStorage::new();
    for size in [0, 511, 513, u64::MAX] {
        assert_eq!(
            kind_of(RawImage::create(&storage, path(), size)),
            ErrorKind::Invalid
        );
    }
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    for size in [0, 1000] {
        file.set_length(size).unwrap();
        assert_eq!(
            kind_of(RawImage::open(&storage, path(), false)),
            ErrorKind::Unsupported
        );
    }
    file.set_length(1536).unwrap();
    let image = RawImage::open(&storage, path(), false).unwrap();
    assert_eq!(image.geometry().size_bytes, 1536);
}

#[test]
fn ranges_are_checked_and_change_nothing() {
    let (storage, image) = fake();
    let before = storage.operation_count();
    for (offset, length) in [
        (1, 512),
        (0, 511),
        (SIZE, 512),
        (SIZE - 512, 1024),
        (u64::MAX - 511, 512),
    ] {
        let mut buf = vec![1; usize::try_from(length).unwrap()];
        assert_eq!(kind_of(image.read_at(&mut buf, offset)), ErrorKind::Invalid);
        assert_eq!(
            kind_of(image.write_at(&buf, offset, false)),
            ErrorKind::Invalid
        );
        let zeroed = image.write_zeroes(offset, length, ZeroMode::MayUnmap, false);
        assert_eq!(kind_of(zeroed), ErrorKind::Invalid);
        assert_eq!(kind_of(image.discard(offset, length)), ErrorKind::Invalid);
        let visited = image.extents(offset, length, &mut |_| true);
        assert_eq!(kind_of(visited), ErrorKind::Invalid);
    }
    assert_eq!(storage.operation_count(), before);
}

#[test]
fn flushed_and_forced_writes_survive_a_power_loss() {
    let (storage, image) = fake();
    image.write_at(&[1; 4096], 0, false).unwrap();
    image.flush().unwrap();
    image.write_at(&[2; 512], 4096, true).unwrap();
    image.write_at(&[3; 512], 8192, false).unwrap();
    image
        .write_zeroes(0, 512, ZeroMode::MayUnmap, true)
        .unwrap();
    image.write_at(&[4; 512], 8192, false).unwrap();
    let after = RawImage::open(&storage.crash(0), path(), true).unwrap();
    let mut buf = [0; 8704];
    after.read_at(&mut buf, 0).unwrap();
    assert_eq!((buf[0], buf[512], buf[4096], buf[8192]), (0, 1, 2, 3));
}

#[test]
fn zeroing_keeps_or_gives_back_space() {
    let (_storage, image) = fake();
    image.write_at(&[1; 65_536], 0, false).unwrap();
    image
        .write_zeroes(0, 16_384, ZeroMode::MayUnmap, false)
        .unwrap();
    image
        .write_zeroes(16_384, 16_384, ZeroMode::KeepAllocated, false)
        .unwrap();
    image
        .write_zeroes(32_768, 4_096, ZeroMode::FastOnly, false)
        .unwrap();
    image.discard(40_960, 4_096).unwrap();
    let mut buf = vec![9; 65_536];
    image.read_at(&mut buf, 0).unwrap();
    let ones: Vec<usize> = (0..16).filter(|page| buf[page * 4096] == 1).collect();
    assert_eq!(ones, [9, 11, 12, 13, 14, 15]);
    assert_eq!(
        runs(&image)[..4],
        [
            (0, 16_384, ExtentKind::Hole),
            (16_384, 16_384, ExtentKind::Data),
            (32_768, 4_096, ExtentKind::Hole),
            (36_864, 4_096, ExtentKind::Data),
        ]
    );
}

/// A file on a file system without `fallocate`.
struct Plain(Arc<dyn BlockFile>);

impl BlockFile for Plain {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }
    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    fn zero_range(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(u64, u64, FileExtent) -> bool,
    ) -> io::Result<()> {
        visit(offset, length, FileExtent::Data);
        Ok(())
    }
    fn modified_ns(&self) -> io::Result<i128> {
        self.0.modified_ns()
    }
    fn lock(&self, kind: LockKind) -> io::Result<()> {
        self.0.lock(kind)
    }
}

#[test]
fn without_a_fast_way_zeros_are_written() {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(&vec![1; 1 << 20], 0).unwrap();
    let image = RawImage::of(Arc::new(Plain(file)), "plain".into(), SIZE, false);
    let fast = image.write_zeroes(0, SIZE, ZeroMode::FastOnly, false);
    assert_eq!(kind_of(fast), ErrorKind::Unsupported);
    assert_eq!(storage.content(path()).unwrap()[0], 1);
    image
        .write_zeroes(512, SIZE - 1024, ZeroMode::KeepAllocated, false)
        .unwrap();
    let content = storage.content(path()).unwrap();
    assert_eq!(
        (content[511], content[1 << 19], content[(1 << 20) - 512]),
        (1, 0, 1)
    );
    assert_eq!(content.iter().filter(|byte| **byte == 1).count(), 1024);
    image.discard(0, SIZE).unwrap();
    assert!(
        storage
            .content(path())
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_failed_flush_poisons() {
    for fua in [false, true] {
        let (storage, image) = fake();
        let on = if fua { FaultOn::Write } else { FaultOn::Sync };
        storage.fail(Fault {
            on,
            path: None,
            nth: 1,
            kind: io::ErrorKind::Other,
        });
        let failed = if fua {
            image.write_at(&[1; 512], 0, true)
        } else {
            image.flush()
        };
        assert_eq!(kind_of(failed), ErrorKind::Io);
        assert_eq!(
            kind_of(image.read_at(&mut [0; 512], 0)),
            ErrorKind::Poisoned
        );
        assert_eq!(
            kind_of(image.write_at(&[0; 512], 0, false)),
            ErrorKind::Poisoned
        );
        assert_eq!(kind_of(image.flush()), ErrorKind::Poisoned);
        assert_eq!(kind_of(image.close()), ErrorKind::Poisoned);
        assert_eq!(kind_of(image.resize(SIZE * 2)), ErrorKind::Poisoned);
    }
}

#[test]
fn a_full_disk_is_told_and_is_not_final() {
    let (storage, image) = fake();
    storage.limit_space(Some(4096));
    image.write_at(&[1; 4096], 0, false).unwrap();
    assert_eq!(
        kind_of(image.write_at(&[1; 4096], 4096, false)),
        ErrorKind::NoSpace
    );
    image.discard(0, 4096).unwrap();
    image.write_at(&[1; 4096], 4096, false).unwrap();
    image.flush().unwrap();
}

#[test]
fn images_grow_and_never_shrink() {
    let (storage, image) = fake();
    image.resize(SIZE).unwrap();
    assert_eq!(kind_of(image.resize(SIZE - 512)), ErrorKind::Invalid);
    assert_eq!(kind_of(image.resize(SIZE + 1)), ErrorKind::Invalid);
    image.resize(SIZE * 2).unwrap();
    image.write_at(&[1; 512], SIZE * 2 - 512, false).unwrap();
    let after = RawImage::open(&storage.crash(0), path(), true).unwrap();
    assert_eq!(after.geometry().size_bytes, SIZE * 2);
}

/// Random requests and a power loss, whatever it tears.
#[test]
fn after_a_power_loss_every_sector_is_old_or_new() {
    for seed in 0..rounds(20, 200) {
        let (storage, image) = fake();
        let sectors = usize::try_from(SIZE / 512).unwrap();
        let mut model = Model::new(vec![0; sectors]);
        let mut random = Random(seed);
        storage.die_after(storage.operation_count() + random.below(80));
        for stamp in 1..100 {
            if step(&image, &mut model, &mut random, 128, stamp).is_err() {
                break;
            }
        }
        for crash in [0, 1, 2 + seed, 3 + seed, 1000 + seed, 1001 + seed] {
            let after = storage.crash(crash);
            let image = RawImage::open_whatever_it_holds(&after, path(), false).unwrap();
            model.check(&image, &format!("seed {seed}, crash {crash}"));
            image.write_at(&stamped(5000, 8), 0, true).unwrap();
            let again = RawImage::open_whatever_it_holds(&after.crash(0), path(), true).unwrap();
            assert_eq!(stamps(&again, 0, 8), [5000; 8]);
        }
    }
}

#[test]
fn a_closed_image_refuses_everything() {
    let (storage, image) = fake();
    image.write_at(&[1; 512], 0, false).unwrap();
    image.close().unwrap();
    assert_eq!(storage.crash(0).content(path()).unwrap()[0], 1);
    assert_eq!(kind_of(image.read_at(&mut [0; 512], 0)), ErrorKind::Closed);
    assert_eq!(kind_of(image.flush()), ErrorKind::Closed);
}

#[test]
fn readers_share_and_writers_do_not() {
    let (storage, image) = fake();
    assert_eq!(
        kind_of(RawImage::open(&storage, path(), false)),
        ErrorKind::Locked
    );
    assert_eq!(
        kind_of(RawImage::open(&storage, path(), true)),
        ErrorKind::Locked
    );
    drop(image);
    let reader = RawImage::open(&storage, path(), true).unwrap();
    let _another = RawImage::open(&storage, path(), true).unwrap();
    assert_eq!(
        kind_of(RawImage::open(&storage, path(), false)),
        ErrorKind::Locked
    );
    assert_eq!(
        kind_of(reader.write_at(&[1; 512], 0, false)),
        ErrorKind::Invalid
    );
    assert_eq!(kind_of(reader.resize(SIZE * 2)), ErrorKind::Invalid);
    reader.flush().unwrap();
}

#[test]
fn the_identity_tells_of_changes_behind_our_back() {
    let (storage, image) = fake();
    let before = image.identity().unwrap();
    assert_eq!(before.file_bytes, SIZE);
    storage.overwrite(path(), 0, &[1]).unwrap();
    assert_ne!(image.identity().unwrap(), before);
}

#[test]
fn page_writes_are_quick_and_reads_are_not() {
    let (_storage, image) = fake();
    assert!(image.is_quick(Access::Write, 8192, 65_536));
    assert!(!image.is_quick(Access::Write, 8192, 69_632));
    assert!(!image.is_quick(Access::Write, 512, 4096));
    assert!(!image.is_quick(Access::Read, 0, 4096));
}

#[test]
fn the_host_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let image = RawImage::create(&HostStorage, &path, SIZE).unwrap();
    image.write_at(&[1; 65_536], 131_072, true).unwrap();
    assert_eq!(
        runs(&image),
        [
            (0, 131_072, ExtentKind::Hole),
            (131_072, 65_536, ExtentKind::Data),
            (196_608, SIZE - 196_608, ExtentKind::Hole),
        ]
    );
    assert_eq!(
        kind_of(RawImage::open(&HostStorage, &path, true)),
        ErrorKind::Locked
    );
    image
        .write_zeroes(131_072, 4096, ZeroMode::KeepAllocated, true)
        .unwrap();
    image.close().unwrap();
    drop(image);
    let image = RawImage::open(&HostStorage, &path, true).unwrap();
    let mut buf = [9; 8192];
    image.read_at(&mut buf, 131_072).unwrap();
    assert_eq!((buf[0], buf[4096]), (0, 1));
}
