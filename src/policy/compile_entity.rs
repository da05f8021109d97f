//! The table of an entity: itself, its peers, and what concerns them.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::Part;
use super::draft::Draft;
use super::evaluate::backwards;
use super::plan::{Plan, Way};
use super::{KeySource, NodeFacts, World};
use crate::api::table::{Action, PathHops};
use crate::types::NodeId;

/// Compiles `owner`'s table of one overlay that it is a member of.
pub(super) fn compile(
    world: &World,
    plan: &Plan<'_>,
    keys: &dyn KeySource,
    owner: NodeId,
    facts: &NodeFacts,
) -> Part {
    let ways_of = |index: &BTreeMap<NodeId, Vec<usize>>| -> Vec<&Way> {
        index.get(&owner).into_iter().flatten().map(|&at| &plan.ways[at]).collect()
    };
    let leaving = ways_of(&plan.ways_from);
    let arriving = ways_of(&plan.ways_to);
    let mut peers = open_ends(owner, &leaving, |way| way.to_all().collect());
    peers.extend(open_ends(owner, &arriving, |way| way.from.clone()));

    let mut asked = asked_paths(plan, owner);
    peers.retain(|peer| match asked.get(peer) {
        None | Some(Some(PathHops::Via(_))) => true,
        Some(Some(PathHops::Direct)) => {
            let is_reachable = |facts: &NodeFacts| !facts.endpoints.is_empty();
            is_reachable(facts) && world.nodes.get(peer).is_some_and(is_reachable)
        }
        Some(Some(PathHops::Elsewhere) | None) => false,
    });
    asked.retain(|peer, _| peers.contains(peer));

    let mut draft = Draft::default();
    let mut saps: BTreeSet<NodeId> = plan.default_saps.iter().copied().collect();
    let mut peers_by_hops: BTreeMap<PathHops, BTreeSet<NodeId>> = BTreeMap::new();
    for (peer, hops) in asked {
        if let Some(hops) = hops {
            peers_by_hops.entry(hops).or_default().insert(peer);
        }
    }
    let alone = || BTreeSet::from([owner]);
    for (hops, ends) in peers_by_hops {
        match &hops {
            PathHops::Direct => ends.iter().for_each(|&peer| draft.member(peer, true)),
            PathHops::Via(chain) => saps.extend(chain),
            PathHops::Elsewhere => {}
        }
        if hops == PathHops::Direct {
            draft.member(owner, true);
        }
        draft.path(alone(), ends, hops);
    }
    draft.member(owner, false);
    draft.destination_key(owner);
    for &peer in &peers {
        draft.member(peer, false);
        draft.send_key(peer);
    }
    for way in leaving {
        for (services, group) in &way.to {
            draft.rule(way, services, alone(), group.intersection(&peers).copied().collect());
        }
    }
    for way in arriving {
        for (services, _) in way.to.iter().filter(|(_, group)| group.contains(&owner)) {
            draft.rule(way, services, way.from.intersection(&peers).copied().collect(), alone());
        }
    }
    Part { table: draft.finish(world, plan, keys, owner), saps }
}

/// Who is at the other end of an allowed way that no denial shadows.
fn open_ends(
    owner: NodeId,
    ways: &[&Way],
    other_end: impl Fn(&Way) -> BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let denials: Vec<(&Way, BTreeSet<NodeId>)> = ways
        .iter()
        .filter(|way| way.action == Action::Deny)
        .map(|way| (*way, other_end(way)))
        .collect();
    let mut open = BTreeSet::new();
    for allow in ways.iter().filter(|way| way.action == Action::Allow) {
        let mut ends = other_end(allow);
        for (deny, denied) in &denials {
            if deny.shadows(allow) {
                ends.retain(|end| !denied.contains(end));
            }
        }
        open.append(&mut ends);
    }
    open.remove(&owner);
    open
}

/// The paths that rules ask for `owner`'s pairs, by the other end, walked from `owner`; none where
/// the path cannot be walked.
fn asked_paths(plan: &Plan<'_>, owner: NodeId) -> BTreeMap<NodeId, Option<PathHops>> {
    let mut asked = BTreeMap::new();
    for claim in plan.paths_of.get(&owner).into_iter().flatten().map(|&at| &plan.paths[at]) {
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
