//! Why a flow passes or not: the evaluator's verdict, and what the server knows of everything else
//! that the flow needs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::{Answer, Body, flows};
use crate::api::Problem;
use crate::api::admin::{CanAnswer, CanQuestion, PathNames};
use crate::api::flows::FlowRecord;
use crate::api::why::{SEEN_MAX, SEEN_SECONDS, Stage, StageName, StageState, WhyAnswer, WhyEnd};
use crate::control::auth::Viewer;
use crate::control::live::{Live, NodeState};
use crate::control::rotation;
use crate::control::server::{Server, now};
use crate::control::store::flows::Wanted;
use crate::keys::rotation::Step;
use crate::policy::{self, AskedPair, World};
use crate::types::{ApiVersion, NodeId, RuleId, Timestamp};

/// Answers the question.
pub(super) async fn why(
    State(server): State<Arc<Server>>,
    _: Viewer,
    Body(question): Body<CanQuestion>,
) -> Answer<WhyAnswer> {
    let at = now();
    let world = Arc::clone(&server.live().world);
    let verdict = policy::can(&world, &question, at)?;
    let asked = policy::asked_pair(&world, &question)?;
    let since = Timestamp(at.0.saturating_sub(SEEN_SECONDS));
    let seen = seen(&server, &world, &question, &asked, since).await?;
    let allow_with = policy::commands_to_allow(&world, &question, &asked, at);
    let stages = {
        let live = server.live();
        vec![
            membership(&world, &verdict, &asked),
            path(&live, &world, &asked, at),
            key(&live, &verdict, &asked),
            rules(&world, &verdict),
            endpoint(&live, &asked),
        ]
    };
    Ok(Json(WhyAnswer {
        api_version: ApiVersion::V1,
        allowed: verdict.allowed,
        from: end(&world, &asked, asked.from)?,
        to: end(&world, &asked, asked.to)?,
        overlay: verdict.overlay,
        revision: verdict.revision,
        service: question.service,
        rule: verdict.rule,
        stages,
        nearest: verdict.nearest,
        since,
        seen,
        allow_with,
    }))
}

fn end(world: &World, asked: &AskedPair, id: NodeId) -> Result<WhyEnd, Problem> {
    let facts = world.nodes.get(&id);
    let address = facts.and_then(|facts| facts.addresses.get(&asked.overlay));
    match (facts, address) {
        (Some(facts), Some(&address)) => Ok(WhyEnd { name: facts.name.clone(), address }),
        _ => Err(Problem::new(
            crate::api::ProblemCode::NotFound,
            "an end of the question is no member any more",
        )
        .fix("ask again")),
    }
}

/// What nodes reported of such flows.
async fn seen(
    server: &Server,
    world: &World,
    question: &CanQuestion,
    asked: &AskedPair,
    since: Timestamp,
) -> Result<Vec<FlowRecord>, Problem> {
    let wanted = Wanted {
        overlay: Some(asked.overlay),
        from: Some(asked.from),
        to: Some(asked.to),
        since,
        verdict: None,
    };
    let mut settled = flows::settled(server, world, &wanted).await?;
    settled.retain(|one| {
        let is_asked = |service| policy::is_about(world, asked, service, &one.key.service());
        one.sums.last >= since && question.service.as_ref().is_none_or(is_asked)
    });
    Ok(settled.iter().take(SEEN_MAX).map(|one| flows::shown(world, one)).collect())
}

fn stage(stage: StageName, state: StageState, text: impl Into<String>) -> Stage {
    Stage { stage, state, text: text.into() }
}

fn name(world: &World, id: NodeId) -> String {
    rotation::name_of(world, id).to_string()
}

fn membership(world: &World, verdict: &CanAnswer, asked: &AskedPair) -> Stage {
    let [from, to] = [asked.from, asked.to].map(|id| name(world, id));
    let text = format!("{from} and {to} are members of {}", verdict.overlay);
    stage(StageName::Membership, StageState::Ok, text)
}

/// The first way on which everybody is there; else what is wrong with all of them.
fn path(live: &Live, world: &World, asked: &AskedPair, at: Timestamp) -> Stage {
    let ways = match policy::ways(world, asked, at) {
        Ok(ways) => ways,
        Err(why) => return stage(StageName::Path, StageState::Broken, why),
    };
    let mut wrong = Vec::new();
    for (names, saps) in &ways {
        let faults = faults(live, world, asked, saps);
        if faults.is_empty() {
            let text = way_text(world, asked, names) + &round_trip_text(live, asked, saps);
            return stage(StageName::Path, StageState::Ok, text);
        }
        wrong.extend(faults);
    }
    wrong.dedup();
    wrong.truncate(4);
    let first = ways.first().map(|(names, _)| way_text(world, asked, names)).unwrap_or_default();
    let text = format!("{first}, but {}", wrong.join("; "));
    stage(StageName::Path, StageState::Broken, text)
}

fn way_text(world: &World, asked: &AskedPair, names: &PathNames) -> String {
    let [from, to] = [asked.from, asked.to].map(|id| name(world, id));
    match names {
        PathNames::Direct => format!("{from} → {to}, direct: no SaP between them"),
        PathNames::Via(saps) => {
            let saps: Vec<&str> = saps.iter().map(|sap| sap.as_str()).collect();
            format!("{from} → {} → {to}", saps.join(" → "))
        }
    }
}

/// What is known against a way: a SaP that is away from the server, or that an end gets no answer of.
fn faults(live: &Live, world: &World, asked: &AskedPair, saps: &[NodeId]) -> Vec<String> {
    let away = saps.iter().filter_map(|id| {
        let node = live.nodes.get(id)?;
        (!node.is_online()).then(|| format!("{} is {}", name(world, *id), node.why_behind()))
    });
    let mute = hops_of_ends(asked, saps).filter_map(|(end, sap)| {
        let measured = round_trip(live, end, sap)?;
        let text = || format!("{} gets no answer from {}", name(world, end), name(world, sap));
        measured.is_none().then(text)
    });
    away.chain(mute).collect()
}

/// Each end with the SaP that it talks to.
fn hops_of_ends<'a>(
    asked: &AskedPair,
    saps: &'a [NodeId],
) -> impl Iterator<Item = (NodeId, NodeId)> + 'a {
    let ends = [(asked.from, saps.first()), (asked.to, saps.last())];
    ends.into_iter().filter_map(|(end, sap)| Some((end, *sap?)))
}

/// What the end last said about the SaP: none while it said nothing, none within while it is mute.
fn round_trip(live: &Live, end: NodeId, sap: NodeId) -> Option<Option<u64>> {
    let node = live.nodes.get(&end).filter(|node| node.is_online())?;
    node.round_trips.iter().find(|trip| trip.sap == sap).map(|trip| trip.micros)
}

fn round_trip_text(live: &Live, asked: &AskedPair, saps: &[NodeId]) -> String {
    let micros: u64 =
        hops_of_ends(asked, saps).filter_map(|(end, sap)| round_trip(live, end, sap)?).sum();
    if micros == 0 { String::new() } else { format!(" (the ends' hops: {micros} µs both ways)") }
}

/// Whether the source's table has the destination's key.
fn key(live: &Live, verdict: &CanAnswer, asked: &AskedPair) -> Stage {
    let AskedPair { overlay, from, to } = *asked;
    let [source, target] = [from, to].map(|id| name(&live.world, id));
    let stage = |state, text: String| stage(StageName::Key, state, text);
    let has_row = live.senders.get(&(overlay, to)).is_some_and(|all| all.contains(&from));
    match (has_row, verdict.allowed) {
        (false, false) => {
            let text = format!(
                "{source} has no key for {target}, as no rule lets it send there: it drops such \
                 packets itself"
            );
            return stage(StageState::Denied, text);
        }
        (false, true) => {
            let text = format!("{source} has no key for {target} yet: its table is on the way");
            return stage(StageState::Broken, text);
        }
        (true, _) => {}
    }
    let ring = live.keys.rings.get(&(overlay, None, to));
    let version = ring.map(|row| row.ring.stamped()).unwrap_or_default();
    let mut text = format!("{source} stamps key {version} for {target}");
    if let Some(row) = live.keys.rings.get(&(overlay, Some(from), to)) {
        text.push_str(&format!(", generation {} of the pair", row.ring.stamped().generation.0));
    }
    if let Some(row) = ring.filter(|row| row.ring.step != Step::Steady) {
        text.push_str(&format!("; rotating: {}", row.ring.step));
    }
    match live.nodes.get(&from).and_then(behind_text) {
        Some(why) => stage(StageState::Unsure, format!("{text}; but {source} {why}")),
        None => stage(StageState::Ok, text),
    }
}

/// What a node's table lacks, if the server does not know it to be the newest.
fn behind_text(node: &NodeState) -> Option<String> {
    if !node.is_online() {
        return Some(format!("is {}, and goes on by the table it has", node.why_behind()));
    }
    (node.acknowledged < node.newest_serial()).then(|| {
        format!(
            "has not confirmed its newest table (serial {}, it has {})",
            node.newest_serial(),
            node.acknowledged
        )
    })
}

fn rules(world: &World, verdict: &CanAnswer) -> Stage {
    let is_audit = |id: RuleId| {
        id == RuleId::AUDIT_MODE || world.rules.get(&id).is_some_and(|rule| rule.is_audit)
    };
    let state = match (verdict.allowed, verdict.rule) {
        (false, _) => StageState::Denied,
        (true, Some(rule)) if is_audit(rule) => StageState::Unsure,
        (true, _) => StageState::Ok,
    };
    stage(StageName::Rules, state, verdict.why.clone())
}

fn endpoint(live: &Live, asked: &AskedPair) -> Stage {
    let target = name(&live.world, asked.to);
    let stage = |state, text| stage(StageName::Endpoint, state, text);
    let Some(node) = live.nodes.get(&asked.to) else {
        return stage(StageState::Broken, format!("{target} is gone"));
    };
    if let Some(why) = behind_text(node) {
        return stage(StageState::Unsure, format!("{target} {why}"));
    }
    let serial = node.acknowledged;
    let mut text = format!("{target} is online and has its newest table (serial {serial})");
    if node.problems.is_empty() {
        return stage(StageState::Ok, text);
    }
    text.push_str("; it complains: ");
    text.push_str(&node.problems.join("; "));
    stage(StageState::Unsure, text)
}
