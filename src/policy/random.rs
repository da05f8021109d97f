//! Random worlds, for property tests of this room and of those that use its tables.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::kubernetes::{METADATA_NAME, NetworkPolicy, Peer, PolicyRule};
use super::testing::{add_node, add_overlay, link_all, service};
use super::{BoundSelector, LabelSelector, NetworkPolicyFacts, Requirement, RuleFacts, World};
use crate::api::admin::Semantics;
use crate::api::table::{Action, PathHops};
use crate::types::{
    CidrBlock, Name, NodeId, NodeKind, OverlayId, Protocol, RuleId, Service, Timestamp,
};

/// When random worlds are looked at.
pub(crate) const NOW: Timestamp = Timestamp(100);
/// Entities are 1 to this.
pub(crate) const ENTITIES: u32 = 5;
/// SaPs are 11 and on.
pub(crate) const SAPS: u32 = 3;
/// The IPv4 overlay.
pub(crate) const V4: OverlayId = OverlayId(1);
/// The IPv6 overlay.
pub(crate) const V6: OverlayId = OverlayId(2);
/// What packets are asked about: protocol as a rule names it, port.
pub(crate) const PROBES: [(Protocol, u16); 8] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 8080),
    (Protocol::Tcp, 443),
    (Protocol::Udp, 80),
    (Protocol::Udp, 53),
    (Protocol::Icmp, 0),
    (Protocol::Number(47), 0),
    (Protocol::Sctp, 1),
];

fn services() -> impl Strategy<Value = Vec<Service>> {
    let one = prop::sample::select(vec![
        "tcp",
        "tcp/80",
        "tcp/8000-8999",
        "udp",
        "udp/53",
        "icmp",
        "47",
        "tcp/http",
        "udp/http",
        "tcp/gone",
    ]);
    prop_oneof![
        2 => Just(Vec::new()),
        3 => vec(one.prop_map(service), 1..3),
    ]
}

fn selector() -> impl Strategy<Value = BoundSelector> {
    prop_oneof![
        1 => Just(BoundSelector::Any),
        // One more than there are: a rule that dangles.
        4 => (1..=ENTITIES + 1).prop_map(|id| {
            BoundSelector::Node(NodeId(id), format!("e{id}").parse().unwrap())
        }),
        2 => prop::sample::subsequence(vec!["a=1", "b=1"], 1..=2).prop_map(|labels| {
            BoundSelector::Labels(labels.iter().map(|label| label.parse().unwrap()).collect())
        }),
        1 => prop::sample::select(vec!["default", "shop"])
            .prop_map(|name| BoundSelector::Namespace(Name::new(name).unwrap())),
        1 => prop::sample::select(vec!["team", "gone"])
            .prop_map(|name| BoundSelector::Group(Name::new(name).unwrap())),
        1 => prop::sample::select(vec!["api", "gone"])
            .prop_map(|name| BoundSelector::Service(Name::new(name).unwrap())),
        1 => block().prop_map(BoundSelector::Cidr),
    ]
}

fn block() -> impl Strategy<Value = CidrBlock> {
    let blocks = vec!["10.70.0.0/30!10.70.0.2/32", "fd70::/126", "203.0.113.0/24", "0.0.0.0/0"];
    prop::sample::select(blocks).prop_map(|text| text.parse().unwrap())
}

fn label_selector() -> impl Strategy<Value = LabelSelector> {
    let value = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let requirement = prop::sample::select(vec![
        Requirement::In("a".to_owned(), value(&["1"])),
        Requirement::NotIn("b".to_owned(), value(&["1", "2"])),
        Requirement::Exists("b".to_owned()),
    ]);
    vec(requirement, 0..2).prop_map(|requirements| LabelSelector { requirements })
}

fn policy_rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let value = |text: &str| [text.to_owned()].into();
    let namespaces = prop::sample::select(vec![
        None,
        Some(LabelSelector::default()),
        Some(LabelSelector {
            requirements: vec![Requirement::In("color".to_owned(), value("red"))],
        }),
        Some(LabelSelector {
            requirements: vec![Requirement::In(METADATA_NAME.to_owned(), value("default"))],
        }),
    ]);
    let peer = prop_oneof![
        3 => (namespaces, label_selector())
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => block().prop_map(Peer::Block),
    ];
    let rule = (vec(peer, 0..3), services()).prop_map(|(peers, ports)| PolicyRule { peers, ports });
    prop::option::of(vec(rule, 0..3))
}

fn network_policy() -> impl Strategy<Value = NetworkPolicyFacts> {
    let overlay = prop::sample::select(vec![V4, V4, V6]);
    let namespace = prop::sample::select(vec!["default", "shop"]);
    (overlay, namespace, label_selector(), policy_rules(), policy_rules()).prop_map(
        |(overlay, namespace, pods, ingress, egress)| {
            let namespace = Name::new(namespace).unwrap();
            let policy = NetworkPolicy { namespace, name: "p".to_owned(), pods, ingress, egress };
            NetworkPolicyFacts { overlay, policy }
        },
    )
}

/// What is there beside rules: the semantics and the audit mode of each overlay, and NetworkPolicies.
type Climate = ([(bool, bool); 2], Vec<NetworkPolicyFacts>);

fn climate() -> impl Strategy<Value = Climate> {
    let overlay = || (any::<bool>(), prop::bool::weighted(0.1));
    ([overlay(), overlay()], vec(network_policy(), 0..4))
}

fn path() -> impl Strategy<Value = Option<PathHops>> {
    let chain = prop::sample::subsequence((11..11 + SAPS + 1).collect::<Vec<u32>>(), 1..=2)
        .prop_shuffle()
        .prop_map(|chain| PathHops::Via(chain.into_iter().map(NodeId).collect()));
    prop_oneof![6 => Just(None), 1 => Just(Some(PathHops::Direct)), 2 => chain.prop_map(Some)]
}

fn rule() -> impl Strategy<Value = RuleFacts> {
    let not_after =
        prop::sample::select(vec![None, None, Some(99), Some(100), Some(101), Some(200)]);
    let overlay = prop::sample::select(vec![V4, V4, V6]);
    let action = prop::sample::select(vec![Action::Allow, Action::Allow, Action::Deny]);
    let ends = (selector(), selector());
    let is_audit = prop::bool::weighted(0.15);
    (overlay, action, ends, services(), any::<bool>(), path(), not_after, is_audit).prop_map(
        |(overlay, action, (from, to), services, both, path, not_after, is_audit)| RuleFacts {
            overlay,
            action,
            from,
            to,
            services,
            both,
            path,
            not_after: not_after.map(Timestamp),
            is_audit,
            name: None,
        },
    )
}

/// One entity: overlays, labels, namespace, named ports, whether it has an endpoint, whether it is in
/// quarantine.
type Draw = (Vec<OverlayId>, Vec<&'static str>, bool, Vec<&'static str>, bool, bool);

fn entity() -> impl Strategy<Value = Draw> {
    (
        prop::sample::subsequence(vec![V4, V6], 0..=2),
        prop::sample::subsequence(vec!["a=1", "b=1"], 0..=2),
        any::<bool>(),
        prop::sample::subsequence(vec!["tcp/80", "tcp/8080", "udp/80"], 0..=2),
        prop::bool::weighted(0.85),
        prop::bool::weighted(0.1),
    )
}

/// Overlays, entities, SaPs and rules of every kind, some of them broken.
pub(crate) fn world() -> impl Strategy<Value = World> {
    (
        vec(entity(), ENTITIES as usize),
        vec(prop::sample::subsequence(vec![V4, V6], 0..=2), SAPS as usize),
        vec(rule(), 0..14),
        climate(),
    )
        .prop_map(|(entities, saps, rules, (overlays, policies))| {
            let mut world = World::default();
            add_overlay(&mut world, V4, "four", "10.70.0.0/16");
            add_overlay(&mut world, V6, "six", "fd70::/64");
            for (facts, (is_kubernetes, is_audit)) in world.overlays.values_mut().zip(overlays) {
                facts.is_audit = is_audit;
                if is_kubernetes {
                    facts.semantics = Semantics::Kubernetes;
                }
            }
            world.network_policies = (1..).map(RuleId::network_policy).zip(policies).collect();
            world.namespaces =
                [(Name::new("shop").unwrap(), ["color=red".parse().unwrap()].into())].into();
            let team = ["e2", "e4"].map(|name| {
                BoundSelector::Node(NodeId(name[1..].parse().unwrap()), name.parse().unwrap())
            });
            let labels = BoundSelector::Labels(["b=1".parse().unwrap()].into());
            let block = BoundSelector::Cidr("10.70.0.1/32".parse().unwrap());
            let team = team.into_iter().chain([labels, block]).collect();
            world.groups = [(V4, [(Name::new("team").unwrap(), team)].into())].into();
            let api = ["a=1".parse().unwrap(), "b=1".parse().unwrap()].into();
            world.services = [(V4, [(Name::new("api").unwrap(), api)].into())].into();
            for (id, (overlays, labels, in_shop, http, has_endpoint, is_quarantined)) in
                (1..).zip(entities)
            {
                let prefix = if in_shop { "shop/" } else { "" };
                let node = add_node(&mut world, NodeKind::Entity, id, &format!("{prefix}e{id}"));
                let facts = world.nodes.get_mut(&node).unwrap();
                facts.labels = labels.iter().map(|label| label.parse().unwrap()).collect();
                facts.is_quarantined = is_quarantined;
                if !http.is_empty() {
                    let ports = http.iter().map(|text| service(text)).collect();
                    facts.ports = [(Name::new("http").unwrap(), ports)].into();
                }
                for overlay in overlays {
                    let address: IpAddr = if overlay == V4 {
                        format!("10.70.0.{id}").parse().unwrap()
                    } else {
                        format!("fd70::{id}").parse().unwrap()
                    };
                    facts.addresses.insert(overlay, address);
                }
                // Some near one SaP, some near another.
                let far =
                    |sap: u32| (id + sap + 3 * u32::from(in_shop) + u32::from(has_endpoint)) % 4;
                facts.round_trips =
                    (11..=13).map(|sap| (NodeId(sap), 4_000 + 5_000 * far(sap))).collect();
                if !has_endpoint {
                    facts.endpoints.clear();
                }
            }
            for (id, serves) in (11..).zip(saps) {
                let node = add_node(&mut world, NodeKind::Sap, id, &format!("sap{id}"));
                world.nodes.get_mut(&node).unwrap().serves = serves.into_iter().collect();
            }
            world.rules = (1..).map(RuleId).zip(rules).collect();
            link_all(&mut world);
            world
        })
}
