//! Inputs to begin with: small, right, and one for each branch that a mutation would hardly find.
//!
//! Ids in them are random, so that two runs differ; the stored corpora are one run's.

use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use sitepair_disk::create::create_over;
use sitepair_disk::hrl::{HrlId, HrlOptions, HrlTime, HrlWriter};
use sitepair_disk::open::Format;
use sitepair_disk::parent::Parents;
use sitepair_disk::qcow2::Qcow2Image;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{OpenMode, Storage};
use sitepair_disk::vhd::{self, VhdImage};
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use sitepair_disk::{Image, ZeroMode};
use sitepair_model::group::GroupState;
use sitepair_model::ids::{GenId, Generation, GroupId, Nonce};
use sitepair_proto::v1;

use crate::file::{PATH, fold};

type Seeds = Vec<(String, Vec<u8>)>;

const AS_IT_IS: u8 = 0;
const CHECKSUMS_PUT_RIGHT: u8 = 1;

/// Both choices of a file: as it is, and with its checksums put right after mutation.
fn both(name: &str, content: &[u8]) -> Seeds {
    let pieces = fold(content);
    [(AS_IT_IS, "raw"), (CHECKSUMS_PUT_RIGHT, "fixed")]
        .into_iter()
        .map(|(choice, suffix)| {
            let input = [&[choice], pieces.as_slice()].concat();
            (format!("{name}-{suffix}"), input)
        })
        .collect()
}

fn vhdx_file(options: &CreateOptions, close: bool) -> Vec<u8> {
    let storage = FakeStorage::new();
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let image = VhdxImage::create(shared, Path::new(PATH), options).unwrap();
    let unit = u64::from(options.logical_sector_bytes);
    image.write_at(&[7; 4096], 0, false).unwrap();
    let last = options.size_bytes - 4096;
    image
        .write_at(&[9; 4096], last / unit * unit, false)
        .unwrap();
    image.flush().unwrap();
    let block = u64::from(options.block_bytes);
    image
        .write_zeroes(0, block.min(options.size_bytes), ZeroMode::MayUnmap, false)
        .unwrap();
    image.write_at(&[5; 4096], 8192, false).unwrap();
    image.flush().unwrap();
    if close {
        image.close().unwrap();
    }
    storage.content(Path::new(PATH)).unwrap()
}

/// VHDX files: kinds, sectors, sizes, closed and with a log to replay.
#[must_use]
pub fn vhdx() -> Seeds {
    let dynamic = CreateOptions {
        size_bytes: 5 << 20,
        block_bytes: 1 << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        kind: Kind::Dynamic,
        disk_id: Some([3; 16]),
    };
    let wide = CreateOptions {
        size_bytes: 40 << 30,
        block_bytes: 2 << 20,
        logical_sector_bytes: 4096,
        ..dynamic.clone()
    };
    let odd = CreateOptions {
        size_bytes: (1 << 20) + 512 * 11,
        ..dynamic.clone()
    };
    let fixed = CreateOptions {
        size_bytes: 2 << 20,
        kind: Kind::Fixed,
        ..dynamic.clone()
    };
    let mut seeds = Seeds::new();
    for (name, options) in [
        ("dynamic", dynamic),
        ("wide", wide),
        ("odd", odd),
        ("fixed", fixed),
    ] {
        seeds.extend(both(name, &vhdx_file(&options, true)));
        seeds.extend(both(&format!("{name}-log"), &vhdx_file(&options, false)));
    }
    seeds
}

/// Differencing VHDX files: closed and with a log to replay.
#[must_use]
pub fn vhdx_child() -> Seeds {
    let mut seeds = Seeds::new();
    for close in [true, false] {
        let storage = FakeStorage::new();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let options = CreateOptions {
            size_bytes: 5 << 20,
            block_bytes: 1 << 20,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            kind: Kind::Dynamic,
            disk_id: Some([3; 16]),
        };
        let parent = Path::new("/parent");
        VhdxImage::create(Arc::clone(&shared), parent, &options)
            .unwrap()
            .close()
            .unwrap();
        let image = create_over(
            &shared,
            Path::new(PATH),
            Format::Vhdx,
            Some(1 << 20),
            parent,
            &Parents::Refused,
        )
        .unwrap();
        write_a_little(&*image, close);
        drop(image);
        let name = if close { "closed" } else { "log" };
        seeds.extend(both(name, &storage.content(Path::new(PATH)).unwrap()));
    }
    seeds
}

/// With and without a parent.
#[must_use]
pub fn vhdx_and_children() -> Seeds {
    [vhdx(), vhdx_child()].concat()
}

/// VHD files of all kinds, closed and not.
#[must_use]
pub fn vhd() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, kind) in [
        ("fixed", vhd::Kind::Fixed),
        ("dynamic", vhd::Kind::Dynamic),
        ("differencing", vhd::Kind::Differencing),
    ] {
        for close in [true, false] {
            let storage = FakeStorage::new();
            let shared: Arc<dyn Storage> = Arc::new(storage.clone());
            let options = vhd::CreateOptions {
                size_bytes: 1 << 20,
                block_bytes: 512 << 10,
                kind: if kind == vhd::Kind::Fixed {
                    kind
                } else {
                    vhd::Kind::Dynamic
                },
                disk_id: Some([3; 16]),
            };
            let path = Path::new(PATH);
            let image: Arc<dyn Image> = if kind == vhd::Kind::Differencing {
                let parent = Path::new("/parent");
                let made = VhdImage::create(Arc::clone(&shared), parent, &options).unwrap();
                made.close().unwrap();
                drop(made);
                let block = Some(512 << 10);
                create_over(&shared, path, Format::Vhd, block, parent, &Parents::Refused).unwrap()
            } else {
                Arc::new(VhdImage::create(Arc::clone(&shared), path, &options).unwrap())
            };
            write_a_little(&*image, close);
            drop(image);
            let name = format!("{name}{}", if close { "" } else { "-open" });
            seeds.extend(both(&name, &storage.content(path).unwrap()));
        }
    }
    seeds
}

/// At both ends and across a block, with zeros.
fn write_a_little(image: &dyn Image, close: bool) {
    let size = image.geometry().size_bytes;
    image.write_at(&[7; 512], 0, false).unwrap();
    image.write_at(&[9; 1024], size - 1024, false).unwrap();
    image.flush().unwrap();
    image
        .write_zeroes(512, 4096, ZeroMode::MayUnmap, false)
        .unwrap();
    image.flush().unwrap();
    if close {
        image.close().unwrap();
    }
}

/// The records of a new source, and of a new replica.
#[must_use]
pub fn record() -> Seeds {
    let (group, nonce) = (GroupId::from_bytes([1; 16]), Nonce::from_bytes([2; 16]));
    let (boot, id) = ([3; 16], GenId::from_bytes([5; 16]));
    let source = GroupState::born_source(group, id, nonce, boot);
    let replica = GroupState::born_replica(group, Generation { epoch: 1, id }, nonce, boot);
    [("source", source), ("replica", replica)]
        .into_iter()
        .map(|(name, born)| (name.to_owned(), born.next.record.encode()))
        .collect()
}

/// qcow2 files: empty, with data, with zeros.
#[must_use]
pub fn qcow2() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, writes) in [("empty", 0), ("some", 3), ("more", 9)] {
        let storage = FakeStorage::new();
        let image = Qcow2Image::create(&storage, Path::new(PATH), 2 << 20).unwrap();
        for number in 0..writes {
            let byte = u8::try_from(number + 1).unwrap();
            image
                .write_at(&[byte; 512], number * (200 << 10) / 512 * 512, false)
                .unwrap();
        }
        image
            .write_zeroes(1 << 20, 512 << 10, ZeroMode::MayUnmap, false)
            .unwrap();
        image.close().unwrap();
        seeds.push((
            name.to_owned(),
            fold(&storage.content(Path::new(PATH)).unwrap()),
        ));
    }
    seeds
}

/// Files of formats that are known by a few bytes, at their beginning or end.
#[must_use]
pub fn image() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, at, bytes) in [
        ("raw", 0, b"anything".as_slice()),
        ("vhdx", 0, b"vhdxfile"),
        ("vhd", 0, b"conectix"),
        ("vhd-end", 3584, b"conectix"),
        ("vhd-end-old", 3585, b"conectix"),
        ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
        ("vmdk", 0, b"KDMV"),
        ("hrl", 0, b"msctlog\0"),
    ] {
        let mut content = vec![0; 4096];
        content[at..at + bytes.len()].copy_from_slice(bytes);
        seeds.extend(both(name, &content).into_iter().take(1));
    }
    seeds.extend(vhdx().into_iter().filter(|(name, _)| name.contains("odd")));
    seeds
}

fn hrl_file(writes: u64, zeros: u64) -> Vec<u8> {
    let storage = FakeStorage::new();
    let options = HrlOptions {
        unique_id: HrlId([1; 16]),
        previous_id: HrlId([2; 16]),
        data_write_id: HrlId([3; 16]),
        created: HrlTime(539_842_380),
    };
    let mut writer = HrlWriter::create(&storage, Path::new(PATH), options).unwrap();
    for number in 0..writes {
        let byte = u8::try_from(number % 255 + 1).unwrap();
        let data = [byte; 512];
        writer.append(number * 512, &data, HrlTime(7)).unwrap();
    }
    for number in 0..zeros {
        let at = (1 << 20) + number * (64 << 10);
        writer.append_zeros(at, 64 << 10, HrlTime(8)).unwrap();
    }
    writer.finish(HrlTime(9)).unwrap();
    storage.content(Path::new(PATH)).unwrap()
}

/// Change logs: empty, short, of several blocks, of zeros, and each without its end.
#[must_use]
pub fn hrl() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, writes, zeros) in [
        ("empty", 0, 0),
        ("one", 1, 0),
        ("short", 5, 2),
        ("blocks", 131, 1),
        ("zeros", 0, 3),
    ] {
        let mut content = hrl_file(writes, zeros);
        seeds.extend(both(name, &content));
        content[44..52].fill(0);
        seeds.extend(both(&format!("{name}-open"), &content).into_iter().take(1));
    }
    seeds
}

fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let header = [
        b"IHAVEOPT".as_slice(),
        &code.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    [header.concat().as_slice(), payload].concat()
}

fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// Handshakes, as clients begin them.
#[must_use]
pub fn nbd_option() -> Seeds {
    let go = |name: &str| [string(name), vec![0, 1, 0, 3]].concat();
    let context = |name: &str, query: &str| {
        [string(name), 1_u32.to_be_bytes().to_vec(), string(query)].concat()
    };
    let handshakes = [
        (
            "go",
            vec![
                option(8, &[]),
                option(10, &context("disk1", "base:allocation")),
                option(7, &go("disk1")),
            ],
        ),
        (
            "info",
            vec![option(6, &go("disk2")), option(3, &[]), option(2, &[])],
        ),
        ("name", vec![option(1, b"disk0")]),
        (
            "contexts",
            vec![
                option(8, &[]),
                option(9, &context("disk3", "base:")),
                option(9, &context("", "")),
            ],
        ),
        ("tls", vec![option(3, &[]), option(5, &[])]),
        (
            "unknown",
            vec![
                option(11, &[]),
                option(99, b"what"),
                option(7, &go("nothing")),
            ],
        ),
    ];
    let mut seeds = Seeds::new();
    for (name, options) in handshakes {
        for choice in 0..4_u8 {
            let start = [choice, 0, 0, 0, 3];
            seeds.push((
                format!("{name}-{choice}"),
                [&start[..], &options.concat()].concat(),
            ));
        }
    }
    seeds
}

/// Each command, with its flags.
#[must_use]
pub fn nbd_request() -> Seeds {
    let mut seeds = Seeds::new();
    for command in 0..9_u16 {
        let mut input = vec![0x9e];
        for flags in [0_u16, 1, 2, 4, 8, 16] {
            input.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            input.extend_from_slice(&flags.to_be_bytes());
            input.extend_from_slice(&command.to_be_bytes());
            input.extend_from_slice(&77_u64.to_be_bytes());
            input.extend_from_slice(&8192_u64.to_be_bytes());
            input.extend_from_slice(&4096_u32.to_be_bytes());
            if command == 1 {
                input.extend_from_slice(&[0; 4096]);
            }
        }
        seeds.push((format!("command-{command}"), input));
    }
    seeds
}

/// Messages of a transfer.
#[must_use]
pub fn wire() -> Seeds {
    use v1::transfer_request::Kind;
    let id = vec![7; 16];
    let kinds = [
        (
            "begin",
            Kind::Begin(v1::TransferBegin {
                versions: sitepair_proto::spoken(),
                group: id.clone().into(),
                generation: id.clone().into(),
                kind: Some(v1::transfer_begin::Kind::Cycle(v1::CycleTransfer {
                    from: 3,
                    to: 4,
                })),
            }),
        ),
        (
            "frame",
            Kind::Frame(v1::DataFrame {
                disk: id.into(),
                extents: vec![v1::FrameExtent {
                    offset: 4096,
                    length: 512,
                    zero: false,
                }],
                hash: vec![1; 32].into(),
                payload: vec![5; 512].into(),
            }),
        ),
        (
            "commit",
            Kind::Commit(v1::TransferCommit {
                cut_at_ms: 1,
                ..v1::TransferCommit::default()
            }),
        ),
    ];
    kinds
        .into_iter()
        .map(|(name, kind)| {
            let message = v1::TransferRequest { kind: Some(kind) };
            (name.to_owned(), message.encode_to_vec())
        })
        .collect()
}

/// Checks that a seed unfolds to what was folded.
///
/// # Panics
/// When it does not.
pub fn check_folding() {
    let content = hrl_file(131, 1);
    let (storage, _) = crate::file::unfold(&fold(&content));
    assert_eq!(storage.content(Path::new(PATH)).unwrap(), content);
    assert!(storage.open(Path::new(PATH), OpenMode::Read).is_ok());
}
