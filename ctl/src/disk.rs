//! `sitepair disk`: commands on image files. They need no agent and no configuration.
//!
//! Owns: the commands' arguments and what they print, one module each. The work is `sitepair_disk`'s, on a thread of
//! its own, so that Ctrl-C is heard.

mod check;
mod compare;
mod convert;
mod create;
mod info;
mod map;
mod resize;
pub(crate) mod size;
pub(crate) mod work;

pub(crate) use create::NewArgs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use sitepair_disk::convert::ConvertError;
use sitepair_disk::copy::CopyError;
use sitepair_disk::open::{Format, OpenOptions, open_image};
use sitepair_disk::parent::Parents;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::{DiskError, ErrorKind, Image};

use crate::cli::Output;
use crate::error::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Tell what an image file is: format, sizes, ids, state of its log
    Info(info::InfoArgs),
    /// Make a new image that reads as zeros
    Create(create::CreateArgs),
    /// Copy an image into a new file, of another format or kind; zeros take no space
    Convert(convert::ConvertArgs),
    /// List where an image has data, zeros and holes
    Map(map::MapArgs),
    /// Make the disk in an image larger
    Resize(resize::ResizeArgs),
    /// Tell whether two images hold the same, whatever their formats
    Compare(compare::CompareArgs),
    /// Look for damage in an image or change log, and mend what is safe to mend
    Check(check::CheckArgs),
}

/// A format that the operator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    Raw,
    Vhd,
    Vhdx,
    Qcow2,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Vhd => Self::Vhd,
            FormatArg::Vhdx => Self::Vhdx,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

pub(crate) async fn run(command: DiskCommand, output: Output) -> Result<(), Failure> {
    match command {
        DiskCommand::Info(args) => info::run(&args, output),
        DiskCommand::Create(args) => create::run(&args, output),
        DiskCommand::Convert(args) => convert::run(args, output).await,
        DiskCommand::Map(args) => map::run(&args, output),
        DiskCommand::Resize(args) => resize::run(&args, output),
        DiskCommand::Compare(args) => compare::run(args, output).await,
        DiskCommand::Check(args) => check::run(&args, output),
    }
}

/// Where the images are.
pub(crate) fn host() -> Arc<dyn Storage> {
    Arc::new(HostStorage::new())
}

/// Which parents of a differencing image may be opened.
#[derive(Debug, Args)]
pub(crate) struct ParentArgs {
    /// The parent of a differencing image, whatever the image says; repeat for parents of parents
    #[arg(
        long = "parent",
        value_name = "FILE",
        conflicts_with = "parents_inside"
    )]
    pub(crate) parents: Vec<PathBuf>,
    /// Open the parents that a differencing image names, if they are inside this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) parents_inside: Option<PathBuf>,
}

impl ParentArgs {
    fn allowed(&self) -> Parents {
        match &self.parents_inside {
            Some(folder) => Parents::Inside(folder.clone()),
            None if self.parents.is_empty() => Parents::Refused,
            None => Parents::Given(self.parents.clone()),
        }
    }
}

/// Opens an image for reading.
fn open(
    file: &Path,
    format: Option<FormatArg>,
    parents: Parents,
) -> Result<Arc<dyn Image>, Failure> {
    let options = OpenOptions {
        format: format.map(Into::into),
        read_only: true,
        parents,
    };
    open_image(&host(), file, options).map_err(|e| failed(file, e))
}

/// Refuses to change a file that an agent keeps a change map of, running or not.
fn refuse_protected(file: &Path) -> Result<(), Failure> {
    let mut map = file.as_os_str().to_owned();
    map.push(".map");
    if !Path::new(&map).exists() {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "{} is a disk of a protected group: its change map is beside it, and the other site would not learn of the \
         change; end the protection first (`sitepair unprotect`), and protect it again afterwards",
        file.display()
    )))
}

/// Where a new image goes. A link is followed: the file that it names is replaced, not the link.
pub(crate) fn place(target: &Path, force: bool) -> Result<PathBuf, Failure> {
    let name = target.display();
    let facts = match fs::metadata(target) {
        Ok(facts) => facts,
        Err(_) if target.symlink_metadata().is_ok() => {
            return Err(Failure::Refused(format!(
                "{name} is a link that leads nowhere"
            )));
        }
        // Whatever is wrong with the place shows when the image is made there.
        Err(_) => return Ok(target.to_owned()),
    };
    if !facts.is_file() {
        return Err(Failure::Refused(format!(
            "{name} is not a file; an image is only made in a file of its own"
        )));
    }
    if !force {
        return Err(Failure::Refused(format!(
            "{name} is there already; name another target, or replace it with --force"
        )));
    }
    refuse_protected(target)?;
    Ok(target.canonicalize()?)
}

/// Why a new image was not made.
pub(crate) fn not_made(target: &Path, error: ConvertError) -> Failure {
    match error {
        ConvertError::Exists { path } => Failure::Refused(format!(
            "{} appeared meanwhile, and was left alone",
            path.display()
        )),
        ConvertError::Copy(CopyError::Stopped) => {
            Failure::Failed(anyhow::anyhow!("stopped; nothing was left behind"))
        }
        ConvertError::Copy(CopyError::Write(error))
        | ConvertError::Replace { source: error, .. }
        | ConvertError::Make { source: error, .. } => failed(target, error),
        other @ (ConvertError::Copy(CopyError::Sizes { .. } | CopyError::Read(_))
        | ConvertError::Finish { .. }) => Failure::Failed(other.into()),
    }
}

/// A failure on `file`, with what to do where we know.
pub(crate) fn failed(file: &Path, error: DiskError) -> Failure {
    let name = file.display();
    match error.kind() {
        ErrorKind::Locked => Failure::Refused(format!(
            "{name} is in use: a guest or an agent has it open; shut the guest down, or stop what serves the image \
             (a protected disk is read while it is in use with `sitepair export`)"
        )),
        ErrorKind::NotFound => Failure::NotFound(format!("there is no file {name}")),
        ErrorKind::Parent => Failure::Refused(format!(
            "{error}; name the parents, nearest first, with --parent FILE, or the folder that all of them are in with \
             --parents-inside DIR"
        )),
        ErrorKind::Invalid | ErrorKind::Unsupported => {
            Failure::Refused(format!("{:#}", anyhow::Error::from(error)))
        }
        _ => Failure::Failed(anyhow::Error::from(error).context(name.to_string())),
    }
}
