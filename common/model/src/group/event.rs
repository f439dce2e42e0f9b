//! What can happen to a group.

use super::record::BootId;
use crate::ids::{Cycle, GenId, Nonce, OpId, UnixMillis};
use crate::peer::{
    Committed, Confirmation, FenceRequest, Grant, Hello, HelloAnswer, ReleaseRequest, TransferBegin,
};

/// Something that happened, or that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// This site is about to say Hello.
    AskPeer {
        /// Fresh and random; voids any older request.
        request: OpId,
    },
    /// The peer said Hello.
    HelloReceived(Hello),
    /// The peer answered this site's Hello.
    HelloAnswered(HelloAnswer),
    /// The link to the peer is gone; what it said no longer counts.
    PeerLost,
    /// The peer offered a group that is known here already. For one that is not, see
    /// [`GroupState::born_replica`](super::GroupState::born_replica).
    Offered {
        /// The offered generation.
        generation: GenId,
    },
    /// The peer asks to send bulk data.
    TransferAsked(TransferBegin),
    /// A cycle arrived whole: its files and their folder are durable, only the record is missing. A resync
    /// covered every block of this site's own change map besides.
    CycleCommitted {
        /// The sender's generation, as the transfer began with it.
        generation: GenId,
        /// The cycle.
        last: Committed,
    },
    /// The peer has a cycle durably.
    CycleAcknowledged {
        /// The generation that the cycle was sent in.
        generation: GenId,
        /// The cycle, as the peer committed it.
        last: Committed,
    },
    /// An operator wants the other site to take over without loss.
    PlannedFailover {
        /// Names the operation.
        op: OpId,
        /// Read-write clients that are attached to the exports now.
        writers: usize,
        /// Whether to disconnect them.
        disconnect: bool,
        /// Whether the new source replicates back at once.
        reverse: bool,
    },
    /// A planned failover was cancelled, or its last cycle could not be sent.
    QuiesceCancelled {
        /// The operation.
        op: OpId,
    },
    /// The exports are closed and drained, and the peer has acknowledged the hand-over cut. No later
    /// cycle was ever begun: one that the peer still committed would leave it unable to take over.
    Shipped {
        /// The operation.
        op: OpId,
        /// The hand-over cut: last acknowledged cycle, after which nothing was written.
        last: Committed,
        /// Fresh random generation for the new source.
        granted: GenId,
    },
    /// The peer hands over the right to serve the guest.
    GrantReceived(Grant),
    /// The peer answered a Grant: the granted generation is durable there.
    GrantAnswered {
        /// The Grant's request.
        request: OpId,
    },
    /// Journal and image are one: what [`Effect::Promote`](super::Effect::Promote) asked for is done.
    Promoted,
    /// An operator holds replication.
    Pause,
    /// An operator lets it go on.
    Resume,
    /// An operator lets a new source replicate back to the old one.
    Reverse,
    /// An operator signs that this site shall serve the guest without the peer's word.
    ForceOpen(ForceOpen),
    /// An operator wants this replica to take over at one of its points, or at another one than before.
    FailOver(FailOver),
    /// The peer, a replica, wants to take over.
    FenceReceived(FenceRequest),
    /// The peer has fenced itself.
    FenceAnswered(Confirmation),
    /// An operator, or the time that an operator chose, makes a failover final.
    CommitFailover {
        /// Names the operation.
        op: OpId,
    },
    /// An operator takes a failover back.
    RollBack(RollBack),
    /// An operator lets the peer, which is behind, be brought up to this source.
    Resync {
        /// Names the operation.
        op: OpId,
    },
    /// An operator keeps this side of two histories that parted.
    Resolve {
        /// Names the operation.
        op: OpId,
        /// Fresh random generation.
        new: GenId,
    },
    /// An operator wants a fenced site to serve again, because the failover came to nothing.
    Release {
        /// Names the operation, and the request to the peer.
        op: OpId,
        /// Fresh random generation.
        new: GenId,
    },
    /// The peer, fenced, wants to serve again.
    ReleaseReceived(ReleaseRequest),
    /// The peer, a replica, has dropped whatever failover it had begun.
    ReleaseAnswered(Confirmation),
    /// A [`FailOver`] or a release that waits for the peer is given up: the request failed.
    GiveUp {
        /// The operation.
        op: OpId,
    },
    /// An operator drops a fork.
    DropFork {
        /// Its name.
        generation: GenId,
    },
    /// An operator ends the protection of the group at this site.
    Withdraw {
        /// Read-write clients that are attached to the exports now.
        writers: usize,
        /// Whether to disconnect them.
        disconnect: bool,
    },
    /// The peer, source of the group, ended its protection.
    PeerWithdrew,
}

/// An operator's signature under a forced act.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The operator's name, from the certificate.
    pub who: String,
    /// The reason, in the operator's words.
    pub why: String,
    /// When, by this agent's wall clock.
    pub at: UnixMillis,
    /// The group's name was typed, and typed right.
    pub typed_name_matches: bool,
    /// What the operator states of the other site.
    pub peer: PeerStatement,
}

/// What an operator states of the other site, in a forced act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerStatement {
    /// Nothing.
    None,
    /// Its agent does not run, and has not for as long as the same-boot grace at least.
    AgentStopped {
        /// How long this agent has heard nothing from it, by the boot clock; `None` when it has heard
        /// nothing in this life.
        silent_for_ms: Option<u64>,
        /// How long this agent has lived, which bounds what it can know about the peer.
        alive_for_ms: u64,
        /// The peer's same-boot grace.
        grace_ms: u64,
    },
    /// Its host is off: whatever comes back later is in another boot.
    HostOff,
}

/// How much longer than the same-boot grace a peer must have been silent.
pub const SILENCE_MARGIN_MS: u64 = 30_000;

/// A signed forced act: see [`Event::ForceOpen`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ForceOpen {
    /// Names the operation.
    pub op: OpId,
    /// Who signs what.
    pub signature: Signature,
    /// Fresh random generation.
    pub new: GenId,
}

/// A failover at the replica: see [`Event::FailOver`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FailOver {
    /// Names the operation, and the request to the peer.
    pub op: OpId,
    /// The point, which is held until the failover is committed or rolled back; `None` for the newest.
    pub point: Option<Cycle>,
    /// Fresh random generation.
    pub new: GenId,
    /// When it is committed without a further word, by this agent's wall clock.
    pub commit_at: Option<UnixMillis>,
    /// Read-write clients that are attached to an earlier choice of point.
    pub writers: usize,
    /// Whether to disconnect them.
    pub disconnect: bool,
    /// Signed when the peer cannot be asked.
    pub forced: Option<Signature>,
}

/// The end of a failover that is not wanted: see [`Event::RollBack`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RollBack {
    /// Names the operation.
    pub op: OpId,
    /// Read-write clients that are attached to the exports now.
    pub writers: usize,
    /// Whether to disconnect them.
    pub disconnect: bool,
    /// Signed when the peer cannot be asked.
    pub forced: Option<Signature>,
}

/// A new life of the agent's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Restart {
    /// The new life.
    pub nonce: Nonce,
    /// The boot of the host that it is part of.
    pub boot: BootId,
    /// How long no process of this agent lived, by the boot clock; `None` when that is not known.
    pub dead_for_ms: Option<u64>,
    /// Longest such gap after which a source may reopen alone in the same boot; 0 for never.
    pub grace_ms: u64,
}
