//! The catalogue of findings: sound in itself, and the same in the documentation.

use std::collections::BTreeSet;

use super::*;

const DOCUMENT: &str = include_str!("../../../../../docs/formats.md");

#[test]
fn codes_are_unique_and_named_after_their_format() {
    let mut seen = BTreeSet::new();
    for kind in catalogue() {
        let code = kind.code;
        assert!(seen.insert(code), "{code} stands twice");
        let format = code.split('-').next().unwrap();
        assert!(["vhdx", "vhd", "hrl"].contains(&format), "{code}");
        let kebab = |c: char| c == '-' || c.is_ascii_lowercase() || c.is_ascii_digit();
        assert!(code.chars().all(kebab), "{code}");
        assert!(
            !kind.meaning.contains('|') && !kind.advice.contains('|'),
            "{code}"
        );
    }
}

#[test]
fn the_documentation_lists_exactly_these_findings() {
    let expected: Vec<String> = catalogue()
        .map(|kind| {
            let severity = kind.severity.name();
            format!(
                "| `{}` | {severity} | {} | {} |",
                kind.code, kind.meaning, kind.advice
            )
        })
        .collect();
    let is_row = |line: &&str| {
        ["vhdx-", "vhd-", "hrl-"]
            .iter()
            .any(|format| line.starts_with(&format!("| `{format}")))
    };
    let found: Vec<&str> = DOCUMENT.lines().filter(is_row).collect();
    for line in &expected {
        assert!(
            found.contains(&line.as_str()),
            "docs/formats.md lacks this line:\n{line}"
        );
    }
    assert_eq!(found, expected, "order, or a finding that does not exist");
}
