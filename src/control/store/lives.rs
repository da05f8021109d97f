//! The lives of the database: each restore begins a new one. Nodes that follow a former life take tables of
//! this one after an operator accepted that.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use super::{random_bytes, seconds, time};
use crate::api::Problem;
use crate::types::{Incarnation, Timestamp};

/// How much further numbers go on after a restore. The lost life gave numbers out that the backup does not
/// know, and nodes hold on to them.
const NUMBERS_LOST_MAX: i64 = 100_000;

/// What the database says of its lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lives {
    /// Former ones whose nodes may take tables of this one.
    pub(crate) accepted: BTreeSet<Incarnation>,
    /// Whether there are others.
    pub(crate) waits: bool,
    /// When the backup was made that this life began with; none in the first life.
    pub(crate) backup_made: Option<Timestamp>,
}

/// Reads them.
pub(crate) async fn read(conn: &mut SqliteConnection) -> Result<Lives, Problem> {
    let former: Vec<(String, bool)> =
        sqlx::query_as("SELECT incarnation, accepted FROM former_lives")
            .fetch_all(&mut *conn)
            .await?;
    let made: Option<i64> =
        sqlx::query_scalar("SELECT backup_made FROM meta").fetch_one(&mut *conn).await?;
    Ok(Lives {
        waits: former.iter().any(|(_, accepted)| !accepted),
        accepted: former
            .into_iter()
            .filter(|(_, accepted)| *accepted)
            .map(|(life, _)| Incarnation(life))
            .collect(),
        backup_made: made.map(time),
    })
}

/// Lets nodes follow this life, those of all former ones and those of `seen`.
pub(crate) async fn accept(
    conn: &mut SqliteConnection,
    seen: &BTreeSet<Incarnation>,
) -> Result<(), Problem> {
    sqlx::query("UPDATE former_lives SET accepted = 1").execute(&mut *conn).await?;
    for life in seen {
        sqlx::query("INSERT OR REPLACE INTO former_lives (incarnation, accepted) VALUES (?, 1)")
            .bind(life.0.as_str())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Begins the next life, from a backup that was made at `made`.
pub(crate) async fn begin(
    conn: &mut SqliteConnection,
    made: Timestamp,
    is_accepted: bool,
) -> Result<(), Problem> {
    sqlx::query(
        "INSERT OR REPLACE INTO former_lives (incarnation, accepted) \
         SELECT incarnation, 0 FROM meta",
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE former_lives SET accepted = ?")
        .bind(is_accepted)
        .execute(&mut *conn)
        .await?;
    let life = u128::from_be_bytes(random_bytes()?);
    sqlx::query("UPDATE meta SET incarnation = ?, backup_made = ?, revision = revision + ?")
        .bind(format!("{life:032x}"))
        .bind(seconds(made))
        .bind(NUMBERS_LOST_MAX)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO sqlite_sequence (name, seq) SELECT m.name, 0 FROM sqlite_schema m \
         WHERE m.type = 'table' AND m.sql LIKE '%AUTOINCREMENT%' \
         AND NOT EXISTS (SELECT 1 FROM sqlite_sequence s WHERE s.name = m.name)",
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE sqlite_sequence SET seq = seq + ?")
        .bind(NUMBERS_LOST_MAX)
        .execute(&mut *conn)
        .await?;
    // What was acknowledged was acknowledged to the life before.
    sqlx::query("UPDATE node_tables SET acknowledged = 0").execute(&mut *conn).await?;
    Ok(())
}
