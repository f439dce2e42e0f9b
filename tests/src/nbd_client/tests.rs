//! The client against qemu-nbd, and against a server that dies.

use std::path::Path;
use std::process::Command;

use super::wire::{Command as Nbd, Request};
use super::*;
use crate::data::Random;
use crate::process::Process;

const DISK_BYTES: u64 = 8 << 20;

/// Serves `disk` on `socket`; whoever calls it has checked that qemu-nbd is there.
fn qemu_nbd(dir: &Path) -> Process {
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--persistent",
        "--shared=4",
        "--format=raw",
        "--export-name=disk",
        "--socket",
    ]);
    command.arg(dir.join("nbd.sock")).arg(dir.join("disk.raw"));
    Process::start(&mut command, &dir.join("qemu-nbd.log")).unwrap()
}

fn disk() -> (tempfile::TempDir, Options) {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("disk.raw")).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let options = Options::new(&dir.path().join("nbd.sock"), "disk");
    (dir, options.reconnecting(Duration::from_secs(20)))
}

#[test]
fn what_was_written_is_read_with_either_kind_of_reply() {
    for structured in [true, false] {
        let (dir, options) = disk();
        let _server = qemu_nbd(dir.path());
        let mut client = Client::connect(Options {
            structured,
            ..options
        })
        .unwrap();
        assert_eq!(client.export().size_bytes, DISK_BYTES);
        assert_eq!(client.export().structured, structured);
        client.write(4096, &[7; 8192]).unwrap();
        client.write_durable(1 << 20, &[9; 512]).unwrap();
        client.zero(8192, 4096).unwrap();
        client.trim(2 << 20, 1 << 20).unwrap();
        client.flush().unwrap();
        let mut expected = vec![0; 1 << 16];
        expected[4096..8192].fill(7);
        assert!(client.read(0, 1 << 16).unwrap() == expected);
        assert_eq!(client.read(1 << 20, 512).unwrap(), [9; 512]);
        client.disconnect().unwrap();
    }
}

#[test]
fn a_request_out_of_range_gets_nbds_error_and_the_connection_lives() {
    let (dir, options) = disk();
    let _server = qemu_nbd(dir.path());
    let mut client = Client::connect(options).unwrap();
    let failed = client.read(DISK_BYTES, 512).unwrap_err();
    assert!(failed.to_string().contains("NBD error 22"), "{failed}");
    client.read(0, 512).unwrap();
}

#[test]
fn requests_in_flight_survive_a_server_that_is_killed() {
    let (dir, options) = disk();
    let mut server = qemu_nbd(dir.path());
    let mut client = Client::connect(options).unwrap();
    let mut random = Random::new(5);
    let mut block = vec![0; 64 << 10];
    let mut blocks = Vec::new();
    for at in (0..DISK_BYTES).step_by(block.len()) {
        random.fill(&mut block);
        let length = u32::try_from(block.len()).unwrap();
        client
            .submit(Request::new(Nbd::Write, at, length), &block)
            .unwrap();
        blocks.push((at, blake3::hash(&block)));
        if at == DISK_BYTES / 2 {
            server.kill9().unwrap();
            server = qemu_nbd(dir.path());
        }
        if client.in_flight() == 16 {
            client.complete().unwrap().outcome.unwrap();
        }
    }
    while client.in_flight() > 0 {
        client.complete().unwrap().outcome.unwrap();
    }
    assert!(client.reconnects() >= 1);
    for (at, hash) in blocks {
        assert_eq!(
            blake3::hash(&client.read(at, 64 << 10).unwrap()),
            hash,
            "block at {at}"
        );
    }
    drop(server);
}

#[test]
fn a_uri_names_socket_and_export() {
    let options = Options::from_uri("nbd+unix:///data?socket=/run/web/data.sock").unwrap();
    assert_eq!(options.export, "data");
    assert_eq!(options.socket, Path::new("/run/web/data.sock"));
    assert!(Options::from_uri("nbd://host/data").is_err());
}
