//! The contract of [`Storage`] and [`BlockFile`], checked against both implementations.

use super::fake::FakeStorage;
use super::host::HostStorage;
use super::*;

/// Runs a check in an empty directory of each storage.
fn on_both(check: fn(&dyn Storage, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    check(&HostStorage::new(), folder.path());
    let fake = FakeStorage::new();
    fake.create_dir_all(Path::new("/tree")).unwrap();
    check(&fake, Path::new("/tree"));
}

fn runs(file: &dyn BlockFile, offset: u64, length: u64) -> Vec<(u64, u64, FileExtent)> {
    let mut found = Vec::new();
    file.extents(offset, length, &mut |at, bytes, kind| {
        found.push((at, bytes, kind));
        true
    })
    .unwrap();
    found
}

fn read(file: &dyn BlockFile, offset: u64, bytes: usize) -> Vec<u8> {
    let mut buf = vec![0xee; bytes];
    file.read_at(&mut buf, offset).unwrap();
    buf
}

fn kind_of<T>(result: io::Result<T>) -> io::ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(e) => e.kind(),
    }
}

#[test]
fn what_is_written_is_read() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        assert_eq!(file.length().unwrap(), 0);
        file.write_at(b"hello", 4094).unwrap();
        file.write_at_durable(b"J", 4094).unwrap();
        assert_eq!(file.length().unwrap(), 4099);
        assert_eq!(read(&*file, 4092, 7), b"\0\0Jello");
        file.write_at(&[], 1 << 30).unwrap();
        assert_eq!(file.length().unwrap(), 4099);
        file.sync().unwrap();
    });
}

#[test]
fn a_read_past_the_end_fails() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        file.write_at(&[1; 10], 0).unwrap();
        let mut buf = [0; 11];
        assert_eq!(
            kind_of(file.read_at(&mut buf, 0)),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            kind_of(file.read_at(&mut buf, 100)),
            io::ErrorKind::UnexpectedEof
        );
    });
}

#[test]
fn modes_are_kept() {
    on_both(|storage, dir| {
        let path = dir.join("a");
        assert_eq!(
            kind_of(storage.open(&path, OpenMode::Read)),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            kind_of(storage.open(&path, OpenMode::ReadWrite)),
            io::ErrorKind::NotFound
        );
        storage.open(&path, OpenMode::CreateNew).unwrap();
        assert_eq!(
            kind_of(storage.open(&path, OpenMode::CreateNew)),
            io::ErrorKind::AlreadyExists
        );
        let reader = storage.open(&path, OpenMode::Read).unwrap();
        assert!(reader.write_at(&[1], 0).is_err());
        assert!(reader.set_length(1).is_err());
        assert_eq!(reader.length().unwrap(), 0);
        assert!(storage.open(dir, OpenMode::Read).is_err());
        let orphan = dir.join("none").join("a");
        assert_eq!(
            kind_of(storage.open(&orphan, OpenMode::CreateNew)),
            io::ErrorKind::NotFound
        );
    });
}

#[test]
fn a_cut_file_grows_with_zeros() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        file.write_at(&[7; 10_000], 0).unwrap();
        file.set_length(5_000).unwrap();
        file.set_length(10_000).unwrap();
        assert_eq!(read(&*file, 4_999, 2), [7, 0]);
        assert!(read(&*file, 5_000, 5_000).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn holes_are_told() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        file.set_length(1 << 20).unwrap();
        assert_eq!(runs(&*file, 512, 4096), [(512, 4096, FileExtent::Hole)]);
        file.write_at(&[1; 65536], 131_072).unwrap();
        assert_eq!(
            runs(&*file, 0, 2 << 20),
            [
                (0, 131_072, FileExtent::Hole),
                (131_072, 65_536, FileExtent::Data),
                (196_608, (2 << 20) - 196_608, FileExtent::Hole),
            ]
        );
        assert_eq!(
            runs(&*file, 131_584, 512),
            [(131_584, 512, FileExtent::Data)]
        );
        assert_eq!(
            runs(&*file, 4 << 20, 512),
            [(4 << 20, 512, FileExtent::Hole)]
        );
        assert_eq!(runs(&*file, 0, 0), []);
        let mut calls = 0;
        let mut stop = |_, _, _| {
            calls += 1;
            false
        };
        file.extents(0, 1 << 20, &mut stop).unwrap();
        assert_eq!(calls, 1);
    });
}

#[test]
fn punched_and_zeroed_ranges_read_as_zeros() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        file.write_at(&[9; 65_536], 0).unwrap();
        type Call = fn(&dyn BlockFile, u64, u64) -> io::Result<()>;
        let punch: Call = |file, offset, length| file.punch_hole(offset, length);
        let zero: Call = |file, offset, length| file.zero_range(offset, length);
        for (call, offset) in [(punch, 8_192 - 512), (zero, 32_768 - 512)] {
            match call(&*file, offset, 8_192 + 1_024) {
                // A file system may say that it cannot; then nothing has changed.
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported),
                Ok(()) => {
                    let around = read(&*file, offset - 1, 8_192 + 1_024 + 2);
                    assert_eq!((around[0], around[around.len() - 1]), (9, 9));
                    assert!(around[1..around.len() - 1].iter().all(|byte| *byte == 0));
                }
            }
            call(&*file, 0, 0).unwrap();
        }
        let _ = file.punch_hole(60_000, 100_000);
        let _ = file.zero_range(60_000, 100_000);
        assert_eq!(file.length().unwrap(), 65_536);
    });
}

#[test]
fn allocated_space_reads_as_zeros_and_keeps_data() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        file.write_at(&[5; 512], 4096).unwrap();
        if let Err(e) = file.allocate(0, 1 << 20) {
            assert_eq!(e.kind(), io::ErrorKind::Unsupported);
            return;
        }
        assert_eq!(file.length().unwrap(), 1 << 20);
        assert_eq!(read(&*file, 4095, 2), [0, 5]);
        assert!(read(&*file, 8192, 4096).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_change_is_seen_in_the_time_of_modification() {
    on_both(|storage, dir| {
        let file = storage.open(&dir.join("a"), OpenMode::CreateNew).unwrap();
        let before = file.modified_ns().unwrap();
        assert!(before > 0);
        file.write_at(&[1], 0).unwrap();
        assert!(file.modified_ns().unwrap() >= before);
    });
}

#[test]
fn names_change() {
    on_both(|storage, dir| {
        let (a, b, below) = (dir.join("a"), dir.join("b"), dir.join("c").join("d"));
        storage.create_dir_all(&below).unwrap();
        storage.create_dir_all(&below).unwrap();
        storage
            .open(&a, OpenMode::CreateNew)
            .unwrap()
            .write_at(b"a", 0)
            .unwrap();
        storage
            .open(&b, OpenMode::CreateNew)
            .unwrap()
            .write_at(b"b", 0)
            .unwrap();
        assert_eq!(
            storage.list(dir).unwrap(),
            [a.clone(), b.clone(), dir.join("c")]
        );
        let old = storage.open(&b, OpenMode::Read).unwrap();
        storage.rename(&a, &b).unwrap();
        assert!(!storage.exists(&a).unwrap());
        assert_eq!(read(&*old, 0, 1), b"b");
        assert_eq!(
            read(&*storage.open(&b, OpenMode::Read).unwrap(), 0, 1),
            b"a"
        );
        storage.rename(&b, &below.join("e")).unwrap();
        storage.sync_dir(&below).unwrap();
        assert!(storage.remove_dir(&below).is_err());
        storage.remove(&below.join("e")).unwrap();
        storage.remove_dir(&below).unwrap();
        assert!(!storage.exists(&below).unwrap());
        assert_eq!(kind_of(storage.remove(&a)), io::ErrorKind::NotFound);
        assert_eq!(kind_of(storage.rename(&a, &b)), io::ErrorKind::NotFound);
        assert_eq!(kind_of(storage.list(&below)), io::ErrorKind::NotFound);
        assert_eq!(kind_of(storage.sync_dir(&below)), io::ErrorKind::NotFound);
        assert!(storage.free_bytes(dir).unwrap() > 0);
    });
}

#[test]
fn a_new_name_replaces_nothing() {
    on_both(|storage, dir| {
        let names = ["a", "b", "c"].map(|name| dir.join(name));
        for (name, byte) in names.iter().zip(*b"ab") {
            let file = storage.open(name, OpenMode::CreateNew).unwrap();
            file.write_at(&[byte], 0).unwrap();
        }
        let taken = storage.rename_new(&names[0], &names[1]);
        assert_eq!(kind_of(taken), io::ErrorKind::AlreadyExists);
        storage.rename_new(&names[0], &names[2]).unwrap();
        assert!(!storage.exists(&names[0]).unwrap());
        let moved = storage.open(&names[2], OpenMode::Read).unwrap();
        assert_eq!(read(&*moved, 0, 1), b"a");
        let kept = storage.open(&names[1], OpenMode::Read).unwrap();
        assert_eq!(read(&*kept, 0, 1), b"b");
    });
}

#[test]
fn replace_leaves_the_new_content_only() {
    on_both(|storage, dir| {
        let path = dir.join("record");
        replace(storage, &path, b"one, longer").unwrap();
        replace(storage, &path, b"two").unwrap();
        let file = storage.open(&path, OpenMode::Read).unwrap();
        assert_eq!(file.length().unwrap(), 3);
        assert_eq!(read(&*file, 0, 3), b"two");
        assert_eq!(storage.list(dir).unwrap(), [path]);
    });
}

#[test]
fn locks_keep_others_out_until_dropped() {
    on_both(|storage, dir| {
        let path = dir.join("a");
        let first = storage.open(&path, OpenMode::CreateNew).unwrap();
        let second = storage.open(&path, OpenMode::ReadWrite).unwrap();
        first.lock(LockKind::Exclusive).unwrap();
        first.lock(LockKind::Exclusive).unwrap();
        assert_eq!(
            kind_of(second.lock(LockKind::Exclusive)),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            kind_of(second.lock(LockKind::Shared)),
            io::ErrorKind::WouldBlock
        );
        first.lock(LockKind::Shared).unwrap();
        second.lock(LockKind::Shared).unwrap();
        assert_eq!(
            kind_of(first.lock(LockKind::Exclusive)),
            io::ErrorKind::WouldBlock
        );
        drop(second);
        first.lock(LockKind::Exclusive).unwrap();
    });
}
