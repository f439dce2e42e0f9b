//! Transfers: everything but the frames, whose limits the engine's endpoint sets.

use std::collections::HashSet;

use sitepair_model::ids::{Cycle, UnixMillis};
use sitepair_model::peer::{
    Committed, DiskCommit, FrameExtent, FrameExtentKind, TransferBegin, TransferCommit,
    TransferKind,
};
use sitepair_model::point::Consistency;

use super::{
    DISKS_MAX, Invalid, LABEL_BYTES_MAX, digest, disk_id, gen_id, group_id, limit, present,
    to_bytes, unknown_kind,
};
use crate::v1::transfer_request::Kind;
use crate::{spoken, v1};

/// A message that follows a transfer's begin.
#[derive(Debug, Clone)]
pub enum TransferStep {
    /// Bulk data, still to be checked.
    Frame(v1::DataFrame),
    /// Everything so far is to be made durable.
    Checkpoint {
        /// Counts the checkpoints, from 1.
        number: u64,
    },
    /// The end.
    Commit(TransferCommit),
}

impl TryFrom<v1::TransferRequest> for TransferStep {
    type Error = Invalid;
    fn try_from(value: v1::TransferRequest) -> Result<Self, Invalid> {
        match present("kind", value.kind)? {
            // A second begin is no step.
            Kind::Begin(_) => Err(Invalid::Repeated { field: "begin" }),
            Kind::Frame(frame) => Ok(Self::Frame(frame)),
            Kind::Checkpoint(checkpoint) => Ok(Self::Checkpoint {
                number: checkpoint.number,
            }),
            Kind::Commit(commit) => commit.try_into().map(Self::Commit),
        }
    }
}

impl From<TransferBegin> for v1::TransferBegin {
    fn from(value: TransferBegin) -> Self {
        use v1::transfer_begin::Kind;
        Self {
            versions: spoken(),
            group: to_bytes(value.group.as_bytes()),
            generation: to_bytes(value.generation.as_bytes()),
            kind: Some(match value.kind {
                TransferKind::Seed => Kind::Seed(v1::SeedTransfer {}),
                TransferKind::Cycle { from, to } => Kind::Cycle(v1::CycleTransfer {
                    from: from.0,
                    to: to.0,
                }),
                TransferKind::Resync { over, from, to } => Kind::Resync(v1::ResyncTransfer {
                    over: to_bytes(over.as_bytes()),
                    from: from.0,
                    to: to.0,
                }),
            }),
        }
    }
}

impl TryFrom<v1::TransferBegin> for TransferBegin {
    type Error = Invalid;
    fn try_from(value: v1::TransferBegin) -> Result<Self, Invalid> {
        use v1::transfer_begin::Kind;
        let kind = match present("kind", value.kind)? {
            Kind::Seed(_) => TransferKind::Seed,
            Kind::Cycle(cycle) if cycle.to > cycle.from => TransferKind::Cycle {
                from: Cycle(cycle.from),
                to: Cycle(cycle.to),
            },
            Kind::Resync(cycle) if cycle.to > cycle.from => TransferKind::Resync {
                over: gen_id("over", &cycle.over)?,
                from: Cycle(cycle.from),
                to: Cycle(cycle.to),
            },
            Kind::Cycle(v1::CycleTransfer { to, .. })
            | Kind::Resync(v1::ResyncTransfer { to, .. }) => {
                return Err(Invalid::Value {
                    field: "to",
                    found: to,
                });
            }
        };
        Ok(Self {
            group: group_id(&value.group)?,
            generation: gen_id("generation", &value.generation)?,
            kind,
        })
    }
}

impl From<FrameExtent> for v1::FrameExtent {
    fn from(value: FrameExtent) -> Self {
        let zero = match value.kind {
            FrameExtentKind::Data => false,
            FrameExtentKind::Zero => true,
        };
        Self {
            offset: value.offset,
            length: value.length,
            zero,
        }
    }
}

impl From<v1::FrameExtent> for FrameExtent {
    fn from(value: v1::FrameExtent) -> Self {
        let kind = if value.zero {
            FrameExtentKind::Zero
        } else {
            FrameExtentKind::Data
        };
        Self {
            offset: value.offset,
            length: value.length,
            kind,
        }
    }
}

fn consistency(value: i32) -> Result<Consistency, Invalid> {
    match v1::PointConsistency::try_from(value) {
        Ok(v1::PointConsistency::Crash) => Ok(Consistency::Crash),
        Ok(v1::PointConsistency::Application) => Ok(Consistency::Application),
        Ok(v1::PointConsistency::Unspecified) | Err(_) => Err(unknown_kind("consistency", value)),
    }
}

impl From<TransferCommit> for v1::TransferCommit {
    fn from(value: TransferCommit) -> Self {
        let consistency = match value.consistency {
            Consistency::Crash => v1::PointConsistency::Crash,
            Consistency::Application => v1::PointConsistency::Application,
        };
        Self {
            cut_at_ms: value.cut_at.0,
            consistency: consistency.into(),
            label: value.label.unwrap_or_default(),
            disks: value
                .disks
                .into_iter()
                .map(|disk| v1::DiskCommit {
                    disk: to_bytes(disk.disk.as_bytes()),
                    digest: to_bytes(disk.digest.as_bytes()),
                    covered_bytes: disk.covered_bytes,
                })
                .collect(),
        }
    }
}

impl TryFrom<v1::TransferCommit> for TransferCommit {
    type Error = Invalid;
    fn try_from(value: v1::TransferCommit) -> Result<Self, Invalid> {
        limit("label", value.label.len(), LABEL_BYTES_MAX)?;
        limit("disks", value.disks.len(), DISKS_MAX)?;
        let disks = value
            .disks
            .iter()
            .map(|disk| {
                Ok(DiskCommit {
                    disk: disk_id(&disk.disk)?,
                    digest: digest(&disk.digest)?,
                    covered_bytes: disk.covered_bytes,
                })
            })
            .collect::<Result<Vec<_>, Invalid>>()?;
        if disks.iter().map(|d| d.disk).collect::<HashSet<_>>().len() != disks.len() {
            return Err(Invalid::Repeated { field: "disks" });
        }
        Ok(Self {
            cut_at: UnixMillis(value.cut_at_ms),
            consistency: consistency(value.consistency)?,
            label: (!value.label.is_empty()).then_some(value.label),
            disks,
        })
    }
}

impl From<Committed> for v1::TransferCommitted {
    fn from(value: Committed) -> Self {
        Self {
            cycle: value.cycle.0,
            digest: to_bytes(value.digest.as_bytes()),
        }
    }
}

impl TryFrom<v1::TransferCommitted> for Committed {
    type Error = Invalid;
    fn try_from(value: v1::TransferCommitted) -> Result<Self, Invalid> {
        Ok(Self {
            cycle: Cycle(value.cycle),
            digest: digest(&value.digest)?,
        })
    }
}
