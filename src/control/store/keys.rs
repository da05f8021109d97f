//! Epoch secrets and key rings as rows; what their steps mean is `control::rotation`'s business.

use std::ops::RangeInclusive;

use sqlx::SqliteConnection;

use super::{counter, parsed, random_secret, seconds, secret, time};
use crate::api::Problem;
use crate::keys::rotation::Ring;
use crate::types::{Epoch, Generation, KeyVersion, NodeId, OverlayId, Secret, Timestamp};

/// One ring as a row. In a pair's ring the epoch is always 0: only generations count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RingRow {
    pub(crate) overlay: OverlayId,
    /// None for the ring of the destination itself.
    pub(crate) source: Option<NodeId>,
    pub(crate) destination: NodeId,
    pub(crate) ring: Ring<KeyVersion>,
    /// When the last rotation ended, or the ring was made.
    pub(crate) rotated: Timestamp,
}

/// Makes the secret of an epoch.
pub(crate) async fn add_epoch(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    epoch: Epoch,
    now: Timestamp,
) -> Result<(), Problem> {
    sqlx::query("INSERT INTO epochs (overlay, epoch, secret, created) VALUES (?, ?, ?, ?)")
        .bind(overlay.0)
        .bind(epoch.0)
        .bind(random_secret()?.expose().as_slice())
        .bind(seconds(now))
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// All epoch secrets, and when each was made, oldest first.
pub(crate) async fn epochs(
    conn: &mut SqliteConnection,
) -> Result<Vec<(OverlayId, Epoch, Secret, Timestamp)>, Problem> {
    let rows: Vec<(u32, u32, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT overlay, epoch, secret, created FROM epochs ORDER BY overlay, epoch",
    )
    .fetch_all(&mut *conn)
    .await?;
    rows.into_iter()
        .map(|(overlay, epoch, bytes, created)| {
            Ok((OverlayId(overlay), Epoch(epoch), secret(&bytes, "epoch")?, time(created)))
        })
        .collect()
}

/// Forgets the epochs of an overlay that no ring uses, save the newest.
pub(crate) async fn forget_epochs(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
) -> Result<(), Problem> {
    sqlx::query(
        "DELETE FROM epochs WHERE overlay = ?1 \
         AND epoch < (SELECT max(e.epoch) FROM epochs e WHERE e.overlay = ?1) \
         AND NOT EXISTS (SELECT 1 FROM key_rings r WHERE r.overlay = ?1 AND r.source = 0 \
         AND (r.epoch = epochs.epoch OR r.next_epoch = epochs.epoch))",
    )
    .bind(overlay.0)
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// Makes the ring of a new destination, of the newest epoch.
pub(crate) async fn add_ring(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    destination: NodeId,
    now: Timestamp,
) -> Result<(), Problem> {
    sqlx::query(
        "INSERT INTO key_rings (overlay, source, destination, epoch, generation, step, rotated, \
         since_millis) SELECT ?1, 0, ?2, max(epoch), 0, 'steady', ?3, ?3 * 1000 FROM epochs \
         WHERE overlay = ?1",
    )
    .bind(overlay.0)
    .bind(destination.0)
    .bind(seconds(now))
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// All rings, sorted.
pub(crate) async fn rings(conn: &mut SqliteConnection) -> Result<Vec<RingRow>, Problem> {
    rings_to(conn, NodeId(0)..=NodeId(u32::MAX)).await
}

/// The rings of a range of destinations, sorted.
pub(crate) async fn rings_to(
    conn: &mut SqliteConnection,
    destinations: RangeInclusive<NodeId>,
) -> Result<Vec<RingRow>, Problem> {
    type Row = (u32, u32, u32, u32, u32, Option<u32>, Option<u32>, String, i64, i64, Option<i64>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT overlay, source, destination, epoch, generation, next_epoch, next_generation, \
         step, rotated, since_millis, deadline_millis FROM key_rings \
         WHERE destination BETWEEN ? AND ? ORDER BY overlay, source, destination",
    )
    .bind(destinations.start().0)
    .bind(destinations.end().0)
    .fetch_all(&mut *conn)
    .await?;
    let version =
        |epoch, generation| KeyVersion { epoch: Epoch(epoch), generation: Generation(generation) };
    let millis = |value: i64| u64::try_from(value).unwrap_or(0);
    rows.into_iter()
        .map(
            |(
                overlay,
                source,
                to,
                epoch,
                generation,
                next_epoch,
                next,
                step,
                rotated,
                since,
                deadline,
            )| {
                Ok(RingRow {
                    overlay: OverlayId(overlay),
                    source: (source != 0).then_some(NodeId(source)),
                    destination: NodeId(to),
                    ring: Ring {
                        current: version(epoch, generation),
                        next: next_epoch.zip(next).map(|(epoch, next)| version(epoch, next)),
                        step: parsed(&step, "key ring")?,
                        since_millis: millis(since),
                        deadline_millis: deadline.map(millis),
                    },
                    rotated: time(rotated),
                })
            },
        )
        .collect()
}

/// Writes a ring as it is at the moment.
pub(crate) async fn put_ring(conn: &mut SqliteConnection, row: &RingRow) -> Result<(), Problem> {
    let ring = &row.ring;
    sqlx::query(
        "INSERT INTO key_rings (overlay, source, destination, epoch, generation, next_epoch, \
         next_generation, step, rotated, since_millis, deadline_millis) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (overlay, source, destination) DO UPDATE SET epoch = excluded.epoch, \
         generation = excluded.generation, next_epoch = excluded.next_epoch, \
         next_generation = excluded.next_generation, step = excluded.step, \
         rotated = excluded.rotated, since_millis = excluded.since_millis, \
         deadline_millis = excluded.deadline_millis",
    )
    .bind(row.overlay.0)
    .bind(row.source.map_or(0, |source| source.0))
    .bind(row.destination.0)
    .bind(ring.current.epoch.0)
    .bind(ring.current.generation.0)
    .bind(ring.next.map(|next| next.epoch.0))
    .bind(ring.next.map(|next| next.generation.0))
    .bind(ring.step.as_str())
    .bind(seconds(row.rotated))
    .bind(counter(ring.since_millis))
    .bind(ring.deadline_millis.map(counter))
    .execute(&mut *conn)
    .await?;
    Ok(())
}
