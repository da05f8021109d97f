//! Paths of single pairs, and the round trips by which the others are chosen.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::{from_json, to_json};
use crate::api::Problem;
use crate::api::table::PathHops;
use crate::types::{NodeId, OverlayId};

/// Paths by overlay and the two ends, the lower id first.
pub(crate) type PairPaths = BTreeMap<(OverlayId, NodeId, NodeId), PathHops>;

/// All that were set.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<PairPaths, Problem> {
    let rows: Vec<(u32, u32, u32, String)> =
        sqlx::query_as("SELECT overlay, low, high, hops FROM pair_paths")
            .fetch_all(&mut *conn)
            .await?;
    let path = |(overlay, low, high, hops): (u32, u32, u32, String)| {
        Ok(((OverlayId(overlay), NodeId(low), NodeId(high)), from_json(&hops, "path")?))
    };
    rows.into_iter().map(path).collect()
}

/// Sets one, or takes it back.
pub(crate) async fn put(
    conn: &mut SqliteConnection,
    (overlay, low, high): (OverlayId, NodeId, NodeId),
    hops: Option<&PathHops>,
) -> Result<(), Problem> {
    let query = match hops {
        Some(_) => {
            "INSERT OR REPLACE INTO pair_paths (overlay, low, high, hops) VALUES (?, ?, ?, ?)"
        }
        None => "DELETE FROM pair_paths WHERE overlay = ? AND low = ? AND high = ?",
    };
    let query = sqlx::query(query).bind(overlay.0).bind(low.0).bind(high.0);
    match hops {
        Some(hops) => query.bind(to_json(hops)).execute(&mut *conn).await?,
        None => query.execute(&mut *conn).await?,
    };
    Ok(())
}

/// Writes the round trips that a node holds from now on, in microseconds.
pub(crate) async fn hold(
    conn: &mut SqliteConnection,
    node: NodeId,
    round_trips: &BTreeMap<NodeId, u32>,
) -> Result<(), Problem> {
    for (sap, micros) in round_trips {
        sqlx::query(
            "INSERT INTO round_trips (node, sap, micros) VALUES (?, ?, ?) \
             ON CONFLICT (node, sap) DO UPDATE SET micros = excluded.micros",
        )
        .bind(node.0)
        .bind(sap.0)
        .bind(*micros)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
