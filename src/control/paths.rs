//! Paths as people see them: what a pair may take, what it takes, and why.

use super::live::Live;
use super::policies::path_names;
use super::selection::overlay_name;
use crate::api::admin::RulePath;
use crate::api::path::{Latency, PairPath, PathCandidate};
use crate::api::table::PathHops;
use crate::policy::{Drain, Paths, World, zone};
use crate::types::{ApiVersion, Name, NodeId, NodeKind, OverlayId, Timestamp};

/// Two members of an overlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairOf {
    pub(crate) overlay: OverlayId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

/// The path of a pair by `world`, which may be that of a change under way.
pub(crate) fn view(live: &Live, world: &World, pair: PairOf, now: Timestamp) -> PairPath {
    let PairOf { overlay, from, to } = pair;
    let paths = Paths::new(world, overlay, now);
    let source = paths.source(from, to);
    let hops = paths.between(from, to);
    let candidates: Vec<PathCandidate> =
        hops.iter().filter_map(|hops| candidate(live, world, pair, hops)).collect();
    let best = candidates.iter().position(|candidate| candidate.answers);
    let name = |id: NodeId| super::rotation::name_of(world, id);
    PairPath {
        api_version: ApiVersion::V1,
        overlay: overlay_name(world, overlay),
        from: name(from),
        to: name(to),
        chosen_by: source.map_or_else(|| "auto".to_owned(), |source| source.to_string()),
        why: match (source, best) {
            (_, None) if candidates.is_empty() => "there is no way".to_owned(),
            (_, None) => "nothing answers".to_owned(),
            (Some(source), Some(_)) => format!("{source} says so"),
            (None, Some(at)) => why(&candidates, at),
        },
        in_use: best.and_then(|best| u32::try_from(best).ok()),
        candidates,
    }
}

/// Why the pair takes the candidate at `at`.
fn why(candidates: &[PathCandidate], at: usize) -> String {
    let (better, rest) = candidates.split_at(at);
    let [chosen, others @ ..] = rest else { return String::new() };
    let mut reasons = Vec::new();
    if !better.is_empty() {
        let names: Vec<String> = better.iter().map(|other| words(&other.path)).collect();
        reasons.push(format!("{} would be better, and does not answer", names.join(", ")));
    }
    let nearness = chosen.notes.iter().find(|note| note.starts_with("same"));
    match (nearness, chosen.from_micros, chosen.to_micros) {
        (Some(note), ..) => reasons.push(note.clone()),
        (None, Some(_), Some(_)) if !others.is_empty() => {
            reasons.push("the shortest round trips, or as good as any".to_owned());
        }
        (None, ..) if others.is_empty() && better.is_empty() => {
            reasons.push("there is no other".to_owned());
        }
        (None, ..) => reasons.push("nothing better was measured; the oldest SaP".to_owned()),
    }
    reasons.join("; ")
}

/// A path in words.
pub(crate) fn words(path: &RulePath) -> String {
    match path {
        RulePath::Direct => "direct".to_owned(),
        RulePath::Via(saps) => {
            let names: Vec<&str> = saps.iter().map(Name::as_str).collect();
            format!("via {}", names.join(","))
        }
    }
}

fn candidate(
    live: &Live,
    world: &World,
    PairOf { from, to, .. }: PairOf,
    hops: &PathHops,
) -> Option<PathCandidate> {
    let path = path_names(world, hops)?;
    let chain = match hops {
        PathHops::Via(chain) => chain.as_slice(),
        PathHops::Direct | PathHops::Elsewhere => &[],
    };
    let ends = [(from, chain.first()), (to, chain.last())];
    let legs = ends.map(|(node, sap)| sap.and_then(|sap| reported(live, node, *sap)));
    let [from_micros, to_micros] = legs.map(Option::flatten);
    // Who has not reported says nothing against it.
    let answers = legs.iter().all(|leg| *leg != Some(None));
    Some(PathCandidate {
        notes: chain.first().map_or_else(Vec::new, |sap| notes(world, [from, to], *sap)),
        path,
        answers,
        from_micros,
        to_micros,
    })
}

/// What `node` reported of `sap`: nothing, that it does not answer, or a round trip in microseconds.
fn reported(live: &Live, node: NodeId, sap: NodeId) -> Option<Option<u64>> {
    let state = live.nodes.get(&node)?;
    state.round_trips.iter().find(|trip| trip.sap == sap).map(|trip| trip.micros)
}

fn notes(world: &World, ends: [NodeId; 2], sap: NodeId) -> Vec<String> {
    let Some(facts) = world.nodes.get(&sap) else { return Vec::new() };
    let mut notes = Vec::new();
    let members: Vec<_> = ends.iter().filter_map(|id| world.nodes.get(id)).collect();
    let of = |is_near: &dyn Fn(&&&crate::policy::NodeFacts) -> bool| {
        let near = members.iter().filter(|member| is_near(member));
        near.map(|member| member.name.to_string()).collect::<Vec<_>>().join(" and ")
    };
    let hosts = of(&|member| {
        let mut own = member.endpoints.iter().map(std::net::SocketAddr::ip);
        own.any(|ip| facts.endpoints.iter().any(|endpoint| endpoint.ip() == ip))
    });
    let zones = of(&|member| zone(member).is_some() && zone(member) == zone(facts));
    if !hosts.is_empty() {
        notes.push(format!("same host as {hosts}"));
    }
    if let (false, Some(zone)) = (zones.is_empty(), zone(facts)) {
        notes.push(format!("same zone {zone} as {zones}"));
    }
    if facts.drain != Drain::No {
        notes.push("drained".to_owned());
    }
    notes
}

/// All round trips, by entity and SaP.
pub(crate) fn latencies(live: &Live, only: Option<OverlayId>) -> Vec<Latency> {
    let world = &live.world;
    let is_meant = |facts: &crate::policy::NodeFacts| {
        facts.kind == NodeKind::Entity
            && only.is_none_or(|overlay| facts.addresses.contains_key(&overlay))
    };
    let entities = world.nodes.iter().filter(|(_, facts)| is_meant(facts));
    let mut items: Vec<Latency> = entities
        .flat_map(|(id, facts)| {
            let trips = live.nodes.get(id).map_or(&[][..], |state| &state.round_trips);
            trips.iter().filter_map(|trip| {
                let sap = world.nodes.get(&trip.sap)?;
                Some(Latency {
                    entity: facts.name.clone(),
                    sap: sap.name.name.clone(),
                    micros: trip.micros,
                    held_micros: facts.round_trips.get(&trip.sap).copied().map(u64::from),
                })
            })
        })
        .collect();
    items.sort_by(|a, b| (&a.entity, &a.sap).cmp(&(&b.entity, &b.sap)));
    items
}
