//! The database: overlays, nodes, tokens, rules, keys, audit.
//!
//! One file per noun; each function takes a connection, so that several make one transaction.
//! Writers begin with `BEGIN IMMEDIATE` on the one connection that writes; readers have their own
//! (WAL). Every statement is literal SQL with bind parameters. It never sees a token's or a
//! credential's text, only SHA-256.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod changes;
pub(crate) mod cidr;
pub(crate) mod confirmations;
pub(crate) mod flows;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod lives;
pub(crate) mod namespaces;
pub(crate) mod nodes;
pub(crate) mod overlays;
pub(crate) mod paths;
pub(crate) mod policies;
pub(crate) mod rules;
pub(crate) mod tables;
pub(crate) mod tokens;
pub(crate) mod world;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use crate::api::{Problem, ProblemCode};
use crate::types::{Incarnation, Revision, Secret, Timestamp};

/// A connection of the database, as functions of this folder take it.
pub(crate) type Connection = SqliteConnection;

/// A transaction that writes; dropping it rolls back.
pub(crate) type WriteTransaction = Transaction<'static, Sqlite>;

/// What the database refused.
pub(crate) type StoreError = sqlx::Error;

/// What this program knows of the database's shape.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Longest wait for another process that writes (a backup); inside this process nobody waits in SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that read.
const READERS: u32 = 4;

/// An open database.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// What an operation did, for the audit record and the answer.
#[derive(Debug)]
pub(crate) struct Done<T> {
    /// The thing afterwards.
    pub(crate) result: T,
    /// Such as `rule create r-18`.
    pub(crate) action: String,
    /// The thing before; null when it is new.
    pub(crate) before: serde_json::Value,
    /// The thing after; null when it is gone.
    pub(crate) after: serde_json::Value,
}

impl Store {
    /// Opens the database at `path`, makes it when it is not there, and brings it up to date.
    ///
    /// # Errors
    ///
    /// `Failed` when the file cannot be used, or comes from a newer version of this program.
    pub(crate) async fn open(path: &Path) -> Result<Self, Problem> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("trusted_schema", "OFF");
        let cannot_open = |error: sqlx::Error| {
            Problem::new(
                ProblemCode::Failed,
                format!("cannot open the database {}", path.display()),
            )
            .why(error.to_string())
            .fix("check that the file is an ovmesh database and that the disk is not full")
        };
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(cannot_open)?;
        MIGRATIONS.run(&writer).await.map_err(|error| migration_problem(path, &error))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options)
            .await
            .map_err(cannot_open)?;
        Ok(Self { writer, readers })
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<sqlx::pool::PoolConnection<Sqlite>, Problem> {
        Ok(self.readers.acquire().await?)
    }

    /// A transaction to write with; dropping it rolls back.
    pub(crate) async fn write(&self) -> Result<WriteTransaction, Problem> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Writes everything back and closes.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Says in words why the database could not be brought up to date.
fn migration_problem(path: &Path, error: &MigrateError) -> Problem {
    let at = path.display();
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "not our enum; only these two need own words"
    )]
    match error {
        MigrateError::VersionMissing(version) => Problem::new(
            ProblemCode::Failed,
            format!("the database {at} was written by a newer version of ovctl"),
        )
        .why(format!(
            "it has migration {version}; this is ovctl {}, which does not know it",
            env!("CARGO_PKG_VERSION")
        ))
        .fix("start the newer ovctl, or restore a backup that this version made"),
        MigrateError::VersionMismatch(version) => Problem::new(
            ProblemCode::Failed,
            format!("the database {at} was made by a different build of ovctl"),
        )
        .why(format!("its migration {version} is not the one of this build"))
        .fix("start the ovctl that made it, or use another --data-dir"),
        other => Problem::new(ProblemCode::Failed, format!("cannot bring {at} up to date"))
            .why(other.to_string())
            .fix("check that the file is an ovmesh database and that the disk is not full"),
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(%error, "database");
        Self::new(ProblemCode::Failed, "the server's database did not do it; nothing was changed")
            .why(error.to_string())
            .fix("look at the server's log and at the space left on its disk, then try again")
    }
}

/// A row holds what no writer of this program writes.
pub(crate) fn corrupt(what: &str) -> Problem {
    Problem::new(ProblemCode::Failed, format!("the server's database holds a damaged {what}"))
        .why("somebody else wrote to it, or the disk lost data")
        .fix("restore a backup")
}

/// Parses a text column.
pub(crate) fn parsed<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| corrupt(what))
}

/// Parses a JSON column.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(
    text: &str,
    what: &str,
) -> Result<T, Problem> {
    serde_json::from_str(text).map_err(|_| corrupt(what))
}

/// Writes a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("invariant: our types serialise to JSON")
}

/// A JSON value for an audit record.
pub(crate) fn to_value<T: serde::Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).expect("invariant: our types serialise to JSON")
}

/// A 32-byte blob column.
pub(crate) fn secret(bytes: &[u8], what: &str) -> Result<Secret, Problem> {
    Ok(Secret::new(bytes.try_into().map_err(|_| corrupt(what))?))
}

/// A time column.
pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp(u64::try_from(seconds).unwrap_or(0))
}

/// A time for a column; SQLite has no unsigned 64-bit integers.
pub(crate) fn seconds(time: Timestamp) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// A counter for a column.
pub(crate) fn counter(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// 256 bits from the operating system's generator.
pub(crate) fn random_secret() -> Result<Secret, Problem> {
    Ok(Secret::new(random_bytes()?))
}

/// `N` bytes from the operating system's generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Problem::new(ProblemCode::Failed, "the operating system gave no random numbers")
            .fix("try again; if it stays so, check /dev/urandom and getrandom(2)")
    })?;
    Ok(bytes)
}

/// SHA-256 of a secret: what the database keeps of it.
pub(crate) fn hash_of(secret: &Secret) -> Secret {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret.expose()).as_ref());
    Secret::new(bytes)
}

/// Makes the first rows: incarnation, revision 0, the overlay `default`. Harmless when they are there.
pub(crate) async fn initialise(
    conn: &mut SqliteConnection,
    taken: &[std::net::IpAddr],
    now: Timestamp,
) -> Result<(), Problem> {
    if sqlx::query("SELECT 1 FROM meta").fetch_optional(&mut *conn).await?.is_some() {
        return Ok(());
    }
    let incarnation = u128::from_be_bytes(random_bytes()?);
    sqlx::query("INSERT INTO meta (one, incarnation, revision) VALUES (1, ?, 0)")
        .bind(format!("{incarnation:032x}"))
        .execute(&mut *conn)
        .await?;
    let request = crate::api::admin::OverlayCreate {
        name: crate::types::Name::default(),
        cidr: None,
        semantics: crate::api::admin::Semantics::DefaultDeny,
        silent: false,
    };
    let done = overlays::create(conn, &request, taken, now).await?;
    audit::record(conn, Revision(0), now, "first start", &done).await
}

/// The life of this database.
pub(crate) async fn incarnation(conn: &mut SqliteConnection) -> Result<Incarnation, Problem> {
    let text: String =
        sqlx::query_scalar("SELECT incarnation FROM meta").fetch_one(&mut *conn).await?;
    Ok(Incarnation(text))
}

/// The newest revision.
pub(crate) async fn revision(conn: &mut SqliteConnection) -> Result<Revision, Problem> {
    let number: i64 = sqlx::query_scalar("SELECT revision FROM meta").fetch_one(&mut *conn).await?;
    Ok(Revision(u64::try_from(number).unwrap_or(0)))
}

/// Counts the revision up and gives the new one.
pub(crate) async fn next_revision(conn: &mut SqliteConnection) -> Result<Revision, Problem> {
    let number: i64 =
        sqlx::query_scalar("UPDATE meta SET revision = revision + 1 RETURNING revision")
            .fetch_one(&mut *conn)
            .await?;
    Ok(Revision(u64::try_from(number).unwrap_or(0)))
}
