//! What a group's side turns into: promotion, becoming a replica, a forced generation, the clean stop, the end.

use std::sync::Arc;

use sitepair_model::cause::chain;
use sitepair_model::group::{Event, GroupState};
use sitepair_model::ids::{Cycle, GroupId};
use tokio::time::Instant;

use super::{GroupTask, Msg, REOPEN_AFTER};
use crate::agent::Context;
use crate::agent::side::{Side, SourceSide, forget_maps, wants_source};
use crate::agent::test_failover::close_all;
use crate::catalog::GroupRow;
use crate::source::Fresh;

impl GroupTask {
    pub(super) fn promote(&mut self, through: Cycle) {
        let Side::Replica(side) = &self.side else {
            // A restart opens the replica first; `look_up` comes back to this.
            return;
        };
        self.promoting = true;
        let exports = std::mem::take(&mut self.exports);
        let tests = std::mem::take(&mut self.tests);
        for test in tests.keys() {
            tracing::warn!(group = %self.core.name, %test, "the failover ends the test");
        }
        let replica = side.group.clone();
        let (context, core) = (Arc::clone(&self.context), Arc::clone(&self.core));
        let own = self.own.clone();
        self.context.tasks.spawn_blocking(move || {
            // They hold points that are about to go; ending them joins threads.
            drop(exports);
            close_all(tests);
            let row = core.row();
            let promoted = replica
                .promote(through)
                .map_err(|e| chain(&e))
                .and_then(|images| {
                    let images = row
                        .disks
                        .iter()
                        .filter_map(|d| images.iter().find(|(id, _)| *id == d.disk))
                        .map(|(_, image)| Arc::clone(image))
                        .collect();
                    SourceSide::with_images(&context, &row, &core.state(), images, Fresh::InStep)
                });
            let _ = own.send(Msg::Promoted(promoted.map(Box::new)));
        });
    }

    pub(super) async fn promoted(&mut self, result: Result<Box<SourceSide>, String>) {
        self.promoting = false;
        match result {
            Ok(source) => {
                if let Side::Replica(replica) =
                    std::mem::replace(&mut self.side, Side::Source(*source))
                {
                    drop(replica.stop().await);
                }
                self.step_logged(Event::Promoted).await;
            }
            Err(why) => {
                tracing::error!(group = %self.core.name, "the journal cannot be folded in: {why}");
                if let Side::Replica(replica) =
                    std::mem::replace(&mut self.side, Side::Shut(why.clone()))
                {
                    drop(replica.stop().await);
                }
                self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
                self.problem = Some(why);
            }
        }
    }

    /// Binds the open disks to the generation of a forced take-over, before anything is served in it.
    pub(super) async fn follow_generation(&mut self, next: &GroupState) {
        let generation = next.record.generation().id;
        let Side::Source(side) = &mut self.side else {
            return;
        };
        if side.generation == generation || !wants_source(next) {
            return;
        }
        match side
            .group
            .adopt_generation(generation, next.record.base)
            .await
        {
            Ok(()) => side.generation = generation,
            // Opened anew, the disks are bound to it, and what was not known to be replicated is sent again.
            Err(e) => self.problem = Some(chain(&e)),
        }
    }

    pub(super) async fn become_replica(&mut self) {
        self.close_tests().await;
        let side = std::mem::replace(&mut self.side, Side::Shut("handing over".to_owned()));
        match side {
            Side::Source(source) => {
                // Saved or not: the change maps go, for the peer's data is what counts now.
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close after hand-over: {why}");
                }
                if let Err(why) = forget_maps(&self.context, &self.core.row()) {
                    tracing::warn!(group = %self.core.name, "{why}");
                }
            }
            Side::Replica(replica) => drop(replica.stop().await),
            Side::Shut(_) => {}
        }
        self.reopen().await;
    }

    /// Stops cleanly; what is durable stays as it is, and every file is left as after a clean shutdown.
    pub(super) async fn stop(&mut self) {
        self.end_point_exports().await;
        self.close_tests().await;
        self.finish_promotion().await;
        self.stop_replicator().await;
        self.follow_up().await;
        match std::mem::replace(&mut self.side, Side::Shut("the agent stops".to_owned())) {
            Side::Source(source) => {
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
            }
            Side::Replica(replica) => {
                if let Err(why) = replica.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
            }
            Side::Shut(_) => {}
        }
        self.ended = true;
    }

    /// Waits for a promotion under way. Its record still says that it is due, and the next start repeats it:
    /// no guest can have written since.
    async fn finish_promotion(&mut self) {
        while self.promoting {
            match self.reports.recv().await {
                Some(Msg::Promoted(Ok(source))) => {
                    self.promoting = false;
                    let replica = std::mem::replace(&mut self.side, Side::Source(*source));
                    if let Side::Replica(replica) = replica {
                        drop(replica.stop().await);
                    }
                }
                Some(Msg::Promoted(Err(_))) | None => self.promoting = false,
                // Whatever else comes is found out anew after the next start.
                Some(_) => {}
            }
        }
    }

    /// Ends the service of recovery points. Their threads are joined off the runtime.
    async fn end_point_exports(&mut self) {
        let exports = std::mem::take(&mut self.exports);
        // A panic in there was logged.
        let _ = tokio::task::spawn_blocking(move || drop(exports)).await;
    }

    /// Ends the group here for good.
    pub(in crate::agent) async fn forget(&mut self, delete_replica: bool) -> Result<(), String> {
        if let Some(test) = self.tests.keys().next() {
            return Err(format!(
                "test {test} of group {name} runs at the {site} site; end it first: `sitepair test end {name} {test}`",
                name = self.core.name,
                site = self.context.site
            ));
        }
        self.end_point_exports().await;
        let row = self.core.row();
        let was_source = wants_source(&self.core.state());
        let side = std::mem::replace(&mut self.side, Side::Shut("not protected".to_owned()));
        let (context, group) = (Arc::clone(&self.context), self.core.group);
        let removed = match side {
            Side::Replica(replica) => {
                let replica = replica.stop().await;
                let images = if delete_replica {
                    crate::replica::RemoveImages::DeleteOwned
                } else {
                    crate::replica::RemoveImages::Keep
                };
                // What could not be removed is opened anew, as it is then.
                tokio::task::spawn_blocking(move || replica.remove(images))
                    .await
                    .map_err(|e| e.to_string())?
                    .map_err(|e| chain(&e))
            }
            Side::Source(source) => {
                if let Err(why) = source.close().await {
                    tracing::warn!(group = %self.core.name, "close: {why}");
                }
                remove_rows(&context, group, was_source.then_some(&row))
            }
            Side::Shut(_) => remove_rows(&context, group, was_source.then_some(&row)),
        };
        removed?;
        self.context.groups.remove(&self.core.name);
        self.ended = true;
        tracing::info!(group = %self.core.name, "protection ended here");
        Ok(())
    }
}

fn remove_rows(
    context: &Context,
    group: GroupId,
    maps_of: Option<&GroupRow>,
) -> Result<(), String> {
    context.catalog.remove_group(group).map_err(|e| chain(&e))?;
    maps_of.map_or(Ok(()), |row| forget_maps(context, row))
}
