//! Which members a selector means, and which pairs a rule covers.
//!
//! A pair of a member with itself never counts: packets of a host to itself stay in the host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{BoundSelector, NodeFacts, RuleFacts, World};
use crate::api::admin::Semantics;
use crate::types::{EntityName, NodeId, NodeKind, OverlayId, Timestamp};

/// Whether the rule has not ended.
#[must_use]
pub fn is_in_force(rule: &RuleFacts, now: Timestamp) -> bool {
    rule.not_after.is_none_or(|end| now < end)
}

/// When the next of the rules in force ends, so that tables are compiled again then.
#[must_use]
pub fn next_expiry(world: &World, now: Timestamp) -> Option<Timestamp> {
    world.rules.values().filter_map(|rule| rule.not_after).filter(|end| now < *end).min()
}

/// The members of `overlay` that `selector` means.
#[must_use]
pub fn members_of(world: &World, overlay: OverlayId, selector: &BoundSelector) -> BTreeSet<NodeId> {
    if let BoundSelector::Node(id, _) = selector {
        return member(world, overlay, *id).map(|_| *id).into_iter().collect();
    }
    let is_meant = |(id, facts): (&NodeId, &Arc<NodeFacts>)| {
        (is_member(facts, overlay) && selects(world, overlay, selector, *id, facts)).then_some(*id)
    };
    world.nodes.iter().filter_map(is_meant).collect()
}

/// How many ordered pairs of members the rule covers; both directions count when it holds in both.
#[must_use]
pub fn covered_pairs(world: &World, rule: &RuleFacts) -> u64 {
    let (from, to) = ends(world, rule);
    let count = |set: &BTreeSet<NodeId>| u64::try_from(set.len()).unwrap_or(u64::MAX);
    let shared = u64::try_from(from.intersection(&to).count()).unwrap_or(u64::MAX);
    let one_way = count(&from) * count(&to) - shared;
    if rule.both {
        // Pairs within the shared members are covered by both directions; they count once.
        2 * one_way - shared * shared.saturating_sub(1)
    } else {
        one_way
    }
}

/// Entities that the rule names and that are gone or no longer members: it does nothing for them.
#[must_use]
pub fn dangling(world: &World, rule: &RuleFacts) -> Vec<EntityName> {
    let gone = |selector: &BoundSelector| match selector {
        BoundSelector::Node(id, name) if member(world, rule.overlay, *id).is_none() => {
            Some(name.clone())
        }
        BoundSelector::Node(..)
        | BoundSelector::Any
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Cidr(_) => None,
    };
    let names: BTreeSet<EntityName> = [&rule.from, &rule.to].into_iter().filter_map(gone).collect();
    names.into_iter().collect()
}

/// The members that are the destination of a pair that the rule covers.
#[must_use]
pub fn concerned_destinations(world: &World, rule: &RuleFacts) -> BTreeSet<NodeId> {
    let (from, to) = ends(world, rule);
    let mut found = with_another(&to, &from);
    if rule.both {
        found.extend(with_another(&from, &to));
    }
    found
}

/// The members that are the source of a pair that the rule covers.
#[must_use]
pub fn rule_sources(world: &World, rule: &RuleFacts) -> BTreeSet<NodeId> {
    let (from, to) = ends(world, rule);
    let mut found = with_another(&from, &to);
    if rule.both {
        found.extend(with_another(&to, &from));
    }
    found
}

/// The members at both ends of the rule, as it is written.
pub(super) fn ends(world: &World, rule: &RuleFacts) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    (members_of(world, rule.overlay, &rule.from), members_of(world, rule.overlay, &rule.to))
}

/// The facts of `id` when it is a member of `overlay`.
pub(super) fn member(world: &World, overlay: OverlayId, id: NodeId) -> Option<&NodeFacts> {
    world.nodes.get(&id).map(|facts| &**facts).filter(|facts| is_member(facts, overlay))
}

/// Whether the node is a member of `overlay`.
pub(super) fn is_member(facts: &NodeFacts, overlay: OverlayId) -> bool {
    match facts.kind {
        NodeKind::Entity => facts.addresses.contains_key(&overlay),
        NodeKind::Sap => false,
    }
}

/// The member's address; none in an inventory that gives it none, which is kept as `0.0.0.0`.
pub(super) fn member_address(facts: &NodeFacts, overlay: OverlayId) -> Option<IpAddr> {
    facts.addresses.get(&overlay).copied().filter(|address| !address.is_unspecified())
}

/// Whether `selector` means this member of `overlay`.
pub(super) fn selects(
    world: &World,
    overlay: OverlayId,
    selector: &BoundSelector,
    id: NodeId,
    facts: &NodeFacts,
) -> bool {
    match selector {
        BoundSelector::Any => true,
        BoundSelector::Node(bound, _) => *bound == id,
        BoundSelector::Labels(labels) => labels.is_subset(&facts.labels),
        BoundSelector::Namespace(namespace) => facts.name.namespace == *namespace,
        BoundSelector::Group(name) => {
            let held = world.group(overlay, name);
            held.filter(|held| !matches!(held, BoundSelector::Group(_)))
                .any(|held| selects(world, overlay, held, id, facts))
        }
        BoundSelector::Service(name) => {
            world.service(overlay, name).is_some_and(|labels| labels.is_subset(&facts.labels))
        }
        BoundSelector::Cidr(block) => {
            let speaks_of_members = world
                .overlays
                .get(&overlay)
                .is_some_and(|overlay| overlay.semantics == Semantics::Kubernetes);
            speaks_of_members
                && member_address(facts, overlay).is_some_and(|address| block.contains(address))
        }
    }
}

/// Whether `selector` means an address outside the overlay.
pub(super) fn selects_outside(
    world: &World,
    overlay: OverlayId,
    selector: &BoundSelector,
    address: IpAddr,
) -> bool {
    match selector {
        BoundSelector::Cidr(block) => block.contains(address),
        BoundSelector::Group(name) => {
            let held = world.group(overlay, name);
            held.filter(|held| !matches!(held, BoundSelector::Group(_)))
                .any(|held| selects_outside(world, overlay, held, address))
        }
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => false,
    }
}

/// Whether the SaP can carry packets of `overlay`: it is there, serves it, and can be reached.
#[must_use]
pub fn carries(world: &World, sap: NodeId, overlay: OverlayId) -> bool {
    world.nodes.get(&sap).is_some_and(|facts| {
        facts.kind == NodeKind::Sap
            && facts.serves.contains(&overlay)
            && !facts.endpoints.is_empty()
    })
}

/// Those of `set` that have somebody else in `others`.
fn with_another(set: &BTreeSet<NodeId>, others: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let has_another = |id: &NodeId| others.len() > usize::from(others.contains(id));
    set.iter().copied().filter(has_another).collect()
}
