//! `sitepair disk resize`: a larger disk in the same file.

use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use sitepair_disk::ErrorKind;
use sitepair_disk::open::OpenOptions;
use sitepair_disk::resize::{self, NewSize};

use super::{FormatArg, ParentArgs, PathBuf, failed, host, refuse_protected, size};
use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// The image; nobody may have it open
    pub(crate) file: PathBuf,
    /// Its new size, such as 20G, or how much is added, such as +10G
    #[arg(value_parser = new_size)]
    pub(crate) size: NewSize,
    /// Its format; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct View {
    schema: u32,
    file: String,
    changed: bool,
    from_bytes: u64,
    size_bytes: u64,
}

fn new_size(text: &str) -> Result<NewSize, String> {
    match text.strip_prefix('+') {
        Some(more) => size::parse(more).map(NewSize::By),
        None => size::parse(text).map(NewSize::To),
    }
}

pub(super) fn run(args: &ResizeArgs, output: Output) -> Result<(), Failure> {
    let file = &args.file;
    refuse_protected(file)?;
    let options = OpenOptions {
        format: args.format.map(Into::into),
        read_only: false,
        parents: args.parents.allowed(),
    };
    let done = resize::resize(&host(), file, &options, args.size);
    let resized = done.map_err(|e| match e.kind() {
        ErrorKind::Unsupported => Failure::Refused(format!(
            "{e}; make a larger image with `sitepair disk create`, and copy the content inside a guest"
        )),
        _ => failed(file, e),
    })?;
    let view = View {
        schema: SCHEMA,
        file: file.display().to_string(),
        changed: resized.from_bytes != resized.to_bytes,
        from_bytes: resized.from_bytes,
        size_bytes: resized.to_bytes,
    };
    crate::print(output, &view, View::sentence)
}

impl View {
    fn sentence(&self) -> String {
        let (file, size) = (&self.file, size::both(self.size_bytes));
        if !self.changed {
            return format!("{file} has this size already: {size}");
        }
        format!(
            "{file} grew from {} to {size}. The guest sees it when the disk is attached the next time; enlarge the \
             partition and its file system there (a GPT has its second copy at the end: let the guest move it)",
            BinaryBytes(self.from_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_adds() {
        assert_eq!(new_size("10G"), Ok(NewSize::To(10 << 30)));
        assert_eq!(new_size("+512M"), Ok(NewSize::By(512 << 20)));
        for wrong in ["", "+", "++1G", "-1G", "+-1G"] {
            assert!(new_size(wrong).is_err(), "{wrong}");
        }
    }
}
