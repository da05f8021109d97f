//! Whether NetworkPolicies isolate a pod in one direction, and what they then let through.

use super::{Direction, NetworkPolicy, Peer};
use crate::policy::scene::{End, Scene};
use crate::policy::select::is_member;
use crate::policy::span::{Span, spans_at};
use crate::policy::{NodeFacts, World};
use crate::types::{EntityName, NodeId, OverlayId};

/// What the NetworkPolicies say of one direction of one pod.
pub(in crate::policy) enum Side {
    /// None selects the pod in this direction: everything passes.
    Open,
    /// Only this passes.
    Isolated {
        /// The first policy that selects the pod.
        by: String,
        /// What each rule lets through between the two ends, with its name.
        allowed: Vec<(String, Vec<Span>)>,
    },
}

/// What the policies say of flows `from` one end `to` the other, on the side of the pod that the
/// direction speaks of; the outside has no side.
pub(in crate::policy) fn side(scene: &Scene, direction: Direction, from: &End, to: &End) -> Side {
    let (own, other) = match direction {
        Direction::Ingress => (to, from),
        Direction::Egress => (from, to),
    };
    let End::Member(pod) = own else { return Side::Open };
    let mut first = None;
    let mut allowed = Vec::new();
    for policy in scene.policies_of(*pod) {
        let Some(rules) = policy.rules(direction) else { continue };
        first.get_or_insert_with(|| format!("NetworkPolicy {}", policy.full_name()));
        for (index, rule) in rules.iter().enumerate() {
            let is_peer = rule.peers.is_empty()
                || rule.peers.iter().any(|peer| peer_means(scene, policy, peer, other));
            if is_peer {
                // Named ports are those of the destination, whichever side the policy is on.
                let spans = spans_at(&rule.ports, scene.is_ipv6(to), scene.ports_of(to));
                let name = policy.full_name();
                allowed
                    .push((format!("NetworkPolicy {name} {}[{index}]", direction.field()), spans));
            }
        }
    }
    match first {
        None => Side::Open,
        Some(by) => Side::Isolated { by, allowed },
    }
}

/// Whether the policy selects this pod.
pub(in crate::policy) fn side_selects(scene: &Scene, policy: &NetworkPolicy, pod: NodeId) -> bool {
    scene.facts(pod).is_some_and(|facts| {
        facts.name.namespace == policy.namespace && policy.pods.matches(&facts.labels)
    })
}

/// The members of an overlay that the policy selects, by id.
#[must_use]
pub fn selected(
    world: &World,
    overlay: OverlayId,
    policy: &NetworkPolicy,
) -> Vec<(EntityName, NodeId)> {
    let is_selected = |facts: &NodeFacts| {
        is_member(facts, overlay)
            && facts.name.namespace == policy.namespace
            && policy.pods.matches(&facts.labels)
    };
    let members = world.nodes.iter().filter(|(_, facts)| is_selected(facts));
    members.map(|(id, facts)| (facts.name.clone(), *id)).collect()
}

/// Whether a peer of the policy means this end.
pub(in crate::policy) fn peer_means(
    scene: &Scene,
    policy: &NetworkPolicy,
    peer: &Peer,
    end: &End,
) -> bool {
    match (peer, end) {
        (Peer::Pods { .. }, End::Outside(_)) => false,
        (Peer::Pods { namespaces, pods }, End::Member(id)) => {
            scene.facts(*id).is_some_and(|facts| {
                let namespace = &facts.name.namespace;
                let is_there = match namespaces {
                    None => *namespace == policy.namespace,
                    Some(selector) => selector.matches(scene.namespace_labels(namespace)),
                };
                is_there && pods.matches(&facts.labels)
            })
        }
        (Peer::Block(block), end) => {
            scene.block_address(end).is_some_and(|address| block.contains(address))
        }
    }
}
