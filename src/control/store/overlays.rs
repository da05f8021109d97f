//! Overlays: each one range with its own policy.

use std::net::IpAddr;

use sqlx::SqliteConnection;

use super::{Done, cidr, corrupt, parsed, seconds, time, to_value};
use crate::api::admin::{Overlay, OverlayCreate, Semantics};
use crate::api::{Problem, ProblemCode};
use crate::control::suggest;
use crate::types::{Name, OverlayId, Prefix, Timestamp};

/// All overlays, by name.
pub(crate) async fn list(conn: &mut SqliteConnection) -> Result<Vec<Overlay>, Problem> {
    type Row = (u32, String, String, String, bool, bool, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT o.id, o.name, o.cidr, o.semantics, o.silent, o.audit, o.created, \
         (SELECT count(*) FROM members m WHERE m.overlay = o.id), \
         (SELECT count(*) FROM rules r WHERE r.overlay = o.id) \
         FROM overlays o ORDER BY o.name",
    )
    .fetch_all(&mut *conn)
    .await?;
    rows.into_iter()
        .map(|(id, name, cidr, semantics, silent, audit, created, members, rules)| {
            Ok(Overlay {
                id: OverlayId(id),
                name: parsed(&name, "overlay name")?,
                cidr: parsed(&cidr, "overlay range")?,
                semantics: semantics_from(&semantics)?,
                silent,
                audit,
                created: time(created),
                members: u64::try_from(members).unwrap_or(0),
                rules: u64::try_from(rules).unwrap_or(0),
            })
        })
        .collect()
}

/// Reads the column.
pub(crate) fn semantics_from(text: &str) -> Result<Semantics, Problem> {
    match text {
        "default-deny" => Ok(Semantics::DefaultDeny),
        "kubernetes" => Ok(Semantics::Kubernetes),
        _ => Err(corrupt("overlay")),
    }
}

/// The overlay called `name`.
///
/// # Errors
///
/// `NotFound`, with the nearest name.
pub(crate) async fn named(conn: &mut SqliteConnection, name: &Name) -> Result<Overlay, Problem> {
    let all = list(conn).await?;
    let near = suggest::nearest(name.as_str(), all.iter().map(|overlay| overlay.name.as_str()));
    let unknown = Problem::new(ProblemCode::NotFound, format!("there is no overlay {name}"))
        .fix(near.unwrap_or_else(|| "ovctl overlay list".to_owned()));
    all.into_iter().find(|overlay| overlay.name == *name).ok_or(unknown)
}

/// Makes an overlay with its first epoch secret. `host` are the server host's addresses.
pub(crate) async fn create(
    conn: &mut SqliteConnection,
    request: &OverlayCreate,
    host: &[IpAddr],
    now: Timestamp,
) -> Result<Done<Overlay>, Problem> {
    let semantics = match request.semantics {
        Semantics::DefaultDeny => "default-deny",
        Semantics::Kubernetes => "kubernetes",
    };
    let existing = list(conn).await?;
    if existing.iter().any(|overlay| overlay.name == request.name) {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("the overlay {} exists already", request.name),
        )
        .fix(format!("choose another name, or look at it: ovctl overlay show {}", request.name)));
    }
    let ranges: Vec<(Name, Prefix)> =
        existing.into_iter().map(|overlay| (overlay.name, overlay.cidr)).collect();
    let mut taken = host.to_vec();
    let endpoints: Vec<String> =
        sqlx::query_scalar("SELECT endpoint FROM node_endpoints").fetch_all(&mut *conn).await?;
    for endpoint in endpoints {
        taken.push(parsed::<std::net::SocketAddr>(&endpoint, "endpoint")?.ip());
    }
    let range = match request.cidr {
        Some(range) => {
            cidr::check(&range, &ranges, &taken)?;
            range
        }
        None => cidr::choose(&ranges, &taken, u64::from_be_bytes(super::random_bytes()?))?,
    };
    let id: u32 = sqlx::query_scalar(
        "INSERT INTO overlays (name, cidr, semantics, silent, created) VALUES (?, ?, ?, ?, ?) \
         RETURNING id",
    )
    .bind(request.name.as_str())
    .bind(range.to_string())
    .bind(semantics)
    .bind(request.silent)
    .bind(seconds(now))
    .fetch_one(&mut *conn)
    .await?;
    super::keys::add_epoch(conn, OverlayId(id), crate::types::Epoch(0), now).await?;
    let overlay = named(conn, &request.name).await?;
    Ok(Done {
        action: format!("overlay create {}", overlay.name),
        before: serde_json::Value::Null,
        after: to_value(&overlay),
        result: overlay,
    })
}

/// Turns audit mode on or off.
pub(crate) async fn set_audit(
    conn: &mut SqliteConnection,
    name: &Name,
    audit: bool,
) -> Result<Done<Overlay>, Problem> {
    let before = named(conn, name).await?;
    sqlx::query("UPDATE overlays SET audit = ? WHERE id = ?")
        .bind(audit)
        .bind(before.id.0)
        .execute(&mut *conn)
        .await?;
    let after = Overlay { audit, ..before.clone() };
    Ok(Done {
        action: format!("overlay audit {name} {}", if audit { "on" } else { "off" }),
        before: to_value(&before),
        after: to_value(&after),
        result: after,
    })
}

/// Deletes an overlay that has no members, with its rules and keys.
pub(crate) async fn delete(
    conn: &mut SqliteConnection,
    name: &Name,
) -> Result<Done<Overlay>, Problem> {
    let overlay = named(conn, name).await?;
    if overlay.members > 0 {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("the overlay {name} still has {} members", overlay.members),
        )
        .why("deleting it would cut them off")
        .fix(format!("ovctl entity list --overlay {name}, then ovctl entity delete NAME")));
    }
    sqlx::query("DELETE FROM overlays WHERE id = ?").bind(overlay.id.0).execute(&mut *conn).await?;
    Ok(Done {
        action: format!("overlay delete {name}"),
        before: to_value(&overlay),
        after: serde_json::Value::Null,
        result: overlay,
    })
}
