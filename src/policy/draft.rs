//! A table of one overlay under construction: rows speak of sets of ids, and become indexes at the
//! end, when all members and all sets are known and sorted.

use std::collections::BTreeMap;

use super::plan::{Plan, Way};
use super::set::Set;
use super::{KeySource, World};
use crate::api::Shared;
use crate::api::table::{
    DestinationKeyRow, IsolationRow, MemberRow, OverlayTable, PairGenerationRow, PathHops, PathRow,
    PreferenceRow, RuleRow, SendKeyRow, ServicePortRow, ServiceRow,
};
use crate::types::{Name, NodeId, Service};

/// One overlay's table, rows not yet numbered.
pub(super) struct Draft<'a> {
    /// The members that the table speaks of.
    members: Set,
    /// Those whose endpoints are told.
    reachable: Set,
    /// The members whose `Kb` is told.
    targets: Set,
    /// The members that the owner sends to.
    sends: Set,
    rules: Vec<Row<'a>>,
    paths: Vec<(Set, Set, PathHops)>,
    preferences: Vec<(Set, Vec<NodeId>)>,
    services: Vec<Offer<'a>>,
}

/// A service, cut to the members that the table speaks of.
struct Offer<'a> {
    name: &'a Name,
    instances: Set,
    ports: Vec<(&'a Name, &'a Service, Set)>,
}

/// One row of a rule; the order is that of the finished rows.
#[derive(PartialEq, Eq)]
struct Row<'a> {
    way: &'a Way,
    services: &'a [Service],
    from: Set,
    to: Set,
}

impl<'a> Draft<'a> {
    /// A table that speaks of `members`, and of where those in `reachable` are.
    pub(super) fn new(members: Set, reachable: Set) -> Self {
        let (targets, sends) = (Set::default(), Set::default());
        Self {
            members,
            reachable,
            targets,
            sends,
            rules: Vec::new(),
            paths: Vec::new(),
            preferences: Vec::new(),
            services: Vec::new(),
        }
    }

    /// Adds one row of a rule, cut to `from` and `to`. A row between nobody, or between one member and
    /// itself, is left out.
    pub(super) fn rule(&mut self, way: &'a Way, services: &'a [Service], from: Set, to: Set) {
        let (from, to) = without_self_pairs(from, to);
        if !from.is_empty() && !to.is_empty() {
            self.rules.push(Row { way, services, from, to });
        }
    }

    /// Adds one row of a path, after those that go before it.
    pub(super) fn path(&mut self, from: Set, to: Set, hops: PathHops) {
        let row = (from, to, hops);
        if has_pair(&row.0, &row.1) && !self.paths.contains(&row) {
            self.paths.push(row);
        }
    }

    /// Has the default SaPs in another order for pairs with these members.
    pub(super) fn prefer(&mut self, with: Set, saps: Vec<NodeId>) {
        self.preferences.push((with, saps));
    }

    /// Tells the services of `plan` that members are instances of; `world` has their named ports.
    pub(super) fn services(&mut self, world: &'a World, plan: &'a Plan) {
        for (name, all) in &plan.services {
            let instances = self.members.intersection(all);
            if instances.is_empty() {
                continue;
            }
            let mut ports: BTreeMap<(&Name, &Service), Vec<NodeId>> = BTreeMap::new();
            for &id in &instances {
                let named = world.nodes.get(&id).into_iter().flat_map(|facts| &facts.ports);
                for (name, port) in named.flat_map(|(name, all)| all.iter().map(move |p| (name, p)))
                {
                    ports.entry((name, port)).or_default().push(id);
                }
            }
            let ports = ports.into_iter().map(|((name, port), ids)| (name, port, Set::new(ids)));
            self.services.push(Offer { name, instances, ports: ports.collect() });
        }
    }

    /// Tells the destinations' half of the keys towards these.
    pub(super) fn destination_keys(&mut self, to: Set) {
        self.targets = to;
    }

    /// Tells the keys to stamp for these.
    pub(super) fn send_keys(&mut self, to: Set) {
        self.sends = to;
    }

    /// Numbers everything. `owner` is the node whose table it is.
    pub(super) fn finish(
        mut self,
        world: &World,
        plan: &Plan,
        keys: &dyn KeySource,
        owner: NodeId,
    ) -> OverlayTable {
        let members: Vec<Shared<MemberRow>> =
            plan.members_of(&self.members).map(|member| member.row(&self.reachable)).collect();
        // Every member has a row, so that places in `self.members` are places in `members`.
        debug_assert_eq!(members.len(), self.members.len());
        let number = |id: &NodeId| self.members.position(id);

        self.rules.sort_by(|a, b| a.key().cmp(&b.key()));
        self.rules.dedup_by(|a, b| a.key() == b.key());
        let of_rules = self.rules.iter().flat_map(|row| [&row.from, &row.to]);
        let of_paths = self.paths.iter().flat_map(|(from, to, _)| [from, to]);
        let of_preferences = self.preferences.iter().map(|(with, _)| with);
        let of_services = self.services.iter().flat_map(|service| {
            let of_ports = service.ports.iter().map(|(_, _, instances)| instances);
            of_ports.chain([&service.instances])
        });
        let of_rows = of_rules.chain(of_paths).chain(of_preferences);
        let mut sets: Vec<&Set> = of_rows.chain(of_services).collect();
        sets.sort();
        sets.dedup();
        let set_number = |set: &Set| {
            let at = sets.binary_search(&set).expect("invariant: the sets of all rows");
            u32::try_from(at).expect("invariant: fewer sets than 2^32")
        };

        let rules = self
            .rules
            .iter()
            .map(|row| RuleRow {
                id: row.way.rule,
                tier: row.way.tier,
                from: set_number(&row.from),
                to: set_number(&row.to),
                services: row.services.to_vec(),
                not_after: row.way.not_after,
            })
            .collect();
        let paths = self
            .paths
            .iter()
            .map(|(from, to, hops)| PathRow {
                from: set_number(from),
                to: set_number(to),
                hops: hops.clone(),
            })
            .collect();
        let mut preferences: Vec<PreferenceRow> = self
            .preferences
            .iter()
            .map(|(with, saps)| PreferenceRow { with: set_number(with), saps: saps.clone() })
            .collect();
        preferences.sort_by_key(|row| row.with);
        let services = self.services.iter().map(|service| ServiceRow {
            name: service.name.clone(),
            members: set_number(&service.instances),
            ports: service
                .ports
                .iter()
                .map(|&(name, port, ref instances)| ServicePortRow {
                    name: name.clone(),
                    port: port.clone(),
                    members: set_number(instances),
                })
                .collect(),
        });
        let services = services.collect();
        let isolated = (0..)
            .zip(&self.members)
            .map(|(member, id)| IsolationRow {
                member,
                egress: plan.isolated_out.by(*id),
                ingress: plan.isolated_in.by(*id),
            })
            .filter(|row| row.egress.is_some() || row.ingress.is_some())
            .collect();
        let targets = self.targets.intersection(&self.members);
        let destination_keys = targets
            .positions_in(&self.members)
            .into_iter()
            .zip(&targets)
            .filter_map(|(to, id)| {
                let accept = keys.destination_keys(plan.id, *id);
                let old_until = keys.old_until(plan.id, None, *id);
                (!accept.is_empty()).then_some(DestinationKeyRow { to, accept, old_until })
            })
            .collect();
        let mut pair_generations: Vec<PairGenerationRow> = Vec::new();
        for to in &self.targets {
            for from in keys.rotated_sources(plan.id, *to).iter().filter(|from| *from != to) {
                let accept = keys.pair_generations(plan.id, *from, *to);
                let old_until = keys.old_until(plan.id, Some(*from), *to);
                if let (Some(from), Some(to), false) = (number(from), number(to), accept.is_empty())
                {
                    pair_generations.push(PairGenerationRow { from, to, accept, old_until });
                }
            }
        }
        pair_generations.sort_by_key(|row| (row.from, row.to));
        let sends = self.sends.intersection(&self.members);
        let send_keys = sends
            .positions_in(&self.members)
            .into_iter()
            .zip(&sends)
            .map(|(to, id)| SendKeyRow { to, key: keys.send_key(plan.id, owner, *id) })
            .collect();
        let address =
            world.nodes.get(&owner).and_then(|facts| facts.addresses.get(&plan.id)).copied();
        OverlayTable {
            id: plan.id,
            name: plan.facts.name.clone(),
            cidr: plan.facts.cidr,
            address,
            silent: plan.facts.silent,
            unspoken_passes: plan.unspoken_passes(),
            sets: sets.iter().map(|set| set.positions_in(&self.members)).collect(),
            members,
            rules,
            isolated,
            paths,
            default_saps: plan.default_saps.clone(),
            preferences,
            empty_saps: plan.empty_saps.clone(),
            destination_keys,
            pair_generations,
            outside: Default::default(),
            send_keys,
            services,
        }
    }
}

impl Row<'_> {
    fn key(&self) -> impl Ord + '_ {
        let way = self.way;
        (way.rule, &self.from, &self.to, self.services, way.tier, way.not_after)
    }
}

/// Whether there is a pair of two different members between the sets.
pub(super) fn has_pair(from: &Set, to: &Set) -> bool {
    !from.is_empty() && !to.is_empty() && (from.len() > 1 || to.len() > 1 || from != to)
}

/// Takes a member that is alone on one side off the other side.
pub(super) fn without_self_pairs(from: Set, to: Set) -> (Set, Set) {
    if from.len() == 1 {
        let others = to.without(&from);
        (from, others)
    } else if to.len() == 1 {
        (from.without(&to), to)
    } else {
        (from, to)
    }
}
