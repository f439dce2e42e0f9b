use super::*;
use crate::storage::replace;

const A: &str = "/a";

fn path() -> &'static Path {
    Path::new(A)
}

/// A storage with a durable file of 4 KiB of ones.
fn with_file() -> (FakeStorage, Arc<dyn BlockFile>) {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    file.sync().unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    (storage, file)
}

fn fault(on: FaultOn, nth: u64, kind: io::ErrorKind) -> Fault {
    Fault {
        on,
        path: None,
        nth,
        kind,
    }
}

#[test]
fn unsynced_writes_may_be_lost_in_any_part() {
    let (storage, file) = with_file();
    file.write_at(&[2; 2048], 0).unwrap();
    assert_eq!(storage.crash(0).content(path()).unwrap(), [1; 4096]);
    let kept = storage.crash(1).content(path()).unwrap();
    assert_eq!(kept, [[2; 2048], [1; 2048]].concat());
    let mut seen = std::collections::BTreeSet::new();
    for seed in 2..400 {
        let content = storage.crash(seed).content(path()).unwrap();
        for sector in content.chunks(512) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "torn below 512 bytes"
            );
        }
        assert!(content[2048..].iter().all(|byte| *byte == 1));
        seen.insert(content);
    }
    assert_eq!(seen.len(), 16, "every subset of four sectors");
    assert_eq!(
        storage.content(path()).unwrap()[0],
        2,
        "the tree itself goes on"
    );
}

#[test]
fn odd_seeds_tear_at_pages_and_even_ones_at_sectors() {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    file.write_at(&[1; 4 * 4096], 0).unwrap();
    file.sync().unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    // Not on pages, so that the first and the last are written in part.
    file.write_at(&[2; 2 * 4096], 1024).unwrap();
    let mut seen = [0; 2].map(|_| std::collections::BTreeSet::new());
    for seed in 2..600_u64 {
        let content = storage.crash(seed).content(path()).unwrap();
        let odd = seed % 2 == 1;
        for (number, page) in content.chunks(4096).enumerate() {
            let ours = match number {
                0 => &page[1024..],
                2 => &page[..1024],
                _ => page,
            };
            let whole = ours.iter().all(|byte| *byte == ours[0]);
            assert!(whole || !odd, "seed {seed}: page {number} is torn");
        }
        seen[usize::from(odd)].insert(content);
    }
    assert_eq!(seen[1].len(), 8, "every subset of three pages");
    assert!(seen[0].len() > 200, "{} of the sectors'", seen[0].len());
}

/// A page in the host's cache has all that was written to it before, or the disk has an older page.
#[test]
fn a_page_never_has_a_later_write_without_an_earlier_one() {
    let (storage, file) = with_file();
    file.write_at(&[2; 512], 0).unwrap();
    file.write_at(&[3; 512], 512).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in (3..200).step_by(2) {
        let content = storage.crash(seed).content(path()).unwrap();
        seen.insert((content[0], content[512]));
    }
    assert_eq!(seen, [(1, 1), (2, 1), (2, 3)].into());
}

#[test]
fn some_seeds_keep_the_first_changes_in_their_order() {
    let (storage, file) = with_file();
    for number in 0..20_u8 {
        file.write_at(&[number + 2; 512], u64::from(number) * 512 + 4096)
            .unwrap();
    }
    let prefixes = (2..400)
        .map(|seed| storage.crash(seed).content(path()).unwrap())
        .filter(|content| {
            let written = &content[4096..];
            (0_u8..)
                .zip(written.chunks(512))
                .all(|(number, sector)| sector == [number + 2; 512])
        });
    let lengths: std::collections::BTreeSet<usize> = prefixes.map(|c| c.len()).collect();
    assert!(lengths.len() > 15, "{lengths:?}");
}

#[test]
fn the_same_seed_is_the_same_crash() {
    let (storage, file) = with_file();
    file.write_at(&[2; 4096], 0).unwrap();
    for seed in 0..20 {
        let first = storage.crash(seed).content(path()).unwrap();
        assert_eq!(storage.crash(seed).content(path()).unwrap(), first);
    }
}

#[test]
fn an_older_write_never_replaces_a_newer_one() {
    let (storage, file) = with_file();
    file.write_at(&[2; 512], 0).unwrap();
    file.write_at_durable(&[3; 512], 0).unwrap();
    file.write_at(&[4; 512], 0).unwrap();
    file.write_at(&[5; 512], 0).unwrap();
    let seen: std::collections::BTreeSet<u8> = (0..100)
        .map(|seed| storage.crash(seed).content(path()).unwrap()[0])
        .collect();
    assert_eq!(seen, [3, 4, 5].into());
}

#[test]
fn a_durable_write_does_not_sync_the_others() {
    let (storage, file) = with_file();
    file.write_at(&[2; 2048], 0).unwrap();
    file.write_at_durable(&[3; 512], 512).unwrap();
    assert!(storage.has_unsynced(path()));
    let content = storage.crash(0).content(path()).unwrap();
    assert_eq!((content[0], content[512], content[1024]), (1, 3, 1));
}

#[test]
fn a_durable_write_past_a_new_length_is_found_again() {
    let (storage, file) = with_file();
    file.set_length(0).unwrap();
    file.write_at_durable(&[3; 512], 8192).unwrap();
    let content = storage.crash(0).content(path()).unwrap();
    assert_eq!(content.len(), 8704);
    assert!(content[..8192].iter().all(|byte| *byte == 0));
    assert_eq!(content[8192..], [3; 512]);
}

#[test]
fn names_are_durable_after_their_directory_is() {
    let storage = FakeStorage::new();
    storage.create_dir_all(Path::new("/d")).unwrap();
    let file = storage
        .open(Path::new("/d/x"), OpenMode::CreateNew)
        .unwrap();
    file.sync().unwrap();
    assert_eq!(
        storage.crash(0).list(Path::new("/d")).unwrap(),
        [] as [PathBuf; 0]
    );
    storage.sync_dir(Path::new("/")).unwrap();
    assert!(!storage.crash(0).exists(Path::new("/d/x")).unwrap());
    storage.sync_dir(Path::new("/d")).unwrap();
    assert!(storage.crash(0).exists(Path::new("/d/x")).unwrap());
    storage
        .rename(Path::new("/d/x"), Path::new("/d/y"))
        .unwrap();
    for seed in 0..50 {
        let left = storage.crash(seed).list(Path::new("/d")).unwrap();
        assert_eq!(left.len(), 1, "a rename is atomic");
    }
    storage.remove(Path::new("/d/y")).unwrap();
    assert!(storage.crash(0).exists(Path::new("/d/x")).unwrap());
    assert!(!storage.crash(1).exists(Path::new("/d/y")).unwrap());
}

#[test]
fn replace_survives_death_at_every_operation() {
    let work = |storage: &FakeStorage| -> io::Result<()> {
        replace(storage, path(), &[1; 1000])?;
        replace(storage, path(), &[2; 3000])
    };
    let whole = FakeStorage::new();
    work(&whole).unwrap();
    for count in 0..=whole.operation_count() {
        let storage = FakeStorage::new();
        storage.die_after(count);
        let done = work(&storage).is_ok();
        assert_eq!(done, count == whole.operation_count());
        for seed in 0..16 {
            let after = storage.crash(seed);
            match after.content(path()) {
                Ok(content) if content == [1; 1000] => assert!(!done),
                Ok(content) => assert_eq!(content, [2; 3000]),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::NotFound);
                    assert!(count < whole.operation_count() / 2);
                }
            }
            replace(&after, path(), b"it works again").unwrap();
        }
        let killed = storage.after_kill();
        replace(&killed, path(), b"it works again").unwrap();
    }
}

#[test]
fn a_failed_sync_loses_a_part_and_poisons() {
    let (storage, file) = with_file();
    file.write_at(&[2; 4096], 0).unwrap();
    storage.fail(fault(FaultOn::Sync, 1, io::ErrorKind::Other));
    assert!(file.sync().is_err());
    assert!(file.sync().is_err());
    assert!(file.write_at(&[3; 512], 0).is_err());
    assert!(file.set_length(0).is_err());
    let left = storage.content(path()).unwrap();
    assert_eq!(
        storage.crash(1).content(path()).unwrap(),
        left,
        "what is lost stays lost"
    );
    let again = storage.after_kill();
    again
        .open(path(), OpenMode::ReadWrite)
        .unwrap()
        .write_at(&[3], 0)
        .unwrap();
}

#[test]
fn faults_hit_the_nth_call_on_their_file() {
    let (storage, file) = with_file();
    let other = storage.open(Path::new("/b"), OpenMode::CreateNew).unwrap();
    storage.fail(Fault {
        on: FaultOn::Write,
        path: Some(path().to_owned()),
        nth: 2,
        kind: io::ErrorKind::StorageFull,
    });
    other.write_at(&[1], 0).unwrap();
    other.write_at(&[1], 0).unwrap();
    file.write_at(&[2; 512], 0).unwrap();
    let failed = file.write_at(&[3; 2048], 0).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    let content = storage.content(path()).unwrap();
    assert_eq!(
        (content[0], content[1023], content[1024]),
        (3, 3, 1),
        "half of it is there"
    );
    file.write_at(&[3; 512], 0).unwrap();
    storage.fail(fault(FaultOn::SyncDir, 1, io::ErrorKind::Other));
    assert!(storage.sync_dir(Path::new("/")).is_err());
    storage.fail(fault(FaultOn::Name, 1, io::ErrorKind::Other));
    assert!(storage.remove(path()).is_err());
    storage.fail(fault(FaultOn::Space, 1, io::ErrorKind::StorageFull));
    assert!(file.allocate(0, 8192).is_err());
    file.allocate(0, 8192).unwrap();
}

#[test]
fn bad_sectors_fail_reads() {
    let (storage, file) = with_file();
    storage.fail_reads(path(), 512..1024);
    let mut buf = [0; 512];
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(
        file.read_at(&mut buf, 513).unwrap_err().raw_os_error(),
        Some(5)
    );
    storage.clear_faults();
    file.read_at(&mut buf, 513).unwrap();
}

#[test]
fn space_is_limited_and_comes_back() {
    let (storage, file) = with_file();
    storage.limit_space(Some(12 * 1024));
    assert_eq!(storage.free_bytes(path()).unwrap(), 8192);
    file.set_length(1 << 40).unwrap();
    file.write_at(&[1; 8192], 8192).unwrap();
    let full = file.write_at(&[1], 1 << 30).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    file.write_at(&[2; 4096], 0).unwrap();
    file.punch_hole(8192, 4096).unwrap();
    file.write_at(&[1], 1 << 30).unwrap();
    assert!(file.allocate(0, 1 << 20).is_err());
}

#[test]
fn counters_and_operations_tell_what_was_done() {
    let (storage, file) = with_file();
    file.write_at_durable(&[1; 512], 0).unwrap();
    file.read_at(&mut [0; 10], 0).unwrap();
    let counters = storage.counters(path());
    assert_eq!(
        counters,
        Counters {
            reads: 1,
            writes: 2,
            bytes_written: 4608,
            syncs: 2
        }
    );
    let whats: Vec<What> = storage
        .operations()
        .into_iter()
        .map(|done| done.what)
        .collect();
    assert_eq!(
        whats,
        [
            What::Create,
            What::Write {
                offset: 0,
                length: 4096,
                durable: false
            },
            What::Sync,
            What::SyncDir,
            What::Write {
                offset: 0,
                length: 512,
                durable: true
            },
        ]
    );
    assert_eq!(storage.operation_count(), 5);
}

#[test]
fn a_dead_process_changes_nothing_more() {
    let (storage, file) = with_file();
    storage.die_after(storage.operation_count() + 1);
    file.write_at(&[2; 512], 0).unwrap();
    assert!(!storage.is_dead());
    assert!(file.sync().is_err());
    assert!(storage.is_dead());
    assert!(file.read_at(&mut [0; 1], 0).is_err());
    assert!(storage.open(path(), OpenMode::Read).is_err());
    assert_eq!(storage.after_kill().content(path()).unwrap()[0], 2);
    assert_eq!(storage.crash(0).content(path()).unwrap()[0], 1);
}

#[test]
fn bit_rot_is_durable() {
    let (storage, _file) = with_file();
    storage.overwrite(path(), 100, &[0xff]).unwrap();
    assert_eq!(storage.crash(0).content(path()).unwrap()[100], 0xff);
}

/// Random changes to one file, checked against plain bytes, before and after syncs.
#[test]
fn random_changes_match_a_model() {
    let mut rng = rng::Rng::new(7);
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut synced = model.clone();
    for round in 0..3000 {
        let offset = rng.below(40_000);
        let length = rng.below(10_000);
        let (from, to) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(offset + length).unwrap(),
        );
        let byte = u8::try_from(rng.below(255) + 1).unwrap();
        match rng.below(7) {
            0 | 1 => {
                file.write_at(&vec![byte; to - from], offset).unwrap();
                if length > 0 {
                    model.resize(model.len().max(to), 0);
                    model[from..to].fill(byte);
                }
            }
            2 | 3 => {
                if rng.below(2) == 0 {
                    file.punch_hole(offset, length).unwrap();
                } else {
                    file.zero_range(offset, length).unwrap();
                }
                let end = to.min(model.len());
                model[from.min(end)..end].fill(0);
            }
            4 => {
                file.set_length(offset).unwrap();
                model.resize(from, 0);
            }
            5 => {
                file.allocate(offset, length).unwrap();
                if length > 0 {
                    model.resize(model.len().max(to), 0);
                }
            }
            _ => {
                file.sync().unwrap();
                synced.clone_from(&model);
            }
        }
        assert!(storage.content(path()).unwrap() == model, "round {round}");
        assert!(
            storage.crash(0).content(path()).unwrap() == synced,
            "round {round}"
        );
        assert!(
            storage.crash(1).content(path()).unwrap() == model,
            "round {round}"
        );
    }
}
