//! The whole of intent and inventory as `policy` sees it.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::{nodes, overlays, rules, secret};
use crate::api::Problem;
use crate::policy::{NodeFacts, OverlayFacts, World};
use crate::types::{LinkId, NodeId};

/// Loads everything.
pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<World, Problem> {
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
    let nodes = nodes::all(conn)
        .await?
        .into_iter()
        .map(|(id, record)| {
            let facts = NodeFacts {
                kind: record.kind,
                name: record.name,
                labels: record.labels,
                ports: record
                    .ports
                    .into_iter()
                    .map(|(name, service)| (name, [service].into()))
                    .collect(),
                endpoints: record.endpoints,
                addresses: record.addresses,
                serves: record.serves,
                is_quarantined: false,
            };
            (id, facts)
        })
        .collect();
    let rules =
        rules::stored(conn).await?.into_iter().map(|stored| (stored.id, stored.facts)).collect();
    let rows: Vec<(u32, u32, u32, Vec<u8>)> =
        sqlx::query_as("SELECT id, entity, sap, secret FROM links").fetch_all(&mut *conn).await?;
    let mut links = BTreeMap::new();
    for (id, entity, sap, bytes) in rows {
        links.insert((NodeId(entity), NodeId(sap)), (LinkId(id), secret(&bytes, "link")?));
    }
    Ok(World {
        revision: super::revision(conn).await?,
        overlays,
        nodes,
        rules,
        links,
        ..World::default()
    })
}
