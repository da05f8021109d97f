//! The policy of an overlay as one value: loaded whole, changed in memory, written as the difference,
//! with a journal from which every earlier revision can be told.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::rules::{self, StoredRule};
use super::{corrupt, counter, from_json, parsed, seconds, time, to_json};
use crate::api::policy::PolicyRevision;
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::policy::{self, BoundSelector, NetworkPolicy, Test};
use crate::types::{
    EntityName, Label, Name, NodeId, OverlayId, Revision, RuleId, Selector, Timestamp,
};

/// How many revisions of a policy are kept for history and rollback.
pub(crate) const HISTORY_MAX: i64 = 1_000;

/// Everything that an overlay's policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) groups: BTreeMap<Name, BTreeSet<BoundSelector>>,
    pub(crate) services: BTreeMap<Name, BTreeSet<Label>>,
    pub(crate) rules: BTreeMap<RuleId, StoredRule>,
    pub(crate) network_policies: BTreeMap<RuleId, NetworkPolicy>,
    pub(crate) tests: Vec<Test>,
}

/// The policies of all overlays.
pub(crate) type Policies = BTreeMap<OverlayId, Policy>;

/// One thing that a change makes, alters or removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ItemChange {
    pub(crate) key: ItemKey,
    /// JSON; none where there was none.
    pub(crate) before: Option<String>,
    /// JSON; none where there is none.
    pub(crate) after: Option<String>,
}

/// What names one thing in a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ItemKey {
    Group(Name),
    Service(Name),
    Tests,
    NetworkPolicy(RuleId),
    Rule(RuleId),
}

impl ItemKey {
    /// As a column has it, and records of history.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Group(name) => format!("group/{name}"),
            Self::Service(name) => format!("service/{name}"),
            Self::Tests => "tests".to_owned(),
            Self::NetworkPolicy(id) => format!("network/{id}"),
            Self::Rule(id) => format!("rule/{id}"),
        }
    }

    fn read(text: &str) -> Result<Self, Problem> {
        let what = "item of a policy";
        Ok(match text.split_once('/') {
            None if text == "tests" => Self::Tests,
            Some(("group", name)) => Self::Group(parsed(name, what)?),
            Some(("service", name)) => Self::Service(parsed(name, what)?),
            Some(("network", id)) => Self::NetworkPolicy(parsed(id, what)?),
            Some(("rule", id)) => Self::Rule(parsed(id, what)?),
            None | Some(_) => return Err(corrupt(what)),
        })
    }
}

/// A selector as JSON keeps it: with the id that its name is bound to.
#[derive(Serialize, Deserialize)]
pub(super) struct End {
    pub(super) text: Selector,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<u32>,
}

impl End {
    pub(super) fn of(selector: &BoundSelector) -> Self {
        let node = match selector {
            BoundSelector::Node(id, _) => Some(id.0),
            BoundSelector::Any
            | BoundSelector::Labels(_)
            | BoundSelector::Namespace(_)
            | BoundSelector::Group(_)
            | BoundSelector::Service(_)
            | BoundSelector::Cidr(_) => None,
        };
        Self { text: selection::as_written(selector), node }
    }

    pub(super) fn bound(self) -> Result<BoundSelector, Problem> {
        Ok(match (self.text, self.node) {
            (Selector::Any, _) => BoundSelector::Any,
            (Selector::Labels(labels), _) => BoundSelector::Labels(labels),
            (Selector::Namespace(name), _) => BoundSelector::Namespace(name),
            (Selector::Name(name), Some(node)) => BoundSelector::Node(NodeId(node), name),
            (Selector::Group(name), _) => BoundSelector::Group(name),
            (Selector::Service(name), _) => BoundSelector::Service(name),
            (Selector::Cidr(block), _) => BoundSelector::Cidr(block),
            (Selector::Name(_), None) => return Err(corrupt("selector")),
        })
    }
}

/// A test as JSON keeps it: where it stood, and itself as a file would have it.
#[derive(Serialize, Deserialize)]
struct StoredTest {
    place: String,
    text: String,
}

fn group_body(held: &BTreeSet<BoundSelector>) -> String {
    to_json(&held.iter().map(End::of).collect::<Vec<_>>())
}

fn read_group(body: &str) -> Result<BTreeSet<BoundSelector>, Problem> {
    from_json::<Vec<End>>(body, "group")?.into_iter().map(End::bound).collect()
}

fn tests_body(tests: &[Test]) -> Option<String> {
    let stored = |test: &Test| StoredTest { place: test.place.clone(), text: test.written() };
    (!tests.is_empty()).then(|| to_json(&tests.iter().map(stored).collect::<Vec<_>>()))
}

fn read_tests(body: &str) -> Result<Vec<Test>, Problem> {
    let read = |stored: StoredTest| {
        let test = policy::read_test(&stored.text).map_err(|_| corrupt("test"))?;
        Ok(Test { place: stored.place, ..test })
    };
    from_json::<Vec<StoredTest>>(body, "test")?.into_iter().map(read).collect()
}

fn read_network_policy(body: &str) -> Result<NetworkPolicy, Problem> {
    NetworkPolicy::from_manifest("the database", body).map_err(|_| corrupt("NetworkPolicy"))
}

/// Loads the policies of all overlays. Every overlay has one, if only an empty one.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<Policies, Problem> {
    let overlays: Vec<u32> =
        sqlx::query_scalar("SELECT id FROM overlays").fetch_all(&mut *conn).await?;
    let mut policies = Policies::new();
    for overlay in overlays.into_iter().map(OverlayId) {
        load_items(conn, policies.entry(overlay).or_default(), overlay).await?;
    }
    for rule in rules::stored(conn).await? {
        policies.entry(rule.facts.overlay).or_default().rules.insert(rule.id, rule);
    }
    Ok(policies)
}

/// Loads everything but the rules of an overlay's policy again.
pub(crate) async fn load_items(
    conn: &mut SqliteConnection,
    policy: &mut Policy,
    overlay: OverlayId,
) -> Result<(), Problem> {
    let rules = std::mem::take(&mut policy.rules);
    *policy = Policy { rules, ..Policy::default() };
    let items: Vec<(String, String)> =
        sqlx::query_as("SELECT item, body FROM policy_items WHERE overlay = ?")
            .bind(overlay.0)
            .fetch_all(&mut *conn)
            .await?;
    for (item, body) in items {
        policy.put(&ItemKey::read(&item)?, Some(&body), overlay)?;
    }
    let networks: Vec<(u32, String)> =
        sqlx::query_as("SELECT id, body FROM network_policies WHERE overlay = ?")
            .bind(overlay.0)
            .fetch_all(&mut *conn)
            .await?;
    for (id, body) in networks {
        let read = read_network_policy(&body)?;
        policy.network_policies.insert(RuleId::network_policy(id), read);
    }
    Ok(())
}

/// Loads these rules again; those that are gone go. A rule stays in its overlay for life.
pub(crate) async fn load_rules(
    conn: &mut SqliteConnection,
    policies: &mut Policies,
    ids: &BTreeSet<RuleId>,
) -> Result<(), Problem> {
    for &id in ids {
        for policy in policies.values_mut() {
            policy.rules.remove(&id);
        }
        for rule in rules::within(conn, id..=id).await? {
            policies.entry(rule.facts.overlay).or_default().rules.insert(id, rule);
        }
    }
    Ok(())
}

/// Loads the policy of one overlay.
pub(crate) async fn of(conn: &mut SqliteConnection, overlay: OverlayId) -> Result<Policy, Problem> {
    Ok(all(conn).await?.remove(&overlay).unwrap_or_default())
}

impl Policy {
    /// Sets one item to what a record says, or takes it out.
    fn put(
        &mut self,
        key: &ItemKey,
        body: Option<&str>,
        overlay: OverlayId,
    ) -> Result<(), Problem> {
        match (key, body) {
            (ItemKey::Group(name), Some(body)) => {
                self.groups.insert(name.clone(), read_group(body)?);
            }
            (ItemKey::Group(name), None) => {
                self.groups.remove(name);
            }
            (ItemKey::Service(name), Some(body)) => {
                self.services.insert(name.clone(), from_json(body, "service")?);
            }
            (ItemKey::Service(name), None) => {
                self.services.remove(name);
            }
            (ItemKey::Tests, body) => {
                self.tests = body.map(read_tests).transpose()?.unwrap_or_default();
            }
            (ItemKey::NetworkPolicy(id), Some(body)) => {
                self.network_policies.insert(*id, read_network_policy(body)?);
            }
            (ItemKey::NetworkPolicy(id), None) => {
                self.network_policies.remove(id);
            }
            (ItemKey::Rule(id), Some(body)) => {
                self.rules.insert(*id, rules::from_record(*id, overlay, body)?);
            }
            (ItemKey::Rule(id), None) => {
                self.rules.remove(id);
            }
        }
        Ok(())
    }

    /// What is not the same in `after`, by key.
    pub(crate) fn changes_to(&self, after: &Self) -> Vec<ItemChange> {
        let mut changes = Vec::new();
        compare(&self.groups, &after.groups, ItemKey::Group, group_body, &mut changes);
        compare(&self.services, &after.services, ItemKey::Service, to_json, &mut changes);
        if self.tests != after.tests {
            let (before, after) = (tests_body(&self.tests), tests_body(&after.tests));
            changes.push(ItemChange { key: ItemKey::Tests, before, after });
        }
        let body = |policy: &NetworkPolicy| policy.manifest().to_string();
        let key = ItemKey::NetworkPolicy;
        compare(&self.network_policies, &after.network_policies, key, body, &mut changes);
        compare(&self.rules, &after.rules, ItemKey::Rule, rules::record, &mut changes);
        changes
    }
}

fn compare<K: Ord + Clone, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    key: impl Fn(K) -> ItemKey,
    body: impl Fn(&V) -> String,
    changes: &mut Vec<ItemChange>,
) {
    let names: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old != new {
            let (before, after) = (old.map(&body), new.map(&body));
            changes.push(ItemChange { key: key(name.clone()), before, after });
        }
    }
}

/// What is written beside a change of policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp<'a> {
    pub(crate) overlay: OverlayId,
    pub(crate) revision: Revision,
    pub(crate) at: Timestamp,
    pub(crate) actor: &'a str,
    pub(crate) action: &'a str,
}

/// Writes `changes`, with a row of history and the journal that undoes them.
pub(crate) async fn write(
    conn: &mut SqliteConnection,
    stamp: Stamp<'_>,
    after: &Policy,
    changes: &[ItemChange],
) -> Result<(), Problem> {
    for change in changes {
        write_item(conn, stamp.overlay, after, change).await?;
    }
    let is_rule =
        |change: &&ItemChange| matches!(change.key, ItemKey::Rule(_) | ItemKey::NetworkPolicy(_));
    let count = |with: fn(&ItemChange) -> &Option<String>| {
        let counted = changes.iter().filter(is_rule).filter(|change| with(change).is_some());
        i64::try_from(counted.count()).unwrap_or(i64::MAX)
    };
    sqlx::query(
        "INSERT INTO policy_revisions (overlay, revision, at, actor, action, added, removed) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(stamp.overlay.0)
    .bind(counter(stamp.revision.0))
    .bind(seconds(stamp.at))
    .bind(stamp.actor)
    .bind(stamp.action)
    .bind(count(|change| &change.after))
    .bind(count(|change| &change.before))
    .execute(&mut *conn)
    .await?;
    for change in changes {
        sqlx::query(
            "INSERT INTO policy_journal (overlay, revision, item, before, after) \
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(stamp.overlay.0)
        .bind(counter(stamp.revision.0))
        .bind(change.key.text())
        .bind(change.before.as_deref())
        .bind(change.after.as_deref())
        .execute(&mut *conn)
        .await?;
    }
    sqlx::query(
        "DELETE FROM policy_revisions WHERE overlay = ?1 AND revision <= \
         (SELECT revision FROM policy_revisions WHERE overlay = ?1 \
          ORDER BY revision DESC LIMIT 1 OFFSET ?2)",
    )
    .bind(stamp.overlay.0)
    .bind(HISTORY_MAX)
    .execute(&mut *conn)
    .await?;
    Ok(())
}

async fn write_item(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    after: &Policy,
    change: &ItemChange,
) -> Result<(), Problem> {
    match (&change.key, &change.after) {
        (ItemKey::Rule(id), Some(_)) => {
            if let Some(rule) = after.rules.get(id) {
                rules::put(conn, rule).await?;
            }
        }
        (ItemKey::Rule(id), None) => {
            sqlx::query("DELETE FROM rules WHERE id = ?").bind(id.0).execute(&mut *conn).await?;
        }
        (ItemKey::NetworkPolicy(id), Some(body)) => {
            let name = after.network_policies.get(id).map(NetworkPolicy::full_name);
            sqlx::query(
                "INSERT INTO network_policies (id, overlay, name, body) VALUES (?, ?, ?, ?) \
                 ON CONFLICT (id) DO UPDATE SET body = excluded.body, name = excluded.name",
            )
            .bind(id.network_policy_number())
            .bind(overlay.0)
            .bind(name.unwrap_or_default())
            .bind(body.as_str())
            .execute(&mut *conn)
            .await?;
        }
        (ItemKey::NetworkPolicy(id), None) => {
            sqlx::query("DELETE FROM network_policies WHERE id = ?")
                .bind(id.network_policy_number())
                .execute(&mut *conn)
                .await?;
        }
        (ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::Tests, Some(body)) => {
            sqlx::query(
                "INSERT INTO policy_items (overlay, item, body) VALUES (?, ?, ?) \
                 ON CONFLICT (overlay, item) DO UPDATE SET body = excluded.body",
            )
            .bind(overlay.0)
            .bind(change.key.text())
            .bind(body.as_str())
            .execute(&mut *conn)
            .await?;
        }
        (ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::Tests, None) => {
            sqlx::query("DELETE FROM policy_items WHERE overlay = ? AND item = ?")
                .bind(overlay.0)
                .bind(change.key.text())
                .execute(&mut *conn)
                .await?;
        }
    }
    Ok(())
}

/// The numbers that the next rule and the next NetworkPolicy get. Numbers are never used twice.
pub(crate) async fn next_numbers(conn: &mut SqliteConnection) -> Result<(u32, u32), Problem> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT name, seq FROM sqlite_sequence WHERE name IN ('rules', 'network_policies')",
    )
    .fetch_all(&mut *conn)
    .await?;
    let next = |table: &str| {
        let used = rows.iter().find(|(name, _)| name == table).map_or(0, |(_, used)| *used);
        u32::try_from(used + 1).unwrap_or(u32::MAX)
    };
    Ok((next("rules"), next("network_policies")))
}

/// What was changed, newest first.
pub(crate) async fn history(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    limit: u32,
) -> Result<Vec<PolicyRevision>, Problem> {
    type Row = (i64, i64, String, String, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT revision, at, actor, action, added, removed FROM policy_revisions \
         WHERE overlay = ? ORDER BY revision DESC LIMIT ?",
    )
    .bind(overlay.0)
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    let whole = |number: i64| u64::try_from(number).unwrap_or(0);
    let row = |(revision, at, actor, action, added, removed): Row| PolicyRevision {
        revision: Revision(whole(revision)),
        at: time(at),
        actor,
        action,
        added: whole(added),
        removed: whole(removed),
    };
    Ok(rows.into_iter().map(row).collect())
}

/// When each NetworkPolicy of an overlay was last written, as far as the history goes back.
pub(crate) async fn networks_written(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
) -> Result<BTreeMap<RuleId, Timestamp>, Problem> {
    let rows: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT n.id, coalesce( \
           (SELECT max(r.at) FROM policy_journal j JOIN policy_revisions r USING (overlay, revision) \
            WHERE j.overlay = n.overlay AND j.item = 'network/np-' || n.id AND j.after IS NOT NULL), \
           (SELECT min(at) FROM policy_revisions WHERE overlay = n.overlay)) \
         FROM network_policies n WHERE n.overlay = ?",
    )
    .bind(overlay.0)
    .fetch_all(&mut *conn)
    .await?;
    let row = |(number, at): (i64, i64)| {
        let number = u32::try_from(number).ok()?;
        Some((RuleId::network_policy(number), time(at)))
    };
    Ok(rows.into_iter().filter_map(row).collect())
}

/// The policy as it was at `revision`, told from the newest one.
///
/// # Errors
///
/// `NotFound` when `revision` is newer than the newest, or older than what is kept.
pub(crate) async fn as_of(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    newest: Revision,
    revision: Revision,
) -> Result<Policy, Problem> {
    if revision > newest {
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("there is no revision {revision}"),
        )
        .why(format!("the newest is {newest}"))
        .fix("ovctl policy history"));
    }
    let pruned: Option<i64> = sqlx::query_scalar(
        "SELECT CASE WHEN count(*) >= ?2 THEN min(revision) END \
         FROM policy_revisions WHERE overlay = ?1",
    )
    .bind(overlay.0)
    .bind(HISTORY_MAX)
    .fetch_one(&mut *conn)
    .await?;
    if pruned.is_some_and(|oldest| counter(revision.0) + 1 < oldest) {
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("the policy of revision {revision} is forgotten"),
        )
        .why(format!("the last {HISTORY_MAX} changes of an overlay's policy are kept"))
        .fix("ovctl policy history"));
    }
    let mut policy = of(conn, overlay).await?;
    // Newest first, so that the oldest record after `revision` has the last word.
    let rows: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT item, before FROM policy_journal WHERE overlay = ? AND revision > ? \
         ORDER BY revision DESC",
    )
    .bind(overlay.0)
    .bind(counter(revision.0))
    .fetch_all(&mut *conn)
    .await?;
    let oldest: BTreeMap<String, Option<String>> = rows.into_iter().collect();
    for (item, before) in oldest {
        policy.put(&ItemKey::read(&item)?, before.as_deref(), overlay)?;
    }
    Ok(policy)
}

/// The overlays whose policy has tests, with them.
pub(crate) async fn with_tests(
    conn: &mut SqliteConnection,
) -> Result<Vec<(OverlayId, Vec<Test>)>, Problem> {
    let rows: Vec<(u32, String)> =
        sqlx::query_as("SELECT overlay, body FROM policy_items WHERE item = 'tests'")
            .fetch_all(&mut *conn)
            .await?;
    rows.into_iter().map(|(id, body)| Ok((OverlayId(id), read_tests(&body)?))).collect()
}

/// Binds what groups hold of `name`, and dangles, to `node`, which came by a token made for that name.
pub(crate) async fn rebind(
    conn: &mut SqliteConnection,
    node: NodeId,
    name: &EntityName,
) -> Result<(), Problem> {
    let gone: BTreeSet<u32> = sqlx::query_scalar("SELECT id FROM nodes WHERE deleted IS NOT NULL")
        .fetch_all(&mut *conn)
        .await?
        .into_iter()
        .collect();
    let rows: Vec<(u32, String, String)> =
        sqlx::query_as("SELECT overlay, item, body FROM policy_items WHERE item LIKE 'group/%'")
            .fetch_all(&mut *conn)
            .await?;
    for (overlay, item, body) in rows {
        let old = read_group(&body)?;
        let bound = |held: &BoundSelector| {
            if let BoundSelector::Node(id, theirs) = held
                && theirs == name
                && gone.contains(&id.0)
            {
                return BoundSelector::Node(node, name.clone());
            }
            held.clone()
        };
        let new: BTreeSet<BoundSelector> = old.iter().map(bound).collect();
        if new != old {
            sqlx::query("UPDATE policy_items SET body = ? WHERE overlay = ? AND item = ?")
                .bind(group_body(&new))
                .bind(overlay)
                .bind(item)
                .execute(&mut *conn)
                .await?;
        }
    }
    Ok(())
}
