//! The replica: every kept recovery point shows exactly what the source had at its cut, whatever fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod change_logs;
mod crashes;
mod drills;
mod faults;
mod points;
mod refusals;
mod room;
mod support;
mod thinning;
