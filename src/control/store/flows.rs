//! Flow records, and how often rules decided. No operator's change: no revision, no audit record.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sqlx::SqliteConnection;

use super::{corrupt, counter, parsed, seconds, time};
use crate::api::Problem;
use crate::api::flows::FlowVerdict;
use crate::control::flows::{FlowKey, HOUR_SECONDS, ROWS_MAX, ROWS_OF_NODE_MAX, SeenKey, Sums};
use crate::types::{DropReason, NodeId, OverlayId, RuleId, Timestamp};

/// Which rows to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) overlay: Option<OverlayId>,
    pub(crate) from: Option<NodeId>,
    pub(crate) to: Option<NodeId>,
    pub(crate) since: Timestamp,
    pub(crate) verdict: Option<FlowVerdict>,
}

/// Adds rows and hits.
pub(crate) async fn add(
    conn: &mut SqliteConnection,
    rows: &BTreeMap<SeenKey, Sums>,
    hits: &BTreeMap<RuleId, Sums>,
) -> Result<(), Problem> {
    for ((key, observer, period), sums) in rows {
        // An overlay may have gone since it was reported.
        sqlx::query(
            "INSERT INTO flows (overlay, observer, source, destination, address, protocol, port, \
             rule, verdict, reason, period, packets, bytes, first, last) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15 \
             WHERE EXISTS (SELECT 1 FROM overlays WHERE id = ?1) \
             ON CONFLICT DO UPDATE SET packets = packets + excluded.packets, \
             bytes = bytes + excluded.bytes, first = min(first, excluded.first), \
             last = max(last, excluded.last)",
        )
        .bind(key.overlay.0)
        .bind(observer.0)
        .bind(key.from.0)
        .bind(key.to.map_or(0, |to| to.0))
        .bind(key.address.map_or_else(String::new, |address| address.to_string()))
        .bind(key.protocol)
        .bind(key.port.map_or(-1, i32::from))
        .bind(key.rule.map_or(-1, |rule| i64::from(rule.0)))
        .bind(key.verdict.name())
        .bind(key.reason.unwrap_or(""))
        .bind(seconds(*period))
        .bind(counter(sums.packets))
        .bind(counter(sums.bytes))
        .bind(seconds(sums.first))
        .bind(seconds(sums.last))
        .execute(&mut *conn)
        .await?;
    }
    for (rule, sums) in hits {
        sqlx::query(
            "INSERT INTO rule_hits (rule, packets, bytes, first, last) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET packets = packets + excluded.packets, \
             bytes = bytes + excluded.bytes, first = min(first, excluded.first), \
             last = max(last, excluded.last)",
        )
        .bind(rule.0)
        .bind(counter(sums.packets))
        .bind(counter(sums.bytes))
        .bind(seconds(sums.first))
        .bind(seconds(sums.last))
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Forgets what is older than `keep`, makes hours of what is older than one, and evicts what is over
/// the bounds: the oldest hour first, in it the smallest. Says how many rows were evicted.
pub(crate) async fn tidy(
    conn: &mut SqliteConnection,
    keep: std::time::Duration,
    now: Timestamp,
) -> Result<u64, Problem> {
    let before = |age: u64| seconds(Timestamp(now.0.saturating_sub(age)));
    sqlx::query("DELETE FROM flows WHERE last < ?")
        .bind(before(keep.as_secs()))
        .execute(&mut *conn)
        .await?;
    let hour = i64::try_from(HOUR_SECONDS).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO flows (overlay, observer, source, destination, address, protocol, port, rule, \
         verdict, reason, period, packets, bytes, first, last) \
         SELECT overlay, observer, source, destination, address, protocol, port, rule, verdict, \
         reason, period / ?1 * ?1, sum(packets), sum(bytes), min(first), max(last) FROM flows \
         WHERE last < ?2 AND period % ?1 != 0 \
         GROUP BY overlay, observer, source, destination, address, protocol, port, rule, verdict, \
         reason, period / ?1 \
         ON CONFLICT DO UPDATE SET packets = packets + excluded.packets, \
         bytes = bytes + excluded.bytes, first = min(first, excluded.first), \
         last = max(last, excluded.last)",
    )
    .bind(hour)
    .bind(before(HOUR_SECONDS))
    .execute(&mut *conn)
    .await?;
    // Such a row is in its hour now; one that begins an hour is the hour.
    sqlx::query("DELETE FROM flows WHERE last < ?2 AND period % ?1 != 0")
        .bind(hour)
        .bind(before(HOUR_SECONDS))
        .execute(&mut *conn)
        .await?;
    let mut evicted = 0;
    let greedy: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT observer, count(*) FROM flows GROUP BY observer HAVING count(*) > ?",
    )
    .bind(counter(ROWS_OF_NODE_MAX))
    .fetch_all(&mut *conn)
    .await?;
    for (observer, rows) in greedy {
        evicted += sqlx::query(
            "DELETE FROM flows WHERE id IN (SELECT id FROM flows WHERE observer = ? \
             ORDER BY last / 3600, packets LIMIT ?)",
        )
        .bind(observer)
        .bind(rows - counter(ROWS_OF_NODE_MAX))
        .execute(&mut *conn)
        .await?
        .rows_affected();
    }
    let over = rows(conn).await?.saturating_sub(ROWS_MAX);
    if over > 0 {
        evicted += sqlx::query(
            "DELETE FROM flows WHERE id IN \
             (SELECT id FROM flows ORDER BY last / 3600, packets LIMIT ?)",
        )
        .bind(counter(over))
        .execute(&mut *conn)
        .await?
        .rows_affected();
    }
    // Of what is gone; the audit mode has no row of its own and stays.
    sqlx::query(
        "DELETE FROM rule_hits WHERE rule != ?1 AND rule NOT IN (SELECT id FROM rules) \
         AND rule NOT IN (SELECT id + ?2 FROM network_policies)",
    )
    .bind(RuleId::AUDIT_MODE.0)
    .bind(RuleId::network_policy(0).0)
    .execute(&mut *conn)
    .await?;
    Ok(evicted)
}

/// How many rows there are.
pub(crate) async fn rows(conn: &mut SqliteConnection) -> Result<u64, Problem> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM flows").fetch_one(conn).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// The rows that are wanted, in no order.
pub(crate) async fn read(
    conn: &mut SqliteConnection,
    wanted: &Wanted,
) -> Result<Vec<(SeenKey, Sums)>, Problem> {
    type Row =
        ((u32, u32, u32, u32, String, u8, i32), (i64, String, String, i64, i64, i64, i64, i64));
    let rows: Vec<sqlx::sqlite::SqliteRow> = sqlx::query(
        "SELECT overlay, observer, source, destination, address, protocol, port, rule, verdict, \
         reason, period, packets, bytes, first, last FROM flows WHERE last >= ?1 \
         AND (?2 = 0 OR overlay = ?2) AND (?3 = 0 OR source = ?3) AND (?4 = 0 OR destination = ?4) \
         AND (?5 = '' OR verdict = ?5)",
    )
    .bind(seconds(wanted.since))
    .bind(wanted.overlay.map_or(0, |overlay| overlay.0))
    .bind(wanted.from.map_or(0, |from| from.0))
    .bind(wanted.to.map_or(0, |to| to.0))
    .bind(wanted.verdict.map_or("", FlowVerdict::name))
    .fetch_all(&mut *conn)
    .await?;
    rows.iter()
        .map(|row| {
            use sqlx::Row as _;
            let row: Row = (
                (
                    row.try_get(0)?,
                    row.try_get(1)?,
                    row.try_get(2)?,
                    row.try_get(3)?,
                    row.try_get(4)?,
                    row.try_get(5)?,
                    row.try_get(6)?,
                ),
                (
                    row.try_get(7)?,
                    row.try_get(8)?,
                    row.try_get(9)?,
                    row.try_get(10)?,
                    row.try_get(11)?,
                    row.try_get(12)?,
                    row.try_get(13)?,
                    row.try_get(14)?,
                ),
            );
            let ((overlay, observer, from, to, address, protocol, port), rest) = row;
            let (rule, verdict, reason, period, packets, bytes, first, last) = rest;
            let address: Option<IpAddr> = match address.as_str() {
                "" => None,
                text => Some(parsed(text, "flow record")?),
            };
            let key = FlowKey {
                overlay: OverlayId(overlay),
                from: NodeId(from),
                to: (to != 0).then_some(NodeId(to)),
                address,
                protocol,
                port: u16::try_from(port).ok(),
                rule: u32::try_from(rule).ok().map(RuleId),
                verdict: FlowVerdict::named(&verdict).ok_or_else(|| corrupt("flow record"))?,
                reason: DropReason::named(&reason).map(DropReason::name),
            };
            let number = |value: i64| u64::try_from(value).unwrap_or(0);
            let sums = Sums {
                packets: number(packets),
                bytes: number(bytes),
                first: time(first),
                last: time(last),
            };
            Ok(((key, NodeId(observer), time(period)), sums))
        })
        .collect()
}

/// How often rules decided.
pub(crate) async fn hits(conn: &mut SqliteConnection) -> Result<BTreeMap<RuleId, Sums>, Problem> {
    let rows: Vec<(u32, i64, i64, i64, i64)> =
        sqlx::query_as("SELECT rule, packets, bytes, first, last FROM rule_hits")
            .fetch_all(conn)
            .await?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(rows
        .into_iter()
        .map(|(rule, packets, bytes, first, last)| {
            let sums = Sums {
                packets: number(packets),
                bytes: number(bytes),
                first: time(first),
                last: time(last),
            };
            (RuleId(rule), sums)
        })
        .collect())
}
