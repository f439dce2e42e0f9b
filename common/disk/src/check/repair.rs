//! Mending what a file itself holds a good copy of.
//!
//! Receives the report of a check. Takes the exclusive lock, checks again, and writes only if it finds the same, and no
//! errors. Gives out what it did, and the report of a last check.
//!
//! Does not do: anything about errors; giving leaked space back; guesses about which of two valid copies counts.
//!
//! | found | written, in this order; "S" is a sync |
//! |---|---|
//! | dirty log | the disk is opened and closed by its driver, which replays it |
//! | bad header, bad region table | the other header S, the header that counted S, both with a new FileWriteGuid; then the bad table S |
//! | bad footer, bad copy of it | that one sector S |
//!
//! A crash between any two leaves a file that the next check finds no worse.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::catalogue::{vhd as vhd_found, vhdx as vhdx_found};
use super::facts::{Facts, VhdFacts};
use super::report::{Kind, Report, SCHEMA};
use super::source::Source;
use super::{CheckFormat, CheckOptions, check_file, vhd, vhdx};
use crate::error::{DiskError, ErrorKind};
use crate::open::{Format, OpenOptions, open_image, open_locked};
use crate::parent::Parents;
use crate::storage::{BlockFile, Storage};
use crate::vhdx::layout::{
    HEADER_OFFSETS, KIB64, REGION_TABLE_OFFSETS, checksum, put, random_guid, u64_at,
};

/// One thing that was mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// The finding that it answers.
    pub code: &'static str,
    /// Where it wrote, in bytes; none where a driver did.
    pub offset: Option<u64>,
    /// What it did.
    pub text: String,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Version of this as JSON; the report's.
    pub schema: u32,
    /// In order. Empty: the file was not changed.
    pub done: Vec<Mended>,
    /// Why nothing was done though there are findings.
    pub refused: Option<String>,
    /// What a check finds now.
    pub after: Report,
}

/// Mends what is safe to mend of a report's findings. A differencing disk whose log is to be replayed is opened with
/// `parents`, read-only.
///
/// # Errors
/// [`DiskError::Invalid`] when the file is not as the report says, [`DiskError::Locked`] while anybody has it open, those
/// of the driver that replays a log, or the storage's.
pub fn repair(
    storage: &Arc<dyn Storage>,
    path: &Path,
    report: &Report,
    parents: &Parents,
) -> Result<Repaired, DiskError> {
    let options = CheckOptions {
        format: Some(format_of(report)),
        list_max: report.list_max(),
    };
    let recheck = |file: &dyn BlockFile| check_file(&**storage, file, path, options);
    let mut file = open_locked(&**storage, path, false)?;
    let now = recheck(&*file)?;
    if now.findings != report.findings || now.counts != report.counts {
        return Err(DiskError::Invalid {
            what: format!(
                "{} has changed since it was checked; check it again",
                path.display()
            ),
        });
    }
    let finish = |done: Vec<Mended>, refused, after| Repaired {
        schema: SCHEMA,
        done,
        refused,
        after,
    };
    if now.counts.errors > 0 {
        let why = format!(
            "{} errors cannot be mended; a file with errors is not touched",
            now.counts.errors
        );
        return Ok(finish(Vec::new(), Some(why), now));
    }
    let mut done = Vec::new();
    let mut after = now;
    if after.has(&vhdx_found::LOG_DIRTY) {
        // The driver takes a lock of its own.
        drop(file);
        match replay(storage, path, parents) {
            Ok(replayed) => done.push(replayed),
            Err(e) if e.kind() == ErrorKind::Parent => {
                let why = format!("the log cannot be replayed without the parent: {e}");
                return Ok(finish(done, Some(why), after));
            }
            Err(e) => return Err(e),
        }
        file = open_locked(&**storage, path, false)?;
        after = recheck(&*file)?;
    }
    if after.counts.errors == 0 {
        match &after.facts {
            Facts::Vhdx(_) => mend_vhdx(&*file, path, &after, &mut done)?,
            Facts::Vhd(facts) => mend_vhd(&*file, path, &after, facts, &mut done)?,
            Facts::Raw(_) | Facts::Hrl(_) => {}
        }
        after = recheck(&*file)?;
    }
    let nothing = done.is_empty() && after.worst.is_some();
    let why = nothing.then(|| "none of the findings can be mended here".to_owned());
    Ok(finish(done, why, after))
}

fn format_of(report: &Report) -> CheckFormat {
    match report.facts {
        Facts::Raw(_) => CheckFormat::Raw,
        Facts::Vhdx(_) => CheckFormat::Vhdx,
        Facts::Vhd(_) => CheckFormat::Vhd,
        Facts::Hrl(_) => CheckFormat::Hrl,
    }
}

fn mended(kind: &Kind, offset: Option<u64>, text: impl Into<String>) -> Mended {
    let (code, text) = (kind.code, text.into());
    tracing::info!(code, offset, text, "mended");
    Mended { code, offset, text }
}

fn replay(storage: &Arc<dyn Storage>, path: &Path, parents: &Parents) -> Result<Mended, DiskError> {
    let options = OpenOptions {
        format: Some(Format::Vhdx),
        read_only: false,
        parents: parents.clone(),
    };
    open_image(storage, path, options)?.close()?;
    Ok(mended(
        &vhdx_found::LOG_DIRTY,
        None,
        "the log was replayed, and the disk closed",
    ))
}

/// Writes, and makes it durable before anything else is written.
fn write(file: &dyn BlockFile, path: &Path, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
    file.write_at(bytes, offset)
        .and_then(|()| file.sync())
        .map_err(|e| {
            let (count, name) = (bytes.len(), path.display());
            DiskError::io(format!("write {count} bytes at {offset} of {name}"), e)
        })
}

fn mend_vhdx(
    file: &dyn BlockFile,
    path: &Path,
    report: &Report,
    done: &mut Vec<Mended>,
) -> Result<(), DiskError> {
    let bad_header = report.has(&vhdx_found::HEADER_INVALID);
    let bad_table = report.has(&vhdx_found::REGION_TABLE_INVALID);
    if !bad_header && !bad_table {
        return Ok(());
    }
    let source = Source::new(file, path.display().to_string())?;
    // A writer changes the headers before anything else.
    let slot = renew_headers(&source, path)?;
    if bad_header {
        done.push(mended(
            &vhdx_found::HEADER_INVALID,
            Some(HEADER_OFFSETS[slot]),
            "both headers were written anew from the good one",
        ));
    }
    if bad_table {
        let [first, second] = REGION_TABLE_OFFSETS;
        let table = source.bytes(first, KIB64)?;
        let (good, bad) = if vhdx::is_valid_region_table(&table) {
            (first, second)
        } else {
            (second, first)
        };
        let table = source.bytes(good, KIB64)?;
        write(file, path, &table, bad)?;
        done.push(mended(
            &vhdx_found::REGION_TABLE_INVALID,
            Some(bad),
            format!("the region table was written anew from the one at {good}"),
        ));
    }
    Ok(())
}

/// Writes both headers with a new FileWriteGuid, first the slot that does not count. Gives out that slot.
fn renew_headers(source: &Source<'_>, path: &Path) -> Result<usize, DiskError> {
    let slots = vhdx::slots(source)?;
    let changed = || DiskError::Invalid {
        what: format!("the headers of {} cannot be renewed", path.display()),
    };
    let current = slots.current().ok_or_else(changed)?;
    let mut header = slots.valid[current].clone().ok_or_else(changed)?;
    put(&mut header, 16, &random_guid());
    for slot in [1 - current, current] {
        let sequence = u64_at(&header, 8).checked_add(1).ok_or_else(changed)?;
        put(&mut header, 8, &sequence.to_le_bytes());
        let crc = checksum(&header);
        put(&mut header, 4, &crc.to_le_bytes());
        write(source.file, path, &header, HEADER_OFFSETS[slot])?;
    }
    Ok(1 - current)
}

fn mend_vhd(
    file: &dyn BlockFile,
    path: &Path,
    report: &Report,
    facts: &VhdFacts,
    done: &mut Vec<Mended>,
) -> Result<(), DiskError> {
    let source = Source::new(file, path.display().to_string())?;
    let footers = vhd::footers(&source)?;
    if let (true, Some((_, footer))) = (report.has(&vhd_found::COPY_INVALID), &footers.end) {
        write(file, path, footer, 0)?;
        let text = "the copy was written anew from the footer";
        done.push(mended(&vhd_found::COPY_INVALID, Some(0), text));
    }
    if let (true, Some(copy)) = (report.has(&vhd_found::FOOTER_INVALID), &footers.copy) {
        let at = footer_place(source.length(), facts.used_end);
        write(file, path, copy, at)?;
        let text = "the footer was written anew from its copy";
        done.push(mended(&vhd_found::FOOTER_INVALID, Some(at), text));
    }
    Ok(())
}

/// The file's last sector if nothing uses it, else the one after the last use: the footer ends the file.
fn footer_place(length: u64, used_end: u64) -> u64 {
    let last = length.saturating_sub(1) / vhd::FOOTER_BYTES * vhd::FOOTER_BYTES;
    last.max(used_end.next_multiple_of(vhd::FOOTER_BYTES))
}
