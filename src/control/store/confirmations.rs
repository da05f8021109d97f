//! Changes of policy that are undone at a deadline unless somebody confirms them.

use sqlx::SqliteConnection;

use super::{counter, seconds, time};
use crate::api::Problem;
use crate::types::{OverlayId, Revision, Timestamp};

/// One change that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) overlay: OverlayId,
    /// The revision that it made.
    pub(crate) revision: Revision,
    pub(crate) deadline: Timestamp,
    pub(crate) actor: String,
}

/// All that wait, at most one per overlay.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<Vec<Row>, Problem> {
    let rows: Vec<(u32, i64, i64, String)> = sqlx::query_as(
        "SELECT overlay, revision, deadline, actor FROM confirmations ORDER BY overlay",
    )
    .fetch_all(&mut *conn)
    .await?;
    let row = |(overlay, revision, deadline, actor): (u32, i64, i64, String)| Row {
        overlay: OverlayId(overlay),
        revision: Revision(u64::try_from(revision).unwrap_or(0)),
        deadline: time(deadline),
        actor,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Notes a change.
pub(crate) async fn put(conn: &mut SqliteConnection, row: &Row) -> Result<(), Problem> {
    sqlx::query(
        "INSERT OR REPLACE INTO confirmations (overlay, revision, deadline, actor) \
         VALUES (?, ?, ?, ?)",
    )
    .bind(row.overlay.0)
    .bind(counter(row.revision.0))
    .bind(seconds(row.deadline))
    .bind(row.actor.as_str())
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// Forgets the change of an overlay: it is confirmed, or undone.
pub(crate) async fn forget(conn: &mut SqliteConnection, overlay: OverlayId) -> Result<(), Problem> {
    sqlx::query("DELETE FROM confirmations WHERE overlay = ?")
        .bind(overlay.0)
        .execute(&mut *conn)
        .await?;
    Ok(())
}
