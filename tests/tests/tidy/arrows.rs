//! Arrows between crates and between modules: they go down only.

use std::collections::BTreeMap;
use std::fs;

use crate::tree::{Source, report, root, sources};

/// Each crate, and which of our crates it may depend on.
const ARROWS: [(&str, &[&str]); 12] = [
    ("sitepair-model", &[]),
    ("sitepair-certs", &["sitepair-model"]),
    (
        "sitepair-disk",
        &["sitepair-model", "sitepair-qcow2-storage"],
    ),
    ("sitepair-qcow2-storage", &[]),
    ("sitepair-proto", &["sitepair-model"]),
    (
        "sitepair-engine",
        &[
            "sitepair-certs",
            "sitepair-disk",
            "sitepair-model",
            "sitepair-proto",
        ],
    ),
    ("primary-agent", &["sitepair-engine"]),
    ("secondary-agent", &["sitepair-engine"]),
    (
        "sitepair",
        &[
            "sitepair-certs",
            "sitepair-disk",
            "sitepair-model",
            "sitepair-proto",
        ],
    ),
    (
        "sitepair-tests",
        &[
            "sitepair-certs",
            "sitepair-disk",
            "sitepair-engine",
            "sitepair-model",
            "sitepair-proto",
        ],
    ),
    (
        "sitepair-fuzzing",
        &["sitepair-disk", "sitepair-model", "sitepair-proto"],
    ),
    ("xtask", &[]),
];

/// What the pure crate may use: nothing that has a runtime, a file, a socket or a clock.
const MODEL_DEPENDENCIES: [&str; 1] = ["thiserror"];

fn table(text: &str) -> toml::Table {
    toml::from_str(text).unwrap()
}

/// The manifests of all members, by package name.
fn manifests() -> BTreeMap<String, toml::Table> {
    let workspace = table(&fs::read_to_string(root().join("Cargo.toml")).unwrap());
    let members = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .clone();
    members
        .iter()
        .map(|member| {
            let path = root().join(member.as_str().unwrap()).join("Cargo.toml");
            let manifest = table(&fs::read_to_string(path).unwrap());
            (
                manifest["package"]["name"].as_str().unwrap().to_owned(),
                manifest,
            )
        })
        .collect()
}

fn dependencies(manifest: &toml::Table, section: &str) -> Vec<String> {
    let section = manifest.get(section).and_then(toml::Value::as_table);
    section
        .map(|section| section.keys().cloned().collect())
        .unwrap_or_default()
}

#[test]
fn arrows_between_crates_go_down() {
    let manifests = manifests();
    let mut complaints = Vec::new();
    for (name, manifest) in &manifests {
        let Some((_, allowed)) = ARROWS.iter().find(|(crate_name, _)| crate_name == name) else {
            complaints.push(format!("{name}: say in ARROWS what it may depend on"));
            continue;
        };
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for dependency in dependencies(manifest, section) {
                let ours = manifests.contains_key(&dependency);
                if ours && !allowed.contains(&dependency.as_str()) {
                    complaints.push(format!(
                        "{name}: may not depend on {dependency} ({section})"
                    ));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn the_model_is_pure() {
    let manifest = &manifests()["sitepair-model"];
    assert_eq!(dependencies(manifest, "dependencies"), MODEL_DEPENDENCIES);
    let banned = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::os",
        "SystemTime",
        "Instant",
        "async fn",
    ];
    let mut complaints = Vec::new();
    for source in sources(&[".rs"])
        .iter()
        .filter(|s| s.path.starts_with("common/model/src/"))
    {
        for (line, text) in source.code_lines().filter(|(_, text)| !is_comment(text)) {
            for word in banned.iter().filter(|word| text.contains(**word)) {
                complaints.push(format!("{}:{line}: the model knows no {word}", source.path));
            }
        }
    }
    report(&complaints);
}

/// Modules that meet at a trait and never know of each other.
const APART: [(&str, &[&str]); 2] = [
    (
        "source",
        &["crate::replica", "super::replica", "engine::replica"],
    ),
    (
        "replica",
        &["crate::source", "super::source", "engine::source"],
    ),
];

#[test]
fn source_and_replica_never_mention_each_other() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"]) {
        for (module, banned) in APART {
            if !belongs(&source, &format!("common/engine/src/{module}")) {
                continue;
            }
            // Comments and tests count too: what is explained by the other side belongs to neither.
            for (line, text) in source.text.lines().enumerate() {
                for word in banned.iter().filter(|word| text.contains(**word)) {
                    complaints.push(format!("{}:{}: mentions {word}", source.path, line + 1));
                }
            }
        }
    }
    report(&complaints);
}

/// Where generated types may be seen: their crate, and the two ends of the wire.
const WIRE: [&str; 4] = ["proto/", "common/engine/src/wire", "ctl/", "tests/"];

#[test]
fn generated_types_stay_at_the_wire() {
    let mut complaints = Vec::new();
    for source in sources(&[".rs"]) {
        if WIRE.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        for (line, text) in source.code_lines().filter(|(_, text)| !is_comment(text)) {
            if text.contains("sitepair_proto") {
                complaints.push(format!(
                    "{}:{line}: a generated type off the wire",
                    source.path
                ));
            }
        }
    }
    report(&complaints);
}

/// Whether a file is `module.rs` or lies below `module/`.
fn belongs(source: &Source, module: &str) -> bool {
    let rest = source.path.strip_prefix(module);
    rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[test]
fn the_code_map_names_every_crate() {
    let Ok(text) = fs::read_to_string(root().join("ARCHITECTURE.md")) else {
        panic!("ARCHITECTURE.md is missing");
    };
    let workspace = table(&fs::read_to_string(root().join("Cargo.toml")).unwrap());
    let members = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .clone();
    let missing: Vec<String> = members
        .iter()
        .filter_map(|member| member.as_str())
        .filter(|member| !text.contains(&format!("`{member}")))
        .map(|member| format!("ARCHITECTURE.md: the code map does not name `{member}`"))
        .collect();
    report(&missing);
}
