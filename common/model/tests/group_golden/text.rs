//! States and decisions in words.

use std::fmt::Write as _;

use crate::states::*;
use sitepair_model::group::{
    Access, Effect, Fork, GroupState, Hold, Pending, Promotion, Role, Transition,
};
use sitepair_model::ids::GenId;

pub(crate) fn generation(id: GenId) -> &'static str {
    match id {
        G0 => "g0",
        G1 => "g1",
        FORK => "fork",
        FORCED => "forced",
        NEW => "new",
        _ => "?",
    }
}

pub(crate) fn state_text(state: &GroupState) -> String {
    let record = &state.record;
    let mut text = record.role.name().to_string();
    match &record.role {
        Role::HandedOver { granted, base, .. } => {
            write!(text, "({} at {})", generation(granted.id), base.cycle).unwrap();
        }
        Role::Fenced { by } => write!(text, "(by {})", generation(*by)).unwrap(),
        Role::Trial(trial) => {
            let of = generation(trial.of.id);
            write!(text, "(trial above {} of {of})", trial.point).unwrap();
        }
        Role::Source | Role::Quiescing { .. } | Role::Seeding | Role::Replica => {}
    }
    if matches!(record.role, Role::Source | Role::Trial(_)) {
        let open = state.session.access == Access::Open;
        text.push_str(if open { " open" } else { " closed" });
    }
    write!(
        text,
        " {}:{}",
        generation(record.lineage.current),
        record.cycle()
    )
    .unwrap();
    match record.promoting {
        Some(Promotion::BeforeServing(through)) => write!(text, " promoting({through})").unwrap(),
        Some(Promotion::WhileServing(through)) => write!(text, " folding({through})").unwrap(),
        None => {}
    }
    if let Some(over) = record.resync {
        write!(text, " resync(over {})", generation(over)).unwrap();
    }
    for fork in &record.forks {
        write!(
            text,
            " fork({} since {})",
            generation(fork.generation),
            fork.since
        )
        .unwrap();
    }
    if !record.forced.is_empty() {
        text.push_str(" forced");
    }
    match state.session.pending {
        Some(Pending::FailOver { .. }) => text.push_str(" waiting-for-fence"),
        Some(Pending::Release { .. }) => text.push_str(" waiting-for-release"),
        None => {}
    }
    if let Some(void) = state.session.void_grants {
        write!(text, " no-grants({})", generation(void)).unwrap();
    }
    match record.hold {
        Some(Hold::Paused) => text.push_str(" paused"),
        Some(Hold::AwaitingReverse) => text.push_str(" awaiting-reverse"),
        None => {}
    }
    if state.replicates_to().is_some() {
        text.push_str(" replicating");
    }
    if let Some(trouble) = state.session.trouble {
        write!(text, " {trouble:?}").unwrap();
    }
    text
}

pub(crate) fn effects_text(effects: &[Effect]) -> String {
    effects
        .iter()
        .map(effect_text)
        .collect::<Vec<_>>()
        .join(", ")
}

pub(crate) fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::CloseExports { disconnect: true } => "CloseExports(disconnect)".to_owned(),
        Effect::CloseExports { disconnect: false } => "CloseExports".to_owned(),
        Effect::StartReplication(from) => format!("StartReplication({from:?})"),
        Effect::DrainAndShip { .. } => "DrainAndShip".to_owned(),
        Effect::SendHello(hello) => format!("SendHello({})", hello.summary.role),
        Effect::AnswerHello(answer) => format!("AnswerHello({})", answer.summary.role),
        Effect::SendGrant(grant) => {
            format!(
                "SendGrant({} at {})",
                generation(grant.granted.id),
                grant.base
            )
        }
        Effect::AnswerGrant { .. } => "AnswerGrant".to_owned(),
        Effect::Acknowledge(last) => format!("Acknowledge({})", last.cycle),
        Effect::Promote(Promotion::BeforeServing(through)) => format!("Promote({through})"),
        Effect::Promote(Promotion::WhileServing(through)) => {
            format!("Promote({through}, serving)")
        }
        Effect::SendFence(request) => format!("SendFence(by {})", generation(request.new)),
        Effect::AnswerFence(_) => "AnswerFence".to_owned(),
        Effect::SendRelease(_) => "SendRelease".to_owned(),
        Effect::AnswerRelease(_) => "AnswerRelease".to_owned(),
        Effect::OpenOverlay { point, .. } => format!("OpenOverlay({point})"),
        Effect::KeepFork(Fork { generation: g, .. }) => format!("KeepFork({})", generation(*g)),
        Effect::DropFork(Fork { generation: g, .. }) => format!("DropFork({})", generation(*g)),
        Effect::BecomeReplica { at } => format!("BecomeReplica({})", at.cycle),
        Effect::OpenExports
        | Effect::StopReplication
        | Effect::AskPeer
        | Effect::OfferGroup
        | Effect::AcceptTransfer
        | Effect::Alarm(_)
        | Effect::Forget => format!("{effect:?}"),
    }
}

pub(crate) fn transition_text(now: Option<&GroupState>, t: &Transition) -> String {
    let mut parts = Vec::new();
    if !t.before.is_empty() {
        parts.push(format!("first {}", effects_text(&t.before)));
    }
    let text = state_text(&t.next);
    let durable = if now.is_some_and(|now| now.record == t.next.record) {
        ""
    } else {
        " [durable]"
    };
    if now.map(state_text) != Some(text.clone()) || !durable.is_empty() {
        parts.push(format!("-> {text}{durable}"));
    }
    if !t.after.is_empty() {
        parts.push(format!("then {}", effects_text(&t.after)));
    }
    if parts.is_empty() {
        "no change".to_owned()
    } else {
        parts.join("; ")
    }
}
