//! `sitepair disk` doing what it is for.

use serde_json::Value;

use crate::run::{Folder, MIB, has_qemu, number};

const SIZE: u64 = 40 * MIB + 512;
/// Log, tables, and whole pages for parts of them.
const OVERHEAD: u64 = 8 * MIB;
/// Formats by the endings of their names, kinds of the new image.
const TARGETS: [(&str, &str); 7] = [
    ("raw", "dynamic"),
    ("raw", "fixed"),
    ("vhd", "dynamic"),
    ("vhd", "fixed"),
    ("vhdx", "dynamic"),
    ("vhdx", "fixed"),
    ("qcow2", "dynamic"),
];

fn json(folder: &Folder, args: &[&str]) -> Value {
    let mut all = vec!["-o", "json"];
    all.extend(args);
    serde_json::from_str(&folder.ok(&all)).expect("JSON")
}

/// Raw to each format and kind, and from each of those to each format: QEMU finds the same content and sound files,
/// and what is dynamic takes space for its data only.
#[test]
fn each_format_becomes_each_other() {
    if !has_qemu() {
        return;
    }
    let folder = Folder::new();
    let data_bytes = folder.source("source.raw", SIZE);
    let mut sources = vec!["source.raw".to_owned()];
    for (format, kind) in TARGETS {
        let name = format!("{kind}.{format}");
        folder.ok(&["convert", "source.raw", &name, "--kind", kind]);
        judge(&folder, &name, format);
        if kind == "dynamic" {
            assert!(folder.allocated(&name) < data_bytes + OVERHEAD, "{name}");
        } else {
            assert!(folder.allocated(&name) >= SIZE, "{name}");
        }
        sources.push(name);
    }
    for source in &sources[1..] {
        for format in ["raw", "vhd", "vhdx", "qcow2"] {
            let name = format!("from-{source}.{format}");
            let done = json(&folder, &["convert", source, &name]);
            assert_eq!(number(&done, "size_bytes"), SIZE);
            assert!(number(&done, "written_bytes") >= data_bytes, "{done}");
            judge(&folder, &name, format);
            assert!(folder.allocated(&name) < data_bytes + OVERHEAD, "{name}");
        }
    }
}

fn judge(folder: &Folder, name: &str, format: &str) {
    let qemus = if format == "vhd" { "vpc" } else { format };
    let compare = ["compare", "-f", "raw", "-F", qemus, "source.raw", name];
    folder.qemu_img_ok(&compare);
    if format == "vhdx" || format == "qcow2" {
        folder.qemu_img_ok(&["check", "-f", format, name]);
    }
    if format == "qcow2" {
        let refused = folder.fails(3, &["check", name]);
        assert!(refused.contains("qemu-img check"), "{refused}");
    } else {
        folder.ok(&["check", name]);
    }
    folder.ok(&["compare", "--strict", "source.raw", name]);
}

#[test]
fn images_of_qemu_are_read() {
    if !has_qemu() {
        return;
    }
    let folder = Folder::new();
    folder.source("source.raw", SIZE);
    let to = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vhdx",
        "source.raw",
        "qemu.vhdx",
    ];
    folder.qemu_img_ok(&to);
    let info = json(&folder, &["info", "qemu.vhdx"]);
    assert_eq!(info["format"], "vhdx");
    assert_eq!(info["kind"], "dynamic");
    assert_eq!(info["log"]["state"], "clean");
    let creator = info["creator"].as_str().expect("a creator");
    assert!(creator.starts_with("QEMU"), "{creator}");
    folder.ok(&["convert", "qemu.vhdx", "back.raw"]);
    // QEMU rounds a VHDX up to mebibytes.
    folder.ok(&["compare", "source.raw", "qemu.vhdx"]);
    folder.ok(&["compare", "back.raw", "qemu.vhdx", "--strict"]);
}

#[test]
fn the_map_agrees_with_qemus() {
    if !has_qemu() {
        return;
    }
    let folder = Folder::new();
    folder.source("source.raw", SIZE);
    folder.ok(&["convert", "source.raw", "copy.vhdx", "--block", "1M"]);
    let with_zeros = [
        "convert",
        "-S",
        "0",
        "-f",
        "raw",
        "-O",
        "raw",
        "source.raw",
        "full.raw",
    ];
    folder.qemu_img_ok(&with_zeros);
    for (name, format) in [
        ("source.raw", "raw"),
        ("full.raw", "raw"),
        ("copy.vhdx", "vhdx"),
    ] {
        let ours = json(&folder, &["map", name]);
        let ours = ranges(&ours["extents"], "offset", |extent| {
            extent["kind"] == "data"
        });
        let theirs = folder.qemu_img_ok(&["map", "--output=json", "-f", format, name]);
        let theirs: Value = serde_json::from_str(&theirs).expect("JSON");
        let theirs = ranges(&theirs, "start", |extent| {
            extent["data"] == true && extent["zero"] == false
        });
        if format == "raw" {
            assert_eq!(ours, theirs, "{name}");
        } else {
            // QEMU tells of whole blocks; we also of the holes that they have in the file.
            let inside = |(from, to): &(u64, u64)| theirs.iter().any(|(a, b)| a <= from && to <= b);
            assert!(ours.iter().all(inside), "{ours:?} in {theirs:?}");
            let used = |(a, b): &(u64, u64)| ours.iter().any(|(from, to)| from < b && a < to);
            assert!(theirs.iter().all(used), "{theirs:?} over {ours:?}");
        }
    }
    let table = folder.ok(&["map", "copy.vhdx"]);
    assert!(table.starts_with("              OFFSET"), "{table}");
    assert!(table.contains("hole") && table.contains("data"), "{table}");
}

/// Ranges of one kind, neighbours joined; checks that all extents follow each other.
fn ranges(extents: &Value, start: &str, wanted: impl Fn(&Value) -> bool) -> Vec<(u64, u64)> {
    let (mut found, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    for extent in extents.as_array().expect("a list") {
        let (from, length) = (number(extent, start), number(extent, "length"));
        assert_eq!(from, at, "a gap in {extents}");
        at = from + length;
        match found.last_mut() {
            _ if !wanted(extent) => {}
            Some(last) if last.1 == from => last.1 = at,
            _ => found.push((from, at)),
        }
    }
    assert!(at >= SIZE, "{extents} ends early");
    found
}

#[test]
fn new_images_are_as_they_were_asked_for() {
    let folder = Folder::new();
    let args = [
        "create", "a.vhdx", "--size", "1G", "--block", "2M", "--sector", "4096",
    ];
    let info = json(&folder, &args);
    assert_eq!(number(&info, "schema"), 1);
    assert_eq!(number(&info, "size_bytes"), 1 << 30);
    assert_eq!(number(&info, "block_bytes"), 2 << 20);
    assert_eq!(number(&info, "logical_sector_bytes"), 4096);
    assert!(number(&info, "allocated_bytes") < OVERHEAD);
    assert_eq!(info, json(&folder, &["info", "a.vhdx"]));
    // A disk keeps its sectors from VHDX to VHDX.
    folder.ok(&["convert", "a.vhdx", "b.vhdx", "--kind", "fixed"]);
    let copy = json(&folder, &["info", "b.vhdx"]);
    assert_eq!(number(&copy, "logical_sector_bytes"), 4096);
    assert_eq!(copy["kind"], "fixed");
    let table = folder.ok(&["info", "b.vhdx"]);
    for line in [
        "format         vhdx, fixed",
        "disk size      1.00 GiB (1073741824 bytes)",
    ] {
        assert!(table.contains(line), "{table}");
    }
    folder.ok(&[
        "create", "c", "--format", "raw", "--size", "5M", "--kind", "fixed",
    ]);
    let raw = json(&folder, &["info", "c"]);
    assert_eq!(raw["kind"], Value::Null);
    assert_eq!(number(&raw, "allocated_bytes"), 5 * MIB);
}

#[test]
fn comparing_tells_where() {
    let folder = Folder::new();
    folder.source("a.raw", SIZE);
    folder.ok(&["convert", "a.raw", "b.vhdx"]);
    let same = json(&folder, &["compare", "a.raw", "b.vhdx", "--strict"]);
    assert_eq!(same["same"], true);
    folder.ok(&["resize", "b.vhdx", "+1M"]);
    let said = folder.ok(&["compare", "a.raw", "b.vhdx"]);
    assert!(said.contains("b.vhdx is longer by 1048576 bytes"), "{said}");
    assert_eq!(
        folder.fails(1, &["compare", "--strict", "a.raw", "b.vhdx"]),
        ""
    );
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("a.raw"));
    let file = file.expect("the image");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x77], 20 * MIB + 5).expect("written");
    let output = folder.disk(&["-o", "json", "compare", "a.raw", "b.vhdx"]);
    assert_eq!(output.status.code(), Some(1));
    let differ: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(differ["same"], false);
    assert_eq!(number(&differ["difference"], "offset"), 20 * MIB + 5);
    let first = differ["difference"]["first"].as_str().expect("bytes");
    assert!(first.starts_with("7700"), "{first}");
    let second = differ["difference"]["second"].as_str().expect("bytes");
    assert_eq!(second, "0".repeat(32));
    // No answer is not "different".
    let said = folder.fails(3, &["compare", "a.raw", "missing.raw"]);
    assert!(said.contains("there is no file missing.raw"), "{said}");
}

#[test]
fn disks_grow() {
    let folder = Folder::new();
    for name in ["a.raw", "b.vhdx"] {
        folder.ok(&["create", name, "--size", "10M"]);
        let grown = json(&folder, &["resize", name, "+10M"]);
        assert_eq!(number(&grown, "from_bytes"), 10 * MIB);
        assert_eq!(number(&grown, "size_bytes"), 20 * MIB);
        assert_eq!(grown["changed"], true);
        let again = json(&folder, &["resize", name, "20M"]);
        assert_eq!(again["changed"], false);
        let said = folder.fails(3, &["resize", name, "1M"]);
        assert!(said.contains("would be lost"), "{said}");
        let said = folder.fails(3, &["resize", name, "+100"]);
        assert!(said.contains("the nearest size is"), "{said}");
        let info = json(&folder, &["info", name]);
        assert_eq!(number(&info, "size_bytes"), 20 * MIB);
    }
}

#[test]
fn differencing_images_are_made_told_and_flattened() {
    let folder = Folder::new();
    folder.source("source.raw", SIZE);
    folder.ok(&["convert", "source.raw", "base.vhdx"]);
    let info = json(&folder, &["create", "child.vhdx", "--parent", "base.vhdx"]);
    assert_eq!(info["kind"], "differencing");
    assert_eq!(info["parent"]["paths"][0], "./base.vhdx");
    assert_eq!(number(&info, "size_bytes"), SIZE);
    let inside = ["--parents-inside", "."];
    let grandchild = ["create", "grandchild.vhdx", "--parent", "child.vhdx"];
    folder.ok(&[&grandchild[..], &inside].concat());
    // Nothing is opened that nobody named.
    for refused in [
        &["convert", "grandchild.vhdx", "flat.raw"] as &[&str],
        &["map", "grandchild.vhdx"],
        &["compare", "grandchild.vhdx", "source.raw"],
        &["resize", "grandchild.vhdx", "+1M"],
    ] {
        let said = folder.fails(3, refused);
        assert!(said.contains("--parents-inside"), "{said}");
    }
    folder.ok(&[&["convert", "grandchild.vhdx", "flat.raw"], &inside[..]].concat());
    let named = ["--parent", "child.vhdx", "--parent", "base.vhdx"];
    folder.ok(&[&["convert", "grandchild.vhdx", "flat.vhdx"], &named[..]].concat());
    folder.ok(&["compare", "--strict", "source.raw", "flat.raw"]);
    folder.ok(&["compare", "--strict", "flat.raw", "flat.vhdx"]);
    let compare = ["compare", "--strict", "grandchild.vhdx", "flat.raw"];
    folder.ok(&[&compare[..], &inside].concat());
    let map = folder.ok(&[&["map", "grandchild.vhdx"], &inside[..]].concat());
    assert!(map.contains("data"), "{map}");
    folder.ok(&[&["resize", "grandchild.vhdx", "+512"], &inside[..]].concat());
    // A parent that was changed is another disk.
    folder.ok(&["resize", "base.vhdx", "+1M"]);
    let said = folder.fails(3, &[&compare[..], &inside].concat());
    assert!(said.contains("parent"), "{said}");
    for wrong in [
        &["create", "x.vhdx", "--kind", "differencing", "--size", "1G"] as &[&str],
        &[
            "create",
            "x.vhdx",
            "--parent",
            "base.vhdx",
            "--kind",
            "fixed",
        ],
        &["create", "x.vhdx", "--parent", "base.vhdx", "--size", "1G"],
        &["create", "x.vhdx"],
    ] {
        folder.fails(2, wrong);
    }
    folder.fails(3, &["create", "x.raw", "--parent", "base.vhdx"]);
    folder.fails(3, &["create", "x.vhdx", "--parent", "none.vhdx"]);
    assert!(!folder.path("x.vhdx").exists());
}
