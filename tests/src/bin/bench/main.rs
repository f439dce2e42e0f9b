//! `bench`: how fast sitepair is, beside other programs on the same machine in the same run.
//!
//! Owns: the measurements, one module each, and the folder for their files, which goes when it ends.
//! Receives names of measurements and sizes; prints a table for each.
//!
//! Does not do: pass or fail. Machines differ and are shared; what counts are the ratios within one
//! run. How to read the tables: `docs/benchmarks.md`.

mod bare;
mod cpu;
mod fio;
mod guest;
mod mixed;
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
    /// What initial replication is measured against: a bare TLS copy, and qemu-img.
    Copy,
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
    if wanted(Name::Copy) {
        copies(args, folder.path())?;
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

fn copies(args: &Args, folder: &Path) -> Result<()> {
    let source = folder.join("source.raw");
    let data_bytes = mixed::create(&source, args.image_mib << 20)?;
    let pki = pki::Pki::create(&folder.join("pki"))?;
    let mut table = table::Table::new(&["copy", "MiB/s", "sender s/GiB", "receiver s/GiB"]);
    let mut runs = [Vec::new(), Vec::new()];
    for round in 0..args.rounds {
        runs[0].push(bare::copy(&source, &folder.join("target.raw"), &pki)?);
        // Once is enough for what is several times slower.
        if round == 0 {
            runs[1].push(qemu::convert(&source, folder, &pki)?);
        }
    }
    for (name, runs) in ["bare TLS", "qemu-img"].iter().zip(&runs) {
        table.row(cpu::Copied::cells(name, runs, data_bytes));
    }
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
