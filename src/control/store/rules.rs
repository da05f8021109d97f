//! Rules: bound to ids when they are written, so that a later bearer of a name inherits nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::policies::End;
use super::{corrupt, counter, flows, from_json, parsed, seconds, time, to_json, world};
use crate::api::admin::Rule;
use crate::api::flows::RuleHits;
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::control::policies::path_names;
use crate::control::selection;
use crate::policy::{RuleFacts, World};
use crate::types::{EntityName, NodeId, OverlayId, Revision, RuleId, Service, Timestamp};

/// A rule as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredRule {
    pub(crate) id: RuleId,
    pub(crate) facts: Arc<RuleFacts>,
    pub(crate) reason: Option<String>,
    pub(crate) revision: Revision,
    pub(crate) created: Timestamp,
    pub(crate) created_by: String,
    /// Where it stood in the file that it came by: `FILE:LINE`.
    pub(crate) place: Option<String>,
}

/// All rules, by id.
pub(crate) async fn stored(conn: &mut SqliteConnection) -> Result<Vec<StoredRule>, Problem> {
    within(conn, RuleId(0)..=RuleId(u32::MAX)).await
}

/// The rules of a range of ids.
pub(crate) async fn within(
    conn: &mut SqliteConnection,
    ids: RangeInclusive<RuleId>,
) -> Result<Vec<StoredRule>, Problem> {
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
    type More = (u32, Option<String>, bool, Option<String>);
    let more: Vec<More> = sqlx::query_as(
        "SELECT id, name, audit, place FROM rules WHERE id BETWEEN ? AND ? ORDER BY id",
    )
    .bind(ids.start().0)
    .bind(ids.end().0)
    .fetch_all(&mut *conn)
    .await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, overlay, action, from_text, from_node, to_text, to_node, services, both, path, \
         not_after, reason, revision, created, created_by FROM rules \
         WHERE id BETWEEN ? AND ? ORDER BY id",
    )
    .bind(ids.start().0)
    .bind(ids.end().0)
    .fetch_all(&mut *conn)
    .await?;
    rows.into_iter()
        .zip(more)
        .map(|(row, (_, name, is_audit, place))| {
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
                from: End { text: parsed(from, "rule")?, node: *from_node }.bound()?,
                to: End { text: parsed(to, "rule")?, node: *to_node }.bound()?,
                services: from_json(services, "rule")?,
                both: *both,
                path: path.as_ref().map(|path| from_json(path, "rule")).transpose()?,
                not_after: not_after.map(time),
                is_audit,
                name,
            };
            Ok(StoredRule {
                id: RuleId(*id),
                facts: facts.into(),
                reason: reason.clone(),
                revision: Revision(u64::try_from(*revision).unwrap_or(0)),
                created: time(*created),
                created_by: created_by.clone(),
                place,
            })
        })
        .collect()
}

/// Where the rules that came by files stood in them.
pub(crate) async fn places(
    conn: &mut SqliteConnection,
) -> Result<BTreeMap<RuleId, String>, Problem> {
    let rows: Vec<(u32, String)> =
        sqlx::query_as("SELECT id, place FROM rules WHERE place IS NOT NULL")
            .fetch_all(&mut *conn)
            .await?;
    Ok(rows.into_iter().map(|(id, place)| (RuleId(id), place)).collect())
}

/// A rule as the journal keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    action: Action,
    from: End,
    to: End,
    services: Vec<Service>,
    both: bool,
    path: Option<PathHops>,
    not_after: Option<Timestamp>,
    is_audit: bool,
    name: Option<String>,
    reason: Option<String>,
    revision: Revision,
    created: Timestamp,
    created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

/// The rule as the journal keeps it: JSON.
pub(crate) fn record(rule: &StoredRule) -> String {
    let facts = RuleFacts::clone(&rule.facts);
    to_json(&Record {
        action: facts.action,
        from: End::of(&facts.from),
        to: End::of(&facts.to),
        services: facts.services,
        both: facts.both,
        path: facts.path,
        not_after: facts.not_after,
        is_audit: facts.is_audit,
        name: facts.name,
        reason: rule.reason.clone(),
        revision: rule.revision,
        created: rule.created,
        created_by: rule.created_by.clone(),
        place: rule.place.clone(),
    })
}

/// Reads what [`record`] wrote.
pub(crate) fn from_record(
    id: RuleId,
    overlay: OverlayId,
    text: &str,
) -> Result<StoredRule, Problem> {
    let record: Record = from_json(text, "rule of the past")?;
    Ok(StoredRule {
        id,
        facts: Arc::new(RuleFacts {
            overlay,
            action: record.action,
            from: record.from.bound()?,
            to: record.to.bound()?,
            services: record.services,
            both: record.both,
            path: record.path,
            not_after: record.not_after,
            is_audit: record.is_audit,
            name: record.name,
        }),
        reason: record.reason,
        revision: record.revision,
        created: record.created,
        created_by: record.created_by,
        place: record.place,
    })
}

/// Writes a rule under its id.
pub(crate) async fn put(conn: &mut SqliteConnection, rule: &StoredRule) -> Result<(), Problem> {
    let facts = &rule.facts;
    let (from, to) = (End::of(&facts.from), End::of(&facts.to));
    sqlx::query(
        "INSERT OR REPLACE INTO rules (id, overlay, action, from_text, from_node, to_text, \
         to_node, services, both, path, not_after, reason, revision, created, created_by, name, \
         audit, place) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(rule.id.0)
    .bind(facts.overlay.0)
    .bind(match facts.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    })
    .bind(from.text.to_string())
    .bind(from.node)
    .bind(to.text.to_string())
    .bind(to.node)
    .bind(to_json(&facts.services))
    .bind(facts.both)
    .bind(facts.path.as_ref().map(to_json))
    .bind(facts.not_after.map(seconds))
    .bind(rule.reason.as_deref())
    .bind(counter(rule.revision.0))
    .bind(seconds(rule.created))
    .bind(rule.created_by.as_str())
    .bind(facts.name.as_deref())
    .bind(facts.is_audit)
    .bind(rule.place.as_deref())
    .execute(&mut *conn)
    .await?;
    Ok(())
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
pub(crate) fn view(world: &World, stored: StoredRule) -> Rule {
    let facts = Arc::unwrap_or_clone(stored.facts);
    Rule {
        id: stored.id,
        name: facts.name.clone(),
        audit: facts.is_audit,
        overlay: selection::overlay_name(world, facts.overlay),
        action: facts.action,
        from: selection::as_written(&facts.from),
        to: selection::as_written(&facts.to),
        both: facts.both,
        path: facts.path.as_ref().and_then(|path| path_names(world, path)),
        not_after: facts.not_after,
        reason: stored.reason,
        revision: stored.revision,
        created: stored.created,
        created_by: stored.created_by,
        place: stored.place,
        hits: None,
        dangling: selection::dangling(world, [&facts.from, &facts.to]),
        pairs: selection::pairs_covered(world, &facts),
        services: facts.services,
    }
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
