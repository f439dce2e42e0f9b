//! The clients that administrators use.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use sitepair_engine::nbd::{Disconnect, Export};

use crate::image::Memory;
use crate::{Served, eventually};

const SIZE: usize = 32 << 20;

/// Runs a tool, and returns what it printed. A tool that is missing or fails fails the test.
fn run(package: &str, line: &[&str]) -> String {
    let output = Command::new(line[0])
        .args(&line[1..])
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{} is needed for this test: install the Debian package {package} ({error})",
                line[0]
            )
        });
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line:?}\n{printed}\n{complained}");
    printed
}

fn served(adjust: impl FnOnce(&mut Memory)) -> (Served, Arc<Memory>) {
    let mut memory = Memory::new(SIZE);
    adjust(&mut memory);
    let memory = Arc::new(memory);
    (Served::new(memory.clone()), memory)
}

/// Some data with holes between.
fn pattern() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (index, piece) in bytes
        .chunks_mut(1 << 20)
        .enumerate()
        .filter(|(index, _)| index % 3 == 0)
    {
        for (at, byte) in piece.iter_mut().enumerate() {
            *byte = u8::try_from((at / 512 + index * 7 + at) % 251).unwrap();
        }
    }
    bytes
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let (served, _) = served(|_| {});
    let printed = run("libnbd-bin", &["nbdinfo", &served.uri()]);
    for expected in [
        "newstyle-fixed",
        "using structured packets",
        "export-size: 33554432",
        "base:allocation",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(printed.contains(expected), "no {expected} in\n{printed}");
    }
    let listed = run(
        "libnbd-bin",
        &["nbdinfo", "--list", &served.uri().replace("/sda?", "/?")],
    );
    assert!(listed.contains("export=\"sda\""), "{listed}");
}

#[test]
fn nbdcopy_brings_a_disk_there_and_back() {
    for quick in [true, false] {
        let (served, memory) = served(|memory| memory.quick = quick);
        let (source, target) = (
            served.directory.path().join("source"),
            served.directory.path().join("target"),
        );
        std::fs::write(&source, pattern()).unwrap();
        run(
            "libnbd-bin",
            &[
                "nbdcopy",
                "--flush",
                source.to_str().unwrap(),
                &served.uri(),
            ],
        );
        assert!(
            memory.content() == pattern(),
            "what arrived differs, quick {quick}"
        );
        assert!(
            memory.durable() == pattern(),
            "what was flushed differs, quick {quick}"
        );
        run(
            "libnbd-bin",
            &["nbdcopy", &served.uri(), target.to_str().unwrap()],
        );
        assert!(
            std::fs::read(&target).unwrap() == pattern(),
            "what came back differs"
        );
    }
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    for quick in [true, false] {
        let (served, memory) = served(|memory| memory.quick = quick);
        let source = served.directory.path().join("source");
        let back = served.directory.path().join("back.qcow2");
        let (source, back) = (source.to_str().unwrap(), back.to_str().unwrap());
        std::fs::write(source, pattern()).unwrap();
        let uri = served.uri();
        let convert = [
            "qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", source, &uri,
        ];
        run("qemu-utils", &convert);
        assert!(
            memory.content() == pattern(),
            "what arrived differs, quick {quick}"
        );
        run(
            "qemu-utils",
            &[
                "qemu-img", "compare", "-f", "raw", "-F", "raw", source, &uri,
            ],
        );
        run(
            "qemu-utils",
            &[
                "qemu-img", "convert", "-f", "raw", "-O", "qcow2", &uri, back,
            ],
        );
        run(
            "qemu-utils",
            &[
                "qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, source,
            ],
        );
        let info = run("qemu-utils", &["qemu-img", "info", &uri]);
        assert!(info.contains("32 MiB (33554432 bytes)"), "{info}");
        let map = run(
            "qemu-utils",
            &["qemu-img", "map", "--output=json", "-f", "raw", &uri],
        );
        assert!(map.contains("\"start\": 0, \"length\": 1048576"), "{map}");
        assert!(map.contains("\"zero\": true, \"data\": false"), "{map}");
    }
}

#[test]
fn qemu_io_does_every_kind_of_request() {
    let (served, memory) = served(|_| {});
    let commands = [
        "write -P 0xab 0 1M",
        "write -f -P 0xcd 1M 64k",
        "read -P 0xab 512k 512k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "read -P 0 64k 128k",
        "discard 256k 256k",
        "read -P 0 256k 256k",
        "aio_write -P 0x11 4M 4M",
        "aio_write -P 0x22 8M 4M",
        "aio_flush",
        "read -P 0x22 8M 4M",
        "flush",
    ];
    let uri = served.uri();
    let mut line = vec!["qemu-io", "-f", "raw"];
    commands
        .iter()
        .for_each(|command| line.extend(["-c", command]));
    line.push(&uri);
    let printed = run("qemu-utils", &line);
    assert!(!printed.contains("failed"), "{printed}");
    assert!(memory.durable() == memory.content());
    assert_eq!(memory.durable()[1 << 20], 0xcd);
}

#[test]
fn fio_verifies_what_it_wrote() {
    for (quick, pattern, size) in [
        (true, "randwrite", "4k"),
        (false, "randrw", "4k"),
        (true, "write", "64k"),
        (false, "write", "1m"),
    ] {
        let (served, _) = served(|memory| memory.quick = quick);
        run(
            "fio",
            &[
                "fio",
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", served.uri()),
                &format!("--rw={pattern}"),
                &format!("--bs={size}"),
                "--size=8m",
                "--iodepth=16",
                "--fsync=256",
                "--verify=crc32c",
                "--verify_fatal=1",
                &format!("--aux-path={}", served.directory.path().display()),
            ],
        );
    }
}

#[test]
fn two_fio_jobs_share_a_disk() {
    let (served, _) = served(|memory| memory.quick = false);
    let uri = format!("--uri={}", served.uri());
    let aux = format!("--aux-path={}", served.directory.path().display());
    let common = [
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--size=16m",
        "--iodepth=16",
    ];
    let mut line = vec!["fio", "--name=low", "--offset=0"];
    line.extend(common);
    line.extend([
        "--verify=crc32c",
        "--verify_fatal=1",
        &aux,
        "--name=high",
        "--offset=16m",
    ]);
    line.extend(common);
    line.extend(["--verify=crc32c", "--verify_fatal=1"]);
    run("fio", &line);
}

#[test]
fn a_qemu_client_that_reconnects_outlives_a_restart() {
    let (mut served, memory) = served(|memory| memory.quick = false);
    let disk = format!(
        "driver=nbd,server.type=unix,server.path={},export=sda,reconnect-delay=20",
        served.socket.display()
    );
    let mut client = Command::new("qemu-io")
        .args(["--image-opts", &disk])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("qemu-io is needed for this test: install the Debian package qemu-utils");
    let mut commands = client.stdin.take().unwrap();
    commands.write_all(b"write -P 1 0 64k\n").unwrap();
    eventually("the first write", || memory.content()[0] == 1);
    served.close(Disconnect::Graceful);
    commands
        .write_all(b"write -P 2 64k 64k\nflush\nread -P 1 0 64k\nquit\n")
        .unwrap();
    let handle = {
        let _inside = served.runtime.enter();
        let export = Export {
            name: "sda".into(),
            image: memory.clone(),
        };
        served.server.bind_unix(&served.socket, export).unwrap()
    };
    // The end of its input makes it look at the lines it has read ahead.
    drop(commands);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(!printed.contains("failed"), "{output:?}");
    assert_eq!(memory.durable()[64 << 10], 2);
    drop(handle);
}
