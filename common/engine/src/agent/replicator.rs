//! Sends a group's changes while the peer's replica can take them: initial replication first, then a
//! cycle at each interval and at each order.
//!
//! Receives orders (a cut now, the hand-over cut); publishes acknowledged cycles and its own end to the
//! group's task. Ends at the first failure: what to do about it is the task's to decide.
//!
//! Does not do: roles, reconnecting, or anything with exports.

use std::sync::Arc;
use std::time::Duration;

use sitepair_model::cause::chain;
use sitepair_model::ids::{Cycle, GenId, OpId};
use sitepair_model::peer::Committed;
use sitepair_model::point::Consistency;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::task::Msg;
use crate::endpoint::PeerEndpoint;
use crate::env::Env;
use crate::source::{CutInfo, ShipError, SourceError, SourceGroup};

/// What the group's task may ask for.
pub(super) enum Order {
    /// A recovery point now.
    Cut {
        label: Option<String>,
        reply: oneshot::Sender<Result<Cycle, String>>,
    },
    /// The exports are closed and drained: the hand-over cut, then end.
    Drain { op: OpId },
}

/// A running replicator; stopped and joined by [`stop`](Self::stop).
pub(super) struct Replicator {
    stop: CancellationToken,
    orders: mpsc::Sender<Order>,
    task: tokio::task::JoinHandle<Option<(GenId, Committed)>>,
}

/// Why a replicator ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// The hand-over cut is acknowledged.
    Drained { op: OpId, last: Committed },
    /// It could not go on.
    Failed(String),
}

/// What a replicator works with.
pub(super) struct Work {
    pub(super) source: Arc<SourceGroup>,
    pub(super) peer: Arc<dyn PeerEndpoint>,
    pub(super) env: Arc<dyn Env>,
    pub(super) interval: Duration,
    pub(super) generation: GenId,
    /// Whether the replica has no point yet, so that even an empty cycle is worth sending.
    pub(super) first_point: bool,
    /// The last cycle that was acknowledged to it; none when it starts.
    pub(super) last: Option<Committed>,
    /// Tells its reports from those of another.
    pub(super) number: u64,
    pub(super) report: mpsc::UnboundedSender<Msg>,
}

/// Orders that wait while a cycle is on its way.
const ORDERS_MAX: usize = 16;

impl Replicator {
    /// Starts one.
    pub(super) fn start(work: Work) -> Self {
        let stop = CancellationToken::new();
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let (report, number, generation) = (work.report.clone(), work.number, work.generation);
            let (end, last) = work.run(receiver, &token).await;
            // The task is gone only when the agent stops; then nobody needs to know.
            let _ = report.send(Msg::ReplicatorEnded(number, end));
            last.map(|last| (generation, last))
        });
        Self { stop, orders, task }
    }

    /// Passes an order on; gives it back when too many wait or the replicator has ended.
    pub(super) fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(|e| match e {
            mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order) => {
                order
            }
        })
    }

    /// Ends it and waits for its end. Its last reports may still be on their way; gives the last cycle that was
    /// acknowledged to it, and the generation.
    pub(super) async fn stop(self) -> Option<(GenId, Committed)> {
        self.stop.cancel();
        // A panic in it was logged; the group's task goes on and asks the peer anew.
        self.task.await.ok().flatten()
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Work {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        stop: &CancellationToken,
    ) -> (End, Option<Committed>) {
        let ended = self.replicate(&mut orders, stop).await;
        (ended.unwrap_or_else(End::Failed), self.last)
    }

    async fn replicate(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        stop: &CancellationToken,
    ) -> Result<End, String> {
        if self.source.needs_seed() {
            match self.source.seed(&*self.peer, stop).await {
                Ok(()) => tracing::info!("initial replication is complete"),
                Err(ShipError::Stopped) => return Ok(End::Stopped),
                Err(e) => return Err(chain(&e)),
            }
        }
        let mut due = Instant::now();
        loop {
            let order = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(End::Stopped),
                order = orders.recv() => match order {
                    Some(order) => Some(order),
                    None => return Ok(End::Stopped),
                },
                () = tokio::time::sleep_until(due) => None,
            };
            due = Instant::now() + self.interval;
            let wanted = self.first_point || order.is_some();
            if !wanted && self.source.progress().open_dirty_bytes == 0 {
                continue;
            }
            let label = match &order {
                Some(Order::Cut { label, .. }) => label.clone(),
                _ => None,
            };
            let sent = self.cycle(label, stop).await;
            if let Some(end) = conclude(order, sent)? {
                return Ok(end);
            }
        }
    }

    /// Cuts and ships one cycle; `None` when it was given up and the next cut will carry its blocks.
    async fn cycle(
        &mut self,
        label: Option<String>,
        stop: &CancellationToken,
    ) -> Result<Option<Committed>, End> {
        let failed = |e: &(dyn std::error::Error + 'static)| End::Failed(chain(e));
        let info = CutInfo {
            at: self.env.now(),
            consistency: Consistency::Crash,
            label,
        };
        let sealed = self
            .source
            .cut(info)
            .await
            .map_err(|e: SourceError| failed(&e))?;
        match self.source.ship(&*self.peer, &sealed, stop).await {
            Ok(committed) => {
                self.first_point = false;
                self.last = Some(committed);
                let acknowledged = Msg::Acknowledged {
                    generation: self.generation,
                    last: committed,
                };
                self.report.send(acknowledged).map_err(|_| End::Stopped)?;
                Ok(Some(committed))
            }
            Err(ShipError::Stopped) => Err(End::Stopped),
            Err(ShipError::Abandoned) => {
                tracing::warn!("a cycle was given up: its changes travel with the next one");
                Ok(None)
            }
            Err(e) => Err(failed(&e)),
        }
    }
}

/// Answers an order; `Some` ends the replicator.
fn conclude(
    order: Option<Order>,
    sent: Result<Option<Committed>, End>,
) -> Result<Option<End>, String> {
    match (order, sent) {
        (None, Ok(_)) => Ok(None),
        (Some(Order::Cut { reply, .. }), Ok(sent)) => {
            let answer = sent.map(|c| c.cycle).ok_or_else(|| {
                "the guest wrote faster than the link takes; the cycle was given up, its changes \
                 travel with the next one"
                    .to_owned()
            });
            // Whoever asked may have gone.
            let _ = reply.send(answer);
            Ok(None)
        }
        (Some(Order::Drain { op }), Ok(Some(last))) => Ok(Some(End::Drained { op, last })),
        (Some(Order::Drain { .. }), Ok(None)) => Err("the hand-over cut was given up".to_owned()),
        (order, Err(End::Failed(why))) => {
            if let Some(Order::Cut { reply, .. }) = order {
                let _ = reply.send(Err(why.clone()));
            }
            Err(why)
        }
        (_, Err(end)) => Ok(Some(end)),
    }
}
