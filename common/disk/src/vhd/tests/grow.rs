//! Disks that grow, and crash while they do.

use super::super::{CreateOptions, Kind};
use super::{MIB, create, open, options};
use crate::error::ErrorKind;
use crate::image::Image;
use crate::storage::fake::FakeStorage;
use crate::tests::read;

#[test]
fn a_disk_grows_while_open_and_stays_grown() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            kind,
            ..options(3 * MIB + 512, 512)
        };
        let image = create(&storage, &wanted);
        image.write_at(&vec![4; (3 << 20) + 512], 0, false).unwrap();
        for size in [20 * MIB, 50 * MIB] {
            image.resize(size).unwrap();
            assert_eq!(image.geometry().size_bytes, size);
            let after = open(&storage.crash(0), true).unwrap();
            assert_eq!(after.geometry().size_bytes, size, "durable on return");
            assert_eq!(read(&after, 3 * MIB, 512), [4; 512]);
            assert_eq!(read(&after, 3 * MIB + 512, 1 << 20), vec![0; 1 << 20]);
            image.write_at(&[6; 4096], size - 4096, true).unwrap();
            let refused = image.resize(MIB).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
        }
        image.close().unwrap();
        let image = open(&storage, true).unwrap();
        assert_eq!(read(&image, 50 * MIB - 4096, 4096), [6; 4096]);
        assert_eq!(read(&image, 20 * MIB - 4096, 4096), [6; 4096]);
    }
}

#[test]
fn a_crash_while_growing_leaves_the_old_or_the_new_size() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        for count in 0..16 {
            let storage = FakeStorage::new();
            let wanted = CreateOptions {
                kind,
                ..options(MIB + 512, 512)
            };
            let image = create(&storage, &wanted);
            image.write_at(&vec![4; (1 << 20) + 512], 0, true).unwrap();
            storage.die_after(storage.operation_count() + count);
            let grown = image.resize(8 * MIB).is_ok();
            for seed in 0..24 {
                let what = format!("{kind:?}, operation {count}, seed {seed}");
                let after = storage.crash(seed);
                let image = open(&after, false).unwrap_or_else(|e| panic!("{what}: {e}"));
                let size = image.geometry().size_bytes;
                assert!(size == 8 * MIB || (!grown && size == MIB + 512), "{what}");
                assert_eq!(read(&image, 0, (1 << 20) + 512), vec![4; (1 << 20) + 512]);
                image.write_at(&[5; 512], 0, false).unwrap();
                image.resize(12 * MIB).unwrap();
                assert_eq!(
                    read(&image, MIB + 512, 2 << 20),
                    vec![0; 2 << 20],
                    "{what}: no former footer is seen"
                );
                assert!(read(&image, 8 * MIB - 512, 1024).iter().all(|b| *b == 0));
                image.close().unwrap();
                open(&after, true).unwrap();
            }
        }
    }
}
