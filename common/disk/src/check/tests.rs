//! Damaged files, one fault each, and the findings that they deserve; sound files; random damage; repairs.

mod documented;
mod hrl;
mod mutation;
mod repaired;
mod vhd;
mod vhdx;
mod vhdx_child;
mod vhdx_log;

use std::path::Path;

use super::*;
use crate::storage::OpenMode;
use crate::storage::fake::FakeStorage;

fn path() -> &'static Path {
    Path::new("/disk")
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A storage with these files, durable.
fn storage_of(files: &[(&str, &[u8])]) -> FakeStorage {
    let storage = FakeStorage::new();
    for (name, bytes) in files {
        let file = storage.open(Path::new(name), OpenMode::CreateNew).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.set_length(bytes.len() as u64).unwrap();
        file.sync().unwrap();
    }
    storage.sync_dir(Path::new("/")).unwrap();
    storage
}

fn check_bytes(bytes: &[u8], format: CheckFormat) -> Report {
    let options = CheckOptions {
        format: Some(format),
        ..CheckOptions::default()
    };
    check(&storage_of(&[("/disk", bytes)]), path(), options).unwrap()
}

/// Codes found, errors and warnings only, each once.
fn faults(report: &Report) -> Vec<&'static str> {
    let severe = |code: &str| {
        let kind = catalogue().find(|kind| kind.code == code);
        kind.expect("findings are in the catalogue").severity > Severity::Note
    };
    let codes = report.counts.codes.keys().copied();
    codes.filter(|code| severe(code)).collect()
}

/// All codes found, each once.
fn codes(report: &Report) -> Vec<&'static str> {
    report.counts.codes.keys().copied().collect()
}

/// A small repeatable source of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

#[test]
fn formats_are_told_by_their_bytes() {
    let formats = [
        (vhdx::good(), "vhdx"),
        (vhd::dynamic(), "vhd"),
        (vhd::fixed(), "vhd"),
        (hrl::good(), "hrl"),
        (vec![7; 4096], "raw"),
        (Vec::new(), "raw"),
    ];
    for (bytes, format) in formats {
        let storage = storage_of(&[("/disk", &bytes)]);
        let report = check(&storage, path(), CheckOptions::default()).unwrap();
        assert_eq!(report.facts.format(), format);
        assert_eq!(faults(&report), [""; 0], "{format}");
    }
}

#[test]
fn what_the_bytes_do_not_tell_the_name_does() {
    let junk = [0x5a; 8192];
    for (name, format) in [
        ("/a.vhdx", "vhdx"),
        ("/a.avhdx", "vhdx"),
        ("/a.vhd", "vhd"),
        ("/a.hrl", "hrl"),
        ("/a.img", "raw"),
        ("/a", "raw"),
    ] {
        for bytes in [&junk[..], &junk[..4], &[]] {
            let storage = storage_of(&[(name, bytes)]);
            let report = check(&storage, Path::new(name), CheckOptions::default()).unwrap();
            let raw = format == "raw";
            assert_eq!(faults(&report).is_empty(), raw, "{name}: {report:?}");
            assert_eq!(report.facts.format(), format, "{name}");
        }
    }
}

#[test]
fn of_each_kind_a_bounded_number_is_listed_and_all_are_counted() {
    let mut bytes = vhdx::good();
    for index in 2..12 {
        vhdx::set_bat(&mut bytes, index, 5);
    }
    let options = CheckOptions {
        list_max: 3,
        ..CheckOptions::default()
    };
    let report = check(&storage_of(&[("/disk", &bytes)]), path(), options).unwrap();
    assert_eq!(report.findings.len(), 3);
    assert_eq!(report.counts.errors, 10);
    assert_eq!(report.counts.not_listed, 7);
    assert_eq!(report.worst, Some(Severity::Error));
}

#[test]
fn a_file_in_use_and_a_missing_file_are_failures_not_findings() {
    let storage = storage_of(&[("/disk", &vhdx::good())]);
    let writer = open_locked(&storage, path(), false).unwrap();
    let refusal = check(&storage, path(), CheckOptions::default()).unwrap_err();
    assert_eq!(refusal.kind(), crate::ErrorKind::Locked);
    drop(writer);
    let reader = open_locked(&storage, path(), true).unwrap();
    check(&storage, path(), CheckOptions::default()).unwrap();
    drop(reader);
    let missing = check(&storage, Path::new("/none"), CheckOptions::default()).unwrap_err();
    assert_eq!(missing.kind(), crate::ErrorKind::NotFound);
    storage.fail_reads(path(), 200_000..200_001);
    let failed = check(&storage, path(), CheckOptions::default()).unwrap_err();
    assert_eq!(failed.kind(), crate::ErrorKind::Io);
}

#[test]
fn a_report_is_readable_for_programs() {
    let mut bytes = vhdx::good();
    vhdx::set_bat(&mut bytes, 3, 5);
    let report = check_bytes(&bytes, CheckFormat::Vhdx);
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema"], SCHEMA);
    assert_eq!(json["worst"], "error");
    assert_eq!(json["counts"]["errors"], 1);
    assert_eq!(json["counts"]["codes"]["vhdx-bat-state"], 1);
    assert_eq!(json["findings"][0]["code"], "vhdx-bat-state");
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["findings"][0]["structure"], "BAT");
    assert_eq!(json["findings"][0]["offset"], (3 << 20) + 3 * 8);
    assert_eq!(json["facts"]["format"], "vhdx");
    assert_eq!(json["facts"]["kind"], "dynamic");
    assert_eq!(json["facts"]["log"], "clean");
    assert_eq!(json["facts"]["blocks_present"], 2);
    let found = &report.findings[0].text;
    assert!(
        found.contains("block 3") && found.contains("state 5"),
        "{found}"
    );
}
