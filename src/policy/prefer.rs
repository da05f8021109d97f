//! Which SaP a pair goes over: one by default, the others in the order in which they stand in for it.
//!
//! A SaP on the same host goes before one in the same zone, that one before those that are near by
//! round trips of both legs. The same answer in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Drain, NodeFacts, World};
use crate::types::NodeId;

/// The keys of labels that name a zone; the first that a node has counts.
const ZONE_KEYS: [&str; 2] = ["zone", "topology.kubernetes.io/zone"];

/// What is to be known of a member to order its pairs' SaPs: members that are alike share one order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// For each SaP: its host, its zone, the round trip in microseconds.
    near: Vec<(bool, bool, Option<u32>)>,
}

/// The SaPs of an overlay, for the pairs without a path of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Preference {
    saps: Vec<NodeId>,
    places: BTreeMap<NodeId, Place>,
    /// SaPs that are being drained go last.
    leaving: BTreeSet<NodeId>,
}

/// The zone of a node; none where no label says so.
#[must_use]
pub fn zone(facts: &NodeFacts) -> Option<&str> {
    let of = |key: &str| facts.labels.iter().find(|label| label.key == key);
    ZONE_KEYS.iter().find_map(|key| of(key)).map(|label| label.value.as_str())
}

impl Preference {
    /// Of `saps`, for `members`.
    pub(super) fn new<'a>(
        world: &World,
        saps: &[NodeId],
        members: impl Iterator<Item = (NodeId, &'a NodeFacts)>,
    ) -> Self {
        // One SaP needs no order.
        let known = |id: &NodeId| world.nodes.get(id).map(|facts| &**facts);
        let facts: Vec<_> = saps.iter().filter_map(|id| Some((*id, known(id)?))).collect();
        let mut places = BTreeMap::new();
        if facts.len() > 1 {
            let stands: Vec<Stand<'_>> =
                facts.iter().map(|(id, sap)| Stand::of(*id, sap)).collect();
            places = members.filter_map(|(id, facts)| Some((id, place(&stands, facts)?))).collect();
        }
        let leaving = facts.iter().filter(|(_, facts)| facts.drain != Drain::No);
        Self { saps: saps.to_vec(), leaving: leaving.map(|(id, _)| *id).collect(), places }
    }

    /// Where the member stands; none where it is near no SaP.
    pub(super) fn place(&self, id: NodeId) -> Option<&Place> {
        self.places.get(&id)
    }

    /// The SaPs for a pair, best first.
    pub(super) fn order(&self, one: Option<&Place>, two: Option<&Place>) -> Vec<NodeId> {
        let near = |place: Option<&Place>, at: usize| {
            place.and_then(|place| place.near.get(at).copied()).unwrap_or_default()
        };
        let mut ranked: Vec<_> = (0..)
            .zip(&self.saps)
            .map(|(at, &sap)| {
                let legs = [near(one, at), near(two, at)];
                let far = |is_near: fn((bool, bool, Option<u32>)) -> bool| {
                    legs.iter().filter(|leg| !is_near(**leg)).count()
                };
                let unmeasured = far(|(_, _, leg)| leg.is_some());
                let sum: u64 = legs.iter().filter_map(|(_, _, leg)| *leg).map(u64::from).sum();
                let (hosts, zones) = (far(|(host, _, _)| host), far(|(_, zone, _)| zone));
                (self.leaving.contains(&sap), hosts, zones, unmeasured, sum, sap)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(.., sap)| sap).collect()
    }
}

/// Where a SaP stands.
struct Stand<'a> {
    sap: NodeId,
    hosts: Vec<IpAddr>,
    zone: Option<&'a str>,
}

impl<'a> Stand<'a> {
    fn of(sap: NodeId, facts: &'a NodeFacts) -> Self {
        let hosts = facts.endpoints.iter().map(|endpoint| endpoint.ip()).collect();
        Self { sap, hosts, zone: zone(facts) }
    }

    /// Whether it is on the member's host and in its zone, and how far away.
    fn near(&self, member: &NodeFacts, zone: Option<&str>) -> (bool, bool, Option<u32>) {
        let is_same_host = member.endpoints.iter().any(|end| self.hosts.contains(&end.ip()));
        let is_same_zone = zone.is_some() && zone == self.zone;
        (is_same_host, is_same_zone, member.round_trips.get(&self.sap).copied())
    }
}

/// None where it is near none of them, as far as is known: most members of a large overlay may be so.
fn place(saps: &[Stand<'_>], member: &NodeFacts) -> Option<Place> {
    let zone = zone(member);
    let near = || saps.iter().map(|sap| sap.near(member, zone));
    near().any(|near| near != Default::default()).then(|| Place { near: near().collect() })
}

/// The SaPs for a pair of members, best first, out of `saps`.
pub(super) fn saps_for(world: &World, saps: &[NodeId], pair: [NodeId; 2]) -> Vec<NodeId> {
    let known = |id: &NodeId| Some((*id, &**world.nodes.get(id)?));
    let preference = Preference::new(world, saps, pair.iter().filter_map(known));
    let [one, two] = pair.map(|id| preference.place(id));
    preference.order(one, two)
}
