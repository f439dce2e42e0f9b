//! A source's exports, and what it sends: opened and closed, started and stopped, as the model says.

use std::sync::Arc;
use std::time::Duration;

use sitepair_model::cause::chain;
use sitepair_model::group::{Event, Role};
use sitepair_model::ids::{Cycle, GenId, OpId};
use sitepair_model::peer::Committed;

use super::{GroupTask, NotDone};
use crate::agent::replicator::{End, Order, Replicator, Work};
use crate::agent::side::Side;
use crate::nbd::Disconnect;

impl GroupTask {
    pub(super) async fn open_exports(&mut self) {
        if self.unrecorded.is_some() || self.standstill.is_some() {
            return;
        }
        let row = self.core.row();
        if let Side::Source(side) = &mut self.side
            && side.servers.is_empty()
        {
            match side.serve(&self.context, &row) {
                Ok(()) => tracing::info!(group = %self.core.name, "guests are served here"),
                Err(why) => {
                    side.disconnect(Disconnect::Now).await;
                    tracing::error!(group = %self.core.name, "cannot serve: {why}");
                    self.problem = Some(why);
                }
            }
        }
    }

    pub(super) async fn close_exports(&mut self, disconnect: bool) {
        let how = if disconnect {
            Disconnect::Now
        } else {
            Disconnect::Graceful
        };
        if let Side::Source(side) = &mut self.side {
            side.disconnect(how).await;
            // Refused even if the flush fails; the image then refuses everything until it is opened anew.
            if let Err(e) = side.group.refuse_and_drain().await {
                tracing::error!(group = %self.core.name, "drain: {}", chain(&e));
                self.problem = Some(chain(&e));
            }
            tracing::info!(group = %self.core.name, "guests are no longer served here");
        }
    }

    /// Stops sending, if this site does. What was acknowledged at the last moment is known to the model before
    /// anything that was decided on older words can do harm.
    pub(super) async fn stop_replicator(&mut self) {
        if let Side::Source(side) = &mut self.side
            && let Some((generation, last)) = side.stop_replicator().await
        {
            self.ahead
                .push_back(Event::CycleAcknowledged { generation, last });
        }
    }

    pub(super) async fn start_replication(&mut self) {
        let state = self.core.state();
        self.stop_replicator().await;
        let unread = self
            .ahead
            .iter()
            .any(|event| matches!(event, Event::CycleAcknowledged { .. }));
        let (Side::Source(side), Some(known)) = (&mut self.side, state.replicates_to()) else {
            return;
        };
        let (cycle, digest) = (known.summary.cycle, known.summary.digest);
        if unread && cycle < side.group.progress().acknowledged {
            // Said before it committed what it has acknowledged since: it has lost nothing.
            self.ahead.push_back(Event::PeerLost);
            self.ask_soon();
            return;
        }
        match side.group.resolve(cycle, digest).await {
            Ok(resolution) => tracing::debug!(group = %self.core.name, ?resolution, "resolved"),
            Err(e) => {
                self.ask_later(&chain(&e));
                self.ahead.push_back(Event::PeerLost);
                return;
            }
        }
        if let Some(digest) = digest
            && cycle > state.record.cycle()
        {
            // The acknowledgement was lost, the cycle was not.
            let last = Committed { cycle, digest };
            let generation = state.record.generation().id;
            self.ahead
                .push_back(Event::CycleAcknowledged { generation, last });
        }
        self.replicators += 1;
        let work = Work {
            source: Arc::clone(&side.group),
            peer: Arc::clone(&self.context.peer),
            env: Arc::clone(&self.context.env),
            interval: Duration::from_millis(self.core.row().interval_ms),
            generation: state.record.generation().id,
            first_point: cycle == Cycle::NONE,
            last: None,
            number: self.replicators,
            report: self.own.clone(),
        };
        side.replicator = Some((self.replicators, Replicator::start(work)));
    }

    pub(super) fn drain(&mut self, op: OpId) {
        if let Some(job) = &self.job {
            job.step("sending the last changes");
        }
        let replicator = match &self.side {
            Side::Source(side) => side.replicator.as_ref(),
            Side::Replica(_) | Side::Shut(_) => None,
        };
        let ordered =
            replicator.is_some_and(|(_, replicator)| replicator.order(Order::Drain { op }).is_ok());
        if !ordered {
            self.cancel(op, "replication is not running");
        }
    }

    /// Gives a planned failover up before anything was handed over.
    pub(super) fn cancel(&mut self, op: OpId, why: &str) {
        tracing::warn!(group = %self.core.name, "planned failover given up: {why}");
        if let Some(job) = &self.job {
            job.fail(&format!(
                "{why}; nothing was handed over, this site is still the source and goes on as before"
            ));
        }
        self.ahead.push_back(Event::QuiesceCancelled { op });
    }

    pub(super) async fn replicator_ended(&mut self, number: u64, end: End) {
        let is_ours = |(ours, _): &(u64, Replicator)| *ours == number;
        match &self.side {
            Side::Source(side) if side.replicator.as_ref().is_some_and(is_ours) => {}
            // Another one runs, or none is wanted any more.
            Side::Source(_) | Side::Replica(_) | Side::Shut(_) => return,
        }
        self.stop_replicator().await;
        match end {
            End::Stopped => {}
            End::Drained { op, last } => {
                if let Some(job) = &self.job {
                    job.step("handing over");
                }
                let granted = GenId::from_bytes(self.context.env.random_id());
                if let Err(NotDone::Refused(why) | NotDone::Failed(why)) =
                    self.step(Event::Shipped { op, last, granted }).await
                {
                    self.cancel(op, &why);
                    self.step_logged(Event::PeerLost).await;
                }
            }
            End::Failed(why) => {
                tracing::warn!(group = %self.core.name, "replication stopped: {why}");
                if let Role::Quiescing { op, .. } = self.core.state().record.role {
                    self.cancel(op, &why);
                }
                // What the peer has is found out anew; its answer starts replication again.
                self.step_logged(Event::PeerLost).await;
                self.ask_later(&why);
            }
        }
    }
}
