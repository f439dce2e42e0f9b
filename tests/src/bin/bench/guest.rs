//! Guest writes: tracked beside untracked beside qemu-nbd, on files of the same kind.
//!
//! All servers run at once, each on an image of its own that was written once over, and take turns:
//! a load is measured at each of them within seconds, so that what else the machine does meets all.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use sitepair_disk::Image as _;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::{CreateOptions, Kind as VhdxKind, VhdxImage};
use sitepair_tests::nbd_client::{Client, Options};
use tokio::runtime::Runtime;

use crate::fio::{LOADS, Load};
use crate::servers::{Kind, Server};
use crate::table::{Table, median, ratio};
use crate::{Args, say};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Vhdx,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
        }
    }
}

pub(crate) fn run(args: &Args, folder: &Path) -> Result<()> {
    let runtime = Runtime::new().context("start a runtime")?;
    // Paths of sockets must be short.
    let sockets = tempfile::tempdir().context("make a folder for sockets")?;
    for format in &args.formats {
        let folder = folder.join(format.name());
        let sockets = sockets.path().join(format.name());
        for made in [&folder, &sockets] {
            fs::create_dir(made).with_context(|| format!("make {}", made.display()))?;
        }
        measure(args, *format, &folder, &sockets, &runtime)
            .with_context(|| format!("guest writes to {}", format.name()))?;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// What one load came to at one server, round by round.
#[derive(Debug, Clone, Default)]
struct Series {
    writes_per_second: Vec<f64>,
    cpu_micros_per_write: Vec<f64>,
}

fn measure(
    args: &Args,
    format: Format,
    folder: &Path,
    sockets: &Path,
    runtime: &Runtime,
) -> Result<()> {
    let size_bytes = args.guest_mib << 20;
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        let image = folder.join(kind.name());
        create(&image, format, size_bytes)?;
        let server = Server::start(kind, &image, format.name(), sockets, runtime)?;
        write_once_over(&server.uri, size_bytes)?;
        servers.push(server);
    }
    let wanted = |load: &&Load| {
        args.load
            .as_deref()
            .is_none_or(|part| load.name.contains(part))
    };
    let mut table = Table::new(&[
        "writes/s (server's processor microseconds per write)",
        Kind::Qemu.name(),
        Kind::Untracked.name(),
        Kind::Tracked.name(),
        Kind::Replicating.name(),
        "untracked/qemu",
        "tracked/untracked",
        "replicating/untracked",
    ]);
    let loads: Vec<&Load> = LOADS.iter().filter(wanted).collect();
    let mut all = vec![vec![Series::default(); servers.len()]; loads.len()];
    for round in 0..args.rounds {
        for (load, series) in loads.iter().zip(&mut all) {
            // Each is first at some time.
            for turn in 0..servers.len() {
                let number = (round + turn) % servers.len();
                let server = &servers[number];
                server.settle()?;
                let before = server.cpu_seconds()?;
                let outcome = load.run(&server.uri, size_bytes, args.seconds)?;
                let cpu = server.cpu_seconds()? - before;
                let series = &mut series[number];
                series.writes_per_second.push(outcome.writes_per_second);
                series.cpu_micros_per_write.push(cpu * 1e6 / outcome.writes);
            }
        }
    }
    for (load, series) in loads.iter().zip(&all) {
        table.row(cells(load, series));
    }
    for server in servers {
        server.stop(runtime)?;
    }
    say(&format!(
        "Guest writes to {} images of {} MiB, {} runs of {} s each",
        format.name(),
        args.guest_mib,
        args.rounds,
        args.seconds
    ));
    say(&table.to_string());
    Ok(())
}

fn cells(load: &Load, series: &[Series]) -> Vec<String> {
    let mut cells = vec![load.name.to_owned()];
    for one in series {
        let rate = median(one.writes_per_second.iter().copied());
        let cpu = median(one.cpu_micros_per_write.iter().copied());
        cells.push(format!("{rate:.0} ({cpu:.0})"));
    }
    let rates = |kind: Kind| {
        let number = Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0);
        series[number].writes_per_second.as_slice()
    };
    for (of, to) in [
        (Kind::Untracked, Kind::Qemu),
        (Kind::Tracked, Kind::Untracked),
        (Kind::Replicating, Kind::Untracked),
    ] {
        cells.push(format!("{:.2}", ratio(rates(of), rates(to))));
    }
    cells
}

fn create(path: &Path, format: Format, size_bytes: u64) -> Result<()> {
    let storage = Arc::new(HostStorage);
    match format {
        Format::Raw => RawImage::create(&*storage, path, size_bytes)?.close()?,
        Format::Vhdx => {
            let options = CreateOptions {
                size_bytes,
                block_bytes: 32 << 20,
                logical_sector_bytes: 512,
                physical_sector_bytes: 4096,
                kind: VhdxKind::Dynamic,
                disk_id: None,
            };
            VhdxImage::create(storage, path, &options)?.close()?;
        }
    }
    Ok(())
}

/// Gives every byte a place in the file and every zone its mark, once: what is measured is the
/// steady state.
fn write_once_over(uri: &str, size_bytes: u64) -> Result<()> {
    const STEP: usize = 1 << 20;
    let mut client = Client::connect(Options::from_uri(uri)?)?;
    let data = vec![0xa5; STEP];
    for offset in (0..size_bytes).step_by(STEP) {
        client.write(offset, &data)?;
    }
    client.flush()?;
    client.disconnect()
}
