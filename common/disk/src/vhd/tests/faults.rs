//! Failures of the storage: which are final, and which are of one request.

use super::super::{CreateOptions, Kind};
use super::{MIB, create, open, options};
use crate::error::ErrorKind;
use crate::image::Image;
use crate::storage::fake::{FakeStorage, Fault, FaultOn};
use crate::tests::read;

#[test]
fn a_failed_sync_poisons_the_image() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            kind,
            ..options(8 * MIB, 512)
        };
        let image = create(&storage, &wanted);
        image.write_at(&[1; 512], 0, false).unwrap();
        image.flush().unwrap();
        image.write_at(&[2; 512], MIB, false).unwrap();
        storage.fail(Fault {
            on: FaultOn::Sync,
            path: None,
            nth: 1,
            kind: std::io::ErrorKind::Other,
        });
        image.flush().unwrap_err();
        let poisoned = [
            image.flush(),
            image.write_at(&[0; 512], 0, false),
            image.read_at(&mut [0; 512], 0),
            image.close(),
        ];
        for result in poisoned {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Poisoned);
        }
        drop(image);
        let after = open(&storage.crash(5), false).unwrap();
        assert_eq!(read(&after, 0, 512), [1; 512]);
    }
}

#[test]
fn a_failed_write_of_the_table_poisons_the_image() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(8 * MIB, 512));
    image.write_at(&[1; 512], 0, true).unwrap();
    storage.fail(Fault {
        on: FaultOn::Write,
        path: None,
        nth: 2,
        kind: std::io::ErrorKind::Other,
    });
    image.write_at(&[2; 512], MIB, false).unwrap_err();
    let later = image.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(later.kind(), ErrorKind::Poisoned);
}

#[test]
fn no_room_for_a_block_is_an_error_of_that_write_only() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 2048));
    image.write_at(&[1; 4096], 0, false).unwrap();
    image.flush().unwrap();
    storage.limit_space(Some(4 * MIB));
    let failed = image
        .write_at(&vec![2; 8 << 20], 8 * MIB, false)
        .unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    storage.limit_space(None);
    image.write_at(&[3; 4096], 32 * MIB, false).unwrap();
    assert_eq!(
        read(&image, 32 * MIB + 4096, 8192),
        [0; 8192],
        "not the failed one's"
    );
    image.write_at(&vec![3; 8 << 20], 8 * MIB, false).unwrap();
    image.close().unwrap();
    let after = open(&storage, true).unwrap();
    assert_eq!(read(&after, 8 * MIB, 8 << 20), vec![3; 8 << 20]);
    assert_eq!(read(&after, 0, 4096), [1; 4096]);
}

#[test]
fn no_room_to_grow_leaves_a_whole_file() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(64 * MIB, 2048));
    storage.limit_space(Some(4096));
    let failed = image.write_at(&[1; 4096], 0, false).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace);
    open(&storage.after_kill(), true).unwrap();
    storage.limit_space(None);
    image.write_at(&[1; 4096], 0, true).unwrap();
    let after = open(&storage.crash(0), true).unwrap();
    assert_eq!(read(&after, 0, 4096), [1; 4096]);
}
