//! The commands that `why` proposes.

use crate::api::admin::{CanQuestion, PathNames};
use crate::policy::testing::{NOW, O, add_overlay, add_rule, name, service, town};
use crate::policy::{World, asked_pair, commands_to_allow, is_about, ways};
use crate::types::{Name, NodeId, NodeKind, OverlayId, RuleId};

fn question(overlay: Option<&str>, what: &str) -> CanQuestion {
    CanQuestion {
        overlay: overlay.map(|overlay| overlay.parse().unwrap()),
        from: name("web"),
        to: name("db"),
        service: (!what.is_empty()).then(|| service(what)),
    }
}

fn commands(world: &World, what: &str) -> Vec<String> {
    let question = question(None, what);
    commands_to_allow(world, &question, &asked_pair(world, &question).unwrap(), NOW)
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
    world.nodes.get_mut(&web).unwrap().is_quarantined = true;
    assert_eq!(commands(&world, "tcp/80"), ["ovctl entity release web", "ovctl policy revoke r-1"]);

    world.nodes.get_mut(&web).unwrap().is_quarantined = false;
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
    for facts in world.nodes.values_mut().filter(|facts| facts.kind == NodeKind::Entity) {
        let address = facts.addresses[&O];
        facts.addresses.insert(OverlayId(9), address);
    }
    let question = question(Some("ops"), "");
    let asked = asked_pair(&world, &question).unwrap();

    assert_eq!(
        commands_to_allow(&world, &question, &asked, NOW),
        ["ovctl policy allow web db --overlay ops"]
    );
}

#[test]
fn ways_name_their_saps_and_say_why_there_are_none() {
    let mut world = town();
    let asked = asked_pair(&world, &question(None, "")).unwrap();
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
    let asked = asked_pair(&world, &question(None, "")).unwrap();
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
