//! New disks: what they hold, how they lie in the file, and crashes while they are made.

use std::path::Path;
use std::sync::Arc;

use super::super::layout::Chs;
use super::super::{CreateOptions, Kind, VhdImage};
use super::{MIB, create, open, options, path};
use crate::error::ErrorKind;
use crate::image::{ExtentKind, Image};
use crate::storage::fake::FakeStorage;
use crate::storage::{OpenMode, Storage};
use crate::tests::{extents, read};

#[test]
fn the_geometry_follows_the_formats_rule() {
    // 10 MiB rounds down; 127 GiB is what Windows writes; beyond the format it stays at its maximum.
    for (size, cylinders, heads, sectors) in [
        (10 * MIB, 301, 4, 17),
        (127 << 30, 65278, 16, 255),
        (2040 << 30, 65535, 16, 255),
        (512, 0, 4, 17),
        (4 << 30, 8322, 16, 63),
    ] {
        let wanted = Chs {
            cylinders,
            heads,
            sectors,
        };
        assert_eq!(Chs::of(size), wanted, "{size} bytes");
    }
}

#[test]
fn a_new_disk_reads_as_zeros_and_keeps_what_it_was_given() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let storage = FakeStorage::new();
        let wanted = CreateOptions {
            disk_id: Some([9; 16]),
            kind,
            ..options(10 * MIB + 512, 2048)
        };
        let image = create(&storage, &wanted);
        assert_eq!(image.kind(), kind);
        assert_eq!(image.geometry().size_bytes, 10 * MIB + 512);
        assert_eq!(read(&image, 0, 10 << 20), vec![0; 10 << 20]);
        assert_eq!(image.identity().unwrap().data_write_id, [9; 16]);
        if kind == Kind::Dynamic {
            assert_eq!(extents(&image), [(0, 10 * MIB + 512, ExtentKind::Hole)]);
        }
        image.close().unwrap();
        let content = storage.content(path()).unwrap();
        let footer = &content[content.len() - 512..];
        assert!(footer.starts_with(b"conectix"));
        match kind {
            Kind::Fixed => assert_eq!(content.len(), (10 << 20) + 1024),
            _ => {
                assert_eq!(content.len(), 4096, "the end of a page");
                assert_eq!(footer, &content[..512]);
            }
        }
        assert_eq!(footer[56..60], [0xFF, 0xFF, 16, 255], "no program cuts it");
    }
}

#[test]
fn a_crash_while_creating_leaves_no_file_or_a_whole_one() {
    for kind in [Kind::Dynamic, Kind::Fixed] {
        let wanted = CreateOptions {
            kind,
            ..options(4 * MIB, 512)
        };
        let whole = FakeStorage::new();
        drop(super::super::create::create(&whole, path(), &wanted, None).unwrap());
        for count in 0..whole.operation_count() {
            let storage = FakeStorage::new();
            storage.die_after(count);
            super::super::create::create(&storage, path(), &wanted, None)
                .err()
                .unwrap();
            for seed in 0..6 {
                let after = storage.crash(seed);
                if after.exists(path()).unwrap() {
                    open(&after, false).unwrap().close().unwrap();
                }
            }
            let after = storage.after_kill();
            if !after.exists(path()).unwrap() {
                create(&after, &wanted).close().unwrap();
            }
        }
    }
}

#[test]
fn wrong_sizes_and_existing_files_are_refused_by_create() {
    let storage = FakeStorage::new();
    create(&storage, &options(MIB, 512)).close().unwrap();
    let again = VhdImage::create(Arc::new(storage.clone()), path(), &options(MIB, 512));
    assert_eq!(again.err().unwrap().kind(), ErrorKind::Io);
    for (size, block_kib) in [
        (0, 512),
        (513, 512),
        ((2040 << 30) + 512, 512),
        (MIB, 3),
        (MIB, 32),
        (MIB, 512 << 10),
    ] {
        let made = super::super::create::create(
            &storage,
            Path::new("/other"),
            &options(size, block_kib),
            None,
        );
        assert_eq!(made.err().unwrap().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn blocks_begin_on_pages_and_the_closed_file_ends_with_one() {
    for block_kib in [64, 512, 2048, 4096] {
        let storage = FakeStorage::new();
        let image = create(&storage, &options(64 * MIB, block_kib));
        for block in [3, 0, 2] {
            let at = block * u64::from(block_kib) * 1024;
            image.write_at(&[7; 512], at, false).unwrap();
        }
        image.close().unwrap();
        let content = storage.content(path()).unwrap();
        assert_eq!(content.len() % 4096, 0);
        let bitmap = (block_kib as usize * 2 / 8).next_multiple_of(512);
        for block in [0, 2, 3] {
            let entry: [u8; 4] = content[1536 + 4 * block..][..4].try_into().unwrap();
            let data = u32::from_be_bytes(entry) as usize * 512 + bitmap;
            assert_eq!(data % 4096, 0, "blocks of {block_kib} KiB");
            assert_eq!(content[data..data + 512], [7; 512]);
        }
    }
}

#[test]
fn the_largest_disk_opens_and_lists_at_once() {
    let storage = FakeStorage::new();
    let image = create(&storage, &options(2040 << 30, 2048));
    image
        .write_at(&[1; 512], (2040 << 30) - 512, false)
        .unwrap();
    let found = extents(&image);
    assert_eq!(found.first().unwrap().2, ExtentKind::Hole);
    assert!(found.len() < 8, "{found:?}");
    assert_eq!(found.iter().map(|e| e.1).sum::<u64>(), 2040 << 30);
    image.close().unwrap();
    let file = storage.open(path(), OpenMode::Read).unwrap();
    assert!(file.length().unwrap() < 8 << 20);
}
