use super::*;
use crate::create::Kind;
use crate::open::{Format, OpenOptions, open_image};
use crate::parent::Parents;
use crate::raw::RawImage;
use crate::storage::fake::FakeStorage;

const SIZE: u64 = 2 << 20;

fn source(storage: &FakeStorage) -> RawImage {
    let image = RawImage::create(storage, Path::new("/source"), SIZE).unwrap();
    image.write_at(&[7; 4096], 8192, false).unwrap();
    image.write_at(&[9; 512], SIZE - 512, false).unwrap();
    image.flush().unwrap();
    image
}

fn target(format: Format) -> NewImage {
    NewImage {
        format,
        kind: Kind::Dynamic,
        size_bytes: SIZE,
        block_bytes: (format == Format::Vhdx).then_some(1 << 20),
        sector_bytes: None,
        physical_sector_bytes: None,
    }
}

fn run(
    storage: &FakeStorage,
    from: &dyn Image,
    format: Format,
    existing: Existing,
) -> Result<Copied, ConvertError> {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let to = Path::new("/copy");
    convert(
        &shared,
        from,
        to,
        &target(format),
        existing,
        &Progress::new(),
    )
}

fn check_whole(storage: &FakeStorage, format: Format) {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let options = OpenOptions {
        format: Some(format),
        read_only: true,
        parents: Parents::Refused,
    };
    let image = open_image(&shared, Path::new("/copy"), options).unwrap();
    assert_eq!(image.geometry().size_bytes, SIZE);
    let mut buf = vec![1; 4096 * 3];
    image.read_at(&mut buf, 4096).unwrap();
    assert!(buf[..4096].iter().all(|&b| b == 0), "before the data");
    assert!(buf[4096..8192].iter().all(|&b| b == 7), "the data");
    image.read_at(&mut buf[..512], SIZE - 512).unwrap();
    assert!(buf[..512].iter().all(|&b| b == 9), "the end");
}

fn names(storage: &FakeStorage) -> Vec<PathBuf> {
    let mut names = storage.list(Path::new("/")).unwrap();
    names.retain(|name| name != Path::new("/source"));
    names
}

/// A crash at any point leaves no file under the final name, or the whole one; trying again succeeds and
/// removes what was left.
#[test]
fn a_crash_leaves_the_whole_copy_or_none() {
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let storage = FakeStorage::new();
        let from = source(&storage);
        let before = storage.operation_count();
        run(&storage, &from, format, Existing::Keep).unwrap();
        let steps = storage.operation_count() - before;
        assert!(steps > 5, "there is something to test");
        let (mut without, mut with) = (0, 0);
        for step in 0..=steps {
            let storage = FakeStorage::new();
            let from = source(&storage);
            storage.die_after(storage.operation_count() + step);
            let done = run(&storage, &from, format, Existing::Keep).is_ok();
            let crashed = storage.crash(step);
            if crashed.exists(Path::new("/copy")).unwrap() {
                with += 1;
                check_whole(&crashed, format);
            } else {
                without += 1;
                assert!(!done, "what was reported is there");
                let from = RawImage::open(&crashed, Path::new("/source"), true).unwrap();
                run(&crashed, &from, format, Existing::Keep).unwrap();
                check_whole(&crashed, format);
                assert_eq!(names(&crashed), [Path::new("/copy")], "after step {step}");
            }
        }
        assert!(with > 0 && without > 0);
    }
}

#[test]
fn failures_and_stops_leave_nothing() {
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let storage = FakeStorage::new();
        let from = source(&storage);
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let progress = Progress::new();
        progress.stop();
        let to = Path::new("/copy");
        let new = target(format);
        let stopped = convert(&shared, &from, to, &new, Existing::Keep, &progress);
        assert!(matches!(
            stopped,
            Err(ConvertError::Copy(CopyError::Stopped))
        ));
        assert_eq!(names(&storage), [] as [PathBuf; 0]);
        let wrong = NewImage {
            size_bytes: SIZE + 1,
            ..new
        };
        let wrong = convert(&shared, &from, to, &wrong, Existing::Keep, &Progress::new());
        assert!(matches!(wrong, Err(ConvertError::Make { .. })));
        storage.limit_space(Some(4096));
        assert!(run(&storage, &from, format, Existing::Keep).is_err());
        storage.limit_space(None);
        assert_eq!(names(&storage), [] as [PathBuf; 0]);
    }
}

#[test]
fn what_is_there_is_replaced_only_on_demand_and_when_it_is_free() {
    let storage = FakeStorage::new();
    let from = source(&storage);
    let there = RawImage::create(&storage, Path::new("/copy"), 512).unwrap();
    let refused = run(&storage, &from, Format::Raw, Existing::Keep);
    assert!(matches!(refused, Err(ConvertError::Exists { .. })));
    let refused = run(&storage, &from, Format::Raw, Existing::Replace).unwrap_err();
    let ConvertError::Replace { source, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(source.kind(), crate::ErrorKind::Locked);
    there.close().unwrap();
    drop(there);
    run(&storage, &from, Format::Raw, Existing::Replace).unwrap();
    check_whole(&storage, Format::Raw);
    assert_eq!(names(&storage), [Path::new("/copy")]);
}

#[test]
fn only_our_own_names_are_leftovers() {
    let own = aside(Path::new("/a/disk.vhdx")).unwrap();
    let prefix = aside_prefix(OsStr::new("disk.vhdx"));
    assert!(is_aside(&own, &prefix), "{}", own.display());
    let mut inner = own.clone().into_os_string();
    inner.push(".new");
    assert!(is_aside(Path::new(&inner), &prefix));
    for other in [
        "/a/disk.vhdx",
        "/a/.disk.vhdx.converting",
        "/a/.disk.vhdx.0123.converting",
        "/a/.disk.vhd.00000000000000000000000000000000.converting",
        "/a/.disk.vhdx.0000000000000000000000000000000g.converting",
    ] {
        assert!(!is_aside(Path::new(other), &prefix), "{other}");
    }
    assert!(aside(Path::new("/a/..")).is_err());
}
