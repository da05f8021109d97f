//! Policies as a whole: files, history, confirmation, and questions about all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::{Answer, Body, Params, Refusal, apart};
use crate::api::admin::{Change, ChangeOptions, List};
use crate::api::policy::{
    Confirmation, ImportReport, LintAnswer, LintFinding, MatrixAnswer, MatrixEntry,
    NetworkPolicyView, OverlayChoice, PolicyApply, PolicyChange, PolicyExport, PolicyImport,
    PolicyQuestion, PolicyRevision, PolicyRollback, TestAnswer, TestFailure, UNUSED_DAYS,
};
use crate::api::{Problem, ProblemCode};
use crate::control::auth::{Admin, Viewer};
use crate::control::policies::{
    self as changes, Maker, Plan, Policies, PolicyDraft, overlay_of, plan, plan_rollback,
};
use crate::control::selection;
use crate::control::server::{Server, now};
use crate::control::store::policies::{self, HISTORY_MAX, ItemChange, Policy};
use crate::control::store::{Done, confirmations, flows, world};
use crate::policy::{self, Matrix, Observed, Scene, World, kubernetes, read_test_file};
use crate::types::{ApiVersion, Name, NodeId, NodeKind, OverlayId, RuleId, Timestamp};

type Shared = State<Arc<Server>>;
type Options = Params<ChangeOptions>;

/// Most pairs of members in one answer.
const MATRIX_MEMBERS_MAX: usize = 2_000;

/// Longest time that a change may wait to be confirmed.
const CONFIRM_MAX: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Which {
    overlay: Option<Name>,
    limit: Option<u32>,
}

pub(super) async fn apply(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<PolicyApply>,
) -> Answer<Change<PolicyChange>> {
    let limit = request.confirm_within.map(|limit| limit.0);
    if limit.is_some_and(|limit| limit > CONFIRM_MAX || limit.is_zero()) {
        return Err(Problem::new(ProblemCode::Usage, "the time to confirm cannot be")
            .why("more than nothing, and at most a day")
            .fix("--confirm-within 60s")
            .into());
    }
    let mut change = PolicyDraft::begin(&server, admin, &options).await?;
    let documents = changes::read_whole(&request.files, now())?;
    let is_dry = options.dry_run == Some(true);
    let named = request.overlay.as_ref();
    let mut maker = change.maker();
    let Plan { overlay, policy, places, mut result } =
        plan(&change.world, &change.before, &documents, named, &mut maker, is_dry)?;
    if !result.changed {
        return Ok(Json(change.unchanged(result).await?));
    }
    let action = format!("policy apply {}", result.overlay);
    if let Some(limit) = limit {
        changes::refuse_pending(change.draft.conn(), &change.world, overlay).await?;
        result.confirm_by = Some(now().after(limit));
    }
    if let Some(deadline) = result.confirm_by {
        let (revision, actor) = (change.draft.revision, change.draft.actor.clone());
        change.confirm_by = Some(confirmations::Row { overlay, revision, deadline, actor });
    }
    let after = Policies::from([(overlay, policy)]);
    let done = |settled: &changes::Settled| whole(action, settled.changes.get(&overlay), result);
    Ok(Json(change.finish(after, &places, done).await?))
}

/// The record of a change of many things.
fn whole<T>(action: String, changes: Option<&Vec<ItemChange>>, result: T) -> Done<T> {
    let side = |body: fn(&ItemChange) -> &Option<String>| {
        let items = changes.into_iter().flatten().filter_map(|change| {
            let value = serde_json::from_str(body(change).as_ref()?).ok()?;
            Some((change.key.text(), value))
        });
        serde_json::Value::Object(items.collect())
    };
    Done {
        result,
        action,
        before: side(|change| &change.before),
        after: side(|change| &change.after),
    }
}

/// What the database says, for questions.
async fn looked_at(server: &Server) -> Result<(World, Policies), Problem> {
    let mut conn = server.store.read().await?;
    let policies = policies::all(&mut conn).await?;
    Ok((world::load_with(&mut conn, &policies).await?, policies))
}

/// Numbers for rules that are never written.
fn nobody(world: &World) -> Maker {
    Maker {
        actor: String::new(),
        revision: world.revision,
        now: now(),
        next_rule: 1 << 30,
        next_network: 1 << 30,
    }
}

pub(super) async fn diff(
    State(server): Shared,
    _: Viewer,
    Body(request): Body<PolicyApply>,
) -> Answer<PolicyChange> {
    let (world, policies) = looked_at(&server).await?;
    let documents = changes::read_whole(&request.files, now())?;
    let named = request.overlay.as_ref();
    let plan = plan(&world, &policies, &documents, named, &mut nobody(&world), true)?;
    Ok(Json(plan.result))
}

pub(super) async fn import(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<PolicyImport>,
) -> Answer<Change<ImportReport>> {
    let change = PolicyDraft::begin(&server, admin, &options).await?;
    let documents = changes::read(&request.files, now())?;
    let overlay = overlay_of(&change.world, request.overlay.as_ref())?;
    let before = change.policy(overlay);
    let mut maker = change.maker();
    let policy = changes::imported(&before, &documents, &mut maker)?;
    let at = now();
    let planned = plan_rollback(&change.world, &change.before, overlay, policy.clone(), at)?.result;
    let mut after = change.world.clone();
    world::put_policy(&mut after, overlay, &policy);
    let facts = change.world.overlays.get(&overlay);
    let (_, guards) = server.live().for_answers();
    let report = ImportReport {
        semantics: facts.map(|facts| facts.semantics).unwrap_or_default(),
        policies: changes::report(&after, overlay, &before, &policy, &documents, &guards),
        left_open: changes::left_open(&after, overlay, &policy),
        change: planned,
    };
    if !report.change.changed {
        return Ok(Json(change.unchanged(report).await?));
    }
    let action = format!("policy import kubernetes {}", report.change.overlay);
    let done = |settled: &changes::Settled| whole(action, settled.changes.get(&overlay), report);
    Ok(Json(change.finish(Policies::from([(overlay, policy)]), &BTreeMap::new(), done).await?))
}

pub(super) async fn rollback(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<PolicyRollback>,
) -> Answer<Change<PolicyChange>> {
    let mut change = PolicyDraft::begin(&server, admin, &options).await?;
    let overlay = overlay_of(&change.world, request.overlay.as_ref())?;
    let (newest, target) = (change.draft.newest, request.revision);
    let mut policy = policies::as_of(change.draft.conn(), overlay, newest, target).await?;
    Plan::keep_bindings(&change.world, &change.policy(overlay), &mut policy);
    let plan = plan_rollback(&change.world, &change.before, overlay, policy, now())?;
    if !plan.result.changed {
        return Ok(Json(change.unchanged(plan.result).await?));
    }
    // Whoever goes back does not confirm: what waited is undone.
    confirmations::forget(change.draft.conn(), overlay).await?;
    let action = format!("policy rollback {target}");
    let result = plan.result;
    let done = |settled: &changes::Settled| whole(action, settled.changes.get(&overlay), result);
    Ok(Json(change.finish(Policies::from([(overlay, plan.policy)]), &BTreeMap::new(), done).await?))
}

pub(super) async fn confirm(
    State(server): Shared,
    admin: Admin,
    Body(choice): Body<OverlayChoice>,
) -> Answer<Confirmation> {
    let world = Arc::clone(&server.live().world);
    let overlay = waiting(&server, &world, choice.overlay.as_ref()).await?;
    let revision = changes::confirm(&server, &admin, overlay).await?;
    Ok(Json(Confirmation {
        api_version: ApiVersion::V1,
        overlay: selection::overlay_name(&world, overlay),
        revision,
    }))
}

/// The overlay that is named, or the only one whose change waits.
async fn waiting(
    server: &Server,
    world: &World,
    named: Option<&Name>,
) -> Result<OverlayId, Problem> {
    let rows = confirmations::all(&mut *server.store.read().await?).await?;
    match (named, rows.as_slice()) {
        (None, [only]) => Ok(only.overlay),
        (None, []) => Err(changes::nothing_waits()),
        _ => overlay_of(world, named),
    }
}

pub(super) async fn export(
    State(server): Shared,
    _: Viewer,
    Params(which): Params<Which>,
) -> Answer<PolicyExport> {
    let (world, policies) = looked_at(&server).await?;
    let overlay = overlay_of(&world, which.overlay.as_ref())?;
    let policy = policies.get(&overlay).cloned().unwrap_or_default();
    Ok(Json(PolicyExport {
        api_version: ApiVersion::V1,
        overlay: selection::overlay_name(&world, overlay),
        revision: world.revision,
        text: changes::export(&world, overlay, &policy),
    }))
}

pub(super) async fn history(
    State(server): Shared,
    _: Viewer,
    Params(which): Params<Which>,
) -> Answer<List<PolicyRevision>> {
    let world = Arc::clone(&server.live().world);
    let overlay = overlay_of(&world, which.overlay.as_ref())?;
    let most = u32::try_from(HISTORY_MAX).unwrap_or(u32::MAX);
    let limit = which.limit.unwrap_or(50).min(most);
    let mut conn = server.store.read().await?;
    Ok(Json(List::new(policies::history(&mut conn, overlay, limit).await?)))
}

pub(super) async fn network_policies(
    State(server): Shared,
    _: Viewer,
    Params(which): Params<Which>,
) -> Answer<List<NetworkPolicyView>> {
    let world = Arc::clone(&server.live().world);
    let only = which.overlay.as_ref().map(|name| overlay_of(&world, Some(name))).transpose()?;
    let view = |(id, facts): (&RuleId, &policy::NetworkPolicyFacts)| {
        let directions = [kubernetes::Direction::Ingress, kubernetes::Direction::Egress];
        let isolated = directions.into_iter().filter(|one| facts.policy.rules(*one).is_some());
        let selects = kubernetes::selected(&world, facts.overlay, &facts.policy).len();
        NetworkPolicyView {
            id: *id,
            overlay: selection::overlay_name(&world, facts.overlay),
            name: facts.policy.full_name(),
            directions: isolated.map(|one| one.field().to_owned()).collect(),
            selects: u64::try_from(selects).unwrap_or(u64::MAX),
        }
    };
    let meant = world
        .network_policies
        .iter()
        .filter(|(_, facts)| only.is_none_or(|overlay| overlay == facts.overlay));
    Ok(Json(List::new(meant.map(view).collect())))
}

/// The scene that a question is about, its overlay, and the policy: the one that is stored, or that of its
/// files.
async fn scene(
    server: &Server,
    question: &PolicyQuestion,
) -> Result<(Scene, OverlayId, Policy), Refusal> {
    let (world, policies) = looked_at(server).await?;
    let texts = question.files.iter().map(|file| (file.source.as_str(), file.text.as_str()));
    policy::refuse_nothing(texts)?;
    let documents = changes::read(&question.files, now())?;
    let meant = changes::overlay_named(&documents, question.overlay.as_ref())?;
    let overlay = overlay_of(&world, meant.as_ref())?;
    let mut policy = policies.get(&overlay).cloned().unwrap_or_default();
    let mut places = BTreeMap::new();
    if !question.files.is_empty() {
        let mut maker = nobody(&world);
        let found = changes::desired(&world, overlay, &policy, &documents, &mut maker)?;
        policy = found.policy;
        places = found.places;
    }
    let mut after = world;
    world::put_policy(&mut after, overlay, &policy);
    Ok((Scene::of(&after, overlay, now()).with_places(&places), overlay, policy))
}

/// Refuses to compare each with each where that would take minutes.
fn refuse_crowd(scene: &Scene) -> Result<(), Problem> {
    let members = scene.members().count();
    if members <= MATRIX_MEMBERS_MAX {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Usage, format!("the overlay has {members} members"))
        .why(format!("each is asked about each other, for at most {MATRIX_MEMBERS_MAX}"))
        .fix("ask about pairs: ovctl policy can FROM TO"))
}

pub(super) async fn matrix(
    State(server): Shared,
    _: Viewer,
    Body(question): Body<PolicyQuestion>,
) -> Answer<MatrixAnswer> {
    let (scene, ..) = scene(&server, &question).await?;
    refuse_crowd(&scene)?;
    let matrix = apart(move || Matrix::new(&scene)).await?;
    let entry = |pair: policy::MatrixPair| MatrixEntry {
        services: pair.reach.words(),
        from: pair.from,
        to: pair.to,
    };
    Ok(Json(MatrixAnswer {
        api_version: ApiVersion::V1,
        semantics: matrix.semantics,
        members: matrix.members,
        pairs: matrix.pairs.into_iter().map(entry).collect(),
    }))
}

/// What the server has seen of the policy at work.
async fn observed(
    server: &Server,
    overlay: OverlayId,
    policy: &Policy,
    days: u64,
) -> Result<Observed, Problem> {
    let mut conn = server.store.read().await?;
    let hits = flows::hits(&mut conn).await?;
    let written = policies::networks_written(&mut conn, overlay).await?;
    drop(conn);
    let made = policy.rules.iter().map(|(id, rule)| (*id, rule.created));
    let used = |(id, made): (RuleId, Timestamp)| {
        (id, hits.get(&id).map_or(made, |sums| sums.last.max(made)))
    };
    let since = Timestamp(now().0.saturating_sub(days.saturating_mul(24 * 3600)));
    let live = server.live();
    let is_live = |id: &NodeId| live.nodes.get(id).is_some_and(|node| node.is_online());
    let nodes = live.world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Sap);
    Ok(Observed {
        used_since: (days > 0).then_some(since),
        used: made.chain(written).map(used).collect(),
        live_saps: Some(nodes.map(|(id, _)| *id).filter(is_live).collect()),
    })
}

pub(super) async fn lint(
    State(server): Shared,
    _: Viewer,
    Body(question): Body<PolicyQuestion>,
) -> Answer<LintAnswer> {
    let (scene, overlay, policy) = scene(&server, &question).await?;
    refuse_crowd(&scene)?;
    let days = u64::from(question.unused_days.unwrap_or(UNUSED_DAYS));
    let observed = observed(&server, overlay, &policy, days).await?;
    let found = apart(move || policy::lint(&scene, &observed)).await?;
    let finding = |finding: policy::Finding| LintFinding {
        kind: finding.kind.word().to_owned(),
        rule: finding.rule,
        why: finding.why,
    };
    let findings = found.into_iter().map(finding).collect();
    Ok(Json(LintAnswer { api_version: ApiVersion::V1, findings }))
}

pub(super) async fn test(
    State(server): Shared,
    _: Viewer,
    Body(question): Body<PolicyQuestion>,
) -> Answer<TestAnswer> {
    let (scene, _, Policy { mut tests, .. }) = scene(&server, &question).await?;
    for file in &question.tests {
        tests.extend(read_test_file(&file.source, &file.text)?);
    }
    if tests.is_empty() && question.tests.is_empty() {
        return Err(Problem::new(ProblemCode::Usage, "there is no test")
            .why("neither --tests, nor -f, nor the policy in force has any")
            .fix("write {from: shop/web, to: shop/db, protocol: tcp, port: 5432, allow: true}")
            .into());
    }
    let examination = policy::examine(&scene, &tests)?;
    let failures = examination.failures().into_iter();
    let failures = failures.map(|(what, why)| TestFailure { what, why }).collect();
    Ok(Json(TestAnswer { failures, examination: examination.json(), skipped: Vec::new() }))
}
