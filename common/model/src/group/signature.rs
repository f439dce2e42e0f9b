//! What an operator must have signed before anything is forced (rules R7 and R8).
//!
//! A forced act needs all of: a peer that cannot be reached now, the group's name typed right, a name
//! and a reason, and a statement about the peer that this agent has heard nothing against. Does not
//! check whether the statement is true: only a false one can make two sites serve the guest.

use super::event::{PeerStatement, SILENCE_MARGIN_MS, Signature};
use super::record::{FORCED_TEXT_MAX_BYTES, Forced, ForcedAct};
use super::{Refusal, Transition};
use crate::ids::GenId;

/// Lets a signed act through, or says what is missing.
pub(super) fn check(t: &Transition, signature: &Signature) -> Result<(), Refusal> {
    if t.next.session.peer.is_some() {
        return Err(Refusal::PeerReachable);
    }
    let missing = [
        (
            signature.who.trim().is_empty(),
            "the name of the operator who signs",
        ),
        (
            signature.why.trim().is_empty(),
            "a reason, which both the record and the log keep",
        ),
        (
            signature.who.len() > FORCED_TEXT_MAX_BYTES,
            "a shorter name",
        ),
        (
            signature.why.len() > FORCED_TEXT_MAX_BYTES,
            "a shorter reason",
        ),
        (
            !signature.typed_name_matches,
            "the group's name, typed exactly",
        ),
        (
            signature.peer == PeerStatement::None,
            "the statement that the other site's agent or host is stopped; if it is not, both sites will serve the guest",
        ),
    ];
    if let Some((_, what)) = missing.iter().find(|(is_missing, _)| *is_missing) {
        return Err(Refusal::NotSigned { what });
    }
    silent_long_enough(signature.peer)
}

/// Rule R7: an agent that died may come back within its grace and serve alone.
fn silent_long_enough(peer: PeerStatement) -> Result<(), Refusal> {
    let PeerStatement::AgentStopped {
        silent_for_ms,
        alive_for_ms,
        grace_ms,
    } = peer
    else {
        return Ok(());
    };
    let silent_ms = silent_for_ms.map_or(alive_for_ms, |silent| silent.min(alive_for_ms));
    let needed_ms = grace_ms.saturating_add(SILENCE_MARGIN_MS);
    if grace_ms > 0 && silent_ms < needed_ms {
        return Err(Refusal::PeerHeard {
            silent_ms,
            needed_ms,
        });
    }
    Ok(())
}

/// Puts a forced act on record, which both sites show from then on.
pub(super) fn record(t: &mut Transition, act: ForcedAct, generation: GenId, signature: &Signature) {
    t.next.record.note_forced(Forced {
        act,
        generation,
        at_peer: false,
        who: signature.who.clone(),
        why: signature.why.clone(),
        at: signature.at,
    });
}
