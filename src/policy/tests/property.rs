//! Random worlds: tables, the evaluator, and a naive model written for this test say the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::api::table::{Action, OverlayTable, PathHops, TableBody};
use crate::policy::random::{ENTITIES, NOW, PROBES, SAPS, V4, V6, world};
use crate::policy::testing::{FakeKeys, Reader, covers, service};
use crate::policy::{
    BoundSelector, Decision, RuleFacts, World, compile, covered_pairs, evaluate, path_between,
};
use crate::types::{Generation, NodeId, NodeKind, OverlayId, Service, Timestamp};

/// The naive model: one packet and one rule at a time.
mod model {
    use super::*;

    pub(super) fn is_member(world: &World, overlay: OverlayId, id: NodeId) -> bool {
        world.nodes.get(&id).is_some_and(|facts| facts.addresses.contains_key(&overlay))
    }

    fn is_meant(world: &World, selector: &BoundSelector, id: NodeId) -> bool {
        let facts = &world.nodes[&id];
        match selector {
            BoundSelector::Any => true,
            BoundSelector::Node(bound, _) => *bound == id,
            BoundSelector::Labels(labels) => labels.iter().all(|l| facts.labels.contains(l)),
            BoundSelector::Namespace(namespace) => facts.name.namespace == *namespace,
            BoundSelector::Group(_) | BoundSelector::Service(_) | BoundSelector::Cidr(_) => {
                unreachable!("not made here")
            }
        }
    }

    /// Whether the rule speaks of flows from `from` to `to`.
    pub(super) fn speaks(world: &World, rule: &RuleFacts, from: NodeId, to: NodeId) -> bool {
        let along = |a, b| is_meant(world, &rule.from, a) && is_meant(world, &rule.to, b);
        along(from, to) || (rule.both && along(to, from))
    }

    /// Whether the rule's services cover the packet at `to`.
    fn serves(world: &World, rule: &RuleFacts, to: NodeId, protocol: u8, port: u16) -> bool {
        let is_ipv6 = rule.overlay == V6;
        rule.services.is_empty()
            || rule.services.iter().any(|wanted| match wanted {
                Service::Named(protocol_wanted, name) => {
                    world.nodes[&to].ports.get(name).into_iter().flatten().any(|have| {
                        have.protocol() == *protocol_wanted && covers(have, protocol, port, is_ipv6)
                    })
                }
                Service::Protocol(_) | Service::Ports(..) => {
                    covers(wanted, protocol, port, is_ipv6)
                }
            })
    }

    /// May the packet open a flow at the given time?
    pub(super) fn verdict(
        world: &World,
        overlay: OverlayId,
        (from, to): (NodeId, NodeId),
        (protocol, port): (u8, u16),
        at: Timestamp,
    ) -> Decision {
        let matching = |action: Action| {
            world
                .rules
                .iter()
                .find(|(_, rule)| {
                    rule.overlay == overlay
                        && rule.action == action
                        && rule.not_after.is_none_or(|end| at.0 < end.0)
                        && speaks(world, rule, from, to)
                        && serves(world, rule, to, protocol, port)
                })
                .map(|(id, _)| *id)
        };
        if let Some(id) = matching(Action::Deny) {
            Decision::Deny(id)
        } else {
            matching(Action::Allow).map_or(Decision::NoRule, Decision::Allow)
        }
    }

    /// Whether a key is due: at some time the pair has an allow that no all-services denial takes away.
    pub(super) fn may_talk(world: &World, overlay: OverlayId, from: NodeId, to: NodeId) -> bool {
        let ends = world.rules.values().filter_map(|rule| rule.not_after).filter(|end| *end > NOW);
        let times: BTreeSet<Timestamp> = ends.chain([NOW]).collect();
        let in_force = |at: Timestamp, action: Action| {
            world.rules.values().filter(move |rule| {
                rule.overlay == overlay
                    && rule.action == action
                    && rule.not_after.is_none_or(|end| at < end)
                    && speaks(world, rule, from, to)
            })
        };
        times.into_iter().any(|at| {
            let all_services = (0..=u8::MAX)
                .flat_map(|protocol| [0, 80, 443, 8080, 53, 8000].map(|port| (protocol, port)));
            in_force(at, Action::Deny).all(|deny| !deny.services.is_empty())
                && in_force(at, Action::Allow).any(|allow| {
                    let mut packets = all_services.clone();
                    packets.any(|(protocol, port)| serves(world, allow, to, protocol, port))
                })
        })
    }
}

fn table(tables: &BTreeMap<NodeId, TableBody>, id: NodeId, overlay: OverlayId) -> &OverlayTable {
    tables[&id].overlays.iter().find(|table| table.id == overlay).unwrap()
}

fn pairs(world: &World, overlay: OverlayId) -> Vec<(NodeId, NodeId)> {
    let members: Vec<NodeId> =
        (1..=ENTITIES).map(NodeId).filter(|id| model::is_member(world, overlay, *id)).collect();
    let all = members.iter().flat_map(|a| members.iter().map(|b| (*a, *b)));
    all.filter(|(a, b)| a != b).collect()
}

fn check_pair(
    world: &World,
    tables: &BTreeMap<NodeId, TableBody>,
    overlay: OverlayId,
    (from, to): (NodeId, NodeId),
) -> Result<(), TestCaseError> {
    let candidates = path_between(world, overlay, from, to, NOW);
    let backwards = path_between(world, overlay, to, from, NOW);
    let has_own_path = world.rules.values().any(|rule| {
        let along = |a, b| model::speaks(world, &RuleFacts { both: false, ..rule.clone() }, a, b);
        rule.overlay == overlay
            && rule.path.is_some()
            && rule.not_after.is_none_or(|end| NOW < end)
            && (along(from, to) || along(to, from))
    });
    let is_broken = has_own_path && candidates.is_empty();
    prop_assert_eq!(candidates.len(), backwards.len());
    for (there, back) in candidates.iter().zip(&backwards) {
        let mut turned = there.clone();
        if let PathHops::Via(chain) = &mut turned {
            chain.reverse();
        }
        prop_assert_eq!(&turned, back, "a path is walked backwards");
    }
    let on_path: BTreeSet<NodeId> = candidates
        .iter()
        .flat_map(|hops| match hops {
            PathHops::Via(chain) => chain.clone(),
            PathHops::Direct | PathHops::Elsewhere => Vec::new(),
        })
        .collect();
    let is_ipv6 = overlay == V6;
    let mut passes = false;
    for (protocol, port) in PROBES {
        let number = protocol.number(is_ipv6);
        let asked = if protocol.has_ports() {
            service(&format!("{protocol}/{port}"))
        } else {
            Service::Protocol(protocol)
        };
        let evaluated = evaluate(world, overlay, from, to, &asked, NOW);
        let expected = model::verdict(world, overlay, (from, to), (number, port), NOW);
        prop_assert_eq!(evaluated, expected, "{} -> {} {}", from, to, asked);
        // Nodes end rules by themselves: old tables must be right later, too.
        for at in [NOW, Timestamp(101), Timestamp(200)] {
            let verdict = model::verdict(world, overlay, (from, to), (number, port), at);
            let is_allowed = matches!(verdict, Decision::Allow(_));
            passes |= is_allowed && !is_broken;
            for end in [from, to] {
                let opens = Reader(table(tables, end, overlay)).opens(from, to, number, port, at);
                prop_assert_eq!(
                    opens,
                    is_allowed && !is_broken,
                    "table of {}: {} -> {} {} at {}",
                    end,
                    from,
                    to,
                    asked,
                    at.0
                );
            }
            for sap in saps_of(world, overlay) {
                let reader = Reader(table(tables, sap, overlay));
                let hops = reader.hops(from, to);
                let crosses = hops != Some(PathHops::Elsewhere);
                let opens = crosses && reader.opens(from, to, number, port, at);
                prop_assert_eq!(
                    opens,
                    is_allowed && on_path.contains(&sap),
                    "table of {}: {} -> {} {} at {}",
                    sap,
                    from,
                    to,
                    asked,
                    at.0
                );
                if opens && has_own_path {
                    prop_assert_eq!(hops.as_ref(), candidates.first());
                }
            }
        }
    }
    let mine = Reader(table(tables, from, overlay));
    let is_peer = !is_broken
        && (model::may_talk(world, overlay, from, to) || model::may_talk(world, overlay, to, from));
    prop_assert_eq!(mine.members().contains(&to), is_peer, "{} in the table of {}", to, from);
    prop_assert_eq!(mine.sends().contains(&to), is_peer);
    if is_peer {
        let own = has_own_path.then(|| candidates.first().cloned()).flatten();
        prop_assert_eq!(mine.reachable().contains(&to), own == Some(PathHops::Direct));
        prop_assert_eq!(mine.hops(from, to), own);
    }
    for sap in on_path.iter().filter(|_| passes) {
        let targets = Reader(table(tables, *sap, overlay)).targets();
        prop_assert!(targets.contains(&from) && targets.contains(&to), "Kb of both, for replies");
        for end in [from, to] {
            prop_assert!(tables[&end].saps.iter().any(|row| row.id == *sap));
            prop_assert!(tables[&end].links.iter().any(|row| row.peer == *sap));
            prop_assert!(tables[sap].links.iter().any(|row| row.peer == end));
        }
    }
    Ok(())
}

fn saps_of(world: &World, overlay: OverlayId) -> Vec<NodeId> {
    (11..11 + SAPS).map(NodeId).filter(|id| world.nodes[id].serves.contains(&overlay)).collect()
}

fn check_form(id: NodeId, body: &TableBody, world: &World) -> Result<(), TestCaseError> {
    prop_assert!(body.saps.is_sorted_by_key(|row| row.id));
    prop_assert!(body.links.is_sorted_by_key(|row| row.id));
    prop_assert!(body.overlays.is_sorted_by_key(|table| table.id));
    for table in &body.overlays {
        let members = u32::try_from(table.members.len()).unwrap();
        prop_assert!(table.members.is_sorted_by(|a, b| a.id < b.id));
        prop_assert!(table.sets.iter().all(|set| set.is_sorted_by(|a, b| a < b)));
        prop_assert!(table.sets.iter().all(|set| !set.is_empty()));
        prop_assert!(table.sets.iter().flatten().all(|&index| index < members));
        let distinct: BTreeSet<_> = table.sets.iter().collect();
        prop_assert_eq!(distinct.len(), table.sets.len());
        prop_assert!(table.rules.is_sorted_by_key(|row| (row.id, row.from, row.to)));
        prop_assert!(table.rules.iter().all(|row| row.not_after.is_none_or(|end| NOW < end)));
        prop_assert!(table.destination_keys.is_sorted_by(|a, b| a.to < b.to));
        prop_assert!(table.send_keys.is_sorted_by(|a, b| a.to < b.to));
        if world.nodes[&id].kind == NodeKind::Entity {
            prop_assert_eq!(Reader(table).targets(), BTreeSet::from([id]), "nobody else's Kb");
            prop_assert!(table.paths.iter().all(|row| row.hops != PathHops::Elsewhere));
            prop_assert!(!Reader(table).sends().contains(&id));
            let own = table.members.iter().position(|row| row.id == id);
            let is_own =
                |set: u32| table.sets[set as usize].iter().any(|&i| Some(i as usize) == own);
            prop_assert!(table.rules.iter().all(|row| is_own(row.from) != is_own(row.to)));
            for member in table.members.iter().filter(|member| member.id != id) {
                prop_assert!(Reader(table).sends().contains(&member.id));
            }
        } else {
            prop_assert!(table.send_keys.is_empty());
        }
        // Tables go over the wire and to disk.
        let json = serde_json::to_string(table).unwrap();
        prop_assert_eq!(&serde_json::from_str::<OverlayTable>(&json).unwrap(), table);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn tables_the_evaluator_and_a_naive_model_agree(world in world()) {
        let rotated = BTreeMap::from([((NodeId(1), NodeId(2)), vec![Generation(1)])]);
        let keys = FakeKeys { rotated };
        let tables = compile(&world, &keys, NOW);

        prop_assert_eq!(tables.len(), world.nodes.len());
        prop_assert_eq!(&tables, &compile(&world, &keys, NOW), "same input, same output");
        for (id, body) in &tables {
            check_form(*id, body, &world)?;
        }
        for overlay in [V4, V6] {
            for pair in pairs(&world, overlay) {
                check_pair(&world, &tables, overlay, pair)?;
            }
        }
        for rule in world.rules.values() {
            let all = pairs(&world, rule.overlay).into_iter();
            let spoken_of = all.filter(|(a, b)| model::speaks(&world, rule, *a, *b)).count();
            prop_assert_eq!(covered_pairs(&world, rule), u64::try_from(spoken_of).unwrap());
        }
    }
}
