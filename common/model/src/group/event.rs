//! What can happen to a group.

use super::record::BootId;
use crate::ids::{GenId, Nonce, OpId, UnixMillis};
use crate::peer::{Committed, Grant, Hello, HelloAnswer, TransferBegin};

/// Something that happened, or that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A cycle arrived whole: its files and their folder are durable, only the record is missing.
    CycleCommitted {
        /// The generation that the transfer was begun in.
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

/// A signed forced act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForceOpen {
    /// The operator's name, from the certificate.
    pub who: String,
    /// The reason, in the operator's words.
    pub why: String,
    /// When, by this agent's wall clock.
    pub at: UnixMillis,
    /// The operator states that the other site's host is off.
    pub peer_host_stopped: bool,
    /// The group's name was typed, and typed right.
    pub typed_name_matches: bool,
    /// Fresh random generation.
    pub new: GenId,
}

/// A new life of the agent's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
