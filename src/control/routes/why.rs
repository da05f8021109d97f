//! Why a flow passes or not: the evaluator's verdict, and what the server knows of everything else
//! that the flow needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::{Answer, Body, apart, flows};
use crate::api::admin::{CanAnswer, CanQuestion, PathNames};
use crate::api::flows::FlowRecord;
use crate::api::why::{SEEN_MAX, SEEN_SECONDS, Stage, StageName, StageState, WhyAnswer, WhyEnd};
use crate::api::{Problem, ProblemCode};
use crate::control::auth::Viewer;
use crate::control::live::{Live, NodeState};
use crate::control::rotation;
use crate::control::server::{Server, now};
use crate::control::store::flows::Wanted;
use crate::control::store::rules;
use crate::keys::rotation::Step;
use crate::policy::{self, AskedPair, End, World};
use crate::types::{ApiVersion, NodeId, OverlayId, RuleId, Service, Timestamp};

/// Answers the question; of several pairs, about the first that is denied.
pub(super) async fn why(
    State(server): State<Arc<Server>>,
    _: Viewer,
    Body(question): Body<CanQuestion>,
) -> Answer<WhyAnswer> {
    let at = now();
    let (world, guards) = server.live().for_answers();
    if let Some(strangers) = policy::strangers(&world, &question) {
        return Ok(Json(no_overlay(&world, question.service, strangers, at)));
    }
    let places = rules::places(&mut *server.store.read().await?).await?;
    let judged = Arc::clone(&world);
    let found = apart(move || judge(&judged, &question, &guards, &places, at)).await??;
    let Judged { whole, verdict, question, overlay, from, to } = found;
    let since = Timestamp(at.0.saturating_sub(SEEN_SECONDS));
    let (stages, seen) = match (&from, &to) {
        (End::Member(from), End::Member(to)) => {
            let asked = AskedPair { overlay, from: *from, to: *to };
            let seen = seen(&server, &world, &question, &asked, since).await?;
            let live = server.live();
            let stages = vec![
                membership(&world, &verdict, &asked),
                path(&live, &world, &asked, at),
                key(&live, &verdict, &asked),
                rules_stage(&world, &verdict),
                endpoint(&live, &asked),
            ];
            (stages, seen)
        }
        (End::Outside(address), _) | (_, End::Outside(address)) => {
            (outside(&world, &verdict, *address), Vec::new())
        }
    };
    Ok(Json(WhyAnswer {
        api_version: ApiVersion::V1,
        allowed: whole.allowed,
        pairs: whole.pairs,
        allowed_pairs: whole.allowed_pairs,
        from: end(&world, overlay, &from),
        to: end(&world, overlay, &to),
        overlay: Some(whole.overlay),
        revision: whole.revision,
        service: question.service,
        rule: verdict.rule,
        stages,
        nearest: verdict.nearest,
        since,
        seen,
        allow_with: whole.allow_with,
    }))
}

/// The verdict on all that is asked, and on the pair that is explained.
struct Judged {
    whole: CanAnswer,
    verdict: CanAnswer,
    /// About the pair.
    question: CanQuestion,
    overlay: OverlayId,
    from: End,
    to: End,
}

fn judge(
    world: &World,
    question: &CanQuestion,
    guards: &BTreeSet<(OverlayId, NodeId)>,
    places: &BTreeMap<RuleId, String>,
    at: Timestamp,
) -> Result<Judged, Problem> {
    let whole = policy::can(world, question, guards, places, at)?;
    let asked = policy::asked(world, question)?;
    let gone = || Problem::new(ProblemCode::NotFound, "an end of the question is gone");
    let (from, to) = policy::pair_to_explain(world, question, &asked, at).ok_or_else(gone)?;
    let narrow = CanQuestion {
        overlay: Some(whole.overlay.clone()),
        from: policy::selector_of(world, &from).ok_or_else(gone)?,
        to: policy::selector_of(world, &to).ok_or_else(gone)?,
        service: question.service.clone(),
    };
    let verdict = policy::can(world, &narrow, guards, places, at)?;
    Ok(Judged { whole, verdict, question: narrow, overlay: asked.overlay, from, to })
}

fn end(world: &World, overlay: OverlayId, end: &End) -> WhyEnd {
    match end {
        End::Member(id) => {
            let facts = world.nodes.get(id);
            WhyEnd {
                name: facts.map(|facts| facts.name.clone()),
                address: facts.and_then(|facts| facts.addresses.get(&overlay).copied()),
            }
        }
        End::Outside(address) => WhyEnd { name: None, address: Some(*address) },
    }
}

/// Two that are in no overlay together: nothing else matters.
fn no_overlay(
    world: &World,
    service: Option<Service>,
    (from, to): (NodeId, NodeId),
    at: Timestamp,
) -> WhyAnswer {
    let end = |id: NodeId| WhyEnd {
        name: world.nodes.get(&id).map(|facts| facts.name.clone()),
        address: None,
    };
    let is_in = |id| format!("{} is in {}", name(world, id), policy::overlays_of(world, id));
    let text = format!(
        "{}; {}: the two share no overlay, so there is no address to send to. With a token for the \
         other's overlay either can join it: ovctl token create --overlay OVERLAY --name NAME",
        is_in(from),
        is_in(to)
    );
    WhyAnswer {
        api_version: ApiVersion::V1,
        allowed: false,
        overlay: None,
        revision: world.revision,
        pairs: 1,
        allowed_pairs: 0,
        from: end(from),
        to: end(to),
        service,
        rule: None,
        stages: vec![stage(StageName::Membership, StageState::Denied, text)],
        nearest: Vec::new(),
        since: at,
        seen: Vec::new(),
        allow_with: Vec::new(),
    }
}

/// What there is to say where one end is an address outside.
fn outside(world: &World, verdict: &CanAnswer, address: IpAddr) -> Vec<Stage> {
    let overlay = &verdict.overlay;
    let (judged, by) = match verdict.enforced {
        true => (StageState::Ok, "the guard of the machine that starts the flow judges them"),
        false => (StageState::Unsure, "no SaP and no ovd judges them"),
    };
    vec![
        stage(
            StageName::Membership,
            StageState::Unsure,
            format!("{address} is outside: it belongs to no member of {overlay}"),
        ),
        stage(
            StageName::Path,
            judged,
            format!("packets of {address} do not cross {overlay}: {by}"),
        ),
        rules_stage(world, verdict),
    ]
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

fn rules_stage(world: &World, verdict: &CanAnswer) -> Stage {
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
