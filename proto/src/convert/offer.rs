//! Offer, Withdraw and Settle: groups that begin and end, and what is kept of them.

use std::collections::HashSet;

use sitepair_model::ids::GroupId;
use sitepair_model::peer::{DiskOffer, GroupOffer, ImageFormat};
use sitepair_model::retention::{Policy, Retention};

use super::{
    DISK_BYTES_MAX, DISKS_MAX, Invalid, PATH_BYTES_MAX, disk_id, generation, group_id, limit,
    to_bytes, unknown_kind,
};
use crate::{spoken, v1};

impl From<ImageFormat> for v1::ImageFormat {
    fn from(value: ImageFormat) -> Self {
        match value {
            ImageFormat::Raw => Self::Raw,
            ImageFormat::VhdxDynamic => Self::VhdxDynamic,
            ImageFormat::VhdxFixed => Self::VhdxFixed,
            ImageFormat::VhdDynamic => Self::VhdDynamic,
            ImageFormat::VhdFixed => Self::VhdFixed,
            ImageFormat::Qcow2 => Self::Qcow2,
        }
    }
}

fn image_format(value: i32) -> Result<ImageFormat, Invalid> {
    match v1::ImageFormat::try_from(value) {
        Ok(v1::ImageFormat::Raw) => Ok(ImageFormat::Raw),
        Ok(v1::ImageFormat::VhdxDynamic) => Ok(ImageFormat::VhdxDynamic),
        Ok(v1::ImageFormat::VhdxFixed) => Ok(ImageFormat::VhdxFixed),
        Ok(v1::ImageFormat::VhdDynamic) => Ok(ImageFormat::VhdDynamic),
        Ok(v1::ImageFormat::VhdFixed) => Ok(ImageFormat::VhdFixed),
        Ok(v1::ImageFormat::Qcow2) => Ok(ImageFormat::Qcow2),
        Ok(v1::ImageFormat::Unspecified) | Err(_) => Err(unknown_kind("format", value)),
    }
}

impl From<DiskOffer> for v1::DiskOffer {
    fn from(value: DiskOffer) -> Self {
        Self {
            disk: to_bytes(value.disk.as_bytes()),
            name: value.name.as_str().to_owned(),
            size_bytes: value.size_bytes,
            logical_sector_bytes: value.logical_sector_bytes,
            format: v1::ImageFormat::from(value.format).into(),
            format_block_bytes: value.format_block_bytes,
            path: value.path.unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::DiskOffer> for DiskOffer {
    type Error = Invalid;
    fn try_from(value: v1::DiskOffer) -> Result<Self, Invalid> {
        let sector = value.logical_sector_bytes;
        if !matches!(sector, 512 | 4096) {
            return Err(Invalid::Value {
                field: "logical_sector_bytes",
                found: u64::from(sector),
            });
        }
        let size = value.size_bytes;
        if size == 0 || size > DISK_BYTES_MAX || !size.is_multiple_of(512) {
            return Err(Invalid::Value {
                field: "size_bytes",
                found: size,
            });
        }
        limit("path", value.path.len(), PATH_BYTES_MAX)?;
        if value.path.contains('\0') {
            return Err(Invalid::Value {
                field: "path",
                found: 0,
            });
        }
        Ok(Self {
            disk: disk_id(&value.disk)?,
            name: value.name.parse()?,
            size_bytes: size,
            logical_sector_bytes: sector,
            format: image_format(value.format)?,
            format_block_bytes: value.format_block_bytes,
            path: (!value.path.is_empty()).then_some(value.path),
        })
    }
}

impl From<GroupOffer> for v1::OfferRequest {
    fn from(value: GroupOffer) -> Self {
        Self {
            versions: spoken(),
            group: to_bytes(value.group.as_bytes()),
            name: value.name.as_str().to_owned(),
            generation: Some(value.generation.into()),
            disks: value.disks.into_iter().map(Into::into).collect(),
            keep_points: keep_points(&value.retention.policy),
            use_existing: value.use_existing,
            interval_ms: value.interval_ms,
            retention: Some(value.retention.into()),
        }
    }
}

/// For a receiver that knows nothing else.
fn keep_points(policy: &Policy) -> u32 {
    match policy {
        Policy::Newest(count) => count.get(),
        Policy::Grid(_) => KEEP_FOR_GRID,
    }
}

/// Points that a receiver keeps which knows no grids.
const KEEP_FOR_GRID: u32 = 1000;
/// Longest text of a policy in bytes.
const POLICY_BYTES_MAX: usize = 1024;

impl From<Retention> for v1::Retention {
    fn from(value: Retention) -> Self {
        Self {
            policy: value.policy.to_string(),
            cap_bytes: value.cap_bytes,
            min_free_bytes: value.min_free_bytes,
            revision: value.revision,
        }
    }
}

impl TryFrom<v1::Retention> for Retention {
    type Error = Invalid;
    fn try_from(value: v1::Retention) -> Result<Self, Invalid> {
        limit("policy", value.policy.len(), POLICY_BYTES_MAX)?;
        Ok(Self {
            policy: value.policy.parse()?,
            cap_bytes: value.cap_bytes,
            min_free_bytes: value.min_free_bytes,
            revision: value.revision,
        })
    }
}

impl v1::SettleRequest {
    /// What is known of the retention of `group`.
    #[must_use]
    pub fn of(group: GroupId, retention: Retention) -> Self {
        Self {
            versions: spoken(),
            group: to_bytes(group.as_bytes()),
            retention: Some(retention.into()),
        }
    }

    /// The group, and what the sender knows.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn settled(self) -> Result<(GroupId, Retention), Invalid> {
        Ok((group_id(&self.group)?, retention(self.retention)?))
    }
}

impl v1::SettleReply {
    /// What is in force.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn settled(self) -> Result<Retention, Invalid> {
        retention(self.retention)
    }
}

fn retention(value: Option<v1::Retention>) -> Result<Retention, Invalid> {
    value
        .ok_or(Invalid::Missing { field: "retention" })?
        .try_into()
}

impl TryFrom<v1::OfferRequest> for GroupOffer {
    type Error = Invalid;
    fn try_from(value: v1::OfferRequest) -> Result<Self, Invalid> {
        if value.disks.is_empty() {
            return Err(Invalid::Missing { field: "disks" });
        }
        limit("disks", value.disks.len(), DISKS_MAX)?;
        let disks = value
            .disks
            .into_iter()
            .map(DiskOffer::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        let ids: HashSet<_> = disks.iter().map(|d| d.disk).collect();
        let names: HashSet<_> = disks.iter().map(|d| &d.name).collect();
        if ids.len() != disks.len() || names.len() != disks.len() {
            return Err(Invalid::Repeated { field: "disks" });
        }
        Ok(Self {
            group: group_id(&value.group)?,
            name: value.name.parse()?,
            generation: generation("generation", value.generation)?,
            disks,
            retention: match value.retention {
                Some(retention) => retention.try_into()?,
                None => Retention::newest(value.keep_points),
            },
            use_existing: value.use_existing,
            interval_ms: value.interval_ms,
        })
    }
}

impl v1::WithdrawRequest {
    /// The request to let go of `group`.
    #[must_use]
    pub fn of(group: GroupId, delete_replica: bool) -> Self {
        Self {
            versions: spoken(),
            group: to_bytes(group.as_bytes()),
            delete_replica,
        }
    }

    /// The group that it names.
    ///
    /// # Errors
    /// [`Invalid::Size`].
    pub fn group_id(&self) -> Result<GroupId, Invalid> {
        group_id(&self.group)
    }
}
