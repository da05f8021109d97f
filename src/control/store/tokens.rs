//! Tokens: the right to join once or more, or to administer. Only hashes are kept.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;

use super::{Done, corrupt, from_json, hash_of, parsed, seconds, time, to_json, to_value};
use crate::api::admin::{Role, Token, TokenCreate};
use crate::api::{Problem, ProblemCode};
use crate::types::{Label, Name, OverlayId, Protocol, Secret, Service, Timestamp};

/// Most things of one kind (labels, ports, namespaces, overlays) that a token may carry.
const LIST_MAX: usize = 64;

/// A token as the database knows it.
#[derive(Clone, Debug)]
pub(crate) struct TokenRecord {
    pub(crate) number: u32,
    pub(crate) public: Token,
    pub(crate) ports: BTreeMap<Name, Service>,
    pub(crate) overlay_ids: BTreeSet<OverlayId>,
    /// A SaP that serves every overlay, also later ones.
    pub(crate) all_overlays: bool,
    pub(crate) clear_underlay: bool,
}

/// Reads the column.
fn role_from(text: &str) -> Result<Role, Problem> {
    match text {
        "entity" => Ok(Role::Entity),
        "sap" => Ok(Role::Sap),
        "admin" => Ok(Role::Admin),
        "viewer" => Ok(Role::Viewer),
        _ => Err(corrupt("token role")),
    }
}

/// The word for people and for the column.
pub(crate) fn role_text(role: Role) -> &'static str {
    match role {
        Role::Entity => "entity",
        Role::Sap => "sap",
        Role::Admin => "admin",
        Role::Viewer => "viewer",
    }
}

type Row = (
    u32,
    String,
    bool,
    Option<String>,
    String,
    String,
    String,
    u32,
    u32,
    i64,
    i64,
    bool,
    bool,
    bool,
);

/// Makes a record of a row.
async fn record(conn: &mut SqliteConnection, row: Row) -> Result<TokenRecord, Problem> {
    let (
        id,
        role,
        all_overlays,
        name,
        namespaces,
        labels,
        ports,
        uses,
        used,
        created,
        expires,
        revoked,
        ephemeral,
        clear,
    ) = row;
    let overlays: Vec<(u32, String)> = sqlx::query_as(
        "SELECT o.id, o.name FROM token_overlays t JOIN overlays o ON o.id = t.overlay \
         WHERE t.token = ? ORDER BY o.name",
    )
    .bind(id)
    .fetch_all(&mut *conn)
    .await?;
    let public = Token {
        id: format!("t-{id}"),
        role: role_from(&role)?,
        overlays: overlays
            .iter()
            .map(|(_, name)| parsed(name, "overlay name"))
            .collect::<Result<_, _>>()?,
        name: name.map(|name| parsed(&name, "token name")).transpose()?,
        namespaces: from_json(&namespaces, "token")?,
        labels: from_json::<BTreeSet<Label>>(&labels, "token")?,
        used,
        uses,
        expires: time(expires),
        revoked,
        ephemeral,
        created: time(created),
    };
    Ok(TokenRecord {
        number: id,
        public,
        ports: from_json(&ports, "token")?,
        overlay_ids: overlays.into_iter().map(|(id, _)| OverlayId(id)).collect(),
        all_overlays,
        clear_underlay: clear,
    })
}

/// All tokens, newest first.
pub(crate) async fn list(conn: &mut SqliteConnection) -> Result<Vec<Token>, Problem> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, role, all_overlays, name, namespaces, labels, ports, uses, used, created, \
         expires, revoked, ephemeral, clear_underlay FROM tokens ORDER BY id DESC",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut tokens = Vec::with_capacity(rows.len());
    for row in rows {
        tokens.push(record(conn, row).await?.public);
    }
    Ok(tokens)
}

/// The token whose secret is `secret`, in whatever state.
pub(crate) async fn by_secret(
    conn: &mut SqliteConnection,
    secret: &Secret,
) -> Result<Option<TokenRecord>, Problem> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, role, all_overlays, name, namespaces, labels, ports, uses, used, created, \
         expires, revoked, ephemeral, clear_underlay FROM tokens WHERE hash = ?",
    )
    .bind(hash_of(secret).expose().as_slice())
    .fetch_optional(&mut *conn)
    .await?;
    match row {
        Some(row) => Ok(Some(record(conn, row).await?)),
        None => Ok(None),
    }
}

/// Checks what a token asks for, beside its overlays.
fn check(request: &TokenCreate) -> Result<(), Problem> {
    let usage = |what: &str, why: &str, fix: &str| {
        Err(Problem::new(ProblemCode::Usage, what).why(why).fix(fix))
    };
    let sizes = [
        request.overlays.len(),
        request.namespaces.len(),
        request.labels.len(),
        request.ports.len(),
    ];
    if sizes.iter().any(|&size| size > LIST_MAX) {
        return usage(
            "the token asks for too much",
            "a token carries at most 64 overlays, namespaces, labels or ports",
            "make several tokens",
        );
    }
    let keys: BTreeSet<&str> = request.labels.iter().map(|label| label.key.as_str()).collect();
    if keys.len() != request.labels.len() {
        return usage(
            "the token gives one label key two values",
            "an entity has one value for each label key",
            "leave one of the two out",
        );
    }
    let one_port = |service: &Service| match service {
        Service::Ports(Protocol::Tcp | Protocol::Udp | Protocol::Sctp, range) => {
            range.first == range.last
        }
        Service::Ports(Protocol::Icmp | Protocol::Number(_), _)
        | Service::Protocol(_)
        | Service::Named(..) => false,
    };
    if !request.ports.values().all(one_port) {
        return usage(
            "a named port must stand for one port",
            "a name that stands for a range or a protocol means nothing to a rule",
            "write it as --port NAME=tcp/8080",
        );
    }
    match request.role {
        Role::Entity => {
            if request.namespaces.len() > 1 {
                return usage(
                    "an entity lives in one namespace",
                    "the token names several",
                    "make one token for each namespace",
                );
            }
            if request.name.is_some() && request.uses != 1 {
                return usage(
                    "a token with a name can be used once",
                    "two entities cannot have one name",
                    "leave --uses out, or --name",
                );
            }
        }
        Role::Sap => {
            // Labels say its zone.
            if !(request.namespaces.is_empty() && request.ports.is_empty()) {
                return usage(
                    "a SaP has no namespace or ports",
                    "SaPs live in the namespace default",
                    "leave --namespace and --port out",
                );
            }
            if request.name.is_some() && request.uses != 1 {
                return usage(
                    "a token with a name can be used once",
                    "two SaPs cannot have one name",
                    "leave --uses out, or --name",
                );
            }
        }
        Role::Admin | Role::Viewer => {
            let alone = request.overlays.is_empty()
                && request.name.is_none()
                && request.labels.is_empty()
                && request.ports.is_empty()
                && !request.ephemeral
                && !request.clear_underlay;
            if !alone {
                return usage(
                    "an admin or viewer token takes --namespace and --expires only",
                    "nobody joins with it",
                    "leave the other options out",
                );
            }
            if request.role == Role::Viewer && !request.namespaces.is_empty() {
                return usage(
                    "a viewer token has no namespace",
                    "a viewer sees everything and changes nothing",
                    "leave --namespace out",
                );
            }
        }
    }
    Ok(())
}

/// Makes a token whose secret is `secret`.
pub(crate) async fn create(
    conn: &mut SqliteConnection,
    request: &TokenCreate,
    secret: &Secret,
    now: Timestamp,
) -> Result<Done<Token>, Problem> {
    check(request)?;
    let mut overlays = BTreeSet::new();
    for name in &request.overlays {
        overlays.insert(super::overlays::named(conn, name).await?.id);
    }
    let all_overlays = request.role == Role::Sap && overlays.is_empty();
    if request.role == Role::Entity && overlays.is_empty() {
        overlays.insert(sole_overlay(conn).await?);
    }
    let id: u32 = sqlx::query_scalar(
        "INSERT INTO tokens (hash, role, all_overlays, name, namespaces, labels, ports, uses, \
         created, expires, ephemeral, clear_underlay) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         RETURNING id",
    )
    .bind(hash_of(secret).expose().as_slice())
    .bind(role_text(request.role))
    .bind(all_overlays)
    .bind(request.name.as_ref().map(Name::as_str))
    .bind(to_json(&request.namespaces))
    .bind(to_json(&request.labels))
    .bind(to_json(&request.ports))
    .bind(request.uses)
    .bind(seconds(now))
    .bind(seconds(now.after(request.expires.0)))
    .bind(request.ephemeral)
    .bind(request.clear_underlay)
    .fetch_one(&mut *conn)
    .await?;
    for overlay in overlays {
        sqlx::query("INSERT INTO token_overlays (token, overlay) VALUES (?, ?)")
            .bind(id)
            .bind(overlay.0)
            .execute(&mut *conn)
            .await?;
    }
    let token = by_secret(conn, secret).await?.ok_or_else(|| corrupt("token"))?.public;
    Ok(Done {
        action: format!("token create {} ({})", token.id, role_text(token.role)),
        before: serde_json::Value::Null,
        after: to_value(&token),
        result: token,
    })
}

/// The overlay that is meant when none is named.
async fn sole_overlay(conn: &mut SqliteConnection) -> Result<OverlayId, Problem> {
    let all = super::overlays::list(conn).await?;
    if let [only] = all.as_slice() {
        return Ok(only.id);
    }
    if let Some(default) = all.iter().find(|overlay| overlay.name == Name::default()) {
        return Ok(default.id);
    }
    let names: Vec<&str> = all.iter().map(|overlay| overlay.name.as_str()).collect();
    let problem = if names.is_empty() {
        Problem::new(ProblemCode::NotFound, "there is no overlay to join")
            .fix("ovctl overlay create NAME")
    } else {
        Problem::new(ProblemCode::Usage, "which overlay shall the token join?")
            .why(format!("there are {}", names.join(", ")))
            .fix("name it: --overlay NAME")
    };
    Err(problem)
}

/// Revokes the token `t-7`. Who joined with it stays.
pub(crate) async fn revoke(conn: &mut SqliteConnection, id: &str) -> Result<Done<Token>, Problem> {
    let number = id.strip_prefix("t-").and_then(|digits| digits.parse::<u32>().ok());
    let row: Option<Row> = sqlx::query_as(
        "UPDATE tokens SET revoked = 1 WHERE id = ? RETURNING id, role, all_overlays, name, \
         namespaces, labels, ports, uses, used, created, expires, revoked, ephemeral, \
         clear_underlay",
    )
    .bind(number.ok_or_else(|| unknown(id))?)
    .fetch_optional(&mut *conn)
    .await?;
    let token = record(conn, row.ok_or_else(|| unknown(id))?).await?.public;
    Ok(Done {
        action: format!("token revoke {}", token.id),
        before: to_value(&token.id),
        after: to_value(&token),
        result: token,
    })
}

/// The problem of a token id that nobody has; `id` is shown escaped and cut.
fn unknown(id: &str) -> Problem {
    let shown: String = id.chars().take(40).flat_map(char::escape_default).collect();
    Problem::new(ProblemCode::NotFound, format!("there is no token {shown}"))
        .why("a token's id looks like t-7")
        .fix("ovctl token list")
}
