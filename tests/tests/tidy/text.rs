//! What a file's text may hold, and how much of it.

use crate::tree::{report, sources};

/// Lines without tests at which a file tells more than one thing.
const LINES_MAX: usize = 600;

/// Files that are longer, how long they may be, and why. Numbers only ever go down.
const LONG_FILES: [(&str, usize, &str); 0] = [];

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    // A test file may list case after case; what is read on the night of a failover is not there.
    for source in sources(&[".rs"]).iter().filter(|source| !source.is_test()) {
        let lines = source.code_lines().count();
        let exception = LONG_FILES.iter().find(|(path, ..)| *path == source.path);
        let allowed = exception.map_or(LINES_MAX, |(_, allowed, _)| *allowed);
        if lines > allowed {
            complaints.push(format!("{}: {lines} lines, at most {allowed}", source.path));
        }
        if exception.is_some() && lines + 20 < allowed {
            complaints.push(format!(
                "{}: lower its number in LONG_FILES to {lines}",
                source.path
            ));
        }
    }
    report(&complaints);
}

/// Words with another word in this project; the second column is what to write.
///
/// They are put together from parts so that this file may lie in the tree that it checks.
const BANNED_WORDS: [(&[&str], &str); 7] = [
    (&["mas", "ter"], "site, source or primary"),
    (&["sla", "ve"], "site, replica or secondary"),
    (&["stand", "by"], "replica"),
    (&["help", "er"], "what it does"),
    (&["ut", "il"], "what it does"),
    (&["ut", "ils"], "what it does"),
    (&["mana", "ger"], "what it does"),
];

/// Lines that must have such a word: names that are not ours.
const FOREIGN_NAMES: [&str; 7] = [
    "master boot record",
    "qemu-utils",
    "package manager",
    "tokio-util",
    "tokio_util",
    "hyper_util",
    "get_storage_helper",
];

#[test]
fn one_word_for_one_thing() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs", ".md", ".proto", ".service"]) {
        for (line, text) in source.text.lines().enumerate() {
            let lower = text.to_lowercase();
            if FOREIGN_NAMES.iter().any(|name| lower.contains(name)) {
                continue;
            }
            for (parts, instead) in &BANNED_WORDS {
                let banned = parts.concat();
                if words(&lower).any(|word| word == banned) {
                    let path = &source.path;
                    complaints.push(format!("{path}:{}: {banned}: say {instead}", line + 1));
                }
            }
        }
    }
    report(&complaints);
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
}

#[test]
fn names_do_not_begin_with_get() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"]) {
        for (line, text) in source.text.lines().enumerate() {
            let foreign = FOREIGN_NAMES.iter().any(|name| text.contains(name));
            if text.contains(concat!("fn ", "get_")) && !foreign {
                complaints.push(format!(
                    "{}:{}: a function named get_",
                    source.path,
                    line + 1
                ));
            }
        }
    }
    report(&complaints);
}

/// Marks of unfinished or silenced code.
const BANNED_CODE: [&[&str]; 6] = [
    &["to", "do!("],
    &["unimpl", "emented!("],
    &["db", "g!("],
    &["#[ign", "ore"],
    &["#[al", "low("],
    &["#![al", "low("],
];

/// Generated code lies in a module of this file, and is silenced there.
const GENERATED: &str = "proto/src/lib.rs";

#[test]
fn nothing_is_unfinished_or_silenced() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"]) {
        for (line, text) in source.text.lines().enumerate() {
            for banned in BANNED_CODE.iter().map(|parts| parts.concat()) {
                if text.contains(&banned) && source.path != GENERATED {
                    complaints.push(format!("{}:{}: {banned}", source.path, line + 1));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn only_tests_unwrap() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"]).iter().filter(|source| !source.is_test()) {
        for (line, text) in source.code_lines() {
            let text = text.trim_start();
            if !text.starts_with("//") && text.contains(".unwrap()") {
                complaints.push(format!("{}:{line}: unwrap outside tests", source.path));
            }
        }
    }
    report(&complaints);
}

/// Places of one machine, which mean nothing on another.
const MACHINE_PLACES: [&[&str]; 4] = [
    &["/ho", "me/"],
    &["/ro", "ot/"],
    &["/wo", "rk/"],
    &["/Us", "ers/"],
];

#[test]
fn no_path_of_one_machine() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs", ".md", ".proto", ".toml", ".service", "run"]) {
        for (line, text) in source.text.lines().enumerate() {
            for place in MACHINE_PLACES.iter().map(|parts| parts.concat()) {
                let from_root = text.match_indices(&place).any(|(at, _)| {
                    !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-}".contains(c))
                });
                if from_root {
                    complaints.push(format!("{}:{}: {place}", source.path, line + 1));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn every_module_says_what_it_is() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"])
        .iter()
        .filter(|source| !source.path.ends_with("/tests.rs"))
    {
        let first = source.text.lines().next().unwrap_or("");
        let words = first.strip_prefix("//! ").unwrap_or("");
        if words.len() < 10 || words.to_lowercase().starts_with("placeholder") {
            complaints.push(format!("{}: begin with //! and what it owns", source.path));
        }
    }
    report(&complaints);
}
