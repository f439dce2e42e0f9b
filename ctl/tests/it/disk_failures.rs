//! `sitepair disk` when it cannot, may not, or is told to stop: what it says, and that it leaves nothing behind.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sitepair_disk::Image as _;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::VhdxImage;

use crate::run::{Folder, MIB, errors};

const SIZE: u64 = 16 * MIB;

#[test]
fn a_file_in_use_is_told_so_with_what_to_do() {
    let folder = Folder::new();
    folder.ok(&["create", "a.vhdx", "--size", "8M"]);
    folder.ok(&["create", "b.vhdx", "--size", "8M"]);
    let storage = Arc::new(HostStorage::new());
    let used = VhdxImage::open(storage, &folder.path("a.vhdx"), false).expect("it opens");
    let commands: [&[&str]; 6] = [
        &["info", "a.vhdx"],
        &["map", "a.vhdx"],
        &["convert", "a.vhdx", "c.raw"],
        &["convert", "b.vhdx", "a.vhdx", "--force"],
        &["compare", "b.vhdx", "a.vhdx"],
        &["resize", "a.vhdx", "9M"],
    ];
    for command in commands {
        let said = folder.fails(3, command);
        let told = said.contains("a.vhdx is in use") && said.contains("shut the guest down");
        assert!(told, "{command:?}: {said}");
    }
    used.close().expect("closed");
    for command in commands {
        folder.ok(command);
    }
    assert_eq!(folder.names(), ["a.vhdx", "b.vhdx", "c.raw"]);
}

#[test]
fn targets_that_exist_are_kept_or_replaced_whole() {
    let folder = Folder::new();
    folder.source("a.raw", SIZE);
    fs::write(folder.path("b.vhdx"), "mine").expect("written");
    let said = folder.fails(3, &["convert", "a.raw", "b.vhdx"]);
    assert!(said.contains("--force"), "{said}");
    folder.fails(3, &["create", "b.vhdx", "--size", "1M"]);
    // A failure keeps what is there, also with --force.
    folder.fails(
        3,
        &["convert", "a.raw", "b.vhdx", "--force", "--block", "3M"],
    );
    assert_eq!(
        fs::read(folder.path("b.vhdx")).expect("still there"),
        b"mine"
    );
    for itself in ["a.raw", "./a.raw"] {
        let said = folder.fails(3, &["convert", "a.raw", itself, "--force"]);
        assert!(said.contains("the source itself"), "{said}");
    }
    std::os::unix::fs::symlink("b.vhdx", folder.path("link.vhdx")).expect("a link");
    folder.ok(&["convert", "a.raw", "link.vhdx", "--force"]);
    assert!(folder.path("link.vhdx").is_symlink(), "the link stays");
    folder.ok(&["compare", "a.raw", "b.vhdx"]);
    fs::create_dir(folder.path("dir.raw")).expect("a folder");
    folder.fails(3, &["convert", "a.raw", "dir.raw", "--force"]);
    let said = folder.fails(3, &["convert", "a.raw", "none/c.vhdx"]);
    assert!(said.contains("none/c.vhdx"), "{said}");
    // What an agent tracks is not changed behind its back.
    fs::write(folder.path("a.raw.map"), "").expect("written");
    for command in [["resize", "a.raw", "+1M"], ["convert", "b.vhdx", "a.raw"]] {
        let mut args = command.to_vec();
        args.extend((command[0] == "convert").then_some("--force"));
        let said = folder.fails(3, &args);
        assert!(said.contains("protected"), "{said}");
    }
    assert_eq!(
        folder.names(),
        ["a.raw", "a.raw.map", "b.vhdx", "dir.raw", "link.vhdx"]
    );
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    let folder = Folder::new();
    for (args, hint) in [
        (
            &["create", "a.vhdx", "--size", "10000"] as &[&str],
            "9728 or 10240",
        ),
        (&["create", "a.vhdx", "--size", "65T"], "at most"),
        (
            &["create", "a.vhdx", "--size", "1G", "--block", "3M"],
            "2097152 or 4194304",
        ),
        (
            &["create", "a.vhdx", "--size", "1G", "--block", "8G"],
            "too large",
        ),
        (
            &["create", "a.vhdx", "--size", "1G", "--sector", "520"],
            "512 or 4096",
        ),
        (
            &["create", "a.raw", "--size", "1G", "--sector", "4096"],
            "vhdx",
        ),
        (
            &["create", "a.raw", "--size", "1G", "--block", "2M"],
            "no blocks",
        ),
        (&["create", "a.raw", "--size", "ten"], "such as 10G"),
        (&["create", "a.raw", "--size", "0"], "a sector at least"),
        (&["create", "a.bin", "--size", "1G"], "--format"),
        (&["convert", "a.raw", "a.bin"], "--format"),
        (&["resize", "a.raw", "-1G"], ""),
    ] {
        let said = folder.fails(2, args);
        assert!(said.contains(hint), "{args:?}: {said}");
    }
    // A raw file's guest may have written another format's beginning.
    fs::write(
        folder.path("odd.raw"),
        [b"QFI\xfb" as &[u8], &[0; 508]].concat(),
    )
    .expect("written");
    let said = folder.fails(3, &["convert", "odd.raw", "b.vhdx"]);
    assert!(said.contains("qcow"), "{said}");
    folder.ok(&["convert", "odd.raw", "b.vhdx", "--from", "raw"]);
    let json = folder.fails(3, &["-o", "json", "info", "none"]);
    let failed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(failed["code"], 3);
    assert_eq!(folder.names(), ["b.vhdx", "odd.raw"]);
}

/// A file larger than it may be: the writer gets an error in the middle. `ulimit -f` counts KiB.
#[test]
fn no_room_leaves_nothing() {
    let folder = Folder::new();
    let file = fs::File::create_new(folder.path("a.raw")).expect("a file");
    let bytes = vec![7; 16 << 20];
    file.write_all_at(&bytes, 0).expect("written");
    drop(file);
    let program = env!("CARGO_BIN_EXE_sitepair");
    for (target, kind) in [
        ("b.raw", "dynamic"),
        ("b.raw", "fixed"),
        ("b.vhdx", "dynamic"),
        ("b.vhdx", "fixed"),
    ] {
        // The signal that comes with it is ignored, as a daemon's children have it; then writes fail.
        let script = format!(
            "trap '' XFSZ; ulimit -f 12288; exec {program} disk convert a.raw {target} --kind {kind}"
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(folder.path(""))
            .output()
            .expect("bash is there");
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{target}: {said}");
        assert!(said.contains("File too large"), "{target}: {said}");
        assert_eq!(folder.names(), ["a.raw"], "{target} {kind}");
    }
}

#[test]
fn a_signal_stops_it_and_nothing_is_left() {
    let folder = Folder::new();
    let file = fs::File::create_new(folder.path("a.raw")).expect("a file");
    let bytes = vec![7; 8 << 20];
    for at in 0..24 {
        file.write_all_at(&bytes, at * 8 * MIB).expect("written");
    }
    drop(file);
    for (signal, target) in [("-INT", "b.vhdx"), ("-TERM", "c.raw"), ("-KILL", "d.vhdx")] {
        let mut child = folder
            .command(&["convert", "a.raw", target])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("it starts");
        wait_for_aside(&folder, target);
        let id = child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.expect("kill is there").success());
        child.wait().expect("it ends");
        assert!(!folder.path(target).exists(), "{signal}: stopped in time");
        let left = folder.names().len() - 1;
        assert_eq!(
            left,
            usize::from(signal == "-KILL"),
            "{signal}: {:?}",
            folder.names()
        );
    }
    // The next conversion removes what a killed one left.
    folder.ok(&["convert", "a.raw", "d.vhdx"]);
    assert_eq!(folder.names(), ["a.raw", "d.vhdx"]);
}

/// Waits until the copy is being written.
fn wait_for_aside(folder: &Folder, target: &str) {
    let limit = Instant::now() + Duration::from_secs(20);
    let prefix = format!(".{target}.");
    let begun = |name: &String| {
        let ours =
            name.starts_with(&prefix) && Path::new(name).extension() == Some("converting".as_ref());
        ours && folder.allocated(name) > MIB
    };
    while !folder.names().iter().any(begun) {
        assert!(Instant::now() < limit, "the conversion does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_log_that_was_left_behind_is_told() {
    let folder = Folder::new();
    let path = folder.path("a.vhdx");
    folder.ok(&["create", "a.vhdx", "--size", "8M", "--block", "1M"]);
    let storage = Arc::new(HostStorage::new());
    let image = VhdxImage::open(storage, &path, false).expect("it opens");
    image.write_at(&[3; 4096], 0, false).expect("written");
    image.flush().expect("flushed");
    // As a killed process leaves it: flushed, not closed.
    drop(image);
    let before = fs::read(&path).expect("the file");
    let info = folder.ok(&["-o", "json", "info", "a.vhdx"]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["log"]["state"], "dirty");
    let table = folder.ok(&["info", "a.vhdx"]);
    assert!(table.contains("dirty"), "{table}");
    let map = folder.ok(&["map", "a.vhdx"]);
    assert!(map.contains("data"), "{map}");
    folder.ok(&["convert", "a.vhdx", "b.raw"]);
    assert_eq!(
        fs::read(&path).expect("the file"),
        before,
        "reading changes nothing"
    );
    let copy = RawImage::open(&HostStorage::new(), &folder.path("b.raw"), true).expect("it opens");
    let mut bytes = [0; 4096];
    copy.read_at(&mut bytes, 0).expect("read");
    assert_eq!(bytes, [3; 4096]);
}
