//! What we write, as libvhdi reads it: a library that shares nothing with QEMU, 7-Zip or us.
//!
//! Only what libvhdi is right about: fixed and dynamic images that were closed. It ignores the log of a VHDX, and
//! takes the bits of differencing disks for something else.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use sitepair_disk::create::{self, Kind, NewImage};
use sitepair_disk::open::{Format, OpenOptions, open_image};
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::{Image, ZeroMode};
use tempfile::TempDir;

use crate::vhdx::{alone, skipped, text};

/// Debian's package is for Debian's Python.
const PYTHON: &str = "/usr/bin/python3";
/// Writes the size of the disk in 8 bytes and then the disk.
const READER: &str = "\
import pyvhdi, sys
disk = pyvhdi.file()
disk.open(sys.argv[1])
out = sys.stdout.buffer
size = disk.get_media_size()
out.write(size.to_bytes(8, 'little'))
at = 0
while at < size:
    part = disk.read_buffer_at_offset(min(1 << 20, size - at), at)
    out.write(part)
    at += len(part)
";

fn has_libvhdi() -> bool {
    let found = Command::new(PYTHON)
        .args(["-c", "import pyvhdi"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        skipped("libvhdi for Python is not installed");
    }
    found
}

/// The disk in `path` as libvhdi reads it.
fn read_by_libvhdi(path: &Path) -> Vec<u8> {
    let output = crate::vhdx::run(PYTHON, &["-c", READER, text(path)]).stdout;
    let (size, disk) = output.split_first_chunk().expect("the size comes first");
    let size = usize::try_from(u64::from_le_bytes(*size)).expect("a small disk");
    assert_eq!(disk.len(), size, "libvhdi read another number of bytes");
    disk.to_vec()
}

/// Random changes to an image and to a model of it, in whole sectors of 4096 bytes.
fn scribble(image: &dyn Image, model: &mut [u8], seed: u64) {
    const UNIT: usize = 4096;
    let mut state = seed;
    let mut next = |end: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % end
    };
    let units = model.len() / UNIT;
    for turn in 0..120_usize {
        let from = next(units);
        let count = 1 + next((units - from).min(300));
        let range = from * UNIT..(from + count) * UNIT;
        let offset = u64::try_from(range.start).expect("small");
        if next(4) == 0 {
            let length = u64::try_from(range.len()).expect("small");
            let zeroed = image.write_zeroes(offset, length, ZeroMode::MayUnmap, false);
            zeroed.expect("it zeroes");
            model[range].fill(0);
        } else {
            model[range.clone()].fill(u8::try_from(turn % 255 + 1).expect("a byte"));
            let written = image.write_at(&model[range], offset, false);
            written.expect("it writes");
        }
    }
}

#[test]
fn ours_is_equal_for_libvhdi() {
    let _alone = alone();
    if !has_libvhdi() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    const MIB: u32 = 1 << 20;
    let cases = [
        (Format::Vhd, Kind::Fixed, None, None),
        (Format::Vhd, Kind::Dynamic, None, None),
        (Format::Vhd, Kind::Dynamic, Some(512 << 10), None),
        (Format::Vhdx, Kind::Fixed, None, None),
        (Format::Vhdx, Kind::Dynamic, Some(MIB), None),
        (Format::Vhdx, Kind::Dynamic, Some(32 * MIB), None),
        (Format::Vhdx, Kind::Dynamic, Some(2 * MIB), Some(4096)),
        (Format::Vhdx, Kind::Fixed, Some(MIB), Some(4096)),
    ];
    for (number, (format, kind, block_bytes, sector_bytes)) in (1_u64..).zip(cases) {
        let path = dir.path().join(format!("{number}.{format}"));
        let new = NewImage {
            format,
            kind,
            size_bytes: 20 << 20,
            block_bytes,
            sector_bytes,
            physical_sector_bytes: None,
        };
        let mut model = vec![0; 20 << 20];
        let image = create::create(&storage, &path, &new).expect("it is made");
        scribble(&*image, &mut model, number);
        image.close().expect("it closes");
        drop(image);
        let found = read_by_libvhdi(&path);
        assert_eq!(found.len(), model.len(), "{new:?}");
        let differ = found.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!(differ, None, "{new:?}");
        // And ours, written on after another opening.
        let options = OpenOptions {
            format: Some(format),
            ..OpenOptions::default()
        };
        let image = open_image(&storage, &path, options).expect("it opens");
        scribble(&*image, &mut model, number + 100);
        image.close().expect("it closes");
        drop(image);
        assert!(read_by_libvhdi(&path) == model, "{new:?} written again");
    }
}
