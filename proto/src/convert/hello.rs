//! Hello and Grant: what may change roles.

use bytes::Bytes;
use sitepair_model::group::{FORCED_MAX, FORCED_TEXT_MAX_BYTES, Forced, ForcedAct};
use sitepair_model::ids::{Cycle, GenId, OpId, UnixMillis};
use sitepair_model::lineage::{HISTORY_MAX, Lineage};
use sitepair_model::peer::{
    Confirmation, FenceRequest, Grant, Hello, HelloAnswer, PeerSummary, ReleaseRequest, RoleName,
};

use super::{
    Invalid, digest, gen_id, generation, group_id, limit, nonce, op_id, present, to_bytes,
    unknown_kind,
};
use crate::{Version, spoken, v1};

impl From<RoleName> for v1::PeerRole {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Unpaired => Self::Unpaired,
            RoleName::Source => Self::Source,
            RoleName::Quiescing => Self::Quiescing,
            RoleName::HandedOver => Self::HandedOver,
            RoleName::Fenced => Self::Fenced,
            RoleName::Seeding => Self::Seeding,
            RoleName::Replica => Self::Replica,
            RoleName::Resyncing => Self::Resyncing,
        }
    }
}

fn role(value: i32) -> Result<RoleName, Invalid> {
    match v1::PeerRole::try_from(value) {
        Ok(v1::PeerRole::Unpaired) => Ok(RoleName::Unpaired),
        Ok(v1::PeerRole::Source) => Ok(RoleName::Source),
        Ok(v1::PeerRole::Quiescing) => Ok(RoleName::Quiescing),
        Ok(v1::PeerRole::HandedOver) => Ok(RoleName::HandedOver),
        Ok(v1::PeerRole::Fenced) => Ok(RoleName::Fenced),
        Ok(v1::PeerRole::Seeding) => Ok(RoleName::Seeding),
        Ok(v1::PeerRole::Replica) => Ok(RoleName::Replica),
        Ok(v1::PeerRole::Resyncing) => Ok(RoleName::Resyncing),
        Ok(v1::PeerRole::Unspecified) | Err(_) => Err(unknown_kind("role", value)),
    }
}

impl From<Lineage> for v1::Lineage {
    fn from(value: Lineage) -> Self {
        let list = |ids: &[GenId]| ids.iter().map(|id| to_bytes(id.as_bytes())).collect();
        Self {
            current: to_bytes(value.current.as_bytes()),
            ancestors: list(&value.ancestors),
            superseded: list(&value.superseded),
        }
    }
}

fn history(field: &'static str, ids: &[Bytes]) -> Result<Vec<GenId>, Invalid> {
    limit(field, ids.len(), HISTORY_MAX)?;
    ids.iter().map(|id| gen_id(field, id)).collect()
}

impl TryFrom<v1::Lineage> for Lineage {
    type Error = Invalid;
    fn try_from(value: v1::Lineage) -> Result<Self, Invalid> {
        Ok(Self {
            current: gen_id("current", &value.current)?,
            ancestors: history("ancestors", &value.ancestors)?,
            superseded: history("superseded", &value.superseded)?,
        })
    }
}

impl From<PeerSummary> for v1::PeerSummary {
    fn from(value: PeerSummary) -> Self {
        Self {
            group: to_bytes(value.group.as_bytes()),
            role: v1::PeerRole::from(value.role).into(),
            generation: Some(value.generation.into()),
            lineage: Some(value.lineage.into()),
            cycle: value.cycle.0,
            digest: value
                .digest
                .map_or_else(Bytes::new, |d| to_bytes(d.as_bytes())),
            forced: value.forced.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::PeerSummary> for PeerSummary {
    type Error = Invalid;
    fn try_from(value: v1::PeerSummary) -> Result<Self, Invalid> {
        Ok(Self {
            group: group_id(&value.group)?,
            role: role(value.role)?,
            generation: generation("generation", value.generation)?,
            lineage: present("lineage", value.lineage)?.try_into()?,
            cycle: Cycle(value.cycle),
            digest: if value.digest.is_empty() {
                None
            } else {
                Some(digest(&value.digest)?)
            },
            forced: forced_acts(value.forced)?,
        })
    }
}

impl From<Forced> for v1::ForcedAct {
    fn from(value: Forced) -> Self {
        let kind = match value.act {
            ForcedAct::Opened => v1::ForcedKind::Opened,
            ForcedAct::FailedOver => v1::ForcedKind::FailedOver,
            ForcedAct::RolledBack => v1::ForcedKind::RolledBack,
        };
        Self {
            kind: kind.into(),
            generation: to_bytes(value.generation.as_bytes()),
            at_receiver: value.at_peer,
            who: value.who,
            why: value.why,
            at_ms: value.at.0,
        }
    }
}

impl TryFrom<v1::ForcedAct> for Forced {
    type Error = Invalid;
    fn try_from(value: v1::ForcedAct) -> Result<Self, Invalid> {
        limit("who", value.who.len(), FORCED_TEXT_MAX_BYTES)?;
        limit("why", value.why.len(), FORCED_TEXT_MAX_BYTES)?;
        Ok(Self {
            act: match v1::ForcedKind::try_from(value.kind) {
                Ok(v1::ForcedKind::Opened) => ForcedAct::Opened,
                Ok(v1::ForcedKind::FailedOver) => ForcedAct::FailedOver,
                Ok(v1::ForcedKind::RolledBack) => ForcedAct::RolledBack,
                Ok(v1::ForcedKind::Unspecified) | Err(_) => {
                    return Err(unknown_kind("kind", value.kind));
                }
            },
            generation: gen_id("generation", &value.generation)?,
            at_peer: value.at_receiver,
            who: value.who,
            why: value.why,
            at: UnixMillis(value.at_ms),
        })
    }
}

fn forced_acts(acts: Vec<v1::ForcedAct>) -> Result<Vec<Forced>, Invalid> {
    limit("forced", acts.len(), FORCED_MAX)?;
    acts.into_iter().map(TryInto::try_into).collect()
}

impl From<FenceRequest> for v1::FenceRequest {
    fn from(value: FenceRequest) -> Self {
        Self {
            versions: spoken(),
            request: to_bytes(value.request.as_bytes()),
            nonce: to_bytes(value.nonce.as_bytes()),
            to_nonce: to_bytes(value.to_nonce.as_bytes()),
            group: to_bytes(value.group.as_bytes()),
            generation: Some(value.generation.into()),
            new_generation: to_bytes(value.new.as_bytes()),
        }
    }
}

impl TryFrom<v1::FenceRequest> for FenceRequest {
    type Error = Invalid;
    fn try_from(value: v1::FenceRequest) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
            to_nonce: nonce("to_nonce", &value.to_nonce)?,
            group: group_id(&value.group)?,
            generation: generation("generation", value.generation)?,
            new: gen_id("new_generation", &value.new_generation)?,
        })
    }
}

impl v1::FenceReply {
    /// The answer in the version that both speak.
    #[must_use]
    pub fn of(answer: Confirmation, version: Version) -> Self {
        Self {
            version: version.number(),
            request: to_bytes(answer.request.as_bytes()),
            nonce: to_bytes(answer.nonce.as_bytes()),
        }
    }
}

impl TryFrom<v1::FenceReply> for Confirmation {
    type Error = Invalid;
    fn try_from(value: v1::FenceReply) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
        })
    }
}

impl From<ReleaseRequest> for v1::ReleaseRequest {
    fn from(value: ReleaseRequest) -> Self {
        Self {
            versions: spoken(),
            request: to_bytes(value.request.as_bytes()),
            nonce: to_bytes(value.nonce.as_bytes()),
            to_nonce: to_bytes(value.to_nonce.as_bytes()),
            group: to_bytes(value.group.as_bytes()),
            generation: Some(value.generation.into()),
        }
    }
}

impl TryFrom<v1::ReleaseRequest> for ReleaseRequest {
    type Error = Invalid;
    fn try_from(value: v1::ReleaseRequest) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
            to_nonce: nonce("to_nonce", &value.to_nonce)?,
            group: group_id(&value.group)?,
            generation: generation("generation", value.generation)?,
        })
    }
}

impl v1::ReleaseReply {
    /// The answer in the version that both speak.
    #[must_use]
    pub fn of(answer: Confirmation, version: Version) -> Self {
        Self {
            version: version.number(),
            request: to_bytes(answer.request.as_bytes()),
            nonce: to_bytes(answer.nonce.as_bytes()),
        }
    }
}

impl TryFrom<v1::ReleaseReply> for Confirmation {
    type Error = Invalid;
    fn try_from(value: v1::ReleaseReply) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
        })
    }
}

impl From<Hello> for v1::HelloRequest {
    fn from(value: Hello) -> Self {
        Self {
            versions: spoken(),
            request: to_bytes(value.request.as_bytes()),
            nonce: to_bytes(value.nonce.as_bytes()),
            summary: Some(value.summary.into()),
        }
    }
}

impl TryFrom<v1::HelloRequest> for Hello {
    type Error = Invalid;
    fn try_from(value: v1::HelloRequest) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
            summary: present("summary", value.summary)?.try_into()?,
        })
    }
}

impl v1::HelloReply {
    /// The answer in the version that both speak.
    #[must_use]
    pub fn of(answer: HelloAnswer, version: Version) -> Self {
        Self {
            version: version.number(),
            request: to_bytes(answer.request.as_bytes()),
            nonce: to_bytes(answer.nonce.as_bytes()),
            own_nonce: to_bytes(answer.own_nonce.as_bytes()),
            summary: Some(answer.summary.into()),
        }
    }
}

impl TryFrom<v1::HelloReply> for HelloAnswer {
    type Error = Invalid;
    fn try_from(value: v1::HelloReply) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            nonce: nonce("nonce", &value.nonce)?,
            own_nonce: nonce("own_nonce", &value.own_nonce)?,
            summary: present("summary", value.summary)?.try_into()?,
        })
    }
}

impl From<Grant> for v1::GrantRequest {
    fn from(value: Grant) -> Self {
        Self {
            versions: spoken(),
            request: to_bytes(value.request.as_bytes()),
            to_nonce: to_bytes(value.to_nonce.as_bytes()),
            group: to_bytes(value.group.as_bytes()),
            from: Some(value.from.into()),
            granted: Some(value.granted.into()),
            base: value.base.0,
            digest: to_bytes(value.digest.as_bytes()),
            reverse: value.reverse,
        }
    }
}

impl TryFrom<v1::GrantRequest> for Grant {
    type Error = Invalid;
    fn try_from(value: v1::GrantRequest) -> Result<Self, Invalid> {
        Ok(Self {
            request: op_id(&value.request)?,
            to_nonce: nonce("to_nonce", &value.to_nonce)?,
            group: group_id(&value.group)?,
            from: generation("from", value.from)?,
            granted: generation("granted", value.granted)?,
            base: Cycle(value.base),
            digest: digest(&value.digest)?,
            reverse: value.reverse,
        })
    }
}

impl v1::GrantReply {
    /// The answer in the version that both speak.
    #[must_use]
    pub fn of(request: OpId, version: Version) -> Self {
        Self {
            version: version.number(),
            request: to_bytes(request.as_bytes()),
        }
    }
}

impl TryFrom<v1::GrantReply> for OpId {
    type Error = Invalid;
    fn try_from(value: v1::GrantReply) -> Result<Self, Invalid> {
        op_id(&value.request)
    }
}
