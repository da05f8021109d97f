//! Paths: what pairs take, what is set for them, and where SaPs should stand.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::views::{InOverlay, wanted};
use super::{Answer, Body, Params};
use crate::api::admin::{Change, ChangeOptions, List, RulePath};
use crate::api::path::{Latency, PairPath, PathSet, SapPlan};
use crate::api::table::PathHops;
use crate::api::{Problem, ProblemCode};
use crate::control::auth::{Admin, Viewer};
use crate::control::enforce::Touched;
use crate::control::paths::{self, PairOf, words};
use crate::control::policies::{hops, path_conflict};
use crate::control::publish::Hold;
use crate::control::selection;
use crate::control::server::{Server, now};
use crate::control::store::{Done, paths as rows, to_value};
use crate::policy::{self, BoundSelector, World};
use crate::types::{EntityName, Name, Selector};

type Shared = State<Arc<Server>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PairQuery {
    from: EntityName,
    to: EntityName,
    overlay: Option<Name>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PlanQuery {
    count: usize,
    overlay: Option<Name>,
}

pub(super) async fn path(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<PairQuery>,
) -> Answer<PairPath> {
    let live = server.live();
    let pair = pair(&live.world, query.overlay.as_ref(), &query.from, &query.to)?;
    Ok(Json(paths::view(&live, &live.world, pair, now())))
}

pub(super) async fn set_path(
    State(server): Shared,
    admin: Admin,
    Params(options): Params<ChangeOptions>,
    Body(request): Body<PathSet>,
) -> Answer<Change<PairPath>> {
    let ends = [&request.from, &request.to].map(|name| Selector::Name(name.clone()));
    admin.may_change(&ends[0], &ends[1])?;
    let mut draft = server.begin(&admin, &options).await?;
    let mut world = draft.world().await?;
    let pair = pair(&world, request.overlay.as_ref(), &request.from, &request.to)?;
    let PairOf { overlay, from, to } = pair;
    let is_forward = from < to;
    let key = (overlay, from.min(to), from.max(to));
    let before = world.paths.get(&key).cloned();
    let wanted = match &request.path {
        None => None,
        Some(RulePath::Direct) => Some(PathHops::Direct),
        Some(RulePath::Via(names)) => {
            let mut chain = hops(&world, overlay, names)?;
            if !is_forward {
                chain.reverse();
            }
            Some(PathHops::Via(chain))
        }
    };
    if let Some(wanted) = &wanted {
        policy::check_path_length(wanted)?;
        policy::check_pair_path(&world, overlay, [from, to], wanted)
            .map_err(|conflict| path_conflict("the path cannot be", &conflict))?;
        if *wanted == PathHops::Direct {
            draft.refuse_translated([from, to])?;
        }
    }
    match &wanted {
        Some(hops) => world.paths.insert(key, hops.clone()),
        None => world.paths.remove(&key),
    };
    let view = paths::view(&server.live(), &world, pair, now());
    if before == wanted {
        return Ok(Json(draft.unchanged(view).await?));
    }
    rows::put(draft.conn(), key, wanted.as_ref()).await?;
    let action = match &request.path {
        Some(path) => format!("path set {} {} {}", request.from, request.to, words(path)),
        None => format!("path auto {} {}", request.from, request.to),
    };
    let (before, after) = (to_value(&before), to_value(&wanted));
    let done = Done { result: view, action, before, after };
    let touched = Touched {
        overlay,
        from: BTreeSet::from([from]),
        to: BTreeSet::from([to]),
        both: true,
        outside: BTreeSet::new(),
    };
    Ok(Json(draft.finish(done, Hold::Nobody, vec![touched]).await?))
}

pub(super) async fn latency(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<Latency>> {
    let only = wanted(&server, query).await?;
    Ok(Json(List::new(paths::latencies(&server.live(), only))))
}

pub(super) async fn plan(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<PlanQuery>,
) -> Answer<SapPlan> {
    let world = Arc::clone(&server.live().world);
    let any = &BoundSelector::Any;
    let overlay = selection::overlay_of(&world, query.overlay.as_ref(), [any, any])?;
    let plan = super::apart(move || policy::plan_saps(&world, overlay, query.count, now()));
    Ok(Json(plan.await??))
}

/// Two different members of one overlay, by name.
fn pair(
    world: &World,
    overlay: Option<&Name>,
    from: &EntityName,
    to: &EntityName,
) -> Result<PairOf, Problem> {
    let bound = |name: &EntityName| {
        let id = selection::entity(world, name)?;
        Ok::<_, Problem>((id, BoundSelector::Node(id, name.clone())))
    };
    let ((from, from_end), (to, to_end)) = (bound(from)?, bound(to)?);
    if from == to {
        return Err(Problem::new(ProblemCode::Usage, "an entity has no path to itself")
            .fix("name two entities"));
    }
    let overlay = selection::overlay_of(world, overlay, [&from_end, &to_end])?;
    Ok(PairOf { overlay, from, to })
}
