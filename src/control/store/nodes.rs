//! Entities and SaPs: what is known of each, labels, endpoints, deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use serde::Serialize;
use sqlx::SqliteConnection;

use super::{Done, corrupt, parsed, seconds, time, to_value};
use crate::api::admin::LabelChange;
use crate::api::{Problem, ProblemCode};
use crate::control::suggest;
use crate::policy::Drain;
use crate::types::{
    EntityName, Label, Name, NodeId, NodeKind, OverlayId, Prefix, Secret, Service, Timestamp,
};

/// Most endpoints that a node may have.
pub(crate) const ENDPOINTS_MAX: usize = 16;

/// Most labels that an entity may have.
const LABELS_MAX: usize = 64;

/// An entity or SaP as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRecord {
    pub(crate) id: NodeId,
    pub(crate) kind: NodeKind,
    pub(crate) name: EntityName,
    pub(crate) labels: BTreeSet<Label>,
    pub(crate) ports: BTreeMap<Name, Service>,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) addresses: BTreeMap<OverlayId, IpAddr>,
    pub(crate) serves: BTreeSet<OverlayId>,
    pub(crate) ephemeral: bool,
    pub(crate) quarantined: bool,
    /// In microseconds, as they are held.
    pub(crate) round_trips: BTreeMap<NodeId, u32>,
    #[serde(skip)]
    pub(crate) drain: Drain,
    pub(crate) joined: Timestamp,
    pub(crate) version: String,
}

/// All nodes that are not deleted, by id.
pub(crate) async fn all(
    conn: &mut SqliteConnection,
) -> Result<BTreeMap<NodeId, NodeRecord>, Problem> {
    within(conn, NodeId(0)..=NodeId(u32::MAX)).await
}

/// The node, unless it is deleted.
pub(crate) async fn one(
    conn: &mut SqliteConnection,
    id: NodeId,
) -> Result<Option<NodeRecord>, Problem> {
    Ok(within(conn, id..=id).await?.remove(&id))
}

/// The nodes that are not deleted, of a range of ids.
async fn within(
    conn: &mut SqliteConnection,
    ids: RangeInclusive<NodeId>,
) -> Result<BTreeMap<NodeId, NodeRecord>, Problem> {
    let (first, last) = (ids.start().0, ids.end().0);
    type Row = (u32, String, String, String, bool, bool, bool, i64, String, u8);
    let mut nodes = BTreeMap::new();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, kind, namespace, name, ephemeral, quarantined, all_overlays, joined, version, \
         drain FROM nodes WHERE id BETWEEN ? AND ? AND deleted IS NULL",
    )
    .bind(first)
    .bind(last)
    .fetch_all(&mut *conn)
    .await?;
    let overlays: Vec<u32> =
        sqlx::query_scalar("SELECT id FROM overlays").fetch_all(&mut *conn).await?;
    for (id, kind, namespace, name, ephemeral, quarantined, all_overlays, joined, version, drain) in
        rows
    {
        let serves =
            overlays.iter().filter(|_| all_overlays).map(|&overlay| OverlayId(overlay)).collect();
        let record = NodeRecord {
            id: NodeId(id),
            kind: kind_from(&kind)?,
            name: EntityName {
                namespace: parsed(&namespace, "namespace")?,
                name: parsed(&name, "node name")?,
            },
            labels: BTreeSet::new(),
            ports: BTreeMap::new(),
            endpoints: Vec::new(),
            addresses: BTreeMap::new(),
            serves,
            ephemeral,
            quarantined,
            round_trips: BTreeMap::new(),
            drain: drain_from(drain)?,
            joined: time(joined),
            version,
        };
        nodes.insert(record.id, record);
    }
    let labels: Vec<(u32, String, String)> =
        sqlx::query_as("SELECT node, key, value FROM node_labels WHERE node BETWEEN ? AND ?")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
    for (node, key, value) in labels {
        if let Some(node) = nodes.get_mut(&NodeId(node)) {
            node.labels.insert(Label { key, value });
        }
    }
    let ports: Vec<(u32, String, String)> =
        sqlx::query_as("SELECT node, name, service FROM node_ports WHERE node BETWEEN ? AND ?")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
    for (node, name, service) in ports {
        if let Some(node) = nodes.get_mut(&NodeId(node)) {
            node.ports.insert(parsed(&name, "port name")?, parsed(&service, "port")?);
        }
    }
    let endpoints: Vec<(u32, String)> = sqlx::query_as(
        "SELECT node, endpoint FROM node_endpoints WHERE node BETWEEN ? AND ? \
         ORDER BY node, position",
    )
    .bind(first)
    .bind(last)
    .fetch_all(&mut *conn)
    .await?;
    for (node, endpoint) in endpoints {
        if let Some(node) = nodes.get_mut(&NodeId(node)) {
            node.endpoints.push(parsed(&endpoint, "endpoint")?);
        }
    }
    let members: Vec<(u32, u32, String)> =
        sqlx::query_as("SELECT overlay, node, address FROM members WHERE node BETWEEN ? AND ?")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
    for (overlay, node, address) in members {
        if let Some(node) = nodes.get_mut(&NodeId(node)) {
            node.addresses.insert(OverlayId(overlay), parsed(&address, "address")?);
        }
    }
    let serves: Vec<(u32, u32)> =
        sqlx::query_as("SELECT sap, overlay FROM sap_overlays WHERE sap BETWEEN ? AND ?")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
    for (sap, overlay) in serves {
        if let Some(node) = nodes.get_mut(&NodeId(sap)) {
            node.serves.insert(OverlayId(overlay));
        }
    }
    let round_trips: Vec<(u32, u32, u32)> =
        sqlx::query_as("SELECT node, sap, micros FROM round_trips WHERE node BETWEEN ? AND ?")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
    for (node, sap, micros) in round_trips {
        if let Some(node) = nodes.get_mut(&NodeId(node)) {
            node.round_trips.insert(NodeId(sap), micros);
        }
    }
    Ok(nodes)
}

/// Reads the column.
fn drain_from(column: u8) -> Result<Drain, Problem> {
    match column {
        0 => Ok(Drain::No),
        1 => Ok(Drain::Leaving),
        2 => Ok(Drain::Empty),
        _ => Err(corrupt("drain")),
    }
}

/// Sets how far a SaP is drained.
pub(crate) async fn set_drain(
    conn: &mut SqliteConnection,
    id: NodeId,
    drain: Drain,
) -> Result<(), Problem> {
    let column = match drain {
        Drain::No => 0,
        Drain::Leaving => 1,
        Drain::Empty => 2,
    };
    sqlx::query("UPDATE nodes SET drain = ? WHERE id = ?")
        .bind(column)
        .bind(id.0)
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// Reads the column.
pub(crate) fn kind_from(text: &str) -> Result<NodeKind, Problem> {
    match text {
        "entity" => Ok(NodeKind::Entity),
        "sap" => Ok(NodeKind::Sap),
        _ => Err(corrupt("node kind")),
    }
}

/// The node of that kind and name.
///
/// # Errors
///
/// `NotFound`, with the nearest name.
pub(crate) async fn named(
    conn: &mut SqliteConnection,
    kind: NodeKind,
    name: &EntityName,
) -> Result<NodeRecord, Problem> {
    let id: Option<u32> = sqlx::query_scalar(
        "SELECT id FROM nodes WHERE kind = ? AND namespace = ? AND name = ? AND deleted IS NULL",
    )
    .bind(kind.to_string())
    .bind(name.namespace.as_str())
    .bind(name.name.as_str())
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = id
        && let Some(record) = one(conn, NodeId(id)).await?
    {
        return Ok(record);
    }
    let nodes = all(conn).await?;
    let names: Vec<String> =
        nodes.values().filter(|node| node.kind == kind).map(|node| node.name.to_string()).collect();
    Err(unknown(kind, name, &names))
}

/// The problem of an unknown name.
pub(crate) fn unknown(kind: NodeKind, name: &EntityName, names: &[String]) -> Problem {
    let what = match kind {
        NodeKind::Entity => "entity",
        NodeKind::Sap => "SaP",
    };
    let near = suggest::nearest(&name.to_string(), names.iter().map(String::as_str));
    Problem::new(ProblemCode::NotFound, format!("there is no {what} {name}"))
        .fix(near.unwrap_or_else(|| format!("ovctl {kind} list")))
}

/// Whose credential has this hash.
pub(crate) async fn by_credential(
    conn: &mut SqliteConnection,
    hash: &Secret,
) -> Result<Option<NodeId>, Problem> {
    let id: Option<u32> =
        sqlx::query_scalar("SELECT id FROM nodes WHERE credential_hash = ? AND deleted IS NULL")
            .bind(hash.expose().as_slice())
            .fetch_optional(&mut *conn)
            .await?;
    Ok(id.map(NodeId))
}

/// Sets and removes labels of an entity.
pub(crate) async fn change_labels(
    conn: &mut SqliteConnection,
    name: &EntityName,
    change: &LabelChange,
) -> Result<Done<NodeRecord>, Problem> {
    let before = named(conn, NodeKind::Entity, name).await?;
    for label in &change.set {
        sqlx::query(
            "INSERT INTO node_labels (node, key, value) VALUES (?, ?, ?) \
             ON CONFLICT (node, key) DO UPDATE SET value = excluded.value",
        )
        .bind(before.id.0)
        .bind(label.key.as_str())
        .bind(label.value.as_str())
        .execute(&mut *conn)
        .await?;
    }
    for key in &change.remove {
        sqlx::query("DELETE FROM node_labels WHERE node = ? AND key = ?")
            .bind(before.id.0)
            .bind(key.as_str())
            .execute(&mut *conn)
            .await?;
    }
    let after = named(conn, NodeKind::Entity, name).await?;
    if after.labels.len() > LABELS_MAX {
        return Err(Problem::new(
            ProblemCode::Usage,
            format!("{name} would have {} labels", after.labels.len()),
        )
        .why(format!("an entity may have {LABELS_MAX}"))
        .fix("remove some in the same command"));
    }
    Ok(Done {
        action: format!("entity label {name}"),
        before: to_value(&before),
        after: to_value(&after),
        result: after,
    })
}

/// Puts an entity into quarantine, or releases it.
pub(crate) async fn set_quarantine(
    conn: &mut SqliteConnection,
    name: &EntityName,
    quarantined: bool,
) -> Result<Done<NodeRecord>, Problem> {
    let before = named(conn, NodeKind::Entity, name).await?;
    sqlx::query("UPDATE nodes SET quarantined = ? WHERE id = ?")
        .bind(quarantined)
        .bind(before.id.0)
        .execute(&mut *conn)
        .await?;
    let after = NodeRecord { quarantined, ..before.clone() };
    let word = if quarantined { "quarantine" } else { "release" };
    Ok(Done {
        action: format!("entity {word} {name}"),
        before: to_value(&before),
        after: to_value(&after),
        result: after,
    })
}

/// Replaces the endpoints and version of a node; says whether the endpoints changed.
pub(crate) async fn report(
    conn: &mut SqliteConnection,
    node: NodeId,
    endpoints: &[SocketAddr],
    version: &str,
) -> Result<bool, Problem> {
    sqlx::query("UPDATE nodes SET version = ? WHERE id = ? AND version <> ?")
        .bind(version)
        .bind(node.0)
        .bind(version)
        .execute(&mut *conn)
        .await?;
    let old: Vec<String> =
        sqlx::query_scalar("SELECT endpoint FROM node_endpoints WHERE node = ? ORDER BY position")
            .bind(node.0)
            .fetch_all(&mut *conn)
            .await?;
    let new: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
    if old == new {
        return Ok(false);
    }
    set_endpoints(conn, node, endpoints).await?;
    Ok(true)
}

/// Writes the endpoints of a node.
pub(crate) async fn set_endpoints(
    conn: &mut SqliteConnection,
    node: NodeId,
    endpoints: &[SocketAddr],
) -> Result<(), Problem> {
    sqlx::query("DELETE FROM node_endpoints WHERE node = ?")
        .bind(node.0)
        .execute(&mut *conn)
        .await?;
    for (position, endpoint) in (0_i64..).zip(endpoints) {
        sqlx::query("INSERT INTO node_endpoints (node, position, endpoint) VALUES (?, ?, ?)")
            .bind(node.0)
            .bind(position)
            .bind(endpoint.to_string())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Checks where a node says it receives packets.
///
/// # Errors
///
/// `Usage` when an endpoint can be no node's, lies in an overlay, or there are too many.
pub(crate) async fn check_endpoints(
    conn: &mut SqliteConnection,
    endpoints: &[SocketAddr],
) -> Result<(), Problem> {
    let refuse = |what: String, why: &str| {
        Err(Problem::new(ProblemCode::Usage, what)
            .why(why)
            .fix("say where packets can reach this node: --endpoint IP:PORT"))
    };
    if endpoints.len() > ENDPOINTS_MAX {
        return refuse(format!("{} endpoints are too many", endpoints.len()), "a node may have 16");
    }
    let ranges: Vec<(String, String)> =
        sqlx::query_as("SELECT name, cidr FROM overlays").fetch_all(&mut *conn).await?;
    for endpoint in endpoints {
        let ip = endpoint.ip();
        for (name, range) in &ranges {
            if parsed::<Prefix>(range, "overlay range")?.contains(&ip) {
                return refuse(
                    format!("{endpoint} cannot be the endpoint of a node"),
                    &format!(
                        "it lies in {range} of the overlay {name}: packets would go in circles"
                    ),
                );
            }
        }
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() || broadcast {
            return refuse(
                format!("{endpoint} cannot be the endpoint of a node"),
                "nobody can send a packet there",
            );
        }
    }
    Ok(())
}

/// Deletes a node: its addresses rest, its credential is void, rules that name it dangle.
pub(crate) async fn delete(
    conn: &mut SqliteConnection,
    record: &NodeRecord,
    now: Timestamp,
) -> Result<(), Problem> {
    if record.kind == NodeKind::Sap {
        let rule: Option<i64> = sqlx::query_scalar(
            "SELECT r.id FROM rules r, json_each(r.path, '$.via') hop \
             WHERE r.path IS NOT NULL AND json_valid(r.path) AND hop.value = ? LIMIT 1",
        )
        .bind(record.id.0)
        .fetch_optional(&mut *conn)
        .await?;
        if let Some(rule) = rule {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the SaP {} is on the path of rule r-{rule}", record.name),
            )
            .why("its pairs would have no path")
            .fix(format!("ovctl policy revoke r-{rule}")));
        }
        let pair: Option<(String, String)> = sqlx::query_as(
            "SELECT a.name, b.name FROM pair_paths p, json_each(p.hops, '$.via') hop \
             JOIN nodes a ON a.id = p.low JOIN nodes b ON b.id = p.high \
             WHERE json_valid(p.hops) AND hop.value = ? LIMIT 1",
        )
        .bind(record.id.0)
        .fetch_optional(&mut *conn)
        .await?;
        if let Some((one, other)) = pair {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!(
                    "the SaP {} is on the path that was set for {one} and {other}",
                    record.name
                ),
            )
            .why("the pair would have no path")
            .fix(format!("ovctl path auto {one} {other}")));
        }
    }
    sqlx::query(
        "INSERT INTO retired_addresses (overlay, address, retired) \
         SELECT overlay, address, ? FROM members WHERE node = ? \
         ON CONFLICT (overlay, address) DO UPDATE SET retired = excluded.retired, published = 0",
    )
    .bind(seconds(now))
    .bind(record.id.0)
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM members WHERE node = ?").bind(record.id.0).execute(&mut *conn).await?;
    sqlx::query("DELETE FROM sap_overlays WHERE sap = ?")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM links WHERE entity = ?1 OR sap = ?1")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM key_rings WHERE source = ?1 OR destination = ?1")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM pair_paths WHERE low = ?1 OR high = ?1")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM round_trips WHERE node = ?1 OR sap = ?1")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM node_tables WHERE node = ?")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM node_endpoints WHERE node = ?")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM retired_waits WHERE node = ?")
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query("UPDATE nodes SET deleted = ?, credential_hash = NULL WHERE id = ?")
        .bind(seconds(now))
        .bind(record.id.0)
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// Deletes the node of that kind and name.
pub(crate) async fn delete_named(
    conn: &mut SqliteConnection,
    kind: NodeKind,
    name: &EntityName,
    now: Timestamp,
) -> Result<Done<NodeRecord>, Problem> {
    let record = named(conn, kind, name).await?;
    delete(conn, &record, now).await?;
    Ok(Done {
        action: format!("{kind} delete {name}"),
        before: to_value(&record),
        after: serde_json::Value::Null,
        result: record,
    })
}

/// The ephemeral nodes that are there.
pub(crate) async fn ephemeral(conn: &mut SqliteConnection) -> Result<Vec<NodeId>, Problem> {
    let ids: Vec<u32> =
        sqlx::query_scalar("SELECT id FROM nodes WHERE ephemeral = 1 AND deleted IS NULL")
            .fetch_all(&mut *conn)
            .await?;
    Ok(ids.into_iter().map(NodeId).collect())
}
