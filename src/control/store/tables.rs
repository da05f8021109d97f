//! Serials of tables and what nodes acknowledged. Bodies are not kept: they are compiled.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::{counter, secret};
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
/// these nodes.
pub(crate) async fn publish(
    conn: &mut SqliteConnection,
    changed: &BTreeMap<NodeId, (Serial, Secret)>,
) -> Result<(), Problem> {
    let retires: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM retired_addresses WHERE published = 0)")
            .fetch_one(&mut *conn)
            .await?;
    for (node, (serial, hash)) in changed {
        sqlx::query(
            "INSERT INTO node_tables (node, serial, hash) VALUES (?, ?, ?) \
             ON CONFLICT (node) DO UPDATE SET serial = excluded.serial, hash = excluded.hash",
        )
        .bind(node.0)
        .bind(counter(serial.0))
        .bind(hash.expose().as_slice())
        .execute(&mut *conn)
        .await?;
        if retires {
            sqlx::query(
                "INSERT OR REPLACE INTO retired_waits (overlay, address, node, serial) \
                 SELECT overlay, address, ?, ? FROM retired_addresses WHERE published = 0",
            )
            .bind(node.0)
            .bind(counter(serial.0))
            .execute(&mut *conn)
            .await?;
        }
    }
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
    for (node, serial) in acknowledged {
        sqlx::query("UPDATE node_tables SET acknowledged = ? WHERE node = ? AND acknowledged < ?")
            .bind(counter(serial.0))
            .bind(node.0)
            .bind(counter(serial.0))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}
