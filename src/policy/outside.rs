//! What members may open to addresses outside: for their guards, the only ones who see such packets.

use std::collections::BTreeSet;

use super::judge::tier;
use super::kubernetes::{Direction, Peer};
use super::plan::Plan;
use super::roster::Roster;
use super::select::{is_in_force, members_of};
use super::set::Set;
use super::{BoundSelector, RuleFacts, World};
use crate::api::table::{OutsideRow, OutsideTable};
use crate::types::{CidrBlock, NodeId, OverlayId, RuleId, Service, Tier, Timestamp};

/// What a rule or an item of a NetworkPolicy says of the outside, and of whose flows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutsideWay {
    pub(super) from: Set,
    row: OutsideRow,
}

impl OutsideWay {
    /// The rule or NetworkPolicy.
    pub(super) fn rule(&self) -> RuleId {
        self.row.id
    }
}

/// The ways to the outside of one overlay, by rule id; those of NetworkPolicies after them.
pub(super) fn ways(
    world: &World,
    roster: &Roster<'_>,
    overlay: OverlayId,
    now: Timestamp,
) -> Vec<OutsideWay> {
    let mut ways = Vec::new();
    let is_audit = world.overlays.get(&overlay).is_some_and(|facts| facts.is_audit);
    let rules = world.rules.iter().filter(|(_, r)| r.overlay == overlay && is_in_force(r, now));
    for (&id, rule) in rules {
        for (from, to) in directions(rule) {
            let blocks = blocks(world, overlay, to);
            let from = if blocks.is_empty() { Set::default() } else { roster.meant_by(from) };
            for block in blocks {
                let row =
                    row(id, tier(rule, is_audit), Some(block), &rule.services, rule.not_after);
                ways.extend(row.map(|row| OutsideWay { from: from.clone(), row }));
            }
        }
    }
    for (&id, facts) in world.network_policies.iter().filter(|(_, facts)| facts.overlay == overlay)
    {
        let policy = &facts.policy;
        let Some(items) = policy.rules(Direction::Egress) else { continue };
        let rows = items.iter().flat_map(|item| {
            let to_blocks = item.peers.iter().filter_map(|peer| match peer {
                Peer::Block(block) => Some(Some(block)),
                Peer::Pods { .. } => None,
            });
            // An item without peers means everybody, the outside included.
            let everybody = item.peers.is_empty().then_some(None);
            to_blocks
                .chain(everybody)
                .filter_map(move |block| row(id, Tier::Egress, block, &item.ports, None))
        });
        let rows: Vec<OutsideRow> = rows.collect();
        if !rows.is_empty() {
            let from = roster.where_facts(|facts| policy.selects(facts));
            ways.extend(rows.into_iter().map(|row| OutsideWay { from: from.clone(), row }));
        }
    }
    ways
}

/// `owner`'s part of it.
pub(super) fn table(plan: &Plan, owner: NodeId) -> OutsideTable {
    OutsideTable {
        unspoken_passes: plan.unspoken_passes()
            && plan.members.contains(&owner)
            && !plan.isolated_out.all.contains(&owner),
        rows: plan.outside_of(owner).map(|way| way.row.clone()).collect(),
    }
}

/// The members that the rule speaks of as starting flows to addresses outside, in force or not.
#[must_use]
pub fn outside_sources(world: &World, rule: &RuleFacts) -> BTreeSet<NodeId> {
    let to_outside =
        directions(rule).into_iter().filter(|(_, to)| !blocks(world, rule.overlay, to).is_empty());
    to_outside.flat_map(|(from, _)| members_of(world, rule.overlay, from)).collect()
}

fn directions(rule: &RuleFacts) -> Vec<(&BoundSelector, &BoundSelector)> {
    let forward = (&rule.from, &rule.to);
    if rule.both { vec![forward, (&rule.to, &rule.from)] } else { vec![forward] }
}

/// The addresses outside that a selector means.
fn blocks<'a>(
    world: &'a World,
    overlay: OverlayId,
    selector: &'a BoundSelector,
) -> Vec<&'a CidrBlock> {
    let held: Vec<&BoundSelector> = match selector {
        BoundSelector::Group(name) => world.group(overlay, name).collect(),
        BoundSelector::Cidr(_)
        | BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Service(_) => vec![selector],
    };
    let block = |selector: &'a BoundSelector| {
        if let BoundSelector::Cidr(block) = selector { Some(block) } else { None }
    };
    held.into_iter().filter_map(block).collect()
}

/// None where nothing is left: services that are all named mean nothing outside.
fn row(
    id: RuleId,
    tier: Tier,
    block: Option<&CidrBlock>,
    services: &[Service],
    not_after: Option<Timestamp>,
) -> Option<OutsideRow> {
    let mut numbered: Vec<Service> =
        services.iter().filter(|service| !matches!(service, Service::Named(..))).cloned().collect();
    numbered.sort();
    numbered.dedup();
    (services.is_empty() || !numbered.is_empty()).then(|| OutsideRow {
        id,
        tier,
        cidr: block.map(|block| block.cidr),
        except: block.map(|block| block.except.clone()).unwrap_or_default(),
        services: numbered,
        not_after,
    })
}
