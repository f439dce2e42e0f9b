//! Where source and replica meet: what one agent may ask of the other.
//!
//! Implemented by the agent itself (in-process pairs in tests) and by the gRPC client in
//! [`wire`](crate::wire); the gRPC server calls the former. Neither [`source`](crate::source) nor
//! [`replica`](crate::replica) knows which one it has.

use async_trait::async_trait;
use bytes::Bytes;
use sitepair_model::ids::{Digest, DiskId, GroupId, OpId};
use sitepair_model::peer::{
    Committed, FrameExtent, FrameExtentKind, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin,
    TransferCommit,
};
use sitepair_model::retention::Retention;

/// Largest payload of one frame in bytes, and the most that its extents may cover with data.
pub const FRAME_PAYLOAD_MAX: usize = 1 << 20;
/// Most extents in one frame.
pub const FRAME_EXTENTS_MAX: usize = 1024;

/// Why the peer did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// It answered, and said no. Asking again without a change is of no use.
    #[error("the peer refused: {why}")]
    Refused {
        /// Its reason, with what to do.
        why: String,
    },
    /// It could not be reached, or the link broke; whether it acted is unknown.
    #[error("the link to the peer failed: {why}")]
    Link {
        /// What is known about it.
        why: String,
    },
    /// It tried and failed (its disk is full, its file is damaged).
    #[error("the peer failed: {why}")]
    Failed {
        /// Its error.
        why: String,
    },
}

/// Bulk data for one disk: some extents, and the bytes of those that are not zeros.
#[derive(Debug, Clone)]
pub struct DataFrame {
    /// The disk.
    pub disk: DiskId,
    /// Ascending, without overlap, block-aligned but for the end of the disk.
    pub extents: Vec<FrameExtent>,
    /// Bytes of the data extents, in order, without gaps.
    pub payload: Bytes,
    /// BLAKE3 of `payload`.
    pub hash: Digest,
}

/// The one definition of a transfer's digest for one disk, computed at both ends.
///
/// BLAKE3 over, for each frame in order: each extent as (offset u64, length u64, kind u8; little-endian; kind 1
/// is data, 2 zeros), then the frame's payload hash.
#[derive(Debug, Clone, Default)]
pub struct TransferDigest {
    hasher: blake3::Hasher,
    covered_bytes: u64,
}

impl TransferDigest {
    /// Adds a frame.
    pub fn add(&mut self, frame: &DataFrame) {
        for extent in &frame.extents {
            self.hasher.update(&extent.offset.to_le_bytes());
            self.hasher.update(&extent.length.to_le_bytes());
            self.hasher.update(&[match extent.kind {
                FrameExtentKind::Data => 1,
                FrameExtentKind::Zero => 2,
            }]);
            self.covered_bytes += extent.length;
        }
        self.hasher.update(frame.hash.as_bytes());
    }

    /// The digest of all frames so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(*self.hasher.finalize().as_bytes())
    }

    /// Bytes covered by all frames so far, zeros included.
    #[must_use]
    pub fn covered_bytes(&self) -> u64 {
        self.covered_bytes
    }
}

/// The digest of a group's cycle: BLAKE3 over (disk id, disk digest) in ascending order of disk ids.
#[must_use]
pub fn cycle_digest(disks: &[sitepair_model::peer::DiskCommit]) -> Digest {
    let mut sorted: Vec<_> = disks.iter().collect();
    sorted.sort_by_key(|d| d.disk);
    let mut hasher = blake3::Hasher::new();
    for d in sorted {
        hasher.update(d.disk.as_bytes());
        hasher.update(d.digest.as_bytes());
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// An open transfer. Dropping it abandons what was not committed; a seed keeps what was checkpointed.
#[async_trait]
pub trait Transfer: Send {
    /// Hands over one frame; waits while the window is full.
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError>;

    /// Waits until every frame sent so far is durable at the other site. Only seeds may let go of blocks on
    /// this word; a cycle is durable when it is committed.
    async fn checkpoint(&mut self) -> Result<(), PeerError>;

    /// Ends the transfer: the receiver checks the digests, makes everything durable, commits.
    async fn commit(self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError>;
}

/// What one agent may ask of the other.
#[async_trait]
pub trait PeerEndpoint: Send + Sync {
    /// Compares notes about a group; the peer acts on what it learns before it answers.
    async fn hello(&self, hello: Hello) -> Result<HelloAnswer, PeerError>;

    /// Asks the peer to keep a replica of a new group. Repeating it is harmless.
    async fn offer(&self, offer: GroupOffer) -> Result<(), PeerError>;

    /// Tells the peer what is known here of a group's retention; it takes the newer of both, and answers that.
    async fn settle(&self, group: GroupId, retention: Retention) -> Result<Retention, PeerError>;

    /// Tells the peer that the group is no longer protected. Its files stay unless `delete_replica`.
    async fn withdraw(&self, group: GroupId, delete_replica: bool) -> Result<(), PeerError>;

    /// Hands the right to serve the guest to the peer. It answers once that is durable there.
    async fn grant(&self, grant: Grant) -> Result<OpId, PeerError>;

    /// Opens a transfer of bulk data.
    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError>;
}
