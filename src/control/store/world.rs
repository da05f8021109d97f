//! The whole of intent and inventory as `policy` sees it.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::changes::{Changed, Changes};
use super::nodes::{self, NodeRecord};
use super::policies::{self, Policies, Policy};
use super::{namespaces, overlays, paths, secret};
use crate::api::Problem;
use crate::policy::{NetworkPolicyFacts, NodeFacts, OverlayFacts, World};
use crate::types::{LinkId, NodeId, OverlayId, Secret};

/// What two nodes share for control messages, by (entity, SaP).
type Links = BTreeMap<(NodeId, NodeId), (LinkId, Secret)>;

/// Loads everything.
pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<World, Problem> {
    Ok(load_all(conn).await?.0)
}

/// As [`load`], with the policies that are in it.
async fn load_all(conn: &mut SqliteConnection) -> Result<(World, Policies), Problem> {
    let policies = policies::all(conn).await?;
    Ok((load_with(conn, &policies).await?, policies))
}

/// Loads everything but `policies`, which are loaded already.
pub(crate) async fn load_with(
    conn: &mut SqliteConnection,
    policies: &Policies,
) -> Result<World, Problem> {
    let nodes = nodes::all(conn).await?;
    let nodes = nodes.into_iter().map(|(id, record)| (id, facts(record))).collect();
    let links = links_of(conn, NodeId(0), NodeId(u32::MAX)).await?;
    with_intent(conn, nodes, links, policies).await
}

/// Loads everything, but takes over from what was loaded before what is not among `changes`. Gives the
/// policies that are in it, too.
pub(crate) async fn load_changed(
    conn: &mut SqliteConnection,
    (older, policies): (&World, &Policies),
    changes: &Changes,
) -> Result<(World, Policies), Problem> {
    let Changes::These(changed) = changes else {
        return load_all(conn).await;
    };
    let Changed { nodes: ids, links: entities, rules, policies: overlays, .. } = changed;
    let mut nodes = older.nodes.clone();
    for &id in ids {
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
    let mut policies = policies.clone();
    policies::load_rules(conn, &mut policies, rules).await?;
    for &overlay in overlays {
        policies::load_items(conn, policies.entry(overlay).or_default(), overlay).await?;
    }
    let world = with_intent(conn, nodes, links, &policies).await?;
    #[cfg(debug_assertions)]
    assert_eq!(
        (&world, &policies),
        (&load(conn).await?, &policies::all(conn).await?),
        "a change that no trigger wrote down"
    );
    Ok((world, policies))
}

/// Loads what else there is: overlays and policies.
async fn with_intent(
    conn: &mut SqliteConnection,
    nodes: BTreeMap<NodeId, NodeFacts>,
    links: Links,
    policies: &Policies,
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
    let mut world = World {
        revision: super::revision(conn).await?,
        overlays,
        nodes,
        links,
        ..World::default()
    };
    world.namespaces = namespaces::all(conn, &world).await?;
    world.paths = paths::all(conn).await?;
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
        is_quarantined: record.quarantined,
        round_trips: record.round_trips,
        drain: record.drain,
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
