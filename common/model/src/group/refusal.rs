//! Why an event changes nothing, and what to do about it.

use super::{Hold, Trouble};
use crate::ids::{Cycle, Generation, OpId};
use crate::peer::RoleName;

/// An answer that says no. Not an error: nothing has changed, and the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A message about another group.
    #[error("the message is about another group")]
    OtherGroup,
    /// A message that contradicts itself or exceeds a limit.
    #[error(
        "the peer's message is not valid: {what}; check that both agents have the same version"
    )]
    Invalid {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The peer's history has nothing in common with this one.
    #[error(
        "the two sites' histories of this group have nothing in common; protect it under another name, or remove it at the site where it is wrong"
    )]
    Unrelated,
    /// An answer to something that is no longer asked.
    #[error(
        "the answer is not to the request that is outstanding in this life of the agent; ask again"
    )]
    StaleAnswer,
    /// The command is for the source.
    #[error(
        "this site is {role} for the group, not its source; run the command at the source's site"
    )]
    NotSource {
        /// What this site is.
        role: RoleName,
    },
    /// The source has no right to serve the guest at the moment.
    #[error(
        "the source is closed until the other site confirms it; restore the link between the agents, or force it open if the other site's host is off"
    )]
    Closed,
    /// Another operation is under way.
    #[error("a planned failover is under way ({role}, operation {op}); wait until it has ended")]
    Busy {
        /// How far it is.
        role: RoleName,
        /// The operation.
        op: OpId,
    },
    /// The image of a new source is not complete yet.
    #[error("the journal is still being folded into the image; try again when that is done")]
    Promoting,
    /// Replication is held by an operator.
    #[error("replication is {hold}; end that first with `{command}`", command = hold.ended_by())]
    Held {
        /// Why it is held.
        hold: Hold,
    },
    /// Replication is not held in the way that the command would end.
    #[error("replication is {hold}, which `{command}` ends", command = hold.ended_by())]
    HeldOtherwise {
        /// Why it is held.
        hold: Hold,
    },
    /// The peer must take part and cannot.
    #[error("the other site is not reachable; check its agent and the link")]
    PeerNotReachable,
    /// The peer is not a complete, current replica.
    #[error(
        "the other site is {role} at cycle {cycle}, not a complete replica of this generation; wait until replication has caught up"
    )]
    PeerNotReplica {
        /// What it is.
        role: RoleName,
        /// Its last cycle.
        cycle: Cycle,
    },
    /// Something is wrong between the sites.
    #[error("{trouble}")]
    Trouble {
        /// What.
        trouble: Trouble,
    },
    /// A guest is attached.
    #[error("{writers} writer(s) attached: shut the guest down, or repeat with --disconnect")]
    WritersAttached {
        /// How many.
        writers: usize,
    },
    /// No such operation to cancel.
    #[error("no planned failover {op} is under way here")]
    NothingToCancel {
        /// The operation.
        op: OpId,
    },
    /// The right to serve the guest has been offered to the peer.
    #[error(
        "the right to serve the guest has been handed over already; let the other site take it, then fail back"
    )]
    HandedOver,
    /// The hand-over cut is not what the peer acknowledged last.
    #[error(
        "cycle {shipped} is not the last one that the other site acknowledged ({acknowledged}); ship again"
    )]
    NotAcknowledged {
        /// What was reported as shipped.
        shipped: Cycle,
        /// What is known to be durable at the peer.
        acknowledged: Cycle,
    },
    /// A generation that is not new.
    #[error("the new generation is not new; draw another one")]
    GenerationUsed,
    /// Bulk data or a grant for a site that keeps no replica.
    #[error("this site is {role} for the group and keeps no replica; compare both sites' status")]
    NotReplica {
        /// What it is.
        role: RoleName,
    },
    /// Bulk data or a grant from another generation.
    #[error(
        "this site is in generation {ours}, the peer's message is not; compare both sites' status"
    )]
    OtherGeneration {
        /// This site's.
        ours: Generation,
    },
    /// A cycle that does not follow the last committed one.
    #[error("the replica is complete at cycle {ours}; cycle {to} after {from} does not follow it")]
    OtherCycle {
        /// Last committed here.
        ours: Cycle,
        /// Where the transfer begins.
        from: Cycle,
        /// Where it ends.
        to: Cycle,
    },
    /// Initial replication over a replica that has recovery points.
    #[error(
        "the replica is complete at cycle {ours}; initial replication would destroy its recovery points"
    )]
    Complete {
        /// Last committed here.
        ours: Cycle,
    },
    /// A grant to an earlier life of this agent.
    #[error("the grant is for an earlier life of this agent; say hello, then repeat it")]
    StaleGrant,
    /// A grant from a source that was fenced since, as this site knows.
    #[error("the source that handed over was fenced since; release it, or fail over at this site")]
    VoidGrant,
    /// A request to an earlier life of this agent.
    #[error("the request is for an earlier life of this agent; say hello, then repeat it")]
    StaleRequest,
    /// A grant whose cut is not this replica's last cycle.
    #[error(
        "the grant's cut, cycle {base}, is not what this replica holds at cycle {ours}; end the protection and begin it again"
    )]
    OtherCut {
        /// The grant's.
        base: Cycle,
        /// This replica's.
        ours: Cycle,
    },
    /// A forced act on an open source.
    #[error("the source is open already")]
    AlreadyOpen,
    /// A forced act while the peer can be asked.
    #[error(
        "the other site is reachable; use a planned failover, or stop its agent and host first"
    )]
    PeerReachable,
    /// A forced act too soon after the peer's last words.
    #[error(
        "the other site was heard {silent_ms} ms ago and may come back alone until {needed_ms} ms have passed; wait, or state that its host is off"
    )]
    PeerHeard {
        /// For how long it has been silent.
        silent_ms: u64,
        /// For how long it has to be.
        needed_ms: u64,
    },
    /// The peer must take part, cannot, and nobody has signed for it.
    #[error(
        "the other site is not reachable; restore the link, or stop its agent and host and sign that they are stopped"
    )]
    NeedsSignature,
    /// The peer is the source, or may be.
    #[error("the other site is {role} and may serve the guest; stop its agent first")]
    PeerServes {
        /// What it is.
        role: RoleName,
    },
    /// The peer cannot be asked to step down, or to wait.
    #[error(
        "the other site is {role} and in another state of the group than this operation needs; compare both sites' status"
    )]
    PeerElsewhere {
        /// What it is.
        role: RoleName,
    },
    /// The failover is not committed yet.
    #[error("a failover is not committed here; commit it or roll it back first")]
    Uncommitted,
    /// No failover to commit or to roll back.
    #[error("no failover waits to be committed or rolled back here")]
    NoTrial,
    /// No such recovery point.
    #[error("there is no recovery point {point}, the newest is {newest}; list them with `points`")]
    NoSuchPoint {
        /// What was asked for.
        point: Cycle,
        /// The newest.
        newest: Cycle,
    },
    /// Too many forks are kept.
    #[error("{kept} forks are kept here already; drop those that nobody needs")]
    TooManyForks {
        /// How many.
        kept: usize,
    },
    /// No such fork.
    #[error("no fork of that generation is kept here; see the group's status")]
    NoSuchFork,
    /// The two histories have not parted.
    #[error("the two sites have not moved apart, there is nothing to resolve")]
    NotDiverged,
    /// The peer's state cannot be brought up by changes alone.
    #[error(
        "the other site is {role} at cycle {cycle} and cannot be brought up to this one; nothing is sent until that changes, or end the protection and begin it again"
    )]
    NotBehind {
        /// What it is.
        role: RoleName,
        /// Its last cycle.
        cycle: Cycle,
    },
    /// A release without having been fenced.
    #[error("this site is {role} for the group, not fenced; there is nothing to release")]
    NotFenced {
        /// What it is.
        role: RoleName,
    },
    /// A forced act that is not signed in full.
    #[error("a forced act needs {what}")]
    NotSigned {
        /// What is missing.
        what: &'static str,
    },
    /// The group is known here, as something else.
    #[error(
        "the group is {role} here in generation {ours}; end its protection here before it is offered again"
    )]
    Known {
        /// What this site is.
        role: RoleName,
        /// This site's generation.
        ours: Generation,
    },
    /// The replica's protection is ended at the source.
    #[error("the other site is the source and reachable; end the protection there")]
    WithdrawAtSource,
}
