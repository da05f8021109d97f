//! Whom selectors mean, and which pairs rules cover.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::testing::{add_node, ids, name, rule, town};
use crate::policy::{
    concerned_destinations, covered_pairs, dangling, members_of, rule_sources, rule_text,
};
use crate::types::NodeKind;

#[test]
fn selectors_mean_members_only() {
    let mut world = town();
    add_node(&mut world, NodeKind::Entity, 5, "stranger");
    for (text, meant) in [
        ("any", &[1, 2, 3, 4][..]),
        ("web", &[1]),
        ("shop/web", &[4]),
        ("stranger", &[]),
        ("gone", &[]),
        ("sap1", &[]),
        ("role=web", &[1, 4]),
        ("role=web,x=1", &[]),
        ("namespace:shop", &[4]),
        ("namespace:default", &[1, 2, 3]),
    ] {
        let rule = rule(&world, &format!("allow {text} -> any"));
        assert_eq!(members_of(&world, rule.overlay, &rule.from), ids(meant), "{text}");
    }
}

#[test]
fn a_pair_is_counted_once_and_never_with_itself() {
    let world = town();
    for (text, pairs, sources, destinations) in [
        ("allow web -> db", 1, &[1][..], &[2][..]),
        ("allow web <-> db", 2, &[1, 2], &[1, 2]),
        ("allow web -> web", 0, &[], &[]),
        ("allow any -> any", 12, &[1, 2, 3, 4], &[1, 2, 3, 4]),
        ("allow any <-> any", 12, &[1, 2, 3, 4], &[1, 2, 3, 4]),
        ("allow web -> any", 3, &[1], &[2, 3, 4]),
        ("allow any <-> web", 6, &[1, 2, 3, 4], &[1, 2, 3, 4]),
        ("allow role=web <-> namespace:default", 10, &[1, 2, 3, 4], &[1, 2, 3, 4]),
        ("allow gone -> any", 0, &[], &[]),
    ] {
        let rule = rule(&world, text);
        assert_eq!(covered_pairs(&world, &rule), pairs, "{text}");
        assert_eq!(rule_sources(&world, &rule), ids(sources), "{text}");
        assert_eq!(concerned_destinations(&world, &rule), ids(destinations), "{text}");
    }
}

#[test]
fn a_rule_whose_entity_is_gone_dangles_and_its_name_inherits_nothing() {
    let mut world = town();
    let bound = rule(&world, "allow web -> db");
    assert!(dangling(&world, &bound).is_empty());

    let web = world.nodes.remove(&crate::types::NodeId(1)).unwrap();
    let mut web = Arc::unwrap_or_clone(web);
    web.addresses = BTreeMap::from([(bound.overlay, "10.70.0.9".parse().unwrap())]);
    world.nodes.insert(crate::types::NodeId(9), web.into());

    assert_eq!(dangling(&world, &bound), [name("web")]);
    assert_eq!(covered_pairs(&world, &bound), 0);
    assert_eq!(covered_pairs(&world, &rule(&world, "allow web -> db")), 1);
}

#[test]
fn rules_read_as_they_are_written() {
    let world = town();
    for text in [
        "allow web -> db tcp/5432",
        "deny any -> namespace:shop",
        "allow role=web,tier=front <-> shop/web tcp/http,udp/53,icmp",
    ] {
        assert_eq!(rule_text(&rule(&world, text)), text);
    }
}
