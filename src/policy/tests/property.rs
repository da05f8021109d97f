//! Random worlds: tables, the evaluator, and a naive model written for this test say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use crate::api::admin::Semantics;
use crate::api::table::{Action, OverlayTable, PathHops, TableBody};
use crate::policy::judge::{End, Overview};
use crate::policy::kubernetes::Peer;
use crate::policy::random::{ENTITIES, NOW, PROBES, SAPS, V4, V6, world};
use crate::policy::testing::{FakeKeys, Reader, covers, service};
use crate::policy::{
    BoundSelector, Decision, Matrix, NetworkPolicyFacts, RuleFacts, Scene, World, compile,
    covered_pairs, difference, evaluate, path_between,
};
use crate::types::{Generation, Label, NodeId, NodeKind, OverlayId, RuleId, Service, Timestamp};

/// The naive model: one packet and one rule at a time.
mod model {
    use super::*;

    pub(super) fn is_member(world: &World, overlay: OverlayId, id: NodeId) -> bool {
        world.nodes.get(&id).is_some_and(|facts| facts.addresses.contains_key(&overlay))
    }

    fn is_kubernetes(world: &World, overlay: OverlayId) -> bool {
        world.overlays[&overlay].semantics == Semantics::Kubernetes
    }

    fn is_meant(world: &World, overlay: OverlayId, selector: &BoundSelector, id: NodeId) -> bool {
        let facts = &world.nodes[&id];
        let has_all =
            |labels: &BTreeSet<Label>| labels.iter().all(|label| facts.labels.contains(label));
        match selector {
            BoundSelector::Any => true,
            BoundSelector::Node(bound, _) => *bound == id,
            BoundSelector::Labels(labels) => has_all(labels),
            BoundSelector::Namespace(namespace) => facts.name.namespace == *namespace,
            BoundSelector::Group(name) => {
                world.group(overlay, name).any(|held| is_meant(world, overlay, held, id))
            }
            BoundSelector::Service(name) => world.service(overlay, name).is_some_and(has_all),
            BoundSelector::Cidr(block) => {
                is_kubernetes(world, overlay) && block.contains(facts.addresses[&overlay])
            }
        }
    }

    /// Whether the rule speaks of flows from `from` to `to`.
    pub(super) fn speaks(world: &World, rule: &RuleFacts, from: NodeId, to: NodeId) -> bool {
        let is_meant = |selector, id| is_meant(world, rule.overlay, selector, id);
        let along = |a, b| is_meant(&rule.from, a) && is_meant(&rule.to, b);
        along(from, to) || (rule.both && along(to, from))
    }

    /// Whether the rule's services cover the packet at `to`.
    fn serves(
        world: &World,
        (overlay, services): (OverlayId, &[Service]),
        to: NodeId,
        (protocol, port): (u8, u16),
    ) -> bool {
        let is_ipv6 = overlay == V6;
        services.is_empty()
            || services.iter().any(|wanted| match wanted {
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
        if let Some(id) = [from, to].into_iter().find(|id| world.nodes[id].is_quarantined) {
            return Decision::Quarantined(id);
        }
        let is_audit_mode = world.overlays[&overlay].is_audit;
        let matching = |action: Action, is_audit: bool| {
            let is_of_tier = |rule: &RuleFacts| {
                let counts_as_audit = rule.is_audit || (is_audit_mode && action == Action::Deny);
                rule.action == action && counts_as_audit == is_audit
            };
            let mut rules = world.rules.iter().filter(|(_, rule)| {
                rule.overlay == overlay
                    && is_of_tier(rule)
                    && rule.not_after.is_none_or(|end| at.0 < end.0)
                    && speaks(world, rule, from, to)
                    && serves(world, (overlay, &rule.services), to, (protocol, port))
            });
            rules.next().map(|(id, _)| *id)
        };
        if let Some(id) = matching(Action::Deny, false) {
            return Decision::Deny(id);
        }
        let egress = side(world, overlay, true, (from, to), Some((protocol, port)));
        let ingress = side(world, overlay, false, (from, to), Some((protocol, port)));
        let enforced = match (matching(Action::Allow, false), egress, ingress) {
            (Some(id), ..) => Decision::Allow(id),
            (None, Some((by, None)), _) | (None, _, Some((by, None))) => Decision::Isolated(by),
            (None, _, Some((_, Some(id)))) | (None, Some((_, Some(id))), None) => {
                Decision::Allow(id)
            }
            (None, None, None) if is_kubernetes(world, overlay) => Decision::Open,
            (None, None, None) => Decision::NoRule,
        };
        let audit_deny = matching(Action::Deny, true);
        let audit_allow = match is_audit_mode {
            true => Some(RuleId::AUDIT_MODE),
            false => matching(Action::Allow, true),
        };
        match (enforced.is_allow(), audit_deny, audit_allow) {
            (true, None, _) | (false, _, None) => enforced,
            (_, Some(id), _) | (false, None, Some(id)) => Decision::Audit(id),
        }
    }

    /// What NetworkPolicies say of one side: none when none isolates it, else the first that does, and
    /// the first that lets the packet through, or anything at all.
    fn side(
        world: &World,
        overlay: OverlayId,
        is_egress: bool,
        (from, to): (NodeId, NodeId),
        packet: Option<(u8, u16)>,
    ) -> Option<(RuleId, Option<RuleId>)> {
        let (own, other) = if is_egress { (from, to) } else { (to, from) };
        let (own, other) = (&world.nodes[&own], &world.nodes[&other]);
        let (mut by, mut passes) = (None, None);
        for (id, NetworkPolicyFacts { overlay: theirs, policy }) in &world.network_policies {
            let rules = if is_egress { &policy.egress } else { &policy.ingress };
            let is_selected =
                policy.namespace == own.name.namespace && policy.pods.matches(&own.labels);
            let (true, true, Some(rules)) = (*theirs == overlay, is_selected, rules) else {
                continue;
            };
            by = by.or(Some(*id));
            let is_peer = |peer: &Peer| match peer {
                Peer::Pods { namespaces, pods } => {
                    let namespace = &other.name.namespace;
                    let mut labels = world.namespaces.get(namespace).cloned().unwrap_or_default();
                    let named = format!("kubernetes.io/metadata.name={namespace}");
                    labels.insert(named.parse().unwrap());
                    let is_there = match namespaces {
                        None => *namespace == policy.namespace,
                        Some(selector) => selector.matches(&labels),
                    };
                    is_there && pods.matches(&other.labels)
                }
                Peer::Block(block) => {
                    is_kubernetes(world, overlay) && block.contains(other.addresses[&overlay])
                }
            };
            let lets_through = rules.iter().any(|rule| {
                let ports = (overlay, &rule.ports[..]);
                (rule.peers.is_empty() || rule.peers.iter().any(is_peer))
                    && match packet {
                        Some(packet) => serves(world, ports, to, packet),
                        None => packets().any(|packet| serves(world, ports, to, packet)),
                    }
            });
            passes = passes.or(lets_through.then_some(*id));
        }
        Some((by?, passes))
    }

    /// Enough packets for every service that random worlds name.
    fn packets() -> impl Iterator<Item = (u8, u16)> {
        (0..=u8::MAX).flat_map(|protocol| {
            [0, 80, 443, 8080, 53, 8000].into_iter().map(move |port| (protocol, port))
        })
    }

    /// Whether a key is due: at some time the pair has an allow, or passes both sides whatever the
    /// ports, and no all-services denial takes it away.
    pub(super) fn may_talk(world: &World, overlay: OverlayId, from: NodeId, to: NodeId) -> bool {
        if [from, to].iter().any(|id| world.nodes[id].is_quarantined) {
            return false;
        }
        let is_audit_mode = world.overlays[&overlay].is_audit;
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
        let egress = side(world, overlay, true, (from, to), None);
        let ingress = side(world, overlay, false, (from, to), None);
        let passes = |side: Option<(RuleId, Option<RuleId>)>| {
            side.is_none_or(|(_, passes)| passes.is_some())
        };
        let is_spoken_of = egress.is_some() || ingress.is_some() || is_kubernetes(world, overlay);
        let passes_sides = is_spoken_of && passes(egress) && passes(ingress);
        times.into_iter().any(|at| {
            let mut denials = in_force(at, Action::Deny).filter(|deny| !deny.is_audit);
            (is_audit_mode || denials.all(|deny| !deny.services.is_empty()))
                && (passes_sides
                    || is_audit_mode
                    || in_force(at, Action::Allow).any(|allow| {
                        let services = (overlay, &allow.services[..]);
                        packets().any(|packet| serves(world, services, to, packet))
                    }))
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
        let along =
            |a, b| model::speaks(world, &RuleFacts { both: false, ..RuleFacts::clone(rule) }, a, b);
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
    let reach = Overview::new(world, overlay, NOW).reach(&End::Member(from), &End::Member(to));
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
        let is_reached = reach.iter().any(|span| {
            (span.protocols.0..=span.protocols.1).contains(&number)
                && (span.ports.0..=span.ports.1).contains(&port)
        });
        prop_assert_eq!(
            is_reached,
            expected.is_allow(),
            "the matrix: {} -> {} {}",
            from,
            to,
            asked
        );
        // Nodes end rules by themselves: old tables must be right later, too.
        for at in [NOW, Timestamp(101), Timestamp(200)] {
            let verdict = model::verdict(world, overlay, (from, to), (number, port), at);
            let is_allowed = verdict.is_allow();
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
    fn tables_the_evaluator_and_a_naive_model_agree(world in world(), policy in world(), few: bool) {
        // The same members under another policy, or under one that differs in little.
        let mut other = World { network_policies: policy.network_policies, ..world.clone() };
        if few {
            other = World { rules: world.rules.iter().skip(1).map(|(i, r)| (*i, Arc::clone(r))).collect(), ..world.clone() };
        }
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
        for overlay in [V4, V6] {
            let [was, is] = [&other, &world].map(|world| Scene::of(world, overlay, NOW));
            let is_same = Matrix::new(&was) == Matrix::new(&is);
            prop_assert_eq!(difference(&was, &is).is_empty(), is_same);
        }
        for rule in world.rules.values() {
            let all = pairs(&world, rule.overlay).into_iter();
            let spoken_of = all.filter(|(a, b)| model::speaks(&world, rule, *a, *b)).count();
            prop_assert_eq!(covered_pairs(&world, rule), u64::try_from(spoken_of).unwrap());
        }
    }
}
