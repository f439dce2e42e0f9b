//! What the other agent may ask of this one: the endpoint that the gRPC server calls, and that
//! the other agent of an in-process pair calls directly.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sitepair_model::group::GroupState;
use sitepair_model::ids::{GroupId, OpId};
use sitepair_model::peer::{Grant, GroupOffer, Hello, HelloAnswer, PeerSummary, TransferBegin};
use sitepair_model::retention::Retention;
use tokio::sync::oneshot;

use super::Context;
use super::core::Core;
use super::groups::Handle;
use super::side::{ReplicaSide, Side};
use super::task::Msg;
use crate::catalog::{DiskRow, GroupRow};
use crate::endpoint::{PeerEndpoint, PeerError, Transfer};
use crate::replica::{CommitRole, Existing, ReplicaError, ReplicaGroup, image_path};

/// An agent as its peer sees it.
pub struct PeerFace {
    context: Arc<Context>,
}

impl PeerFace {
    /// The face of an agent.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn known(&self, group: GroupId) -> Result<Handle, PeerError> {
        self.context
            .groups
            .with_id(group)
            .ok_or_else(|| PeerError::Refused {
                why: format!(
                    "group {group} is not known at the {} site",
                    self.context.site
                ),
            })
    }
}

/// Asks a group's task and waits for its answer.
async fn ask<T>(
    handle: &Handle,
    msg: impl FnOnce(oneshot::Sender<Result<T, PeerError>>) -> Msg,
) -> Result<T, PeerError> {
    let gone = || PeerError::Failed {
        why: "the group's task has ended".to_owned(),
    };
    let (reply, answer) = oneshot::channel();
    handle.inbox.send(msg(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

#[async_trait]
impl PeerEndpoint for PeerFace {
    async fn hello(&self, hello: Hello) -> Result<HelloAnswer, PeerError> {
        let group = hello.summary.group;
        match self.context.groups.with_id(group) {
            Some(handle) => ask(&handle, |reply| Msg::Hello(hello, reply)).await,
            None => Ok(HelloAnswer {
                request: hello.request,
                nonce: hello.nonce,
                own_nonce: self.context.nonce,
                summary: PeerSummary::unknown(group),
            }),
        }
    }

    async fn offer(&self, offer: GroupOffer) -> Result<(), PeerError> {
        if let Some(handle) = self.context.groups.with_id(offer.group) {
            return ask(&handle, |reply| Msg::Offered(offer.generation.id, reply)).await;
        }
        let context = Arc::clone(&self.context);
        // A task of its own: an asker that gives up must not leave a group without a task behind.
        let creating = self
            .context
            .tasks
            .spawn(async move { begin_replica(&context, offer).await });
        creating
            .await
            .unwrap_or_else(|e| Err(PeerError::Failed { why: e.to_string() }))
    }

    async fn settle(&self, group: GroupId, retention: Retention) -> Result<Retention, PeerError> {
        let handle = self.known(group)?;
        ask(&handle, |reply| Msg::Settle(retention, reply)).await
    }

    async fn withdraw(&self, group: GroupId, delete_replica: bool) -> Result<(), PeerError> {
        match self.context.groups.with_id(group) {
            Some(handle) => {
                ask(&handle, |reply| Msg::Withdrawn {
                    delete_replica,
                    reply,
                })
                .await
            }
            None => Ok(()),
        }
    }

    async fn grant(&self, grant: Grant) -> Result<OpId, PeerError> {
        let handle = self.known(grant.group)?;
        ask(&handle, |reply| Msg::Grant(grant, reply)).await
    }

    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        let handle = self.known(begin.group)?;
        ask(&handle, |reply| Msg::Begin(begin, reply)).await
    }
}

async fn begin_replica(context: &Arc<Context>, offer: GroupOffer) -> Result<(), PeerError> {
    let name = offer.name.clone();
    let _reserved = context
        .groups
        .reserve(&name)
        .ok_or_else(|| PeerError::Refused {
            why: format!(
                "the {} site has another group named {name}; choose another name, or end that one's \
                 protection there",
                context.site
            ),
        })?;
    let created = {
        let context = Arc::clone(context);
        tokio::task::spawn_blocking(move || create(&context, &offer))
            .await
            .map_err(|e| PeerError::Failed { why: e.to_string() })?
    };
    let (core, replica, first) = created.map_err(|e| {
        if e.is_refusal() {
            PeerError::Refused { why: e.sentence() }
        } else {
            PeerError::Failed { why: e.sentence() }
        }
    })?;
    let side = Side::Replica(ReplicaSide::start(replica));
    context.groups.start(context, core, side, first);
    tracing::info!(group = %name, "a replica is kept here from now on");
    Ok(())
}

type Created = (Arc<Core>, ReplicaGroup, Vec<sitepair_model::group::Effect>);

fn create(context: &Arc<Context>, offer: &GroupOffer) -> Result<Created, ReplicaError> {
    let site = context.replica_site();
    let mut disks = Vec::with_capacity(offer.disks.len());
    for d in &offer.disks {
        disks.push(DiskRow {
            disk: d.disk,
            name: d.name.clone(),
            path: image_path(&site, &offer.name, &d.name, d.format, d.path.as_deref())?,
            size_bytes: d.size_bytes,
            format: d.format,
            logical_sector_bytes: d.logical_sector_bytes,
            format_block_bytes: d.format_block_bytes,
            owned: false,
        });
    }
    disks.sort_by_key(|d| d.disk);
    let asked = Duration::from_millis(offer.interval_ms);
    let interval = match super::config::check_interval(asked) {
        Ok(()) => asked,
        // Not told, or nothing that we would do.
        Err(_) => context.replication.interval,
    };
    let row = GroupRow {
        group: offer.group,
        name: offer.name.clone(),
        interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        retention: offer.retention.clone(),
        created_at: context.env.now(),
        settings: "{}".to_owned(),
        disks,
    };
    let born = GroupState::born_replica(
        offer.group,
        offer.generation,
        context.nonce,
        context.env.boot_id(),
    );
    let record = born.next.record.encode();
    let core = Core::new(Arc::clone(&context.catalog), row.clone(), born.next);
    let existing = if offer.use_existing {
        Existing::WriteOver
    } else {
        Existing::Refuse
    };
    let role: Arc<dyn CommitRole> = Arc::clone(&core) as _;
    let replica = ReplicaGroup::create(site, &row, existing, &record, offer.generation.id, role)?;
    // Which images are ours was found out by creating them.
    let stored = context
        .catalog
        .groups()?
        .into_iter()
        .find(|g| g.group == row.group);
    if let Some(stored) = stored {
        core.set_row(stored);
    }
    Ok((core, replica, born.after))
}
