//! What happened: nodes say it, operators look at it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::{Answer, Body, Params, Refusal};
use crate::api::flows::{
    ANSWER_RECORDS_MAX, FlowList, FlowQuery, FlowRecord, FlowReport, FlowVerdict, SuggestAnswer,
    SuggestQuestion,
};
use crate::api::{Problem, ProblemCode};
use crate::control::auth::{Node, Viewer};
use crate::control::flows::{NotTaken, Settled, settle};
use crate::control::rotation;
use crate::control::server::{Server, now};
use crate::control::store::flows::Wanted;
use crate::control::store::{flows as rows, nodes, overlays};
use crate::policy::{self, SeenFlow, World};
use crate::types::{ApiVersion, EntityName, NodeId, NodeKind, OverlayId, Timestamp};

type Shared = State<Arc<Server>>;

/// Records in an answer when nothing is said.
const LIMIT_DEFAULT: u32 = 1_000;

pub(super) async fn report(
    State(server): Shared,
    Node(id): Node,
    Body(report): Body<FlowReport>,
) -> Result<StatusCode, Refusal> {
    let world = Arc::clone(&server.live().world);
    let taken = server.flows().take(&world, id, &report, now());
    match taken {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(NotTaken::TooSoon) => Err(Refusal::too_many(
            Problem::new(ProblemCode::Failed, "this report comes too soon after the last one")
                .why("one a second is enough")
                .fix("send it again later"),
        )),
        Err(NotTaken::TooLong) => {
            Err(Problem::new(ProblemCode::Usage, "the report has too many records")
                .why(format!("a report may have {}", crate::api::flows::REPORT_RECORDS_MAX))
                .fix("send the rest with the next one")
                .into())
        }
    }
}

pub(super) async fn list(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<FlowQuery>,
) -> Answer<FlowList> {
    let wanted = wanted(&server, &query).await?;
    let world = Arc::clone(&server.live().world);
    let settled = settled(&server, &world, &wanted).await?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(ANSWER_RECORDS_MAX) as usize;
    let left_off = settled.len().saturating_sub(limit) as u64;
    let items = settled.iter().take(limit).map(|one| shown(&world, one)).collect();
    Ok(Json(FlowList { api_version: ApiVersion::V1, items, left_off }))
}

/// What is known, the newest included.
pub(super) async fn settled(
    server: &Server,
    world: &World,
    wanted: &Wanted,
) -> Result<Vec<Settled>, Problem> {
    server.save_flows().await?;
    let rows = rows::read(&mut *server.store.read().await?, wanted).await?;
    Ok(settle(world, rows.into_iter()))
}

async fn wanted(server: &Server, query: &FlowQuery) -> Result<Wanted, Problem> {
    let mut conn = server.store.read().await?;
    let overlay = match &query.overlay {
        Some(name) => Some(overlays::named(&mut conn, name).await?.id),
        None => None,
    };
    let mut entity = async |name: &Option<EntityName>| match name {
        Some(name) => {
            let found = nodes::named(&mut conn, NodeKind::Entity, name).await?;
            Ok::<_, Problem>(Some(found.id))
        }
        None => Ok(None),
    };
    let (from, to) = (entity(&query.from).await?, entity(&query.to).await?);
    let since = query.since.map_or(0, |since| now().0.saturating_sub(since.0.as_secs()));
    let verdict = match (query.denied, query.audit) {
        (Some(true), Some(true)) => {
            return Err(Problem::new(ProblemCode::Usage, "denied or audit, and not both")
                .why("what passed under audit was not denied")
                .fix("ask twice"));
        }
        (Some(true), _) => Some(FlowVerdict::Denied),
        (_, Some(true)) => Some(FlowVerdict::Audit),
        _ => None,
    };
    Ok(Wanted { overlay, from, to, since: Timestamp(since), verdict })
}

fn name(world: &World, id: NodeId) -> String {
    if world.nodes.contains_key(&id) {
        rotation::name_of(world, id).to_string()
    } else {
        format!("{id} (gone)")
    }
}

/// A record with names.
pub(super) fn shown(world: &World, settled: &Settled) -> FlowRecord {
    let Settled { key, sums, seen_by } = settled;
    FlowRecord {
        overlay: world.overlays.get(&key.overlay).map(|o| o.name.clone()).unwrap_or_default(),
        from: name(world, key.from),
        to: match (key.to, key.address) {
            (Some(to), _) => name(world, to),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        },
        service: key.service().to_string(),
        verdict: key.verdict,
        reason: key.reason.map(str::to_owned),
        rule: key.rule,
        packets: sums.packets,
        bytes: sums.bytes,
        first: sums.first,
        last: sums.last,
        seen_by: seen_by.iter().map(|&id| name(world, id)).collect(),
    }
}

/// Rules for what was recorded.
pub(super) async fn suggest(
    State(server): Shared,
    _: Viewer,
    Body(question): Body<SuggestQuestion>,
) -> Answer<SuggestAnswer> {
    let SuggestQuestion { overlay, since, denied } = question;
    let query = FlowQuery { overlay, since, ..FlowQuery::default() };
    let wanted = wanted(&server, &query).await?;
    let world = Arc::clone(&server.live().world);
    let is_meant = |one: &Settled| {
        one.key.verdict == FlowVerdict::Audit
            // Other refusals are no matter of rules.
            || denied && matches!(one.key.reason, Some("no_row" | "no_rule"))
    };
    let mut recorded = settled(&server, &world, &wanted).await?;
    recorded.retain(is_meant);
    let overlays: BTreeSet<OverlayId> = recorded.iter().map(|one| one.key.overlay).collect();
    let overlay = match (wanted.overlay, overlays.len()) {
        (Some(overlay), _) => overlay,
        (None, 0 | 1) => {
            let found = overlays.first().or_else(|| world.overlays.keys().next());
            *found.ok_or_else(|| Problem::new(ProblemCode::NotFound, "there is no overlay"))?
        }
        (None, _) => {
            let names = overlays.iter().filter_map(|id| world.overlays.get(id));
            let names: Vec<String> = names.map(|overlay| overlay.name.to_string()).collect();
            return Err(Problem::new(ProblemCode::Conflict, "several overlays have records")
                .why(format!("they are {}", names.join(", ")))
                .fix("say which one: --overlay NAME")
                .into());
        }
    };
    let no_member = recorded.iter().filter(|one| one.key.to.is_none()).count();
    let flows: Vec<SeenFlow> = recorded
        .iter()
        .filter_map(|one| {
            Some(SeenFlow {
                from: one.key.from,
                to: one.key.to?,
                service: one.key.service(),
                packets: one.sums.packets,
            })
        })
        .collect();
    let mut suggestion = policy::suggest(&world, overlay, &flows);
    suggestion.left_out += no_member;
    let name = world.overlays.get(&overlay).map(|o| o.name.clone()).unwrap_or_default();
    let time = since.map_or_else(|| "so far".to_owned(), |since| format!("in the last {since}"));
    let kind = if denied { "was denied, or passed under audit" } else { "passed under audit" };
    let what = format!("What {kind} {time} ({} records).", recorded.len());
    Ok(Json(SuggestAnswer {
        api_version: ApiVersion::V1,
        rules: suggestion.rules.len() as u64,
        left_out: suggestion.left_out as u64,
        policy: policy::suggestion_text(&suggestion, &name, &what),
        overlay: name,
    }))
}
