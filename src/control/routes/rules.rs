//! Single rules, groups and services: small changes of an overlay's policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::views::InOverlay;
use super::{Answer, Body, Params, Refusal};
use crate::api::admin::{Change, ChangeOptions, List, Rule, RuleCreate, RuleRevoke};
use crate::api::policy::{Group, GroupChange, GroupVerb, NamedService, ServiceChange};
use crate::api::table::PathHops;
use crate::api::{Problem, ProblemCode};
use crate::control::auth::{Admin, Viewer};
use crate::control::policies::{
    Binder, Policies, PolicyDraft, Settled, Written, bind_member, overlay_of,
};
use crate::control::selection;
use crate::control::server::{Server, now};
use crate::control::store::policies::{self, Policy};
use crate::control::store::{Done, rules, to_value, world};
use crate::policy::{self, BoundSelector, World, did_you_mean};
use crate::types::{EntityName, Name, OverlayId, RuleId, Selector};

type Shared = State<Arc<Server>>;
type Options = Params<ChangeOptions>;

/// Most selectors that a group holds.
const GROUP_MAX: usize = 10_000;

pub(super) async fn create_rule(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<RuleCreate>,
) -> Answer<Change<Rule>> {
    admin.may_create(&request)?;
    let change = PolicyDraft::begin(&server, admin, &options).await?;
    let (overlay, written) = written(&change, request)?;
    let mut policy = change.policy(overlay);
    let facts = Binder::new(&change.world).rule(&policy, overlay, &written)?;
    if facts.path == Some(PathHops::Direct) {
        let mut ends = policy::rule_sources(&change.world, &facts);
        ends.extend(policy::concerned_destinations(&change.world, &facts));
        server.live().refuse_translated(ends)?;
    }
    let stored = change.maker().rule(facts, written.reason, None);
    policy.rules.insert(stored.id, stored.clone());
    let done = |settled: &Settled| {
        let rule = rules::view(&settled.world, stored);
        Done {
            action: format!("rule create {}", rule.id),
            before: serde_json::Value::Null,
            after: to_value(&rule),
            result: rule,
        }
    };
    Ok(Json(change.finish(Policies::from([(overlay, policy)]), &BTreeMap::new(), done).await?))
}

/// The overlay that a request means, and the rule as it is written.
fn written(change: &PolicyDraft, request: RuleCreate) -> Result<(OverlayId, Written), Problem> {
    let services: BTreeSet<_> = request.services.into_iter().collect();
    let written = Written {
        name: request.name,
        action: request.action,
        from: request.from,
        to: request.to,
        services: services.into_iter().collect(),
        both: request.both,
        path: request.path,
        not_after: request.expires.map(|duration| now().after(duration.0)),
        audit: request.audit,
        reason: request.reason,
    };
    let world = &change.world;
    let end = |selector: &Selector| match selector {
        Selector::Name(name) => {
            let id = selection::entity(world, name)?;
            Ok(BoundSelector::Node(id, name.clone()))
        }
        // Only names tell an overlay.
        Selector::Any
        | Selector::Labels(_)
        | Selector::Namespace(_)
        | Selector::Group(_)
        | Selector::Service(_)
        | Selector::Cidr(_) => Ok::<_, Problem>(BoundSelector::Any),
    };
    let ends = [&end(&written.from)?, &end(&written.to)?];
    Ok((selection::overlay_of(world, request.overlay.as_ref(), ends)?, written))
}

pub(super) async fn revoke_rules(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<RuleRevoke>,
) -> Answer<Change<Vec<Rule>>> {
    let change = PolicyDraft::begin(&server, admin, &options).await?;
    let mut after = Policies::new();
    let mut gone = Vec::new();
    let mut ids = Vec::new();
    for (overlay, id) in meant(&change, &request)? {
        let policy = after.entry(overlay).or_insert_with(|| change.policy(overlay));
        ids.push(id.to_string());
        policy.network_policies.remove(&id);
        if let Some(rule) = policy.rules.remove(&id) {
            gone.push(rules::view(&change.world, rule));
        }
    }
    let done = |_: &Settled| Done {
        action: format!("rule revoke {}", ids.join(" ")),
        before: to_value(&gone),
        after: serde_json::Value::Null,
        result: gone,
    };
    Ok(Json(change.finish(after, &BTreeMap::new(), done).await?))
}

/// The rules that a revocation means.
fn meant(change: &PolicyDraft, request: &RuleRevoke) -> Result<Vec<(OverlayId, RuleId)>, Problem> {
    let mut found = Vec::new();
    let only = request.overlay.as_ref().map(|name| overlay_of(&change.world, Some(name)));
    let only = only.transpose()?;
    for (overlay, policy) in &change.before {
        if only.is_some_and(|only| only != *overlay) {
            continue;
        }
        match (request.rule, &request.from, &request.to) {
            (Some(id), None, None) => {
                let is_there =
                    policy.rules.contains_key(&id) || policy.network_policies.contains_key(&id);
                found.extend(is_there.then_some((*overlay, id)));
            }
            (None, Some(from), Some(to)) => {
                let is_meant =
                    |end: &BoundSelector, wanted: &Selector| selection::as_written(end) == *wanted;
                let rules = policy.rules.iter().filter(|(_, rule)| {
                    is_meant(&rule.facts.from, from) && is_meant(&rule.facts.to, to)
                });
                found.extend(rules.map(|(id, _)| (*overlay, *id)));
            }
            _ => {
                return Err(Problem::new(ProblemCode::Usage, "which rule shall be revoked?")
                    .why("a rule is named by its id, or by both its ends")
                    .fix("ovctl policy revoke r-7, or: ovctl policy revoke FROM TO"));
            }
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    if let Some(id) = request.rule {
        return Err(Problem::new(ProblemCode::NotFound, format!("there is no rule {id}"))
            .fix("ovctl policy list"));
    }
    let end = |end: &Option<Selector>| end.as_ref().map_or_else(String::new, Selector::to_string);
    let what = format!("no rule goes from {} to {}", end(&request.from), end(&request.to));
    Err(Problem::new(ProblemCode::NotFound, what)
        .why("ends are compared as they were written")
        .fix("ovctl policy list"))
}

/// The rules that speak of `end`.
fn rules_with(policy: &Policy, end: &BoundSelector) -> Vec<RuleId> {
    let speaks =
        policy.rules.iter().filter(|(_, rule)| rule.facts.from == *end || rule.facts.to == *end);
    speaks.map(|(id, _)| *id).collect()
}

fn members(world: &World, overlay: OverlayId, end: &BoundSelector) -> Vec<EntityName> {
    let ids = selection::selected(world, overlay, end);
    ids.iter().filter_map(|id| world.nodes.get(id)).map(|node| node.name.clone()).collect()
}

fn group_view(world: &World, overlay: OverlayId, policy: &Policy, name: &Name) -> Group {
    let end = BoundSelector::Group(name.clone());
    let held = policy.groups.get(name).into_iter().flatten();
    Group {
        overlay: selection::overlay_name(world, overlay),
        name: name.clone(),
        selectors: held.map(selection::as_written).collect(),
        members: members(world, overlay, &end),
        rules: rules_with(policy, &end),
    }
}

pub(super) async fn groups(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<Group>> {
    let (world, policies) = looked_at(&server, query).await?;
    let views = policies.iter().flat_map(|(overlay, policy)| {
        policy.groups.keys().map(|name| group_view(&world, *overlay, policy, name))
    });
    Ok(Json(List::new(views.collect())))
}

/// The policies that a query means, and the world.
async fn looked_at(server: &Server, query: InOverlay) -> Result<(World, Policies), Problem> {
    let mut conn = server.store.read().await?;
    let mut policies = policies::all(&mut conn).await?;
    let world = world::load_with(&mut conn, &policies).await?;
    if let Some(name) = &query.overlay {
        let only = overlay_of(&world, Some(name))?;
        policies.retain(|overlay, _| *overlay == only);
    }
    Ok((world, policies))
}

pub(super) async fn change_group(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<GroupChange>,
) -> Answer<Change<Group>> {
    let change = PolicyDraft::begin(&server, admin, &options).await?;
    let overlay = overlay_of(&change.world, request.overlay.as_ref())?;
    let before = change.policy(overlay);
    let mut policy = before.clone();
    edit_group(&change.world, &mut policy, &request)?;
    let verb = match request.verb {
        GroupVerb::Create => "create",
        GroupVerb::Add => "add",
        GroupVerb::Remove => "remove",
        GroupVerb::Delete => "delete",
    };
    let is_gone = request.verb == GroupVerb::Delete;
    let old = group_view(&change.world, overlay, &before, &request.name);
    let (after, name) = (policy.clone(), request.name);
    let done = |settled: &Settled| {
        let new = group_view(&settled.world, overlay, &after, &name);
        let is_new = !before.groups.contains_key(&name);
        Done {
            action: format!("group {verb} {name}"),
            before: if is_new { serde_json::Value::Null } else { to_value(&old) },
            after: if is_gone { serde_json::Value::Null } else { to_value(&new) },
            result: if is_gone { old } else { new },
        }
    };
    Ok(Json(change.finish(Policies::from([(overlay, policy)]), &BTreeMap::new(), done).await?))
}

fn edit_group(world: &World, policy: &mut Policy, request: &GroupChange) -> Result<(), Problem> {
    let name = &request.name;
    let known = policy.groups.get(name).cloned();
    match (request.verb, &known) {
        (GroupVerb::Create, Some(_)) => {
            return Err(exists("group", name));
        }
        (GroupVerb::Add | GroupVerb::Remove | GroupVerb::Delete, None) => {
            return Err(missing("group", name, policy.groups.keys()));
        }
        (GroupVerb::Create, None) | (_, Some(_)) => {}
    }
    if request.verb == GroupVerb::Delete {
        return forget(policy, "group", name, &BoundSelector::Group(name.clone()));
    }
    let mut held = known.clone().unwrap_or_default();
    let binder = Binder::new(world);
    for selector in &request.selectors {
        if matches!(selector, Selector::Group(_)) {
            return Err(Problem::new(
                ProblemCode::Usage,
                format!("{selector} cannot be in a group"),
            )
            .why("a group holds no groups")
            .fix("name the members of the inner group here too"));
        }
        let is_same = |held: &&BoundSelector| selection::as_written(held) == *selector;
        if request.verb == GroupVerb::Remove {
            let Some(found) = held.iter().find(is_same).cloned() else {
                let what = format!("the group {name} does not hold {selector}");
                return Err(Problem::new(ProblemCode::NotFound, what)
                    .fix(format!("ovctl group show {name}")));
            };
            held.remove(&found);
        } else {
            held.insert(bind_member(&binder, policy, known.as_ref(), selector)?);
        }
    }
    if held.len() > GROUP_MAX {
        let what = format!("the group {name} would hold {} selectors", held.len());
        return Err(Problem::new(ProblemCode::Usage, what)
            .why(format!("{GROUP_MAX} are the most"))
            .fix("give its members a label, and let the group hold that"));
    }
    policy.groups.insert(name.clone(), held);
    Ok(())
}

fn exists(noun: &str, name: &Name) -> Problem {
    Problem::new(ProblemCode::Conflict, format!("there is a {noun} {name} already"))
        .fix(format!("ovctl {noun} show {name}"))
}

fn missing<'a>(noun: &str, name: &Name, known: impl Iterator<Item = &'a Name>) -> Problem {
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no {noun} {name}"));
    match did_you_mean(name.as_str(), known.map(Name::as_str)) {
        Some(meant) => problem.fix(format!("did you mean {meant}?")),
        None => problem.fix(format!("ovctl {noun} list")),
    }
}

/// Takes a group or service out of a policy, unless rules or groups speak of it.
fn forget(
    policy: &mut Policy,
    noun: &str,
    name: &Name,
    end: &BoundSelector,
) -> Result<(), Problem> {
    let rules = rules_with(policy, end);
    let holder = policy.groups.iter().find(|(_, held)| held.contains(end));
    if rules.is_empty() && holder.is_none() {
        policy.groups.retain(|known, _| noun != "group" || known != name);
        policy.services.retain(|known, _| noun != "service" || known != name);
        return Ok(());
    }
    let problem = Problem::new(ProblemCode::Conflict, format!("the {noun} {name} is spoken of"));
    if let Some((holder, _)) = holder {
        return Err(problem
            .why(format!("the group {holder} holds {end}"))
            .fix(format!("ovctl group remove {holder} {end}")));
    }
    let ids: Vec<String> = rules.iter().map(RuleId::to_string).collect();
    Err(problem
        .why(format!("by {}", ids.join(", ")))
        .fix(format!("ovctl policy revoke {}", ids.first().map_or("", String::as_str))))
}

fn service_view(world: &World, overlay: OverlayId, policy: &Policy, name: &Name) -> NamedService {
    let end = BoundSelector::Service(name.clone());
    NamedService {
        overlay: selection::overlay_name(world, overlay),
        name: name.clone(),
        labels: policy.services.get(name).cloned().unwrap_or_default(),
        members: members(world, overlay, &end),
        rules: rules_with(policy, &end),
    }
}

pub(super) async fn services(
    State(server): Shared,
    _: Viewer,
    Params(query): Params<InOverlay>,
) -> Answer<List<NamedService>> {
    let (world, policies) = looked_at(&server, query).await?;
    let views = policies.iter().flat_map(|(overlay, policy)| {
        policy.services.keys().map(|name| service_view(&world, *overlay, policy, name))
    });
    Ok(Json(List::new(views.collect())))
}

pub(super) async fn change_service(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<ServiceChange>,
) -> Result<Json<Change<NamedService>>, Refusal> {
    let change = PolicyDraft::begin(&server, admin, &options).await?;
    let overlay = overlay_of(&change.world, request.overlay.as_ref())?;
    let (before, name) = (change.policy(overlay), request.name);
    let mut policy = before.clone();
    let is_gone = request.labels.is_empty();
    if is_gone {
        if !policy.services.contains_key(&name) {
            return Err(missing("service", &name, policy.services.keys()).into());
        }
        let end = BoundSelector::Service(name.clone());
        forget(&mut policy, "service", &name, &end)?;
    } else if policy.services.insert(name.clone(), request.labels).is_some() {
        return Err(exists("service", &name).into());
    }
    let old = service_view(&change.world, overlay, &before, &name);
    let after = policy.clone();
    let done = |settled: &Settled| {
        let new = service_view(&settled.world, overlay, &after, &name);
        let null = serde_json::Value::Null;
        let (word, before, after, result) = if is_gone {
            ("delete", to_value(&old), null, old)
        } else {
            ("create", null, to_value(&new), new)
        };
        Done { action: format!("service {word} {name}"), before, after, result }
    };
    Ok(Json(change.finish(Policies::from([(overlay, policy)]), &BTreeMap::new(), done).await?))
}
