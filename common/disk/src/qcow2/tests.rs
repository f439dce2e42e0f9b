use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::ErrorKind;
use crate::storage::fake::{FakeStorage, Fault, FaultOn};

const SIZE: u64 = 8 << 20;
const UNIT: u64 = 4096;

fn path() -> &'static Path {
    Path::new("/disk.qcow2")
}

/// Numbers from a seed (xorshift).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A new image, closed.
fn created() -> FakeStorage {
    let storage = FakeStorage::new();
    let image = Qcow2Image::create(&storage, path(), SIZE).unwrap();
    image.close().unwrap();
    storage
}

fn open(storage: &FakeStorage) -> Qcow2Image {
    Qcow2Image::open(storage, path(), false).unwrap()
}

/// What the disk should hold: one number for each block.
type Model = BTreeMap<u64, u8>;

/// A change, or a flush where there are no blocks.
#[derive(Debug, Clone, Copy)]
struct Change {
    first: u64,
    blocks: u64,
    /// 0: given back, or kept and zeroed.
    byte: u8,
    keep: bool,
}

impl Change {
    fn random(rng: &mut Rng) -> Self {
        let first = rng.below(SIZE / UNIT);
        let blocks = (1 + rng.below(40)).min(SIZE / UNIT - first);
        let kind = rng.below(8);
        Self {
            first,
            blocks: if kind == 0 { 0 } else { blocks },
            byte: if kind < 3 {
                0
            } else {
                u8::try_from(1 + rng.below(255)).unwrap()
            },
            keep: kind == 2,
        }
    }

    fn numbers(self) -> std::ops::Range<u64> {
        self.first..self.first + self.blocks
    }

    fn apply(self, image: &dyn Image) -> Result<(), DiskError> {
        let (at, length) = (self.first * UNIT, self.blocks * UNIT);
        match (self.blocks, self.byte) {
            (0, _) => image.flush(),
            (_, 0) if self.keep => image.write_zeroes(at, length, ZeroMode::KeepAllocated, false),
            (_, 0) => image.discard(at, length),
            (_, byte) => image.write_at(&vec![byte; usize::try_from(length).unwrap()], at, false),
        }
    }

    fn apply_to(self, model: &mut Model) {
        model.extend(self.numbers().map(|block| (block, self.byte)));
    }
}

fn change(image: &dyn Image, model: &mut Model, rng: &mut Rng) {
    let change = Change::random(rng);
    change.apply(image).unwrap();
    change.apply_to(model);
}

/// What each block holds; a block that is not all the same is told by `None`.
fn blocks(image: &dyn Image) -> Vec<Option<u8>> {
    let mut disk = vec![0xee; usize::try_from(SIZE).unwrap()];
    image.read_at(&mut disk, 0).unwrap();
    disk.chunks(usize::try_from(UNIT).unwrap())
        .map(|block| block.iter().all(|b| *b == block[0]).then_some(block[0]))
        .collect()
}

fn check(image: &dyn Image, model: &Model) {
    for (number, block) in (0..).zip(blocks(image)) {
        let expected = model.get(&number).copied().unwrap_or(0);
        assert_eq!(block, Some(expected), "block {number}");
    }
}

/// Gives the file to QEMU's checker: its exit code (0: nothing wrong) and the file afterwards.
fn qemu_check(storage: &FakeStorage, args: &[&str]) -> (i32, FakeStorage) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.qcow2");
    std::fs::write(&copy, storage.content(path()).unwrap()).unwrap();
    let checked = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .args(args)
        .arg(&copy)
        .output()
        .unwrap();
    let after = FakeStorage::new();
    let file = after.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(&std::fs::read(&copy).unwrap(), 0).unwrap();
    (checked.status.code().unwrap(), after)
}

fn verdict(storage: &FakeStorage) -> i32 {
    qemu_check(storage, &[]).0
}

/// What the operator does when an image is refused after a crash: it is whole afterwards.
fn repaired(storage: &FakeStorage) -> FakeStorage {
    if let Err(refused) = Qcow2Image::open(storage, path(), false) {
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(
            refused.to_string().contains("qemu-img check -r all"),
            "{refused}"
        );
    }
    let (code, after) = qemu_check(storage, &["-r", "all"]);
    assert_eq!(code, 0);
    assert_eq!(verdict(&after), 0);
    after
}

#[test]
fn a_new_image_reads_as_zeros_and_has_no_data() {
    let storage = created();
    assert!(!storage.has_unsynced(path()));
    assert_eq!(verdict(&storage), 0);
    let image = open(&storage);
    check(&image, &Model::new());
    let mut runs = Vec::new();
    let mut each = |run: Run| {
        runs.push((run.offset, run.length, run.kind));
        true
    };
    image.extents(0, SIZE, &mut each).unwrap();
    assert!(runs.iter().all(|(_, _, kind)| *kind == ExtentKind::Hole));
    assert_eq!(runs.iter().map(|(_, length, _)| length).sum::<u64>(), SIZE);
}

#[test]
fn random_changes_are_what_a_model_says() {
    for seed in 1..4 {
        let storage = FakeStorage::new();
        let mut image = Qcow2Image::create(&storage, path(), SIZE).unwrap();
        let mut model = Model::new();
        let mut rng = Rng(seed);
        for round in 0..120 {
            change(&image, &mut model, &mut rng);
            if round % 40 == 39 {
                check(&image, &model);
                image.close().unwrap();
                assert_eq!(verdict(&storage), 0, "seed {seed} round {round}");
                drop(image);
                image = open(&storage);
            }
        }
        check(&image, &model);
    }
}

/// Where data is told to be, there may be any; elsewhere there is none.
#[test]
fn extents_never_hide_data() {
    let storage = created();
    let image = open(&storage);
    let (mut model, mut rng) = (Model::new(), Rng(5));
    for _ in 0..60 {
        change(&image, &mut model, &mut rng);
    }
    let mut end = 0;
    let mut each = |run: Run| {
        assert_eq!(run.offset, end);
        end = run.end();
        for block in run.offset / UNIT..end / UNIT {
            let byte = model.get(&block).copied().unwrap_or(0);
            assert!(byte == 0 || run.kind == ExtentKind::Data, "block {block}");
        }
        true
    };
    image.extents(0, SIZE, &mut each).unwrap();
    assert_eq!(end, SIZE);
}

/// The power goes in place of any write: what was flushed and not touched since is there, before and after the repair.
#[test]
fn a_power_loss_takes_nothing_that_was_flushed() {
    let (mut deaths, mut taken_up, mut refused) = (0, 0, 0);
    for after in (1..8).chain((8..300).step_by(31)) {
        let storage = created();
        storage.sync_dir(Path::new("/")).unwrap();
        let image = open(&storage);
        storage.die_after(storage.operation_count() + after);
        let (mut model, mut flushed, mut rng) = (Model::new(), Model::new(), Rng(after));
        let mut touched = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let change = Change::random(&mut rng);
            touched.extend(change.numbers());
            if change.apply(&image).is_err() {
                break;
            }
            change.apply_to(&mut model);
            if change.blocks == 0 {
                flushed.clone_from(&model);
                touched.clear();
            }
        }
        deaths += u64::from(storage.is_dead());
        for seed in [0, 1, after] {
            let later = storage.crash(seed);
            // Read as it is, then repaired and written.
            let repaired = open(&repaired(&later));
            let images = [Qcow2Image::open(&later, path(), true).unwrap(), repaired];
            for (number, block) in images.iter().flat_map(|image| (0..).zip(blocks(image))) {
                let expected = Some(flushed.get(&number).copied().unwrap_or(0));
                let kept = touched.contains(&number) || block == expected;
                assert!(
                    kept,
                    "after {after} seed {seed}: block {number} is {block:?}"
                );
            }
            drop(images);
            let before = storage_blocks(&later);
            if is_taken_up(&later) {
                taken_up += 1;
                assert_eq!(storage_blocks(&later)[1..], before[1..]);
            } else {
                refused += 1;
            }
        }
    }
    assert!(deaths > 10, "{deaths}");
    assert!(taken_up > 20 * refused, "{taken_up} and {refused}");
}

fn storage_blocks(storage: &FakeStorage) -> Vec<Option<u8>> {
    blocks(&Qcow2Image::open(storage, path(), true).unwrap())
}

/// Opens what a crash left for writing, without a repair. Whatever is not safe to write to is refused, with what to do.
fn is_taken_up(storage: &FakeStorage) -> bool {
    let image = match Qcow2Image::open(storage, path(), false) {
        Ok(image) => image,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt);
            assert!(e.to_string().contains("qemu-img check -r all"), "{e}");
            return false;
        }
    };
    image.write_at(&[0x77; 4096], 0, true).unwrap();
    image.close().unwrap();
    let clean = storage.content(path()).unwrap();
    assert_eq!(
        clean[79] & 1,
        0,
        "the mark of the earlier session goes, too"
    );
    true
}

/// Its guest goes on with the agent that is started next, and does not know that there was another.
#[test]
fn a_killed_process_takes_nothing_that_was_answered() {
    let storage = created();
    let image = open(&storage);
    for number in 0..40 {
        image
            .write_at(&[7; 4096], number * 50 * 4096, false)
            .unwrap();
    }
    image
        .write_zeroes(0, 4096, ZeroMode::MayUnmap, false)
        .unwrap();
    let later = storage.after_kill();
    drop(image);
    let image = Qcow2Image::open(&later, path(), true).unwrap();
    for number in 0..40 {
        let mut block = [1; 4096];
        image.read_at(&mut block, number * 50 * 4096).unwrap();
        let told = if number == 0 { 0 } else { 7 };
        assert_eq!(block, [told; 4096], "block {number}");
    }
}

#[test]
fn what_is_there_is_as_a_close_leaves_it() {
    let storage = created();
    let image = open(&storage);
    image.write_at(&[7; 4096], 0, false).unwrap();
    let told = image.content_identity().unwrap();
    image.close().unwrap();
    drop(image);
    assert_eq!(open(&storage).identity().unwrap(), told);
}

#[test]
fn each_write_is_durable_before_the_next() {
    let storage = created();
    let image = open(&storage);
    for block in 0..20 {
        image
            .write_at(&[7; 4096], block * 70_000 / UNIT * UNIT, false)
            .unwrap();
        assert!(!storage.has_unsynced(path()));
    }
}

#[test]
fn a_failed_write_is_final() {
    for (on, nth) in [(FaultOn::Write, 1), (FaultOn::Write, 4), (FaultOn::Sync, 1)] {
        let storage = created();
        let image = open(&storage);
        storage.fail(Fault {
            on,
            path: None,
            nth,
            kind: io::ErrorKind::StorageFull,
        });
        let mut failed = false;
        for round in 0..20_u64 {
            let written = image.write_at(&[1; 4096], round * (400 << 10), false);
            let result = written.and_then(|()| image.flush());
            match result {
                Ok(()) => assert!(!failed, "it must not go on"),
                Err(e) if failed => assert_eq!(e.kind(), ErrorKind::Poisoned),
                Err(_) => failed = true,
            }
        }
        assert!(failed, "{on:?} {nth}");
        drop(image);
        repaired(&storage.after_kill());
    }
}

#[test]
fn ranges_locks_and_rights_are_kept() {
    let storage = created();
    let image = open(&storage);
    for (at, length) in [(SIZE, 512), (100, 512), (0, 100)] {
        let refused = image.read_at(&mut vec![0; length], at).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    }
    let second = Qcow2Image::open(&storage, path(), true).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Locked);
    image.close().unwrap();
    let closed = image.write_at(&[0; 512], 0, false).unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
    drop(image);
    let readers = [true, true].map(|ro| Qcow2Image::open(&storage, path(), ro).unwrap());
    let refused = readers[0].write_at(&[0; 512], 0, false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let refused = readers[1].discard(0, 512).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

/// Fields of the header, and what they ask for: offset, bytes, refused when read too.
#[test]
fn what_we_cannot_serve_is_refused() {
    let cases: [(&str, u64, &[u8], bool); 11] = [
        ("a backing file", 8, &0x1000_u64.to_be_bytes(), true),
        ("corrupt", 79, &[2], true),
        ("external data", 79, &[4], true),
        ("an unknown feature", 73, &[1], true),
        ("encryption", 35, &[1], true),
        ("snapshots", 63, &[1], false),
        ("bitmaps", 95, &[1], false),
        ("version 2", 7, &[2], false),
        ("version 9", 7, &[9], true),
        ("a size of no sectors", 31, &[7], true),
        ("a long L1 table", 36, &[0x7f; 4], true),
    ];
    for (what, at, bytes, also_read) in cases {
        let storage = created();
        storage.overwrite(path(), at, bytes).unwrap();
        let before = storage.content(path()).unwrap();
        let refused = Qcow2Image::open(&storage, path(), false).err().expect(what);
        let kinds = [ErrorKind::Unsupported, ErrorKind::Corrupt];
        assert!(kinds.contains(&refused.kind()), "{what}: {refused}");
        let read = Qcow2Image::open(&storage, path(), true);
        assert_eq!(read.is_err(), also_read, "{what}");
        drop(read);
        assert!(
            storage.content(path()).unwrap() == before,
            "{what}: changed"
        );
    }
}

/// imago would write the next cluster over the header.
#[test]
fn an_image_that_counts_too_little_is_not_written() {
    let storage = created();
    let image = open(&storage);
    image.write_at(&[7; 4096], 0, false).unwrap();
    image.close().unwrap();
    drop(image);
    // The refcount table's only entry, the first refcount, the L1 table's only entry.
    for (at, bytes) in [
        (65_536 + 2, [0; 6].as_slice()),
        (131_072, &[0; 2]),
        (196_608 + 6, &[0xff]),
    ] {
        let damaged = storage.after_kill();
        damaged.overwrite(path(), at, bytes).unwrap();
        let before = damaged.content(path()).unwrap();
        let refused = Qcow2Image::open(&damaged, path(), false).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{at}: {refused}");
        assert!(damaged.content(path()).unwrap() == before);
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let storage = FakeStorage::new();
    for size in [0, 511, SIZE_MAX + 512] {
        let refused = Qcow2Image::create(&storage, path(), size).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    }
}
