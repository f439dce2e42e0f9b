//! A group's state, and the only way to change it: decide, make durable, take as one's own.
//!
//! Owns: the [`GroupState`] of one group and its row in the catalogue. The group's task feeds it all
//! events but one: a committed cycle arrives from the thread that commits it, in the same transaction
//! as the cycle itself ([`CommitRole`]).
//!
//! # Invariants
//! 1. The state that others see has a record that is durable.
//! 2. A cycle and the role record that names it are one transaction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sitepair_model::group::{Event, GroupState, Refusal, Transition, step};
use sitepair_model::ids::{Cycle, Digest, GroupId, GroupName};
use sitepair_model::peer::Committed;

use crate::catalog::{Catalog, CatalogError, GroupRow};
use crate::replica::{CommitRole, ReplicaError};

/// One group's state.
pub(super) struct Core {
    pub(super) group: GroupId,
    pub(super) name: GroupName,
    catalog: Arc<dyn Catalog>,
    state: Mutex<GroupState>,
    row: Mutex<GroupRow>,
}

/// What became of a decision.
pub(super) enum Installed {
    /// It is durable and in force.
    Yes,
    /// A cycle was committed since it was made: decide anew.
    Outdated,
}

impl Core {
    /// Takes over a state whose record is durable.
    pub(super) fn new(catalog: Arc<dyn Catalog>, row: GroupRow, state: GroupState) -> Arc<Self> {
        Arc::new(Self {
            group: row.group,
            name: row.name.clone(),
            catalog,
            state: Mutex::new(state),
            row: Mutex::new(row),
        })
    }

    /// The state now.
    pub(super) fn state(&self) -> GroupState {
        lock(&self.state).clone()
    }

    /// The group's row.
    pub(super) fn row(&self) -> GroupRow {
        lock(&self.row).clone()
    }

    /// Takes over the row as the catalogue has it.
    pub(super) fn set_row(&self, row: GroupRow) {
        *lock(&self.row) = row;
    }

    /// What `event` would do now.
    pub(super) fn decide(&self, event: &Event) -> Result<(GroupState, Transition), Refusal> {
        let state = lock(&self.state);
        Ok((state.clone(), step(&state, event)?))
    }

    /// Whether `event` would be taken now.
    pub(super) fn allows(&self, event: &Event) -> Result<(), Refusal> {
        self.decide(event).map(|_| ())
    }

    /// Makes a decision durable and takes it as ours, if nothing has changed since `decided_on`. Blocks.
    pub(super) fn install(
        &self,
        decided_on: &GroupState,
        next: &GroupState,
    ) -> Result<Installed, CatalogError> {
        let mut state = lock(&self.state);
        if *state != *decided_on {
            return Ok(Installed::Outdated);
        }
        // Durable before anything depends on it: invariant 1.
        if next.record != state.record {
            self.catalog.put_role(self.group, &next.record.encode())?;
        }
        *state = next.clone();
        Ok(Installed::Yes)
    }
}

impl CommitRole for Core {
    fn commit(
        &self,
        cycle: Cycle,
        digest: Digest,
        record: &mut dyn FnMut(&[u8]) -> Result<(), CatalogError>,
    ) -> Result<(), ReplicaError> {
        let mut state = lock(&self.state);
        let event = Event::CycleCommitted {
            generation: state.record.generation().id,
            last: Committed { cycle, digest },
        };
        let decided = step(&state, &event).map_err(|refusal| ReplicaError::NotAllowed {
            why: refusal.to_string(),
        })?;
        record(&decided.next.record.encode())?;
        *state = decided.next;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change behind these locks is one assignment, so a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
