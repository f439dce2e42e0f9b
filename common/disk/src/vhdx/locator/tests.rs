use std::path::PathBuf;

use super::*;

/// An item with these entries.
fn item(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + entries.len() * ENTRY_BYTES];
    put(&mut bytes, 0, &VHDX_PARENT);
    let count = u16::try_from(entries.len()).unwrap();
    put(&mut bytes, 18, &count.to_le_bytes());
    for (index, (key, value)) in entries.iter().enumerate() {
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        for (text, offset_at, length_at) in [(key, at, at + 8), (value, at + 4, at + 10)] {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let offset = u32::try_from(bytes.len()).unwrap();
            put(&mut bytes, offset_at, &offset.to_le_bytes());
            let length = u16::try_from(text.len()).unwrap();
            put(&mut bytes, length_at, &length.to_le_bytes());
            bytes.extend(text);
        }
    }
    bytes
}

const ID: &str = "{00112233-4455-6677-8899-aabbccddeeff}";
const OTHER: &str = "{10112233-4455-6677-8899-AABBCCDDEEFF}";

#[test]
fn what_we_write_is_read_back() {
    let id = guid(0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF);
    let bytes = encode(id, r"..\base.vhdx", r"\\?\\vm\base.vhdx");
    let link = decode(&bytes).unwrap();
    assert_eq!((link.id, link.also), (id, None));
    let paths = ["../base.vhdx", "/vm/base.vhdx"].map(PathBuf::from);
    assert_eq!(link.paths, paths);
    let text = r"{00112233-4455-6677-8899-aabbccddeeff}";
    let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(bytes.windows(text.len()).any(|part| part == text));
}

#[test]
fn what_windows_writes_is_read() {
    let zero = "{00000000-0000-0000-0000-000000000000}";
    let entries = [
        ("parent_linkage", OTHER),
        ("parent_linkage2", zero),
        ("relative_path", r".\base.vhdx"),
        (
            "volume_path",
            r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\vm\base.vhdx",
        ),
        ("absolute_win32_path", r"C:\vm\base.vhdx"),
    ];
    let link = decode(&item(&entries)).unwrap();
    assert_eq!(link.also, None, "zeros are no id");
    assert_eq!(link.paths, [PathBuf::from("./base.vhdx")]);
    let link = decode(&item(&[("parent_linkage", ID), ("parent_linkage2", OTHER)])).unwrap();
    let ids = [ID, OTHER].map(|id| parse_guid(id).unwrap());
    assert!(ids.into_iter().all(|id| link.accepts(id)));
    assert!(!link.accepts([7; 16]));
    // Unknown keys, no braces, an end mark that was counted in.
    let link = decode(&item(&[("colour", "red"), ("parent_linkage", &ID[1..37])])).unwrap();
    assert_eq!(link.id, ids[0]);
    decode(&item(&[("parent_linkage", &format!("{ID}\0"))])).unwrap();
}

#[test]
fn damaged_locators_are_refused() {
    let good = item(&[("parent_linkage", ID)]);
    decode(&good).unwrap();
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    for (what, bytes, word) in [
        ("short", good[..19].to_vec(), "short"),
        ("type", changed(0, 1), "type"),
        ("count", changed(18, 64), "64 entries"),
        ("count", changed(19, 1), "257 entries"),
        ("cut", good[..good.len() - 1].to_vec(), "inside"),
        ("offset", changed(23, 0xFF), "inside"),
        ("empty key", changed(28, 0), "inside"),
        ("odd key", changed(28, 27), "inside"),
        (
            "no linkage",
            item(&[("relative_path", "x")]),
            "parent_linkage",
        ),
        (
            "bad linkage",
            item(&[("parent_linkage", "{1}")]),
            "parent_linkage",
        ),
        (
            "twice",
            item(&[("parent_linkage", ID), ("parent_linkage", ID)]),
            "twice",
        ),
        ("lone surrogate", changed(good.len() - 1, 0xD8), "no text"),
    ] {
        let fault = decode(&bytes).expect_err(what);
        assert!(fault.contains(word), "{what}: {fault}");
    }
    // Never a panic, whatever the bytes.
    for at in 0..good.len() {
        for value in [0, 1, 0x7F, 0xFF] {
            let _ = decode(&changed(at, value));
        }
    }
}
