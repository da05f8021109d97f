//! Rules that allow exactly what was seen: few of them, by label where every member that the labels
//! mean was part of it.
//!
//! A rule is a rectangle of sources and destinations. The one that covers most of what is left comes
//! first (the smallest set of rectangles is beyond reach in general); rules with the same ends become
//! one. Nothing that was not seen is ever allowed: not one pair, not one port.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;

use super::select::{member, members_of};
use super::{BoundSelector, World};
use crate::types::{Name, NodeId, OverlayId, Service};

/// Most pairs of one service that are looked at; those beyond are left out, and counted.
const PAIRS_MAX: usize = 5_000;

/// Most rectangles of one service that are weighed; beyond, members are named one by one.
const RECTANGLES_MAX: usize = 100_000;

/// A flow that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFlow {
    /// Who started it.
    pub from: NodeId,
    /// Who was asked.
    pub to: NodeId,
    /// One port, or a protocol without ports.
    pub service: Service,
    /// Packets of it.
    pub packets: u64,
}

/// A rule to allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuggestedRule {
    /// Who starts flows.
    pub from: BoundSelector,
    /// Who is talked to.
    pub to: BoundSelector,
    /// Protocols and ports, sorted.
    pub services: Vec<Service>,
    /// How many ordered pairs of members it covers, each seen for each service.
    pub pairs: usize,
    /// Packets that were seen of what it covers.
    pub packets: u64,
}

/// Rules for what was seen, and what no rule can be made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// The rules, those with the most packets first.
    pub rules: Vec<SuggestedRule>,
    /// Flows without a rule: an end is no member any more, the port is not known, or there are too
    /// many.
    pub left_out: usize,
}

type Pairs = BTreeMap<(NodeId, NodeId), u64>;

/// A way to mean some members, and whom it means.
#[derive(Clone, Debug)]
struct Side {
    selector: BoundSelector,
    members: BTreeSet<NodeId>,
}

/// The rules that allow exactly `flows` in `overlay`, with the members that labels mean now.
#[must_use]
pub fn suggest(world: &World, overlay: OverlayId, flows: &[SeenFlow]) -> Suggestion {
    let mut by_service: BTreeMap<&Service, Pairs> = BTreeMap::new();
    let mut left_out = 0;
    for flow in flows {
        let is_member = |id| member(world, overlay, id).is_some();
        let is_sayable = match &flow.service {
            Service::Protocol(protocol) => !protocol.has_ports(),
            Service::Ports(_, range) => range.first == range.last,
            Service::Named(..) => false,
        };
        let pairs = by_service.entry(&flow.service).or_default();
        let is_known = pairs.contains_key(&(flow.from, flow.to));
        if !is_sayable
            || flow.from == flow.to
            || !is_member(flow.from)
            || !is_member(flow.to)
            || !is_known && pairs.len() >= PAIRS_MAX
        {
            left_out += 1;
            continue;
        }
        *pairs.entry((flow.from, flow.to)).or_default() += flow.packets;
    }
    let mut rules: BTreeMap<(BoundSelector, BoundSelector), SuggestedRule> = BTreeMap::new();
    for (service, pairs) in by_service {
        for (from, to, covered) in cover(world, overlay, &pairs) {
            let packets: u64 = covered.iter().filter_map(|pair| pairs.get(pair)).sum();
            let rule = rules.entry((from.clone(), to.clone())).or_insert_with(|| SuggestedRule {
                from,
                to,
                services: Vec::new(),
                pairs: covered.len(),
                packets: 0,
            });
            rule.services.push(service.clone());
            rule.packets = rule.packets.saturating_add(packets);
        }
    }
    let mut rules: Vec<SuggestedRule> = rules.into_values().collect();
    rules.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.from.cmp(&b.from)));
    Suggestion { rules, left_out }
}

type Rectangle = (BoundSelector, BoundSelector, BTreeSet<(NodeId, NodeId)>);

/// Rectangles within `pairs` that cover all of them.
fn cover(world: &World, overlay: OverlayId, pairs: &Pairs) -> Vec<Rectangle> {
    let sources: BTreeSet<NodeId> = pairs.keys().map(|(from, _)| *from).collect();
    let targets: BTreeSet<NodeId> = pairs.keys().map(|(_, to)| *to).collect();
    let froms = sides(world, overlay, &sources);
    let tos = sides(world, overlay, &targets);
    let mut left: BTreeSet<(NodeId, NodeId)> = pairs.keys().copied().collect();
    let mut heap = BinaryHeap::new();
    for (f, from) in froms.iter().enumerate() {
        for (t, to) in tos.iter().enumerate() {
            let is_one = from.members.len() == 1 && to.members.len() == 1;
            if !is_one && heap.len() >= RECTANGLES_MAX {
                continue;
            }
            if let Some(size) = within(from, to, pairs) {
                // Of equals the first: labels stand before names.
                heap.push((size, std::cmp::Reverse((f, t))));
            }
        }
    }
    let mut found = Vec::new();
    while let Some((size, std::cmp::Reverse((f, t)))) = heap.pop() {
        let (from, to) = (&froms[f], &tos[t]);
        let gain = rectangle(from, to).filter(|pair| left.contains(pair)).count();
        if gain == 0 {
            continue;
        }
        if gain < size {
            // Others took some of it: it may not be the best any more.
            heap.push((gain, std::cmp::Reverse((f, t))));
            continue;
        }
        let all: BTreeSet<(NodeId, NodeId)> = rectangle(from, to).collect();
        left.retain(|pair| !all.contains(pair));
        found.push((from.selector.clone(), to.selector.clone(), all));
    }
    found
}

fn rectangle<'a>(from: &'a Side, to: &'a Side) -> impl Iterator<Item = (NodeId, NodeId)> + 'a {
    let with_all = |&a: &NodeId| to.members.iter().map(move |&b| (a, b));
    from.members.iter().flat_map(with_all).filter(|(a, b)| a != b)
}

/// How many pairs the rectangle has, when all of them were seen.
fn within(from: &Side, to: &Side, pairs: &Pairs) -> Option<usize> {
    let mut count = 0;
    for pair in rectangle(from, to) {
        if !pairs.contains_key(&pair) {
            return None;
        }
        count += 1;
    }
    (count > 0).then_some(count)
}

/// Each way to mean some of `seen` and nobody else: by one label, by all labels that one of them
/// carries, by name.
fn sides(world: &World, overlay: OverlayId, seen: &BTreeSet<NodeId>) -> Vec<Side> {
    let mut labels = BTreeSet::new();
    for facts in seen.iter().filter_map(|id| world.nodes.get(id)) {
        labels.extend(facts.labels.iter().map(|label| BTreeSet::from([label.clone()])));
        if facts.labels.len() > 1 {
            labels.insert(facts.labels.clone());
        }
    }
    let mut by_members: BTreeMap<BTreeSet<NodeId>, BoundSelector> = BTreeMap::new();
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort_by_key(BTreeSet::len);
    for labels in labels {
        let selector = BoundSelector::Labels(labels);
        let members = members_of(world, overlay, &selector);
        if members.is_subset(seen) {
            by_members.entry(members).or_insert(selector);
        }
    }
    let by_label = by_members.into_iter().map(|(members, selector)| Side { selector, members });
    let by_name = seen.iter().filter_map(|&id| {
        let name = world.nodes.get(&id)?.name.clone();
        Some(Side { selector: BoundSelector::Node(id, name), members: BTreeSet::from([id]) })
    });
    by_label.chain(by_name).collect()
}

/// The suggestion as a policy file. `what` says in words what was recorded.
#[must_use]
pub fn suggestion_text(suggestion: &Suggestion, overlay: &Name, what: &str) -> String {
    let mut text = format!(
        "# {what}\n# Allows exactly that, with the members that the labels mean now, and nothing else.\n\
         # A file is the whole policy: add these rules to it (ovctl policy export), do not replace it.\n"
    );
    if suggestion.left_out > 0 {
        let count = suggestion.left_out;
        let _ = writeln!(text, "# No rule was made of {count} records: no member, or no port.");
    }
    let _ = write!(text, "apiVersion: ovmesh/v1\nkind: Policy\noverlay: {overlay}\nrules:");
    if suggestion.rules.is_empty() {
        text.push_str(" []\n");
        return text;
    }
    text.push('\n');
    for rule in &suggestion.rules {
        let SuggestedRule { from, to, services, pairs, packets } = rule;
        let services: Vec<String> =
            services.iter().map(|service| format!("\"{service}\"")).collect();
        let _ = write!(
            text,
            "  # {packets} packets of {pairs} pairs\n  - action: allow\n    from: \"{from}\"\n    \
             to: \"{to}\"\n    ports: [{}]\n",
            services.join(", ")
        );
    }
    text
}
