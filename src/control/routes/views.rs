//! What operators look at.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::{Answer, Body, Params, Words};
use crate::api::admin::{
    AuditRecord, CanAnswer, CanQuestion, Counted, DrainState, Entity, KeyStatus, List, Member,
    Overlay, Rule, Sap, Semantics, ServerStatus, Token,
};
use crate::api::policy::Namespace;
use crate::api::{Problem, ProblemCode};
use crate::control::auth::Viewer;
use crate::control::live::{Keeps, Live, NodeState};
use crate::control::policies;
use crate::control::rotation;
use crate::control::server::{Server, now};
use crate::control::store::nodes::NodeRecord;
use crate::control::store::{
    audit as audit_rows, namespaces as namespace_rows, nodes, overlays as overlay_rows,
    rules as rule_rows, tokens as token_rows,
};
use crate::keys::rotation::Step;
use crate::policy::{self, Drain};
use crate::types::{ApiVersion, EntityName, Name, NodeId, NodeKind, OverlayId, RuleId};

type Shared = State<Arc<Server>>;

/// Most audit records in one answer.
const AUDIT_MAX: u32 = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct InOverlay {
    pub(super) overlay: Option<Name>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Limited {
    limit: Option<u32>,
}

pub(super) async fn overlays(State(server): Shared, _: Viewer) -> Answer<List<Overlay>> {
    let mut conn = server.store.read().await?;
    Ok(Json(List::new(overlay_rows::list(&mut conn).await?)))
}

pub(super) async fn overlay(
    State(server): Shared,
    _: Viewer,
    Words(name): Words<Name>,
) -> Answer<Overlay> {
    let mut conn = server.store.read().await?;
    Ok(Json(overlay_rows::named(&mut conn, &name).await?))
}

pub(super) async fn tokens(State(server): Shared, _: Viewer) -> Answer<List<Token>> {
    let mut conn = server.store.read().await?;
    Ok(Json(List::new(token_rows::list(&mut conn).await?)))
}

/// The overlay that a query names.
pub(super) async fn wanted(
    server: &Server,
    query: InOverlay,
) -> Result<Option<OverlayId>, Problem> {
    match query.overlay {
        None => Ok(None),
        Some(name) => {
            let mut conn = server.store.read().await?;
            Ok(Some(overlay_rows::named(&mut conn, &name).await?.id))
        }
    }
}

pub(super) async fn entities(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<Entity>> {
    let only = wanted(&server, query).await?;
    let records = nodes::all(&mut *server.store.read().await?).await?;
    let live = server.live();
    let mut items: Vec<Entity> = records
        .values()
        .filter(|record| record.kind == NodeKind::Entity)
        .filter(|record| only.is_none_or(|overlay| record.addresses.contains_key(&overlay)))
        .map(|record| entity_view(&live, record))
        .collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(List::new(items)))
}

pub(super) async fn entity(
    State(server): Shared,
    _: Viewer,
    Words((namespace, name)): Words<(Name, Name)>,
) -> Answer<Entity> {
    let full = EntityName { namespace, name };
    let record = nodes::named(&mut *server.store.read().await?, NodeKind::Entity, &full).await?;
    Ok(Json(entity_view(&server.live(), &record)))
}

pub(super) async fn saps(State(server): Shared, _: Viewer) -> Answer<List<Sap>> {
    let records = nodes::all(&mut *server.store.read().await?).await?;
    let live = server.live();
    let mut items: Vec<Sap> = records
        .values()
        .filter(|record| record.kind == NodeKind::Sap)
        .map(|record| sap_view(&live, record))
        .collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(List::new(items)))
}

pub(super) async fn sap(State(server): Shared, _: Viewer, Words(name): Words<Name>) -> Answer<Sap> {
    let full = EntityName { namespace: Name::default(), name };
    let record = nodes::named(&mut *server.store.read().await?, NodeKind::Sap, &full).await?;
    Ok(Json(sap_view(&server.live(), &record)))
}

pub(super) async fn rules(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<Rule>> {
    let mut conn = server.store.read().await?;
    let mut items = rule_rows::list(&mut conn).await?;
    if let Some(name) = query.overlay {
        overlay_rows::named(&mut conn, &name).await?;
        items.retain(|rule| rule.overlay == name);
    }
    Ok(Json(List::new(items)))
}

pub(super) async fn rule(
    State(server): Shared,
    _: Viewer,
    Words(id): Words<String>,
) -> Answer<Rule> {
    let id: RuleId = id.parse().map_err(|why: String| {
        Problem::new(ProblemCode::Usage, "no rule has such an id")
            .why(super::shown(&why))
            .fix("ovctl policy list")
    })?;
    let mut conn = server.store.read().await?;
    Ok(Json(rule_rows::shown(&mut conn, id).await?))
}

pub(super) async fn can(
    State(server): Shared,
    _: Viewer,
    Body(question): Body<CanQuestion>,
) -> Answer<CanAnswer> {
    let (world, guards) = server.live().for_answers();
    let places = rule_rows::places(&mut *server.store.read().await?).await?;
    let answer = move || policy::can(&world, &question, &guards, &places, now());
    Ok(Json(super::apart(answer).await??))
}

pub(super) async fn keys(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<KeyStatus>> {
    let only = wanted(&server, query).await?;
    let live = server.live();
    let items = live
        .keys
        .rings
        .iter()
        .filter(|(_, row)| only.is_none_or(|overlay| overlay == row.overlay))
        .map(|(id, row)| rotation::status(&live, *id, row))
        .collect();
    Ok(Json(List::new(items)))
}

pub(super) async fn audit(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<Limited>,
) -> Answer<List<AuditRecord>> {
    let limit = query.limit.unwrap_or(100).min(AUDIT_MAX);
    let mut conn = server.store.read().await?;
    Ok(Json(List::new(audit_rows::list(&mut conn, limit).await?)))
}

pub(super) async fn status(State(server): Shared, _: Viewer) -> Answer<ServerStatus> {
    let overlays = overlay_rows::list(&mut *server.store.read().await?).await?;
    let world = Arc::clone(&server.live().world);
    let unconfirmed = policies::pending(&mut *server.store.read().await?, &world).await?;
    let live = server.live();
    let count = |kind: NodeKind| {
        let mut counted = Counted::default();
        for (id, _) in live.world.nodes.iter().filter(|(_, node)| node.kind == kind) {
            counted.total += 1;
            counted.online += u64::from(live.nodes.get(id).is_some_and(NodeState::is_online));
        }
        counted
    };
    Ok(Json(ServerStatus {
        unconfirmed,
        api_version: ApiVersion::V1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: server.started,
        urls: server.settings.urls.clone(),
        revision: live.world.revision,
        entities: count(NodeKind::Entity),
        saps: count(NodeKind::Sap),
        behind: Server::behind(&live),
        rotations: live
            .keys
            .rings
            .iter()
            .filter(|(_, row)| row.ring.step != Step::Steady)
            .map(|(id, row)| rotation::status(&live, *id, row))
            .collect(),
        problems: {
            let mut lines = problems(&live, &overlays);
            lines.extend(server.flows().problem());
            lines
        },
        overlays,
    }))
}

pub(super) async fn namespaces(State(server): Shared, _: Viewer) -> Answer<List<Namespace>> {
    Ok(Json(List::new(namespace_rows::views(&server.live().world))))
}

/// What an operator should look at.
fn problems(live: &Live, overlays: &[Overlay]) -> Vec<String> {
    let mut lines = Vec::new();
    for overlay in overlays {
        let mut saps =
            live.world.nodes.iter().filter(|(_, node)| {
                node.kind == NodeKind::Sap && node.serves.contains(&overlay.id)
            });
        let name = &overlay.name;
        if saps.clone().next().is_none() {
            lines.push(format!(
                "overlay {name} has no SaP: nothing can talk until one joins \
                 (ovctl token create --role sap)"
            ));
        } else if !saps.any(|(id, _)| live.nodes.get(id).is_some_and(NodeState::is_online)) {
            lines.push(format!("overlay {name}: no SaP is connected (ovctl sap list)"));
        }
        let is_shut = overlay.semantics == Semantics::DefaultDeny
            && overlay.rules == 0
            && !live.world.network_policies.values().any(|facts| facts.overlay == overlay.id);
        if overlay.members > 0 && is_shut {
            lines.push(format!(
                "overlay {name} has no rule: default deny, nothing may talk \
                 (ovctl policy allow FROM TO)"
            ));
        }
    }
    lines.extend(restore_problems(live));
    for (id, node) in &live.nodes {
        for problem in node.problems() {
            lines.push(format!("{}: {problem}", rotation::name_of(&live.world, *id)));
        }
    }
    for (id, rule) in &live.world.rules {
        for name in crate::control::selection::dangling(&live.world, [&rule.from, &rule.to]) {
            lines.push(format!("rule {id} dangles: {name} is gone (ovctl policy revoke {id})"));
        }
    }
    lines
}

/// What is left to do after a restore, or when nodes come from another life of this server.
fn restore_problems(live: &Live) -> Vec<String> {
    let keepers: Vec<(NodeId, &Keeps)> = live.keepers().collect();
    let newest = keepers.iter().filter_map(|(_, keeps)| keeps.revision).max();
    let until = newest.map_or_else(String::new, |newest| format!(", up to revision {newest}"));
    let kept = match keepers.len() {
        0 => "no node that is connected keeps other tables".to_owned(),
        1 => format!("1 node keeps its table{until}"),
        count => format!("{count} nodes keep their tables{until}"),
    };
    let mut lines = Vec::new();
    match live.lives.backup_made {
        Some(made) if live.lives.waits => lines.push(format!(
            "restored from a backup of {made}, not accepted: {kept}; put right what changed since \
             (ovctl policy list, ovctl entity list, ovctl token list), then: ovctl restore --accept"
        )),
        _ if !keepers.is_empty() => lines.push(format!(
            "{kept} of another life of this server: if that one is gone for good, \
             ovctl restore --accept makes them follow this one"
        )),
        _ => {}
    }
    let strangers = live.strangers.len();
    if live.lives.backup_made.is_some() && strangers > 0 {
        lines.push(format!(
            "unknown credentials that ask for tables: {strangers}; nodes that joined after the backup \
             was made leave and join again"
        ));
    }
    lines
}

/// An entity as people see it.
pub(super) fn entity_view(live: &Live, record: &NodeRecord) -> Entity {
    let overlay_name = |id: &OverlayId| live.world.overlays.get(id).map(|o| o.name.clone());
    let members = record
        .addresses
        .iter()
        .filter_map(|(id, address)| Some(Member { overlay: overlay_name(id)?, address: *address }))
        .collect();
    Entity {
        id: record.id,
        name: record.name.clone(),
        labels: record.labels.clone(),
        ports: record.ports.clone(),
        members,
        endpoints: record.endpoints.clone(),
        ephemeral: record.ephemeral,
        quarantined: record.quarantined,
        joined: record.joined,
        health: health(live, record),
    }
}

/// A SaP as people see it.
pub(super) fn sap_view(live: &Live, record: &NodeRecord) -> Sap {
    Sap {
        id: record.id,
        name: record.name.name.clone(),
        overlays: record
            .serves
            .iter()
            .filter_map(|id| live.world.overlays.get(id).map(|overlay| overlay.name.clone()))
            .collect(),
        endpoints: record.endpoints.clone(),
        labels: record.labels.clone(),
        drain: match record.drain {
            Drain::No => None,
            Drain::Leaving => Some(DrainState::Leaving),
            Drain::Empty => Some(DrainState::Drained),
        },
        joined: record.joined,
        health: health(live, record),
    }
}

fn health(live: &Live, record: &NodeRecord) -> crate::api::admin::NodeHealth {
    live.nodes.get(&record.id).map_or_else(|| NodeState::new().health(), NodeState::health)
}
