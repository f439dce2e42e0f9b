//! What a decision asks the caller to do.

use super::{Fork, GroupState, Promotion, Trouble};
use crate::ids::{Cycle, GenId, OpId};
use crate::peer::{
    Committed, Confirmation, FenceRequest, Grant, Hello, HelloAnswer, ReleaseRequest,
};

/// A decision: what to do before it counts, the state that then counts, what to do after.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use = "a decision that is not carried out is lost"]
pub struct Transition {
    /// Run in order, before [`Transition::next`] is made durable.
    pub before: Vec<Effect>,
    /// The state from now on. Its record is durable before `after` is run.
    pub next: GroupState,
    /// Run in order, once the record is durable.
    pub after: Vec<Effect>,
}

/// Something to do. All may be repeated without harm, so a crash between two of them is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Admit no more guest requests, drain those under way, flush the images, close the exports.
    /// Nothing to do where they are closed.
    CloseExports {
        /// Whether attached clients are disconnected rather than waited for.
        disconnect: bool,
    },
    /// Serve the guest read-write.
    OpenExports,
    /// Send to the peer from now on.
    StartReplication(ReplicateFrom),
    /// Send no more. Blocks sent but not acknowledged return to the change map.
    StopReplication,
    /// With the exports closed and drained: make the hand-over cut, ship it, and report
    /// [`Event::Shipped`](super::Event::Shipped), or
    /// [`Event::QuiesceCancelled`](super::Event::QuiesceCancelled) when it cannot be done or takes
    /// too long. [`Effect::StopReplication`] interrupts it; it is asked for again when the peer is
    /// back.
    DrainAndShip {
        /// The planned failover.
        op: OpId,
    },
    /// Draw a request id and feed [`Event::AskPeer`](super::Event::AskPeer).
    AskPeer,
    /// Send this Hello; feed its answer back.
    SendHello(Hello),
    /// Answer the peer's Hello with this.
    AnswerHello(HelloAnswer),
    /// The peer does not know the group: offer it, then ask the peer again.
    OfferGroup,
    /// Send this Grant; feed its answer back. When it fails, ask the peer: the answer leads to a
    /// repeat.
    SendGrant(Grant),
    /// Answer the peer's Grant.
    AnswerGrant {
        /// The Grant's request.
        request: OpId,
    },
    /// Send this request; feed the answer back as [`Event::FenceAnswered`](super::Event::FenceAnswered),
    /// or [`Event::GiveUp`](super::Event::GiveUp).
    SendFence(FenceRequest),
    /// Answer the peer's request to fence this site.
    AnswerFence(Confirmation),
    /// Send this request; feed the answer back as
    /// [`Event::ReleaseAnswered`](super::Event::ReleaseAnswered), or
    /// [`Event::GiveUp`](super::Event::GiveUp).
    SendRelease(ReleaseRequest),
    /// Answer the peer's request to release it.
    AnswerRelease(Confirmation),
    /// Let the peer send what it asked to send.
    AcceptTransfer,
    /// Tell the peer that this cycle is durable here.
    Acknowledge(Committed),
    /// Fold the journal, and while serving the overlay, into the images, then feed
    /// [`Event::Promoted`](super::Event::Promoted).
    Promote(Promotion),
    /// Open the overlay above this point, making it if it is not there, with a change map in which every block
    /// is marked that differs between this point and the newest one.
    OpenOverlay {
        /// The point.
        point: Cycle,
        /// Names the overlay, and the fork that it may become: the generation that the failover began.
        generation: GenId,
    },
    /// Make durable that these writes stay readable, whatever becomes of image and journal: the blocks of
    /// the change map where the site is fenced, the overlay where a failover is given up.
    KeepFork(Fork),
    /// Remove a fork's files.
    DropFork(Fork),
    /// The images are a replica's from now on, complete at this cycle: forget the change maps, accept
    /// cycles.
    BecomeReplica {
        /// The hand-over cut.
        at: Committed,
    },
    /// Tell operators.
    Alarm(Trouble),
    /// The group is no longer protected here: remove its record.
    Forget,
}

/// Where the peer's replica stands when replication starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicateFrom {
    /// It has no complete point: initial replication first.
    Nothing,
    /// It is complete at this cycle; what comes after is to be sent.
    Cycle(Cycle),
    /// It is of another generation: fetch its change map, add it durably to the own one, and send the blocks of
    /// both as one cycle.
    Behind {
        /// Its generation.
        over: GenId,
        /// Its last cycle.
        cycle: Cycle,
    },
}
