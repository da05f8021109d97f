//! The whole of intent and inventory as `policy` sees it.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::policies::{self, Policy};
use super::{namespaces, nodes, overlays, secret};
use crate::api::Problem;
use crate::policy::{NetworkPolicyFacts, NodeFacts, OverlayFacts, World};
use crate::types::{LinkId, NodeId, OverlayId};

/// Loads everything.
pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<World, Problem> {
    let policies = policies::all(conn).await?;
    load_with(conn, &policies).await
}

/// Loads everything but `policies`, which are loaded already.
pub(crate) async fn load_with(
    conn: &mut SqliteConnection,
    policies: &BTreeMap<OverlayId, Policy>,
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
                is_audit: overlay.audit,
            };
            (overlay.id, facts)
        })
        .collect();
    let nodes = nodes::all(conn)
        .await?
        .into_iter()
        .map(|(id, record)| {
            let ports = record.ports.into_iter().map(|(name, port)| (name, [port].into()));
            let facts = NodeFacts {
                kind: record.kind,
                name: record.name,
                labels: record.labels,
                ports: ports.collect(),
                endpoints: record.endpoints,
                addresses: record.addresses,
                serves: record.serves,
                is_quarantined: record.quarantined,
            };
            (id, facts)
        })
        .collect();
    let rows: Vec<(u32, u32, u32, Vec<u8>)> =
        sqlx::query_as("SELECT id, entity, sap, secret FROM links").fetch_all(&mut *conn).await?;
    let mut links = BTreeMap::new();
    for (id, entity, sap, bytes) in rows {
        links.insert((NodeId(entity), NodeId(sap)), (LinkId(id), secret(&bytes, "link")?));
    }
    let mut world = World {
        revision: super::revision(conn).await?,
        overlays,
        nodes,
        links,
        ..World::default()
    };
    world.namespaces = namespaces::all(conn, &world).await?;
    for (overlay, policy) in policies {
        put_policy(&mut world, *overlay, policy);
    }
    Ok(world)
}

/// Puts `policy` in the place of what `world` has for the overlay. Pure.
pub(crate) fn put_policy(world: &mut World, overlay: OverlayId, policy: &Policy) {
    world.rules.retain(|_, rule| rule.overlay != overlay);
    world.network_policies.retain(|_, facts| facts.overlay != overlay);
    let rules = policy.rules.iter().map(|(id, rule)| (*id, rule.facts.clone()));
    world.rules.extend(rules);
    let networks = policy
        .network_policies
        .iter()
        .map(|(id, network)| (*id, NetworkPolicyFacts { overlay, policy: network.clone() }));
    world.network_policies.extend(networks);
    world.groups.insert(overlay, policy.groups.clone());
    world.services.insert(overlay, policy.services.clone());
}
