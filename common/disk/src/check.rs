//! Strict checking of disk files, and mending of what is safe to mend.
//!
//! Owns: [`check()`], which finds what is wrong with a VHDX, VHD or `.hrl` file; [`repair()`], which mends the few things
//! for which the file itself holds a second, good copy; the [`catalogue`] of findings. Receives a
//! [`Storage`] and a path, gives out a [`Report`].
//!
//! Does not do: opening disks for use, reading of guests' data (but for checksums that change logs hold), guesses.
//!
//! It has nothing but constants, field offsets and checksums in common with the modules that read and write
//! these formats for guests: it must find what a fault of theirs would hide.
//!
//! # Invariants
//! 1. A check never writes. It holds a shared lock, so that nobody else does meanwhile.
//! 2. Whatever is in the file, a check ends, without a panic. What it remembers is bounded by the file's length.
//! 3. A failure to read is a [`DiskError`], never a finding: findings are about what the file holds.
//! 4. A repair holds the exclusive lock and finds the same as the report it was given, before it writes.

mod catalogue;
mod facts;
mod hrl;
mod parent;
mod repair;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod vhd;
mod vhdx;

use std::path::Path;

pub use catalogue::all as catalogue;
pub use facts::{DiskKind, Facts, HrlFacts, LogState, RawFacts, VhdFacts, VhdxFacts};
pub use repair::{Mended, Repaired, repair};
pub use report::{Counts, Finding, Kind, Report, SCHEMA, Severity};

use self::source::Source;
use crate::error::DiskError;
use crate::open::{Format, open_locked};
use crate::storage::{BlockFile, Storage};

/// Formats that can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckFormat {
    /// No structure.
    Raw,
    /// VHDX.
    Vhdx,
    /// VHD of any kind.
    Vhd,
    /// Change log.
    Hrl,
}

/// How a file is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckOptions {
    /// The format. `None`: by the file's first and last bytes.
    pub format: Option<CheckFormat>,
    /// Most findings of each kind that are listed; the rest is counted.
    pub list_max: u64,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            format: None,
            list_max: 16,
        }
    }
}

/// Checks a file, under a shared lock.
///
/// # Errors
/// [`DiskError::Locked`] while a writer has it open, [`DiskError::Unsupported`] for files that are too long, or the
/// storage's. Never for what the file holds.
pub fn check(
    storage: &dyn Storage,
    path: &Path,
    options: CheckOptions,
) -> Result<Report, DiskError> {
    let file = open_locked(storage, path, true)?;
    check_file(storage, &*file, path, options)
}

/// Checks a file that is open, and locked.
fn check_file(
    storage: &dyn Storage,
    file: &dyn BlockFile,
    path: &Path,
    options: CheckOptions,
) -> Result<Report, DiskError> {
    let mut source = Source::new(file, path.display().to_string())?;
    let format = match options.format {
        Some(format) => format,
        None => detect(&source, path)?,
    };
    let file_bytes = source.length();
    let new = |facts| Report::new(path, facts, options.list_max);
    match format {
        CheckFormat::Raw => Ok(new(Facts::Raw(RawFacts { file_bytes }))),
        CheckFormat::Vhdx => {
            let mut report = new(Facts::Vhdx(VhdxFacts::default()));
            let facts = vhdx::check(storage, path, &mut source, &mut report)?;
            report.facts = Facts::Vhdx(facts);
            Ok(report)
        }
        CheckFormat::Vhd => {
            let mut report = new(Facts::Vhd(VhdFacts::default()));
            let facts = vhd::check(storage, path, &source, &mut report)?;
            report.facts = Facts::Vhd(facts);
            Ok(report)
        }
        CheckFormat::Hrl => {
            let mut report = new(Facts::Hrl(HrlFacts::default()));
            let facts = hrl::check(&source, &mut report)?;
            report.facts = Facts::Hrl(facts);
            Ok(report)
        }
    }
}

/// The format by the first bytes, and by the last for VHD; if they say nothing, by the name: what is damaged most must
/// not pass as raw.
fn detect(source: &Source<'_>, path: &Path) -> Result<CheckFormat, DiskError> {
    const COOKIE_BYTES: u64 = 8;
    let by_name = match Format::by_name(path) {
        Some(Format::Vhdx) => CheckFormat::Vhdx,
        Some(Format::Vhd) => CheckFormat::Vhd,
        _ if path.extension().is_some_and(|e| e == "hrl") => CheckFormat::Hrl,
        _ => CheckFormat::Raw,
    };
    if source.length() < COOKIE_BYTES {
        return Ok(by_name);
    }
    let start = source.bytes(0, COOKIE_BYTES)?;
    if start == crate::vhdx::layout::FILE_SIGNATURE {
        return Ok(CheckFormat::Vhdx);
    }
    if start == crate::hrl::format::COOKIE {
        return Ok(CheckFormat::Hrl);
    }
    if start.starts_with(b"QFI\xfb") {
        return Err(DiskError::Unsupported {
            what: format!(
                "checking {} (a qcow2 image: `qemu-img check` does that)",
                source.name
            ),
        });
    }
    let is_vhd = start == vhd::COOKIE || vhd::ends_with_footer(source)?;
    Ok(if is_vhd { CheckFormat::Vhd } else { by_name })
}
