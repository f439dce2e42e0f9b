//! Recovery points, and which of them retention lets go.

use crate::ids::{Cycle, GenId, UnixMillis};

/// What a recovery point promises about the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// As after pulling the plug: every disk at the same instant, writes in order.
    Crash,
    /// The guest was frozen at the cut.
    Application,
}

/// The state of a group at one committed cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// The cycle whose cut this is; names the point.
    pub cycle: Cycle,
    /// Generation that wrote the cycle.
    pub generation: GenId,
    /// Instant of the cut by the source's clock.
    pub cut_at: UnixMillis,
    /// What it promises.
    pub consistency: Consistency,
    /// The operator's name for it.
    pub label: Option<String>,
    /// Bytes of change logs that this point adds; 0 for the point that is the image itself.
    pub journal_bytes: u64,
}

/// Which cycles to merge into the image so that at most `keep` points stay: all points up to and
/// including the answer become one, the image. `None` when nothing is to be merged.
///
/// `points` are ascending; `in_use` are cycles that a view or a pin holds, which are never merged
/// past: the image may reach an in-use point, never go beyond it.
#[must_use]
pub fn merge_through(points: &[Cycle], keep: usize, in_use: &[Cycle]) -> Option<Cycle> {
    let keep = keep.max(1);
    let surplus = points.len().checked_sub(keep)?;
    let wanted = *points.get(surplus)?;
    let oldest = *points.first()?;
    let limit = in_use.iter().copied().filter(|c| *c >= oldest).min();
    let target = limit.map_or(wanted, |l| wanted.min(l));
    (target > oldest).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles(list: &[u64]) -> Vec<Cycle> {
        list.iter().copied().map(Cycle).collect()
    }

    #[test]
    fn the_newest_points_are_kept() {
        assert_eq!(
            merge_through(&cycles(&[1, 2, 3, 4]), 2, &[]),
            Some(Cycle(3))
        );
        assert_eq!(merge_through(&cycles(&[1, 2]), 2, &[]), None);
        assert_eq!(merge_through(&cycles(&[1, 2]), 0, &[]), Some(Cycle(2)));
        assert_eq!(merge_through(&[], 2, &[]), None);
    }

    #[test]
    fn a_point_in_use_is_never_merged_away() {
        let points = cycles(&[1, 2, 3, 4, 5]);
        assert_eq!(merge_through(&points, 1, &cycles(&[3])), Some(Cycle(3)));
        assert_eq!(merge_through(&points, 1, &cycles(&[1])), None);
        assert_eq!(merge_through(&points, 3, &cycles(&[5])), Some(Cycle(3)));
    }
}
