//! A table of one overlay under construction: rows speak of sets of ids, and become indexes at the
//! end, when all members and all sets are known and sorted.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Plan, Way};
use super::{KeySource, World};
use crate::api::table::{
    Action, DestinationKeyRow, MemberRow, OverlayTable, PairGenerationRow, PathHops, PathRow,
    RuleRow, SendKeyRow,
};
use crate::types::{NodeId, RuleId, Service, Timestamp};

/// What rows of rules are sorted by, and all that they say.
type RuleKey =
    (RuleId, Action, BTreeSet<NodeId>, BTreeSet<NodeId>, Vec<Service>, Option<Timestamp>);

/// One overlay's table, rows not yet numbered.
#[derive(Default)]
pub(super) struct Draft {
    /// Members by id, with whether their endpoints are told.
    members: BTreeMap<NodeId, bool>,
    rules: BTreeSet<RuleKey>,
    paths: Vec<(BTreeSet<NodeId>, BTreeSet<NodeId>, PathHops)>,
    /// The members whose `Kb` is told.
    targets: BTreeSet<NodeId>,
    /// The members that the owner sends to.
    sends: BTreeSet<NodeId>,
}

impl Draft {
    /// Speaks of the member, and of where it is when `with_endpoints`.
    pub(super) fn member(&mut self, id: NodeId, with_endpoints: bool) {
        *self.members.entry(id).or_default() |= with_endpoints;
    }

    /// Adds one row of a rule, cut to `from` and `to`. A row between nobody, or between one member and
    /// itself, is left out.
    pub(super) fn rule(
        &mut self,
        way: &Way,
        services: &[Service],
        mut from: BTreeSet<NodeId>,
        mut to: BTreeSet<NodeId>,
    ) {
        drop_self_pairs(&mut from, &mut to);
        if !from.is_empty() && !to.is_empty() {
            self.rules.insert((way.rule, way.action, from, to, services.to_vec(), way.not_after));
        }
    }

    /// Adds one row of a path, after those that go before it.
    pub(super) fn path(&mut self, from: BTreeSet<NodeId>, to: BTreeSet<NodeId>, hops: PathHops) {
        let row = (from, to, hops);
        if has_pair(&row.0, &row.1) && !self.paths.contains(&row) {
            self.paths.push(row);
        }
    }

    /// Tells the destination's half of the keys towards `to`.
    pub(super) fn destination_key(&mut self, to: NodeId) {
        self.targets.insert(to);
    }

    /// Tells the key to stamp for `to`.
    pub(super) fn send_key(&mut self, to: NodeId) {
        self.sends.insert(to);
    }

    /// Numbers everything. `owner` is the node whose table it is.
    pub(super) fn finish(
        self,
        world: &World,
        plan: &Plan<'_>,
        keys: &dyn KeySource,
        owner: NodeId,
    ) -> OverlayTable {
        let rows: Vec<MemberRow> = self
            .members
            .iter()
            .filter_map(|(&id, &with_endpoints)| {
                let facts = world.nodes.get(&id)?;
                Some(MemberRow {
                    id,
                    name: facts.name.clone(),
                    address: *facts.addresses.get(&plan.id)?,
                    endpoints: if with_endpoints { facts.endpoints.clone() } else { Vec::new() },
                })
            })
            .collect();
        let numbers: BTreeMap<NodeId, u32> = (0..).zip(&rows).map(|(n, row)| (row.id, n)).collect();
        let number = |id: &NodeId| numbers.get(id).copied();
        let numbered =
            |set: &BTreeSet<NodeId>| -> Vec<u32> { set.iter().filter_map(number).collect() };
        let named = self
            .rules
            .iter()
            .flat_map(|(_, _, from, to, _, _)| [from, to])
            .chain(self.paths.iter().flat_map(|(from, to, _)| [from, to]));
        let sets: BTreeSet<Vec<u32>> = named.map(numbered).collect();
        let set_numbers: BTreeMap<&Vec<u32>, u32> =
            (0..).zip(&sets).map(|(n, set)| (set, n)).collect();
        let set_number = |set: &BTreeSet<NodeId>| set_numbers[&numbered(set)];

        let mut rules: Vec<RuleRow> = self
            .rules
            .iter()
            .map(|(id, action, from, to, services, not_after)| RuleRow {
                id: *id,
                tier: (*action).into(),
                from: set_number(from),
                to: set_number(to),
                services: services.clone(),
                not_after: *not_after,
            })
            .collect();
        rules.sort_by(|a, b| {
            (a.id, a.from, a.to, &a.services).cmp(&(b.id, b.from, b.to, &b.services))
        });
        let paths = self
            .paths
            .iter()
            .map(|(from, to, hops)| PathRow {
                from: set_number(from),
                to: set_number(to),
                hops: hops.clone(),
            })
            .collect();
        let destination_keys = self
            .targets
            .iter()
            .filter_map(|id| {
                let accept = keys.destination_keys(plan.id, *id);
                let to = number(id)?;
                (!accept.is_empty()).then_some(DestinationKeyRow { to, accept })
            })
            .collect();
        let mut pair_generations: Vec<PairGenerationRow> = keys
            .rotated_pairs(plan.id)
            .iter()
            .filter(|(from, to)| from != to && self.targets.contains(to))
            .filter_map(|(from, to)| {
                let accept = keys.pair_generations(plan.id, *from, *to);
                let (from, to) = (number(from)?, number(to)?);
                (!accept.is_empty()).then_some(PairGenerationRow { from, to, accept })
            })
            .collect();
        pair_generations.sort_by_key(|row| (row.from, row.to));
        let send_keys = self
            .sends
            .iter()
            .filter_map(|id| {
                Some(SendKeyRow { to: number(id)?, key: keys.send_key(plan.id, owner, *id) })
            })
            .collect();
        let address =
            world.nodes.get(&owner).and_then(|facts| facts.addresses.get(&plan.id)).copied();
        let sets = sets.into_iter().collect();
        OverlayTable {
            id: plan.id,
            name: plan.facts.name.clone(),
            cidr: plan.facts.cidr,
            address,
            silent: plan.facts.silent,
            unspoken_passes: false,
            members: rows,
            sets,
            rules,
            isolated: Vec::new(),
            paths,
            default_saps: plan.default_saps.clone(),
            destination_keys,
            pair_generations,
            send_keys,
        }
    }
}

/// Whether there is a pair of two different members between the sets.
pub(super) fn has_pair(from: &BTreeSet<NodeId>, to: &BTreeSet<NodeId>) -> bool {
    !from.is_empty() && !to.is_empty() && (from.len() > 1 || to.len() > 1 || from != to)
}

/// Takes a member that is alone on one side off the other side.
pub(super) fn drop_self_pairs(from: &mut BTreeSet<NodeId>, to: &mut BTreeSet<NodeId>) {
    if from.len() == 1 {
        to.retain(|id| !from.contains(id));
    } else if to.len() == 1 {
        from.retain(|id| !to.contains(id));
    }
}
