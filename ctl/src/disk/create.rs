//! `sitepair disk create`: a new image, and the words in which all commands say what a new image is to be.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use sitepair_disk::create::{self, Kind, NewImage};
use sitepair_disk::open::Format;
use sitepair_disk::parent::Parents;
use sitepair_disk::{ErrorKind, Image};

use super::{FormatArg, Path, PathBuf, failed, host, info, size};
use crate::cli::Output;
use crate::error::Failure;

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The image; nothing may be there
    pub(crate) file: PathBuf,
    /// Size of the disk, such as 10G; a differencing one has its parent's
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size::parse,
        required_unless_present = "parent",
        conflicts_with = "parent"
    )]
    pub(crate) size: Option<u64>,
    /// How the new image takes space [default: dynamic, with --parent differencing]
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<KindArg>,
    /// The parent of a new differencing image; must not change from then on
    #[arg(long, value_name = "FILE", conflicts_with = "sector")]
    pub(crate) parent: Option<PathBuf>,
    /// Open the parents that the parent names, if they are inside this folder
    #[arg(long, value_name = "DIR", requires = "parent")]
    pub(crate) parents_inside: Option<PathBuf>,
    /// Logical sector in bytes, 512 or 4096 [default: 512]
    #[arg(long, value_name = "BYTES")]
    pub(crate) sector: Option<u32>,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// What a new image is to be.
#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Format of the new image [default: what its name ends with]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Unit of allocation of the new image, such as 2M [default: the format's usual one]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) block: Option<u64>,
}

/// How an image takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// As it is written
    Dynamic,
    /// All at once
    Fixed,
    /// As it is written, over a parent that shows through
    Differencing,
}

impl NewArgs {
    /// The format that was named, or the one that the file's name ends with.
    pub(crate) fn format(&self, file: &Path) -> Result<Format, Failure> {
        self.format
            .map(Format::from)
            .or_else(|| Format::by_name(file))
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "the name of {} does not tell its format; say it with --format",
                    file.display()
                ))
            })
    }

    /// The block that was asked for.
    pub(crate) fn block_bytes(&self) -> Result<Option<u32>, Failure> {
        let too_large = |bytes| Failure::Usage(format!("blocks of {bytes} bytes are too large"));
        self.block
            .map(|bytes| u32::try_from(bytes).map_err(|_| too_large(bytes)))
            .transpose()
    }
}

pub(super) fn run(args: &CreateArgs, output: Output) -> Result<(), Failure> {
    let file = &args.file;
    let format = args.new.format(file)?;
    let there = file.symlink_metadata().is_ok();
    let refuse_existing = || match there {
        false => Ok(()),
        true => Err(Failure::Refused(format!(
            "{} is there already, and nothing is written over",
            file.display()
        ))),
    };
    let image = match (&args.parent, args.size) {
        (Some(parent), _) => {
            refuse_existing()?;
            child(args, format, parent)?
        }
        (None, Some(size_bytes)) => {
            let new = plain(args, format, size_bytes)?;
            new.check().map_err(|e| Failure::Usage(e.to_string()))?;
            refuse_existing()?;
            create::create(&host(), file, &new).map_err(|e| failed(file, e))?
        }
        (None, None) => return Err(Failure::Usage("say --size, or --parent".to_owned())),
    };
    image.close().map_err(|e| failed(file, e))?;
    drop(image);
    info::show(file, Some(format), output)
}

fn plain(args: &CreateArgs, format: Format, size_bytes: u64) -> Result<NewImage, Failure> {
    let kind = match args.kind {
        None | Some(KindArg::Dynamic) => Kind::Dynamic,
        Some(KindArg::Fixed) => Kind::Fixed,
        Some(KindArg::Differencing) => {
            let what = "a differencing image needs --parent FILE, whose size it has";
            return Err(Failure::Usage(what.to_owned()));
        }
    };
    Ok(NewImage {
        format,
        kind,
        size_bytes,
        block_bytes: args.new.block_bytes()?,
        sector_bytes: args.sector,
        physical_sector_bytes: None,
    })
}

fn child(args: &CreateArgs, format: Format, parent: &Path) -> Result<Arc<dyn Image>, Failure> {
    if !matches!(args.kind, None | Some(KindArg::Differencing)) {
        let what = "only a differencing image has a --parent";
        return Err(Failure::Usage(what.to_owned()));
    }
    let parents = match &args.parents_inside {
        Some(folder) => Parents::Inside(folder.clone()),
        None => Parents::Refused,
    };
    let block_bytes = args.new.block_bytes()?;
    let made = create::create_over(&host(), &args.file, format, block_bytes, parent, &parents);
    made.map_err(|e| match e.kind() {
        ErrorKind::Locked | ErrorKind::NotFound => failed(parent, e),
        _ => failed(&args.file, e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_named_or_told_by_the_name() {
        let new = |format| NewArgs {
            format,
            block: None,
        };
        for (name, format) in [
            ("a.vhdx", Format::Vhdx),
            ("A.VHDX", Format::Vhdx),
            ("a.vhd", Format::Vhd),
            ("a.raw", Format::Raw),
            ("a.b.img", Format::Raw),
        ] {
            assert_eq!(new(None).format(Path::new(name)).unwrap(), format);
        }
        for name in ["a", "a.bin", ".vhdx"] {
            let asked = new(None).format(Path::new(name)).unwrap_err();
            assert_eq!(asked.code(), 2, "{name}");
            let named = new(Some(FormatArg::Raw)).format(Path::new(name));
            assert_eq!(named.unwrap(), Format::Raw);
        }
    }
}
