//! `sitepair disk convert`: a copy of an image in a file of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::BinaryBytes;
use serde::Serialize;
use sitepair_disk::convert::{self, ConvertError, Existing};
use sitepair_disk::copy::{Copied, CopyError};
use sitepair_disk::create::{Kind, NewImage};

use super::create::NewArgs;
use super::{FormatArg, ParentArgs, Path, PathBuf, failed, host, not_made, open, work};
use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The image to copy; nobody may have it open for writing
    pub(crate) source: PathBuf,
    /// The copy
    pub(crate) target: PathBuf,
    /// Format of the source; told from its content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) new: NewArgs,
    /// How the copy takes space
    #[arg(long, default_value = "dynamic", value_name = "KIND")]
    pub(crate) kind: CopyKind,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
    /// Replace the target if it exists; it stays as it is until the copy is whole
    #[arg(long)]
    pub(crate) force: bool,
}

/// How a copy takes space. It holds all of the disk: a copy has no parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyKind {
    /// As it is written
    Dynamic,
    /// All at once
    Fixed,
}

impl From<CopyKind> for Kind {
    fn from(kind: CopyKind) -> Self {
        match kind {
            CopyKind::Dynamic => Self::Dynamic,
            CopyKind::Fixed => Self::Fixed,
        }
    }
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct View {
    schema: u32,
    source: String,
    target: String,
    format: String,
    kind: String,
    size_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    elapsed_ms: u64,
}

pub(super) async fn run(args: ConvertArgs, output: Output) -> Result<(), Failure> {
    let format = args.new.format(&args.target)?;
    let from = open(&args.source, args.from, args.parents.allowed())?;
    let geometry = from.geometry();
    let new = NewImage {
        block_bytes: args.new.block_bytes()?,
        ..NewImage::like(&geometry, format, args.kind.into())
    };
    new.check().map_err(|e| Failure::Refused(e.to_string()))?;
    let target = place(&args)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let began = Instant::now();
    let (to, wanted) = (target.clone(), new.clone());
    let done = work::run("convert", geometry.size_bytes, output, move |progress| {
        convert::convert(&host(), &*from, &to, &wanted, existing, progress)
    });
    let copied = done.await?.map_err(|e| explain(&args.source, &target, e))?;
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let view = View::new(&args, &new, copied, elapsed_ms);
    crate::print(output, &view, View::sentence)
}

/// Where the copy goes, which must not be where it comes from.
fn place(args: &ConvertArgs) -> Result<PathBuf, Failure> {
    let target = &args.target;
    if let (Ok(source), Ok(there)) = (fs::metadata(&args.source), fs::metadata(target))
        && there.is_file()
        && (source.dev(), source.ino()) == (there.dev(), there.ino())
    {
        return Err(Failure::Refused(format!(
            "{} is the source itself; name another target",
            target.display()
        )));
    }
    super::place(target, args.force)
}

fn explain(source: &Path, target: &Path, error: ConvertError) -> Failure {
    match error {
        ConvertError::Copy(CopyError::Read(error)) => failed(source, error),
        other => not_made(target, other),
    }
}

impl View {
    fn new(args: &ConvertArgs, new: &NewImage, copied: Copied, elapsed_ms: u64) -> Self {
        Self {
            schema: SCHEMA,
            source: args.source.display().to_string(),
            target: args.target.display().to_string(),
            format: new.format.to_string(),
            kind: new.kind.to_string(),
            size_bytes: new.size_bytes,
            read_bytes: copied.read_bytes,
            written_bytes: copied.written_bytes,
            elapsed_ms,
        }
    }

    fn sentence(&self) -> String {
        format!(
            "{}: a {} {} of {}, {} of it data, in {}.{} s",
            self.target,
            self.kind,
            self.format,
            BinaryBytes(self.size_bytes),
            BinaryBytes(self.written_bytes),
            self.elapsed_ms / 1000,
            self.elapsed_ms % 1000 / 100
        )
    }
}
