//! The durable part of a group's state, and its bytes.
//!
//! Receives and gives out byte strings; where they are kept, and that they are replaced whole, is the
//! caller's business. Bytes that were changed behind our back are refused, never guessed at.

mod codec;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::ids::{Cycle, GenId, Generation, GroupId, OpId, UnixMillis};
use crate::lineage::Lineage;
use crate::peer::{Committed, RoleName};

/// Identity of one boot of the host.
pub type BootId = [u8; 16];

/// Forced acts that a record keeps; older ones give way.
pub const FORCED_MAX: usize = 64;

/// Longest name or reason of a forced act in bytes.
pub const FORCED_TEXT_MAX_BYTES: usize = 1024;

/// What a site is to a group, with what belongs to being that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has the right to serve the guest, once it is confirmed in this process life.
    Source,
    /// A source on trial: a failover that is not committed yet. To the peer it is a source.
    Trial(Trial),
    /// A planned failover is on its way out: nothing is served, the last cycle is shipped. After a
    /// restart this is a [`Role::Source`] again.
    Quiescing {
        /// The operator's operation.
        op: OpId,
        /// Whether the new source shall replicate back at once.
        reverse: bool,
    },
    /// The right is the peer's as soon as it takes it; nothing here takes it back but a forced act.
    HandedOver {
        /// The operator's operation, and the request of the Grant.
        op: OpId,
        /// The generation that the peer may take.
        granted: Generation,
        /// The hand-over cut.
        base: Committed,
        /// Whether the new source shall replicate back at once.
        reverse: bool,
    },
    /// Learnt that the peer moved on; serves nobody.
    Fenced {
        /// The peer's generation when that was learnt.
        by: GenId,
    },
    /// Keeps a replica that has no complete point yet.
    Seeding,
    /// Keeps a replica.
    Replica,
}

impl Role {
    /// The role without its data.
    #[must_use]
    pub fn name(&self) -> RoleName {
        match self {
            Self::Source | Self::Trial(_) => RoleName::Source,
            Self::Quiescing { .. } => RoleName::Quiescing,
            Self::HandedOver { .. } => RoleName::HandedOver,
            Self::Fenced { .. } => RoleName::Fenced,
            Self::Seeding => RoleName::Seeding,
            Self::Replica => RoleName::Replica,
        }
    }
}

/// A failover that was not committed yet: the guest writes to an overlay above a recovery point, and
/// all other points stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trial {
    /// The point below the overlay.
    pub point: Cycle,
    /// The generation that this site was a replica in, where a rollback leads to.
    pub of: Generation,
    /// The cycle that `of` began after.
    pub base: Cycle,
    /// When it is to be committed without a further word, by this agent's wall clock.
    pub commit_at: Option<UnixMillis>,
}

/// The journal is being folded into the images, up to and including a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promotion {
    /// After a planned failover: nothing opens before it is done.
    BeforeServing(Cycle),
    /// After a committed failover: journal and overlay, while the guest goes on.
    WhileServing(Cycle),
}

impl Promotion {
    /// The last cycle that is folded in.
    #[must_use]
    pub fn through(self) -> Cycle {
        match self {
            Self::BeforeServing(through) | Self::WhileServing(through) => through,
        }
    }
}

/// Writes that lost, kept until an operator drops them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fork {
    /// The generation that made them; names the fork.
    pub generation: GenId,
    /// The cycle that they came after.
    pub since: Cycle,
}

/// Forks that a site keeps; no act that would make one more is let in.
pub const FORKS_MAX: usize = 64;

/// Why a source does not replicate although it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hold {
    /// An operator paused it.
    Paused,
    /// The planned failover that made this site the source left the way back to the operator.
    AwaitingReverse,
}

impl Hold {
    /// The command that ends it.
    #[must_use]
    pub fn ended_by(self) -> &'static str {
        match self {
            Self::Paused => "resume",
            Self::AwaitingReverse => "reverse",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Paused => "paused",
            Self::AwaitingReverse => "waiting to be reversed",
        })
    }
}

/// What an operator forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForcedAct {
    /// An old source serves again.
    Opened,
    /// A replica took over.
    FailedOver,
    /// A failover was rolled back.
    RolledBack,
}

impl ForcedAct {
    /// The act in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "forced open",
            Self::FailedOver => "forced failover",
            Self::RolledBack => "forced rollback",
        }
    }
}

impl fmt::Display for ForcedAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A signed forced act, shown at both sites for as long as the group is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forced {
    /// What was done.
    pub act: ForcedAct,
    /// The generation that it made, or gave up.
    pub generation: GenId,
    /// Whether it was done at the other site.
    pub at_peer: bool,
    /// The operator's name.
    pub who: String,
    /// The operator's reason.
    pub why: String,
    /// When, by the agent's wall clock.
    pub at: UnixMillis,
}

/// What a site must never forget of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoleRecord {
    /// The group.
    pub group: GroupId,
    /// What this site is to it.
    pub role: Role,
    /// Counts take-overs, for people and for refusing quickly.
    pub epoch: u64,
    /// Where the data here comes from.
    pub lineage: Lineage,
    /// The cycle that the current generation began after.
    pub base: Cycle,
    /// Last cycle committed here (replica) or acknowledged by the peer (source).
    pub last: Option<Committed>,
    /// Raised by each change, so that an older record is known as such.
    pub seq: u64,
    /// Why replication is held, if it is.
    pub hold: Option<Hold>,
    /// What is still being folded into the images.
    pub promoting: Option<Promotion>,
    /// The generation that an operator let be brought up to this one, at the peer.
    pub resync: Option<GenId>,
    /// The boot in which this site is open and may reopen alone after a short restart.
    pub may_reopen: Option<BootId>,
    /// The last operation that moved the role here, so that its repeats change nothing.
    pub finished: Option<OpId>,
    /// Writes that lost and are kept here, oldest first.
    pub forks: Vec<Fork>,
    /// Forced acts at both sites, oldest first.
    pub forced: Vec<Forced>,
}

impl RoleRecord {
    pub(super) fn born(group: GroupId, role: Role, generation: Generation) -> Self {
        Self {
            group,
            role,
            epoch: generation.epoch,
            lineage: Lineage::born(generation.id),
            base: Cycle::NONE,
            last: None,
            seq: 1,
            hold: None,
            promoting: None,
            resync: None,
            may_reopen: None,
            finished: None,
            forks: Vec::new(),
            forced: Vec::new(),
        }
    }

    /// The generation that this site is in.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation {
            epoch: self.epoch,
            id: self.lineage.current,
        }
    }

    /// Last cycle committed or acknowledged; [`Cycle::NONE`] before the first.
    #[must_use]
    pub fn cycle(&self) -> Cycle {
        self.last.map_or(Cycle::NONE, |last| last.cycle)
    }

    /// Whether `generation` is in no history known here, so that it may name a new one.
    pub(super) fn is_new(&self, generation: GenId) -> bool {
        let granted = match &self.role {
            Role::HandedOver { granted, .. } => Some(granted.id),
            Role::Fenced { by } => Some(*by),
            Role::Trial(trial) => Some(trial.of.id),
            Role::Source | Role::Quiescing { .. } | Role::Seeding | Role::Replica => None,
        };
        !self.lineage.holds(generation) && granted != Some(generation)
    }

    /// Moves on to `generation`: a take-over.
    pub(super) fn take_over(&mut self, generation: Generation) {
        self.lineage = self.lineage.advanced(generation.id);
        self.epoch = generation.epoch;
        self.base = self.cycle();
        self.resync = None;
    }

    /// The fork that this site's own writes would make now.
    pub(super) fn own_fork(&self) -> Fork {
        match self.role {
            Role::Trial(trial) => Fork {
                generation: self.overlay_generation(trial),
                since: trial.point,
            },
            _ => Fork {
                generation: self.lineage.current,
                since: self.cycle(),
            },
        }
    }

    /// The generation that a trial began with, which names its overlay: a forced act may have brought it
    /// into another one since.
    pub(super) fn overlay_generation(&self, trial: Trial) -> GenId {
        let lineage = &self.lineage;
        let after = |at: usize| at.checked_sub(1).map(|at| lineage.ancestors[at]);
        let of = lineage.ancestors.iter().position(|id| *id == trial.of.id);
        of.and_then(after).unwrap_or(lineage.current)
    }

    /// Lists a fork, once.
    pub(super) fn keep(&mut self, fork: Fork) {
        if !self.forks.contains(&fork) {
            self.forks.push(fork);
        }
    }

    /// Adds a forced act of this site; the oldest give way.
    pub(super) fn note_forced(&mut self, act: Forced) {
        self.forced.push(act);
        let surplus = self.forced.len().saturating_sub(FORCED_MAX);
        self.forced.drain(..surplus);
    }

    /// Takes over what the peer says was forced there, as long as there is room.
    pub(super) fn note_peers_forced(&mut self, acts: &[Forced]) {
        for act in acts {
            let known = |a: &Forced| a.generation == act.generation && a.act == act.act;
            if self.forced.len() < FORCED_MAX && !self.forced.iter().any(known) {
                self.forced.push(Forced {
                    at_peer: !act.at_peer,
                    ..act.clone()
                });
            }
        }
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`RoleRecord::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        codec::decode(bytes)
    }
}

/// Why bytes are not a role record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end early, go on too long, or are not a role record at all.
    #[error("role record has the wrong length or is none")]
    Shape,
    /// A later version of the format.
    #[error("role record has version {found}, this agent reads {known}; run the newer agent")]
    Version {
        /// In the bytes.
        found: u16,
        /// What is read here.
        known: u16,
    },
    /// Bits have changed since the record was written.
    #[error("role record is damaged: its checksum does not match")]
    Checksum,
    /// The checksum is right, the content is not: a record that this code did not write.
    #[error("role record is not valid: {what}")]
    Content {
        /// What is wrong with it.
        what: &'static str,
    },
}
