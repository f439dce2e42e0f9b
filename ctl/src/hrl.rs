//! `sitepair hrl inspect`: a change log's header and entries.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use sitepair_disk::hrl::{HrlInfo, HrlReader};
use sitepair_disk::storage::host::HostStorage;

use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

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

#[expect(clippy::print_stdout, reason = "printing is what a command does")]
pub(crate) fn inspect(file: &Path, output: Output) -> Result<(), Failure> {
    let storage = HostStorage::new();
    let info = HrlInfo::read(&storage, file)
        .with_context(|| format!("read change log {}", file.display()))?;
    let (mut entries, mut damage) = (Vec::new(), None);
    match HrlReader::open(&storage, file) {
        Ok(reader) => {
            for entry in reader.entries() {
                match entry {
                    Ok(e) => entries.push(Entry {
                        offset: e.offset,
                        length: u64::from(e.length),
                        zeros: e.is_zeros,
                        data_offset: e.data_offset,
                    }),
                    Err(e) => {
                        damage = Some(e.to_string());
                        break;
                    }
                }
            }
        }
        Err(e) => damage = Some(e.to_string()),
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
            println!(
                "{}",
                serde_json::to_string_pretty(&inspected).context("print as JSON")?
            );
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
