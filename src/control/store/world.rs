//! The whole of intent and inventory as `policy` sees it.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::changes::Changes;
use super::nodes::{self, NodeRecord};
use super::{overlays, rules, secret};
use crate::api::Problem;
use crate::policy::{NodeFacts, OverlayFacts, World};
use crate::types::{LinkId, NodeId, Secret};

/// What two nodes share for control messages, by (entity, SaP).
type Links = BTreeMap<(NodeId, NodeId), (LinkId, Secret)>;

/// Loads everything.
pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<World, Problem> {
    let nodes = nodes::all(conn).await?;
    let nodes = nodes.into_iter().map(|(id, record)| (id, facts(record))).collect();
    let links = links_of(conn, NodeId(0), NodeId(u32::MAX)).await?;
    with_intent(conn, nodes, links).await
}

/// As [`load`], but takes over from `older` the nodes and links that are not among `changes`.
pub(crate) async fn load_changed(
    conn: &mut SqliteConnection,
    older: &World,
    changes: &Changes,
) -> Result<World, Problem> {
    let Changes::These { nodes: changed, links: entities, .. } = changes else {
        return load(conn).await;
    };
    let mut nodes = older.nodes.clone();
    for &id in changed {
        match nodes::one(conn, id).await? {
            Some(record) => nodes.insert(id, facts(record)),
            None => nodes.remove(&id),
        };
    }
    let mut links = older.links.clone();
    if !entities.is_empty() {
        links.retain(|(entity, _), _| !entities.contains(entity));
        for &entity in entities {
            links.append(&mut links_of(conn, entity, entity).await?);
        }
    }
    let world = with_intent(conn, nodes, links).await?;
    #[cfg(debug_assertions)]
    assert_eq!(world, load(conn).await?, "a change that no trigger wrote down");
    Ok(world)
}

/// Loads what else there is: overlays and policies.
async fn with_intent(
    conn: &mut SqliteConnection,
    nodes: BTreeMap<NodeId, NodeFacts>,
    links: Links,
) -> Result<World, Problem> {
    let overlays = overlays::list(conn)
        .await?
        .into_iter()
        .map(|overlay| {
            let facts = OverlayFacts {
                name: overlay.name,
                cidr: overlay.cidr,
                semantics: overlay.semantics,
                silent: overlay.silent,
                is_audit: false,
            };
            (overlay.id, facts)
        })
        .collect();
    let rules =
        rules::stored(conn).await?.into_iter().map(|stored| (stored.id, stored.facts)).collect();
    Ok(World {
        revision: super::revision(conn).await?,
        overlays,
        nodes,
        rules,
        links,
        ..World::default()
    })
}

/// A node as policy sees it.
fn facts(record: NodeRecord) -> NodeFacts {
    let ports = record.ports.into_iter().map(|(name, service)| (name, [service].into()));
    NodeFacts {
        kind: record.kind,
        name: record.name,
        labels: record.labels,
        ports: ports.collect(),
        endpoints: record.endpoints,
        addresses: record.addresses,
        serves: record.serves,
        is_quarantined: false,
    }
}

/// The links of a range of entities.
async fn links_of(
    conn: &mut SqliteConnection,
    first: NodeId,
    last: NodeId,
) -> Result<Links, Problem> {
    let rows: Vec<(u32, u32, u32, Vec<u8>)> =
        sqlx::query_as("SELECT id, entity, sap, secret FROM links WHERE entity BETWEEN ? AND ?")
            .bind(first.0)
            .bind(last.0)
            .fetch_all(&mut *conn)
            .await?;
    let link = |(id, entity, sap, bytes): (u32, u32, u32, Vec<u8>)| {
        Ok(((NodeId(entity), NodeId(sap)), (LinkId(id), secret(&bytes, "link")?)))
    };
    rows.into_iter().map(link).collect()
}
