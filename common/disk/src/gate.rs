//! The gate before a format's core: what requests, growth and closing of an open image have in common.
//!
//! Owns: the core while the image is open, and what is told of it afterwards. Receives the calls of an
//! [`Image`](crate::Image)'s users; lets those through to the core that it can serve, and joins the runs that it tells.
//!
//! Does not do: formats, or keeping requests apart from each other. Cores do.
//!
//! # Invariants
//! 1. A request holds the gate shared; closing and growing hold it alone.
//! 2. The gate is not held while a caller's visitor runs: it may come back to us.
//! 3. A core sees no request after a failure that poisoned it, none outside the disk, and no change if it is read-only.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::DiskError;
use crate::image::{Geometry, Identity, Run};
use crate::poison::Poison;

/// Smallest unit of a request in bytes.
const SECTOR: u64 = 512;

const CLOSED: DiskError = DiskError::Closed {
    why: "it was closed",
};

/// What a gate asks of the core behind it.
pub(crate) trait Guarded {
    /// What messages call the file.
    fn name(&self) -> &str;
    fn is_read_only(&self) -> bool;
    fn poison(&self) -> &Poison;
    fn size_bytes(&self) -> u64;
    fn geometry(&self) -> Geometry;
    fn identity(&self) -> Result<Identity, DiskError>;
    /// What the disk holds from `offset`, at most `length` bytes of it, in ascending runs. Covers at least a byte.
    fn runs(&self, offset: u64, length: u64) -> Result<Vec<Run>, DiskError>;
    /// Makes durable what was answered. Of a core that is not read-only.
    fn flush(&self) -> Result<(), DiskError>;
    /// Leaves the file as after a clean shutdown, its content durable. Of a core that is not read-only.
    fn shut(&self) -> Result<(), DiskError>;
}

/// A core that is open, or was.
pub(crate) struct Gate<C>(RwLock<State<C>>);

enum State<C> {
    Open(Box<C>),
    /// As it was left.
    Closed(Geometry, Identity),
}

impl<C: Guarded> Gate<C> {
    pub(crate) fn new(core: C) -> Self {
        Self(RwLock::new(State::Open(Box::new(core))))
    }

    fn share(&self) -> RwLockReadGuard<'_, State<C>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> RwLockWriteGuard<'_, State<C>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the open core.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&C) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let state = self.share();
        let State::Open(core) = &*state else {
            return Err(CLOSED);
        };
        core.poison().check()?;
        work(core)
    }

    /// Runs a request that changes nothing.
    pub(crate) fn read(
        &self,
        offset: u64,
        length: usize,
        work: impl FnOnce(&C) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.with(|core| {
            check_range(core, offset, to_u64(length))?;
            work(core)
        })
    }

    /// Runs a request that changes the content.
    pub(crate) fn change(
        &self,
        offset: u64,
        length: u64,
        work: impl FnOnce(&C) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.with(|core| {
            check_writable(core)?;
            check_range(core, offset, length)?;
            work(core)
        })
    }

    /// Runs a change of the disk itself. Requests wait meanwhile.
    pub(crate) fn alone(
        &self,
        work: impl FnOnce(&mut C) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut state = self.own();
        let State::Open(core) = &mut *state else {
            return Err(CLOSED);
        };
        core.poison().check()?;
        check_writable(&**core)?;
        work(core)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        match &*self.share() {
            State::Open(core) => core.geometry(),
            State::Closed(geometry, _) => geometry.clone(),
        }
    }

    /// Also answers after a close: as the file was left.
    pub(crate) fn identity(&self) -> Result<Identity, DiskError> {
        match &*self.share() {
            State::Open(core) => core.identity(),
            State::Closed(_, identity) => Ok(*identity),
        }
    }

    /// As `identity`, once the file is as a close would leave it.
    pub(crate) fn settled_identity(&self) -> Result<Identity, DiskError> {
        match &*self.own() {
            State::Open(core) => {
                shut(&**core)?;
                core.identity()
            }
            State::Closed(_, identity) => Ok(*identity),
        }
    }

    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.with(|core| {
            if core.is_read_only() {
                Ok(())
            } else {
                core.flush()
            }
        })
    }

    /// Tells the visitor the runs of a range, neighbours that are alike as one.
    pub(crate) fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.with(|core| check_range(core, offset, length))?;
        let end = offset + length;
        let mut at = offset;
        // The run that grows while what follows is more of the same.
        let mut open: Option<Run> = None;
        while at < end {
            // Invariant 2.
            for run in self.with(|core| core.runs(at, end - at))? {
                assert_eq!(run.offset, at, "runs follow each other");
                at = run.end();
                match &mut open {
                    Some(last) if last.goes_on_in(&run) => last.length += run.length,
                    Some(last) => {
                        if !visit(*last) {
                            return Ok(());
                        }
                        open = Some(run);
                    }
                    None => open = Some(run),
                }
            }
        }
        if let Some(last) = open {
            visit(last);
        }
        Ok(())
    }

    /// Asks an open core; what is closed is not quick.
    pub(crate) fn is_quick(&self, ask: impl FnOnce(&C) -> bool) -> bool {
        match &*self.share() {
            State::Open(core) => ask(core),
            State::Closed(..) => false,
        }
    }

    pub(crate) fn close(&self) -> Result<(), DiskError> {
        let mut state = self.own();
        let State::Open(core) = &*state else {
            return Err(CLOSED);
        };
        shut(&**core)?;
        // The file and its lock go with the core.
        *state = State::Closed(core.geometry(), core.identity()?);
        Ok(())
    }
}

fn shut<C: Guarded>(core: &C) -> Result<(), DiskError> {
    core.poison().check()?;
    if core.is_read_only() {
        Ok(())
    } else {
        core.shut()
    }
}

fn check_writable<C: Guarded>(core: &C) -> Result<(), DiskError> {
    if core.is_read_only() {
        return Err(DiskError::Invalid {
            what: format!("{} is read-only", core.name()),
        });
    }
    Ok(())
}

fn check_range<C: Guarded>(core: &C, offset: u64, length: u64) -> Result<(), DiskError> {
    let size = core.size_bytes();
    let aligned = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
    match offset.checked_add(length) {
        Some(end) if aligned && end <= size => Ok(()),
        _ => Err(DiskError::Invalid {
            what: format!("{length} bytes at {offset} do not fit a disk of {size} bytes"),
        }),
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).expect("usize has at most 64 bits")
}

#[cfg(test)]
mod tests;
