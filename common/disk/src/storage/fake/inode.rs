//! One fake file: what is durable, what readers see, and the changes between the two.
//!
//! # Invariants
//! 1. `current` is `durable` with all of `pending` applied in order, unless a sync failed.
//! 2. No change in `pending` covers a byte that a durable write made durable after it.

use super::content::Content;
use super::rng::Rng;

/// Every disk writes this much in one piece, or not at all.
const SECTOR_BYTES: u64 = 512;
/// And most of them this much, as the host's cache hands it to them.
const PAGE_BYTES: u64 = super::content::PAGE_BYTES;

/// A change that a power loss may undo.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// A hole: keeps the length.
    Punch {
        offset: u64,
        length: u64,
    },
    /// Zeros with space: keeps the length.
    Zero {
        offset: u64,
        length: u64,
    },
    /// Space: may extend the length.
    Allocate {
        offset: u64,
        length: u64,
    },
    SetLength(u64),
}

impl Change {
    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { offset, data } => content.write(data, *offset),
            Self::Punch { offset, length } => content.punch(*offset, *length),
            Self::Zero { offset, length } => {
                content.punch(*offset, *length);
                content.allocate(*offset, *length);
            }
            Self::Allocate { offset, length } => {
                content.allocate(*offset, *length);
                if *length > 0 {
                    content.length = content.length.max(offset + length);
                }
            }
            Self::SetLength(length) => content.set_length(*length),
        }
    }

    /// A write in pieces that reach the disk each on its own: what of it lies in each unit. Other changes are one.
    fn pieces(&self, unit: u64) -> Option<impl Iterator<Item = (u64, u64)> + use<>> {
        let Self::Write { offset, data } = self else {
            return None;
        };
        let (mut at, end) = (*offset, offset + data.len() as u64);
        Some(std::iter::from_fn(move || {
            let start = at;
            at = end.min((start / unit + 1) * unit);
            (start < end).then_some((start, at))
        }))
    }

    /// What of it lies outside `[start, end)`, in order. A length is never outside.
    fn outside(self, start: u64, end: u64) -> Vec<Self> {
        let (offset, length) = match &self {
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Punch { offset, length }
            | Self::Zero { offset, length }
            | Self::Allocate { offset, length } => (*offset, *length),
            Self::SetLength(_) => return Vec::new(),
        };
        let stop = offset.saturating_add(length);
        if stop <= start || end <= offset {
            return vec![self];
        }
        let before = (offset < start).then(|| self.part(offset, start));
        let after = (end < stop).then(|| self.part(end, stop));
        before.into_iter().chain(after).collect()
    }

    /// The part of it in `[start, end)`, which it covers.
    fn part(&self, start: u64, end: u64) -> Self {
        let length = end - start;
        match self {
            Self::Write { offset, data } => {
                let from = usize::try_from(start - offset).expect("inside a buffer");
                let to = usize::try_from(end - offset).expect("inside a buffer");
                Self::Write {
                    offset: start,
                    data: data[from..to].to_vec(),
                }
            }
            Self::Punch { .. } => Self::Punch {
                offset: start,
                length,
            },
            Self::Zero { .. } => Self::Zero {
                offset: start,
                length,
            },
            Self::Allocate { .. } => Self::Allocate {
                offset: start,
                length,
            },
            Self::SetLength(bytes) => Self::SetLength(*bytes),
        }
    }
}

/// How much was done to a file since it was created, or since the crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Calls of `read_at`.
    pub reads: u64,
    /// Calls of `write_at` and `write_at_durable`.
    pub writes: u64,
    /// Bytes that these wrote.
    pub bytes_written: u64,
    /// Calls of `sync`, and one for each `write_at_durable`.
    pub syncs: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) durable: Content,
    pub(super) current: Content,
    pending: Vec<Change>,
    /// A sync failed: final for this file until it is opened anew after a crash.
    pub(super) poisoned: bool,
    pub(super) counters: Counters,
    /// Sequence number of the last change; stands in for a clock.
    pub(super) modified: u64,
}

impl Inode {
    /// A file of which all is durable.
    pub(super) fn of(content: Content, modified: u64) -> Self {
        Self {
            durable: content.clone(),
            current: content,
            modified,
            ..Self::default()
        }
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    pub(super) fn has_unsynced(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A write through to the disk. Other unsynced changes stay unsynced, but for changes of length:
    /// the disk cannot find the data without them.
    pub(super) fn write_durable(&mut self, data: &[u8], offset: u64) {
        if data.is_empty() {
            return;
        }
        let length_at = self
            .pending
            .iter()
            .rposition(|change| matches!(change, Change::SetLength(_)));
        for change in self.pending.drain(..length_at.map_or(0, |at| at + 1)) {
            change.apply(&mut self.durable);
        }
        self.current.write(data, offset);
        // Whole sectors go to the disk, with the bytes around ours as readers see them.
        let end = offset + data.len() as u64;
        let start = offset / SECTOR_BYTES * SECTOR_BYTES;
        let stop = (end.div_ceil(SECTOR_BYTES) * SECTOR_BYTES).min(self.current.length);
        let mut sectors = vec![0; usize::try_from(stop - start).expect("fits as the caller's did")];
        self.current.read(&mut sectors, start);
        self.durable.write(&sectors, start);
        // Invariant 2.
        self.pending = self
            .pending
            .drain(..)
            .flat_map(|change| change.outside(start, stop))
            .collect();
    }

    /// The file as a power loss may leave it.
    pub(super) fn after_power_loss(&self, rng: &mut Rng, keep: Keep) -> Content {
        let mut content = self.durable.clone();
        match keep {
            Keep::Nothing => {}
            Keep::Everything => {
                for change in &self.pending {
                    change.apply(&mut content);
                }
            }
            Keep::Some { eighths, unit } => self.keep_some(&mut content, rng, eighths, unit),
            Keep::First { unit } => self.keep_first(&mut content, rng, unit),
        }
        content
    }

    /// Each unit has a history of versions since the last sync; the disk holds any one of them.
    fn keep_some(&self, content: &mut Content, rng: &mut Rng, eighths: u64, unit: u64) {
        let mut stopped = std::collections::HashSet::new();
        for change in &self.pending {
            let Some(pieces) = change.pieces(unit) else {
                if rng.below(8) < eighths {
                    change.apply(content);
                }
                continue;
            };
            for (start, end) in pieces {
                let place = start / unit;
                if !stopped.contains(&place) {
                    if rng.below(8) < eighths {
                        change.part(start, end).apply(content);
                    } else {
                        stopped.insert(place);
                    }
                }
            }
            // The length may reach the disk before the data does.
            if let Change::Write { offset, data } = change
                && rng.below(8) == 0
            {
                content.length = content.length.max(offset + data.len() as u64);
            }
        }
    }

    /// Changes reach the disk in their order, up to one of which any part does.
    fn keep_first(&self, content: &mut Content, rng: &mut Rng, unit: u64) {
        let whole = usize::try_from(rng.below(self.pending.len() as u64 + 1)).expect("an index");
        for change in &self.pending[..whole] {
            change.apply(content);
        }
        let Some(torn) = self.pending.get(whole) else {
            return;
        };
        for (start, end) in torn.pieces(unit).into_iter().flatten() {
            if rng.below(2) == 0 {
                torn.part(start, end).apply(content);
            }
        }
    }

    /// A sync failed: the disk has any part of it, and the cache has forgotten the rest.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        let keep = Keep::Some {
            eighths: rng.below(9),
            unit: [SECTOR_BYTES, PAGE_BYTES][usize::from(rng.below(2) == 1)],
        };
        self.durable = self.after_power_loss(rng, keep);
        self.current = self.durable.clone();
        self.pending.clear();
        self.poisoned = true;
    }
}

/// How much of what was not synced survives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    Nothing,
    Everything,
    /// Each unit of so many bytes, hole, length or name with this chance.
    Some {
        eighths: u64,
        unit: u64,
    },
    /// Of each file the first changes, the last of them torn into units of so many bytes.
    First {
        unit: u64,
    },
}

impl Keep {
    /// Seeds 0 and 1 are the extremes, all others something in between.
    pub(super) fn of_seed(seed: u64, rng: &mut Rng) -> Self {
        let unit = if seed.is_multiple_of(2) {
            SECTOR_BYTES
        } else {
            PAGE_BYTES
        };
        match seed {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ if rng.below(4) == 0 => Self::First { unit },
            _ => Self::Some {
                eighths: 1 + rng.below(7),
                unit,
            },
        }
    }

    pub(super) fn decide(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some { eighths, .. } => rng.below(8) < eighths,
            Self::First { .. } => rng.below(2) == 0,
        }
    }
}
