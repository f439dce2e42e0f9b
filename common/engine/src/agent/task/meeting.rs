//! What the group's task says to the peer and hears from it: when to ask, what an answer leads to, how long to wait.

use sitepair_model::group::Event;
use sitepair_model::ids::OpId;
use sitepair_model::peer::{HelloAnswer, RoleName, TransferBegin};
use tokio::time::Instant;

use super::{GroupTask, NotDone, PATIENCE_MAX, PATIENCE_MIN, Reply};
use crate::agent::LinkView;
use crate::agent::side::Side;
use crate::endpoint::{PeerError, Transfer};

impl GroupTask {
    pub(super) async fn ask_if_due(&mut self) {
        if self.asking {
            return;
        }
        if self.core.state().wants_answer() && self.ask_at.is_none() {
            self.ask_at = Some(Instant::now() + self.patience);
        }
        if self.ask_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.ask_at = None;
        if self.context.link.borrow().is_up() {
            let request = OpId::from_bytes(self.context.env.random_id());
            self.step_logged(Event::AskPeer { request }).await;
        }
    }

    pub(super) async fn link_changed(&mut self, up: bool) {
        if up {
            self.patience = PATIENCE_MIN;
            self.ask_soon();
        } else {
            self.step_logged(Event::PeerLost).await;
        }
    }

    pub(super) fn ask_soon(&mut self) {
        self.ask_at = Some(Instant::now());
    }

    /// The peer could not help; asks again, less and less often.
    pub(super) fn ask_later(&mut self, why: &str) {
        self.problem = Some(why.to_owned());
        self.wait_longer();
    }

    pub(super) fn wait_longer(&mut self) {
        let at = Instant::now() + self.patience;
        // An earlier time stands: somebody had a reason for it.
        self.ask_at = Some(self.ask_at.map_or(at, |earlier| earlier.min(at)));
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }

    pub(super) async fn hello_answered(&mut self, result: Result<HelloAnswer, PeerError>) {
        self.asking = false;
        match result {
            Ok(answer) => match self.heard(answer).await {
                // What only another answer can change is asked for less and less often.
                Ok(()) if self.core.state().wants_answer() => self.wait_longer(),
                Ok(()) => {}
                // The question was withdrawn while it was under way; the next one is due soon.
                Err(NotDone::Refused(why)) => {
                    tracing::debug!(group = %self.core.name, "answer to Hello: {why}");
                    self.wait_longer();
                }
                Err(NotDone::Failed(why)) => self.ask_later(&why),
            },
            Err(PeerError::Link { .. }) => self.wait_longer(),
            Err(e) => self.ask_later(&e.to_string()),
        }
    }

    /// Takes an answer, and compares what else both sites must know.
    async fn heard(&mut self, answer: HelloAnswer) -> Result<(), NotDone> {
        let known = answer.summary.role != RoleName::Unpaired;
        self.step(Event::HelloAnswered(answer)).await?;
        if known {
            self.tell_retention();
        }
        Ok(())
    }

    pub(super) async fn grant_answered(&mut self, request: OpId, result: Result<OpId, PeerError>) {
        match result {
            Ok(_) => self.step_logged(Event::GrantAnswered { request }).await,
            // The answer to the next Hello tells whether the peer took it, and leads to a repeat.
            Err(e) => self.ask_later(&e.to_string()),
        }
    }

    pub(super) async fn withdrawn(&mut self, delete_replica: bool) -> Result<(), PeerError> {
        let answers = self.step(Event::PeerWithdrew).await?;
        if answers.forget {
            self.forget(delete_replica)
                .await
                .map_err(|why| PeerError::Failed { why })?;
        }
        Ok(())
    }

    pub(super) async fn begin(&mut self, begin: TransferBegin, reply: Reply<Box<dyn Transfer>>) {
        if let Err(not) = self.step(Event::TransferAsked(begin.clone())).await {
            let _ = reply.send(Err(not.into()));
            return;
        }
        let Side::Replica(side) = &self.side else {
            let why = self
                .problem
                .clone()
                .unwrap_or_else(|| "the replica is not open".to_owned());
            let _ = reply.send(Err(PeerError::Failed { why }));
            return;
        };
        let replica = side.group.clone();
        // Opening it may wait for the end of an older transfer; the group goes on meanwhile.
        self.context.tasks.spawn(async move {
            let _ = reply.send(replica.begin(begin).await);
        });
    }
}
