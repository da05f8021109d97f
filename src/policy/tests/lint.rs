//! What lint finds with what a server has seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::testing::{NOW, O, add_rule, ids, town};
use crate::policy::{
    BoundSelector, FindingKind, LabelSelector, NetworkPolicy, NetworkPolicyFacts, Observed, Scene,
    World, lint,
};
use crate::types::{Name, NodeId, RuleId, Timestamp};

fn found(world: &World, observed: &Observed) -> Vec<(FindingKind, String)> {
    let found = lint(&Scene::of(world, O, NOW), observed);
    found.into_iter().map(|finding| (finding.kind, finding.rule)).collect()
}

#[test]
fn a_rule_that_decided_nothing_for_long_is_unused() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db");
    add_rule(&mut world, 2, "deny web -> cache");
    let mut observed = Observed {
        used_since: Some(Timestamp(500)),
        used: BTreeMap::from([(RuleId(1), Timestamp(501)), (RuleId(2), Timestamp(500))]),
        live_saps: None,
    };
    assert_eq!(found(&world, &observed), [(FindingKind::Unused, "r-2".to_owned())]);

    observed.used_since = None;
    assert!(found(&world, &observed).is_empty());
}

#[test]
fn audit_rules_and_network_policies_are_asked_whether_they_decide() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db audit");
    add_rule(&mut world, 2, "allow web -> missing audit");
    let network = RuleId::network_policy(1);
    let policy = NetworkPolicy {
        namespace: Name::default(),
        name: "p".to_owned(),
        pods: LabelSelector::default(),
        ingress: Some(Vec::new()),
        egress: None,
    };
    world.network_policies.insert(network, NetworkPolicyFacts { overlay: O, policy });
    let used = |at| [RuleId(1), network].map(|id| (id, Timestamp(at))).into();
    let observed =
        |at| Observed { used_since: Some(Timestamp(500)), used: used(at), live_saps: None };

    let dangling = (FindingKind::Dangling, "r-2".to_owned());
    assert_eq!(found(&world, &observed(501)), std::slice::from_ref(&dangling));
    let unused = |rule: &str| (FindingKind::Unused, rule.to_owned());
    let expected = [unused("r-1"), dangling, unused("NetworkPolicy default/p")];
    assert_eq!(found(&world, &observed(500)), expected);
}

#[test]
fn a_path_needs_each_of_its_saps_and_other_pairs_need_one() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db via 11,12");
    let observed = |live: &[u32]| Observed { live_saps: Some(ids(live)), ..Observed::default() };
    let by_rule = [(FindingKind::NoLiveSap, "r-1".to_owned())];
    assert!(found(&world, &observed(&[11, 12])).is_empty());
    assert_eq!(found(&world, &observed(&[11])), by_rule);
    assert_eq!(found(&world, &observed(&[])), by_rule, "nobody goes by default");

    add_rule(&mut world, 2, "allow web -> cache");
    assert_eq!(found(&world, &observed(&[12])), by_rule, "any SaP will do");
    let all = found(&world, &observed(&[]));
    assert_eq!(all[1], (FindingKind::NoLiveSap, "overlay default".to_owned()));
    assert!(found(&world, &Observed::default()).is_empty(), "files know of no SaP");
}

#[test]
fn a_group_that_holds_somebody_who_is_gone_dangles() {
    let mut world = town();
    let held = |id| BoundSelector::Node(NodeId(id), world.nodes[&NodeId(1)].name.clone());
    let (there, gone) = (held(1), held(99));
    let group = |held| {
        BTreeMap::from([(O, BTreeMap::from([(Name::new("g").unwrap(), BTreeSet::from([held]))]))])
    };
    world.groups = group(there);
    assert!(found(&world, &Observed::default()).is_empty());

    world.groups = group(gone);
    let dangling = [(FindingKind::Dangling, "group g".to_owned())];
    assert_eq!(found(&world, &Observed::default()), dangling);
}
