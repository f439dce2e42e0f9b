//! The state machine of a group at one site: who may serve the guest, and how that right moves.
//!
//! Owns: the [`RoleRecord`] that must be durable, the [`Session`] that a restart voids, and the one
//! function that changes them, [`step`]. Receives [`Event`]s: what operators, the peer and this
//! site's own work say. Gives out a [`Transition`], the next state with the [`Effect`]s around it, or
//! a [`Refusal`] with advice.
//!
//! Does not do: anything. The caller runs [`Transition::before`], makes the record of
//! [`Transition::next`] durable when it differs from what is on disk, takes the next state as its
//! own, and runs [`Transition::after`], each list in order. Every effect may be repeated.
//!
//! ```text
//!                 planned failover          all acknowledged            peer took it
//!   ┌──────────┐ ───────────────> Quiescing ───────────────> HandedOver ────────────┐
//!   │  Source  │ <───────────────     │                          │                   v
//!   │ closed / │  cancel: open        │ peer moved on            │ peer moved on  ┌─────────┐
//!   │   open   │ ─────────────────────┴──────> Fenced <──────────┘                │ Replica │
//!   │          │ <──── forced open: Source closed, HandedOver, Fenced             └─────────┘
//!   └──────────┘ <───────────────────────── grant ───────────────────────────────────┘   ^
//!        ^                                                          Seeding ─────────────┘
//!     protect                                                      offer     first cycle
//!
//!               peer fenced, or signed             commit
//!   ┌─────────┐ ───────────────> ┌─────────────┐ ─────────> Source
//!   │ Replica │                  │    Trial    │
//!   └─────────┘ <─────────────── │ closed/open │ ──┐ another point
//!        ^        rolled back    └─────────────┘ <─┘
//!        │                             resync of a Fenced site, or of a Replica that is behind
//!        └────────────────────────── Fenced ─────────────> Source
//!                                             released, or forced open
//! ```
//!
//! # Invariants
//!
//! 1. Only a [`Role::Source`] or a [`Role::Trial`] is ever [`Access::Open`], and a restart closes it.
//! 2. A source opens on the peer's answer to *this* life's outstanding request (Hello, fence or
//!    release), on a grant bound to this life, on a signed forced act, when it is born, in the
//!    same-boot grace, or again when a planned failover of this life is cancelled before anything was
//!    handed over; never else.
//! 3. Whoever tells the peer that it may serve has first made [`Role::HandedOver`] durable.
//! 4. Every take-over has a generation that neither history holds.
//! 5. [`RoleRecord::promoting`] is set only in [`Role::Source`] and [`Role::Fenced`].
//! 6. A site leaves [`Role::Fenced`] only in another generation, so that whatever was decided on its
//!    change map and its history there is known to be old.
//! 7. Writes that lose are listed in [`RoleRecord::forks`], after [`Effect::KeepFork`], in the
//!    record that says that they lost.

mod effect;
mod event;
mod failover;
mod fence;
mod meeting;
mod operation;
mod operator;
mod record;
mod refusal;
mod resync;
mod signature;
mod step;
mod transfer;
mod trial;

#[cfg(test)]
mod tests;

pub use self::effect::{Effect, ReplicateFrom, Transition};
pub use self::event::{
    Event, FailOver, ForceOpen, PeerStatement, Restart, RollBack, SILENCE_MARGIN_MS, Signature,
};
pub use self::operation::{Operation, allowed_operations};
pub use self::record::{
    BootId, FORCED_MAX, FORCED_TEXT_MAX_BYTES, FORKS_MAX, Forced, ForcedAct, Fork, Hold, Promotion,
    RecordError, Role, RoleRecord, Trial,
};
pub use self::refusal::Refusal;
pub use self::step::step;

use crate::ids::{Cycle, GenId, Nonce, OpId, UnixMillis};
use crate::lineage::Relation;
use crate::peer::{Hello, HelloAnswer, PeerSummary, RoleName};

/// A group at one site: what is durable, and what this process life knows besides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupState {
    /// Durable before anything depends on it.
    pub record: RoleRecord,
    /// Gone with the process.
    pub session: Session,
}

/// What one life of the agent's process knows of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    /// This life; answers to an earlier one are void.
    pub nonce: Nonce,
    /// The boot of the host that this life is part of.
    pub boot: BootId,
    /// Whether this site has the right to serve the guest now.
    pub access: Access,
    /// The one Hello whose answer counts; a newer request voids the older.
    pub asked: Option<OpId>,
    /// What waits for the peer's word.
    pub pending: Option<Pending>,
    /// The generation whose Grants are void in this life: its source has been fenced since.
    pub void_grants: Option<GenId>,
    /// What the peer last said of itself, while the link holds.
    pub peer: Option<PeerKnown>,
    /// What the last meeting with the peer showed to be wrong.
    pub trouble: Option<Trouble>,
}

/// An operation that waits for the peer's word, which must be to this very request. The link's end and any
/// change of role void it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pending {
    /// At a replica: the peer is to fence itself.
    FailOver {
        /// The operation and the request.
        op: OpId,
        /// The chosen point; `None` for the newest.
        point: Option<Cycle>,
        /// The generation to take over in.
        new: GenId,
        /// When to commit without a further word.
        commit_at: Option<UnixMillis>,
    },
    /// At a fenced site: the peer is to drop its failover.
    Release {
        /// The operation and the request.
        op: OpId,
        /// The generation to serve in.
        new: GenId,
    },
}

impl Pending {
    /// The operation.
    #[must_use]
    pub fn op(&self) -> OpId {
        match self {
            Self::FailOver { op, .. } | Self::Release { op, .. } => *op,
        }
    }
}

/// The right to serve the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Not given, or not confirmed in this life.
    Closed,
    /// Given. Exports open as soon as the image is ready, see [`GroupState::serves`].
    Open,
}

/// The peer's last words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerKnown {
    /// Its process life.
    pub nonce: Nonce,
    /// What it is to the group.
    pub summary: PeerSummary,
}

/// What is wrong between the two sites; shown to operators until a meeting shows otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Trouble {
    /// Both moved on from a common ancestor.
    #[error(
        "both sites have moved on from the same point; nothing is replicated until an operator decides which side to keep: `resolve --keep` there"
    )]
    Diverged,
    /// Both claim the right to serve the guest in one generation, which a restored or copied
    /// catalogue can cause.
    #[error(
        "both sites claim to be the source in the same generation; stop one agent and find out whose state was restored or copied"
    )]
    TwoSources,
    /// The peer has a history that this site has left behind.
    #[error(
        "the other site is behind this one's history; bring it up with `resync`, or end the protection and begin it again"
    )]
    PeerBehind,
    /// This site has a history that the peer has left behind.
    #[error(
        "this site is behind the other one's history; bring it up with `resync` there, or end the protection and begin it again"
    )]
    BehindPeer,
    /// The peer's replica is older than what it acknowledged, or another: nothing that is only known
    /// as a difference to the acknowledged cycle may be sent to it.
    #[error(
        "the other site's replica is not what it acknowledged, its state was restored or copied; end the protection and begin it again"
    )]
    ReplicaChanged,
    /// The peer cannot take what was handed over to it.
    #[error(
        "the other site's replica is not at the hand-over cut and cannot take over; stop its agent and force this site open"
    )]
    OtherCut,
    /// The peer does not know the group although cycles were acknowledged.
    #[error(
        "the other site has lost its knowledge of this group; restore its catalogue, or end the protection and begin it again"
    )]
    PeerForgot,
}

impl Trouble {
    /// Whether two histories contradict each other, so that nothing may open by itself.
    #[must_use]
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::Diverged | Self::TwoSources)
    }
}

impl GroupState {
    /// Whether the guest is served now: the right is there, and so is the image.
    #[must_use]
    pub fn serves(&self) -> bool {
        let ready = !matches!(self.record.promoting, Some(Promotion::BeforeServing(_)));
        self.session.access == Access::Open && ready
    }

    /// The replica that this site should send cycles to now, by its process life.
    #[must_use]
    pub fn replicates_to(&self) -> Option<&PeerKnown> {
        let may_send = match self.record.role {
            Role::Source => {
                self.serves() && self.record.promoting.is_none() && self.record.hold.is_none()
            }
            Role::Quiescing { .. } => true,
            // Until it is committed, the generation may be taken back.
            Role::Trial(_)
            | Role::HandedOver { .. }
            | Role::Fenced { .. }
            | Role::Seeding
            | Role::Replica => false,
        };
        let peer = self.session.peer.as_ref()?;
        let receives = match self.relation_to(&peer.summary) {
            Relation::Same => matches!(peer.summary.role, RoleName::Seeding | RoleName::Replica),
            Relation::Ahead => self.resyncs(&peer.summary),
            Relation::Behind | Relation::Diverged | Relation::Unrelated => false,
        };
        (may_send && receives && self.session.trouble.is_none()).then_some(peer)
    }

    /// Whether only a fresh answer of the peer leads on: the caller keeps asking it (every few
    /// seconds, with [`Event::AskPeer`]) while this holds.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        let waits = match self.record.role {
            Role::Source | Role::Trial(_) => self.session.access == Access::Closed,
            Role::HandedOver { .. } => true,
            Role::Quiescing { .. } | Role::Fenced { .. } | Role::Seeding | Role::Replica => false,
        };
        waits || self.session.peer.is_none() || self.session.trouble.is_some()
    }

    /// What this site tells the peer of itself.
    #[must_use]
    pub fn summary(&self) -> PeerSummary {
        PeerSummary {
            group: self.record.group,
            role: self.record.role.name(),
            generation: self.record.generation(),
            lineage: self.record.lineage.clone(),
            cycle: self.record.cycle(),
            digest: self.record.last.map(|last| last.digest),
            forced: self.record.forced.clone(),
        }
    }

    fn hello(&self, request: OpId) -> Hello {
        Hello {
            request,
            nonce: self.session.nonce,
            summary: self.summary(),
        }
    }

    fn hello_answer(&self, to: &Hello) -> HelloAnswer {
        HelloAnswer {
            request: to.request,
            nonce: to.nonce,
            own_nonce: self.session.nonce,
            summary: self.summary(),
        }
    }

    fn relation_to(&self, peer: &PeerSummary) -> Relation {
        self.record.lineage.relation_to(&peer.lineage)
    }
}
