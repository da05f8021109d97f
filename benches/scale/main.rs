//! What a large overlay costs: compiling, one change, tables, a server's memory.
//!
//! ```text
//! cargo bench --bench scale                              10,000 entities, 5,000 rules
//! SCALE_ENTITIES=2000 SCALE_RULES=1000 cargo bench --bench scale
//! ```
//!
//! First the pure part, in this process: a world becomes the bytes of all tables, then one rule and one
//! entity change. Then the same town in a database under a real `ovctl serve`, asked over its socket.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

mod served;
mod town;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ovmesh::api::table::{Action, DestinationKey as KeyRow};
use ovmesh::control::TwoThreads;
use ovmesh::keys::DestinationKey;
use ovmesh::policy::{Blueprint, Bodies, KeySource, RuleFacts, World};
use ovmesh::types::{
    AuthorizationKey, Generation, KeyVersion, NodeId, OverlayId, RuleId, Secret, Timestamp,
};
use serde_json::json;
use town::{Line, Side, Size};

/// Rounds of each change; the median counts.
const ROUNDS: u32 = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let number = |name: &str, default: u32| match std::env::var(name) {
        Ok(text) => text.parse(),
        Err(_) => Ok(default),
    };
    let size =
        Size { entities: number("SCALE_ENTITIES", 10_000)?, rules: number("SCALE_RULES", 5_000)? };
    let lines = town::lines(size);
    println!(
        "{} entities, {} rules, {} groups, {} SaPs, {} allowed pairs",
        size.entities,
        size.rules,
        size.groups(),
        town::SAPS,
        town::allowed_pairs(&lines)
    );
    let pure = pure(size, &lines);
    let served = served::measure(size, &lines)?;
    let all = json!({
        "entities": size.entities, "rules": size.rules, "groups": size.groups(),
        "allowedPairs": town::allowed_pairs(&lines), "pure": pure, "served": served,
    });
    let path = results();
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    println!("written: {}", path.display());
    Ok(())
}

/// Beside those of the other benchmarks.
fn results() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    PathBuf::from(target).join("bench/scale.json")
}

/// One line of results.
pub(crate) fn row(what: &str, value: f64, unit: &str) {
    println!("  {what:<58} {value:>10.1} {unit}");
}

/// The middle one, in milliseconds.
pub(crate) fn median(mut millis: Vec<f64>) -> f64 {
    millis.sort_by(f64::total_cmp);
    millis.get(millis.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn millis_since(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

/// Compiling in this process, keys derived as the server derives them.
fn pure(size: Size, lines: &[Line]) -> serde_json::Value {
    let keys = Keys::new(size);
    let world = Arc::new(town::world(size, lines));
    println!("\nin this process, {} threads", cores());

    let mut times = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        let blueprint = Blueprint::default().next(&TwoThreads, Arc::clone(&world), Timestamp(1));
        let all: BTreeSet<NodeId> = world.nodes.keys().copied().collect();
        bytes(&blueprint, &keys, &all);
        times.push(millis_since(started));
    }
    let full = median(times);
    row("full compile, all tables to bytes", full, "ms");

    let before = Blueprint::default().next(&TwoThreads, Arc::clone(&world), Timestamp(1));
    let started = Instant::now();
    let again = before.next(&TwoThreads, Arc::clone(&world), Timestamp(1));
    row("  of it: selectors into sets", millis_since(started), "ms");
    let started = Instant::now();
    assert!(again.touched_since(&before, &[]).is_empty(), "nothing changed");
    row("  finding out that nothing changed", millis_since(started), "ms");

    let change = |what: &str, edit: &dyn Fn(&mut World, u32)| {
        let mut times = Vec::new();
        let mut tables = 0;
        for round in 0..ROUNDS {
            let mut world = World::clone(&world);
            edit(&mut world, round);
            let world = Arc::new(world);
            let started = Instant::now();
            let after = before.next(&TwoThreads, world, Timestamp(1));
            let touched = after.touched_since(&before, &[]);
            bytes(&after, &keys, &touched);
            times.push(millis_since(started));
            tables = touched.len();
        }
        let millis = median(times);
        row(&format!("{what} ({tables} tables)"), millis, "ms");
        millis
    };
    let pair = change("one rule between two entities", &|world, round| {
        let line = Line {
            action: Action::Allow,
            from: Side::Entity(1 + round),
            to: Side::Entity(size.entities / 2),
            port: None,
        };
        add_rule(world, &line);
    });
    let apps = change("one rule between two groups", &|world, round| {
        let line = Line {
            action: Action::Allow,
            from: Side::App(round),
            to: Side::App(size.groups() - 1 - round),
            port: Some(443),
        };
        add_rule(world, &line);
    });
    let label = change("one entity gets another label", &|world, round| {
        if let Some(facts) = world.nodes.get_mut(&NodeId(1 + round)) {
            let facts = Arc::make_mut(facts);
            facts.labels = town::label(size.groups() / 2);
        }
    });
    let endpoint = change("one entity is somewhere else", &|world, round| {
        if let Some(facts) = world.nodes.get_mut(&NodeId(1 + round)) {
            let facts = Arc::make_mut(facts);
            facts.endpoints = vec![town::endpoint(60_000)];
        }
    });

    let length = |id: u32| bytes(&before, &keys, &BTreeSet::from([NodeId(id)]));
    let (entity, sap) = (length(size.entities / 2 + 1), length(size.entities + 1));
    row("table of an ordinary entity", entity as f64 / 1e3, "kB");
    row("table of a SaP", sap as f64 / 1e3, "kB");
    json!({
        "fullMillis": full, "ruleMillis": pair, "groupRuleMillis": apps, "labelMillis": label,
        "endpointMillis": endpoint, "entityTableBytes": entity, "sapTableBytes": sap,
    })
}

fn add_rule(world: &mut World, line: &Line) {
    let Some(rule) = world.rules.values().next() else { return };
    let mut rule = RuleFacts::clone(rule);
    (rule.action, rule.from, rule.to) = (line.action, line.from.selector(), line.to.selector());
    rule.services = line.services();
    world.rules.insert(RuleId(1_000_000), rule.into());
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Makes the bytes of these tables and their hashes, as the server does. Gives the sum of the lengths.
fn bytes(blueprint: &Blueprint, keys: &Keys, nodes: &BTreeSet<NodeId>) -> usize {
    let bodies = Bodies::new(blueprint, keys);
    let tasks = bodies.tasks(nodes);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut length = 0;
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some((_, body)) = bodies.run(*task) else { continue };
            let digest = ring::digest::digest(&ring::digest::SHA256, body.text.as_bytes());
            std::hint::black_box(digest);
            length += body.text.len();
        }
        length
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..cores().min(tasks.len())).map(|_| scope.spawn(work)).collect();
        let own = work();
        own + helpers.into_iter().map(|helper| helper.join().expect("no panic")).sum::<usize>()
    })
}

/// Each destination's secret, ready.
struct Keys(Vec<DestinationKey>);

fn secret(id: u32) -> Secret {
    let mut bytes = [0xA5; 32];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Secret::new(bytes)
}

impl Keys {
    fn new(size: Size) -> Self {
        Self((0..=size.entities).map(|id| DestinationKey::new(&secret(id))).collect())
    }
}

impl KeySource for Keys {
    fn destination_keys(&self, _: OverlayId, to: NodeId) -> Vec<KeyRow> {
        vec![KeyRow { version: KeyVersion::default(), secret: secret(to.0) }]
    }

    fn pair_generations(&self, _: OverlayId, _: NodeId, _: NodeId) -> Vec<Generation> {
        Vec::new()
    }

    fn rotated_sources(&self, _: OverlayId, _: NodeId) -> Vec<NodeId> {
        Vec::new()
    }

    fn send_key(&self, _: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        self.0[to.0 as usize].pair_key(from, Generation(0))
    }
}
