//! The hops of pairs.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::matcher::{PairHasher, memberships, pair, sets_of};
use crate::types::NodeId;

/// The hops between two members, as [`super::SnapshotBuilder`] takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hops {
    /// None: the ends talk directly.
    Direct,
    /// These SaPs, in order.
    Via(Vec<NodeId>),
    /// Not over this SaP.
    Elsewhere,
}

/// The path of the pairs between two sets.
#[derive(Clone, Debug)]
pub struct PathSpec {
    /// One end: index of a set.
    pub from: u32,
    /// The other end: index of a set.
    pub to: u32,
    /// The hops, walked from `from` to `to`.
    pub hops: Hops,
}

/// A pair's way, in the direction of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// Any of the overlay's default SaPs.
    Default,
    Direct,
    Via(Chain<'a>),
    Elsewhere,
}

/// SaPs in the direction of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain<'a> {
    saps: &'a [NodeId],
    is_reversed: bool,
}

impl Chain<'_> {
    pub(super) fn first(self) -> Option<NodeId> {
        self.at(0)
    }

    pub(super) fn last(self) -> Option<NodeId> {
        self.saps.len().checked_sub(1).and_then(|last| self.at(last))
    }

    pub(super) fn at(self, position: usize) -> Option<NodeId> {
        let position =
            if self.is_reversed { self.saps.len().checked_sub(position + 1)? } else { position };
        self.saps.get(position).copied()
    }

    /// Where `sap` stands.
    pub(super) fn position(self, sap: NodeId) -> Option<usize> {
        (0..self.saps.len()).find(|&position| self.at(position) == Some(sap))
    }
}

/// The paths of one overlay.
#[derive(Debug, Default)]
pub(super) struct Paths {
    rows: Box<[Hops]>,
    row_by_sets: HashMap<u64, u32, BuildHasherDefault<PairHasher>>,
    from_sets: Box<[Box<[u32]>]>,
    to_sets: Box<[Box<[u32]>]>,
}

impl Paths {
    /// Prepares `specs` over `sets` of indexes below `members`; both were validated.
    pub(super) fn new(members: usize, sets: &[Vec<u32>], specs: Vec<PathSpec>) -> Self {
        let from_sets = memberships(members, sets, specs.iter().map(|spec| spec.from));
        let to_sets = memberships(members, sets, specs.iter().map(|spec| spec.to));
        let mut row_by_sets = HashMap::default();
        for (row, spec) in (0..).zip(&specs) {
            row_by_sets.entry(pair(spec.from, spec.to)).or_insert(row);
        }
        let rows = specs.into_iter().map(|spec| spec.hops).collect();
        Self { rows, row_by_sets, from_sets, to_sets }
    }

    /// The way from member `a` to member `b`. The first row that speaks of the pair decides, the
    /// same one in both directions.
    pub(super) fn route(&self, (a, a_id): (u32, NodeId), (b, b_id): (u32, NodeId)) -> Route<'_> {
        if self.rows.is_empty() {
            return Route::Default;
        }
        let forward = self.row(a, b);
        let backward = self.row(b, a);
        let (row, is_reversed) = match (forward, backward) {
            (None, None) => return Route::Default,
            (Some(forward), None) => (forward, false),
            (None, Some(backward)) => (backward, true),
            // Both ways round: the member with the lower id counts as `from`.
            (Some(forward), Some(backward)) if forward == backward => (forward, b_id < a_id),
            (Some(forward), Some(backward)) => (forward.min(backward), backward < forward),
        };
        match self.rows.get(row as usize) {
            Some(Hops::Via(saps)) => Route::Via(Chain { saps, is_reversed }),
            Some(Hops::Direct) => Route::Direct,
            Some(Hops::Elsewhere) => Route::Elsewhere,
            None => Route::Default,
        }
    }

    fn row(&self, from: u32, to: u32) -> Option<u32> {
        let to_sets = sets_of(&self.to_sets, to);
        sets_of(&self.from_sets, from)
            .iter()
            .flat_map(|&from| to_sets.iter().map(move |&to| pair(from, to)))
            .filter_map(|key| self.row_by_sets.get(&key).copied())
            .min()
    }
}
