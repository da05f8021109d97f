//! The labels of namespaces. A namespace is there when an entity is in it or labels say something of it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;

use super::{Done, parsed, to_value};
use crate::api::admin::LabelChange;
use crate::api::policy::Namespace;
use crate::api::{Problem, ProblemCode};
use crate::policy::{World, did_you_mean};
use crate::types::{Label, Name, NodeKind};

/// The label that every namespace carries, as in Kubernetes.
const NAME_KEY: &str = "kubernetes.io/metadata.name";

/// Most labels of a namespace.
const LABELS_MAX: usize = 64;

/// The labels of all namespaces, each with the one that carries its name.
pub(crate) async fn all(
    conn: &mut SqliteConnection,
    world: &World,
) -> Result<BTreeMap<Name, BTreeSet<Label>>, Problem> {
    let mut namespaces: BTreeMap<Name, BTreeSet<Label>> = BTreeMap::new();
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT namespace, key, value FROM namespace_labels")
            .fetch_all(&mut *conn)
            .await?;
    for (namespace, key, value) in rows {
        let name = parsed(&namespace, "namespace")?;
        namespaces.entry(name).or_default().insert(Label { key, value });
    }
    for node in world.nodes.values().filter(|node| node.kind == NodeKind::Entity) {
        namespaces.entry(node.name.namespace.clone()).or_default();
    }
    for (name, labels) in &mut namespaces {
        labels.insert(Label { key: NAME_KEY.to_owned(), value: name.to_string() });
    }
    Ok(namespaces)
}

/// The namespaces as people see them.
pub(crate) fn views(world: &World) -> Vec<Namespace> {
    let view = |(name, labels): (&Name, &BTreeSet<Label>)| {
        let inside = world
            .nodes
            .values()
            .filter(|node| node.kind == NodeKind::Entity && node.name.namespace == *name);
        Namespace {
            name: name.clone(),
            labels: labels.clone(),
            entities: u64::try_from(inside.count()).unwrap_or(u64::MAX),
        }
    };
    world.namespaces.iter().map(view).collect()
}

/// Sets and removes labels of a namespace, which needs nobody in it yet.
pub(crate) async fn change_labels(
    conn: &mut SqliteConnection,
    before: &World,
    name: &Name,
    change: &LabelChange,
) -> Result<Done<Namespace>, Problem> {
    let known = before.namespaces.get(name);
    if known.is_none() && change.set.is_empty() {
        let problem = Problem::new(ProblemCode::NotFound, format!("there is no namespace {name}"));
        let near = did_you_mean(name.as_str(), before.namespaces.keys().map(Name::as_str));
        return Err(match near {
            Some(meant) => problem.fix(format!("did you mean {meant}?")),
            None => problem.fix("ovctl namespace list"),
        });
    }
    let reserved = change.set.iter().map(|label| &label.key).chain(&change.remove);
    if reserved.into_iter().any(|key| key == NAME_KEY) {
        return Err(Problem::new(ProblemCode::Usage, format!("{NAME_KEY} cannot be changed"))
            .why("every namespace carries its own name there, as in Kubernetes"));
    }
    for label in &change.set {
        sqlx::query(
            "INSERT INTO namespace_labels (namespace, key, value) VALUES (?, ?, ?) \
             ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value",
        )
        .bind(name.as_str())
        .bind(label.key.as_str())
        .bind(label.value.as_str())
        .execute(&mut *conn)
        .await?;
    }
    for key in &change.remove {
        sqlx::query("DELETE FROM namespace_labels WHERE namespace = ? AND key = ?")
            .bind(name.as_str())
            .bind(key.as_str())
            .execute(&mut *conn)
            .await?;
    }
    let mut world = before.clone();
    world.namespaces = all(conn, before).await?;
    let view = |world: &World| views(world).into_iter().find(|view| view.name == *name);
    let empty = Namespace { name: name.clone(), labels: BTreeSet::new(), entities: 0 };
    let (old, new) = (view(before), view(&world).unwrap_or(empty));
    if new.labels.len() > LABELS_MAX {
        let what = format!("the namespace {name} would have {} labels", new.labels.len());
        return Err(Problem::new(ProblemCode::Usage, what)
            .why(format!("{LABELS_MAX} are the most"))
            .fix("remove some in the same command"));
    }
    Ok(Done {
        action: format!("namespace label {name}"),
        before: to_value(&old),
        after: to_value(&new),
        result: new,
    })
}
