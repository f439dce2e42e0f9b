//! Who is ahead: generations and their ancestors.
//!
//! Histories are compared by random generation ids, never by a clock and never by a number alone.

use crate::ids::GenId;

/// Longest list of ancestors or superseded generations that is kept, and accepted from a peer.
pub const HISTORY_MAX: usize = 256;

/// A site's history of one group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lineage {
    /// The generation the site is in.
    pub current: GenId,
    /// Those it came from, newest first.
    pub ancestors: Vec<GenId>,
    /// Those that lost against it, by an operator's decision.
    pub superseded: Vec<GenId>,
}

/// How one lineage stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// Same generation.
    Same,
    /// The other site has moved on from ours.
    Behind,
    /// We have moved on from the other's.
    Ahead,
    /// Both moved on from a common ancestor.
    Diverged,
    /// No common ancestor: not the same group's history.
    Unrelated,
}

impl Lineage {
    /// The history of a group that begins.
    #[must_use]
    pub fn born(current: GenId) -> Self {
        Self {
            current,
            ancestors: Vec::new(),
            superseded: Vec::new(),
        }
    }

    /// This history, moved on to `next`.
    #[must_use]
    pub fn advanced(&self, next: GenId) -> Self {
        let mut ancestors = Vec::with_capacity(self.ancestors.len() + 1);
        ancestors.push(self.current);
        ancestors.extend_from_slice(&self.ancestors);
        ancestors.truncate(HISTORY_MAX);
        Self {
            current: next,
            ancestors,
            superseded: self.superseded.clone(),
        }
    }

    /// This history back at `generation`, one of its ancestors; what came after it is left behind for
    /// good. `None` when it is no ancestor.
    #[must_use]
    pub fn rolled_back(&self, generation: GenId) -> Option<Self> {
        let at = self.ancestors.iter().position(|a| *a == generation)?;
        let mut back = Self {
            current: generation,
            ancestors: self.ancestors[at + 1..].to_vec(),
            superseded: self.superseded.clone(),
        };
        back.leave_behind(self.ancestors[..at].iter().rev().copied());
        back.leave_behind([self.current]);
        Some(back)
    }

    /// This history, moved on to `next`, with everything of `loser` left behind that is not its own.
    #[must_use]
    pub fn kept_over(&self, loser: &Self, next: GenId) -> Self {
        let mut kept = self.advanced(next);
        let lost = loser.superseded.iter().rev();
        let lost = lost
            .chain(loser.ancestors.iter().rev())
            .chain([&loser.current]);
        let lost: Vec<_> = lost.copied().filter(|id| !kept.holds(*id)).collect();
        kept.leave_behind(lost);
        kept
    }

    /// Newest first, and the oldest give way.
    fn leave_behind(&mut self, lost: impl IntoIterator<Item = GenId>) {
        for id in lost {
            self.superseded.insert(0, id);
        }
        self.superseded.truncate(HISTORY_MAX);
    }

    /// Whether `generation` occurs in this history at all.
    #[must_use]
    pub fn holds(&self, generation: GenId) -> bool {
        self.current == generation || self.left_behind(generation)
    }

    /// Whether `generation` is one that this site has left behind.
    #[must_use]
    pub fn left_behind(&self, generation: GenId) -> bool {
        self.ancestors.contains(&generation) || self.superseded.contains(&generation)
    }

    /// How this lineage stands to `other`.
    #[must_use]
    pub fn relation_to(&self, other: &Self) -> Relation {
        if self.current == other.current {
            return Relation::Same;
        }
        match (
            other.left_behind(self.current),
            self.left_behind(other.current),
        ) {
            (true, false) => Relation::Behind,
            (false, true) => Relation::Ahead,
            // Each claims to have left the other behind: two decisions that contradict.
            (true, true) => Relation::Diverged,
            (false, false) => {
                if self.ancestors.iter().any(|a| other.ancestors.contains(a)) {
                    Relation::Diverged
                } else {
                    Relation::Unrelated
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> GenId {
        GenId::from_bytes([n; 16])
    }

    #[test]
    fn histories_are_compared_by_their_ids() {
        let born = Lineage::born(id(1));
        let left = born.advanced(id(2));
        let right = born.advanced(id(3));
        assert_eq!(born.relation_to(&born), Relation::Same);
        assert_eq!(born.relation_to(&left), Relation::Behind);
        assert_eq!(left.relation_to(&born), Relation::Ahead);
        assert_eq!(left.relation_to(&right), Relation::Diverged);
        assert_eq!(left.relation_to(&Lineage::born(id(9))), Relation::Unrelated);
    }

    #[test]
    fn a_history_rolled_back_has_left_behind_what_came_after() {
        let born = Lineage::born(id(1));
        let trial = born.advanced(id(2)).advanced(id(3));
        let back = trial.rolled_back(id(1)).unwrap();
        assert_eq!(back.relation_to(&born), Relation::Same);
        assert_eq!(back.superseded, [id(3), id(2)]);
        assert_eq!(back.relation_to(&trial), Relation::Diverged);
        assert_eq!(born.rolled_back(id(2)), None);
        assert_eq!(born.rolled_back(id(1)), None);
    }

    #[test]
    fn the_history_that_is_kept_is_ahead_of_the_other() {
        let born = Lineage::born(id(1));
        let (left, right) = (born.advanced(id(2)), born.advanced(id(3)).advanced(id(4)));
        let kept = left.kept_over(&right, id(5));
        assert_eq!(kept.relation_to(&right), Relation::Ahead);
        assert_eq!(kept.relation_to(&left), Relation::Ahead);
        assert_eq!(kept.ancestors, [id(2), id(1)]);
        assert_eq!(kept.superseded, [id(4), id(3)]);
        // Two operators who each keep their own side are where they were.
        let other = right.kept_over(&left, id(6));
        assert_eq!(kept.relation_to(&other), Relation::Diverged);
    }

    #[test]
    fn a_superseded_generation_is_behind() {
        let born = Lineage::born(id(1));
        let lost = born.advanced(id(2));
        let mut kept = born.advanced(id(3));
        kept.superseded.push(id(2));
        assert_eq!(lost.relation_to(&kept), Relation::Behind);
    }
}
