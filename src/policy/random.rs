//! Random worlds, for property tests of this room and of those that use its tables.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::{add_node, add_overlay, link_all, service};
use super::{BoundSelector, RuleFacts, World};
use crate::api::table::{Action, PathHops};
use crate::types::{Name, NodeId, NodeKind, OverlayId, Protocol, RuleId, Service, Timestamp};

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
    ]
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
    (overlay, action, selector(), selector(), services(), any::<bool>(), path(), not_after)
        .prop_map(|(overlay, action, from, to, services, both, path, not_after)| RuleFacts {
            overlay,
            action,
            from,
            to,
            services,
            both,
            path,
            not_after: not_after.map(Timestamp),
            is_audit: false,
            name: None,
        })
}

/// One entity: overlays, labels, namespace, named port, whether it has an endpoint.
type Draw = (Vec<OverlayId>, Vec<&'static str>, bool, Option<&'static str>, bool);

fn entity() -> impl Strategy<Value = Draw> {
    (
        prop::sample::subsequence(vec![V4, V6], 0..=2),
        prop::sample::subsequence(vec!["a=1", "b=1"], 0..=2),
        any::<bool>(),
        prop::sample::select(vec![None, Some("tcp/80"), Some("tcp/8080"), Some("udp/80")]),
        prop::bool::weighted(0.85),
    )
}

/// Overlays, entities, SaPs and rules of every kind, some of them broken.
pub(crate) fn world() -> impl Strategy<Value = World> {
    (
        vec(entity(), ENTITIES as usize),
        vec(prop::sample::subsequence(vec![V4, V6], 0..=2), SAPS as usize),
        vec(rule(), 0..14),
    )
        .prop_map(|(entities, saps, rules)| {
            let mut world = World::default();
            add_overlay(&mut world, V4, "four", "10.70.0.0/16");
            add_overlay(&mut world, V6, "six", "fd70::/64");
            for (id, (overlays, labels, in_shop, http, has_endpoint)) in (1..).zip(entities) {
                let prefix = if in_shop { "shop/" } else { "" };
                let node = add_node(&mut world, NodeKind::Entity, id, &format!("{prefix}e{id}"));
                let facts = world.nodes.get_mut(&node).unwrap();
                facts.labels = labels.iter().map(|label| label.parse().unwrap()).collect();
                facts.ports = http
                    .iter()
                    .map(|s| (Name::new("http").unwrap(), [service(s)].into()))
                    .collect();
                for overlay in overlays {
                    let address: IpAddr = if overlay == V4 {
                        format!("10.70.0.{id}").parse().unwrap()
                    } else {
                        format!("fd70::{id}").parse().unwrap()
                    };
                    facts.addresses.insert(overlay, address);
                }
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
