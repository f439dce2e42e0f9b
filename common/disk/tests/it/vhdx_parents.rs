//! Differencing VHDX files: one of Windows read by us, ours read by 7-Zip, and one whose writer is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::parent::{ParentLink, Parents};
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::{ChildOptions, CreateOptions, Kind, VhdxImage};
use sitepair_disk::{DiskError, ErrorKind, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};
use tempfile::TempDir;

use super::vhdx::{MIB, alone, create, run, scribble, skipped, text, unpack};

const CHILD_FILE: &str = "SITEPAIR_TEST_DIFFERENCING_FILE";

fn storage() -> Arc<dyn Storage> {
    Arc::new(HostStorage::new())
}

fn open_chain(path: &Path, read_only: bool) -> Arc<dyn Image> {
    let options = OpenOptions {
        format: None,
        read_only,
        parents: Parents::Inside(path.parent().expect("a folder").to_owned()),
    };
    open_image(&storage(), path, options).expect("the chain opens")
}

fn create_child(path: &Path, parent: &Path, block_mib: u32) -> VhdxImage {
    let options = ChildOptions {
        parent_path: parent.to_owned(),
        block_bytes: block_mib << 20,
    };
    let mut find = |link: &ParentLink| {
        let grandparent = parent.with_file_name(link.paths[0].file_name().expect("a name"));
        Ok(open_chain(&grandparent, true))
    };
    let parent = VhdxImage::open_with(storage(), parent, true, &mut find).expect("it opens");
    VhdxImage::create_child(storage(), path, &Arc::new(parent), &options).expect("it is made")
}

fn same(image: &dyn Image, model: &[u8], what: &str) {
    let mut found = vec![0; model.len()];
    image.read_at(&mut found, 0).expect("it reads");
    assert!(found == model, "{what}");
}

#[test]
fn chains_of_ours_are_equal_for_7zip() {
    let _alone = alone();
    let has_7zip = Command::new("7z").arg("i").output().is_ok();
    if !has_7zip {
        skipped("7z is not installed");
    }
    for (turn, logical, blocks_mib) in [
        (21, 512, [2, 2, 1]),
        (22, 512, [32, 1, 2]),
        (23, 4096, [1, 2, 32]),
    ] {
        let dir = TempDir::new().unwrap();
        let level = |number: usize| dir.path().join(format!("level{number}.vhdx"));
        let size = 24 * MIB;
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let options = CreateOptions {
            size_bytes: size,
            block_bytes: blocks_mib[0] << 20,
            logical_sector_bytes: logical,
            physical_sector_bytes: 4096,
            kind: Kind::Dynamic,
            disk_id: None,
        };
        let base = VhdxImage::create(storage(), &level(0), &options).unwrap();
        scribble(&base, &mut model, turn);
        base.close().unwrap();
        for (number, block_mib) in blocks_mib.into_iter().enumerate().skip(1) {
            let image = create_child(&level(number), &level(number - 1), block_mib);
            // Most of the disk stays the parent's: few, short writes.
            let sectors = size / 4096;
            for step in 0..40_u64 {
                let at = usize::try_from(step * (turn + 7 * step) % sectors * 4096).unwrap();
                let length = usize::try_from(4096 * (1 + step % 3))
                    .unwrap()
                    .min(model.len() - at);
                let fill = u8::try_from(100 + step).unwrap();
                model[at..at + length].fill(fill);
                let offset = u64::try_from(at).unwrap();
                image
                    .write_at(&model[at..at + length], offset, false)
                    .unwrap();
            }
            image.discard(4 * MIB, 2 * MIB).unwrap();
            model[4 << 20..6 << 20].fill(0);
            image
                .write_zeroes(9 * MIB, 8192, ZeroMode::MayUnmap, false)
                .unwrap();
            model[9 << 20..(9 << 20) + 8192].fill(0);
            image.close().unwrap();
            same(&*open_chain(&level(number), true), &model, "ours");
            if has_7zip {
                let output = run("7z", &["e", "-so", "-tvhdx", text(&level(number))]);
                assert!(
                    output.stdout == model,
                    "turn {turn}, level {number}: 7-Zip reads something else"
                );
                run("7z", &["t", "-tvhdx", text(&level(number))]);
            }
        }
    }
}

/// A parent that is everywhere `0xEE`, or nothing but a hole.
struct Stub {
    id: [u8; 16],
    size_bytes: u64,
    is_hole: bool,
}

impl Image for Stub {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            block_bytes: 0,
            read_only: true,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity {
            data_write_id: self.id,
            ..Identity::default()
        })
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), DiskError> {
        buf.fill(if self.is_hole { 0 } else { 0xEE });
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> Result<(), DiskError> {
        panic!("parents are not written")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroMode, _: bool) -> Result<(), DiskError> {
        panic!("parents are not written")
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        let kind = if self.is_hole {
            ExtentKind::Hole
        } else {
            ExtentKind::Data
        };
        visit(Run::here(offset, length, kind));
        Ok(())
    }

    fn close(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Opens a file over a stub. Gives out what the file says of its parent, too.
fn open_over(
    path: &Path,
    stub: &Stub,
    read_only: bool,
) -> (Result<VhdxImage, DiskError>, ParentLink) {
    let mut said = None;
    let mut find = |link: &ParentLink| {
        said = Some(link.clone());
        Ok(Arc::new(Stub {
            id: if stub.id == [0; 16] { link.id } else { stub.id },
            ..*stub
        }) as Arc<dyn Image>)
    };
    let opened = VhdxImage::open_with(storage(), path, read_only, &mut find);
    (opened, said.expect("it has a parent"))
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit host")
}

/// The sectors that a file of Windows with blocks of 2 MiB and sectors of 512 bytes has, read without our driver:
/// place on the disk, place in the file.
fn sectors_of(file: &[u8], blocks: u64) -> Vec<(u64, usize)> {
    const BAT: usize = 3 << 20;
    let entry = |index: u64| {
        let at = BAT + to_usize(index) * 8;
        u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"))
    };
    let place = |entry: u64| to_usize(entry >> 20 << 20);
    let mut found = Vec::new();
    for block in 0..blocks {
        let (chunk, in_chunk) = (block / 2048, to_usize(block % 2048));
        let payload = entry(block + chunk);
        assert!(
            payload == 0 || payload & 7 == 7,
            "not present, or partially"
        );
        if payload == 0 {
            continue;
        }
        let bitmap = entry(2048 * (chunk + 1) + chunk);
        assert_eq!(bitmap & 7, 6);
        for sector in 0..4096_u64 {
            let byte = file[place(bitmap) + in_chunk * 512 + to_usize(sector / 8)];
            if byte >> (sector % 8) & 1 != 0 {
                let disk = block * 2 * MIB + sector * 512;
                found.push((disk, place(payload) + to_usize(sector) * 512));
            }
        }
    }
    found
}

/// The checkpoint of the corpus, unpacked.
fn checkpoint(dir: &TempDir) -> Option<PathBuf> {
    let sha256 = "a4bf6f9ccaaf8f90b0e9a5b6f964e2b21ca3a9b1675c3a92e73206b04cfb1fbf";
    unpack(dir, "differencing.avhdx", sha256)
}

const STUB: Stub = Stub {
    id: [0; 16],
    size_bytes: CHECKPOINT_BYTES,
    is_hole: false,
};
const CHECKPOINT_BYTES: u64 = 8 << 30;

/// Whether all blocks of `image` that have sectors here hold those, and else `0xEE`.
fn check_over_stub(image: &dyn Image, file: &[u8], sectors: &[(u64, usize)]) {
    let mut block = vec![0; 2 << 20];
    for start in (0..CHECKPOINT_BYTES).step_by(2 << 20) {
        let here = sectors.partition_point(|sector| sector.0 < start);
        let end = sectors.partition_point(|sector| sector.0 < start + 2 * MIB);
        if here == end {
            continue;
        }
        let mut wanted = vec![0xEE; 2 << 20];
        for (disk, place) in &sectors[here..end] {
            let at = to_usize(disk - start);
            wanted[at..at + 512].copy_from_slice(&file[*place..*place + 512]);
        }
        image.read_at(&mut block, start).expect("it reads");
        assert!(block == wanted, "block at {start}");
    }
}

#[test]
fn a_checkpoint_of_windows_is_read_sector_by_sector() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let Some(vhdx) = checkpoint(&dir) else {
        return;
    };
    let file = std::fs::read(&vhdx).unwrap();
    let sectors = sectors_of(&file, 4096);
    let blocks: std::collections::BTreeSet<u64> =
        sectors.iter().map(|sector| sector.0 / (2 * MIB)).collect();
    assert_eq!(blocks.len(), 32);
    let (image, said) = open_over(&vhdx, &STUB, true);
    let image = image.unwrap();
    let name = "Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx";
    let beside = PathBuf::from("./").join(name);
    assert_eq!(said.paths, [beside], "the others mean nothing here");
    assert_eq!(said.also, None, "zeros are no id");
    let geometry = image.geometry();
    assert_eq!(
        (geometry.size_bytes, geometry.block_bytes),
        (8 << 30, 2 << 20)
    );
    check_over_stub(&image, &file, &sectors);
    image.close().unwrap();
    // Over nothing, what is here is all that there is.
    let hole = Stub {
        is_hole: true,
        ..STUB
    };
    let image = open_over(&vhdx, &hole, true).0.unwrap();
    let mut data = 0;
    let mut count = |Run { length, kind, .. }: Run| {
        data += if kind == ExtentKind::Hole { 0 } else { length };
        true
    };
    image.extents(0, CHECKPOINT_BYTES, &mut count).unwrap();
    assert_eq!(data, u64::try_from(sectors.len()).unwrap() * 512);
    image.close().unwrap();
    let after = std::fs::read(&vhdx).unwrap();
    assert!(after == file, "a read-only open writes nothing");
}

#[test]
fn a_checkpoint_of_windows_is_refused_without_its_parent() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let Some(vhdx) = checkpoint(&dir) else {
        return;
    };
    let refusal = VhdxImage::open(storage(), &vhdx, false).err().unwrap();
    assert_eq!(refusal.kind(), ErrorKind::Parent, "{refusal}");
    let missing = OpenOptions {
        parents: Parents::Inside(dir.path().to_owned()),
        ..OpenOptions::default()
    };
    let refusal = open_image(&storage(), &vhdx, missing).err().unwrap();
    assert!(refusal.to_string().contains("missing"), "{refusal}");
    for (stub, word) in [
        (
            Stub {
                id: [1; 16],
                ..STUB
            },
            "changed",
        ),
        (
            Stub {
                size_bytes: 9 << 30,
                ..STUB
            },
            "the parent more",
        ),
    ] {
        let refusal = open_over(&vhdx, &stub, true).0.err().unwrap();
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
}

#[test]
fn a_checkpoint_of_windows_is_written_sector_by_sector() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let Some(vhdx) = checkpoint(&dir) else {
        return;
    };
    let file = std::fs::read(&vhdx).unwrap();
    let sectors = sectors_of(&file, 4096);
    // The first sector of the disk that is the parent's.
    let is_absent = |at: &u64| sectors.binary_search_by_key(at, |sector| sector.0).is_err();
    let absent = (0..).map(|sector| sector * 512).find(is_absent).unwrap();
    let image = open_over(&vhdx, &STUB, false).0.unwrap();
    image.write_at(&[7; 512], absent, false).unwrap();
    image.write_at(&[8; 512], 5 << 30, false).unwrap();
    image.close().unwrap();
    let image = open_over(&vhdx, &STUB, true).0.unwrap();
    let mut two = [0; 1024];
    image.read_at(&mut two, 5 << 30).unwrap();
    assert_eq!((two[511], two[512]), (8, 0xEE));
    image.read_at(&mut two, absent).unwrap();
    assert_eq!(two[..512], [7; 512]);
    if absent > 0 {
        image.read_at(&mut two[..512], absent - 512).unwrap();
        assert_ne!(two[..512], [7; 512]);
    }
}

/// Where write number `turn` of the writer that is killed goes: sectors of many blocks, in no order.
fn place_of(turn: u64) -> u64 {
    turn * 7919 % 4096 * 32768 + turn / 4096 * 512
}

/// Not a test: the process that the next test kills. Says each write that was answered.
#[test]
fn child_writes_over_a_parent_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_FILE) else {
        return;
    };
    let path = Path::new(&path);
    let image = create_child(path, &path.with_file_name("base.vhdx"), 2);
    for turn in 0..u64::MAX {
        let fill = u8::try_from(turn % 255 + 1).unwrap();
        image.write_at(&[fill; 512], place_of(turn), false).unwrap();
        std::io::stdout()
            .write_all(format!("turn {turn}\n").as_bytes())
            .unwrap();
    }
}

#[test]
fn a_killed_writer_over_a_parent_loses_nothing_that_was_answered() {
    let _alone = alone();
    for lines in [3, 150] {
        let dir = TempDir::new().unwrap();
        let base = create(&dir.path().join("base.vhdx"), 128 * MIB, 1, Kind::Dynamic);
        for block in 0..128 {
            base.write_at(&[0xEE; 65536], block * MIB, false).unwrap();
        }
        base.close().unwrap();
        let vhdx = dir.path().join("child.vhdx");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "vhdx_parents::child_writes_over_a_parent_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_FILE, &vhdx)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("turn"));
        assert_eq!(output.by_ref().take(lines).count(), lines);
        child.kill().unwrap();
        child.wait().unwrap();
        let answered = u64::try_from(lines + output.count()).unwrap();
        for read_only in [true, false] {
            let image = open_chain(&vhdx, read_only);
            let mut sector = [0; 512];
            for turn in 0..answered {
                image.read_at(&mut sector, place_of(turn)).unwrap();
                let fill = u8::try_from(turn % 255 + 1).unwrap();
                assert_eq!(sector, [fill; 512], "write {turn} of {answered}");
            }
            // One more write may have been under way.
            image.read_at(&mut sector, place_of(answered + 1)).unwrap();
            let parents = if place_of(answered + 1) % MIB < 65536 {
                0xEE
            } else {
                0
            };
            assert_eq!(sector, [parents; 512]);
            image.close().unwrap();
        }
    }
}
