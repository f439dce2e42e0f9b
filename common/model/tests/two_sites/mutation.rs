//! One rule or guard each, switched off: by what the harness feeds to the state machine, or by what it
//! leaves out of what it was told to do.

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutation {
    /// R1: a forced act keeps the generation.
    ForcedKeepsGeneration,
    /// R2: an answer to an earlier life or request counts.
    OldAnswersCount,
    /// R2: a fence is confirmed by the answer to another request.
    FenceUnbound,
    /// R2: answering a fence leaves the own release pending.
    ReleaseSurvivesFence,
    /// R2: answering a release leaves the own failover pending.
    FailoverSurvivesRelease,
    /// R2: a Grant from before the fence is taken.
    OldGrantsCount,
    /// R3: a cycle is applied whatever its generation and place.
    FramesUnbound,
    /// R2: a Grant to an earlier life is taken.
    GrantNonceUnbound,
    /// R4: handed over in memory only.
    DemotedInMemory,
    /// R5: blocks leave the map when they are sent.
    ClearedOnSend,
    /// R5: blocks sent and not acknowledged do not return.
    ShippedNotFolded,
    /// R6: the fence is answered while the guest is still served.
    FencedWhileServing,
    /// R7: a source opens after a restart without asking.
    ReopensUnasked,
    /// R7: a forced act is let through too soon.
    SilenceUnchecked,
    /// R8: a forced act is let through although the peer is there.
    ReachableUnchecked,
    /// R9: a divergence is resolved by itself.
    ResolvedByItself,
    /// R10: the other points go when a failover begins.
    PointsDroppedOnTrial,
    /// R11: a test failover serves the guest.
    TestServesGuest,
    /// Row 13: an older point is opened without marking what came after it.
    OlderPointUnmarked,
    /// Row 17: only the sender's own changes are sent, and the receiver does not check its own.
    OwnMapOnly,
    /// Row 18: a resync is written over the only whole image.
    ResyncInPlace,
    /// I4: nothing is kept of what loses.
    NoFork,
    /// I7: everything is sent after a restart.
    FullCopyOnRestart,
    /// I8: what was done is forgotten.
    OperationForgotten,
    /// I9: one side does not report a divergence.
    DivergenceUnreported,
    /// I10: a pinned point goes with the others.
    PinsIgnored,
}
