//! qcow2 files of QEMU read and written by us, and ours by QEMU.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use sitepair_disk::open::{Format, probe};
use sitepair_disk::qcow2::Qcow2Image;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::{ErrorKind, Image};

const SIZE: u64 = 16 << 20;

/// `None`: the program is not there, and that was said.
fn qemu(program: &str, args: &[&str]) -> Option<()> {
    let Ok(output) = Command::new(program).args(args).output() else {
        let why = format!("skipped: {program} is not installed\n");
        // Said even where the harness swallows a test's output.
        std::io::stderr()
            .write_all(why.as_bytes())
            .expect("standard error is open");
        return None;
    };
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Waits for a lock that another test's child process may hold between its fork and its exec.
fn open(path: &Path, read_only: bool) -> Qcow2Image {
    loop {
        match Qcow2Image::open(&HostStorage::new(), path, read_only) {
            Err(e) if e.kind() == ErrorKind::Locked => std::thread::yield_now(),
            opened => return opened.expect("it opens"),
        }
    }
}

fn pattern(at: u64) -> Vec<u8> {
    let byte = u8::try_from(at / 4096 % 251 + 1).expect("small");
    vec![byte; 4096]
}

fn content(image: &dyn Image) -> Vec<u8> {
    let size = usize::try_from(image.geometry().size_bytes).expect("small");
    let mut disk = vec![0xee; size];
    image.read_at(&mut disk, 0).expect("it is read");
    disk
}

/// Converted to raw by QEMU, and compared with what we read.
fn same_as_qemu_reads(path: &Path, folder: &Path) -> Option<()> {
    let raw = folder.join("out.raw");
    qemu(
        "qemu-img",
        &["convert", "-O", "raw", text(path), text(&raw)],
    )?;
    let ours = content(&open(path, true));
    assert!(std::fs::read(&raw).expect("written by QEMU") == ours);
    Some(())
}

#[test]
fn ours_is_right_for_qemu() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ours.qcow2");
    let image = Qcow2Image::create(&HostStorage::new(), &path, SIZE).expect("it is made");
    for at in (0..SIZE).step_by(300 << 10).map(|at| at / 4096 * 4096) {
        image
            .write_at(&pattern(at), at, false)
            .expect("it is written");
    }
    image.discard(1 << 20, 2 << 20).expect("it is given back");
    image.close().expect("it closes");
    drop(image);
    if qemu("qemu-img", &["check", "-q", text(&path)]).is_none() {
        return;
    }
    same_as_qemu_reads(&path, folder.path());
    // Now QEMU writes, and we read.
    let write = ["-c", "write -P 0x5a 5M 1M", "-c", "flush", text(&path)];
    qemu("qemu-io", &write);
    assert!(
        content(&open(&path, true))[5 << 20..6 << 20]
            .iter()
            .all(|b| *b == 0x5a)
    );
}

#[test]
fn those_of_qemu_are_read_and_written() {
    let cases: [(&str, &[&str]); 4] = [
        ("plain", &[]),
        ("small-clusters", &["-o", "cluster_size=4k"]),
        ("preallocated", &["-o", "preallocation=metadata"]),
        ("old-refcounts", &["-o", "refcount_bits=1"]),
    ];
    for (name, options) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend_from_slice(options);
        args.extend_from_slice(&[text(&path), "16M"]);
        if qemu("qemu-img", &args).is_none() {
            return;
        }
        let script = ["-c", "write -P 1 0 1M", "-c", "write -z 2M 1M", text(&path)];
        qemu("qemu-io", &script);
        assert_eq!(
            probe(&HostStorage::new(), &path).expect("known"),
            Format::Qcow2
        );
        let image = open(&path, false);
        for at in (0..SIZE).step_by(500 << 10).map(|at| at / 4096 * 4096) {
            image
                .write_at(&pattern(at), at, false)
                .expect("it is written");
        }
        image.close().expect("it closes");
        drop(image);
        qemu("qemu-img", &["check", "-q", text(&path)]);
        same_as_qemu_reads(&path, folder.path());
    }
}

/// Compressed clusters are read; a write beside them takes a new cluster.
#[test]
fn compressed_images_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, path) = (folder.path().join("in.raw"), folder.path().join("z.qcow2"));
    let disk: Vec<u8> = (0..SIZE / 4096).flat_map(|n| pattern(n * 4096)).collect();
    std::fs::write(&raw, &disk).expect("a raw file");
    let convert = ["convert", "-c", "-O", "qcow2", text(&raw), text(&path)];
    if qemu("qemu-img", &convert).is_none() {
        return;
    }
    let image = open(&path, false);
    assert!(content(&image) == disk);
    image
        .write_at(&[0; 512], 512, false)
        .expect("it is written");
    image.close().expect("it closes");
    drop(image);
    qemu("qemu-img", &["check", "-q", text(&path)]);
    same_as_qemu_reads(&path, folder.path());
}

/// A file that leads to another one leads nowhere: the other one is not even looked at.
#[test]
fn backing_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("over.qcow2");
    let secret = folder.path().join("secret.raw");
    std::fs::write(&secret, vec![7; 1 << 20]).expect("a raw file");
    let args = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        text(&secret),
        text(&path),
    ];
    if qemu("qemu-img", &args).is_none() {
        return;
    }
    for read_only in [true, false] {
        let refused = Qcow2Image::open(&HostStorage::new(), &path, read_only);
        let refused = refused.err().expect("it is refused");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("backing file"), "{refused}");
    }
}
