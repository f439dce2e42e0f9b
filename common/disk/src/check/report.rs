//! What a check found, for people and for programs.
//!
//! Owns: [`Report`] and how it grows. Receives findings in any number, keeps a bounded part of each kind and
//! counts the rest. Does not do: judgement; a finding's severity is its kind's.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::facts::Facts;

/// Version of the report as JSON: raised when a field goes or changes its meaning.
pub const SCHEMA: u32 = 1;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// The file works, and should be mended.
    Warning,
    /// Data is wrong, or may be.
    Error,
}

impl Severity {
    /// As reports have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of finding; all of them are in [`catalogue`](super::catalogue).
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name, which never changes: `vhdx-bat-shared-block`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter.
    pub meaning: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind's code.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where, in the format's own words.
    pub structure: &'static str,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What was expected, and what was found.
    pub text: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// How many findings there are, the ones that are not listed included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Errors.
    pub errors: u64,
    /// Warnings.
    pub warnings: u64,
    /// Notes.
    pub notes: u64,
    /// How many of all these are counted only.
    pub not_listed: u64,
    /// Of each code.
    pub codes: BTreeMap<&'static str, u64>,
}

/// What a check of one file found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The file.
    pub file: String,
    /// The worst severity found; none: the file is clean.
    pub worst: Option<Severity>,
    /// How many there are.
    pub counts: Counts,
    /// The findings, in the order of the check; of each kind at most as many as the options say.
    pub findings: Vec<Finding>,
    /// What the file is.
    pub facts: Facts,
    #[serde(skip)]
    list_max: u64,
}

impl Report {
    pub(super) fn new(path: &Path, facts: Facts, list_max: u64) -> Self {
        Self {
            schema: SCHEMA,
            file: path.display().to_string(),
            worst: None,
            counts: Counts::default(),
            findings: Vec::new(),
            facts,
            list_max,
        }
    }

    /// Adds a finding, or counts it when there are enough of its kind.
    pub(super) fn add(
        &mut self,
        kind: &'static Kind,
        structure: &'static str,
        offset: u64,
        text: impl FnOnce() -> String,
    ) {
        let severity = kind.severity;
        self.worst = self.worst.max(Some(severity));
        match severity {
            Severity::Error => self.counts.errors += 1,
            Severity::Warning => self.counts.warnings += 1,
            Severity::Note => self.counts.notes += 1,
        }
        let count = self.counts.codes.entry(kind.code).or_default();
        *count += 1;
        if *count > self.list_max {
            self.counts.not_listed += 1;
            return;
        }
        self.findings.push(Finding {
            code: kind.code,
            severity,
            structure,
            offset,
            text: text(),
            advice: kind.advice,
        });
    }

    /// How many of each kind it lists at most.
    pub(super) fn list_max(&self) -> u64 {
        self.list_max
    }

    /// Whether there is a finding of this kind.
    #[must_use]
    pub fn has(&self, kind: &Kind) -> bool {
        self.counts.codes.contains_key(kind.code)
    }
}
