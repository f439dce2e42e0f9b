//! Two agents in one process, with everything real between the guest's disk and the role records: planned failovers
//! and back, crashes of either site, a link that breaks at any call, disks that fail.
//!
//! Time is tokio's paused clock; schedules come from printed seeds. What blocking threads do between two turns of the
//! test is the operating system's choice, so a seed replays the schedule, not each thread's step.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod breaks;
mod change_logs;
mod env;
mod failover;
mod guest;
mod link;
mod mortal;
mod pair;
mod retention;
mod rules;
mod storm;
