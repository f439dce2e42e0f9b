use super::*;
use crate::ErrorKind;
use crate::storage::fake::FakeStorage;
use crate::{vhd, vhdx};

fn path() -> &'static Path {
    Path::new("/disk")
}

fn with_bytes(offset: u64, bytes: &[u8]) -> Arc<dyn Storage> {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    file.set_length(8192).unwrap();
    file.write_at(bytes, offset).unwrap();
    Arc::new(storage)
}

#[test]
fn other_formats_are_not_raw() {
    let cases: [(u64, &[u8]); 9] = [
        (0, b"vhdxfile"),
        (0, b"conectix"),
        (8192 - 512, b"conectix"),
        (8192 - 511, b"conectix"),
        (0, b"QFI\xfb\0\0\0\x03"),
        (0, b"KDMV"),
        (0, b"msctlog\0"),
        (0, b"QED\0"),
        (64, &[0x7f, 0x10, 0xda, 0xbe]),
    ];
    for (offset, bytes) in cases {
        let storage = with_bytes(offset, bytes);
        let refused = RawImage::open(&*storage, path(), false).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        let told = OpenOptions {
            format: Some(Format::Raw),
            read_only: false,
            parents: Parents::Refused,
        };
        let image = open_image(&storage, path(), told).unwrap();
        assert_eq!(image.geometry().size_bytes, 8192);
        drop(image);
        match probe(&*storage, path()) {
            Ok(Format::Vhdx) => assert_eq!(bytes, b"vhdxfile"),
            Ok(Format::Vhd) => assert_eq!(bytes, b"conectix"),
            Ok(Format::Qcow2) => assert_eq!(bytes, b"QFI\xfb\0\0\0\x03"),
            Ok(Format::Raw) => panic!("{bytes:?} at {offset} is raw"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported),
        }
    }
}

#[test]
fn anything_else_is_raw() {
    for bytes in [&b"\0\0\0"[..], b"\xeb\x63\x90", b"vhdxfil", b"QFI\0"] {
        let storage = with_bytes(0, bytes);
        assert_eq!(probe(&*storage, path()).unwrap(), Format::Raw);
        let image = open_image(&storage, path(), OpenOptions::default()).unwrap();
        assert!(!image.geometry().read_only);
    }
}

#[test]
fn a_file_named_as_a_format_is_not_raw() {
    let named = ["/a.vhd", "/a.AVHD", "/a.vhdx", "/a.avhdx", "/a.qcow2"];
    let plain = ["/a.raw", "/a.img", "/a.bin", "/vhdx"];
    for name in named.into_iter().chain(plain) {
        let path = Path::new(name);
        let storage = FakeStorage::new();
        let file = storage.open(path, OpenMode::CreateNew).unwrap();
        file.set_length(8192).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let found = probe(&*storage, path);
        if plain.contains(&name) {
            assert_eq!(found.unwrap(), Format::Raw);
            continue;
        }
        assert_eq!(found.unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        let refused = open_image(&storage, path, OpenOptions::default());
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::Corrupt);
        let told = OpenOptions {
            format: Some(Format::Raw),
            ..OpenOptions::default()
        };
        assert!(open_image(&storage, path, told).is_ok(), "{name}");
    }
}

#[test]
fn a_short_file_is_probed_too() {
    let storage = FakeStorage::new();
    let file = storage.open(path(), OpenMode::CreateNew).unwrap();
    assert_eq!(probe(&storage, path()).unwrap(), Format::Raw);
    file.write_at(b"vhdxfile", 0).unwrap();
    assert_eq!(probe(&storage, path()).unwrap(), Format::Vhdx);
}

#[test]
fn a_locked_file_is_not_read() {
    let storage = with_bytes(0, b"x");
    let _image = open_image(&storage, path(), OpenOptions::default()).unwrap();
    assert_eq!(
        probe(&*storage, path()).unwrap_err().kind(),
        ErrorKind::Locked
    );
    let again = open_image(&storage, path(), OpenOptions::default())
        .err()
        .unwrap();
    assert_eq!(again.kind(), ErrorKind::Locked);
    assert_eq!(again.to_string(), "/disk is in use by another process");
}

#[test]
fn a_missing_file_is_told() {
    let storage: Arc<dyn Storage> = Arc::new(FakeStorage::new());
    let missing = open_image(&storage, path(), OpenOptions::default())
        .err()
        .unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_vhdx_is_found_and_opened() {
    let storage: Arc<dyn Storage> = Arc::new(FakeStorage::new());
    let options = vhdx::CreateOptions {
        size_bytes: 64 << 20,
        block_bytes: 1 << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind: vhdx::Kind::Dynamic,
        disk_id: None,
    };
    VhdxImage::create(Arc::clone(&storage), path(), &options)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(probe(&*storage, path()).unwrap(), Format::Vhdx);
    for format in [None, Some(Format::Vhdx)] {
        let image = open_image(
            &storage,
            path(),
            OpenOptions {
                format,
                read_only: false,
                parents: Parents::Refused,
            },
        )
        .unwrap();
        assert_eq!(image.geometry().size_bytes, 64 << 20);
        assert_eq!(
            probe(&*storage, path()).unwrap_err().kind(),
            ErrorKind::Locked
        );
        image.close().unwrap();
    }
    let refused = RawImage::open(&*storage, path(), true).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_vhd_is_found_by_its_footer_and_its_chain_opened() {
    let storage: Arc<dyn Storage> = Arc::new(FakeStorage::new());
    for kind in [vhd::Kind::Fixed, vhd::Kind::Dynamic] {
        let options = vhd::CreateOptions {
            size_bytes: 4 << 20,
            block_bytes: 512 << 10,
            kind,
            disk_id: None,
        };
        let file = path().with_extension(format!("{kind:?}"));
        let made = VhdImage::create(Arc::clone(&storage), &file, &options).unwrap();
        made.write_at(&[7; 512], 0, false).unwrap();
        made.close().unwrap();
        drop(made);
        assert_eq!(probe(&*storage, &file).unwrap(), Format::Vhd);
        let image = open_image(&storage, &file, OpenOptions::default()).unwrap();
        assert_eq!(image.geometry().size_bytes, 4 << 20);
        let raw = RawImage::open(&*storage, &file, true).err().unwrap();
        assert_eq!(raw.kind(), ErrorKind::Locked);
        image.close().unwrap();
    }
    let base = path().with_extension("Dynamic");
    let parent = VhdImage::open(Arc::clone(&storage), &base, true).unwrap();
    let over = vhd::ChildOptions {
        parent_path: base.clone(),
        block_bytes: 2 << 20,
    };
    let child = VhdImage::create_child(Arc::clone(&storage), path(), &Arc::new(parent), &over);
    child.unwrap().close().unwrap();
    let refused = open_image(&storage, path(), OpenOptions::default());
    refused.err().unwrap();
    for parents in [
        Parents::Given(vec![base.clone()]),
        Parents::Inside("/".into()),
    ] {
        let options = OpenOptions {
            parents,
            ..OpenOptions::default()
        };
        let image = open_image(&storage, path(), options).unwrap();
        let mut buf = [0; 512];
        image.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [7; 512]);
    }
    let file = storage.open(&base, OpenMode::ReadWrite).unwrap();
    file.write_at(&[0xff; 1024], 512).unwrap();
    drop(file);
    let options = OpenOptions {
        parents: Parents::Inside("/".into()),
        ..OpenOptions::default()
    };
    let damaged = open_image(&storage, path(), options).err().unwrap();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
    let message = damaged.to_string();
    assert!(message.contains("in parent /disk.Dynamic: "), "{message}");
}
