//! What one packet costs: parsing, verdicts with 100, 1,000 and 10,000 rules, compiling policy.
//!
//! ```text
//! cargo bench --bench micro
//! ```
//!
//! Cases run in turns, many short rounds each, and the median counts: a neighbour on the machine then
//! disturbs all cases alike, and ratios hold where absolute numbers do not. Allocations are counted
//! while the clock runs; one on the path of a packet fails the benchmark.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

mod fixture;

use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::hint::black_box;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fixture::batches::{Batches, PACKETS};
use fixture::{
    Growth, NOW, RULES_MIN, Town, datagram, endpoint, key, passes, sap_endpoint, tcp, udp,
};
use ovmesh::api::admin::Semantics;
use ovmesh::api::table::{Action, DestinationKey};
use ovmesh::forward::FlowTable;
use ovmesh::policy::{
    BoundSelector, Drain, KeySource, NodeFacts, OverlayFacts, RuleFacts, World, compile,
};
use ovmesh::sys::offload::coalesce::{Coalescer, Takes};
use ovmesh::sys::offload::split::Split;
use ovmesh::types::{
    AuthorizationKey, Generation, KeyVersion, Label, LinkId, Name, NodeId, NodeKind, OverlayId,
    RuleId, Secret, Timestamp,
};
use ovmesh::wire::{gue, inner};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The towns that are compared. Rows of the first one are what the others are divided by.
const TOWNS: &[(u32, Growth, &str)] = &[
    (RULES_MIN, Growth::Wide, "100 rules"),
    (1_000, Growth::Wide, "1,000 rules"),
    (10_000, Growth::Wide, "10,000 rules"),
    (1_000, Growth::Dense, "1,000 rules about the same members"),
    (10_000, Growth::Dense, "10,000 rules about the same members"),
];
/// Rounds of all cases, unless `BENCH_MICRO_ROUNDS` says otherwise.
const ROUNDS: u32 = 41;
/// Operations of one case in one round.
const OPERATIONS: u32 = 20_000;
/// The same for cases of many packets.
const BATCHES: u32 = 300;

/// One thing that is done over and over. Returns something that depends on the work.
struct Case<'a> {
    name: String,
    operations: u32,
    work: Box<dyn FnMut(u32) -> bool + 'a>,
    nanos: Vec<f64>,
    allocations: usize,
}

impl<'a> Case<'a> {
    fn new(name: &str, work: impl FnMut(u32) -> bool + 'a) -> Self {
        let (name, work) = (name.to_owned(), Box::new(work));
        Self { name, operations: OPERATIONS, work, nanos: Vec::new(), allocations: 0 }
    }

    /// One that does much at once.
    fn of_many(name: &str, work: impl FnMut(u32) -> bool + 'a) -> Self {
        Self { operations: BATCHES, ..Self::new(name, work) }
    }

    fn round(&mut self) {
        let region = Region::new(ALLOCATOR);
        let started = Instant::now();
        let mut passed = 0_u32;
        for number in 0..self.operations {
            passed += u32::from((self.work)(black_box(number)));
        }
        let elapsed = started.elapsed();
        let change = region.change();
        black_box(passed);
        self.allocations += change.allocations + change.reallocations;
        self.nanos.push(elapsed.as_secs_f64() * 1e9 / f64::from(self.operations));
    }

    fn median(&self) -> f64 {
        let mut sorted = self.nanos.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = match std::env::var("BENCH_MICRO_ROUNDS") {
        Ok(text) => text.parse()?,
        Err(_) => ROUNDS,
    };
    let towns: Vec<(&str, Town)> =
        TOWNS.iter().map(|&(rules, growth, name)| (name, Town::new(rules, growth))).collect();
    let flows: Vec<FlowTable> = towns.iter().map(|_| fixture::flow_table()).collect();
    let wire: Vec<Vec<u8>> = towns[0].1.allowed.iter().map(|&pair| datagram(pair)).collect();

    let mut cases = vec![Case::new("parse GUE and inner headers", |number| {
        let datagram = &wire[number as usize % wire.len()];
        let Ok(gue::Frame::Data { family, inner: bytes, .. }) = gue::decode(datagram) else {
            return false;
        };
        inner::parse(family, bytes).is_ok()
    })];
    cases.extend(offloads(towns[0].1.allowed[0]));
    cases.extend(batches(&towns[0].1, &flows[0]));
    for ((name, town), flows) in towns.iter().zip(&flows) {
        cases.extend(verdicts(name, town, flows));
    }
    // What is kept from batch to batch is filled by the first.
    for case in &mut cases {
        black_box((case.work)(0));
    }
    for _ in 0..rounds {
        cases.iter_mut().for_each(Case::round);
    }

    println!("{:<76} {:>9} {:>8} {:>12}", "case", "ns", "x", "allocations");
    for case in &cases {
        let ratio = ratio(case, &cases).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        println!("{:<76} {:>9.1} {ratio:>8} {:>12}", case.name, case.median(), case.allocations);
    }
    let wide = worst_ratio(&cases, "10,000 rules");
    let dense = worst_ratio(&cases, "10,000 rules about the same members");
    println!("\nverdict at 10,000 rules against 100, worst case (reach: 1.3x at most)");
    println!(
        "  rules of other members: {wide:.2}x    all rules about the same members: {dense:.2}x\n"
    );
    let compiled = compilation();

    let path = results();
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let rows: Vec<_> = cases
        .iter()
        .map(|case| json!({ "case": case.name, "ns": case.median(), "rounds": case.nanos }))
        .collect();
    let all = json!({ "cases": rows, "worstRatioWide": wide, "worstRatioDense": dense, "compile": compiled });
    std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    println!("written: {}", path.display());

    let allocated: usize = cases.iter().map(|case| case.allocations).sum();
    if allocated > 0 {
        return Err(format!("{allocated} allocations on the path of packets").into());
    }
    Ok(())
}

/// Beside the programs, in the directory that `make bench` names too.
fn results() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    PathBuf::from(target).join("bench/micro.json")
}

/// Cutting a large packet into its 40 segments, and joining those, checksums included.
fn offloads<'a>(pair: fixture::Pair) -> Vec<Case<'a>> {
    let (packet, gso) = fixture::batches::large(pair);
    let prefix = gue::data_header(ovmesh::wire::Family::V4, key(pair).bits());
    let split = move |_| Split::new(prefix, &packet, gso).map_or(0, Iterator::count) == 40;
    let segments = fixture::batches::train(pair);
    let buffer = segments.concat();
    let mut ranges = Vec::new();
    for segment in &segments {
        let start = ranges.last().map_or(0, |last: &std::ops::Range<usize>| last.end);
        ranges.push(start + gue::HEADER_LEN..start + segment.len());
    }
    let mut coalescer = Coalescer::new();
    let takes = Takes { tcp: true, udp: true };
    let coalesce = move |_| {
        coalescer.clear();
        ranges.iter().all(|range| coalescer.push(&buffer, range.clone(), 0, takes))
            && coalescer.runs().count() == 1
    };
    vec![
        Case::of_many("split 56,000 bytes of TCP into 40 segments", split),
        Case::of_many("coalesce 40 segments of TCP", coalesce),
    ]
}

/// Whole batches of 64 packets: read before, then judged and handed to the kernel.
fn batches<'a>(town: &'a Town, flows: &'a FlowTable) -> Vec<Case<'a>> {
    let new = || Batches::new(town, flows);
    let (mut egress, mut transit, mut ingress) = (new(), new(), new());
    vec![
        Case::of_many("batch of 64, egress", move |_| egress.egress() == PACKETS),
        Case::of_many("batch of 64, transit", move |_| transit.transit() == PACKETS),
        Case::of_many("batch of 64, ingress", move |_| ingress.ingress() == PACKETS),
    ]
}

/// The questions of the three hallways in one town.
fn verdicts<'a>(rules: &str, town: &'a Town, flows: &'a FlowTable) -> Vec<Case<'a>> {
    let name = |what: &str| format!("{what}: {rules}");
    let mine: Vec<_> = town.allowed_of_source().collect();
    let first = town.allowed[0];
    let out: Vec<_> = mine.iter().map(|&pair| udp(pair, 1)).collect();
    let incoming: Vec<_> = (0..16).map(|flow| udp(first, flow)).collect();
    let at_sap = |pairs: &[fixture::Pair], facts: fn(fixture::Pair) -> ovmesh::wire::Facts| {
        let row = |&pair: &fixture::Pair| (endpoint(pair.from), key(pair).bits(), facts(pair));
        pairs.iter().map(row).collect::<Vec<(SocketAddr, u32, _)>>()
    };
    let through_by_flow = at_sap(&town.allowed, |pair| udp(pair, 1));
    let through_by_rule = at_sap(&town.allowed, tcp);
    let refused = at_sap(&town.allowed, fixture::refused_tcp);
    let first_key = key(first).bits();
    let transit = move |rows: Vec<(SocketAddr, u32, ovmesh::wire::Facts)>| {
        move |number: u32| {
            let (outer, key, facts) = &rows[number as usize % rows.len()];
            passes(town.sap.transit(*outer, *key, facts, flows, NOW))
        }
    };
    vec![
        Case::new(&name("egress, flow known"), move |number| {
            let facts = &out[number as usize % out.len()];
            passes(town.source.egress(0, facts, flows, NOW))
        }),
        Case::new(&name("ingress, flow known"), move |number| {
            let facts = &incoming[number as usize % incoming.len()];
            passes(town.target.ingress(sap_endpoint(), first_key, facts, flows, NOW))
        }),
        Case::new(&name("transit, flow known"), transit(through_by_flow)),
        Case::new(&name("transit, TCP, verdict remembered"), transit(through_by_rule)),
        Case::new(&name("transit, refused: rules asked"), transit(refused)),
    ]
}

/// How a case compares to the same case with 100 rules, from medians.
fn ratio(case: &Case<'_>, cases: &[Case<'_>]) -> Option<f64> {
    let (what, _) = case.name.rsplit_once(": ")?;
    let base = cases.iter().find(|other| other.name == format!("{what}: 100 rules"))?;
    Some(case.median() / base.median())
}

/// The worst ratio of one town.
fn worst_ratio(cases: &[Case<'_>], town: &str) -> f64 {
    let suffix = format!(": {town}");
    let of_town = cases.iter().filter(|case| case.name.ends_with(&suffix));
    of_town.filter_map(|case| ratio(case, cases)).fold(f64::NAN, f64::max)
}

/// Compiles everybody's tables, for growing overlays.
fn compilation() -> Vec<serde_json::Value> {
    println!("{:<44} {:>9} {:>8} {:>12}", "policy compile: all tables", "ms", "nodes", "rows");
    let sizes = [(100, 100), (1_000, 100), (1_000, 1_000), (1_000, 10_000)];
    let mut rows = Vec::new();
    for (entities, rules) in sizes {
        let world = overlay(entities, rules);
        let mut best = Duration::MAX;
        let mut written = 0;
        for _ in 0..3 {
            let started = Instant::now();
            let tables = compile(&world, &Keys, Timestamp(1));
            best = best.min(started.elapsed());
            written = tables.values().flat_map(|t| &t.overlays).map(|o| o.rules.len()).sum();
        }
        let millis = best.as_secs_f64() * 1e3;
        let name = format!("{entities} entities, {rules} rules");
        println!("{name:<44} {millis:>9.1} {:>8} {written:>12}", entities + 1);
        rows.push(json!({ "entities": entities, "rules": rules, "millis": millis }));
    }
    println!();
    rows
}

/// An overlay whose entities carry one of `entities / 10` labels; rules are about two labels.
fn overlay(entities: u32, rules: u32) -> World {
    let overlay = OverlayId(1);
    let labels = (entities / 10).max(1);
    let label = |number: u32| -> BTreeSet<Label> {
        let text = format!("group=g{}", number % labels);
        text.parse().into_iter().collect()
    };
    let mut world = World::default();
    let facts = OverlayFacts {
        name: Name::new("default").expect("a name"),
        cidr: "10.9.0.0/16".parse().expect("a range"),
        semantics: Semantics::DefaultDeny,
        silent: false,
        is_audit: false,
    };
    world.overlays.insert(overlay, facts);
    let sap = NodeId(entities + 1);
    for number in 1..=entities + 1 {
        let is_sap = number == sap.0;
        let [_, _, high, low] = number.to_be_bytes();
        let facts = NodeFacts {
            kind: if is_sap { NodeKind::Sap } else { NodeKind::Entity },
            name: format!("n{number}").parse().expect("a name"),
            labels: if is_sap { BTreeSet::new() } else { label(number) },
            ports: BTreeMap::new(),
            endpoints: vec![SocketAddr::from(([198, 18, high, low], 6080))],
            addresses: (!is_sap)
                .then(|| (overlay, [10, 9, high, low].into()))
                .into_iter()
                .collect(),
            serves: is_sap.then_some(overlay).into_iter().collect(),
            is_quarantined: false,
            round_trips: BTreeMap::new(),
            drain: Drain::No,
        };
        world.nodes.insert(NodeId(number), facts);
        if !is_sap {
            world.links.insert((NodeId(number), sap), (LinkId(number), Secret::new([1; 32])));
        }
    }
    for number in 0..rules {
        let rule = RuleFacts {
            overlay,
            action: Action::Allow,
            from: BoundSelector::Labels(label(number)),
            to: BoundSelector::Labels(label(number / labels + number * 7 + 1)),
            services: vec![format!("tcp/{}", 1_000 + number % 60_000).parse().expect("a service")],
            both: false,
            path: None,
            not_after: None,
            is_audit: false,
            name: None,
        };
        world.rules.insert(RuleId(number + 1), rule);
    }
    world
}

/// Keys for free: what is measured is the compiling.
struct Keys;

impl KeySource for Keys {
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
        AuthorizationKey::from_bits(from.0.wrapping_mul(65_537) ^ to.0)
    }
}
