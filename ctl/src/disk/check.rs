//! `sitepair disk check`: what is wrong with a file, and mending what is safe to mend.
//!
//! Does not do: judgement. Findings, their severity and the repairs are `sitepair_disk::check`'s.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Serialize;
use sitepair_disk::check::{
    self, CheckFormat, CheckOptions, Finding, Mended, Repaired, Report, Severity,
};
use sitepair_disk::parent::Parents;

use super::{ParentArgs, PathBuf, failed, host, refuse_protected};
use crate::cli::Output;
use crate::error::Failure;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 clean, or notes only; 1 failed; 2 wrong usage; 3 not checked, with the reason; 5 warnings; 6 errors")]
pub(crate) struct CheckArgs {
    /// The image or change log; nobody may have it open for writing
    pub(crate) file: PathBuf,
    /// Its format; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<CheckFormatArg>,
    /// Mend what the file itself holds a good copy of, unless there are errors; nobody may have it open
    #[arg(long)]
    pub(crate) repair: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

impl CheckArgs {
    /// The check itself looks for a parent in the disk's folder; so does the repair unless it is told otherwise.
    fn parents(&self) -> Parents {
        match self.parents.allowed() {
            Parents::Refused => {
                let folder = self.file.parent().filter(|f| !f.as_os_str().is_empty());
                Parents::Inside(folder.unwrap_or(Path::new(".")).to_owned())
            }
            named => named,
        }
    }
}

/// A format that the operator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckFormatArg {
    Raw,
    Vhdx,
    Vhd,
    Hrl,
}

impl From<CheckFormatArg> for CheckFormat {
    fn from(format: CheckFormatArg) -> Self {
        match format {
            CheckFormatArg::Raw => Self::Raw,
            CheckFormatArg::Vhdx => Self::Vhdx,
            CheckFormatArg::Vhd => Self::Vhd,
            CheckFormatArg::Hrl => Self::Hrl,
        }
    }
}

/// What is printed with `-o json`: the report, that of the last check after a repair.
#[derive(Debug, Serialize)]
struct View {
    #[serde(flatten)]
    report: Report,
    /// With `--repair` only.
    repair: Option<Repair>,
}

#[derive(Debug, Serialize)]
struct Repair {
    done: Vec<Mended>,
    refused: Option<String>,
    before: Report,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> Result<(), Failure> {
    let file = &args.file;
    if args.repair {
        refuse_protected(file)?;
    }
    let storage = host();
    let options = CheckOptions {
        format: args.format.map(Into::into),
        ..CheckOptions::default()
    };
    let report = check::check(&*storage, file, options).map_err(|e| failed(file, e))?;
    let view = if args.repair {
        let repaired =
            check::repair(&storage, file, &report, &args.parents()).map_err(|e| failed(file, e))?;
        View::repaired(report, repaired)
    } else {
        View {
            report,
            repair: None,
        }
    };
    crate::print(output, &view, View::text)?;
    match view.report.worst {
        Some(Severity::Error) => Err(Failure::FoundErrors),
        Some(Severity::Warning) => Err(Failure::FoundWarnings),
        Some(Severity::Note) | None => Ok(()),
    }
}

impl View {
    fn repaired(before: Report, repaired: Repaired) -> Self {
        let Repaired {
            done,
            refused,
            after,
            ..
        } = repaired;
        Self {
            report: after,
            repair: Some(Repair {
                done,
                refused,
                before,
            }),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(repair) = &self.repair {
            findings(&mut text, &repair.before);
            for mended in &repair.done {
                append(
                    &mut text,
                    format_args!("mended   {}: {}\n", mended.code, mended.text),
                );
            }
            if let Some(why) = &repair.refused {
                append(&mut text, format_args!("nothing was mended: {why}\n"));
            }
            if repair.done.is_empty() {
                text.push_str(&summary(&self.report));
                return text;
            }
            text.push_str("after the repair:\n");
        }
        findings(&mut text, &self.report);
        text.push_str(&summary(&self.report));
        text
    }
}

fn append(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line)
        .expect("writing to memory does not fail");
}

fn findings(text: &mut String, report: &Report) {
    for finding in &report.findings {
        let Finding {
            code,
            severity,
            structure,
            offset,
            text: what,
            advice,
        } = finding;
        let severity = severity.name();
        append(
            text,
            format_args!("{severity:<8} {code}, {structure} at {offset}\n"),
        );
        append(text, format_args!("         {what}\n"));
        append(text, format_args!("         advice: {advice}\n"));
    }
    if report.counts.not_listed > 0 {
        let count = report.counts.not_listed;
        append(
            text,
            format_args!("... and {count} more of the same kinds\n"),
        );
    }
}

fn summary(report: &Report) -> String {
    let (file, format) = (&report.file, report.facts.format());
    if format == "raw" {
        return format!("{file} is raw: it has no structure that could be checked");
    }
    let counts = &report.counts;
    let verdict = match report.worst {
        None => "clean".to_owned(),
        Some(Severity::Note) => format!("clean, {}", count(counts.notes, "note")),
        Some(Severity::Warning) => format!(
            "{}, {}",
            count(counts.warnings, "warning"),
            count(counts.notes, "note")
        ),
        Some(Severity::Error) => format!(
            "{}, {}, {}",
            count(counts.errors, "error"),
            count(counts.warnings, "warning"),
            count(counts.notes, "note")
        ),
    };
    format!("{file} ({format}): {verdict}")
}

fn count(number: u64, of: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {of}{plural}")
}
