//! Whose table a change touches, so that nobody else's is compiled again.
//!
//! A table is cut from a few things: the ways and claims that end at its owner, who is at their other
//! ends, links and keys. Two blueprints are compared in those things, not in what made them differ, so
//! that a label, a group, a named port and the end of a rule need no words of their own. It may name
//! somebody whose table stays the same, and never leaves out one whose table changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::NodeFacts;
use super::compile::Blueprint;
use super::evaluate::PathSource;
use super::outside::OutsideWay;
use super::plan::{Claim, Plan, Way};
use crate::api::table::PathHops;
use crate::types::{NodeId, NodeKind, OverlayId, RuleId};

/// A ring of keys that gives other keys than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingChange {
    /// Its overlay.
    pub overlay: OverlayId,
    /// None for the ring of the destination itself.
    pub from: Option<NodeId>,
    /// The destination.
    pub to: NodeId,
}

impl Blueprint {
    /// The nodes of this blueprint whose tables may be others than in `older`, when `rings` are the keys
    /// that changed in between. The tables of all others are the same to the byte.
    #[must_use]
    pub fn touched_since(&self, older: &Self, rings: &[RingChange]) -> BTreeSet<NodeId> {
        let mut touched = Touched { sides: [older, self], nodes: BTreeSet::new() };
        touched.by_overlays();
        touched.by_nodes();
        touched.by_links();
        touched.by_rings(rings);
        touched.nodes.retain(|id| self.world().nodes.contains_key(id));
        touched.nodes
    }
}

struct Touched<'a> {
    /// Before and after.
    sides: [&'a Blueprint; 2],
    nodes: BTreeSet<NodeId>,
}

impl<'a> Touched<'a> {
    fn by_overlays(&mut self) {
        let [before, after] = self.sides.map(|side| &side.plans);
        for (id, [old, new]) in both_sides(before, after) {
            match (old, new) {
                (Some(old), Some(new)) if are_alike(old, new) => {
                    self.by_ways(old, new);
                    self.by_claims(old, new);
                    self.by_outside(old, new);
                    self.by_services(old, new);
                }
                (old, new) => {
                    self.saps_of(id);
                    for plan in [old, new].into_iter().flatten() {
                        self.nodes.extend(plan.everybody());
                    }
                }
            }
        }
    }

    fn by_ways(&mut self, old: &'a Plan, new: &'a Plan) {
        for (_, [before, after]) in both_sides(&by_rule(&old.ways), &by_rule(&new.ways)) {
            let (before, after) = (before.copied().unwrap_or(&[]), after.copied().unwrap_or(&[]));
            if before == after {
                continue;
            }
            self.saps_of(new.id);
            let are_alike = before.len() == after.len()
                && before.iter().zip(after).all(|(old, new)| old.differs_in_ends_alone(new));
            if !are_alike {
                for way in before.iter().chain(after) {
                    self.nodes.extend(way.from.iter().chain(&way.to_all));
                }
                continue;
            }
            // Who stays at one end is touched by who comes and goes at the other end alone.
            for (old, new) in before.iter().zip(after) {
                if old.from != new.from {
                    self.nodes.extend(&old.from.difference_either_way(&new.from));
                    self.nodes.extend(old.to_all.iter().chain(&new.to_all));
                }
                if old.to != new.to {
                    let is_one_group = old.to.len() == 1 && new.to.len() == 1;
                    let moved = if is_one_group && old.to[0].0 == new.to[0].0 {
                        old.to_all.difference_either_way(&new.to_all)
                    } else {
                        old.to_all.union(&new.to_all)
                    };
                    self.nodes.extend(&moved);
                    self.nodes.extend(old.from.iter().chain(&new.from));
                }
            }
        }
    }

    /// Only who starts such flows hears of them.
    fn by_outside(&mut self, old: &'a Plan, new: &'a Plan) {
        for (_, [before, after]) in both_sides(&outside_by_rule(old), &outside_by_rule(new)) {
            if before != after {
                let ways = [before, after].into_iter().flatten().copied().flatten();
                self.nodes.extend(ways.flat_map(|way| &way.from));
            }
        }
    }

    /// Who comes to a service, or goes, is named to its peers.
    fn by_services(&mut self, old: &Plan, new: &Plan) {
        for (_, services) in both_sides(&old.services, &new.services) {
            let [before, after] = services.map(|set| set.cloned().unwrap_or_default());
            for id in &before.difference_either_way(&after) {
                self.nodes.insert(*id);
                self.peers_of(*id, true);
            }
        }
    }

    fn by_claims(&mut self, old: &Plan, new: &Plan) {
        // Of `path set` there are many, each with its own pair.
        let claims = |plan: &Plan| -> BTreeMap<_, usize> {
            let name = |claim: &Claim| match claim.source {
                PathSource::Set => (claim.source, claim.from.first(), claim.to.first()),
                PathSource::Rule(_) => (claim.source, None, None),
            };
            plan.paths.iter().enumerate().map(|(at, claim)| (name(claim), at)).collect()
        };
        for (_, [before, after]) in both_sides(&claims(old), &claims(new)) {
            let before = before.map(|&at| &old.paths[at]);
            let after = after.map(|&at| &new.paths[at]);
            if before != after {
                self.saps_of(new.id);
                for claim in [before, after].into_iter().flatten() {
                    self.nodes.extend(claim.from.iter().chain(&claim.to));
                }
            }
        }
    }

    fn by_nodes(&mut self) {
        let [before, after] = self.sides.map(|side| &side.world().nodes);
        for (id, [old, new]) in both_sides(before, after).filter(|(_, [old, new])| old != new) {
            self.nodes.insert(id);
            let facts = || [old, new].into_iter().flatten();
            if facts().any(|facts| facts.kind == NodeKind::Sap) {
                let served: BTreeSet<OverlayId> =
                    facts().flat_map(|facts| &facts.serves).copied().collect();
                for overlay in served {
                    self.saps_of(overlay);
                    self.members_of(overlay);
                }
                continue;
            }
            let shown = |facts: &'a Arc<NodeFacts>| (&facts.name, &facts.addresses);
            let is_shown_else = old.map(shown) != new.map(shown);
            let is_elsewhere = old.map(|f| &f.endpoints) != new.map(|f| &f.endpoints);
            if is_shown_else || is_elsewhere {
                for &overlay in facts().flat_map(|facts| facts.addresses.keys()) {
                    self.saps_of(overlay);
                }
                self.peers_of(id, is_shown_else);
            }
            let serves_else =
                old.map(|f| &f.ports) != new.map(|f| &f.ports) && self.is_instance(id);
            if serves_else || self.is_placed_else(id) {
                self.peers_of(id, true);
            }
        }
    }

    /// Those who talk with `id`; unless `all`, those who do so directly and know where it is.
    fn peers_of(&mut self, id: NodeId, all: bool) {
        for plan in self.sides.iter().flat_map(|side| side.plans.values()) {
            if all && plan.unspoken_passes() {
                self.nodes.extend(&plan.members);
            }
            if all {
                self.nodes.extend(plan.leaving(id).into_iter().flat_map(|way| &way.to_all));
                self.nodes.extend(plan.arriving(id).into_iter().flat_map(|way| &way.from));
            }
            let direct = plan.claims_of(id).filter(|claim| claim.hops == PathHops::Direct);
            self.nodes.extend(direct.flat_map(|claim| claim.from.iter().chain(&claim.to)));
        }
    }

    /// Whether a service means `id`, before or after.
    fn is_instance(&self, id: NodeId) -> bool {
        let plans = self.sides.iter().flat_map(|side| side.plans.values());
        plans.flat_map(|plan| plan.services.values()).any(|instances| instances.contains(&id))
    }

    /// Whether other SaPs may be near `id` than before.
    fn is_placed_else(&self, id: NodeId) -> bool {
        let [old, new] = self.sides.map(|side| &side.plans);
        both_sides(old, new).any(|(_, plans)| {
            let [old, new] = plans.map(|plan| plan.and_then(|plan| plan.preference.place(id)));
            old != new
        })
    }

    fn by_links(&mut self) {
        let [before, after] = self.sides.map(|side| &side.world().links);
        if before == after {
            return;
        }
        for ((entity, sap), [old, new]) in both_sides(before, after) {
            if old != new {
                self.nodes.extend([entity, sap]);
            }
        }
    }

    fn by_rings(&mut self, rings: &[RingChange]) {
        for ring in rings {
            self.saps_of(ring.overlay);
            self.nodes.insert(ring.to);
            match ring.from {
                Some(from) => {
                    self.nodes.insert(from);
                }
                None => self.peers_of(ring.to, true),
            }
        }
    }

    fn saps_of(&mut self, overlay: OverlayId) {
        for side in self.sides {
            let saps = side.saps.get(&overlay).into_iter().flatten();
            self.nodes.extend(saps);
        }
    }

    fn members_of(&mut self, overlay: OverlayId) {
        let plans = self.sides.iter().filter_map(|side| side.plans.get(&overlay));
        self.nodes.extend(plans.flat_map(Plan::everybody));
    }
}

/// Both maps side by side, by key.
fn both_sides<'m, K: Ord + Clone, V>(
    before: &'m BTreeMap<K, V>,
    after: &'m BTreeMap<K, V>,
) -> impl Iterator<Item = (K, [Option<&'m V>; 2])> + 'm {
    let mut before = before.iter().peekable();
    let mut after = after.iter().peekable();
    std::iter::from_fn(move || {
        let next =
            [before.peek(), after.peek()].into_iter().flatten().map(|(key, _)| *key).min()?;
        let old = before.next_if(|(key, _)| *key == next).map(|(_, value)| value);
        let new = after.next_if(|(key, _)| *key == next).map(|(_, value)| value);
        Some((next.clone(), [old, new]))
    })
}

/// The ways of each rule; they stand together.
fn by_rule(ways: &[Way]) -> BTreeMap<RuleId, &[Way]> {
    let rules = ways.chunk_by(|one, next| one.rule == next.rule);
    rules.filter_map(|ways| Some((ways.first()?.rule, ways))).collect()
}

/// What each rule says of the outside; it stands together.
fn outside_by_rule(plan: &Plan) -> BTreeMap<RuleId, &[OutsideWay]> {
    let rules = plan.outside.chunk_by(|one, next| one.rule() == next.rule());
    rules.filter_map(|ways| Some((ways.first()?.rule(), ways))).collect()
}

/// Whether two plans of one overlay differ in ways and claims alone. Where unspoken flows pass, whoever
/// comes or goes is everybody's peer.
fn are_alike(old: &Plan, new: &Plan) -> bool {
    old.facts == new.facts
        && old.default_saps == new.default_saps
        && old.empty_saps == new.empty_saps
        && (old.isolated_out == new.isolated_out && old.isolated_in == new.isolated_in)
        && (!new.unspoken_passes() || old.members == new.members)
}
