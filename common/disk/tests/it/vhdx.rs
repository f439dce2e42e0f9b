//! VHDX files of others read and written by us, and ours by QEMU.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use sitepair_disk::{ExtentKind, Image, Run, ZeroMode};
use tempfile::TempDir;

pub(super) const MIB: u64 = 1 << 20;
/// Tests start other programs. Between fork and exec these hold copies of our descriptors, and so
/// the locks of files that another test has just closed and opens again.
static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(super) fn alone() -> MutexGuard<'static, ()> {
    ONE_TEST_AT_A_TIME
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

const CHILD_FILE: &str = "SITEPAIR_TEST_CHILD_FILE";

pub(super) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("the program is installed");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Says so even where the harness swallows a test's output.
pub(super) fn skipped(why: &str) {
    writeln!(std::io::stderr(), "skipped: {why}").expect("standard error is open");
}

pub(super) fn has_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        skipped("qemu-img is not installed");
    }
    found
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

fn open(path: &Path, read_only: bool) -> VhdxImage {
    VhdxImage::open(Arc::new(HostStorage::new()), path, read_only).expect("it opens")
}

pub(super) fn create(path: &Path, size_bytes: u64, block_mib: u32, kind: Kind) -> VhdxImage {
    let options = CreateOptions {
        size_bytes,
        block_bytes: block_mib << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind,
        disk_id: None,
    };
    VhdxImage::create(Arc::new(HostStorage::new()), path, &options).expect("it is made")
}

/// Writes the disk's content to a raw file.
fn export(image: &VhdxImage, raw: &Path) {
    let size = image.geometry().size_bytes;
    let mut file = std::fs::File::create(raw).expect("a raw file");
    let mut buf = vec![0; 4 << 20];
    let mut at = 0;
    while at < size {
        let step = usize::try_from((size - at).min(4 * MIB)).expect("small");
        image.read_at(&mut buf[..step], at).expect("it reads");
        file.write_all(&buf[..step]).expect("there is room");
        at += u64::try_from(step).expect("small");
    }
}

/// Compares our view of `vhdx` with QEMU's.
fn same_as_qemu(vhdx: &Path) {
    let raw = vhdx.with_extension("ours");
    let image = open(vhdx, true);
    export(&image, &raw);
    image.close().expect("it closes");
    run(
        "qemu-img",
        &["compare", "-f", "vhdx", "-F", "raw", text(vhdx), text(&raw)],
    );
    run("qemu-img", &["check", "-f", "vhdx", text(vhdx)]);
}

/// The same operations on an image and on a model.
pub(super) fn scribble(image: &VhdxImage, model: &mut [u8], seed: u64) {
    let mut state = seed;
    let mut next = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let sectors = u64::try_from(model.len()).expect("small") / 512;
    for turn in 0..300_u64 {
        let from = next(sectors);
        let count = (1 + next(2000)).min(sectors - from);
        let (offset, length) = (from * 512, count * 512);
        let range = usize::try_from(offset).expect("small")
            ..usize::try_from(offset + length).expect("small");
        let byte = u8::try_from(turn % 255 + 1).expect("a byte");
        match next(8) {
            0..=4 => {
                model[range.clone()].fill(byte);
                image
                    .write_at(&model[range], offset, next(32) == 0)
                    .expect("it writes");
            }
            5 => {
                let from = offset / (4 * MIB) * 4 * MIB;
                let end = (from + 4 * MIB).min(sectors * 512);
                image.discard(from, end - from).expect("it trims");
                model[usize::try_from(from).expect("small")..usize::try_from(end).expect("small")]
                    .fill(0);
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
fn ours_is_clean_and_equal_for_qemu() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    for (turn, block_mib, kind) in [
        (1, 1, Kind::Dynamic),
        (2, 2, Kind::Dynamic),
        (3, 32, Kind::Dynamic),
        (4, 256, Kind::Dynamic),
        (5, 2, Kind::Fixed),
    ] {
        let dir = TempDir::new().unwrap();
        let (vhdx, raw) = (dir.path().join("a.vhdx"), dir.path().join("a.raw"));
        let size = 40 * MIB + 512;
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let image = create(&vhdx, size, block_mib, kind);
        scribble(&image, &mut model, turn);
        image.close().unwrap();
        std::fs::write(&raw, &model).unwrap();
        run("qemu-img", &["check", "-f", "vhdx", text(&vhdx)]);
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "vhdx",
                "-F",
                "raw",
                text(&vhdx),
                text(&raw),
            ],
        );
        let info = run(
            "qemu-img",
            &["info", "-f", "vhdx", "--output=json", text(&vhdx)],
        );
        let info = String::from_utf8(info.stdout).unwrap();
        assert!(
            info.contains(&format!("\"virtual-size\": {size}")),
            "{info}"
        );
        // And the other way: QEMU writes, we read.
        let write = format!("write -P 0x5a {} 3M", 21 * MIB);
        run("qemu-io", &["-f", "vhdx", "-c", &write, text(&vhdx)]);
        same_as_qemu(&vhdx);
        // Grown by us, read by QEMU.
        let image = open(&vhdx, false);
        image.resize(100 * MIB).unwrap();
        image.write_at(&[9; 4096], 99 * MIB, false).unwrap();
        image.close().unwrap();
        same_as_qemu(&vhdx);
    }
}

#[test]
fn qemus_are_read_written_and_still_clean() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    for (turn, how) in [
        (11, "block_size=1M"),
        (12, "block_size=2M"),
        (13, "subformat=fixed"),
        (14, "subformat=fixed,block_state_zero=off"),
        (15, "block_size=32M,log_size=2M"),
    ] {
        let dir = TempDir::new().unwrap();
        let (vhdx, raw) = (dir.path().join("q.vhdx"), dir.path().join("q.raw"));
        run(
            "qemu-img",
            &["create", "-f", "vhdx", "-o", how, text(&vhdx), "41M"],
        );
        run(
            "qemu-io",
            &["-f", "vhdx", "-c", "write -P 0x11 1M 5M", text(&vhdx)],
        );
        let size = usize::try_from(41 * MIB).unwrap();
        let mut model = vec![0; size];
        model[1 << 20..6 << 20].fill(0x11);
        let image = open(&vhdx, false);
        scribble(&image, &mut model, turn);
        image.close().unwrap();
        std::fs::write(&raw, &model).unwrap();
        run("qemu-img", &["check", "-f", "vhdx", text(&vhdx)]);
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "vhdx",
                "-F",
                "raw",
                text(&vhdx),
                text(&raw),
            ],
        );
    }
}

/// Not a test: the process that the next test kills. Writes blocks with flushes, and says how far it is.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_FILE) else {
        return;
    };
    let image = create(Path::new(&path), 4096 * MIB, 1, Kind::Dynamic);
    for turn in 0..u64::MAX {
        let byte = u8::try_from(turn / 4000 % 200 + 1).unwrap();
        // Odd strides: several BAT pages, blocks in no order.
        let offset = turn * 37 % 4000 * MIB + turn % 7 * 4096;
        image.write_at(&[byte; 8192], offset, false).unwrap();
        if turn % 5 == 4 {
            image.discard((turn * 91 + 3) % 4000 * MIB, MIB).unwrap();
        }
        if turn % 8 == 7 {
            image.flush().unwrap();
        }
        if turn % 40 == 39 {
            std::io::stdout()
                .write_all(format!("turn {turn}\n").as_bytes())
                .unwrap();
        }
    }
}

#[test]
fn a_killed_writers_file_is_recovered_by_us_and_by_qemu_alike() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    for lines in [1, 3, 9] {
        let dir = TempDir::new().unwrap();
        let vhdx = dir.path().join("k.vhdx");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "vhdx::child_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_FILE, &vhdx)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let told = output
            .lines()
            .map(Result::unwrap)
            .filter(|line| line.contains("turn"));
        assert_eq!(told.take(lines).count(), lines);
        child.kill().unwrap();
        child.wait().unwrap();
        let theirs = dir.path().join("theirs.vhdx");
        run("cp", &["--sparse=always", text(&vhdx), text(&theirs)]);
        // QEMU replays when it may write.
        run(
            "qemu-img",
            &["check", "-r", "all", "-f", "vhdx", text(&theirs)],
        );
        let read_only = open(&vhdx, true);
        assert_eq!(read_only.geometry().size_bytes, 4096 * MIB);
        let mut data = 0;
        let mut count = |Run { length, kind, .. }: Run| {
            data += if kind == ExtentKind::Hole { 0 } else { length };
            true
        };
        read_only.extents(0, 4096 * MIB, &mut count).unwrap();
        assert!(data > 0);
        read_only.close().unwrap();
        let image = open(&vhdx, false);
        image.close().unwrap();
        run("qemu-img", &["check", "-f", "vhdx", text(&vhdx)]);
        let both = [
            "compare",
            "-f",
            "vhdx",
            "-F",
            "vhdx",
            text(&vhdx),
            text(&theirs),
        ];
        run("qemu-img", &both);
    }
}

/// Unpacks an image of the corpus, and checks that it is the one meant.
pub(super) fn unpack(dir: &TempDir, name: &str, sha256: &str) -> Option<PathBuf> {
    let Ok(corpus) = std::env::var("SITEPAIR_CORPUS") else {
        skipped("SITEPAIR_CORPUS does not name a folder of images");
        return None;
    };
    let to = dir.path().join(name);
    let packed = |ending: &str| Path::new(&corpus).join(format!("{name}.{ending}"));
    let output = if packed("bz2").exists() {
        run("bzip2", &["-dc", text(&packed("bz2"))])
    } else {
        run("gzip", &["-dc", text(&packed("gz"))])
    };
    std::fs::write(&to, output.stdout).expect("there is room");
    let found = run("sha256sum", &[text(&to)]).stdout;
    assert!(
        String::from_utf8_lossy(&found).starts_with(sha256),
        "{name} is another file"
    );
    Some(to)
}

#[test]
fn clean_images_of_windows_are_read_as_qemu_reads_them() {
    let _alone = alone();
    let images = [
        (
            "iotest-dynamic-1G.vhdx",
            "a4fb24fa51fb4852d5a6bdc2b390a91b0a4e19b47696edc5a00c816067257402",
            1024 * MIB,
            32_u32 << 20,
        ),
        (
            "test-disk2vhd.vhdx",
            "5b6721d4f26ef13d259c380a7327b794d1c6dd79e386737d77e8d88f43259812",
            0,
            0,
        ),
        (
            "dynamic.vhdx",
            "72e9aa1af9cc53c84585a8017246f14f7c9f2dd54bb3f52e3b70919b2af600b9",
            0,
            32 << 20,
        ),
        (
            "fixed.vhdx",
            "f2d743755f1872335fb1554116feecda67825719080ebb875b97dfacf7c1f590",
            10 * MIB,
            2 << 20,
        ),
    ];
    for (name, sha256, size, block) in images {
        let dir = TempDir::new().unwrap();
        let Some(vhdx) = unpack(&dir, name, sha256) else {
            return;
        };
        let geometry = open(&vhdx, true).geometry();
        assert!(
            size == 0 || geometry.size_bytes == size,
            "{name}: {geometry:?}"
        );
        assert!(
            block == 0 || geometry.block_bytes == block,
            "{name}: {geometry:?}"
        );
        if !has_qemu() {
            continue;
        }
        same_as_qemu(&vhdx);
        // Taken into use and closed, it holds the same.
        let copy = dir.path().join("copy.vhdx");
        run("cp", &["--sparse=always", text(&vhdx), text(&copy)]);
        let image = open(&copy, false);
        let mut start = vec![0; 65536];
        image.read_at(&mut start, MIB).unwrap();
        image.write_at(&start, MIB, false).unwrap();
        image.close().unwrap();
        run("qemu-img", &["check", "-f", "vhdx", text(&copy)]);
        let both = [
            "compare",
            "-f",
            "vhdx",
            "-F",
            "vhdx",
            text(&vhdx),
            text(&copy),
        ];
        run("qemu-img", &both);
    }
}

#[test]
fn a_dirty_log_of_another_program_is_replayed() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let sha256 = "511daba998dba208ffc57a7814194d5dd3afb7c314731b904ff1682e3fb4951a";
    let Some(vhdx) = unpack(&dir, "iotest-dirtylog-10G-4M.vhdx", sha256) else {
        return;
    };
    let before = std::fs::read(&vhdx).unwrap();
    let image = open(&vhdx, true);
    assert_eq!(image.geometry().block_bytes, 1 << 20, "its name is wrong");
    assert_eq!(image.geometry().size_bytes, 10 << 30);
    let mut content = vec![0; 19 << 20];
    image.read_at(&mut content, 0).unwrap();
    let (pattern, rest) = content.split_at(18 << 20);
    assert!(
        pattern.iter().all(|byte| *byte == 0xA5),
        "18 blocks, the last one only in the log"
    );
    assert!(rest.iter().all(|byte| *byte == 0));
    image.close().unwrap();
    assert!(
        std::fs::read(&vhdx).unwrap() == before,
        "a read-only open writes nothing"
    );
    if !has_qemu() {
        return;
    }
    let theirs = dir.path().join("theirs.vhdx");
    std::fs::copy(&vhdx, &theirs).unwrap();
    run(
        "qemu-img",
        &["check", "-r", "all", "-f", "vhdx", text(&theirs)],
    );
    open(&vhdx, false).close().unwrap();
    // Comparing 10 GiB takes a minute; a look at both sides of the edge does not.
    for recovered in [&theirs, &vhdx] {
        let reads = [
            "-f",
            "vhdx",
            "-r",
            "-c",
            "read -P 0xa5 0 18M",
            "-c",
            "read -P 0 18M 64M",
        ];
        let output = run("qemu-io", &[&reads[..], &[text(recovered)]].concat());
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("failed"),
            "{output:?}"
        );
    }
}
