//! Which commands an operator can give now. Derived from [`step`](super::step): a command is allowed
//! when the state machine would not refuse it and it would change something.

use std::fmt;

use super::{
    Event, FailOver, ForceOpen, GroupState, PeerStatement, Role, RollBack, Signature, step,
};
use crate::ids::{GenId, OpId, UnixMillis};

/// A command about a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// End a cycle now.
    Cut,
    /// Hold replication.
    Pause,
    /// Let it go on.
    Resume,
    /// Let a new source replicate back.
    Reverse,
    /// Hand the guest over to the other site without loss.
    PlannedFailover,
    /// Open without the other site's word.
    ForceOpen,
    /// Take over at a recovery point.
    FailOver,
    /// Make a failover final.
    CommitFailover,
    /// Take a failover back.
    RollBack,
    /// Bring up a peer that is behind.
    Resync,
    /// Keep this side of two that have parted.
    Resolve,
    /// Serve again after a failover that came to nothing.
    Release,
    /// End the protection.
    Unprotect,
}

impl Operation {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::Cut,
        Self::Pause,
        Self::Resume,
        Self::Reverse,
        Self::PlannedFailover,
        Self::ForceOpen,
        Self::FailOver,
        Self::CommitFailover,
        Self::RollBack,
        Self::Resync,
        Self::Resolve,
        Self::Release,
        Self::Unprotect,
    ];

    /// The command in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reverse => "reverse",
            Self::PlannedFailover => "planned failover",
            Self::ForceOpen => "force open",
            Self::FailOver => "failover",
            Self::CommitFailover => "commit failover",
            Self::RollBack => "rollback",
            Self::Resync => "resync",
            Self::Resolve => "resolve",
            Self::Release => "release",
            Self::Unprotect => "unprotect",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The commands that would do something now. Attached writers and what an operator has to sign are
/// not looked at: the command itself asks for them.
#[must_use]
pub fn allowed_operations(now: &GroupState) -> Vec<Operation> {
    Operation::ALL
        .into_iter()
        .filter(|operation| is_allowed(now, *operation))
        .collect()
}

fn is_allowed(now: &GroupState, operation: Operation) -> bool {
    let probe = OpId::from_bytes([0xff; 16]);
    let new = GenId::from_bytes([0xff; 16]);
    let alone = now.session.peer.is_none();
    let event = match operation {
        Operation::Cut => {
            return now.record.role == Role::Source && now.replicates_to().is_some();
        }
        Operation::Pause => Event::Pause,
        Operation::Resume => Event::Resume,
        Operation::Reverse => Event::Reverse,
        Operation::PlannedFailover => Event::PlannedFailover {
            op: probe,
            writers: 0,
            disconnect: false,
            reverse: true,
        },
        Operation::ForceOpen => Event::ForceOpen(ForceOpen {
            op: probe,
            signature: signature(),
            new,
        }),
        Operation::FailOver => Event::FailOver(FailOver {
            op: probe,
            point: None,
            new,
            commit_at: None,
            writers: 0,
            disconnect: false,
            forced: alone.then(signature),
        }),
        Operation::CommitFailover => Event::CommitFailover { op: probe },
        Operation::RollBack => Event::RollBack(RollBack {
            op: probe,
            writers: 0,
            disconnect: false,
            forced: alone.then(signature),
        }),
        Operation::Resync => Event::Resync { op: probe },
        Operation::Resolve => Event::Resolve { op: probe, new },
        Operation::Release => Event::Release { op: probe, new },
        Operation::Unprotect => Event::Withdraw {
            writers: 0,
            disconnect: false,
        },
    };
    step(now, &event).is_ok_and(|t| t.next.record != now.record || !t.after.is_empty())
}

/// What an operator would sign where it has to be.
fn signature() -> Signature {
    Signature {
        who: "operator".to_owned(),
        why: "probe".to_owned(),
        at: UnixMillis(0),
        typed_name_matches: true,
        peer: PeerStatement::HostOff,
    }
}
