//! `sitepair hrl` on change logs without an agent.

use std::fs;
use std::path::Path;
use std::process::Output;

use sitepair_disk::hrl::{HrlId, HrlOptions, HrlTime, HrlWriter};
use sitepair_disk::storage::host::HostStorage;

use crate::run::{Folder, MIB, errors};

/// Length of a log's header in bytes.
const HEADER_BYTES: usize = 4096;

/// Log `number` of a chain: a write of its number at its mebibyte, and zeros at the start.
fn log(folder: &Folder, number: u8, closed: bool) -> String {
    let name = format!("{number}.hrl");
    let options = HrlOptions {
        unique_id: HrlId([number; 16]),
        previous_id: HrlId([number - 1; 16]),
        data_write_id: HrlId::default(),
        created: HrlTime(1),
    };
    let storage = HostStorage::new();
    let mut writer = HrlWriter::create(&storage, &folder.path(&name), options).expect("a log");
    let at = u64::from(number) * MIB;
    writer
        .append(at, &[number; 8192], HrlTime(1))
        .expect("an entry");
    writer.append_zeros(0, 4096, HrlTime(1)).expect("an entry");
    writer.finish(HrlTime(2)).expect("closed");
    if !closed {
        // Dropped before it was closed, as by a crash: all entries, and no end.
        let path = folder.path(&name);
        let mut bytes = fs::read(&path).expect("the log");
        let open = header_of_open(&folder.path("open.hrl"), options);
        bytes[..open.len()].copy_from_slice(&open);
        fs::write(&path, bytes).expect("opened again");
    }
    name
}

/// The header of a log that nobody closed.
fn header_of_open(path: &Path, options: HrlOptions) -> Vec<u8> {
    let mut writer = HrlWriter::create(&HostStorage::new(), path, options).expect("a log");
    // More than it buffers, so that the header is in the file.
    for _ in 0..64 {
        writer.append(0, &[1; 65536], HrlTime(1)).expect("an entry");
    }
    drop(writer);
    fs::read(path).expect("the log")[..HEADER_BYTES].to_vec()
}

fn hrl(folder: &Folder, args: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sitepair"));
    let home = folder.path("");
    command.arg("hrl").args(args).current_dir(Path::new(&home));
    command.output().expect("the program runs")
}

fn image(folder: &Folder) -> Vec<u8> {
    fs::read(folder.path("disk.raw")).expect("the image")
}

#[test]
fn a_chain_of_logs_is_verified_and_applied() {
    let folder = Folder::new();
    fs::write(folder.path("disk.raw"), vec![0xaa; 4 << 20]).expect("an image");
    let logs = [log(&folder, 1, true), log(&folder, 2, true)];
    let verified = hrl(&folder, &["verify", &logs[0], &logs[1]]);
    assert!(verified.status.success(), "{}", errors(&verified));

    // In the wrong order nothing is written.
    let refused = hrl(&folder, &["apply", &logs[1], &logs[0], "disk.raw"]);
    assert_eq!(refused.status.code(), Some(3), "{}", errors(&refused));
    assert!(image(&folder).iter().all(|byte| *byte == 0xaa));

    let applied = hrl(&folder, &["apply", &logs[0], &logs[1], "disk.raw"]);
    assert!(applied.status.success(), "{}", errors(&applied));
    let found = image(&folder);
    assert!(found[..4096].iter().all(|byte| *byte == 0));
    assert!(found[1 << 20..][..8192].iter().all(|byte| *byte == 1));
    assert!(found[2 << 20..][..8192].iter().all(|byte| *byte == 2));
    assert_eq!(found[(2 << 20) + 8192], 0xaa);
}

#[test]
fn a_log_that_was_not_closed_is_told_and_applied_only_on_request() {
    let folder = Folder::new();
    fs::write(folder.path("disk.raw"), vec![0xaa; 4 << 20]).expect("an image");
    let name = log(&folder, 1, false);
    let verified = hrl(&folder, &["verify", &name]);
    assert!(!verified.status.success());
    let refused = hrl(&folder, &["apply", &name, "disk.raw"]);
    assert!(!refused.status.success());
    assert!(image(&folder).iter().all(|byte| *byte == 0xaa));
    let applied = hrl(&folder, &["apply", "--partial", &name, "disk.raw"]);
    assert!(applied.status.success(), "{}", errors(&applied));
    let found = image(&folder);
    assert!(found[1 << 20..][..8192].iter().all(|byte| *byte == 1));
    assert!(found[..4096].iter().all(|byte| *byte == 0));
}
