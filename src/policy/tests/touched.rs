//! Tables that are not named as touched are the same; a small change touches few.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::api::table::PathHops;
use crate::policy::random::{self, V4, V6};
use crate::policy::testing::{FakeKeys, NOW, O, add_entity, add_rule, empty_town, town};
use crate::policy::{Blueprint, RingChange, Sequential, World};
use crate::types::{Generation, LinkId, NodeId, Secret, Timestamp};

/// `before` with what `change` has in the places that `choices` point at.
fn mixed(before: &World, change: &World, choices: &[prop::sample::Index]) -> World {
    let mut world = before.clone();
    for choice in choices {
        let nodes: BTreeSet<NodeId> =
            before.nodes.keys().chain(change.nodes.keys()).copied().collect();
        let rules: BTreeSet<_> = before.rules.keys().chain(change.rules.keys()).copied().collect();
        let links: Vec<_> = before.links.keys().copied().collect();
        let policies: BTreeSet<_> =
            before.network_policies.keys().chain(change.network_policies.keys()).copied().collect();
        let kinds = [nodes.len(), rules.len(), links.len(), policies.len(), 6];
        let mut at = choice.index(kinds.iter().sum());
        if let Some(id) = nodes.iter().nth(at) {
            match change.nodes.get(id) {
                Some(facts) => world.nodes.insert(*id, Arc::clone(facts)),
                None => world.nodes.remove(id),
            };
            continue;
        }
        at -= nodes.len();
        if let Some(id) = rules.iter().nth(at) {
            match change.rules.get(id) {
                Some(rule) => world.rules.insert(*id, Arc::clone(rule)),
                None => world.rules.remove(id),
            };
            continue;
        }
        at -= rules.len();
        if let Some(ends) = links.get(at) {
            let links = Arc::make_mut(&mut world.links);
            links.insert(*ends, (LinkId(999_999), Secret::new([7; 32])));
            continue;
        }
        at -= links.len();
        if let Some(id) = policies.iter().nth(at) {
            match change.network_policies.get(id) {
                Some(policy) => world.network_policies.insert(*id, policy.clone()),
                None => world.network_policies.remove(id),
            };
            continue;
        }
        let overlay = if at % 2 == 0 { V4 } else { V6 };
        match at - policies.len() {
            0 => world.namespaces.clear(),
            1 => world.groups.clear(),
            2 => world.services.clear(),
            3 => world.overlays.clone_from(&change.overlays),
            4 => {
                let pair = (overlay, NodeId(1), NodeId(2));
                match world.paths.remove(&pair) {
                    Some(PathHops::Direct) => None,
                    Some(_) => world.paths.insert(pair, PathHops::Direct),
                    None => world.paths.insert(pair, PathHops::Via(vec![NodeId(12), NodeId(11)])),
                };
            }
            _ => {
                if let Some(facts) = world.overlays.get_mut(&overlay) {
                    facts.silent = !facts.silent;
                }
            }
        }
    }
    world
}

fn bytes(blueprint: &Blueprint, keys: &FakeKeys, id: NodeId) -> String {
    serde_json::to_string(&blueprint.table(keys, id)).unwrap()
}

proptest! {
    #[test]
    fn tables_taken_over_are_the_bytes_of_tables_compiled_anew(
        start in random::world(),
        steps in vec((random::world(), vec(any::<prop::sample::Index>(), 1..4)), 1..5),
        times in vec(prop::sample::select(vec![98, 99, 100, 101, 150, 200]), 6),
        rotated in vec((1_u32..4, 1_u32..4, any::<bool>()), 6),
    ) {
        let mut times = times.into_iter().map(Timestamp);
        let mut world = start;
        let mut keys = FakeKeys::default();
        let mut older = Blueprint::new(Arc::new(world.clone()), times.next().unwrap());
        let mut kept: BTreeMap<NodeId, String> =
            world.nodes.keys().map(|&id| (id, bytes(&older, &keys, id))).collect();
        for ((change, choices), (from, to, is_rotated)) in steps.iter().zip(rotated) {
            world = mixed(&world, change, choices);
            let (now, after) = (times.next().unwrap(), Arc::new(world.clone()));
            let newer = older.next(&Sequential, Arc::clone(&after), now);
            let fresh = Blueprint::new(after, now);
            let (from, to) = (NodeId(from), NodeId(to));
            let mut rings = Vec::new();
            if is_rotated && from != to {
                keys.rotated.insert((from, to), vec![Generation(1)]);
                let ring = |overlay| RingChange { overlay, from: Some(from), to };
                rings.extend([ring(V4), ring(V6)]);
            }
            for id in newer.touched_since(&older, &rings) {
                kept.insert(id, bytes(&newer, &keys, id));
            }
            kept.retain(|id, _| world.nodes.contains_key(id));
            let anew: BTreeMap<NodeId, String> =
                world.nodes.keys().map(|&id| (id, bytes(&fresh, &keys, id))).collect();
            for (id, bytes) in &anew {
                prop_assert_eq!(&kept[id], bytes, "the table of {}", id);
            }
            prop_assert_eq!(kept.len(), anew.len());
            older = newer;
        }
    }
}

fn touched(before: &World, after: &World, rings: &[RingChange]) -> Vec<u32> {
    let [before, after] = [before, after].map(|world| Blueprint::new(Arc::new(world.clone()), NOW));
    after.touched_since(&before, rings).into_iter().map(|id| id.0).collect()
}

#[test]
fn a_rule_touches_its_ends_and_the_saps() {
    let before = town();
    let mut after = before.clone();
    add_rule(&mut after, 1, "allow web -> db");

    assert_eq!(touched(&before, &after, &[]), [1, 2, 11, 12]);
    assert_eq!(touched(&after, &before, &[]), [1, 2, 11, 12]);
    assert_eq!(touched(&after, &after, &[]), [0; 0]);
}

#[test]
fn a_member_that_comes_touches_the_other_end_and_not_its_own() {
    let mut before = empty_town();
    for id in 1..=9 {
        add_entity(&mut before, id, &format!("e{id}"), &[if id < 5 { "a=1" } else { "b=1" }]);
    }
    add_rule(&mut before, 1, "allow a=1 -> b=1");
    let mut after = before.clone();
    add_entity(&mut after, 10, "e10", &["a=1"]);

    assert_eq!(touched(&before, &after, &[]), [5, 6, 7, 8, 9, 10]);
}

#[test]
fn where_an_entity_is_concerns_saps_and_those_who_talk_with_it_directly() {
    let mut before = town();
    add_rule(&mut before, 1, "allow web -> db");
    add_rule(&mut before, 2, "allow web -> cache direct");
    let mut after = before.clone();
    Arc::make_mut(after.nodes.get_mut(&NodeId(1)).unwrap()).endpoints =
        vec!["203.0.113.9:6080".parse().unwrap()];

    assert_eq!(touched(&before, &after, &[]), [1, 3, 11, 12]);
}

#[test]
fn a_key_touches_its_destination_who_sends_to_it_and_the_saps() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db");
    let ring = RingChange { overlay: O, from: None, to: NodeId(2) };

    assert_eq!(touched(&world, &world, &[ring]), [1, 2, 11, 12]);
}
