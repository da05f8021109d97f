//! Sets of nodes as sorted arrays that are shared: a plan says the same set in many places, and cutting
//! tables from it is mostly walking two of them side by side.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::types::NodeId;

/// Nodes in ascending order, each once. Cloning shares.
#[derive(Clone, Debug, Default)]
pub(super) struct Set(Arc<[NodeId]>);

impl Set {
    /// The set of one node.
    pub(super) fn of(id: NodeId) -> Self {
        Self(Arc::from([id]))
    }

    /// Takes ids in any order, also twice.
    pub(super) fn new(mut ids: Vec<NodeId>) -> Self {
        // Not the unstable sort: most often these are a few runs in order.
        ids.sort();
        ids.dedup();
        Self(ids.into())
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, NodeId> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, id: &NodeId) -> bool {
        self.0.binary_search(id).is_ok()
    }

    /// The lowest.
    pub(super) fn first(&self) -> Option<NodeId> {
        self.0.first().copied()
    }

    /// Where the node stands in the order.
    pub(super) fn position(&self, id: &NodeId) -> Option<u32> {
        self.0.binary_search(id).ok().and_then(|at| u32::try_from(at).ok())
    }

    /// Where each stands in `other`; those that are not there are left out.
    pub(super) fn positions_in(&self, other: &Self) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.len());
        let found = self.found_in(other).flatten().map(u32::try_from);
        positions.extend(found.map(|at| at.expect("invariant: fewer nodes than 2^32")));
        positions
    }

    /// All that are in any of the sets.
    pub(super) fn union_of<'a>(sets: impl Iterator<Item = &'a Self>) -> Self {
        let mut distinct: Vec<&Self> = sets.collect();
        distinct.sort_unstable();
        distinct.dedup();
        distinct.into_iter().flatten().copied().collect()
    }

    /// Whether all of these are in `other`.
    pub(super) fn is_subset(&self, other: &Self) -> bool {
        self.is_same(other)
            || (self.len() <= other.len() && self.in_other(other).all(|is_there| is_there))
    }

    /// Whether none of these is in `other`.
    pub(super) fn is_disjoint(&self, other: &Self) -> bool {
        let (few, many) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        !few.in_other(many).any(|is_there| is_there)
    }

    /// Those that are in both; shares when that is all of `self`.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.filtered(other, true)
    }

    /// Those that are not in `other`; shares when that is all of `self`.
    pub(super) fn without(&self, other: &Self) -> Self {
        self.filtered(other, false)
    }

    /// Those that are in either.
    pub(super) fn union(&self, other: &Self) -> Self {
        if other.is_subset(self) {
            return self.clone();
        }
        self.iter().chain(other.iter()).copied().collect()
    }

    /// Those that are in one of the two alone.
    pub(super) fn difference_either_way(&self, other: &Self) -> Self {
        self.without(other).union(&other.without(self))
    }

    /// Those that `is_kept` says.
    pub(super) fn retained(&self, mut is_kept: impl FnMut(&NodeId) -> bool) -> Self {
        // Most often that is all of them.
        let Some(first_out) = self.iter().position(|id| !is_kept(id)) else { return self.clone() };
        let (before, rest) = self.0.split_at(first_out);
        let mut kept = before.to_vec();
        kept.extend(rest.iter().skip(1).filter(|id| is_kept(id)));
        Self(kept.into())
    }

    /// Where it lies in memory: the same for sets that share.
    pub(super) fn as_ptr(&self) -> *const NodeId {
        self.0.as_ptr()
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn filtered(&self, other: &Self, keep_shared: bool) -> Self {
        let mut shared = self.in_other(other);
        self.retained(|_| shared.next() == Some(keep_shared))
    }

    /// For each of `self` whether it is in `other`.
    fn in_other<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = bool> + 'a {
        self.found_in(other).map(|at| at.is_some())
    }

    /// For each of `self` where it stands in `other`: by search in one that is much longer, else side by
    /// side.
    fn found_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Option<usize>> + 'a {
        let is_much_longer = other.len() / 16 > self.len();
        let mut at = 0;
        self.iter().map(move |id| {
            let rest = other.0.get(at..).unwrap_or_default();
            at += if is_much_longer {
                rest.partition_point(|candidate| candidate < id)
            } else {
                rest.iter().take_while(|candidate| *candidate < id).count()
            };
            (other.0.get(at) == Some(id)).then_some(at)
        })
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl Eq for Set {}

impl PartialOrd for Set {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Set {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_same(other) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl FromIterator<NodeId> for Set {
    fn from_iter<I: IntoIterator<Item = NodeId>>(ids: I) -> Self {
        Self::new(ids.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Set {
    type Item = &'a NodeId;
    type IntoIter = std::slice::Iter<'a, NodeId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn set(ids: &BTreeSet<u32>) -> Set {
        ids.iter().copied().map(NodeId).collect()
    }

    fn ids(set: &Set) -> BTreeSet<u32> {
        set.iter().map(|id| id.0).collect()
    }

    proptest! {
        #[test]
        fn sets_do_what_the_standard_library_s_do(
            a in btree_set(0_u32..60, 0..8),
            b in btree_set(0_u32..60, 0..50),
        ) {
            for (a, b) in [(&a, &b), (&b, &a), (&a, &a)] {
                let (x, y) = (set(a), set(b));
                prop_assert_eq!(ids(&x.intersection(&y)), a & b);
                prop_assert_eq!(ids(&x.without(&y)), a - b);
                prop_assert_eq!(ids(&x.union(&y)), a | b);
                prop_assert_eq!(ids(&x.difference_either_way(&y)), a ^ b);
                prop_assert_eq!(x.is_subset(&y), a.is_subset(b));
                prop_assert_eq!(x.is_disjoint(&y), a.is_disjoint(b));
                prop_assert_eq!(x == y, a == b);
                prop_assert!(a.iter().all(|id| x.contains(&NodeId(*id))));
                let positions = a.iter().filter_map(|id| y.position(&NodeId(*id)));
                prop_assert_eq!(x.positions_in(&y), positions.collect::<Vec<u32>>());
            }
        }
    }
}
