//! A group's retention: changed here or at the other site, the same at both in the end.
//!
//! Each change has a number. Whenever the sites have compared notes, and after each change, one tells the other what it knows;
//! both take the later of the two. So a change that was made while the other site was away arrives when it is back, and a replica that
//! becomes the source knows what the other one has to keep.

use std::sync::Arc;

use sitepair_model::cause::chain;
use sitepair_model::retention::Retention;

use super::{GroupTask, Msg};
use crate::agent::LinkView;
use crate::agent::command::{CommandError, Done};
use crate::agent::operator::RetentionChange;
use crate::agent::side::Side;
use crate::endpoint::PeerError;

impl GroupTask {
    /// Carries out an operator's change.
    pub(in crate::agent) async fn change_retention(
        &mut self,
        change: RetentionChange,
    ) -> Result<Done, CommandError> {
        let now = self.core.row().retention;
        let mut wanted = change.applied_to(now.clone());
        let (name, changed) = (self.core.name.clone(), wanted != now);
        if changed {
            wanted.revision = now.revision.saturating_add(1);
            self.adopt_retention(wanted.clone())
                .await
                .map_err(CommandError::Failed)?;
            self.tell_retention();
        }
        let later = if self.context.link.borrow().is_up() {
            ""
        } else {
            "; the other site learns it when it can be reached"
        };
        let message = format!("group {name} keeps {}{later}", wanted.policy);
        Ok(Done { changed, message })
    }

    /// Takes what the peer knows if it is later than what is known here; gives what is in force.
    pub(super) async fn settle(&mut self, theirs: Retention) -> Result<Retention, String> {
        let ours = self.core.row().retention;
        if !theirs.supersedes(&ours) {
            return Ok(ours);
        }
        self.adopt_retention(theirs.clone()).await?;
        Ok(theirs)
    }

    /// Tells the peer what is known here; its answer comes as a message.
    pub(super) fn tell_retention(&self) {
        let (group, ours) = (self.core.group, self.core.row().retention);
        self.call(move |peer| async move { Msg::Settled(peer.settle(group, ours).await) });
    }

    pub(super) async fn settled(&mut self, result: Result<Retention, PeerError>) {
        let settled = match result {
            Ok(theirs) => self.settle(theirs).await.map(|_| ()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(why) = settled {
            // Told again when the sites compare notes the next time.
            tracing::warn!(group = %self.core.name, "retention is not settled with the other site: {why}");
        }
    }

    /// Durable first, then in force.
    async fn adopt_retention(&self, retention: Retention) -> Result<(), String> {
        let mut row = self.core.row();
        row.retention = retention.clone();
        let (catalog, stored) = (Arc::clone(&self.context.catalog), row.clone());
        tokio::task::spawn_blocking(move || catalog.put_settings(&stored))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| chain(&e))?;
        self.core.set_row(row);
        tracing::info!(group = %self.core.name, policy = %retention.policy, "retention");
        if let Side::Replica(side) = &self.side {
            side.group.set_retention(retention);
        }
        Ok(())
    }
}
