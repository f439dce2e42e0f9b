//! An agent that lies, breaks off, or is too late.

use std::fs;

use sitepair_disk::hrl::{HrlId, HrlOptions, HrlTime, HrlWriter};

use super::*;

const NAME: &str = "system.7.hrl";

/// A log as an agent has it, and what it says of it: data, a hole of 1 MiB, a metadata block.
fn log(folder: &Path) -> (Vec<u8>, proto::LogHead) {
    let path = folder.join("theirs.hrl");
    let storage = HostStorage::new();
    let options = HrlOptions {
        unique_id: HrlId([7; 16]),
        previous_id: HrlId([6; 16]),
        data_write_id: HrlId::default(),
        created: HrlTime(1),
    };
    let mut writer = HrlWriter::create(&storage, &path, options).unwrap();
    writer.append(4096, &[3; 8192], HrlTime(1)).unwrap();
    writer.append_zeros(1 << 30, 1 << 20, HrlTime(1)).unwrap();
    writer.finish(HrlTime(2)).unwrap();
    let reader = HrlReader::open(&storage, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let head = proto::LogHead {
        file_name: NAME.to_owned(),
        file_bytes: bytes.len() as u64,
        content_hash: reader.content_hash().unwrap().to_vec().into(),
    };
    (bytes, head)
}

/// Where the hole is.
const HOLE: std::ops::Range<usize> = 4096 + 8192..4096 + 8192 + (1 << 20);

/// The honest parts.
fn parts(bytes: &[u8]) -> Vec<Option<Part>> {
    let data = |range: &[u8]| Some(Part::Data(range.to_vec().into()));
    vec![
        data(&bytes[..HOLE.start]),
        Some(Part::HoleBytes(HOLE.len() as u64)),
        data(&bytes[HOLE.end..]),
    ]
}

struct Scene {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    head: proto::LogHead,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, head) = log(folder.path());
        Self {
            folder,
            bytes,
            head,
        }
    }

    fn to(&self) -> Folder {
        Folder::open(self.folder.path()).unwrap()
    }

    /// Takes all parts as the command does.
    fn export(&self, parts: Vec<Option<Part>>) -> Result<PathBuf, Failure> {
        let file = PartFile::create(&self.to(), NAME)?;
        let mut arrived = Arrived {
            head: &self.head,
            file: &file,
            at: 0,
        };
        parts.into_iter().try_for_each(|part| arrived.take(part))?;
        arrived.end()?;
        file.check("system".to_owned(), &self.head)?;
        file.give_name(self.folder.path(), NAME)
    }

    fn files(&self) -> Vec<String> {
        fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[test]
fn an_honest_agents_log_arrives_with_its_hole() {
    let scene = Scene::new();
    let path = scene.export(parts(&scene.bytes)).unwrap();
    assert_eq!(scene.files(), [NAME]);
    assert!(fs::read(&path).unwrap() == scene.bytes);
    let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) * 512;
    assert!(allocated < HOLE.len() as u64, "{allocated} bytes");
}

#[test]
fn parts_that_do_not_fit_leave_no_file() {
    let scene = Scene::new();
    let honest = || parts(&scene.bytes);
    let with = |at: usize, part: Option<Part>| {
        let mut parts = honest();
        parts.insert(at, part);
        parts
    };
    let too_long = "something else than";
    for (parts, why) in [
        (Vec::new(), "sent 0 of"),
        (honest()[..2].to_vec(), "try again"),
        (with(3, Some(Part::Data(vec![1].into()))), too_long),
        (with(0, Some(Part::HoleBytes(u64::MAX))), too_long),
        (with(1, Some(Part::HoleBytes(u64::MAX))), too_long),
        (with(1, Some(Part::Head(scene.head.clone()))), too_long),
        (with(0, Some(Part::HoleBytes(0))), too_long),
        (with(2, None), too_long),
        // All zeros: not even a change log.
        (
            vec![Some(Part::HoleBytes(scene.head.file_bytes))],
            "as it arrived",
        ),
    ] {
        let failure = scene.export(parts).unwrap_err();
        assert!(failure.to_string().contains(why), "{failure}");
        assert_eq!(failure.code(), 1);
        assert!(scene.files().is_empty(), "{failure}: {:?}", scene.files());
    }
}

/// Also bytes that the format's own sums cannot tell apart.
#[test]
fn bytes_that_were_changed_leave_no_file() {
    let mut scene = Scene::new();
    for (at, value) in [
        (4096, 4),
        (40, 9),
        (70, 1),
        (HOLE.end + 40, 1),
        (HOLE.start, 1),
    ] {
        let mut bytes = scene.bytes.clone();
        bytes[at] ^= value;
        let whole = vec![Some(Part::Data(bytes.into()))];
        let failure = scene.export(whole).unwrap_err();
        assert_eq!(failure.code(), 1, "{at}: {failure}");
        assert!(scene.files().is_empty(), "{at}");
    }
    scene.head.content_hash = vec![0; 32].into();
    let failure = scene.export(parts(&scene.bytes)).unwrap_err();
    assert!(failure.to_string().contains("another hash"), "{failure}");
    scene.head.content_hash = Vec::new().into();
    assert!(scene.export(parts(&scene.bytes)).is_err());
    assert!(scene.files().is_empty());
}

#[test]
fn a_file_that_came_meanwhile_stays_as_it_is() {
    let scene = Scene::new();
    scene.to().check_free(NAME).unwrap();
    fs::write(scene.folder.path().join(NAME), b"mine").unwrap();
    let failure = scene.to().check_free(NAME).unwrap_err();
    assert_eq!(failure.code(), 3);
    let failure = scene.export(parts(&scene.bytes)).unwrap_err();
    assert_eq!(failure.code(), 3, "{failure}");
    assert_eq!(scene.files(), [NAME]);
    assert_eq!(fs::read(scene.folder.path().join(NAME)).unwrap(), b"mine");
}
