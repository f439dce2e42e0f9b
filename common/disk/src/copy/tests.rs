use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::ExtentKind;
use crate::compare::{Compared, compare};
use crate::create::{Kind, NewImage, create};
use crate::open::Format;
use crate::storage::Storage;
use crate::storage::host::HostStorage;

const SIZE: u64 = 24 << 20;

fn image(dir: &Path, name: &str, format: Format, kind: Kind) -> Arc<dyn Image> {
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    let new = NewImage {
        format,
        kind,
        size_bytes: SIZE,
        block_bytes: (format == Format::Vhdx).then_some(1 << 20),
        sector_bytes: None,
        physical_sector_bytes: None,
    };
    create(&storage, &dir.join(name), &new).unwrap()
}

/// Data of every alignment, with zeros written among it.
fn fill(image: &dyn Image) {
    for (offset, length) in [
        (0, 512),
        (512 * 9, 512),
        (1 << 20, 3 << 20),
        ((8 << 20) - 512, 1024),
        (SIZE - 512, 512),
    ] {
        let bytes = vec![0x5a; usize::try_from(length).unwrap()];
        image.write_at(&bytes, offset, false).unwrap();
    }
    image.write_at(&vec![0; 1 << 20], 2 << 20, false).unwrap();
    image.write_at(&vec![0; 4 << 20], 12 << 20, false).unwrap();
}

fn data_bytes(image: &dyn Image) -> u64 {
    let mut bytes = 0;
    image
        .extents(0, SIZE, &mut |run| {
            if run.kind == ExtentKind::Data {
                bytes += run.length;
            }
            true
        })
        .unwrap();
    bytes
}

#[test]
fn content_is_kept_and_zeros_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = [Kind::Dynamic, Kind::Fixed];
    let formats = [Format::Raw, Format::Vhd, Format::Vhdx];
    for from_format in formats {
        let from = image(
            dir.path(),
            &format!("from.{from_format}"),
            from_format,
            Kind::Dynamic,
        );
        fill(&*from);
        for (format, kind) in formats.iter().flat_map(|f| kinds.map(|k| (*f, k))) {
            let name = format!("{from_format}-{kind}.{format}");
            let to = image(dir.path(), &name, format, kind);
            let progress = Progress::new();
            let copied = copy(&*from, &*to, &progress).unwrap();
            assert_eq!(progress.done_bytes(), SIZE);
            // Three grains at the start and end, two at 8 MiB, and 2 MiB in the middle.
            let written = (2 << 20) + 2 * 4096 + 2 * 4096 + 4096;
            assert_eq!(copied.written_bytes, written, "{name}");
            assert!(copied.read_bytes >= copied.written_bytes);
            if kind == Kind::Dynamic {
                assert!(data_bytes(&*to) <= written, "{name}");
            }
            to.flush().unwrap();
            let same = compare(&*from, &*to, &Progress::new()).unwrap();
            let expected = Compared {
                first_bytes: SIZE,
                second_bytes: SIZE,
                difference: None,
            };
            assert_eq!(same, expected, "{name}");
        }
    }
}

#[test]
fn a_stop_and_a_wrong_size_end_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let from = image(dir.path(), "from", Format::Raw, Kind::Dynamic);
    let to = image(dir.path(), "to", Format::Vhdx, Kind::Dynamic);
    fill(&*from);
    let progress = Progress::new();
    progress.stop();
    let stopped = copy(&*from, &*to, &progress);
    assert!(matches!(stopped, Err(CopyError::Stopped)));
    let grown =
        crate::vhdx::VhdxImage::open(Arc::new(HostStorage::new()), &dir.path().join("to"), true);
    assert!(grown.is_err(), "it is locked while it is being written");
    drop(to);
    let small =
        crate::raw::RawImage::create(&HostStorage::new(), &dir.path().join("small"), 512).unwrap();
    let wrong = copy(&*from, &small, &Progress::new());
    assert!(matches!(wrong, Err(CopyError::Sizes { .. })));
}

#[test]
fn a_target_that_cannot_be_written_ends_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let from = image(dir.path(), "from", Format::Raw, Kind::Dynamic);
    fill(&*from);
    let path = dir.path().join("to");
    crate::raw::RawImage::create(&HostStorage::new(), &path, SIZE)
        .unwrap()
        .close()
        .unwrap();
    let to = crate::raw::RawImage::open(&HostStorage::new(), &path, true).unwrap();
    let failed = copy(&*from, &to, &Progress::new());
    assert!(matches!(failed, Err(CopyError::Write(_))));
}

#[test]
fn stretches_are_whole_grains_without_zeros() {
    let mut buf = vec![0; 5 * GRAIN_BYTES + 512];
    assert_eq!(stretches(&buf).count(), 0);
    buf[GRAIN_BYTES] = 1;
    buf[3 * GRAIN_BYTES - 1] = 1;
    buf[5 * GRAIN_BYTES] = 1;
    let found: Vec<_> = stretches(&buf).collect();
    assert_eq!(
        found,
        [
            GRAIN_BYTES..3 * GRAIN_BYTES,
            5 * GRAIN_BYTES..5 * GRAIN_BYTES + 512
        ]
    );
}
