//! `sitepair disk map`: where an image has data, zeros and holes, and which file of its chain says so.
//!
//! Prints while it looks: an image may have more extents than fit memory.

use std::io::{self, BufWriter, Write};

use clap::Args;
use serde::Serialize;
use sitepair_disk::{DiskError, ExtentKind, Image, Run};

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
    /// 0 is the file itself, 1 its parent, and so on.
    level: u32,
}

impl From<Run> for Extent {
    fn from(run: Run) -> Self {
        Self {
            offset: run.offset,
            length: run.length,
            kind: word(run.kind),
            level: run.level,
        }
    }
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
        Output::Table => writeln!(
            out,
            "{:>20} {:>20} {:>5}  CONTENT",
            "OFFSET", "LENGTH", "LEVEL"
        )?,
    }
    let (mut lines, mut broken) = (0_u64, None);
    image
        .extents(0, size_bytes, &mut |run| {
            let printed = line(&run.into(), lines, output, out);
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
                level,
            } = extent;
            writeln!(out, "{offset:>20} {length:>20} {level:>5}  {kind}")
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sitepair_disk::open::{OpenOptions, open_image};
    use sitepair_disk::parent::Parents;
    use sitepair_disk::storage::host::HostStorage;
    use sitepair_disk::vhdx::{ChildOptions, CreateOptions, Kind, VhdxImage};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk of 3 MiB whose second MiB is the base's and whose first the child's.
    fn chain(dir: &Path) -> Arc<dyn Image> {
        let storage = Arc::new(HostStorage::new());
        let [base, child] = ["base.vhdx", "child.vhdx"].map(|name| dir.join(name));
        let options = CreateOptions {
            size_bytes: 3 * MIB,
            block_bytes: 1 << 20,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            kind: Kind::Dynamic,
            disk_id: None,
        };
        let image = VhdxImage::create(storage.clone(), &base, &options).unwrap();
        image.write_at(&vec![1; 1 << 20], MIB, false).unwrap();
        image.close().unwrap();
        let parent = Arc::new(VhdxImage::open(storage.clone(), &base, true).unwrap());
        let over = ChildOptions {
            parent_path: base,
            block_bytes: 1 << 20,
        };
        let image = VhdxImage::create_child(storage.clone(), &child, &parent, &over).unwrap();
        image.write_at(&vec![2; 1 << 20], 0, false).unwrap();
        image.close().unwrap();
        let options = OpenOptions {
            read_only: true,
            parents: Parents::Inside(dir.to_owned()),
            ..OpenOptions::default()
        };
        open_image(&(storage as _), &child, options).unwrap()
    }

    fn printed(image: &dyn Image, output: Output) -> String {
        let mut out = Vec::new();
        let printed = print(image, Path::new("child.vhdx"), output, &mut out);
        assert!(printed.is_ok());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_map_tells_which_file_of_the_chain_has_what() {
        let dir = tempfile::tempdir().unwrap();
        let image = chain(dir.path());
        let table = printed(&*image, Output::Table);
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                ["OFFSET", "LENGTH", "LEVEL", "CONTENT"],
                ["0", "1048576", "0", "data"],
                ["1048576", "1048576", "1", "data"],
                ["2097152", "1048576", "1", "hole"],
            ]
        );
        let json = printed(&*image, Output::Json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json["extents"][1],
            serde_json::json!({"offset": MIB, "length": MIB, "kind": "data", "level": 1})
        );
        assert_eq!(json["extents"][2]["kind"], "hole");
    }
}
