//! `sitepair disk check`: verdicts, exit codes, repairs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use serde_json::Value;

use crate::run::{Folder, errors};

/// A header's place in a VHDX; the other one is as far behind it.
const HEADER: u64 = 64 << 10;

fn overwrite(folder: &Folder, name: &str, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(folder.path(name));
    let file = file.expect("the file");
    file.write_all_at(bytes, offset).expect("written");
}

/// Exit code and the report as JSON.
fn checked(folder: &Folder, args: &[&str]) -> (Option<i32>, Value) {
    let output = folder.disk(&[&["check", "-o", "json"], args].concat());
    let json = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        json.unwrap_or_else(|e| panic!("{e}: {}", errors(&output))),
    )
}

#[test]
fn a_sound_image_is_clean_and_a_raw_one_has_nothing_to_check() {
    let folder = Folder::new();
    folder.ok(&["create", "a.vhdx", "--size", "64M"]);
    assert_eq!(folder.ok(&["check", "a.vhdx"]), "a.vhdx (vhdx): clean\n");
    folder.ok(&["create", "a.raw", "--size", "1M"]);
    assert!(folder.ok(&["check", "a.raw"]).contains("no structure"));
    folder.fails(3, &["check", "none.vhdx"]);
    folder.fails(2, &["check"]);
    // Named as what it is not, it is checked as that.
    let output = folder.disk(&["check", "a.raw", "--format", "vhdx"]);
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn warnings_and_errors_have_codes_of_their_own() {
    let folder = Folder::new();
    folder.ok(&["create", "a.vhdx", "--size", "64M"]);
    overwrite(&folder, "a.vhdx", HEADER, b"gone");
    let (code, report) = checked(&folder, &["a.vhdx"]);
    assert_eq!(code, Some(5));
    assert_eq!(report["worst"], "warning");
    assert_eq!(report["findings"][0]["code"], "vhdx-header-invalid");
    assert_eq!(report["findings"][0]["offset"], HEADER);
    assert_eq!(report["repair"], Value::Null);
    let output = folder.disk(&["check", "a.vhdx"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        text.starts_with("warning  vhdx-header-invalid, header at 65536\n"),
        "{text}"
    );
    assert!(
        text.ends_with("a.vhdx (vhdx): 1 warning, 0 notes\n"),
        "{text}"
    );
    assert!(
        output.stderr.is_empty(),
        "what was found is an answer, not a complaint"
    );
    overwrite(&folder, "a.vhdx", 2 * HEADER, b"gone");
    let (code, report) = checked(&folder, &["a.vhdx"]);
    assert_eq!(code, Some(6));
    assert_eq!(report["counts"]["errors"], 1);
}

#[test]
fn a_repair_says_what_it_did() {
    let folder = Folder::new();
    folder.ok(&["create", "a.vhdx", "--size", "64M"]);
    overwrite(&folder, "a.vhdx", HEADER, b"gone");
    let (code, report) = checked(&folder, &["a.vhdx", "--repair"]);
    assert_eq!(
        (code, &report["worst"]),
        (Some(0), &Value::Null),
        "{report}"
    );
    assert_eq!(report["repair"]["done"][0]["code"], "vhdx-header-invalid");
    assert_eq!(report["repair"]["before"]["worst"], "warning");
    assert_eq!(
        folder.ok(&["check", "a.vhdx", "--repair"]),
        "a.vhdx (vhdx): clean\n"
    );
    folder.qemu_img_ok(&["check", "-f", "vhdx", "a.vhdx"]);
    overwrite(&folder, "a.vhdx", HEADER, b"gone");
    let text = folder.ok(&["check", "a.vhdx", "--repair"]);
    assert!(text.contains("mended   vhdx-header-invalid: "), "{text}");
    assert!(
        text.ends_with("after the repair:\na.vhdx (vhdx): clean\n"),
        "{text}"
    );
}

#[test]
fn a_file_with_errors_or_of_a_protected_group_is_not_mended() {
    let folder = Folder::new();
    folder.ok(&["create", "a.vhdx", "--size", "64M"]);
    overwrite(&folder, "a.vhdx", HEADER, b"gone");
    overwrite(&folder, "a.vhdx", 2 * HEADER, b"gone");
    let before = std::fs::read(folder.path("a.vhdx")).expect("the file");
    let (code, report) = checked(&folder, &["a.vhdx", "--repair"]);
    assert_eq!(code, Some(6));
    let refused = report["repair"]["refused"].as_str().expect("a reason");
    assert!(refused.contains("cannot be mended"), "{refused}");
    assert!(std::fs::read(folder.path("a.vhdx")).expect("the file") == before);
    folder.ok(&["create", "b.vhdx", "--size", "64M"]);
    overwrite(&folder, "b.vhdx", HEADER, b"gone");
    std::fs::write(folder.path("b.vhdx.map"), b"").expect("a map");
    let said = folder.fails(3, &["check", "b.vhdx", "--repair"]);
    assert!(said.contains("protected"), "{said}");
}
