//! `bench`: how fast sitepair is, beside other programs on the same machine in the same run.
//!
//! Owns: the measurements, one module each, and the folder for their files, which goes when it ends.
//! Receives names of measurements and sizes; prints a table for each.
//!
//! Does not do: pass or fail. Machines differ and are shared; what counts are the ratios within one
//! run. How to read the tables: `docs/benchmarks.md`.

mod bare;
mod cpu;
mod disk;
mod fio;
mod guest;
mod mixed;
mod pair;
mod pki;
mod qemu;
mod servers;
mod sink;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Guest writes over NBD: tracked, untracked, and qemu-nbd.
    Guest,
    /// Initial replication, beside a bare TLS copy and qemu-img.
    Initial,
    /// Cycles with scattered changes: how long, and how much on the wire.
    Cycle,
    /// Image files: conversions, writes to new ones, and the largest one, beside QEMU's.
    Disk,
    /// Memory and processor time of many protected disks that nobody writes to.
    Idle,
}

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures sitepair beside other programs")]
struct Args {
    /// What to measure; everything if nothing is named.
    names: Vec<Name>,
    /// A folder on the disk to measure; the programs' own folder if none is named.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Runs of each measurement; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one run of guest writes.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Size of the disks that guests write to.
    #[arg(long, default_value_t = 256)]
    guest_mib: u64,
    /// Image formats that guests write to.
    #[arg(long, value_enum, default_values_t = [guest::Format::Raw, guest::Format::Vhdx])]
    formats: Vec<guest::Format>,
    /// Only loads whose name contains this.
    #[arg(long)]
    load: Option<String>,
    /// Size of the image that is replicated; half of it is data.
    #[arg(long, default_value_t = 4096)]
    image_mib: u64,
    /// Idle disks, each in a group of its own.
    #[arg(long, default_value_t = 200)]
    disks: u64,
    /// How long they are watched.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let folder = folder(args.dir.as_deref())?;
    let wanted = |name| args.names.is_empty() || args.names.contains(&name);
    if wanted(Name::Guest) {
        guest::run(args, folder.path())?;
    }
    if wanted(Name::Initial) || wanted(Name::Cycle) {
        let image = folder.path().join("source.raw");
        let data_bytes = mixed::create(&image, args.image_mib << 20)?;
        if wanted(Name::Initial) {
            initial(args, folder.path(), &image, data_bytes)?;
        }
        if wanted(Name::Cycle) {
            pair::cycles(args, folder.path(), &image)?;
        }
    }
    if wanted(Name::Disk) {
        disk::run(args, folder.path())?;
    }
    if wanted(Name::Idle) {
        pair::idle(args, folder.path())?;
    }
    Ok(())
}

/// A new folder, removed at the end. Not below the system's folder for temporary files: that may be
/// in memory, and nothing about disks can be learned there.
fn folder(below: Option<&Path>) -> Result<tempfile::TempDir> {
    let own = std::env::current_exe().context("find the running executable")?;
    let below = below
        .or_else(|| own.parent())
        .context("the running executable lies in no folder")?;
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(below)
        .with_context(|| format!("make a folder in {}", below.display()))
}

/// Three ways to bring one image to the other side, in turns.
fn initial(args: &Args, folder: &Path, image: &Path, data_bytes: u64) -> Result<()> {
    let pki = pki::Pki::create(&folder.join("pki"))?;
    let (mut ours, mut bare, mut qemu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        bare.push(bare::copy(image, &folder.join("bare.raw"), &pki)?);
        ours.push(pair::initial(folder, image)?);
        // Once is enough for what is several times slower.
        if round == 0 {
            qemu.push(qemu::convert(image, folder, &pki)?);
        }
    }
    let seconds = |runs: &[cpu::Copied]| runs.iter().map(|run| run.seconds).collect::<Vec<_>>();
    let mut table = table::Table::new(&[
        "copy of an image over mutual TLS",
        "MiB/s",
        "sender, processor s/GiB",
        "receiver, processor s/GiB",
        "speed to bare TLS",
    ]);
    for (name, runs) in [
        ("bare TLS", &bare),
        ("initial replication", &ours),
        ("qemu-img convert", &qemu),
    ] {
        let mut row = cpu::Copied::cells(name, runs, data_bytes);
        let ratio = table::ratio(&seconds(&bare), &seconds(runs));
        row.push(format!("{ratio:.2}"));
        table.row(row);
    }
    say(&format!(
        "{} MiB of data in an image of {} MiB, {} runs",
        data_bytes >> 20,
        args.image_mib,
        args.rounds
    ));
    say(&table.to_string());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the program's complaints")]
fn complain(text: &str) {
    eprintln!("{text}");
}
