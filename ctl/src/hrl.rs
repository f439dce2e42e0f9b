//! `sitepair hrl`: change logs as files; only `export` needs an agent.
//!
//! Owns: what is printed of them. Does not do: deciding what of a log can be trusted, and whether it fits an image;
//! `sitepair_disk::hrl` does.

mod export;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use sitepair_disk::hrl::apply::{ApplyError, ApplyOptions, apply_chain, check_chain};
use sitepair_disk::hrl::{HrlError, HrlInfo, HrlReader, HrlRecovered, HrlTail};
use sitepair_disk::open::{Format, OpenOptions, open_image};
use sitepair_disk::parent::Parents;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::{DiskError, ErrorKind};

use crate::cli::{HrlApplyArgs, Output};
use crate::error::Failure;
use crate::view::{Done, SCHEMA};

pub(crate) use export::export;

#[derive(Serialize)]
struct Inspected {
    schema: u32,
    header: String,
    entries: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

#[derive(Serialize)]
struct Entry {
    offset: u64,
    length: u64,
    zeros: bool,
    data_offset: u64,
}

/// Prints a log; a damaged or unclosed one as far as it can be trusted, and then fails.
#[expect(clippy::print_stdout, reason = "printing is what a command does")]
pub(crate) fn inspect(file: &Path, output: Output) -> Result<(), Failure> {
    let storage = HostStorage::new();
    let info = HrlInfo::read(&storage, file)
        .with_context(|| format!("read change log {}", file.display()))?;
    let (mut entries, mut damage) = (Vec::new(), None);
    match read_entries(&storage, file) {
        Ok(read) => entries = read,
        Err(e) => {
            let why = e.to_string();
            damage = Some(match HrlReader::recover(&storage, file) {
                Ok((reader, found)) => {
                    entries = entries_of(&reader).map_err(anyhow::Error::from)?;
                    format!("{why}; {}", tail_text(&found))
                }
                Err(_) => why,
            });
        }
    }
    let bad = damage.clone();
    match output {
        Output::Json => {
            let inspected = Inspected {
                schema: SCHEMA,
                header: info.to_string(),
                entries,
                damage,
            };
            println!("{}", json(&inspected)?);
        }
        Output::Table => {
            println!("{info}");
            println!("{:>16} {:>12}  content", "offset", "length");
            for e in &entries {
                let content = if e.zeros {
                    "zeros".to_owned()
                } else {
                    format!("data at {}", e.data_offset)
                };
                println!("{:>16} {:>12}  {content}", e.offset, e.length);
            }
        }
    }
    match bad {
        None => Ok(()),
        Some(why) => Err(Failure::Failed(anyhow::anyhow!(
            "{}: {why}",
            file.display()
        ))),
    }
}

fn read_entries(storage: &HostStorage, file: &Path) -> Result<Vec<Entry>, HrlError> {
    Ok(entries_of(&HrlReader::open(storage, file)?)?)
}

fn entries_of(reader: &HrlReader) -> Result<Vec<Entry>, DiskError> {
    let each = reader.entries().map(|entry| {
        entry.map(|e| Entry {
            offset: e.offset,
            length: u64::from(e.length),
            zeros: e.is_zeros,
            data_offset: e.data_offset,
        })
    });
    each.collect()
}

/// Why a recovered log ends where it ends.
fn tail_text(found: &HrlRecovered) -> String {
    let HrlRecovered {
        entries,
        found,
        tail,
    } = found;
    let why = match tail {
        HrlTail::Closed | HrlTail::Open => "nothing lies behind them".to_owned(),
        HrlTail::Torn { at, bytes } => {
            format!("the {bytes} bytes from {at} on are not described")
        }
        HrlTail::Contended { at } => {
            format!("several metadata blocks contend for what lies behind {at}")
        }
        HrlTail::Lost { at } => format!("the data at {at} is not what was written"),
        HrlTail::Unproven { at } => format!("the data at {at} has no checksum to prove it"),
    };
    format!("the first {entries} of {found} entries found can be trusted: {why}")
}

#[derive(Serialize)]
struct Verified<'a> {
    schema: u32,
    logs: &'a [VerifiedLog],
}

#[derive(Serialize)]
struct VerifiedLog {
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    entries: u64,
    bytes: u64,
    /// Entries whose data has no checksum: it could not be checked.
    unchecked: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

/// Reads logs whole, and checks their chain.
#[expect(clippy::print_stdout, reason = "printing is what a command does")]
pub(crate) fn verify(files: &[PathBuf], output: Output) -> Result<(), Failure> {
    let storage = HostStorage::new();
    let (mut logs, mut readers) = (Vec::new(), Vec::new());
    for file in files {
        let mut log = VerifiedLog {
            file: file.clone(),
            id: None,
            entries: 0,
            bytes: 0,
            unchecked: 0,
            damage: None,
        };
        match HrlReader::open(&storage, file) {
            Ok(reader) => {
                log.id = Some(reader.info().unique_id.to_string());
                log.damage = count(&reader, &mut log).err().map(|e| e.to_string());
                readers.push(reader);
            }
            Err(e) => log.damage = Some(e.to_string()),
        }
        logs.push(log);
    }
    match output {
        Output::Json => println!(
            "{}",
            json(&Verified {
                schema: SCHEMA,
                logs: &logs
            })?
        ),
        Output::Table => {
            println!(
                "{:>10} {:>16} {:>10}  file",
                "entries", "bytes", "unchecked"
            );
            for log in &logs {
                let file = log.file.display();
                let VerifiedLog {
                    entries,
                    bytes,
                    unchecked,
                    ..
                } = log;
                println!("{entries:>10} {bytes:>16} {unchecked:>10}  {file}");
            }
        }
    }
    finish(&logs, &readers)
}

fn finish(logs: &[VerifiedLog], readers: &[HrlReader]) -> Result<(), Failure> {
    if let Some((file, why)) = logs
        .iter()
        .find_map(|log| log.damage.as_ref().map(|why| (&log.file, why)))
    {
        let file = file.display();
        return Err(Failure::Failed(anyhow::anyhow!("{file}: {why}")));
    }
    check_chain(readers).map_err(|e| Failure::Refused(e.to_string()))
}

fn count(reader: &HrlReader, log: &mut VerifiedLog) -> Result<(), DiskError> {
    for entry in reader.entries() {
        let entry = entry?;
        reader.verify_entry(&entry)?;
        log.entries += 1;
        log.bytes += u64::from(entry.length);
        log.unchecked += u64::from(entry.data_checksum.is_none());
    }
    Ok(())
}

/// Applies logs to an image, which is locked against everybody else meanwhile.
pub(crate) fn apply(args: &HrlApplyArgs) -> Result<Done, Failure> {
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    let mut readers = Vec::new();
    for file in &args.logs {
        readers.push(open(&*storage, file)?);
    }
    let options = OpenOptions {
        format: args.format.map(Format::from),
        read_only: false,
        parents: Parents::Refused,
    };
    let image = open_image(&storage, &args.image, options).map_err(|e| match e.kind() {
        ErrorKind::Locked => Failure::Refused(format!("{e}: stop the agent or guest that has it")),
        _ => anyhow::Error::from(e).into(),
    })?;
    let chosen = ApplyOptions {
        partial: args.partial,
        any_disk: args.any_disk,
    };
    let applied = apply_chain(&readers, &*image, chosen);
    // Closed whatever came of it: a VHDX that is not keeps its log.
    let closed = image.close();
    let applied = applied.map_err(with_advice)?;
    closed.with_context(|| format!("close {}", args.image.display()))?;
    Ok(Done::new(
        applied.entries > 0,
        format!(
            "{} entries of {} change logs applied: {} bytes of data, {} of zeros",
            applied.entries,
            readers.len(),
            applied.data_bytes,
            applied.zero_bytes
        ),
    ))
}

/// A log as it is, or what can be trusted of it; whether that will do is decided when it is applied.
fn open(storage: &dyn Storage, file: &Path) -> Result<HrlReader, Failure> {
    match HrlReader::open(storage, file) {
        Ok(reader) => Ok(reader),
        Err(HrlError::NotClosed { .. }) => {
            let (reader, _) = HrlReader::recover(storage, file).map_err(anyhow::Error::from)?;
            Ok(reader)
        }
        Err(e) => Err(anyhow::Error::from(e).into()),
    }
}

fn with_advice(error: ApplyError) -> Failure {
    let advice = match &error {
        ApplyError::NotClosed { .. } => "; to apply these, add --partial",
        ApplyError::OtherDisk { .. } => {
            "; if you are sure that this is the disk, and only wrote to it with `hrl apply`, add --any-disk"
        }
        ApplyError::Log(_) | ApplyError::Image { .. } => {
            return anyhow::Error::from(error).into();
        }
        _ => "",
    };
    Failure::Refused(format!("{error}{advice}"))
}

fn json(what: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(what).context("print as JSON")?)
}
