//! Every state with every event, as a table that people review.
//!
//! After a change that is meant: `UPDATE_GOLDEN=1 cargo test -p sitepair-model --test group_golden`,
//! then read the difference.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it does not expect"
)]

mod events;
mod states;
mod text;

use std::fmt::Write as _;

use crate::events::events;
use crate::states::*;
use crate::text::{state_text, transition_text};
use sitepair_model::group::{GroupState, Restart, allowed_operations, step};

fn table() -> String {
    let mut out = String::from(
        "# Every state with every event: what is done first, the next state, what is done then.\n\
         # Written by the test group_golden; [durable] marks a changed role record.\n",
    );
    for (name, state) in states() {
        let allowed: Vec<_> = allowed_operations(&state)
            .iter()
            .map(ToString::to_string)
            .collect();
        write!(out, "\n## {name}\n{}\n", state_text(&state)).unwrap();
        writeln!(out, "operators may: {}", allowed.join(", ")).unwrap();
        for (event_name, event) in events() {
            let result = match step(&state, &event) {
                Ok(t) => transition_text(Some(&state), &t),
                Err(refusal) => format!("refused: {refusal}"),
            };
            writeln!(out, "  {event_name:<30} {result}").unwrap();
        }
        for (restart_name, boot, gap) in [
            ("restart of the host", [9; 16], None),
            ("restart in the grace", BOOT, Some(5)),
        ] {
            let restart = Restart {
                nonce: NEXT_LIFE,
                boot,
                dead_for_ms: gap,
                grace_ms: 60_000,
            };
            let t = GroupState::restarted(state.record.clone(), &restart);
            let changed = t.next.record != state.record;
            let text = transition_text(Some(&state), &t);
            assert_eq!(changed, text.contains("[durable]"));
            writeln!(out, "  {restart_name:<30} {text}").unwrap();
        }
    }
    out
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test keeps its table up to date on request"
)]
fn the_table_is_as_reviewed() {
    let table = table();
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/group.txt");
        std::fs::write(path, table).unwrap();
        return;
    }
    let reviewed = include_str!("../golden/group.txt");
    for (number, (now, then)) in table.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(
            now,
            then,
            "line {}; UPDATE_GOLDEN=1 rewrites the table",
            number + 1
        );
    }
    assert_eq!(table.lines().count(), reviewed.lines().count());
}

/// A state that refuses is left as it was, and the refusal says so in words.
#[test]
fn every_refusal_has_a_text_of_its_own() {
    for (_, state) in states() {
        for (name, event) in events() {
            if let Err(refusal) = step(&state, &event) {
                let text = refusal.to_string();
                assert!(text.len() > 20 && !text.contains("{"), "{name}: {text}");
            }
        }
    }
}
