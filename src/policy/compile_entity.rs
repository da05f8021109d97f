//! The table of an entity: itself, its peers, and what concerns them.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::Part;
use super::draft::Draft;
use super::evaluate::backwards;
use super::plan::{Plan, Way};
use super::set::Set;
use super::{KeySource, NodeFacts, World};
use crate::api::table::{Action, PathHops};
use crate::types::NodeId;

/// Compiles `owner`'s table of one overlay that it is a member of.
pub(super) fn compile(
    world: &World,
    plan: &Plan,
    keys: &dyn KeySource,
    owner: NodeId,
    facts: &NodeFacts,
) -> Part {
    let mut asked = asked_paths(plan, owner);
    let peers = open_ends(plan, owner).retained(|peer| match asked.get(peer) {
        None | Some(Some(PathHops::Via(_))) => true,
        Some(Some(PathHops::Direct)) => {
            let is_reachable = |facts: &NodeFacts| !facts.endpoints.is_empty();
            is_reachable(facts) && world.nodes.get(peer).is_some_and(is_reachable)
        }
        Some(Some(PathHops::Elsewhere) | None) => false,
    });
    asked.retain(|peer, _| peers.contains(peer));

    let mut saps: BTreeSet<NodeId> = plan.default_saps.iter().copied().collect();
    let mut peers_by_hops: BTreeMap<PathHops, Vec<NodeId>> = BTreeMap::new();
    for (peer, hops) in asked {
        if let Some(hops) = hops {
            peers_by_hops.entry(hops).or_default().push(peer);
        }
    }
    let alone = Set::of(owner);
    let direct = peers_by_hops
        .get(&PathHops::Direct)
        .map_or_else(Set::default, |peers| peers.iter().copied().chain([owner]).collect());
    let mut draft = Draft::new(peers.union(&alone), direct);
    for (hops, ends) in peers_by_hops {
        if let PathHops::Via(chain) = &hops {
            saps.extend(chain);
        }
        draft.path(alone.clone(), Set::new(ends), hops);
    }
    for way in plan.leaving(owner) {
        for (services, group) in &way.to {
            draft.rule(way, services, alone.clone(), group.intersection(&peers));
        }
    }
    for way in plan.arriving(owner) {
        for (services, _) in way.to.iter().filter(|(_, group)| group.contains(&owner)) {
            draft.rule(way, services, way.from.intersection(&peers), alone.clone());
        }
    }
    draft.destination_keys(alone);
    draft.send_keys(peers);
    Part { table: draft.finish(world, plan, keys, owner), saps }
}

/// Who is at the other end of an allowed way that no denial shadows.
fn open_ends(plan: &Plan, owner: NodeId) -> Set {
    let leaving: Vec<&Way> = plan.leaving(owner).collect();
    let arriving: Vec<&Way> = plan.arriving(owner).collect();
    let mut open = Vec::new();
    let mut add = |ways: &[&Way], other_end: fn(&Way) -> &Set| {
        let denials: Vec<&&Way> = ways.iter().filter(|way| way.action == Action::Deny).collect();
        for allow in ways.iter().filter(|way| way.action == Action::Allow) {
            let shadows = denials.iter().filter(|deny| deny.shadows(allow));
            let ends =
                shadows.fold(other_end(allow).clone(), |ends, deny| ends.without(other_end(deny)));
            open.extend(ends.iter().copied().filter(|end| *end != owner));
        }
    };
    add(&leaving, |way| &way.to_all);
    add(&arriving, |way| &way.from);
    Set::new(open)
}

/// The paths that rules ask for `owner`'s pairs, by the other end, walked from `owner`; none where
/// the path cannot be walked.
fn asked_paths(plan: &Plan, owner: NodeId) -> BTreeMap<NodeId, Option<PathHops>> {
    let mut asked = BTreeMap::new();
    for claim in plan.claims_of(owner) {
        let is_start = claim.from.contains(&owner);
        let is_end = claim.to.contains(&owner);
        let mut tell = |peer: NodeId, is_forward: bool| {
            if peer != owner {
                asked.entry(peer).or_insert_with(|| {
                    claim.is_walkable.then(|| {
                        if is_forward { claim.hops.clone() } else { backwards(&claim.hops) }
                    })
                });
            }
        };
        // Where both members are in both sets, the one with the lower id counts as the start.
        if is_start {
            for &peer in &claim.to {
                let is_either = is_end && claim.from.contains(&peer);
                tell(peer, !is_either || owner < peer);
            }
        }
        if is_end {
            for &peer in &claim.from {
                tell(peer, false);
            }
        }
    }
    asked
}
