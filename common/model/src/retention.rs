//! Retention: which recovery points a group keeps, and which it lets go.
//!
//! Owns the policy, its text (`newest:24`, or `all:1h,1m:4h,15m:24h,1h:7d`), and the decision. Receives points with
//! their cuts and sizes; gives out a [`Plan`]. Does not do: merging. It never orders points by time: cycles do.
//!
//! A grid's tier `EVERY:WINDOW` keeps one point for each `EVERY`, the first of it, for points younger than
//! `WINDOW`; `all:WINDOW` keeps every point. A point leaves a tier together with all others of its cell in the next
//! one, so that a cell is thinned by one merge, and kept up to one cell longer than the window.
//!
//! # Invariants
//! 1. The newest point and points that are held are always kept.
//! 2. A point ages only as newer points come: its age is measured against the newest cut, or against the clock if that is
//!    earlier. So neither an outage of the source nor a clock that jumps ahead here lets points go.
//! 3. A point is never taken for older than one before it, points before and after a clock's step back never
//!    share a cell, and the last point before the step stays until it is past the last window. So a step back keeps more, never less. Cuts in the future keep themselves and what follows.
//! 4. What a plan keeps, a plan over only the kept points keeps as well; what a plan lets go, no later plan needs,
//!    since each tier's cells are made of whole cells of the tier before it, and their first point is the one that stays.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::ids::{Cycle, UnixMillis};

/// Most tiers of a grid.
pub const TIERS_MAX: usize = 16;
/// Longest window in milliseconds: a hundred years.
const WINDOW_MS_MAX: i64 = 100 * 365 * DAY_MS;
const DAY_MS: i64 = 24 * 3_600_000;

/// What a group's replica keeps, and the room it may take. Both sites know it, since either may be the replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Retention {
    /// Which points are kept.
    pub policy: Policy,
    /// Bytes that the journal may have; `None` for any number.
    pub cap_bytes: Option<u64>,
    /// Bytes that must stay free in the journal's file system; 0 for none.
    pub min_free_bytes: u64,
    /// Counts an operator's changes, so that both sites end up with the last one.
    pub revision: u64,
}

impl Retention {
    /// Keeps so many of the newest points, at least one, whatever room they take.
    #[must_use]
    pub fn newest(count: u32) -> Self {
        Self {
            policy: Policy::newest(count),
            cap_bytes: None,
            min_free_bytes: 0,
            revision: 0,
        }
    }

    /// Whether this one takes the place of `other`. Of two changes that were made apart from each other, both sites
    /// choose the same.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        let order = |r: &Self| {
            let policy = r.policy.to_string();
            (r.revision, policy, r.cap_bytes, r.min_free_bytes)
        };
        order(self) > order(other)
    }
}

/// Which points are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The newest ones, by their number.
    Newest(NonZeroU32),
    /// By age, fewer the older they are.
    Grid(Grid),
}

/// Tiers with growing windows and growing distances; not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grid(Vec<Tier>);

/// Which points are kept up to an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tier {
    /// One point is kept for each so many milliseconds; 1 keeps all.
    every_ms: i64,
    /// The age up to which the tier reaches, in milliseconds.
    window_ms: i64,
}

/// A text that is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not of the form.
    #[error("`{part}` is not of the form all:WINDOW, EVERY:WINDOW or newest:NUMBER")]
    Form {
        /// The part.
        part: String,
    },
    /// Not a length of time.
    #[error("`{text}` is not a length of time: give a number of s, m, h, d or w, as in 15m")]
    Time {
        /// The text.
        text: String,
    },
    /// `all` after another tier.
    #[error("`all` must come first and once")]
    AllNotFirst,
    /// A window that is not longer than the one before it.
    #[error("the window of `{part}` must be longer than the one before it")]
    Window {
        /// The tier.
        part: String,
    },
    /// A distance that is not a multiple of the one before it.
    #[error("the distance of `{part}` must be a larger multiple of the one before it")]
    Distance {
        /// The tier.
        part: String,
    },
    /// A window shorter than its distance.
    #[error("the window of `{part}` is shorter than its distance, so that it would keep nothing")]
    Empty {
        /// The tier.
        part: String,
    },
    /// Too many tiers.
    #[error("a policy has at most {TIERS_MAX} tiers")]
    TooMany,
}

impl Policy {
    /// Keeps so many of the newest points; at least one.
    #[must_use]
    pub fn newest(count: u32) -> Self {
        Self::Newest(NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN))
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if let Some(count) = text.strip_prefix("newest:") {
            let count = count.parse().map_err(|_| PolicyError::Form {
                part: text.to_owned(),
            })?;
            return Ok(Self::Newest(count));
        }
        let mut tiers: Vec<Tier> = Vec::new();
        for part in text.split(',') {
            let tier = tier(part.trim(), tiers.last())?;
            tiers.push(tier);
            if tiers.len() > TIERS_MAX {
                return Err(PolicyError::TooMany);
            }
        }
        Ok(Self::Grid(Grid(tiers)))
    }
}

fn tier(part: &str, before: Option<&Tier>) -> Result<Tier, PolicyError> {
    let owned = || part.to_owned();
    let (every, window) = part
        .split_once(':')
        .ok_or_else(|| PolicyError::Form { part: owned() })?;
    let every_ms = match every {
        "all" if before.is_some() => return Err(PolicyError::AllNotFirst),
        "all" => ALL_MS,
        text => time_ms(text)?,
    };
    let window_ms = time_ms(window)?;
    if let Some(before) = before {
        if window_ms <= before.window_ms {
            return Err(PolicyError::Window { part: owned() });
        }
        if every_ms <= before.every_ms || every_ms % before.every_ms != 0 {
            return Err(PolicyError::Distance { part: owned() });
        }
    }
    if window_ms < every_ms {
        return Err(PolicyError::Empty { part: owned() });
    }
    Ok(Tier {
        every_ms,
        window_ms,
    })
}

/// Distance of the tier that keeps all: it has no cells.
const ALL_MS: i64 = 1;

/// Units, the largest first.
const UNITS: [(char, i64); 5] = [
    ('w', 7 * DAY_MS),
    ('d', DAY_MS),
    ('h', 3_600_000),
    ('m', 60_000),
    ('s', 1000),
];

fn time_ms(text: &str) -> Result<i64, PolicyError> {
    let parse = || {
        let unit = text.chars().next_back()?;
        let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let digits = &text[..text.len() - unit.len_utf8()];
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: i64 = plain.then(|| digits.parse().ok()).flatten()?;
        let ms = number.checked_mul(*unit_ms)?;
        (1..=WINDOW_MS_MAX).contains(&ms).then_some(ms)
    };
    parse().ok_or_else(|| PolicyError::Time {
        text: text.to_owned(),
    })
}

fn write_time(f: &mut fmt::Formatter<'_>, ms: i64) -> fmt::Result {
    // A day reads as 24h only up to two days, as people say it.
    let fits = |unit_ms: i64| ms % unit_ms == 0 && (unit_ms < DAY_MS || ms > DAY_MS);
    let (name, unit_ms) = UNITS
        .into_iter()
        .filter(|(name, _)| *name != 'w')
        .find(|(_, unit_ms)| fits(*unit_ms))
        .unwrap_or(('s', 1000));
    write!(f, "{}{name}", ms / unit_ms)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grid = match self {
            Self::Newest(count) => return write!(f, "newest:{count}"),
            Self::Grid(grid) => grid,
        };
        for (i, tier) in grid.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match tier.every_ms {
                ALL_MS => f.write_str("all")?,
                every_ms => write_time(f, every_ms)?,
            }
            f.write_str(":")?;
            write_time(f, tier.window_ms)?;
        }
        Ok(())
    }
}

/// What retention needs to know of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The cycle.
    pub cycle: Cycle,
    /// Instant of the cut by the source's clock.
    pub cut_at: UnixMillis,
    /// Bytes of the change logs between the point before it and this one; 0 for the image itself.
    pub bytes: u64,
}

/// Why a point goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// More points are newer than the policy's number.
    Count,
    /// Older than the last window.
    Expired,
    /// An older point of its cell stays.
    Thinned,
    /// The journal is at its cap.
    Cap,
}

impl Reason {
    /// The reason in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "enough points are newer",
            Self::Expired => "older than the last window",
            Self::Thinned => "another point of its time stays",
            Self::Cap => "the journal is over its cap",
        }
    }
}

/// What retention would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Points that stay, oldest first.
    pub keep: Vec<Cycle>,
    /// Points that go, oldest first.
    pub drop: Vec<(Cycle, Reason)>,
    /// Bytes of change logs that are folded into the image, and so are freed for certain.
    pub frees_bytes: u64,
    /// Bytes that merging of change logs between kept points frees at most.
    pub merges_bytes: u64,
}

/// Decides which of `points` (oldest first) stay. `held` are points in use or pinned; `cap_bytes` limits the
/// journal, whose oldest points go early when it is over that.
///
/// Whether the cap is met is judged as if merging freed all that it can, so that no point goes for a few
/// bytes that the merge frees anyway; the plan after the merge knows the true sizes.
#[must_use]
pub fn plan(
    points: &[Candidate],
    policy: &Policy,
    held: &BTreeSet<Cycle>,
    now: UnixMillis,
    cap_bytes: Option<u64>,
) -> Plan {
    let mut reasons = match policy {
        Policy::Newest(count) => by_count(points, *count),
        Policy::Grid(grid) => by_age(points, grid, now),
    };
    for (point, reason) in points.iter().zip(&mut reasons) {
        if held.contains(&point.cycle) {
            *reason = None;
        }
    }
    if let Some(newest) = reasons.last_mut() {
        *newest = None;
    }
    if let Some(cap) = cap_bytes {
        drop_for_cap(points, &mut reasons, held, cap);
    }
    summed(points, &reasons)
}

fn by_count(points: &[Candidate], count: NonZeroU32) -> Vec<Option<Reason>> {
    let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
    let surplus = points.len().saturating_sub(count);
    (0..points.len())
        .map(|i| (i < surplus).then_some(Reason::Count))
        .collect()
}

fn by_age(points: &[Candidate], grid: &Grid, now: UnixMillis) -> Vec<Option<Reason>> {
    let newest = points.iter().map(|p| p.cut_at.0).max().unwrap_or(now.0);
    // Invariant 2.
    let reference = now.0.min(newest);
    let mut seen = BTreeSet::new();
    let (mut latest, mut previous, mut steps_back) = (i64::MIN, i64::MIN, 0_u64);
    let mut reasons: Vec<_> = points
        .iter()
        .map(|point| {
            let cut = point.cut_at.0;
            steps_back += u64::from(cut < previous);
            previous = cut;
            // Invariant 3.
            latest = latest.max(cut);
            let Some(tier) = grid.tier(latest, reference) else {
                return Some(Reason::Expired);
            };
            let every_ms = grid.0[tier].every_ms;
            if every_ms == ALL_MS {
                return None;
            }
            let cell = (tier, steps_back, cut.div_euclid(every_ms));
            (!seen.insert(cell)).then_some(Reason::Thinned)
        })
        .collect();
    // The point before a step back tells that there was one, and how old what follows is at most.
    for (at, pair) in points.windows(2).enumerate() {
        if pair[1].cut_at < pair[0].cut_at && reasons[at] == Some(Reason::Thinned) {
            reasons[at] = None;
        }
    }
    reasons
}

impl Grid {
    /// The tier of a cut; `None` past the last.
    fn tier(&self, cut: i64, reference: i64) -> Option<usize> {
        (0..self.0.len()).find(|i| {
            let own = self.0[*i];
            let next_every_ms = self.0.get(i + 1).unwrap_or(&own).every_ms;
            // All of a cell goes on to the next tier at once.
            let cell_start = cut.saturating_sub(cut.rem_euclid(next_every_ms));
            let cell_end = cell_start.saturating_add(next_every_ms - 1);
            reference.saturating_sub(cell_end) <= own.window_ms
        })
    }
}

/// Lets the oldest points go until the rest fits.
fn drop_for_cap(
    points: &[Candidate],
    reasons: &mut [Option<Reason>],
    held: &BTreeSet<Cycle>,
    cap_bytes: u64,
) {
    let last = points.len().saturating_sub(1);
    for at in 0..last {
        if left_bytes(points, reasons) <= cap_bytes {
            return;
        }
        if reasons[at].is_none() && !held.contains(&points[at].cycle) {
            reasons[at] = Some(Reason::Cap);
        }
    }
}

/// Bytes that stay if merging frees all that it can: the oldest kept point becomes the image.
fn left_bytes(points: &[Candidate], reasons: &[Option<Reason>]) -> u64 {
    let kept = points.iter().zip(reasons).filter(|(_, r)| r.is_none());
    kept.skip(1)
        .fold(0, |sum, (p, _)| sum.saturating_add(p.bytes))
}

fn summed(points: &[Candidate], reasons: &[Option<Reason>]) -> Plan {
    let mut plan = Plan::default();
    for (point, reason) in points.iter().zip(reasons) {
        match reason {
            None if plan.keep.is_empty() => {
                // It becomes the image, with all that is before it.
                plan.frees_bytes = plan.merges_bytes.saturating_add(point.bytes);
                plan.merges_bytes = 0;
                plan.keep.push(point.cycle);
            }
            None => plan.keep.push(point.cycle),
            Some(reason) => {
                plan.merges_bytes = plan.merges_bytes.saturating_add(point.bytes);
                plan.drop.push((point.cycle, *reason));
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests;
