//! What `can` says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::admin::{CanAnswer, CanQuestion, PathNames};
use crate::api::{Problem, ProblemCode};
use crate::policy::testing::{NOW, O, add_node, add_overlay, add_rule, service, town};
use crate::policy::{BoundSelector, Decision, World, can, evaluate};
use crate::types::{Name, NodeId, NodeKind, OverlayId, RuleId, Service};

fn ask(world: &World, from: &str, to: &str, what: &str) -> Result<CanAnswer, Problem> {
    let service = (!what.is_empty()).then(|| service(what));
    ask_with(world, &BTreeSet::new(), (from, to), service)
}

fn ask_with(
    world: &World,
    guards: &BTreeSet<(OverlayId, NodeId)>,
    (from, to): (&str, &str),
    service: Option<Service>,
) -> Result<CanAnswer, Problem> {
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    let question = CanQuestion { overlay: None, from, to, service };
    can(world, &question, guards, &BTreeMap::new(), NOW)
}

fn why(world: &World, from: &str, to: &str, what: &str) -> String {
    ask(world, from, to, what).unwrap().why
}

/// The rules that almost matched, with what differs.
fn near(world: &World, from: &str, to: &str, what: &str) -> Vec<(u32, String)> {
    let answer = ask(world, from, to, what).unwrap();
    assert!(!answer.allowed);
    answer.nearest.into_iter().map(|near| (near.rule.0, near.differs)).collect()
}

fn with_rules(rules: &[&str]) -> World {
    let mut world = town();
    for (id, text) in (1..).zip(rules) {
        add_rule(&mut world, id, text);
    }
    world
}

#[test]
fn an_allowed_flow_names_its_rule_and_its_path() {
    let answer = ask(&with_rules(&["allow web -> db tcp/5432"]), "web", "db", "tcp/5432").unwrap();

    assert!(answer.allowed && answer.nearest.is_empty());
    assert_eq!(answer.rule, Some(RuleId(1)));
    assert_eq!(answer.why, "r-1 allows web -> db tcp/5432");
    assert_eq!(answer.path, Some(PathNames::Via(vec![Name::new("sap1").unwrap()])));
}

#[test]
fn a_flow_without_a_rule_is_denied_by_default() {
    let answer = ask(&town(), "web", "db", "").unwrap();

    assert!(!answer.allowed);
    assert_eq!((answer.rule, answer.nearest.len()), (None, 0));
    assert_eq!(answer.why, "no rule lets web start flows to db; default deny");
    assert_eq!(
        why(&town(), "web", "db", "tcp/80"),
        "no rule lets web start tcp/80 flows to db; default deny"
    );
}

#[test]
fn a_denied_flow_names_the_denial_and_what_it_hides() {
    let world = with_rules(&["allow web -> db", "deny role=web -> any"]);

    assert_eq!(why(&world, "web", "db", "tcp/80"), "deny rule r-2 refuses role=web -> any");
    assert_eq!(near(&world, "web", "db", "tcp/80"), [(1, "deny rule r-2 goes first".to_owned())]);
}

#[test]
fn anything_at_all_passes_when_something_does() {
    let world = with_rules(&["allow web -> db tcp/80-81", "deny web -> db tcp/80"]);
    assert_eq!(ask(&world, "web", "db", "").unwrap().rule, Some(RuleId(1)));
    assert!(ask(&world, "web", "db", "tcp").unwrap().allowed, "something of tcp passes");
    assert!(!ask(&world, "web", "db", "tcp/80").unwrap().allowed);
    assert!(!ask(&world, "web", "db", "udp").unwrap().allowed);

    let world = with_rules(&["allow web -> db tcp/80-81", "deny web -> db tcp"]);
    assert_eq!(ask(&world, "web", "db", "").unwrap().rule, Some(RuleId(2)));
}

#[test]
fn rules_that_almost_matched_say_what_differs() {
    for (rule, differs) in [
        ("allow web -> db tcp/443", "port differs"),
        ("allow cache -> db tcp/80", "source differs"),
        ("allow web -> cache tcp/80", "destination differs"),
        ("allow db -> web tcp/80", "direction differs"),
        ("allow web -> db tcp/80 until 1000", "expired"),
        ("allow db -> web tcp/443", "direction differs, port differs"),
        ("allow cache <-> db udp", "source differs, port differs"),
    ] {
        let found = near(&with_rules(&[rule]), "web", "db", "tcp/80");
        assert_eq!(found, [(1, differs.to_owned())], "{rule}");
    }
    for far in ["allow cache -> shop/web tcp/80", "deny web -> db tcp/443"] {
        assert_eq!(near(&with_rules(&[far]), "web", "db", "tcp/80"), [], "{far}");
    }
}

#[test]
fn the_nearest_rules_come_first_and_are_at_most_three() {
    let world = with_rules(&[
        "allow db -> web udp",
        "allow web -> db udp",
        "allow web -> db tcp/1",
        "allow web -> db tcp/2",
        "allow web -> db tcp/3",
    ]);
    let ids: Vec<u32> = near(&world, "web", "db", "tcp/80").iter().map(|(id, _)| *id).collect();

    assert_eq!(ids, [2, 3, 4]);
}

#[test]
fn unknown_names_are_not_found_and_guessed_at() {
    let world = town();
    for (from, to, what, fix) in [
        ("wbe", "db", "there is no entity wbe", "did you mean web?"),
        ("web", "zzzzzz", "there is no entity zzzzzz", "see `ovctl entity list`"),
        ("shop/db", "web", "there is no entity shop/db", "did you mean db?"),
    ] {
        let problem = ask(&world, from, to, "").unwrap_err();
        assert_eq!((problem.code, &problem.what[..]), (ProblemCode::NotFound, what));
        assert_eq!(problem.fix, fix);
    }
    assert_eq!(
        ask(&world, "web", "sap1", "").unwrap_err().why.split(',').next(),
        Some("sap1 is a SaP")
    );
    assert_eq!(ask(&world, "web", "web", "").unwrap_err().code, ProblemCode::Usage);
    assert_eq!(ask(&world, "web", "db", "tcp/http").unwrap_err().code, ProblemCode::NotFound);
}

#[test]
fn the_overlay_is_the_one_they_share() {
    let mut world = town();
    let six = OverlayId(2);
    add_overlay(&mut world, six, "six", "fd70::/64");
    add_node(&mut world, NodeKind::Entity, 5, "loner");
    for (id, address) in [(1, "fd70::1"), (5, "fd70::5")] {
        let facts = Arc::make_mut(world.nodes.get_mut(&NodeId(id)).unwrap());
        facts.addresses.insert(six, address.parse().unwrap());
    }
    let overlay = |from: &str, to: &str, overlay: Option<&str>| {
        let overlay = overlay.map(|text| Name::new(text).unwrap());
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let question = CanQuestion { overlay, from, to, service: None };
        can(&world, &question, &BTreeSet::new(), &BTreeMap::new(), NOW)
            .map(|answer| answer.overlay.to_string())
    };
    assert_eq!(overlay("web", "db", None), Ok("default".to_owned()));
    assert_eq!(overlay("web", "loner", None), Ok("six".to_owned()));
    let problem = overlay("db", "loner", None).unwrap_err();
    assert_eq!(problem.code, ProblemCode::NotFound);
    assert_eq!(problem.why, "db is in default; loner is in six");
    let problem = overlay("web", "loner", Some("sxi")).unwrap_err();
    assert_eq!(problem.fix, "did you mean six?");
    let problem = overlay("web", "loner", Some("default")).unwrap_err();
    assert_eq!(problem.what, "loner is not a member of the overlay default");

    let db = Arc::make_mut(world.nodes.get_mut(&NodeId(2)).unwrap());
    db.addresses.insert(six, "fd70::2".parse().unwrap());
    let problem = ask(&world, "web", "db", "").unwrap_err();
    assert_eq!(problem.code, ProblemCode::Conflict);
    assert_eq!(problem.why, "they are default, six");
    assert_eq!(problem.fix, "say which one: --overlay default");
}

#[test]
fn an_allowed_pair_without_a_path_is_warned_of() {
    let mut world = with_rules(&["allow web -> db", "allow web -> cache direct"]);
    Arc::make_mut(world.nodes.get_mut(&NodeId(3)).unwrap()).endpoints.clear();
    assert!(ask(&world, "web", "db", "").unwrap().path.is_some());
    assert_eq!(
        why(&world, "web", "cache", ""),
        "r-2 allows web -> cache; but nothing passes: r-2 asks for a direct path, and cache has no \
         underlay endpoint"
    );

    for sap in [11, 12] {
        Arc::make_mut(world.nodes.get_mut(&NodeId(sap)).unwrap()).serves.clear();
    }
    let answer = ask(&world, "web", "db", "").unwrap();
    assert!(answer.allowed && answer.path.is_none());
    assert_eq!(
        answer.why,
        "r-1 allows web -> db; but nothing passes: no SaP serves the overlay default"
    );
}

#[test]
fn members_alone_are_judged() {
    let mut world = with_rules(&["allow any -> any"]);
    add_node(&mut world, NodeKind::Entity, 5, "stranger");
    let judge = |from, to| evaluate(&world, O, NodeId(from), NodeId(to), &service("tcp/80"), NOW);

    assert_eq!(judge(1, 2), Decision::Allow(RuleId(1)));
    for (from, to) in [(1, 1), (1, 5), (5, 1), (1, 11), (11, 1), (1, 99)] {
        assert_eq!(judge(from, to), Decision::NoRule, "{from} -> {to}");
    }
}

#[test]
fn several_ends_are_allowed_when_each_pair_is() {
    let mut world = with_rules(&["allow web -> db tcp/80"]);
    let group = BTreeSet::from([member_of(&world, 1), member_of(&world, 4)]);
    world.groups.insert(O, BTreeMap::from([(Name::new("fronts").unwrap(), group)]));
    let labels = BTreeSet::from(["role=web".parse().unwrap()]);
    world.services.insert(O, BTreeMap::from([(Name::new("site").unwrap(), labels)]));

    for from in ["role=web", "group:fronts", "service:site"] {
        let partly = ask(&world, from, "db", "tcp/80").unwrap();
        assert!(!partly.allowed && partly.rule.is_none() && partly.path.is_none(), "{from}");
        assert_eq!((partly.pairs, partly.allowed_pairs), (2, 1), "{from}");
        assert_eq!(partly.why, "1 of the 2 pairs are allowed");
        let shown: Vec<(&str, bool)> =
            partly.examples.iter().map(|pair| (pair.from.as_str(), pair.allowed)).collect();
        assert_eq!(shown, [("shop/web", false), ("web", true)], "{from}");
        assert_eq!(partly.allow_with, [format!("ovctl policy allow {from} db --port tcp/80")]);
    }
    add_rule(&mut world, 2, "allow role=web -> db tcp/80");
    world.rules.remove(&RuleId(1));
    let all = ask(&world, "role=web", "db", "tcp/80").unwrap();
    assert!(all.allowed && all.allow_with.is_empty());
    assert_eq!(all.rule, Some(RuleId(2)), "one rule about every pair");
    assert_eq!(all.why, "all 2 pairs are allowed");
    assert_eq!(ask(&world, "any", "any", "tcp/80").unwrap().pairs, 12, "nobody with itself");
}

fn member_of(world: &World, id: u32) -> BoundSelector {
    BoundSelector::Node(NodeId(id), world.nodes[&NodeId(id)].name.clone())
}

#[test]
fn an_address_is_its_member_or_outside_where_nothing_is_enforced() {
    let world = with_rules(&["allow web -> 203.0.113.0/24 tcp/443"]);
    for address in ["10.70.0.2", "ip:10.70.0.2"] {
        let answer = ask(&world, "web", address, "tcp/80").unwrap();
        assert!(answer.enforced);
        assert_eq!(answer.why, "no rule lets web start tcp/80 flows to db; default deny");
        assert_eq!(answer.allow_with, ["ovctl policy allow web db --port tcp/80"]);
    }

    let outside = ask(&world, "web", "ip:203.0.113.9", "tcp/443").unwrap();
    assert!(outside.allowed && !outside.enforced && outside.path.is_none());
    assert!(outside.why.contains("r-1 allows") && outside.why.contains("not enforced"));
    let shut = ask(&world, "web", "198.51.100.1", "tcp/443").unwrap();
    assert!(!shut.allowed && !shut.enforced);
    let near: Vec<&str> = shut.nearest.iter().map(|near| near.differs.as_str()).collect();
    assert_eq!(near, ["destination differs"]);
    assert_eq!(shut.allow_with, ["ovctl policy allow web 198.51.100.1/32 --port tcp/443"]);
}

#[test]
fn what_a_guard_holds_to_is_enforced_outside_and_what_starts_there_is_not() {
    let world = with_rules(&["allow web -> 203.0.113.0/24", "allow 203.0.113.0/24 -> web"]);
    let ask = |guards: &[u32], ends: (&str, &str)| {
        let guards = guards.iter().map(|&id| (O, NodeId(id))).collect();
        ask_with(&world, &guards, ends, None).unwrap()
    };
    let (out, back) = (("web", "203.0.113.9"), ("203.0.113.9", "web"));

    assert!(ask(&[1], out).enforced && !ask(&[1], out).why.contains("not enforced"));
    assert!(ask(&[2], out).why.contains("not enforced outside the overlay: web runs no guard"));
    assert!(!ask(&[1], back).enforced);
    let both = ("any", "203.0.113.9");
    assert!(!ask(&[1], both).enforced, "others run none");
}

#[test]
fn a_range_is_judged_at_every_address_where_policy_turns() {
    let world = with_rules(&["allow web -> 10.0.0.0/8!10.9.0.0/16", "deny web -> 10.1.2.3/32"]);
    let allowed = |to: &str| ask(&world, "web", to, "").unwrap().allowed;

    assert!(allowed("10.1.2.4/32") && allowed("10.2.0.0/16"));
    assert!(allowed("10.8.0.0/14!10.9.0.0/16"));
    for to in ["10.1.2.0/24", "10.8.0.0/14", "10.9.1.0/24", "0.0.0.0/0", "10.1.2.3"] {
        assert!(!allowed(to), "{to}");
    }
    // The overlay's own part: its members, and nobody else.
    let home = ask(&world, "web", "10.70.0.0/16", "").unwrap();
    assert_eq!((home.pairs, home.enforced), (3, true));
}

#[test]
fn ends_that_mean_nobody_are_not_found() {
    let mut world = town();
    world.groups.insert(O, BTreeMap::from([(Name::new("fronts").unwrap(), BTreeSet::new())]));
    for (to, what, fix) in [
        ("group:frnots", "there is no group frnots", "did you mean group:fronts?"),
        ("service:x", "there is no service x", "see `ovctl service list`"),
        ("role=dbb", "role=dbb means nobody in the overlay default", "did you mean role=db?"),
        ("group:fronts", "group:fronts means nobody in the overlay default", ""),
        (
            "namespace:shp",
            "namespace:shp means nobody in the overlay default",
            "did you mean namespace:shop?",
        ),
        ("10.70.0.99", "nobody in the overlay default has the address 10.70.0.99", ""),
    ] {
        let problem = ask(&world, "web", to, "").unwrap_err();
        assert_eq!((problem.code, &problem.what[..]), (ProblemCode::NotFound, what));
        assert!(problem.fix.contains(fix), "{to}: {}", problem.fix);
    }
    let problem = ask(&world, "192.0.2.1", "203.0.113.0/24", "").unwrap_err();
    assert_eq!(problem.code, ProblemCode::Usage);
    assert_eq!(problem.what, "neither 192.0.2.1/32 nor 203.0.113.0/24 is a member");
}
