//! Recovery points. Which of them go is [`retention`](crate::retention)'s to say.

use crate::ids::{Cycle, GenId, UnixMillis};

/// What a recovery point promises about the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// As after pulling the plug: every disk at the same instant, writes in order.
    Crash,
    /// The guest was frozen at the cut.
    Application,
}

/// The state of a group at one committed cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// The cycle whose cut this is; names the point.
    pub cycle: Cycle,
    /// Generation that wrote the cycle.
    pub generation: GenId,
    /// Instant of the cut by the source's clock.
    pub cut_at: UnixMillis,
    /// What it promises.
    pub consistency: Consistency,
    /// The operator's name for it.
    pub label: Option<String>,
    /// An operator wants it kept, whatever retention says.
    pub pinned: bool,
    /// Bytes of change logs that this point adds; 0 for the point that is the image itself.
    pub journal_bytes: u64,
}
