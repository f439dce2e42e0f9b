//! Image files: `sitepair disk convert` beside `qemu-img convert`, small writes with flushes to new
//! dynamic images beside `qemu-nbd`, and the opening of the largest VHDX.
//!
//! Whose turn is first changes from round to round. What is compared is durable at its end, unless the row says
//! otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sitepair_disk::ExtentKind;
use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_tests::bins::bins;
use sitepair_tests::tools;
use tokio::runtime::Runtime;

use crate::fio::{Load, Order};
use crate::servers::{Kind, Server};
use crate::table::{Table, median, ratio, real};
use crate::{Args, cpu, mixed, say};

/// Formats: the ending of our files' names, which tells us the format, and QEMU's name for it.
const FORMATS: [(&str, &str); 3] = [("raw", "raw"), ("vhd", "vpc"), ("vhdx", "vhdx")];
/// Formats that take space as they are written.
const DYNAMIC: [(&str, &str); 2] = [("vhd", "vpc"), ("vhdx", "vhdx")];

/// Size of the new images that are written to at random.
const FRESH_BYTES: u64 = 4 << 30;
const LOADS: [Load; 2] = [
    Load {
        name: "4K random, depth 1, flush/32",
        order: Order::Random,
        request_bytes: 4096,
        depth: 1,
        flush_every: Some(32),
    },
    Load {
        name: "4K random, depth 16, flush/32",
        order: Order::Random,
        request_bytes: 4096,
        depth: 16,
        flush_every: Some(32),
    },
];

pub(crate) fn run(args: &Args, folder: &Path) -> Result<()> {
    convert(args, folder).context("conversions")?;
    writes(args, folder).context("writes to new images")?;
    huge(folder).context("the largest image")
}

/// Who converts.
#[derive(Debug, Clone, Copy)]
enum By {
    Ours,
    /// Durable at the end, as ours.
    Qemu,
    /// As it comes: the end is in the page cache.
    QemuUnsafe,
}

const ALL: [By; 3] = [By::Ours, By::Qemu, By::QemuUnsafe];

#[derive(Debug, Clone, Default)]
struct Series {
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
}

fn convert(args: &Args, folder: &Path) -> Result<()> {
    let raw = folder.join("disk.raw");
    let data_bytes = mixed::create(&raw, args.image_mib << 20)?;
    let mut table = Table::new(&[
        "conversion, seconds (processor seconds)",
        "sitepair",
        "qemu-img, durable",
        "qemu-img as it comes",
        "speed to durable qemu-img",
        "speed to qemu-img",
    ]);
    for (from, from_qemu) in FORMATS {
        let source = folder.join(format!("disk.{from}"));
        if source != raw {
            sitepair(&["convert", path(&raw)?, path(&source)?])?;
        }
        for (to, to_qemu) in FORMATS {
            let mut series: [Series; ALL.len()] = Default::default();
            for round in 0..args.rounds {
                for turn in 0..ALL.len() {
                    let number = (round + turn) % ALL.len();
                    let target = folder.join(format!("copy.{to}"));
                    // What came before is not written back at our cost.
                    rustix::fs::sync();
                    let cpu = cpu::children()?;
                    let began = Instant::now();
                    ALL[number].convert((&source, from_qemu), (&target, to_qemu))?;
                    series[number].seconds.push(began.elapsed().as_secs_f64());
                    series[number].cpu_seconds.push(cpu::children()? - cpu);
                    fs::remove_file(&target).context("remove the copy")?;
                }
            }
            table.row(cells(&format!("{from} to {to}"), &series));
        }
    }
    say(&format!(
        "Conversions of an image of {} MiB with {} MiB of data, {} rounds",
        args.image_mib,
        data_bytes >> 20,
        args.rounds
    ));
    say(&table.to_string());
    Ok(())
}

fn cells(name: &str, series: &[Series; ALL.len()]) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    for one in series {
        let seconds = median(one.seconds.iter().copied());
        let cpu = median(one.cpu_seconds.iter().copied());
        cells.push(format!("{seconds:.2} ({cpu:.2})"));
    }
    let [ours, others @ ..] = series;
    for other in others {
        cells.push(format!("{:.2}", ratio(&other.seconds, &ours.seconds)));
    }
    cells
}

impl By {
    fn convert(self, from: (&Path, &str), to: (&Path, &str)) -> Result<()> {
        let qemu = |cache: &[&str]| {
            let mut command = Command::new("qemu-img");
            command.arg("convert").args(cache);
            command
                .args(["-f", from.1, "-O", to.1])
                .args([from.0, to.0]);
            tools::run(&mut command).map(drop)
        };
        match self {
            Self::Ours => sitepair(&["convert", path(from.0)?, path(to.0)?]),
            Self::Qemu => qemu(&["-t", "writeback"]),
            Self::QemuUnsafe => qemu(&[]),
        }
    }
}

fn sitepair(args: &[&str]) -> Result<()> {
    let mut command = Command::new(&bins()?.sitepair);
    command.arg("disk").args(args);
    tools::run(&mut command).map(drop)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// Each run has an image that was just made, so that blocks are allocated all the time.
fn writes(args: &Args, folder: &Path) -> Result<()> {
    let runtime = Runtime::new().context("start a runtime")?;
    // Paths of sockets must be short.
    let sockets = tempfile::tempdir().context("make a folder for sockets")?;
    let mut table = Table::new(&["writes/s to a new image", "qemu-nbd", "sitepair", "ratio"]);
    for (format, qemu_format) in DYNAMIC {
        for load in LOADS {
            let mut rates = [Vec::new(), Vec::new()];
            for round in 0..args.rounds {
                for turn in 0..rates.len() {
                    let number = (round + turn) % rates.len();
                    let image = folder.join(format!("new.{format}"));
                    let kind = [Kind::Qemu, Kind::Untracked][number];
                    fresh(kind, &image, qemu_format)?;
                    let server =
                        Server::start(kind, &image, qemu_format, sockets.path(), &runtime)?;
                    let outcome = load.run(&server.uri, FRESH_BYTES, args.seconds);
                    server.stop(&runtime)?;
                    rates[number].push(outcome?.writes_per_second);
                    fs::remove_file(&image).context("remove the image")?;
                    rustix::fs::sync();
                }
            }
            let [qemu, ours] = &rates;
            let rate = |rates: &[f64]| format!("{:.0}", median(rates.iter().copied()));
            table.row(vec![
                format!("{format}, {}", load.name),
                rate(qemu),
                rate(ours),
                format!("{:.2}", ratio(ours, qemu)),
            ]);
        }
    }
    say(&format!(
        "Writes over NBD to new dynamic images of {} MiB, {} runs of {} s each",
        FRESH_BYTES >> 20,
        args.rounds,
        args.seconds
    ));
    say(&table.to_string());
    Ok(())
}

/// A new image, made by the program whose server gets it, with that program's own choices.
fn fresh(kind: Kind, image: &Path, qemu_format: &str) -> Result<()> {
    let size = FRESH_BYTES.to_string();
    if kind != Kind::Qemu {
        return sitepair(&["create", path(image)?, "--size", &size]);
    }
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", qemu_format]);
    tools::run(command.arg(image).arg(&size)).map(drop)
}

/// An empty VHDX of 64 TiB: opened and mapped here, and by the command.
fn huge(folder: &Path) -> Result<()> {
    const RUNS: usize = 7;
    let image: PathBuf = folder.join("huge.vhdx");
    sitepair(&["create", path(&image)?, "--size", "64T"])?;
    let storage: Arc<dyn Storage> = Arc::new(HostStorage);
    let (mut millis, mut command_millis, mut qemu_millis) = (Vec::new(), Vec::new(), Vec::new());
    let before = cpu::memory(std::process::id())?.resident_bytes;
    let mut held = 0;
    for _ in 0..RUNS {
        let began = Instant::now();
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let open = open_image(&storage, &image, options)?;
        let mut holes = 0;
        open.extents(0, open.geometry().size_bytes, &mut |run| {
            holes += if run.kind == ExtentKind::Hole {
                run.length
            } else {
                0
            };
            true
        })?;
        millis.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(holes == 64 << 40, "the image is empty");
        held = held.max(cpu::memory(std::process::id())?.resident_bytes);
        drop(open);
        let began = Instant::now();
        sitepair(&["map", path(&image)?])?;
        command_millis.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        tools::run(
            Command::new("qemu-img")
                .args(["map", "--output=json", "-f", "vhdx"])
                .arg(&image),
        )?;
        qemu_millis.push(began.elapsed().as_secs_f64() * 1e3);
    }
    say(&format!(
        "An empty VHDX of 64 TiB: opened and mapped in {:.2} ms with {:.1} MiB of memory; by the command in {:.1} ms, \
         by qemu-img in {:.1} ms\n",
        median(millis),
        real(held.saturating_sub(before)) / 1_048_576.0,
        median(command_millis),
        median(qemu_millis)
    ));
    fs::remove_file(&image).context("remove the image")
}
