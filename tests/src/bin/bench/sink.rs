//! A peer that takes everything and keeps nothing: what is left is the source's own cost.

use async_trait::async_trait;
use sitepair_engine::endpoint::{DataFrame, PeerEndpoint, PeerError, Transfer, cycle_digest};
use sitepair_model::ids::{Cycle, GroupId, OpId};
use sitepair_model::peer::{
    Committed, Grant, GroupOffer, Hello, HelloAnswer, TransferBegin, TransferCommit, TransferKind,
};
use sitepair_model::retention::Retention;

/// The peer.
pub(crate) struct Sink;

struct SinkTransfer(TransferKind);

fn not_here<T>() -> Result<T, PeerError> {
    Err(PeerError::Failed {
        why: "this peer only takes data".to_owned(),
    })
}

#[async_trait]
impl Transfer for SinkTransfer {
    async fn send(&mut self, _: DataFrame) -> Result<(), PeerError> {
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        Ok(())
    }

    async fn commit(self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        let cycle = match self.0 {
            TransferKind::Seed => Cycle::NONE,
            TransferKind::Cycle { to, .. } | TransferKind::Resync { to, .. } => to,
        };
        Ok(Committed {
            cycle,
            digest: cycle_digest(&commit.disks),
        })
    }
}

#[async_trait]
impl PeerEndpoint for Sink {
    async fn hello(&self, _: Hello) -> Result<HelloAnswer, PeerError> {
        not_here()
    }

    async fn offer(&self, _: GroupOffer) -> Result<(), PeerError> {
        not_here()
    }

    async fn settle(&self, _: GroupId, _: Retention) -> Result<Retention, PeerError> {
        not_here()
    }

    async fn withdraw(&self, _: GroupId, _: bool) -> Result<(), PeerError> {
        not_here()
    }

    async fn grant(&self, _: Grant) -> Result<OpId, PeerError> {
        not_here()
    }

    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        Ok(Box::new(SinkTransfer(begin.kind)))
    }
}
