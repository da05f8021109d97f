//! Serials of tables and what nodes acknowledged. Bodies are not kept: they are compiled.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::{counter, secret, to_json};
use crate::api::Problem;
use crate::types::{NodeId, Secret, Serial};

/// What is kept of a node's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRow {
    pub(crate) serial: Serial,
    /// SHA-256 of the body.
    pub(crate) hash: Secret,
    pub(crate) acknowledged: Serial,
}

/// All of them.
pub(crate) async fn all(
    conn: &mut SqliteConnection,
) -> Result<BTreeMap<NodeId, TableRow>, Problem> {
    let rows: Vec<(u32, i64, Vec<u8>, i64)> =
        sqlx::query_as("SELECT node, serial, hash, acknowledged FROM node_tables")
            .fetch_all(&mut *conn)
            .await?;
    rows.into_iter()
        .map(|(node, serial, hash, acknowledged)| {
            let row = TableRow {
                serial: Serial(u64::try_from(serial).unwrap_or(0)),
                hash: secret(&hash, "table")?,
                acknowledged: Serial(u64::try_from(acknowledged).unwrap_or(0)),
            };
            Ok((NodeId(node), row))
        })
        .collect()
}

/// Writes down the serials of tables that changed; addresses that were given back before wait for
/// these nodes. One statement for all of them: a change of labels may touch hundreds.
pub(crate) async fn publish(
    conn: &mut SqliteConnection,
    changed: &BTreeMap<NodeId, (Serial, Secret)>,
) -> Result<(), Problem> {
    let rows: Vec<(NodeId, i64, &Secret)> =
        changed.iter().map(|(node, (serial, hash))| (*node, counter(serial.0), hash)).collect();
    let rows = to_json(&rows);
    sqlx::query(
        "INSERT INTO node_tables (node, serial, hash) \
         SELECT value ->> 0, value ->> 1, unhex(value ->> 2) FROM json_each(?) WHERE true \
         ON CONFLICT (node) DO UPDATE SET serial = excluded.serial, hash = excluded.hash",
    )
    .bind(&rows)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT OR REPLACE INTO retired_waits (overlay, address, node, serial) \
         SELECT overlay, address, value ->> 0, value ->> 1 \
         FROM retired_addresses, json_each(?) WHERE published = 0",
    )
    .bind(&rows)
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE retired_addresses SET published = 1 WHERE published = 0")
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// Writes down acknowledgements.
pub(crate) async fn acknowledge(
    conn: &mut SqliteConnection,
    acknowledged: &BTreeMap<NodeId, Serial>,
) -> Result<(), Problem> {
    let rows: Vec<(NodeId, i64)> =
        acknowledged.iter().map(|(node, serial)| (*node, counter(serial.0))).collect();
    sqlx::query(
        "UPDATE node_tables SET acknowledged = value ->> 1 FROM json_each(?) \
         WHERE node = value ->> 0 AND acknowledged < value ->> 1",
    )
    .bind(to_json(&rows))
    .execute(&mut *conn)
    .await?;
    Ok(())
}
