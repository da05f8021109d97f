//! Suggestions cover what was seen, and allow nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::random::{self, ENTITIES, NOW, PROBES, V4};
use super::super::testing::{O, add_entity, town};
use super::super::{
    BoundSelector, Decision, Document, RuleFacts, SeenFlow, World, evaluate, read_policies,
    suggest, suggestion_text,
};
use crate::api::table::Action;
use crate::types::{Name, NodeId, PortRange, Protocol, RuleId, Service, Timestamp};

fn flow(from: u32, to: u32, service: &str) -> SeenFlow {
    SeenFlow { from: NodeId(from), to: NodeId(to), service: service.parse().unwrap(), packets: 2 }
}

fn texts(world: &World, flows: &[SeenFlow]) -> Vec<String> {
    let rules = suggest(world, O, flows).rules;
    let services = |services: &[Service]| {
        services.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    rules
        .iter()
        .map(|rule| format!("{} {} {}", rule.from, rule.to, services(&rule.services)))
        .collect()
}

#[test]
fn labels_are_used_where_all_who_carry_them_were_part_of_it() {
    let world = town();
    let both =
        [flow(1, 2, "tcp/5432"), flow(4, 2, "tcp/5432"), flow(1, 2, "icmp"), flow(4, 2, "icmp")];
    assert_eq!(texts(&world, &both), ["role=web role=db icmp,tcp/5432"]);
    assert_eq!(texts(&world, &both[..1]), ["web role=db tcp/5432"]);

    let mut grown = world;
    add_entity(&mut grown, 5, "web2", &["role=web"]);
    assert_eq!(texts(&grown, &both[..2]), ["web role=db tcp/5432", "shop/web role=db tcp/5432"]);
}

#[test]
fn what_cannot_be_said_without_allowing_more_is_left_out() {
    let flows = [flow(1, 2, "tcp"), flow(1, 99, "tcp/80"), flow(1, 1, "tcp/80")];
    let suggestion = suggest(&town(), O, &flows);
    assert_eq!((suggestion.rules.len(), suggestion.left_out), (0, 3));
}

#[test]
fn a_suggestion_is_a_policy_file() {
    let world = town();
    let suggestion = suggest(&world, O, &[flow(1, 2, "tcp/5432"), flow(4, 3, "icmp")]);
    let overlay = Name::new("default").unwrap();
    let text = suggestion_text(&suggestion, &overlay, "Recorded in the last 24h.");
    let documents = read_policies("suggested", &text, Timestamp(0)).unwrap();
    let [Document::Policy(policy)] = &documents[..] else { panic!("{text}") };
    assert_eq!((policy.rules.len(), policy.overlay.as_ref()), (2, Some(&overlay)));
    assert_eq!(policy.rules[0].ports.len(), 1, "{text}");
    let none = suggestion_text(&suggest(&world, O, &[]), &overlay, "Nothing.");
    assert!(read_policies("suggested", &none, Timestamp(0)).is_ok(), "{none}");
}

fn service((protocol, port): (Protocol, u16)) -> Service {
    if protocol.has_ports() {
        Service::Ports(protocol, PortRange { first: port, last: port })
    } else {
        Service::Protocol(protocol)
    }
}

proptest! {
    #[test]
    fn exactly_what_was_seen_is_allowed(
        world in random::world(),
        seen in proptest::collection::btree_set(
            (1..=ENTITIES, 1..=ENTITIES, 0..PROBES.len()), 0..60),
    ) {
        let is_member = |id: u32| world.nodes[&NodeId(id)].addresses.contains_key(&V4);
        let seen: BTreeSet<_> = seen
            .into_iter()
            .filter(|&(from, to, _)| from != to && is_member(from) && is_member(to))
            .collect();
        let flows: Vec<SeenFlow> = seen
            .iter()
            .map(|&(from, to, probe)| SeenFlow {
                from: NodeId(from),
                to: NodeId(to),
                service: service(PROBES[probe]),
                packets: 1,
            })
            .collect();

        let suggestion = suggest(&world, V4, &flows);

        prop_assert_eq!(suggestion.left_out, 0);
        // The suggested rules alone speak: no other rule, no policy, nobody in quarantine.
        let mut after = World {
            rules: Default::default(),
            network_policies: Default::default(),
            ..world.clone()
        };
        after.nodes.values_mut().for_each(|facts| Arc::make_mut(facts).is_quarantined = false);
        for (number, rule) in (1..).zip(suggestion.rules) {
            prop_assert!(!matches!(rule.from, BoundSelector::Any));
            let facts = RuleFacts {
                overlay: V4,
                action: Action::Allow,
                from: rule.from,
                to: rule.to,
                services: rule.services,
                both: false,
                path: None,
                not_after: None,
                is_audit: false,
                name: None,
            };
            after.rules.insert(RuleId(number), facts.into());
        }
        for from in 1..=ENTITIES {
            for to in 1..=ENTITIES {
                for (probe, &asked) in PROBES.iter().enumerate() {
                    let decision =
                        evaluate(&after, V4, NodeId(from), NodeId(to), &service(asked), NOW);
                    let is_allowed = matches!(decision, Decision::Allow(_));
                    prop_assert_eq!(is_allowed, seen.contains(&(from, to, probe)), "{} {} {:?}", from, to, asked);
                }
            }
        }
    }
}
