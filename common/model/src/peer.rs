//! What two agents say to each other about a group, apart from bulk data.
//!
//! Every answer that may change a role carries the receiver's session [`Nonce`] and the id of the
//! request it answers (roles rule R2).

use std::fmt;

use crate::group::Forced;
use crate::ids::{
    Cycle, Digest, DiskId, DiskName, GenId, Generation, GroupId, GroupName, Nonce, OpId, UnixMillis,
};
use crate::lineage::Lineage;
use crate::point::Consistency;
use crate::retention::Retention;

/// A role without its data, as told to the peer and to operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoleName {
    /// The group is not known here.
    Unpaired,
    /// Has the right to serve the guest.
    Source,
    /// A planned failover is on its way out.
    Quiescing,
    /// The right was given to the peer; the answer is awaited.
    HandedOver,
    /// Learnt that the peer took over; serves nobody.
    Fenced,
    /// A replica that has no complete point yet.
    Seeding,
    /// Receives cycles.
    Replica,
    /// A replica that is being brought up to another lineage.
    Resyncing,
}

impl RoleName {
    /// The role in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unpaired => "unpaired",
            Self::Source => "source",
            Self::Quiescing => "quiescing",
            Self::HandedOver => "handed over",
            Self::Fenced => "fenced",
            Self::Seeding => "seeding",
            Self::Replica => "replica",
            Self::Resyncing => "resyncing",
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What one site says of its side of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerSummary {
    /// The group.
    pub group: GroupId,
    /// Its role there.
    pub role: RoleName,
    /// Its generation.
    pub generation: Generation,
    /// Its history.
    pub lineage: Lineage,
    /// Last committed cycle (replica) or last acknowledged one (source).
    pub cycle: Cycle,
    /// Digest of that cycle; of no meaning while `cycle` is none.
    pub digest: Option<Digest>,
    /// Forced acts that are on record there; both sites show them.
    pub forced: Vec<Forced>,
}

impl PeerSummary {
    /// What a site answers about a group that it does not know.
    #[must_use]
    pub fn unknown(group: GroupId) -> Self {
        let none = GenId::from_bytes([0; 16]);
        Self {
            group,
            role: RoleName::Unpaired,
            generation: Generation { epoch: 0, id: none },
            lineage: Lineage::born(none),
            cycle: Cycle::NONE,
            digest: None,
            forced: Vec::new(),
        }
    }
}

/// First words about a group on each session, and whenever the sender's role changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// Names this request.
    pub request: OpId,
    /// The sender's process life.
    pub nonce: Nonce,
    /// What the sender is to the group.
    pub summary: PeerSummary,
}

/// Answer to a [`Hello`]. The answering site has already done what the Hello asks of it
/// (fenced itself, become a replica) when it answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HelloAnswer {
    /// The request that is answered.
    pub request: OpId,
    /// The asker's process life, as it was in the request.
    pub nonce: Nonce,
    /// The answering agent's own process life; a Grant must name it.
    pub own_nonce: Nonce,
    /// What the answering site is to the group, after acting on the Hello.
    pub summary: PeerSummary,
}

/// Asks the peer to keep a replica of a new group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupOffer {
    /// The group.
    pub group: GroupId,
    /// Its name, the same at both sites.
    pub name: GroupName,
    /// The source's generation.
    pub generation: Generation,
    /// Its disks.
    pub disks: Vec<DiskOffer>,
    /// What to keep of it.
    pub retention: Retention,
    /// Whether files that are already there may be written over.
    pub use_existing: bool,
    /// Time between two recovery points in milliseconds, for the day when the receiver is the source; 0
    /// lets it choose.
    pub interval_ms: u64,
}

/// One disk of a [`GroupOffer`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskOffer {
    /// The disk.
    pub disk: DiskId,
    /// Its name within the group.
    pub name: DiskName,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Logical sector in bytes, 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Format the replica image should have.
    pub format: ImageFormat,
    /// Block size of the source's image, 0 where the format has none.
    pub format_block_bytes: u32,
    /// File at the other site, when the operator named one; otherwise the replica chooses.
    pub path: Option<String>,
}

/// Formats of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// Bytes as they are.
    Raw,
    /// VHDX that grows.
    VhdxDynamic,
    /// VHDX with all blocks allocated.
    VhdxFixed,
    /// VHD that grows.
    VhdDynamic,
    /// VHD with all bytes allocated.
    VhdFixed,
    /// qcow2.
    Qcow2,
}

/// Gives the right to serve the guest to the peer (planned failover).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Names this request; repeats carry the same.
    pub request: OpId,
    /// The receiver's process life.
    pub to_nonce: Nonce,
    /// The group.
    pub group: GroupId,
    /// The generation that is handed over from.
    pub from: Generation,
    /// The generation that is granted.
    pub granted: Generation,
    /// Last cycle of `from`: the hand-over cut.
    pub base: Cycle,
    /// Its digest.
    pub digest: Digest,
    /// Whether the new source replicates back to the old one.
    pub reverse: bool,
}

/// Asks the source to give up the right to serve the guest, for a failover with both sites reachable. It is
/// answered when the source has closed, drained and flushed, and that is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FenceRequest {
    /// Names this request.
    pub request: OpId,
    /// The asker's process life.
    pub nonce: Nonce,
    /// The receiver's process life.
    pub to_nonce: Nonce,
    /// The group.
    pub group: GroupId,
    /// The generation that both are in.
    pub generation: Generation,
    /// The generation that the asker takes over in.
    pub new: GenId,
}

/// Asks a replica whether a fenced source may serve again: it drops any failover that it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReleaseRequest {
    /// Names this request.
    pub request: OpId,
    /// The asker's process life.
    pub nonce: Nonce,
    /// The receiver's process life.
    pub to_nonce: Nonce,
    /// The group.
    pub group: GroupId,
    /// The generation that both are in.
    pub generation: Generation,
}

/// Answer to a [`FenceRequest`] or a [`ReleaseRequest`]: what was asked is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Confirmation {
    /// The request that is answered.
    pub request: OpId,
    /// The asker's process life, as it was in the request.
    pub nonce: Nonce,
}

/// Opens a transfer of bulk data for one group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransferBegin {
    /// The group.
    pub group: GroupId,
    /// The sender's generation; the receiver refuses any but its own (roles rule R3).
    pub generation: GenId,
    /// What is transferred.
    pub kind: TransferKind,
}

/// What a transfer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransferKind {
    /// Blocks of initial replication: straight into the image, no point at the end.
    Seed,
    /// One cycle: from the last committed one, to the one that is committed at the end.
    Cycle {
        /// The receiver's last committed cycle.
        from: Cycle,
        /// The cycle that is sent.
        to: Cycle,
    },
    /// A cycle that brings a receiver of another generation up to the sender's: everything that either of
    /// them has written since their histories parted.
    Resync {
        /// The receiver's generation.
        over: GenId,
        /// The receiver's last cycle, committed or acknowledged.
        from: Cycle,
        /// The cycle that is sent.
        to: Cycle,
    },
}

/// Whether bytes follow for a range of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameExtentKind {
    /// The bytes are in the frame's payload, after those of the extents before it.
    Data,
    /// All zeros; no bytes are carried.
    Zero,
}

/// A range of a disk in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameExtent {
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether bytes follow.
    pub kind: FrameExtentKind,
}

/// Ends a transfer: what was sent, so that the receiver can check it before it commits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransferCommit {
    /// Instant of the cut by the source's clock.
    pub cut_at: UnixMillis,
    /// What the point promises.
    pub consistency: Consistency,
    /// The operator's name for the point.
    pub label: Option<String>,
    /// For each disk that had frames: the transfer digest.
    pub disks: Vec<DiskCommit>,
}

/// One disk's part of a [`TransferCommit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskCommit {
    /// The disk.
    pub disk: DiskId,
    /// Digest over all its frames in order.
    pub digest: Digest,
    /// Bytes covered, zeros included.
    pub covered_bytes: u64,
}

/// The receiver's word that a transfer is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Committed {
    /// The receiver's last committed cycle now.
    pub cycle: Cycle,
    /// Digest of the group's cycle: over the disks' digests in the order of their ids.
    pub digest: Digest,
}
