//! A world of some size: what grows with its square is noticed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::table::DestinationKey;
use crate::policy::testing::{NOW, O, add_node, add_overlay, rule};
use crate::policy::{Blueprint, KeySource, World};
use crate::types::{
    AuthorizationKey, Generation, KeyVersion, NodeId, NodeKind, OverlayId, RuleId, Secret,
};

const ENTITIES: u32 = 2_000;
const RULES: u32 = 1_000;
/// Entities that carry the same label.
const APP: u32 = 50;
const SAP: NodeId = NodeId(ENTITIES + 1);

/// Debug builds on a machine with neighbours: the release build takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(60);

fn world() -> World {
    let mut world = World::default();
    add_overlay(&mut world, O, "default", "10.70.0.0/16");
    // The highest first, for each is made under a low number that must not be somebody yet.
    for id in (1..=ENTITIES + 1).rev() {
        let kind = if id == SAP.0 { NodeKind::Sap } else { NodeKind::Entity };
        let node = add_node(&mut world, kind, 0, &format!("e{id}"));
        let mut facts = Arc::unwrap_or_clone(world.nodes.remove(&node).unwrap());
        if id == SAP.0 {
            facts.serves.insert(O);
        } else {
            let [_, _, high, low] = id.to_be_bytes();
            facts.addresses.insert(O, [10, 70, high, low].into());
            facts.labels.insert(format!("app=a{}", id / APP).parse().unwrap());
        }
        world.nodes.insert(NodeId(id), facts.into());
    }
    let apps = ENTITIES / APP;
    for number in 0..RULES {
        let (from, to) = (number % apps, (number * 7 + number / apps + 1) % apps);
        let action = if number % 10 == 0 { "deny" } else { "allow" };
        let ports = if number % 20 == 0 { String::new() } else { format!(" tcp/{}", number + 1) };
        let rule = rule(&world, &format!("{action} app=a{from} -> app=a{to}{ports}"));
        world.rules.insert(RuleId(number + 1), rule.into());
    }
    world
}

#[test]
fn a_world_of_two_thousand_is_compiled_in_time_and_a_change_touches_few() {
    let before = Arc::new(world());
    let started = Instant::now();
    let old = Blueprint::new(Arc::clone(&before), NOW);
    let pairs: usize = before
        .nodes
        .keys()
        .filter_map(|id| old.table(&Free, *id))
        .flat_map(|table| table.overlays)
        .map(|overlay| overlay.send_keys.len())
        .sum();
    assert!(started.elapsed() < PATIENCE, "{:?} for all tables", started.elapsed());
    assert!(pairs > 50_000, "{pairs} keys: the world says something");

    let sap = old.table(&Free, SAP).unwrap().overlays.remove(0);
    let named: usize = sap.sets.iter().map(Vec::len).sum();
    assert!(sap.rules.len() <= RULES as usize, "rules, not pairs");
    assert!(named <= 2 * ENTITIES as usize, "{named} places in sets");

    let mut after = World::clone(&before);
    after.rules.insert(RuleId(RULES + 1), rule(&before, "allow e1 -> e1999").into());
    let started = Instant::now();
    let new = Blueprint::new(Arc::new(after), NOW);
    let touched = new.touched_since(&old, &[]);
    assert_eq!(touched, [NodeId(1), NodeId(1999), SAP].into());
    assert!(started.elapsed() < PATIENCE / 4, "{:?} for one change", started.elapsed());
}

/// Keys for free.
struct Free;

impl KeySource for Free {
    fn destination_keys(&self, _: OverlayId, _: NodeId) -> Vec<DestinationKey> {
        vec![DestinationKey { version: KeyVersion::default(), secret: Secret::new([1; 32]) }]
    }

    fn pair_generations(&self, _: OverlayId, _: NodeId, _: NodeId) -> Vec<Generation> {
        Vec::new()
    }

    fn rotated_sources(&self, _: OverlayId, _: NodeId) -> Vec<NodeId> {
        Vec::new()
    }

    fn send_key(&self, _: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        AuthorizationKey::from_bits(from.0 ^ to.0)
    }
}
