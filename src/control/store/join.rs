//! Joining: one transaction that uses the token up and makes the node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sqlx::SqliteConnection;

use super::tokens::{TokenRecord, role_text};
use super::{Done, cidr, corrupt, hash_of, nodes, overlays, parsed, seconds, time, tokens};
use crate::api::admin::Role;
use crate::api::node::{JoinAnswer, JoinCheck, JoinPreview, JoinRequest, Membership, OverlayFacts};
use crate::api::{Problem, ProblemCode};
use crate::types::{
    ApiVersion, EntityName, Name, NodeId, NodeKind, OverlayId, Prefix, Secret, Timestamp,
};

/// How long an address rests at least after its entity went, in seconds.
const REST_SECS: i64 = 600;

/// The one answer to a secret that no token has.
fn unknown() -> Problem {
    Problem::new(ProblemCode::Unauthorized, "this server does not know the token")
        .why("it was made by another server, or the server's database was replaced")
        .fix("make a new one there: ovctl token create")
}

/// Refuses a secret that no token has.
pub(crate) async fn known(conn: &mut SqliteConnection, secret: &Secret) -> Result<(), Problem> {
    tokens::by_secret(conn, secret).await?.map(|_| ()).ok_or_else(unknown)
}

/// Finds a token that may be used, or says why it may not. Only the holder of the right secret learns
/// more than "unknown".
async fn usable(
    conn: &mut SqliteConnection,
    secret: &Secret,
    kind: NodeKind,
    now: Timestamp,
) -> Result<TokenRecord, Problem> {
    let token = tokens::by_secret(conn, secret).await?.ok_or_else(unknown)?;
    check_role(&token, kind)?;
    let refuse = |what: String, why: String| {
        let role = role_text(token.public.role);
        Err(Problem::new(ProblemCode::Unauthorized, what)
            .why(why)
            .fix(format!("make a new one: ovctl token create --role {role}")))
    };
    let id = &token.public.id;
    if token.public.revoked {
        return refuse(format!("the token {id} was revoked"), "an admin revoked it".to_owned());
    }
    if token.public.expires <= now {
        return refuse(
            format!("the token {id} has expired"),
            format!("it was good until {}", token.public.expires),
        );
    }
    if token.public.uses > 0 && token.public.used >= token.public.uses {
        let who: Vec<(String, i64)> = sqlx::query_as(
            "SELECT n.name, u.at FROM token_uses u JOIN nodes n ON n.id = u.node \
             WHERE u.token = ? ORDER BY u.at DESC LIMIT 1",
        )
        .bind(token.number)
        .fetch_all(&mut *conn)
        .await?;
        let last = who
            .first()
            .map_or_else(String::new, |(name, at)| format!(", last by {name} at {}", time(*at)));
        return refuse(
            format!("the token {id} is used up"),
            format!(
                "it was good for {} and was used {}{last}",
                token.public.uses, token.public.used
            ),
        );
    }
    Ok(token)
}

/// A token for a SaP admits no entity, and so on.
fn check_role(token: &TokenRecord, kind: NodeKind) -> Result<(), Problem> {
    if token.public.role.joins_as() == Some(kind) {
        return Ok(());
    }
    let role = role_text(token.public.role);
    let fix = match token.public.role {
        Role::Sap => "start ovsap with it, or: ovctl token create --role entity",
        Role::Entity => "start ovd with it, or: ovctl token create --role sap",
        Role::Admin | Role::Viewer => "ovctl takes it: ovctl --server URL --token-file FILE",
    };
    Err(Problem::new(
        ProblemCode::Unauthorized,
        format!("the token {} does not admit this program", token.public.id),
    )
    .why(format!("it is a token for the role {role}"))
    .fix(fix))
}

/// What a token is good for. Changes nothing.
pub(crate) async fn check(
    conn: &mut SqliteConnection,
    request: &JoinCheck,
    now: Timestamp,
) -> Result<JoinPreview, Problem> {
    let token = usable(conn, &request.secret, request.kind, now).await?;
    let overlays = overlays::list(conn)
        .await?
        .into_iter()
        .filter(|overlay| token.all_overlays || token.overlay_ids.contains(&overlay.id))
        .map(|overlay| OverlayFacts { id: overlay.id, name: overlay.name, cidr: overlay.cidr })
        .collect();
    Ok(JoinPreview {
        api_version: ApiVersion::V1,
        overlays,
        name: token.public.name,
        clear_underlay: token.clear_underlay,
        reusable: token.public.uses != 1,
    })
}

/// Joins. Repeating a join whose answer was lost gives the same answer; then nothing is done.
pub(crate) async fn join(
    conn: &mut SqliteConnection,
    request: &JoinRequest,
    now: Timestamp,
) -> Result<(JoinAnswer, Option<Done<()>>), Problem> {
    nodes::check_endpoints(conn, &request.endpoints).await?;
    if let Some(id) = nodes::by_credential(conn, &request.credential_hash).await? {
        return Ok((repeat(conn, request, id).await?, None));
    }
    let token = usable(conn, &request.secret, request.kind, now).await?;
    // The condition stands in the statement itself: of two that race, one finds no row.
    let used = sqlx::query(
        "UPDATE tokens SET used = used + 1 WHERE hash = ? AND revoked = 0 AND expires > ? \
         AND (uses = 0 OR used < uses)",
    )
    .bind(hash_of(&request.secret).expose().as_slice())
    .bind(seconds(now))
    .execute(&mut *conn)
    .await?;
    if used.rows_affected() != 1 {
        return Err(unknown());
    }
    let name = free_name(conn, request, &token).await?;
    let id = insert(conn, request, &token, &name, now).await?;
    let memberships = match request.kind {
        NodeKind::Entity => add_members(conn, id, &token, now).await?,
        NodeKind::Sap => {
            for overlay in &token.overlay_ids {
                sqlx::query("INSERT INTO sap_overlays (sap, overlay) VALUES (?, ?)")
                    .bind(id.0)
                    .bind(overlay.0)
                    .execute(&mut *conn)
                    .await?;
            }
            Vec::new()
        }
    };
    add_links(conn, id, request.kind).await?;
    if request.kind == NodeKind::Entity && token.public.name.is_some() {
        super::rules::rebind(conn, id, &name).await?;
        super::policies::rebind(conn, id, &name).await?;
    }
    let answer = JoinAnswer {
        api_version: ApiVersion::V1,
        id,
        name,
        incarnation: super::incarnation(conn).await?,
        memberships,
    };
    let done = Done {
        result: (),
        action: format!("{} join {} with {}", request.kind, answer.name, token.public.id),
        before: serde_json::Value::Null,
        after: super::to_value(&answer),
    };
    Ok((answer, Some(done)))
}

/// The answer that a node got, or should have got, when it joined.
async fn repeat(
    conn: &mut SqliteConnection,
    request: &JoinRequest,
    id: NodeId,
) -> Result<JoinAnswer, Problem> {
    let same_token: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM token_uses u JOIN tokens t ON t.id = u.token \
         WHERE u.node = ? AND t.hash = ?",
    )
    .bind(id.0)
    .bind(hash_of(&request.secret).expose().as_slice())
    .fetch_optional(&mut *conn)
    .await?;
    let record = nodes::one(conn, id).await?;
    match (same_token, record) {
        (Some(_), Some(record)) if record.kind == request.kind => {
            let names = overlays::list(conn).await?;
            let memberships = names
                .into_iter()
                .filter_map(|overlay| {
                    let address = *record.addresses.get(&overlay.id)?;
                    Some(Membership { overlay: overlay.name, address })
                })
                .collect();
            Ok(JoinAnswer {
                api_version: ApiVersion::V1,
                id,
                name: record.name,
                incarnation: super::incarnation(conn).await?,
                memberships,
            })
        }
        _ => Err(unknown()),
    }
}

/// The name that the joiner gets; a taken one is refused, never changed.
async fn free_name(
    conn: &mut SqliteConnection,
    request: &JoinRequest,
    token: &TokenRecord,
) -> Result<EntityName, Problem> {
    let name = match (&request.name, &token.public.name) {
        (Some(wanted), Some(given)) if wanted != given => {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the token {} is not for the name {wanted}", token.public.id),
            )
            .why(format!("it was made with --name {given}"))
            .fix(format!(
                "leave --name out, or make another: ovctl token create --name {wanted}"
            )));
        }
        (_, Some(given)) => given.clone(),
        (Some(wanted), None) => wanted.clone(),
        (None, None) => request.host_name.clone().ok_or_else(|| {
            Problem::new(ProblemCode::Usage, "the node has no name")
                .why("neither it nor the token says one, and its host name is not a valid name")
                .fix("say one: --name NAME")
        })?,
    };
    let namespace = token.public.namespaces.first().cloned().unwrap_or_default();
    let full = EntityName { namespace, name };
    let taken: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM nodes WHERE kind = ? AND namespace = ? AND name = ? AND deleted IS NULL",
    )
    .bind(request.kind.as_str())
    .bind(full.namespace.as_str())
    .bind(full.name.as_str())
    .fetch_optional(&mut *conn)
    .await?;
    if taken.is_some() {
        return Err(Problem::new(ProblemCode::Conflict, format!("the name {full} is taken"))
            .why(format!("another {} has it", request.kind))
            .fix(format!(
                "choose another: --name NAME; or, when the old one is gone for good: ovctl {} delete {full}",
                request.kind
            )));
    }
    Ok(full)
}

/// Writes the node itself, its labels, ports and endpoints.
async fn insert(
    conn: &mut SqliteConnection,
    request: &JoinRequest,
    token: &TokenRecord,
    name: &EntityName,
    now: Timestamp,
) -> Result<NodeId, Problem> {
    let id: u32 = sqlx::query_scalar(
        "INSERT INTO nodes (kind, namespace, name, ephemeral, all_overlays, credential_hash, \
         joined) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(request.kind.as_str())
    .bind(name.namespace.as_str())
    .bind(name.name.as_str())
    .bind(token.public.ephemeral)
    .bind(token.all_overlays)
    .bind(request.credential_hash.expose().as_slice())
    .bind(seconds(now))
    .fetch_one(&mut *conn)
    .await?;
    for label in &token.public.labels {
        sqlx::query("INSERT INTO node_labels (node, key, value) VALUES (?, ?, ?)")
            .bind(id)
            .bind(label.key.as_str())
            .bind(label.value.as_str())
            .execute(&mut *conn)
            .await?;
    }
    for (port, service) in &token.ports {
        sqlx::query("INSERT INTO node_ports (node, name, service) VALUES (?, ?, ?)")
            .bind(id)
            .bind(port.as_str())
            .bind(service.to_string())
            .execute(&mut *conn)
            .await?;
    }
    nodes::set_endpoints(conn, NodeId(id), &request.endpoints).await?;
    sqlx::query("INSERT INTO token_uses (token, node, at) VALUES (?, ?, ?)")
        .bind(token.number)
        .bind(id)
        .bind(seconds(now))
        .execute(&mut *conn)
        .await?;
    Ok(NodeId(id))
}

/// Gives the entity an address and a key ring in each overlay of its token.
async fn add_members(
    conn: &mut SqliteConnection,
    id: NodeId,
    token: &TokenRecord,
    now: Timestamp,
) -> Result<Vec<Membership>, Problem> {
    if token.overlay_ids.is_empty() {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("the token {} joins no overlay", token.public.id),
        )
        .why("the overlays that it was made for have been deleted")
        .fix("make another: ovctl token create --overlay NAME"));
    }
    let mut memberships = Vec::new();
    for &overlay in &token.overlay_ids {
        let (name, range): (String, String) =
            sqlx::query_as("SELECT name, cidr FROM overlays WHERE id = ?")
                .bind(overlay.0)
                .fetch_one(&mut *conn)
                .await?;
        let name: Name = parsed(&name, "overlay name")?;
        let address =
            allocate(conn, overlay, &name, &parsed(&range, "overlay range")?, now).await?;
        sqlx::query("INSERT INTO members (overlay, node, address) VALUES (?, ?, ?)")
            .bind(overlay.0)
            .bind(id.0)
            .bind(address.to_string())
            .execute(&mut *conn)
            .await?;
        super::keys::add_ring(conn, overlay, id, now).await?;
        memberships.push(Membership { overlay: name, address });
    }
    Ok(memberships)
}

/// The next free address that does not rest.
async fn allocate(
    conn: &mut SqliteConnection,
    overlay: OverlayId,
    name: &Name,
    range: &Prefix,
    now: Timestamp,
) -> Result<IpAddr, Problem> {
    // A node that a deletion concerns has acknowledged a table without the address when its
    // acknowledged serial reached the one written down; a deleted node concerns nobody.
    sqlx::query(
        "DELETE FROM retired_addresses WHERE overlay = ?1 AND published = 1 AND retired <= ?2 \
         AND NOT EXISTS (SELECT 1 FROM retired_waits w JOIN node_tables t ON t.node = w.node \
         WHERE w.overlay = retired_addresses.overlay AND w.address = retired_addresses.address \
         AND t.acknowledged < w.serial)",
    )
    .bind(overlay.0)
    .bind(seconds(now).saturating_sub(REST_SECS))
    .execute(&mut *conn)
    .await?;
    let in_use: Vec<String> = sqlx::query_scalar(
        "SELECT address FROM members WHERE overlay = ?1 \
         UNION SELECT address FROM retired_addresses WHERE overlay = ?1",
    )
    .bind(overlay.0)
    .fetch_all(&mut *conn)
    .await?;
    let in_use: BTreeSet<IpAddr> =
        in_use.iter().map(|text| parsed(text, "address")).collect::<Result<_, _>>()?;
    cidr::next_free(range, &in_use).ok_or_else(|| {
        Problem::new(ProblemCode::Conflict, format!("the overlay {name} has no free address"))
            .why(format!("all of {range} are in use, or rest after their entity went (10 min)"))
            .fix("delete entities that are gone, wait, or join a larger overlay")
    })
}

/// Makes a link with a secret of its own to each node of the other kind.
async fn add_links(conn: &mut SqliteConnection, id: NodeId, kind: NodeKind) -> Result<(), Problem> {
    let other = match kind {
        NodeKind::Entity => NodeKind::Sap,
        NodeKind::Sap => NodeKind::Entity,
    };
    let others: Vec<u32> =
        sqlx::query_scalar("SELECT id FROM nodes WHERE kind = ? AND deleted IS NULL ORDER BY id")
            .bind(other.as_str())
            .fetch_all(&mut *conn)
            .await?;
    for other in others {
        let (entity, sap) = match kind {
            NodeKind::Entity => (id.0, other),
            NodeKind::Sap => (other, id.0),
        };
        sqlx::query("INSERT INTO links (entity, sap, secret) VALUES (?, ?, ?)")
            .bind(entity)
            .bind(sap)
            .bind(super::random_secret()?.expose().as_slice())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// A node leaves for good, by its own wish: it is deleted.
pub(crate) async fn leave(
    conn: &mut SqliteConnection,
    id: NodeId,
    now: Timestamp,
) -> Result<Done<()>, Problem> {
    let record = nodes::one(conn, id).await?.ok_or_else(|| corrupt("node"))?;
    nodes::delete(conn, &record, now).await?;
    Ok(Done {
        result: (),
        action: format!("{} leave {}", record.kind, record.name),
        before: super::to_value(&record),
        after: serde_json::Value::Null,
    })
}
