//! The table of an entity: itself, its peers, and what concerns them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::compile::Part;
use super::draft::Draft;
use super::evaluate::backwards;
use super::plan::{Isolated, Plan, Way};
use super::prefer::Place;
use super::set::Set;
use super::{KeySource, NodeFacts, World, outside};
use crate::api::table::PathHops;
use crate::types::{NodeId, Tier};

/// Compiles `owner`'s table of one overlay that it is a member of.
pub(super) fn compile(
    world: &World,
    plan: &Plan,
    keys: &dyn KeySource,
    owner: NodeId,
    facts: &NodeFacts,
) -> Part {
    let mut asked = asked_paths(plan, owner);
    let (leaving, arriving) = (plan.leaving(owner), plan.arriving(owner));
    let peers =
        open_ends(plan, owner, &leaving, &arriving).retained(|peer| match asked.get(peer) {
            None | Some(Some(PathHops::Via(_))) => true,
            Some(Some(PathHops::Direct)) => {
                let is_reachable = |facts: &NodeFacts| !facts.endpoints.is_empty();
                is_reachable(facts)
                    && world.nodes.get(peer).is_some_and(|facts| is_reachable(facts))
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
    for (saps, ends) in preferences(plan, owner, &peers) {
        draft.prefer(Set::new(ends), saps);
    }
    let mut cut = Cut { peers: &peers, known: HashMap::new() };
    for way in leaving {
        for (services, group) in &way.to {
            draft.rule(way, services, alone.clone(), cut.of(group));
        }
    }
    for way in arriving {
        for (services, _) in way.to.iter().filter(|(_, group)| group.contains(&owner)) {
            draft.rule(way, services, cut.of(&way.from), alone.clone());
        }
    }
    draft.services(world, plan);
    draft.destination_keys(alone);
    draft.send_keys(peers);
    let mut table = draft.finish(world, plan, keys, owner);
    table.outside = outside::table(plan, owner);
    Part { table, saps }
}

/// Sets cut to the peers of one member: many rules speak of a few sets.
struct Cut<'a> {
    peers: &'a Set,
    /// By what was cut, as it lies in memory.
    known: HashMap<*const NodeId, Set>,
}

impl<'a> Cut<'a> {
    fn of(&mut self, whole: &'a Set) -> Set {
        let cut = || whole.intersection(self.peers);
        self.known.entry(whole.as_ptr()).or_insert_with(cut).clone()
    }
}

/// The orders of the default SaPs that are not that of the table, and with whom `owner` prefers them.
fn preferences(plan: &Plan, owner: NodeId, peers: &Set) -> BTreeMap<Vec<NodeId>, Vec<NodeId>> {
    let own = plan.preference.place(owner);
    // Members that are alike share an order; most are.
    let mut alike: BTreeMap<Option<&Place>, Vec<NodeId>> = BTreeMap::new();
    if plan.default_saps.len() > 1 {
        for &peer in peers {
            alike.entry(plan.preference.place(peer)).or_default().push(peer);
        }
    }
    let mut orders: BTreeMap<Vec<NodeId>, Vec<NodeId>> = BTreeMap::new();
    for (place, peers) in alike {
        orders.entry(plan.preference.order(own, place)).or_default().extend(peers);
    }
    orders.remove(&plan.default_saps);
    orders
}

/// Who is at the other end of a pair that may open in either direction: by an allow that no denial shadows,
/// or because both sides let something through. Of these two it is not asked whether they let the same
/// through, as little as whether denials of ports leave something of an allow.
fn open_ends(plan: &Plan, owner: NodeId, leaving: &[&Way], arriving: &[&Way]) -> Set {
    if !plan.members.contains(&owner) {
        return Set::default();
    }
    let leaving = Ends {
        ways: leaving,
        other_end: |way| &way.to_all,
        own: (Tier::Egress, &plan.isolated_out),
        other: (Tier::Ingress, &plan.isolated_in),
    };
    let arriving = Ends {
        ways: arriving,
        other_end: |way| &way.from,
        own: (Tier::Ingress, &plan.isolated_in),
        other: (Tier::Egress, &plan.isolated_out),
    };
    let open = leaving.open(plan, owner).union(&arriving.open(plan, owner));
    open.without(&Set::of(owner))
}

/// The ways of one member in one direction.
struct Ends<'a> {
    ways: &'a [&'a Way],
    other_end: fn(&Way) -> &Set,
    /// The tier of the member's own side, and who is isolated there.
    own: (Tier, &'a Isolated),
    /// The same of the side at the other end.
    other: (Tier, &'a Isolated),
}

impl Ends<'_> {
    fn open(&self, plan: &Plan, owner: NodeId) -> Set {
        let denials: Vec<&&Way> = self.ways.iter().filter(|way| way.tier == Tier::Deny).collect();
        let allows = self.ways.iter().filter(|w| matches!(w.tier, Tier::Allow | Tier::AuditAllow));
        let mut open: Vec<Set> = allows
            .map(|allow| {
                let shadows = denials.iter().filter(|deny| deny.shadows(allow));
                shadows.fold((self.other_end)(allow).clone(), |ends, deny| {
                    ends.without((self.other_end)(deny))
                })
            })
            .collect();
        let sides = denials
            .iter()
            .filter(|deny| deny.shadows_always())
            .fold(self.by_sides(plan, owner), |ends, deny| ends.without((self.other_end)(deny)));
        open.push(sides);
        Set::union_of(open.iter())
    }

    /// Whom both sides let something through with.
    fn by_sides(&self, plan: &Plan, owner: NodeId) -> Set {
        let spoken = |tier: Tier| {
            let ways = self.ways.iter().filter(|way| way.tier == tier);
            Set::union_of(ways.map(|way| (self.other_end)(way)))
        };
        let (own_tier, own) = self.own;
        let (other_tier, other) = self.other;
        let by_own_side = if own.all.contains(&owner) {
            spoken(own_tier)
        } else if plan.unspoken_passes() {
            plan.members.clone()
        } else {
            other.all.clone()
        };
        let opened = by_own_side.intersection(&spoken(other_tier));
        opened.union(&by_own_side.without(&other.all))
    }
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
