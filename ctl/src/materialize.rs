//! `sitepair materialize`: a disk at a recovery point, as an image file here.
//!
//! Owns: the file until it has its name. Receives chunks from the agent that keeps the point and believes none of them:
//! they ascend, lie within the disk, and have the hash that the agent computed; then the file is read again, and has
//! it too. Does not do: the point; the agent holds it as long as it is read.
//!
//! # Order
//! Chunks into a file of another name; flushed; read again; closed; named, unless that name was taken meanwhile; folder
//! synced. So a file of that name is always whole. What a killed command leaves is removed by the next one to the same name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use sitepair_disk::chunks::{ChunkHash, is_chunk, write_chunk};
use sitepair_disk::convert::{self, ConvertError, Existing};
use sitepair_disk::create::{Kind, NewImage};
use sitepair_disk::open::Format;
use sitepair_disk::{DiskError, Image, Progress};
use sitepair_proto::v1 as proto;
use sitepair_proto::v1::read_point_part::Part;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;

use crate::cli::Output;
use crate::connect::Client;
use crate::disk::{self, NewArgs};
use crate::error::Failure;
use crate::fleet::{Fleet, site_name};
use crate::view::SCHEMA;

#[derive(Debug, Args)]
pub(crate) struct MaterializeArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The recovery point, as `sitepair points` names it
    pub(crate) cycle: u64,
    /// The image, on this host
    pub(crate) file: PathBuf,
    /// Which disk, of a group with several
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<String>,
    #[command(flatten)]
    pub(crate) new: NewArgs,
    /// Replace the file if it exists; it stays as it is until the new one is whole
    #[arg(long)]
    pub(crate) force: bool,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct View {
    schema: u32,
    site: String,
    group: String,
    cycle: u64,
    disk: String,
    file: String,
    format: String,
    size_bytes: u64,
    written_bytes: u64,
    /// BLAKE3 over offset, length and bytes of each 256 KiB that are not all zeros.
    content_hash: String,
}

impl View {
    fn sentence(&self) -> String {
        format!(
            "{}: disk {} of group {} at recovery point {}, {} of {}, {} of it data; read again and compared",
            self.file,
            self.disk,
            self.group,
            self.cycle,
            self.format,
            BinaryBytes(self.size_bytes),
            BinaryBytes(self.written_bytes)
        )
    }
}

/// Chunks that wait to be written.
const CHUNKS_AHEAD: usize = 8;
/// How long an agent may take for a chunk: change logs that were not used before are read through at first.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// How often somebody who waits for a chunk looks whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(
    fleet: &Fleet,
    args: MaterializeArgs,
    output: Output,
) -> Result<(), Failure> {
    let format = args.new.format(&args.file)?;
    let block_bytes = args.new.block_bytes()?;
    let file = disk::place(&args.file, args.force)?;
    let (site, mut client) = fleet.replica(&args.group).await?;
    let disk = which_disk(fleet.ask(site, &args.group).await.result?, &args)?;
    let (head, parts) = ask(&mut client, &args, &disk).await?;
    let new = NewImage {
        block_bytes,
        ..like(&head, format)
    };
    new.check().map_err(|e| Failure::Refused(e.to_string()))?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let pull = tokio::spawn(pull(parts, sender));
    let mut arriving = Arriving {
        parts: receiver,
        runtime: Handle::current(),
        size_bytes: new.size_bytes,
        hash: ChunkHash::default(),
        at: 0,
        written_bytes: 0,
    };
    let (to, wanted) = (file.clone(), new.clone());
    // Every byte is written, and read again.
    let work = new.size_bytes.saturating_mul(2);
    let made = disk::work::run("materialize", work, output, move |progress| {
        convert::make(&disk::host(), &to, &wanted, existing, progress, |image| {
            let digest = arriving.fill(image, progress)?;
            verify(image, digest, progress)?;
            Ok((digest, arriving.written_bytes))
        })
    });
    let (digest, written_bytes) = made.await?.map_err(|e: Unmade| e.told(&file))?;
    pull.abort();
    let view = View {
        schema: SCHEMA,
        site: site_name(site).to_owned(),
        group: args.group,
        cycle: args.cycle,
        disk,
        file: file.display().to_string(),
        format: new.format.to_string(),
        size_bytes: new.size_bytes,
        written_bytes,
        content_hash: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    crate::print(output, &view, View::sentence)
}

fn which_disk(status: proto::StatusReply, args: &MaterializeArgs) -> Result<String, Failure> {
    let group = status.groups.into_iter().next().unwrap_or_default();
    let names: Vec<String> = group.disks.into_iter().map(|disk| disk.name).collect();
    let listed = names.join(", ");
    match (&args.disk, names.as_slice()) {
        (Some(name), names) if names.contains(name) => Ok(name.clone()),
        (Some(name), _) => Err(Failure::NotFound(format!(
            "group {} has no disk {name}; it has {listed}",
            args.group
        ))),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Failure::Usage(format!(
            "group {} has several disks: say which with --disk, of {listed}",
            args.group
        ))),
    }
}

async fn ask(
    client: &mut Client,
    args: &MaterializeArgs,
    disk: &str,
) -> Result<(proto::PointHead, Streaming<proto::ReadPointPart>), Failure> {
    let request = proto::ReadPointRequest {
        group: args.group.clone(),
        cycle: args.cycle,
        disk: disk.to_owned(),
    };
    let mut parts = client.read_point(request).await?.into_inner();
    match parts.message().await?.and_then(|first| first.part) {
        Some(Part::Head(head)) => Ok((head, parts)),
        _ => Err(Failure::Failed(anyhow!(
            "the agent sends a disk without its head"
        ))),
    }
}

/// An image that can hold the disk: of its size, and where the format tells them, of its sectors.
fn like(head: &proto::PointHead, format: Format) -> NewImage {
    NewImage {
        format,
        kind: Kind::Dynamic,
        size_bytes: head.size_bytes,
        block_bytes: None,
        sector_bytes: (format != Format::Raw).then_some(head.logical_sector_bytes),
        physical_sector_bytes: (format == Format::Vhdx).then_some(head.physical_sector_bytes),
    }
}

type Told = Result<Part, Failure>;

/// Passes on what arrives, up to the first failure or the end.
async fn pull(mut parts: Streaming<proto::ReadPointPart>, to: mpsc::Sender<Told>) {
    loop {
        let told = match timeout(SILENCE_MAX, parts.message()).await {
            Ok(Ok(Some(message))) => message.part.ok_or_else(foreign),
            Ok(Ok(None)) => return,
            Ok(Err(status)) => Err(Failure::from(status)),
            Err(_) => Err(Failure::Unreachable("the agent sends nothing".to_owned())),
        };
        let failed = told.is_err();
        if to.send(told).await.is_err() || failed {
            return;
        }
    }
}

fn foreign() -> Failure {
    Failure::Failed(anyhow!("the agent sends something that is not the disk"))
}

/// Why there is no image.
enum Unmade {
    Convert(ConvertError),
    Write(DiskError),
    Told(Failure),
    Stopped,
}

impl From<ConvertError> for Unmade {
    fn from(error: ConvertError) -> Self {
        Self::Convert(error)
    }
}

impl From<Failure> for Unmade {
    fn from(failure: Failure) -> Self {
        Self::Told(failure)
    }
}

impl Unmade {
    fn told(self, file: &Path) -> Failure {
        match self {
            Self::Told(failure) => failure,
            Self::Stopped => Failure::Failed(anyhow!("stopped; nothing was left behind")),
            Self::Write(error) => disk::failed(file, error),
            Self::Convert(error) => disk::not_made(file, error),
        }
    }
}

/// What of the disk is here.
struct Arriving {
    parts: mpsc::Receiver<Told>,
    runtime: Handle,
    size_bytes: u64,
    hash: ChunkHash,
    at: u64,
    written_bytes: u64,
}

impl Arriving {
    /// Writes all that comes, up to the hash; gives that.
    fn fill(&mut self, image: &dyn Image, progress: &Progress) -> Result<[u8; 32], Unmade> {
        loop {
            match self.next(progress)? {
                Part::Chunk(chunk) => self.take(&chunk, image, progress)?,
                Part::Hash(hash) if hash[..] == self.hash.digest() => {
                    progress.add(self.size_bytes - self.at);
                    return Ok(self.hash.digest());
                }
                Part::Hash(_) => {
                    return Err(Failure::Failed(anyhow!(
                        "the disk arrived with another hash than it was sent with; try again"
                    ))
                    .into());
                }
                Part::Head(_) => return Err(foreign().into()),
            }
        }
    }

    fn next(&mut self, progress: &Progress) -> Result<Part, Unmade> {
        loop {
            if progress.is_stopped() {
                return Err(Unmade::Stopped);
            }
            let parts = &mut self.parts;
            let waited = self
                .runtime
                .block_on(async { timeout(LOOK_EVERY, parts.recv()).await });
            return match waited {
                Err(_) => continue,
                Ok(Some(told)) => Ok(told?),
                Ok(None) => Err(Failure::Failed(anyhow!(
                    "the agent ended before the disk was whole; try again"
                ))
                .into()),
            };
        }
    }

    /// Takes the next chunk; nothing may come twice, or lie off the disk.
    fn take(
        &mut self,
        chunk: &proto::PointChunk,
        image: &dyn Image,
        progress: &Progress,
    ) -> Result<(), Unmade> {
        let length = chunk.data.len() as u64;
        if chunk.offset < self.at || !is_chunk(self.size_bytes, chunk.offset, length) {
            return Err(foreign().into());
        }
        self.hash.add(chunk.offset, &chunk.data);
        let written = write_chunk(image, chunk.offset, &chunk.data).map_err(Unmade::Write)?;
        self.written_bytes += written;
        progress.add(chunk.offset + length - self.at);
        self.at = chunk.offset + length;
        Ok(())
    }
}

/// Reads the image again, as any other reader would.
fn verify(image: &dyn Image, digest: [u8; 32], progress: &Progress) -> Result<(), Unmade> {
    image.flush().map_err(Unmade::Write)?;
    let mut seen = 0;
    let mut each = |at: u64| {
        progress.add(at - seen);
        seen = at;
        !progress.is_stopped()
    };
    match ChunkHash::of(image, &mut each).map_err(Unmade::Write)? {
        None => Err(Unmade::Stopped),
        Some(found) if found == digest => Ok(()),
        Some(_) => Err(Failure::Failed(anyhow!(
            "the image reads otherwise than it was written: the disk under it may be failing"
        ))
        .into()),
    }
}
