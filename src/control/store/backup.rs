//! Backups as SQL: a database copied whole while it is in use, with the server's key in one table more; and
//! what makes a database to start from of such a copy.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::{
    BUSY_TIMEOUT, Done, MIGRATIONS, audit, lives, migration_problem, random_secret, seconds, time,
};
use crate::api::backup::{Backup, Differences};
use crate::api::{Problem, ProblemCode};
use crate::types::{ApiVersion, Revision, Timestamp};

/// A backup that was made ready to start from.
#[derive(Debug)]
pub(crate) struct Revived {
    pub(crate) backup: Backup,
    /// The server's key, PEM.
    pub(crate) key: String,
    pub(crate) revision: Revision,
    pub(crate) revoked_tokens: Vec<String>,
    pub(crate) good_tokens: Vec<String>,
    pub(crate) differences: Option<Differences>,
}

/// How to make it ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Revival<'a> {
    /// The backup's own name, for errors.
    pub(crate) name: &'a Path,
    /// New authorization keys and link secrets.
    pub(crate) rekey: bool,
    /// Nodes may follow at once.
    pub(crate) accept: bool,
    /// The database that it replaces, to compare with.
    pub(crate) replaces: Option<&'a Path>,
    /// For the audit record.
    pub(crate) actor: &'a str,
    pub(crate) now: Timestamp,
}

async fn open(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("trusted_schema", "OFF")
        .connect()
        .await
}

/// Opens a file that stands alone: nothing of it stays beside it.
async fn open_alone(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full)
        .pragma("trusted_schema", "OFF")
        .connect()
        .await
}

/// Copies the database `from`, which may be in use, to `to`, an empty file; the server's `key` goes with it.
pub(crate) async fn write(
    from: &Path,
    to: &Path,
    key: &str,
    now: Timestamp,
) -> Result<Backup, Problem> {
    let cannot = |error: sqlx::Error| {
        Problem::new(ProblemCode::Failed, format!("cannot copy the database {}", from.display()))
            .why(error.to_string())
            .fix("check that it is an ovmesh database, and the space left for the backup")
    };
    let copy = async {
        let mut conn = open(from).await?;
        sqlx::query("VACUUM INTO ?").bind(to.to_string_lossy()).execute(&mut conn).await?;
        conn.close().await?;
        let mut conn = open_alone(to).await?;
        sqlx::query(
            "CREATE TABLE backup (one INTEGER PRIMARY KEY CHECK (one = 1), made INTEGER NOT NULL, \
             version TEXT NOT NULL, server_key TEXT NOT NULL) STRICT",
        )
        .execute(&mut conn)
        .await?;
        sqlx::query("INSERT INTO backup (one, made, version, server_key) VALUES (1, ?, ?, ?)")
            .bind(seconds(now))
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(key)
            .execute(&mut conn)
            .await?;
        Ok(conn)
    };
    let mut conn = copy.await.map_err(cannot)?;
    check(&mut conn, from).await?;
    let backup = describe(&mut conn).await.map_err(cannot)?;
    conn.close().await.map_err(cannot)?;
    Ok(backup)
}

/// Makes of `at`, a copy of a backup, a database to start from: checked, brought up to date, in a new life.
pub(crate) async fn revive(at: &Path, revival: &Revival<'_>) -> Result<Revived, Problem> {
    let name = revival.name;
    let foreign = |error: sqlx::Error| {
        Problem::new(ProblemCode::Failed, format!("{} is not a backup of ovctl", name.display()))
            .why(error.to_string())
            .fix("name a file that ovctl backup made")
    };
    let mut conn = open_alone(at).await.map_err(foreign)?;
    let key: String = sqlx::query_scalar("SELECT server_key FROM backup")
        .fetch_one(&mut conn)
        .await
        .map_err(foreign)?;
    check(&mut conn, name).await?;
    MIGRATIONS.run(&mut conn).await.map_err(|error| migration_problem(name, &error))?;
    let backup = describe(&mut conn).await.map_err(foreign)?;
    let differences = match revival.replaces {
        Some(newer) => differences(&mut conn, newer).await.ok(),
        None => None,
    };
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("DROP TABLE backup").execute(&mut *transaction).await?;
    lives::begin(&mut transaction, backup.made, revival.accept).await?;
    let revoked_tokens = revoke_spendable(&mut transaction, revival.now).await?;
    let good_tokens = good_tokens(&mut transaction, revival.now).await?;
    if revival.rekey {
        rekey(&mut transaction).await?;
    }
    let revision = super::revision(&mut transaction).await?;
    let word = if revival.rekey { "restore --rekey" } else { "restore" };
    let done = Done {
        result: (),
        action: format!("{word} of the backup of {}", backup.made),
        before: super::to_value(&backup.revision),
        after: super::to_value(&revision),
    };
    audit::record(&mut transaction, revision, revival.now, revival.actor, &done).await?;
    transaction.commit().await?;
    conn.close().await?;
    Ok(Revived { backup, key, revision, revoked_tokens, good_tokens, differences })
}

/// Refuses what a disk or a transfer has damaged.
async fn check(conn: &mut SqliteConnection, name: &Path) -> Result<(), Problem> {
    let damaged = |why: String| {
        Problem::new(ProblemCode::Failed, format!("{} is damaged", name.display()))
            .why(why)
            .fix("take another backup")
    };
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(5)")
        .fetch_all(&mut *conn)
        .await
        .map_err(|error| damaged(error.to_string()))?;
    if found != ["ok"] {
        return Err(damaged(found.join("; ")));
    }
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut *conn).await?;
    if !dangling.is_empty() {
        return Err(damaged(format!("{} rows speak of what is not in it", dangling.len())));
    }
    Ok(())
}

async fn describe(conn: &mut SqliteConnection) -> Result<Backup, sqlx::Error> {
    let (made, version): (i64, String) =
        sqlx::query_as("SELECT made, version FROM backup").fetch_one(&mut *conn).await?;
    let (revision, entities, saps, rules): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT revision, \
         (SELECT count(*) FROM nodes WHERE deleted IS NULL AND kind = 'entity'), \
         (SELECT count(*) FROM nodes WHERE deleted IS NULL AND kind = 'sap'), \
         (SELECT count(*) FROM rules) FROM meta",
    )
    .fetch_one(&mut *conn)
    .await?;
    let newest_change: Option<String> =
        sqlx::query_scalar("SELECT action FROM audit ORDER BY id DESC LIMIT 1")
            .fetch_optional(&mut *conn)
            .await?;
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Backup {
        api_version: ApiVersion::V1,
        made: time(made),
        version,
        revision: Revision(count(revision)),
        newest_change: newest_change.unwrap_or_default(),
        entities: count(entities),
        saps: count(saps),
        rules: count(rules),
    })
}

/// Revokes join tokens of limited use that are good: one that was used since could be used again.
async fn revoke_spendable(
    conn: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Vec<String>, Problem> {
    let mut revoked: Vec<u32> = sqlx::query_scalar(
        "UPDATE tokens SET revoked = 1 WHERE role IN ('entity', 'sap') AND uses > 0 \
         AND used < uses AND revoked = 0 AND expires > ? RETURNING id",
    )
    .bind(seconds(now))
    .fetch_all(&mut *conn)
    .await?;
    revoked.sort_unstable();
    Ok(revoked.into_iter().map(|id| format!("t-{id}")).collect())
}

async fn good_tokens(conn: &mut SqliteConnection, now: Timestamp) -> Result<Vec<String>, Problem> {
    let rows: Vec<(u32, String)> = sqlx::query_as(
        "SELECT id, role FROM tokens WHERE revoked = 0 AND expires > ? \
         AND (uses = 0 OR used < uses) ORDER BY id",
    )
    .bind(seconds(now))
    .fetch_all(&mut *conn)
    .await?;
    Ok(rows.into_iter().map(|(id, role)| format!("t-{id} ({role})")).collect())
}

/// Makes every secret anew that whoever has the backup can use by itself: of epochs, from which all
/// authorization keys come, and of links.
async fn rekey(conn: &mut SqliteConnection) -> Result<(), Problem> {
    let epochs: Vec<(u32, u32)> =
        sqlx::query_as("SELECT overlay, epoch FROM epochs").fetch_all(&mut *conn).await?;
    for (overlay, epoch) in epochs {
        sqlx::query("UPDATE epochs SET secret = ? WHERE overlay = ? AND epoch = ?")
            .bind(random_secret()?.expose().as_slice())
            .bind(overlay)
            .bind(epoch)
            .execute(&mut *conn)
            .await?;
    }
    let links: Vec<u32> = sqlx::query_scalar("SELECT id FROM links").fetch_all(&mut *conn).await?;
    for link in links {
        sqlx::query("UPDATE links SET secret = ? WHERE id = ?")
            .bind(random_secret()?.expose().as_slice())
            .bind(link)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// What can be lost and come back, by id: a name for people, and whether it is in force.
type Things = BTreeMap<u32, (String, bool)>;

async fn things(conn: &mut SqliteConnection) -> Result<[Things; 3], sqlx::Error> {
    let nodes: Vec<(u32, String, bool)> = sqlx::query_as(
        "SELECT id, kind || ' ' || namespace || '/' || name, deleted IS NULL FROM nodes",
    )
    .fetch_all(&mut *conn)
    .await?;
    let rules: Vec<(u32, String, bool)> = sqlx::query_as(
        "SELECT id, 'r-' || id || ' ' || action || ' ' || from_text || ' ' || to_text, 1 FROM rules",
    )
    .fetch_all(&mut *conn)
    .await?;
    let tokens: Vec<(u32, String, bool)> = sqlx::query_as(
        "SELECT id, 't-' || id || ' (' || role || ')', revoked = 0 AND (uses = 0 OR used < uses) \
         FROM tokens",
    )
    .fetch_all(&mut *conn)
    .await?;
    Ok([nodes, rules, tokens].map(|rows| {
        rows.into_iter().map(|(id, name, is_in_force)| (id, (name, is_in_force))).collect()
    }))
}

/// Compares the backup with a newer database.
async fn differences(
    backup: &mut SqliteConnection,
    newer: &Path,
) -> Result<Differences, sqlx::Error> {
    let [nodes, rules, tokens] = things(backup).await?;
    let mut newer = open(newer).await?;
    let [newer_nodes, newer_rules, newer_tokens] = things(&mut newer).await?;
    newer.close().await?;
    // In force in the first and not in the second.
    let only = |first: &Things, second: &Things| -> Vec<String> {
        let is_in_force = |id: &u32| second.get(id).is_some_and(|(_, is_in_force)| *is_in_force);
        first
            .iter()
            .filter(|(id, (_, here))| *here && !is_in_force(id))
            .map(|(_, (name, _))| name.clone())
            .collect()
    };
    Ok(Differences {
        unknown_nodes: only(&newer_nodes, &nodes),
        nodes_back: only(&nodes, &newer_nodes),
        rules_gone: only(&newer_rules, &rules),
        rules_back: only(&rules, &newer_rules),
        tokens_back: only(&tokens, &newer_tokens),
    })
}

#[cfg(test)]
pub(crate) async fn link_secrets(conn: &mut SqliteConnection) -> Result<Vec<Vec<u8>>, Problem> {
    Ok(sqlx::query_scalar("SELECT secret FROM links ORDER BY id").fetch_all(&mut *conn).await?)
}

/// Makes a backup look as if a later version of this program had made it.
#[cfg(test)]
pub(crate) async fn pretend_newer(file: &Path) {
    let mut conn = open_alone(file).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', 1, x'00', 0)",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
}
