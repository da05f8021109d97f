//! The commands that `can` and `why` propose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::admin::{CanQuestion, PathNames, Semantics};
use crate::policy::testing::{NOW, O, add_node, add_overlay, add_rule, service, town};
use crate::policy::{
    AskedPair, End, NetworkPolicy, NetworkPolicyFacts, World, asked, can, is_about,
    pair_to_explain, strangers, ways,
};
use crate::types::{Name, NodeId, NodeKind, OverlayId, RuleId};

fn question(overlay: Option<&str>, what: &str) -> CanQuestion {
    CanQuestion {
        overlay: overlay.map(|overlay| overlay.parse().unwrap()),
        from: "web".parse().unwrap(),
        to: "db".parse().unwrap(),
        service: (!what.is_empty()).then(|| service(what)),
    }
}

fn commands(world: &World, what: &str) -> Vec<String> {
    can(world, &question(None, what), &BTreeSet::new(), &BTreeMap::new(), NOW).unwrap().allow_with
}

fn web_to_db() -> AskedPair {
    AskedPair { overlay: O, from: NodeId(1), to: NodeId(2) }
}

#[test]
fn the_commands_are_those_that_are_needed_and_no_more() {
    let mut world = town();
    assert_eq!(commands(&world, "tcp/80"), ["ovctl policy allow web db --port tcp/80"]);
    assert_eq!(commands(&world, ""), ["ovctl policy allow web db"]);

    add_rule(&mut world, 1, "deny role=web -> any");
    assert_eq!(
        commands(&world, "tcp/80"),
        ["ovctl policy revoke r-1", "ovctl policy allow web db --port tcp/80"]
    );
    add_rule(&mut world, 2, "allow web -> db tcp/80");
    assert_eq!(commands(&world, "tcp/80"), ["ovctl policy revoke r-1"]);

    let web = NodeId(1);
    Arc::make_mut(world.nodes.get_mut(&web).unwrap()).is_quarantined = true;
    assert_eq!(commands(&world, "tcp/80"), ["ovctl entity release web", "ovctl policy revoke r-1"]);

    Arc::make_mut(world.nodes.get_mut(&web).unwrap()).is_quarantined = false;
    world.rules.remove(&RuleId(1));
    assert!(commands(&world, "tcp/80").is_empty(), "it is allowed");
}

#[test]
fn too_many_denials_are_left_to_people() {
    let mut world = town();
    for id in 1..=5 {
        add_rule(&mut world, id, "deny web -> db");
    }
    assert!(commands(&world, "tcp/80").is_empty());

    world.rules.remove(&RuleId(5));
    assert_eq!(commands(&world, "tcp/80").len(), 5);
}

#[test]
fn an_overlay_is_named_where_the_two_share_several() {
    let mut world = town();
    add_overlay(&mut world, OverlayId(9), "ops", "10.71.0.0/16");
    let entities = world.nodes.values_mut().filter(|facts| facts.kind == NodeKind::Entity);
    for facts in entities.map(Arc::make_mut) {
        let address = facts.addresses[&O];
        facts.addresses.insert(OverlayId(9), address);
    }
    let answer =
        can(&world, &question(Some("ops"), ""), &BTreeSet::new(), &BTreeMap::new(), NOW).unwrap();

    assert_eq!(answer.allow_with, ["ovctl policy allow web db --overlay ops"]);
}

#[test]
fn ways_name_their_saps_and_say_why_there_are_none() {
    let mut world = town();
    let asked = web_to_db();
    let (names, saps) = ways(&world, &asked, NOW).unwrap().remove(0);
    assert_eq!(names, PathNames::Via(vec![Name::new("sap1").unwrap()]));
    assert_eq!(saps.len(), 1);

    world.nodes.retain(|_, facts| facts.kind == NodeKind::Entity);
    let why = ways(&world, &asked, NOW).unwrap_err();
    assert!(why.contains("no SaP serves the overlay"), "{why}");
}

#[test]
fn a_record_is_about_the_question_when_its_port_was_asked_for() {
    let world = town();
    let asked = web_to_db();
    for (wanted, seen, expected) in [
        ("tcp/80", "tcp/80", true),
        ("tcp/80-90", "tcp/85", true),
        ("tcp", "tcp/85", true),
        ("tcp/80", "tcp/81", false),
        ("tcp/80", "udp/80", false),
        ("icmp", "icmp", true),
    ] {
        assert_eq!(
            is_about(&world, &asked, &service(wanted), &service(seen)),
            expected,
            "{wanted} {seen}"
        );
    }
}

/// Puts a NetworkPolicy that lets nothing into db.
fn isolate_db(world: &mut World) {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut}\n\
                spec: {podSelector: {matchLabels: {role: db}}, ingress: []}\n";
    let policy = NetworkPolicy::from_manifest("test", text).unwrap();
    world
        .network_policies
        .insert(RuleId::network_policy(1), NetworkPolicyFacts { overlay: O, policy });
}

#[test]
fn a_network_policy_is_never_revoked_for_one_flow() {
    let mut world = town();
    world.overlays.get_mut(&O).unwrap().semantics = Semantics::Kubernetes;
    assert!(commands(&world, "tcp/80").is_empty(), "it is open");

    isolate_db(&mut world);
    assert_eq!(commands(&world, "tcp/80"), ["ovctl policy allow web db --port tcp/80"]);
}

#[test]
fn a_rule_of_a_file_is_taken_out_of_the_file() {
    let mut world = town();
    add_rule(&mut world, 1, "deny role=web -> any");
    let places = BTreeMap::from([(RuleId(1), "net/policy.yaml:12".to_owned())]);
    let steps =
        can(&world, &question(None, ""), &BTreeSet::new(), &places, NOW).unwrap().allow_with;

    assert_eq!(
        steps,
        [
            "take rule r-1 out of the file (net/policy.yaml:12), then: ovctl policy apply -f \
             net/policy.yaml",
            "ovctl policy allow web db"
        ]
    );
}

#[test]
fn those_who_share_no_overlay_are_strangers_by_name_and_by_address() {
    let mut world = town();
    add_overlay(&mut world, OverlayId(2), "ops", "10.71.0.0/16");
    let loner = add_node(&mut world, NodeKind::Entity, 5, "loner");
    let facts = Arc::make_mut(world.nodes.get_mut(&loner).unwrap());
    facts.addresses.insert(OverlayId(2), "10.71.0.5".parse().unwrap());
    let ask = |from: &str, to: &str| {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        strangers(&world, &CanQuestion { overlay: None, from, to, service: None })
    };

    assert_eq!(ask("web", "loner"), Some((NodeId(1), loner)));
    assert_eq!(ask("10.70.0.1", "ip:10.71.0.5"), Some((NodeId(1), loner)));
    for (from, to) in [("web", "db"), ("web", "web"), ("web", "203.0.113.9"), ("web", "role=x")] {
        assert_eq!(ask(from, to), None, "{from} {to}");
    }
}

#[test]
fn of_several_pairs_the_first_denied_one_is_explained() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db");
    let (from, to) = ("role=web".parse().unwrap(), "db".parse().unwrap());
    let question = CanQuestion { overlay: None, from, to, service: None };
    let explained = |world: &World| {
        let asked = asked(world, &question).unwrap();
        pair_to_explain(world, &question, &asked, NOW).unwrap().0
    };
    assert_eq!(explained(&world), End::Member(NodeId(4)));

    add_rule(&mut world, 2, "allow shop/web -> db");
    assert_eq!(explained(&world), End::Member(NodeId(1)));
}
