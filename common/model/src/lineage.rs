//! Who is ahead: generations and their ancestors.
//!
//! Histories are compared by random generation ids, never by a clock and never by a number alone.

use crate::ids::GenId;

/// Longest list of ancestors or superseded generations that is kept, and accepted from a peer.
pub const HISTORY_MAX: usize = 256;

/// A site's history of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    fn a_superseded_generation_is_behind() {
        let born = Lineage::born(id(1));
        let lost = born.advanced(id(2));
        let mut kept = born.advanced(id(3));
        kept.superseded.push(id(2));
        assert_eq!(lost.relation_to(&kept), Relation::Behind);
    }
}
