//! Audit records: who changed what, when, from what to what.

use sqlx::SqliteConnection;

use super::{Done, counter, from_json, seconds, time, to_json};
use crate::api::Problem;
use crate::api::admin::AuditRecord;
use crate::types::{Revision, Timestamp};

/// Records a change. Called in the transaction that makes it.
pub(crate) async fn record<T>(
    conn: &mut SqliteConnection,
    revision: Revision,
    now: Timestamp,
    actor: &str,
    done: &Done<T>,
) -> Result<(), Problem> {
    sqlx::query(
        "INSERT INTO audit (revision, at, actor, action, before, after) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(counter(revision.0))
    .bind(seconds(now))
    .bind(actor)
    .bind(done.action.as_str())
    .bind(to_json(&done.before))
    .bind(to_json(&done.after))
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// The newest `limit` records, newest first.
pub(crate) async fn list(
    conn: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<AuditRecord>, Problem> {
    let rows: Vec<(i64, i64, String, String, String, String)> = sqlx::query_as(
        "SELECT revision, at, actor, action, before, after FROM audit ORDER BY id DESC LIMIT ?",
    )
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    rows.into_iter()
        .map(|(revision, at, actor, action, before, after)| {
            Ok(AuditRecord {
                revision: Revision(u64::try_from(revision).unwrap_or(0)),
                at: time(at),
                actor,
                action,
                before: from_json(&before, "audit record")?,
                after: from_json(&after, "audit record")?,
            })
        })
        .collect()
}
