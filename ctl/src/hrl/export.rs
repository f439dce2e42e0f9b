//! `sitepair hrl export`: change logs of a replica's journal, as files here.
//!
//! Owns: the file until it has its name. Receives bytes from an agent and believes none of them. Does not do: deciding
//! what can be exported; the agent does.
//!
//! # Order
//! Bytes into a file of another name; checked whole; synced; named, unless that name was taken meanwhile; folder synced.
//! So a file `DISK.CYCLE.hrl` is always whole. What a killed command leaves is called `.part`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use indicatif::ProgressBar;
use sitepair_disk::hrl::HrlReader;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::storage::{BlockFile, OpenMode, Storage};
use sitepair_proto::v1 as proto;
use sitepair_proto::v1::export_log_part::Part;
use tonic::Streaming;

use crate::cli::HrlExportArgs;
use crate::connect::Client;
use crate::error::Failure;
use crate::fleet::Fleet;
use crate::progress;
use crate::view::{Done, Log};

/// Exports the change logs of one cycle.
pub(crate) async fn export(fleet: &Fleet, args: HrlExportArgs, bar: bool) -> Result<Done, Failure> {
    let (site, mut client) = fleet.replica(&args.group).await?;
    let known = disks(fleet.ask(site, &args.group).await.result?);
    if let Some(unknown) = args.disks.iter().find(|disk| !known.contains(disk)) {
        return Err(Failure::NotFound(format!(
            "group {} has no disk {unknown}; it has {}",
            args.group,
            known.join(", ")
        )));
    }
    let wanted: Vec<&String> = known
        .iter()
        .filter(|disk| args.disks.is_empty() || args.disks.contains(disk))
        .collect();
    let folder = Folder::open(&args.dir)?;
    for disk in &wanted {
        folder.check_free(&file_name(disk, args.cycle))?;
    }
    let bar = if bar {
        progress::steps_bar()
    } else {
        progress::hidden_bar()
    };
    let mut logs = Vec::new();
    for disk in wanted {
        bar.set_message(disk.clone());
        let log = export_one(&mut client, &args, disk, &folder, &bar).await;
        logs.push(log.map_err(|failure| after(failure, &logs))?);
    }
    bar.finish_and_clear();
    let message = format!(
        "cycle {} of group {}: {} change logs exported",
        args.cycle,
        args.group,
        logs.len()
    );
    Ok(Done {
        cycle: Some(args.cycle),
        logs,
        ..Done::new(true, message)
    })
}

fn disks(status: proto::StatusReply) -> Vec<String> {
    let group = status.groups.into_iter().next().unwrap_or_default();
    group.disks.into_iter().map(|disk| disk.name).collect()
}

fn file_name(disk: &str, cycle: u64) -> String {
    format!("{disk}.{cycle}.hrl")
}

/// A failure, and which files exist all the same.
fn after(failure: Failure, logs: &[Log]) -> Failure {
    if logs.is_empty() {
        return failure;
    }
    let there: Vec<&str> = logs.iter().map(|log| log.file.as_str()).collect();
    let there = there.join(", ");
    match failure {
        Failure::Refused(why) => Failure::Refused(format!("{why}; exported before it: {there}")),
        other => Failure::Failed(
            other
                .into_error()
                .context(format!("exported before it: {there}")),
        ),
    }
}

async fn export_one(
    client: &mut Client,
    args: &HrlExportArgs,
    disk: &str,
    folder: &Folder,
    bar: &ProgressBar,
) -> Result<Log, Failure> {
    let request = proto::ExportLogRequest {
        group: args.group.clone(),
        cycle: args.cycle,
        disk: disk.to_owned(),
    };
    let mut parts = client.export_log(request).await?.into_inner();
    let name = file_name(disk, args.cycle);
    let head = head(&mut parts, &name).await?;
    bar.set_length(head.file_bytes);
    bar.set_position(0);
    let file = PartFile::create(folder, &name)?;
    receive(&mut parts, &head, &file, bar).await?;
    let (folder, disk) = (folder.path.clone(), disk.to_owned());
    // Reading and syncing much takes a while, in which the connection must stay alive.
    let finish = move || {
        let log = file.check(disk, &head)?;
        let path = file.give_name(&folder, &head.file_name)?;
        Ok(Log {
            file: path.display().to_string(),
            ..log
        })
    };
    let finished = tokio::task::spawn_blocking(finish).await;
    finished.map_err(anyhow::Error::from)?
}

/// The first message. The name is ours: an agent does not choose paths here.
async fn head(
    parts: &mut Streaming<proto::ExportLogPart>,
    name: &str,
) -> Result<proto::LogHead, Failure> {
    match parts.message().await?.and_then(|first| first.part) {
        Some(Part::Head(head)) if head.file_name == name => Ok(head),
        Some(Part::Head(head)) => Err(Failure::Failed(anyhow::anyhow!(
            "the agent sends {:?} instead of {name}",
            head.file_name
        ))),
        _ => Err(Failure::Failed(anyhow::anyhow!(
            "the agent sends {name} without its head"
        ))),
    }
}

async fn receive(
    parts: &mut Streaming<proto::ExportLogPart>,
    head: &proto::LogHead,
    file: &PartFile,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut arrived = Arrived { head, file, at: 0 };
    while let Some(message) = parts.message().await? {
        arrived.take(message.part)?;
        bar.set_position(arrived.at);
    }
    Ok(arrived.end()?)
}

/// What of a log is here.
struct Arrived<'a> {
    head: &'a proto::LogHead,
    file: &'a PartFile,
    at: u64,
}

impl Arrived<'_> {
    /// Takes the next part; nothing may reach past the length that was announced.
    fn take(&mut self, part: Option<Part>) -> anyhow::Result<()> {
        let (name, length) = (&self.head.file_name, self.head.file_bytes);
        let bytes = match &part {
            Some(Part::Data(data)) => data.len() as u64,
            Some(Part::HoleBytes(bytes)) => *bytes,
            Some(Part::Head(_)) | None => 0,
        };
        let end = self.at.checked_add(bytes).filter(|end| *end <= length);
        let Some(end) = end.filter(|_| bytes > 0) else {
            bail!("the agent sends something else than the {length} bytes of {name}");
        };
        match part {
            Some(Part::Data(data)) => self.file.write(&data, self.at)?,
            // What is behind a hole extends the file over it; the file's end does, at the latest.
            _ if end == length => self.file.extend_to(end)?,
            _ => {}
        }
        self.at = end;
        Ok(())
    }

    fn end(&self) -> anyhow::Result<()> {
        let (name, length) = (&self.head.file_name, self.head.file_bytes);
        ensure!(
            self.at == length,
            "the agent sent {} of {length} bytes of {name}; try again",
            self.at
        );
        Ok(())
    }
}

/// Where files go.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Failure> {
        // Absolute, so that it has a parent, and so that what is printed can be found.
        let path = std::path::absolute(path)?;
        let storage = HostStorage::new();
        if !path.is_dir() {
            storage
                .create_dir_all(&path)
                .with_context(|| format!("make folder {}", path.display()))?;
            let parent = path.parent().unwrap_or(&path);
            storage
                .sync_dir(parent)
                .with_context(|| format!("sync folder {}", parent.display()))?;
        }
        Ok(Self { path })
    }

    fn check_free(&self, name: &str) -> Result<(), Failure> {
        let path = self.path.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(_) => Err(is_there(&path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(anyhow::Error::from(e)
                .context(format!("look at {}", path.display()))
                .into()),
        }
    }
}

fn is_there(path: &Path) -> Failure {
    Failure::Refused(format!(
        "{} is there already: move it away, or name another folder",
        path.display()
    ))
}

/// A file that does not have its name yet; removed when dropped without it.
struct PartFile {
    storage: HostStorage,
    path: PathBuf,
    file: Arc<dyn BlockFile>,
}

impl PartFile {
    fn create(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let storage = HostStorage::new();
        // The process's number keeps two commands apart.
        let path = folder
            .path
            .join(format!("{name}.{}.part", std::process::id()));
        let file = storage
            .open(&path, OpenMode::CreateNew)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            storage,
            path,
            file,
        })
    }

    fn write(&self, data: &[u8], at: u64) -> anyhow::Result<()> {
        self.file
            .write_at(data, at)
            .with_context(|| format!("write {} at {at}", self.path.display()))
    }

    fn extend_to(&self, length: u64) -> anyhow::Result<()> {
        self.file
            .set_length(length)
            .with_context(|| format!("extend {} to {length} bytes", self.path.display()))
    }

    /// Reads all of it as any other change log, and compares what it says with what the agent committed.
    fn check(&self, disk: String, head: &proto::LogHead) -> anyhow::Result<Log> {
        let name = &head.file_name;
        let reader = HrlReader::of(Arc::clone(&self.file), name.clone())
            .with_context(|| format!("check {name} as it arrived"))?;
        let info = reader.info();
        ensure!(
            info.header_checksum_holds && info.end == Some(head.file_bytes),
            "{name} arrived with a damaged header; try again"
        );
        let hash = reader
            .content_hash()
            .with_context(|| format!("check {name} as it arrived"))?;
        if hash[..] != head.content_hash[..] {
            bail!("{name} is not what was committed: its content has another hash; try again");
        }
        Ok(Log {
            disk,
            file: self.path.display().to_string(),
            bytes: head.file_bytes,
            entries: info.total_entries,
            id: info.unique_id.to_string(),
            previous_id: info.previous_id.to_string(),
            content_hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Makes it durable, then gives it its name, then makes that durable.
    fn give_name(self, folder: &Path, name: &str) -> Result<PathBuf, Failure> {
        let path = folder.join(name);
        self.file
            .sync()
            .with_context(|| format!("sync {}", self.path.display()))?;
        match self.storage.rename_new(&self.path, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(is_there(&path)),
            named => named.with_context(|| format!("name {}", path.display()))?,
        }
        self.storage
            .sync_dir(folder)
            .with_context(|| format!("sync folder {}", folder.display()))?;
        Ok(path)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Gone already once it has its name. A file that stays is called what it is.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
