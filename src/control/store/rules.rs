//! Rules: bound to ids when they are written, so that a later bearer of a name inherits nothing.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use super::{
    Done, corrupt, flows, from_json, nodes, parsed, seconds, time, to_json, to_value, world,
};
use crate::api::admin::{Rule, RuleCreate, RulePath, RuleRevoke};
use crate::api::flows::RuleHits;
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::policy::{self, BoundSelector, RuleConflict, RuleFacts, World};
use crate::types::{
    EntityName, Name, NodeId, NodeKind, OverlayId, Revision, RuleId, Selector, Service, Timestamp,
};

/// Most services of a rule, and SaPs of a path.
const SERVICES_MAX: usize = 64;
const HOPS_MAX: usize = 8;

/// Longest reason, in bytes.
const REASON_MAX: usize = 1000;

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredRule {
    pub(crate) id: RuleId,
    pub(crate) facts: RuleFacts,
    pub(crate) reason: Option<String>,
    pub(crate) revision: Revision,
    pub(crate) created: Timestamp,
    pub(crate) created_by: String,
}

/// All rules, by id.
pub(crate) async fn stored(conn: &mut SqliteConnection) -> Result<Vec<StoredRule>, Problem> {
    type Row = (
        u32,
        u32,
        String,
        String,
        Option<u32>,
        String,
        Option<u32>,
        String,
        bool,
        Option<String>,
        Option<i64>,
        Option<String>,
        i64,
        i64,
        String,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, overlay, action, from_text, from_node, to_text, to_node, services, both, path, \
         not_after, reason, revision, created, created_by FROM rules ORDER BY id",
    )
    .fetch_all(&mut *conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let (id, overlay, action, from, from_node, to, to_node, services, both, path, ..) =
                &row;
            let (.., not_after, reason, revision, created, created_by) = &row;
            let facts = RuleFacts {
                overlay: OverlayId(*overlay),
                action: match action.as_str() {
                    "allow" => Action::Allow,
                    "deny" => Action::Deny,
                    _ => return Err(corrupt("rule")),
                },
                from: bound(from, *from_node)?,
                to: bound(to, *to_node)?,
                services: from_json(services, "rule")?,
                both: *both,
                path: path.as_ref().map(|path| from_json(path, "rule")).transpose()?,
                not_after: not_after.map(time),
                is_audit: false,
                name: None,
            };
            Ok(StoredRule {
                id: RuleId(*id),
                facts,
                reason: reason.clone(),
                revision: Revision(u64::try_from(*revision).unwrap_or(0)),
                created: time(*created),
                created_by: created_by.clone(),
            })
        })
        .collect()
}

/// Reads the two columns of an end.
fn bound(text: &str, node: Option<u32>) -> Result<BoundSelector, Problem> {
    Ok(match (parsed::<Selector>(text, "rule")?, node) {
        (Selector::Any, _) => BoundSelector::Any,
        (Selector::Labels(labels), _) => BoundSelector::Labels(labels),
        (Selector::Namespace(name), _) => BoundSelector::Namespace(name),
        (Selector::Name(name), Some(node)) => BoundSelector::Node(NodeId(node), name),
        (Selector::Group(name), _) => BoundSelector::Group(name),
        (Selector::Service(name), _) => BoundSelector::Service(name),
        (Selector::Cidr(block), _) => BoundSelector::Cidr(block),
        (Selector::Name(_), None) => return Err(corrupt("rule")),
    })
}

/// Makes a rule. `actor` is written down; `revision` is the one that this change makes.
pub(crate) async fn create(
    conn: &mut SqliteConnection,
    request: &RuleCreate,
    actor: &str,
    revision: Revision,
    now: Timestamp,
) -> Result<Done<Rule>, Problem> {
    let before = world::load(conn).await?;
    let facts = facts_of(&before, request, now)?;
    policy::check_rule(&before, &facts, now).map_err(|conflict| {
        let fix = match &conflict {
            RuleConflict::Path { other, .. } => {
                format!("give both the same path, or: ovctl policy revoke {other}")
            }
            RuleConflict::NoOverlay { .. } => "ovctl overlay list".to_owned(),
            RuleConflict::NoHops | RuleConflict::Cycle { .. } => {
                "name each SaP once: --via sap1,sap2".to_owned()
            }
            RuleConflict::NoSap { .. } | RuleConflict::NotServed { .. } => {
                "ovctl sap list shows which SaPs there are".to_owned()
            }
            RuleConflict::NoEndpoint { .. } => "leave --direct out".to_owned(),
        };
        Problem::new(ProblemCode::Conflict, "the rule cannot be").why(conflict.to_string()).fix(fix)
    })?;
    let (from_text, from_node) = columns(&facts.from);
    let (to_text, to_node) = columns(&facts.to);
    let id: u32 = sqlx::query_scalar(
        "INSERT INTO rules (overlay, action, from_text, from_node, to_text, to_node, services, \
         both, path, not_after, reason, revision, created, created_by) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(facts.overlay.0)
    .bind(match facts.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    })
    .bind(from_text)
    .bind(from_node)
    .bind(to_text)
    .bind(to_node)
    .bind(to_json(&facts.services))
    .bind(facts.both)
    .bind(facts.path.as_ref().map(to_json))
    .bind(facts.not_after.map(seconds))
    .bind(request.reason.as_deref())
    .bind(super::counter(revision.0))
    .bind(seconds(now))
    .bind(actor)
    .fetch_one(&mut *conn)
    .await?;
    let rule = shown(conn, RuleId(id)).await?;
    Ok(Done {
        action: format!("rule create {}", rule.id),
        before: serde_json::Value::Null,
        after: to_value(&rule),
        result: rule,
    })
}

/// Checks a request and binds its names.
fn facts_of(world: &World, request: &RuleCreate, now: Timestamp) -> Result<RuleFacts, Problem> {
    let usage = |what: &str, why: &str, fix: &str| {
        Err(Problem::new(ProblemCode::Usage, what).why(why).fix(fix))
    };
    if request.services.len() > SERVICES_MAX {
        return usage(
            "the rule has too many ports",
            "64 is the most",
            "use ranges, or several rules",
        );
    }
    if request.reason.as_ref().is_some_and(|reason| reason.len() > REASON_MAX) {
        return usage("the reason is too long", "1000 bytes are the most", "shorten it");
    }
    let from = selection::bind(world, &request.from)?;
    let to = selection::bind(world, &request.to)?;
    let overlay = selection::overlay_of(world, request.overlay.as_ref(), [&from, &to])?;
    if let (BoundSelector::Node(a, name), BoundSelector::Node(b, _)) = (&from, &to)
        && a == b
    {
        return usage(
            &format!("both ends of the rule are {name}"),
            "what an entity says to itself does not cross the overlay",
            "name two entities",
        );
    }
    check_named_ports(world, request, [&from, &to])?;
    let path = match &request.path {
        None => None,
        Some(_) if request.action == Action::Deny => {
            return usage(
                "a deny rule has no path",
                "it lets nothing through",
                "leave --direct and --via out",
            );
        }
        Some(RulePath::Direct) => Some(PathHops::Direct),
        Some(RulePath::Via(names)) => Some(PathHops::Via(hops(world, overlay, names)?)),
    };
    let services: BTreeSet<Service> = request.services.iter().cloned().collect();
    Ok(RuleFacts {
        overlay,
        action: request.action,
        from,
        to,
        services: services.into_iter().collect(),
        both: request.both,
        path,
        not_after: request.expires.map(|duration| now.after(duration.0)),
        is_audit: false,
        name: None,
    })
}

/// Refuses a port by a name that no destination of the rule can ever have. Labels and the like may
/// select somebody later; an entity that is named has the ports of its token.
fn check_named_ports(
    world: &World,
    request: &RuleCreate,
    [from, to]: [&BoundSelector; 2],
) -> Result<(), Problem> {
    let lacks = |end: &BoundSelector, service: &Service, name: &Name| match end {
        BoundSelector::Node(id, _) => {
            let ports = world.nodes.get(id).and_then(|node| node.ports.get(name));
            !ports.into_iter().flatten().any(|port| port.protocol() == service.protocol())
        }
        BoundSelector::Any
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Cidr(_) => false,
    };
    for service in &request.services {
        if let Service::Named(_, name) = service
            && lacks(to, service, name)
            && (!request.both || lacks(from, service, name))
        {
            let end = selection::as_written(to);
            return Err(Problem::new(
                ProblemCode::NotFound,
                format!("{end} has no port {service}"),
            )
            .why("an entity's named ports are those of the token that it joined with")
            .fix(format!("see them: ovctl entity show {end}; or say a number, such as tcp/443")));
        }
    }
    Ok(())
}

/// The SaPs of a `--via`.
fn hops(world: &World, overlay: OverlayId, names: &[Name]) -> Result<Vec<NodeId>, Problem> {
    let unique: BTreeSet<&Name> = names.iter().collect();
    if names.is_empty() || names.len() > HOPS_MAX || unique.len() != names.len() {
        return Err(Problem::new(ProblemCode::Usage, "the path makes no sense")
            .why(format!("--via takes 1 to {HOPS_MAX} SaPs, none of them twice"))
            .fix("ovctl sap list"));
    }
    let saps: Vec<String> = world
        .nodes
        .values()
        .filter(|node| node.kind == NodeKind::Sap)
        .map(|node| node.name.to_string())
        .collect();
    let mut hops = Vec::new();
    for name in names {
        let full = EntityName { namespace: Name::default(), name: name.clone() };
        let found = world
            .nodes
            .iter()
            .find(|(_, node)| node.kind == NodeKind::Sap && node.name == full)
            .ok_or_else(|| nodes::unknown(NodeKind::Sap, &full, &saps))?;
        if !found.1.serves.contains(&overlay) {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the SaP {name} does not serve this overlay"),
            )
            .why("its token named other overlays")
            .fix("join it again with a token that names this one"));
        }
        hops.push(*found.0);
    }
    Ok(hops)
}

/// The two columns of an end.
fn columns(selector: &BoundSelector) -> (String, Option<u32>) {
    let node = match selector {
        BoundSelector::Node(id, _) => Some(id.0),
        BoundSelector::Any
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Cidr(_) => None,
    };
    (selection::as_written(selector).to_string(), node)
}

/// The rules as people see them.
pub(crate) async fn list(conn: &mut SqliteConnection) -> Result<Vec<Rule>, Problem> {
    let world = world::load(conn).await?;
    let hits = flows::hits(conn).await?;
    let hits_of = |id| {
        hits.get(&id).map(|sums| RuleHits {
            packets: sums.packets,
            bytes: sums.bytes,
            first: sums.first,
            last: sums.last,
        })
    };
    let rules = stored(conn).await?.into_iter();
    Ok(rules.map(|rule| Rule { hits: hits_of(rule.id), ..view(&world, rule) }).collect())
}

/// One rule as people see it.
///
/// # Errors
///
/// `NotFound` when it does not exist.
pub(crate) async fn shown(conn: &mut SqliteConnection, id: RuleId) -> Result<Rule, Problem> {
    let missing = Problem::new(ProblemCode::NotFound, format!("there is no rule {id}"))
        .fix("ovctl policy list");
    list(conn).await?.into_iter().find(|rule| rule.id == id).ok_or(missing)
}

/// A stored rule as people see it.
fn view(world: &World, stored: StoredRule) -> Rule {
    let facts = stored.facts;
    let sap_name = |id: &NodeId| world.nodes.get(id).map(|node| node.name.name.clone());
    Rule {
        id: stored.id,
        overlay: world
            .overlays
            .get(&facts.overlay)
            .map_or_else(Name::default, |overlay| overlay.name.clone()),
        action: facts.action,
        from: selection::as_written(&facts.from),
        to: selection::as_written(&facts.to),
        both: facts.both,
        path: facts.path.as_ref().and_then(|path| match path {
            PathHops::Direct => Some(RulePath::Direct),
            PathHops::Via(hops) => Some(RulePath::Via(hops.iter().filter_map(sap_name).collect())),
            PathHops::Elsewhere => None,
        }),
        not_after: facts.not_after,
        reason: stored.reason,
        revision: stored.revision,
        created: stored.created,
        created_by: stored.created_by,
        hits: None,
        dangling: selection::dangling(world, [&facts.from, &facts.to]),
        pairs: selection::pairs_covered(world, &facts),
        services: facts.services,
    }
}

/// The rules that a revocation means.
pub(crate) async fn meant(
    conn: &mut SqliteConnection,
    request: &RuleRevoke,
) -> Result<Vec<Rule>, Problem> {
    let rules = list(conn).await?;
    let found: Vec<Rule> = match (request.rule, &request.from, &request.to) {
        (Some(id), None, None) => return Ok(vec![shown(conn, id).await?]),
        (None, Some(from), Some(to)) => rules
            .into_iter()
            .filter(|rule| rule.from == *from && rule.to == *to)
            .filter(|rule| request.overlay.as_ref().is_none_or(|name| *name == rule.overlay))
            .collect(),
        _ => {
            return Err(Problem::new(ProblemCode::Usage, "which rule shall be revoked?")
                .why("a rule is named by its id, or by both its ends")
                .fix("ovctl policy revoke r-7, or: ovctl policy revoke FROM TO"));
        }
    };
    if found.is_empty() {
        let end =
            |end: &Option<Selector>| end.as_ref().map_or_else(String::new, Selector::to_string);
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("no rule goes from {} to {}", end(&request.from), end(&request.to)),
        )
        .why("ends are compared as they were written")
        .fix("ovctl policy list"));
    }
    Ok(found)
}

/// Revokes `rules`.
pub(crate) async fn revoke(
    conn: &mut SqliteConnection,
    rules: Vec<Rule>,
) -> Result<Done<Vec<Rule>>, Problem> {
    for rule in &rules {
        sqlx::query("DELETE FROM rules WHERE id = ?").bind(rule.id.0).execute(&mut *conn).await?;
    }
    let ids: Vec<String> = rules.iter().map(|rule| rule.id.to_string()).collect();
    Ok(Done {
        action: format!("rule revoke {}", ids.join(" ")),
        before: to_value(&rules),
        after: serde_json::Value::Null,
        result: rules,
    })
}

/// Binds the rules that dangle for `name` to `node`, which came by a token made for that name.
pub(crate) async fn rebind(
    conn: &mut SqliteConnection,
    node: NodeId,
    name: &EntityName,
) -> Result<(), Problem> {
    let text = name.to_string();
    sqlx::query(
        "UPDATE rules SET from_node = ? WHERE from_text = ? \
         AND from_node IN (SELECT id FROM nodes WHERE deleted IS NOT NULL)",
    )
    .bind(node.0)
    .bind(text.as_str())
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE rules SET to_node = ? WHERE to_text = ? \
         AND to_node IN (SELECT id FROM nodes WHERE deleted IS NOT NULL)",
    )
    .bind(node.0)
    .bind(text)
    .execute(&mut *conn)
    .await?;
    Ok(())
}
