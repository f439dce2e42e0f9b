//! VHD files of others read and written by us, and ours by QEMU and 7-Zip.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhd::{ChildOptions, CreateOptions, Kind, VhdImage};
use sitepair_disk::{ErrorKind, ExtentKind, Image, Run, ZeroMode};
use tempfile::TempDir;

use crate::vhdx::{alone, has_qemu, run, skipped, text, unpack};

const MIB: u64 = 1 << 20;
const CHILD_FILE: &str = "SITEPAIR_TEST_VHD_CHILD_FILE";

fn has_7z() -> bool {
    let found = Command::new("7z").stdout(Stdio::null()).status().is_ok();
    if !found {
        skipped("7z is not installed");
    }
    found
}

fn open(path: &Path, read_only: bool) -> VhdImage {
    VhdImage::open(Arc::new(HostStorage::new()), path, read_only).expect("it opens")
}

fn create(path: &Path, size_bytes: u64, block_kib: u32, kind: Kind) -> VhdImage {
    let options = CreateOptions {
        size_bytes,
        block_bytes: block_kib << 10,
        kind,
        disk_id: None,
    };
    VhdImage::create(Arc::new(HostStorage::new()), path, &options).expect("it is made")
}

fn number(value: usize) -> u64 {
    u64::try_from(value).expect("a 64-bit host")
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit host")
}

/// The whole content of a disk.
fn content(image: &VhdImage) -> Vec<u8> {
    let mut all = vec![0; index(image.geometry().size_bytes)];
    image.read_at(&mut all, 0).expect("it reads");
    all
}

/// QEMU and 7-Zip see the same bytes in `vhd` as in `model`.
fn same_for_others(vhd: &Path, model: &[u8], qemu: bool) {
    if qemu && has_qemu() {
        let raw = vhd.with_extension("raw");
        std::fs::write(&raw, model).expect("there is room");
        let both = ["compare", "-f", "vpc", "-F", "raw", text(vhd), text(&raw)];
        run("qemu-img", &both);
        let info = run(
            "qemu-img",
            &["info", "-f", "vpc", "--output=json", text(vhd)],
        );
        let info = String::from_utf8(info.stdout).expect("JSON");
        let size = format!("\"virtual-size\": {}", model.len());
        assert!(info.contains(&size), "{info}");
    }
    if has_7z() {
        // `-tVHD`, or it goes on into what the disk holds.
        let output = run("7z", &["x", "-so", "-tVHD", text(vhd)]);
        assert!(output.stdout == model, "7-Zip sees other bytes");
    }
}

/// The same operations on an image and on a model.
fn scribble(image: &VhdImage, model: &mut [u8], seed: u64) {
    let mut state = seed;
    let mut next = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let sectors = number(model.len()) / 512;
    for turn in 0..150_u64 {
        let from = next(sectors);
        let count = (1 + next(1000)).min(sectors - from);
        let (offset, length) = (from * 512, count * 512);
        let range = index(offset)..index(offset + length);
        let byte = u8::try_from(turn % 255 + 1).expect("a byte");
        match next(8) {
            0..=4 => {
                model[range.clone()].fill(byte);
                image
                    .write_at(&model[range], offset, next(32) == 0)
                    .expect("it writes");
            }
            5 => {
                let from = offset / (2 * MIB) * 2 * MIB;
                let end = (from + 2 * MIB).min(sectors * 512);
                image.discard(from, end - from).expect("it trims");
                model[index(from)..index(end)].fill(0);
            }
            6 => {
                let mode = if turn % 2 == 0 {
                    ZeroMode::KeepAllocated
                } else {
                    ZeroMode::MayUnmap
                };
                image
                    .write_zeroes(offset, length, mode, false)
                    .expect("it zeroes");
                model[range].fill(0);
            }
            _ => image.flush().expect("it flushes"),
        }
    }
}

#[test]
fn ours_is_equal_for_others_and_theirs_for_us() {
    let _alone = alone();
    for (turn, block_kib, kind) in [
        (1, 512, Kind::Dynamic),
        (2, 2048, Kind::Dynamic),
        (3, 2048, Kind::Fixed),
    ] {
        let dir = TempDir::new().unwrap();
        let vhd = dir.path().join("a.vhd");
        let size = 20 * MIB + 512;
        let mut model = vec![0; index(size)];
        let image = create(&vhd, size, block_kib, kind);
        scribble(&image, &mut model, turn);
        image.close().unwrap();
        drop(image);
        same_for_others(&vhd, &model, true);
        if has_qemu() {
            // And the other way: QEMU writes, into new blocks too, and we read.
            let write = format!("write -P 0x5a {} 3M", 15 * MIB);
            run("qemu-io", &["-f", "vpc", "-c", &write, text(&vhd)]);
            model[15 << 20..18 << 20].fill(0x5a);
            assert!(content(&open(&vhd, true)) == model);
        }
        // Grown by us past its table, read by others.
        let image = open(&vhd, false);
        image.resize(80 * MIB).unwrap();
        image.write_at(&[9; 4096], 79 * MIB, false).unwrap();
        image.close().unwrap();
        drop(image);
        model.resize(80 << 20, 0);
        model[79 << 20..(79 << 20) + 4096].fill(9);
        same_for_others(&vhd, &model, true);
    }
}

#[test]
fn images_made_by_qemu_are_read_and_written() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    for (subformat, force_size) in [("dynamic", "on"), ("dynamic", "off"), ("fixed", "on")] {
        let dir = TempDir::new().unwrap();
        let (vhd, raw) = (dir.path().join("q.vhd"), dir.path().join("q.raw"));
        let mut model: Vec<u8> = (0_u32..10 << 20)
            .map(|at| (at >> 12_u32).to_le_bytes()[0])
            .collect();
        model[3 << 20..7 << 20].fill(0);
        std::fs::write(&raw, &model).unwrap();
        let options = format!("subformat={subformat},force_size={force_size}");
        let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", &options];
        run(
            "qemu-img",
            &[&convert[..], &[text(&raw), text(&vhd)]].concat(),
        );
        let image = open(&vhd, false);
        // Without `force_size` it is what the geometry says, rounded up.
        let size = index(image.geometry().size_bytes);
        assert!(if force_size == "on" {
            size == model.len()
        } else {
            size >= model.len()
        });
        model.resize(size, 0);
        assert!(content(&image) == model);
        scribble(&image, &mut model, 7);
        image.close().unwrap();
        drop(image);
        same_for_others(&vhd, &model, true);
    }
}

#[test]
fn differencing_disks_are_extracted_equal_by_7_zip() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let (below, vhd) = (dir.path().join("below.vhd"), dir.path().join("child.vhd"));
    let size = 12 * MIB;
    let mut model = vec![0; index(size)];
    let image = create(&below, size, 2048, Kind::Dynamic);
    scribble(&image, &mut model, 11);
    image.close().unwrap();
    drop(image);
    let storage = Arc::new(HostStorage::new());
    let parent = Arc::new(open(&below, true));
    let over = ChildOptions {
        parent_path: below.clone(),
        block_bytes: 2 << 20,
    };
    let image = VhdImage::create_child(storage, &vhd, &parent, &over).unwrap();
    scribble(&image, &mut model, 12);
    assert!(content(&image) == model);
    image.close().unwrap();
    drop(image);
    same_for_others(&vhd, &model, false);
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else {
        return;
    };
    let image = create(Path::new(&path), 1024 * MIB, 2048, Kind::Dynamic);
    let mut out = std::io::stdout();
    for turn in 0.. {
        let offset = turn * 7 % 1024 * MIB;
        image.write_at(&[0x77; 4096], offset, false).unwrap();
        // In a line of its own: the harness writes there, too.
        writeln!(out, "\nwrote {offset}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_a_killed_process_answered_is_there_for_us_and_for_qemu() {
    use std::io::{BufRead, BufReader};
    let _alone = alone();
    for lines in [1, 40, 120] {
        let dir = TempDir::new().unwrap();
        let vhd = dir.path().join("k.vhd");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "vhd::child_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_FILE, &vhd)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let told: Vec<u64> = output
            .lines()
            .map(Result::unwrap)
            .filter_map(|line| line.strip_prefix("wrote ").map(|at| at.parse().unwrap()))
            .take(lines)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(told.len(), lines);
        if has_qemu() {
            for at in told.iter().rev().take(3) {
                let look = format!("read -P 0x77 {at} 4096");
                let output = run("qemu-io", &["-f", "vpc", "-r", "-c", &look, text(&vhd)]);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(!text.contains("failed"), "{text}");
            }
        }
        let image = open(&vhd, false);
        for at in told {
            let mut buf = [0; 4096];
            image.read_at(&mut buf, at).unwrap();
            assert_eq!(buf, [0x77; 4096]);
        }
        image.write_at(&[1; 512], 512, false).unwrap();
        image.close().unwrap();
        assert!(
            std::fs::metadata(&vhd).unwrap().len() < 1024 * MIB / 2,
            "cut again"
        );
    }
}

struct Sample {
    name: &'static str,
    sha256: &'static str,
    kind: Kind,
    size_bytes: u64,
    /// Whether QEMU takes the size that the footer says.
    qemu: bool,
}

const SAMPLES: &[Sample] = &[
    Sample {
        name: "dynamic.vhd",
        sha256: "c480b888eb23659772bc4b669a79f1850430e74b4ae5011a68195446a49a67e1",
        kind: Kind::Dynamic,
        size_bytes: 10 * MIB,
        qemu: true,
    },
    Sample {
        name: "fixed.vhd",
        sha256: "80220c551144b2a5d0b1186bd86c48440b0be1c7084550ae057b5b371ee2fdc8",
        kind: Kind::Fixed,
        size_bytes: 10 * MIB,
        qemu: true,
    },
    Sample {
        name: "d2v-zerofilled.vhd",
        sha256: "af175e3c442b659e26b91029aacf2e62f2f7cf054404446db3185aafc38e079f",
        kind: Kind::Dynamic,
        size_bytes: 0x0FB4_0000,
        qemu: true,
    },
    Sample {
        name: "hyperv2012r2-dynamic.vhd",
        sha256: "1340b8a51517ba5f0112c47694f3c8a4a2bb4f9933336a18cf0392f3490c6674",
        kind: Kind::Dynamic,
        size_bytes: 127 << 30,
        qemu: false,
    },
    Sample {
        name: "virtualpc-dynamic.vhd",
        sha256: "7675fd9bcc5f705f69e69a2c5e948d2a6522eaac044540a0782ae6097a458d6a",
        kind: Kind::Dynamic,
        size_bytes: 127 << 30,
        qemu: false,
    },
];

#[test]
fn images_of_windows_and_others_are_read_as_others_read_them() {
    let _alone = alone();
    for sample in SAMPLES {
        let dir = TempDir::new().unwrap();
        let Some(vhd) = unpack(&dir, sample.name, sample.sha256) else {
            return;
        };
        let image = open(&vhd, true);
        assert_eq!(image.kind(), sample.kind, "{}", sample.name);
        assert_eq!(
            image.geometry().size_bytes,
            sample.size_bytes,
            "{}",
            sample.name
        );
        if sample.qemu {
            let model = content(&image);
            drop(image);
            same_for_others(&vhd, &model, true);
            written_by_us(&vhd, model);
        } else {
            let mut data = 0;
            let mut count = |Run { length, kind, .. }: Run| {
                data += if kind == ExtentKind::Data { length } else { 0 };
                true
            };
            image.extents(0, sample.size_bytes, &mut count).unwrap();
            assert_eq!(data, 0, "{} is empty", sample.name);
            drop(image);
            written_at_its_end(&vhd);
        }
    }
}

/// Taken into use, written and closed, it holds the same and the new.
fn written_by_us(vhd: &Path, mut model: Vec<u8>) {
    let image = open(vhd, false);
    for at in [0, model.len() / 2 / 512 * 512, model.len() - 4096] {
        image
            .write_at(&[0xA7; 4096], number(at), false)
            .expect("it writes");
        model[at..at + 4096].fill(0xA7);
    }
    image.close().expect("it closes");
    drop(image);
    same_for_others(vhd, &model, true);
}

fn written_at_its_end(vhd: &Path) {
    let image = open(vhd, false);
    let size = image.geometry().size_bytes;
    image
        .write_at(&[0xA7; 4096], size - 4096, true)
        .expect("it writes");
    image.close().expect("it closes");
    drop(image);
    let mut buf = [0; 8192];
    open(vhd, true)
        .read_at(&mut buf, size - 8192)
        .expect("it reads");
    assert_eq!(buf[..4096], [0; 4096]);
    assert_eq!(buf[4096..], [0xA7; 4096]);
    let length = std::fs::metadata(vhd).expect("it is there").len();
    assert!(length.is_multiple_of(4096) && length < 4 * MIB, "{length}");
}

#[test]
fn a_file_in_use_by_qemu_is_refused() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let vhd: PathBuf = dir.path().join("l.vhd");
    let image = create(&vhd, 8 * MIB, 2048, Kind::Dynamic);
    let refused = Command::new("qemu-io")
        .args(["-f", "vpc", "-c", "write 0 4096", text(&vhd)])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "QEMU writes beside us");
    let again = VhdImage::open(Arc::new(HostStorage::new()), &vhd, false);
    assert_eq!(again.err().unwrap().kind(), ErrorKind::Locked);
    image.close().unwrap();
}
