//! `sitepair disk info`: what an image file is.

use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use sitepair_disk::info::{self, Info};
use sitepair_disk::open::Format;

use super::{FormatArg, Path, PathBuf, failed, host, size};
use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The image
    pub(crate) file: PathBuf,
    /// Its format; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct View {
    schema: u32,
    file: String,
    format: String,
    kind: Option<String>,
    size_bytes: u64,
    file_bytes: u64,
    allocated_bytes: u64,
    block_bytes: Option<u32>,
    logical_sector_bytes: u32,
    physical_sector_bytes: u32,
    disk_id: Option<String>,
    data_write_id: Option<String>,
    creator: Option<String>,
    log: Option<Log>,
    parent: Option<Parent>,
}

/// What a differencing image says of its parent.
#[derive(Debug, Serialize)]
struct Parent {
    data_write_id: String,
    paths: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Log {
    state: &'static str,
    bytes: u64,
}

pub(super) fn run(args: &InfoArgs, output: Output) -> Result<(), Failure> {
    show(&args.file, args.format.map(Into::into), output)
}

/// Prints what `file` is.
pub(super) fn show(file: &Path, format: Option<Format>, output: Output) -> Result<(), Failure> {
    /// Unit of `st_blocks`, whatever the file system's own is.
    const STAT_BLOCK: u64 = 512;
    let info = info::inspect(&host(), file, format).map_err(|e| failed(file, e))?;
    let facts =
        std::fs::metadata(file).with_context(|| format!("read the facts of {}", file.display()))?;
    let view = View::new(file, info, facts.blocks() * STAT_BLOCK);
    crate::print(output, &view, View::table)
}

impl View {
    fn new(file: &Path, info: Info, allocated_bytes: u64) -> Self {
        let geometry = info.geometry;
        Self {
            schema: SCHEMA,
            file: file.display().to_string(),
            format: info.format.to_string(),
            kind: info.kind.map(|kind| kind.to_string()),
            size_bytes: geometry.size_bytes,
            file_bytes: info.file_bytes,
            allocated_bytes,
            block_bytes: Some(geometry.block_bytes).filter(|&bytes| bytes > 0),
            logical_sector_bytes: geometry.logical_sector_bytes,
            physical_sector_bytes: geometry.physical_sector_bytes,
            disk_id: info.disk_id.map(|id| id.to_string()),
            data_write_id: info.data_write_id.map(|id| id.to_string()),
            creator: info.creator,
            log: info.log.map(|log| Log {
                state: if log.dirty { "dirty" } else { "clean" },
                bytes: log.bytes,
            }),
            parent: info.parent.map(|parent| Parent {
                data_write_id: parent.id.to_string(),
                paths: parent
                    .paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect(),
            }),
        }
    }

    fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = vec![("file", self.file.clone())];
        rows.push((
            "format",
            match &self.kind {
                Some(kind) => format!("{}, {kind}", self.format),
                None => self.format.clone(),
            },
        ));
        rows.push(("disk size", size::both(self.size_bytes)));
        rows.push(("file size", size::both(self.file_bytes)));
        rows.push(("on the host", size::both(self.allocated_bytes)));
        if let Some(bytes) = self.block_bytes {
            rows.push(("blocks", size::both(u64::from(bytes))));
        }
        // A raw image cannot tell, so that what we assume is nothing to show.
        if self.block_bytes.is_some() {
            rows.push((
                "sectors",
                format!(
                    "{} bytes, physical {}",
                    self.logical_sector_bytes, self.physical_sector_bytes
                ),
            ));
        }
        rows.extend(self.disk_id.clone().map(|id| ("disk id", id)));
        rows.extend(self.data_write_id.clone().map(|id| ("data write id", id)));
        if let Some(parent) = &self.parent {
            // Text of whoever made the file, as the creator below.
            let paths = parent.paths.iter().map(|path| path.escape_debug());
            rows.extend(paths.map(|path| ("parent", path.to_string())));
            rows.push(("parent's id", parent.data_write_id.clone()));
        }
        if let Some(log) = &self.log {
            rows.push((
                "log",
                match log.state {
                    "clean" => "clean".to_owned(),
                    _ => "dirty: the last writer did not close it; applied in memory here, in the file when it is \
                          next opened for writing"
                        .to_owned(),
                },
            ));
        }
        // Free text of whoever made the file: no escape sequences for the terminal.
        let creator = self.creator.as_ref().filter(|name| !name.is_empty());
        rows.extend(creator.map(|name| ("made by", name.escape_debug().to_string())));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> = rows
            .iter()
            .map(|(name, value)| format!("{name:width$}  {value}"))
            .collect();
        lines.join("\n")
    }
}
