//! What operators note about points: pins and labels.
//!
//! A pinned point is held, whatever retention says, until it is unpinned or a failover makes the newest point the disks.
//! Does not do: pins of views and tests, which last as long as those.

use std::collections::BTreeSet;

use sitepair_model::ids::Cycle;

use super::{Inner, ReplicaError, ReplicaGroup, State};
use crate::catalog::{CatalogError, PointRow};

impl ReplicaGroup {
    /// Holds a point. Says whether it was not held so before. Blocks.
    ///
    /// # Errors
    /// `NoSuchPoint`; the catalogue's.
    pub fn pin(&self, cycle: Cycle) -> Result<bool, ReplicaError> {
        let inner = &*self.inner;
        let _noting = super::lock(&inner.noting);
        // In memory first, so that retention cannot take it meanwhile.
        let (before, now) = inner.note(cycle, |point| point.pinned = true)?;
        if before == now {
            return Ok(false);
        }
        if let Err(error) = inner.site.catalog.note_point(inner.group, &now) {
            if error.changed_nothing() {
                inner.note(cycle, |point| point.pinned = false)?;
            }
            return Err(gone(error, cycle));
        }
        Ok(true)
    }

    /// Lets retention decide about a point again. Says whether it was pinned. Blocks.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn unpin(&self, cycle: Cycle) -> Result<bool, ReplicaError> {
        let changed = self.record(cycle, |point| point.pinned = false)?;
        self.inner.merge_due.notify_one();
        Ok(changed)
    }

    /// Names a point, or takes its name away. Says whether it had another. Blocks.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn label(&self, cycle: Cycle, label: Option<String>) -> Result<bool, ReplicaError> {
        self.record(cycle, |point| point.label.clone_from(&label))
    }

    /// Points that views, exports, tests or readers use.
    #[must_use]
    pub fn in_use(&self) -> BTreeSet<Cycle> {
        self.inner.state().pins.keys().copied().collect()
    }

    /// Durable first, then in memory.
    fn record(&self, cycle: Cycle, change: impl Fn(&mut PointRow)) -> Result<bool, ReplicaError> {
        let inner = &*self.inner;
        let _noting = super::lock(&inner.noting);
        let before = inner.state().point(cycle)?.clone();
        let mut now = before.clone();
        change(&mut now);
        if now == before {
            return Ok(false);
        }
        let noted = inner.site.catalog.note_point(inner.group, &now);
        noted.map_err(|e| gone(e, cycle))?;
        inner.note(cycle, change)?;
        Ok(true)
    }
}

/// A point that went between the look and the note.
fn gone(error: CatalogError, cycle: Cycle) -> ReplicaError {
    match error {
        CatalogError::Conflict { .. } => ReplicaError::NoSuchPoint { cycle },
        other => other.into(),
    }
}

impl Inner {
    /// Changes what is believed of a point; gives it before and after.
    fn note(
        &self,
        cycle: Cycle,
        change: impl Fn(&mut PointRow),
    ) -> Result<(PointRow, PointRow), ReplicaError> {
        let mut state = self.state();
        let point = state.point(cycle)?;
        let before = point.clone();
        change(point);
        Ok((before, point.clone()))
    }

    /// A failover ends all points. Says so of those that somebody wanted to keep.
    pub(super) fn tell_of_pins(&self) {
        for point in self.state().points.iter().filter(|p| p.pinned) {
            tracing::warn!(group = %self.group, cycle = %point.cycle,
                "the failover makes the newest point the disks: this pinned one ends");
        }
    }
}

impl State {
    fn point(&mut self, cycle: Cycle) -> Result<&mut PointRow, ReplicaError> {
        match self.points.binary_search_by_key(&cycle, |p| p.cycle) {
            Ok(at) => Ok(&mut self.points[at]),
            Err(_) => Err(ReplicaError::NoSuchPoint { cycle }),
        }
    }

    /// Points that must not go: pinned, or in use.
    pub(super) fn held(&self) -> BTreeSet<Cycle> {
        let pinned = self.points.iter().filter(|p| p.pinned).map(|p| p.cycle);
        pinned.chain(self.pins.keys().copied()).collect()
    }
}
