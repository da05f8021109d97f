//! What the tables of one overlay have in common, worked out once.

use std::collections::{BTreeMap, BTreeSet};

use super::evaluate::{default_saps, is_walkable};
use super::select::{is_in_force, member, members_of};
use super::span::resolve;
use super::{BoundSelector, OverlayFacts, World};
use crate::api::table::{Action, PathHops};
use crate::types::{NodeId, OverlayId, RuleId, Service, Timestamp};

/// One overlay's members and rules in force, with selectors turned into sets.
pub(super) struct Plan<'a> {
    pub(super) id: OverlayId,
    pub(super) facts: &'a OverlayFacts,
    /// By id: the SaPs of every pair without a path of its own.
    pub(super) default_saps: Vec<NodeId>,
    /// Each direction of each rule, by rule id.
    pub(super) ways: Vec<Way>,
    /// The rules that ask for a path, by rule id: of two that speak of a pair the first one counts.
    pub(super) paths: Vec<Claim>,
    /// For each member the ways that start at it, as indexes into `ways`.
    pub(super) ways_from: BTreeMap<NodeId, Vec<usize>>,
    /// For each member the ways that end at it.
    pub(super) ways_to: BTreeMap<NodeId, Vec<usize>>,
    /// For each member the claims about its pairs, as indexes into `paths`.
    pub(super) paths_of: BTreeMap<NodeId, Vec<usize>>,
}

/// One direction of a rule.
pub(super) struct Way {
    pub(super) rule: RuleId,
    pub(super) action: Action,
    pub(super) not_after: Option<Timestamp>,
    pub(super) from: BTreeSet<NodeId>,
    /// The destinations by what the rule's services are there; named ports make several groups.
    pub(super) to: Vec<(Vec<Service>, BTreeSet<NodeId>)>,
}

impl Way {
    /// All destinations.
    pub(super) fn to_all(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.to.iter().flat_map(|(_, group)| group.iter().copied())
    }

    /// Whether it lets nothing open between its ends as long as `allow` is in force.
    pub(super) fn shadows(&self, allow: &Self) -> bool {
        let is_whole = self.to.iter().all(|(services, _)| services.is_empty());
        // Nodes end rules by themselves. A denial that ends first would leave them an allowed pair
        // without keys, so it shadows nothing.
        let outlives = match (self.not_after, allow.not_after) {
            (None, _) => true,
            (Some(deny), Some(allow)) => allow <= deny,
            (Some(_), None) => false,
        };
        self.action == Action::Deny && is_whole && outlives
    }
}

/// The path that a rule asks for the pairs between two sets, in either direction.
pub(super) struct Claim {
    pub(super) from: BTreeSet<NodeId>,
    pub(super) to: BTreeSet<NodeId>,
    pub(super) hops: PathHops,
    /// Whether packets can take it; always true of a direct path, whose ends are looked at by pair.
    pub(super) is_walkable: bool,
}

impl<'a> Plan<'a> {
    /// Works out the plan of `overlay`, which is in the world.
    pub(super) fn new(world: &'a World, overlay: OverlayId, now: Timestamp) -> Self {
        let mut plan = Self {
            id: overlay,
            facts: world
                .overlays
                .get(&overlay)
                .expect("invariant: only known overlays are planned"),
            default_saps: default_saps(world, overlay),
            ways: Vec::new(),
            paths: Vec::new(),
            ways_from: BTreeMap::new(),
            ways_to: BTreeMap::new(),
            paths_of: BTreeMap::new(),
        };
        let mut meant: BTreeMap<&BoundSelector, BTreeSet<NodeId>> = BTreeMap::new();
        let rules = world.rules.iter().filter(|(_, r)| r.overlay == overlay && is_in_force(r, now));
        for (&id, rule) in rules {
            for selector in [&rule.from, &rule.to] {
                meant.entry(selector).or_insert_with(|| members_of(world, overlay, selector));
            }
            let (from, to) = (&meant[&rule.from], &meant[&rule.to]);
            let mut directions = vec![(from, to)];
            if rule.both && from != to {
                directions.push((to, from));
            }
            for (from, to) in directions {
                plan.ways.push(Way {
                    rule: id,
                    action: rule.action,
                    not_after: rule.not_after,
                    from: from.clone(),
                    to: by_services(world, overlay, &rule.services, to),
                });
            }
            if let Some(hops) = &rule.path {
                plan.paths.push(Claim {
                    from: from.clone(),
                    to: to.clone(),
                    hops: hops.clone(),
                    is_walkable: match hops {
                        PathHops::Direct => true,
                        PathHops::Via(chain) => is_walkable(world, overlay, chain),
                        PathHops::Elsewhere => false,
                    },
                });
            }
        }
        plan.index();
        plan
    }

    fn index(&mut self) {
        for (at, way) in self.ways.iter().enumerate() {
            for &id in &way.from {
                self.ways_from.entry(id).or_default().push(at);
            }
            for id in way.to_all() {
                self.ways_to.entry(id).or_default().push(at);
            }
        }
        for (at, claim) in self.paths.iter().enumerate() {
            for &id in claim.from.union(&claim.to) {
                self.paths_of.entry(id).or_default().push(at);
            }
        }
    }
}

/// Destinations by what the services are at them; those at which they are nothing are left out.
fn by_services(
    world: &World,
    overlay: OverlayId,
    services: &[Service],
    to: &BTreeSet<NodeId>,
) -> Vec<(Vec<Service>, BTreeSet<NodeId>)> {
    let mut groups: BTreeMap<Vec<Service>, BTreeSet<NodeId>> = BTreeMap::new();
    if services.iter().any(|service| matches!(service, Service::Named(..))) {
        for &id in to {
            let resolved =
                member(world, overlay, id).and_then(|facts| resolve(services, &facts.ports));
            if let Some(resolved) = resolved {
                groups.entry(resolved).or_default().insert(id);
            }
        }
    } else if !to.is_empty() {
        let mut sorted = services.to_vec();
        sorted.sort();
        sorted.dedup();
        groups.insert(sorted, to.clone());
    }
    groups.into_iter().collect()
}
