//! Every kind of finding: code, severity, meaning, and what to do.
//!
//! `docs/formats.md` shows these tables; a test holds both equal. A code never changes its meaning and is never
//! used again: scripts and runbooks name it.

pub(super) mod hrl;
pub(super) mod vhd;
pub(super) mod vhdx;

use super::report::Kind;

/// Declares the kinds of one format, and `ALL`, the list of them: what is declared is listed.
macro_rules! kinds {
    ($($name:ident, $severity:ident, $code:literal, $meaning:literal, $advice:literal;)*) => {
        $(pub(in crate::check) static $name: Kind = Kind {
            code: $code,
            severity: Severity::$severity,
            meaning: $meaning,
            advice: $advice,
        };)*
        /// All of them, in the order of the check.
        pub(in crate::check) static ALL: &[&Kind] = &[$(&$name),*];
    };
}
use kinds;

/// All kinds of findings, by format.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    let formats = [vhdx::ALL, vhd::ALL, hrl::ALL];
    formats.into_iter().flatten().copied()
}
