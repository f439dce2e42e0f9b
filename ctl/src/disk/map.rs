//! `sitepair disk map`: where an image has data, zeros and holes.
//!
//! Prints while it looks: an image may have more extents than fit memory.

use std::io::{self, BufWriter, Write};

use clap::Args;
use serde::Serialize;
use sitepair_disk::{DiskError, ExtentKind, Image};

use super::{FormatArg, ParentArgs, Path, PathBuf, failed, open};
use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// The image
    pub(crate) file: PathBuf,
    /// Its format; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

#[derive(Debug, Serialize)]
struct Extent {
    offset: u64,
    length: u64,
    kind: &'static str,
}

pub(super) fn run(args: &MapArgs, output: Output) -> Result<(), Failure> {
    let image = open(&args.file, args.format, args.parents.allowed())?;
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&*image, &args.file, output, &mut out) {
        Ok(()) => Ok(()),
        Err(Stopped::Read(error)) => Err(failed(&args.file, error)),
        // Who reads us has seen enough, as `head` does.
        Err(Stopped::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Print(error)) => Err(error.into()),
    }
}

enum Stopped {
    Read(DiskError),
    Print(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Print(error)
    }
}

fn print(
    image: &dyn Image,
    file: &Path,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Stopped> {
    let size_bytes = image.geometry().size_bytes;
    let name = serde_json::Value::from(file.display().to_string());
    match output {
        Output::Json => write!(
            out,
            "{{\"schema\":{SCHEMA},\"file\":{name},\"size_bytes\":{size_bytes},\"extents\":["
        )?,
        Output::Table => writeln!(out, "{:>20} {:>20}  CONTENT", "OFFSET", "LENGTH")?,
    }
    let (mut lines, mut broken) = (0_u64, None);
    image
        .extents(0, size_bytes, &mut |offset, length, kind| {
            let extent = Extent {
                offset,
                length,
                kind: word(kind),
            };
            let printed = line(&extent, lines, output, out);
            lines += 1;
            broken = printed.err();
            broken.is_none()
        })
        .map_err(Stopped::Read)?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    if output == Output::Json {
        writeln!(out, "\n]}}")?;
    }
    Ok(out.flush()?)
}

fn line(extent: &Extent, before: u64, output: Output, out: &mut dyn Write) -> io::Result<()> {
    match output {
        Output::Json => {
            let comma = if before > 0 { "," } else { "" };
            write!(out, "{comma}\n{}", serde_json::to_string(extent)?)
        }
        Output::Table => {
            let Extent {
                offset,
                length,
                kind,
            } = extent;
            writeln!(out, "{offset:>20} {length:>20}  {kind}")
        }
    }
}

fn word(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
        ExtentKind::Hole => "hole",
    }
}
