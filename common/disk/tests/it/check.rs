//! The checker on files that other programs made, and on ours after they were used.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::Image;
use sitepair_disk::check::{CheckOptions, Facts, LogState, Report, Severity, check, repair};
use sitepair_disk::parent::Parents;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use tempfile::TempDir;

use crate::vhdx::{alone, has_qemu, run, text, unpack};

const MIB: u64 = 1 << 20;

fn checked(path: &Path) -> Report {
    check(&HostStorage::new(), path, CheckOptions::default()).expect("it can be checked")
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.counts.codes.keys().copied().collect()
}

/// No errors and no warnings.
#[track_caller]
fn is_sound(path: &Path) -> Report {
    let report = checked(path);
    assert!(
        report.worst <= Some(Severity::Note),
        "{}: {:#?}",
        path.display(),
        report.findings
    );
    report
}

#[test]
fn files_of_qemu_are_sound_written_to_or_not() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let kinds = [
        ("vhdx", "", "dynamic"),
        ("vhdx", "subformat=dynamic,block_size=1M", "dynamic"),
        ("vhdx", "subformat=dynamic,block_size=256M", "dynamic"),
        ("vhdx", "subformat=fixed", "fixed"),
        ("vhdx", "subformat=fixed,block_state_zero=off", "fixed"),
        ("vpc", "", "dynamic"),
        ("vpc", "force_size", "dynamic"),
        ("vpc", "subformat=fixed", "fixed"),
    ];
    for (index, (format, options, kind)) in kinds.into_iter().enumerate() {
        let file = dir.path().join(index.to_string());
        let file = text(&file);
        let mut args = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([file, "33M"]);
        run("qemu-img", &args);
        let report = is_sound(Path::new(file));
        let json = serde_json::to_value(&report.facts).unwrap();
        assert_eq!(json["kind"], kind, "{options}: {json}");
        let writes = [
            "-f",
            format,
            "-c",
            "write -P 7 0 3M",
            "-c",
            "write -P 8 20M 5M",
            "-c",
            "flush",
            "-c",
            "write -P 9 32M 64k",
            file,
        ];
        run("qemu-io", &writes);
        is_sound(Path::new(file));
    }
}

#[test]
fn our_disks_are_sound_after_qemu_wrote_to_them() {
    let _alone = alone();
    if !has_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    for (name, kind) in [("dynamic", Kind::Dynamic), ("fixed", Kind::Fixed)] {
        let file = dir.path().join(name);
        let options = CreateOptions {
            size_bytes: 40 * MIB,
            block_bytes: 2 << 20,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            kind,
            disk_id: None,
        };
        let image = VhdxImage::create(Arc::new(HostStorage::new()), &file, &options).unwrap();
        image.write_at(&[5; 8192], 9 * MIB, false).unwrap();
        image.close().unwrap();
        assert_eq!(codes(&checked(&file)), [""; 0]);
        let writes = ["-f", "vhdx", "-c", "write -P 7 0 30M", text(&file)];
        run("qemu-io", &writes);
        is_sound(&file);
    }
}

/// What is expected of each file of the corpus.
type Expected = (&'static str, &'static str, &'static [&'static str]);

const CORPUS: [Expected; 11] = [
    (
        "iotest-dirtylog-10G-4M.vhdx",
        "511daba998dba208ffc57a7814194d5dd3afb7c314731b904ff1682e3fb4951a",
        &[
            "vhdx-headers-apart",
            "vhdx-leaked-space",
            "vhdx-log-dirty",
            "vhdx-region-not-required",
        ],
    ),
    (
        "iotest-dynamic-1G.vhdx",
        "a4fb24fa51fb4852d5a6bdc2b390a91b0a4e19b47696edc5a00c816067257402",
        &[],
    ),
    (
        "test-disk2vhd.vhdx",
        "5b6721d4f26ef13d259c380a7327b794d1c6dd79e386737d77e8d88f43259812",
        &["vhdx-file-length", "vhdx-headers-twins"],
    ),
    (
        "dynamic.vhdx",
        "72e9aa1af9cc53c84585a8017246f14f7c9f2dd54bb3f52e3b70919b2af600b9",
        &[],
    ),
    (
        "fixed.vhdx",
        "f2d743755f1872335fb1554116feecda67825719080ebb875b97dfacf7c1f590",
        &[],
    ),
    (
        "differencing.avhdx",
        "a4bf6f9ccaaf8f90b0e9a5b6f964e2b21ca3a9b1675c3a92e73206b04cfb1fbf",
        &["vhdx-parent-not-found"],
    ),
    (
        "d2v-zerofilled.vhd",
        "af175e3c442b659e26b91029aacf2e62f2f7cf054404446db3185aafc38e079f",
        &["vhd-alignment"],
    ),
    (
        "hyperv2012r2-dynamic.vhd",
        "1340b8a51517ba5f0112c47694f3c8a4a2bb4f9933336a18cf0392f3490c6674",
        &["vhd-geometry"],
    ),
    (
        "virtualpc-dynamic.vhd",
        "7675fd9bcc5f705f69e69a2c5e948d2a6522eaac044540a0782ae6097a458d6a",
        &["vhd-geometry"],
    ),
    (
        "dynamic.vhd",
        "c480b888eb23659772bc4b669a79f1850430e74b4ae5011a68195446a49a67e1",
        &["vhd-geometry"],
    ),
    (
        "fixed.vhd",
        "80220c551144b2a5d0b1186bd86c48440b0be1c7084550ae057b5b371ee2fdc8",
        &["vhd-geometry"],
    ),
];

#[test]
fn files_of_other_programs_get_the_verdict_they_deserve() {
    let _alone = alone();
    for (name, sha256, expected) in CORPUS {
        let dir = TempDir::new().unwrap();
        let Some(file) = unpack(&dir, name, sha256) else {
            return;
        };
        let report = checked(&file);
        assert_eq!(codes(&report), expected, "{name}: {:#?}", report.findings);
    }
}

#[test]
fn the_dirty_log_of_another_program_is_repaired() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let (name, sha256, _) = CORPUS[0];
    let Some(file) = unpack(&dir, name, sha256) else {
        return;
    };
    let report = checked(&file);
    let Facts::Vhdx(facts) = &report.facts else {
        panic!("it is a VHDX");
    };
    assert_eq!((facts.log, facts.blocks_present), (LogState::Dirty, 18));
    let storage: Arc<dyn sitepair_disk::storage::Storage> = Arc::new(HostStorage::new());
    let repaired = repair(&storage, &file, &report, &Parents::Refused).unwrap();
    assert_eq!(repaired.done.len(), 1);
    assert!(repaired.after.worst <= Some(Severity::Note));
    let Facts::Vhdx(facts) = &repaired.after.facts else {
        panic!("it is a VHDX");
    };
    assert_eq!((facts.log, facts.blocks_present), (LogState::Clean, 18));
}
