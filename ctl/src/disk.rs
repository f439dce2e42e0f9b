//! `sitepair disk`: commands on image files. They need no agent and no configuration.
//!
//! Owns: the commands' arguments and what they print, one module each. The work is `sitepair_disk`'s, on a thread of
//! its own, so that Ctrl-C is heard.

mod info;
mod size;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};
use sitepair_disk::open::Format;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::{DiskError, ErrorKind};

use crate::cli::Output;
use crate::error::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Tell what an image file is: format, sizes, ids, state of its log
    Info(info::InfoArgs),
}

/// A format that the operator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    Raw,
    Vhdx,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Vhdx => Self::Vhdx,
        }
    }
}

pub(crate) fn run(command: DiskCommand, output: Output) -> Result<(), Failure> {
    match command {
        DiskCommand::Info(args) => info::run(&args, output),
    }
}

/// Where the images are.
fn host() -> Arc<dyn Storage> {
    Arc::new(HostStorage::new())
}

/// A failure on `file`, with what to do where we know.
fn failed(file: &Path, error: DiskError) -> Failure {
    let name = file.display();
    match error.kind() {
        ErrorKind::Locked => Failure::Refused(format!(
            "{name} is in use: a guest or an agent has it open; shut the guest down, or stop what serves the image \
             (a protected disk is read while it is in use with `sitepair export`)"
        )),
        ErrorKind::NotFound => Failure::NotFound(format!("there is no file {name}")),
        ErrorKind::Invalid | ErrorKind::Unsupported => {
            Failure::Refused(format!("{:#}", anyhow::Error::from(error)))
        }
        _ => Failure::Failed(anyhow::Error::from(error).context(name.to_string())),
    }
}
