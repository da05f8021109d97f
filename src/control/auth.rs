//! Who asks: the unix socket's user, an admin's or viewer's token, or a node's credential.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::listen::{Origin, Way};
use super::routes::Refusal;
use super::server::{Server, now};
use super::speaker::Process;
use super::store::{self, nodes, tokens};
use crate::api::admin::{Role, RuleCreate};
use crate::api::node::INSTANCE_HEADER;
use crate::api::{Problem, ProblemCode};
use crate::types::{Name, NodeId, Secret, Selector};

/// Who may read what an operator reads.
#[derive(Clone, Debug)]
pub(crate) struct Viewer;

/// Who may change things.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// For audit records.
    pub(crate) actor: String,
    /// None for everything, else only rules that start or end in one of these.
    namespaces: Option<BTreeSet<Name>>,
    /// The two ends of the connection that it asks by; none for the unix socket.
    pub(crate) way: Option<Way>,
}

/// A node that reads its own table.
#[derive(Clone, Debug)]
pub(crate) struct Node(pub(crate) NodeId);

/// The process that asks, where it says which one it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks(pub(crate) Option<Process>);

enum Caller {
    Admin(Admin),
    Viewer,
    Node(NodeId),
}

impl Admin {
    /// The server itself.
    pub(crate) fn itself(actor: &str) -> Self {
        Self { actor: actor.to_owned(), namespaces: None, way: None }
    }

    /// Refuses an admin of some namespaces, of which this is none.
    pub(crate) fn may_change_namespace(&self, namespace: &Name) -> Result<(), Refusal> {
        match &self.namespaces {
            Some(namespaces) if !namespaces.contains(namespace) => self.everywhere(),
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses an admin of some namespaces.
    pub(crate) fn everywhere(&self) -> Result<(), Refusal> {
        match &self.namespaces {
            None => Ok(()),
            Some(namespaces) => Err(Refusal::forbidden(
                Problem::new(ProblemCode::Unauthorized, "this token may not change that")
                    .why(format!("it may change rules of {} only", listed(namespaces)))
                    .fix("ask an admin without --namespace"),
            )),
        }
    }

    /// Refuses an admin of some namespaces unless the rule starts or ends there.
    pub(crate) fn may_change(&self, from: &Selector, to: &Selector) -> Result<(), Refusal> {
        let Some(namespaces) = &self.namespaces else { return Ok(()) };
        let is_inside = |end: &Selector| match end {
            Selector::Name(name) => namespaces.contains(&name.namespace),
            Selector::Namespace(name) => namespaces.contains(name),
            // These reach into other namespaces.
            Selector::Any
            | Selector::Labels(_)
            | Selector::Group(_)
            | Selector::Service(_)
            | Selector::Cidr(_) => false,
        };
        if is_inside(from) || is_inside(to) {
            return Ok(());
        }
        Err(Refusal::forbidden(
            Problem::new(
                ProblemCode::Unauthorized,
                format!("this token may not change rules from {from} to {to}"),
            )
            .why(format!("neither end lies in {}", listed(namespaces)))
            .fix("name an entity there, or namespace:NAME"),
        ))
    }

    /// The same for a new rule.
    pub(crate) fn may_create(&self, rule: &RuleCreate) -> Result<(), Refusal> {
        self.may_change(&rule.from, &rule.to)
    }
}

fn listed(namespaces: &BTreeSet<Name>) -> String {
    namespaces.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// The bearer in the header, if there is one.
fn bearer(parts: &Parts) -> Option<&str> {
    parts.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// One answer for every credential that is not good.
fn unauthorized() -> Refusal {
    Problem::new(ProblemCode::Unauthorized, "the server does not know who asks")
        .why("the token or credential is missing, unknown, revoked or expired")
        .fix("admins: --token-file FILE with a token of ovctl token create --role admin; nodes: join again")
        .into()
}

async fn caller(parts: &Parts, server: &Server) -> Result<Caller, Refusal> {
    let Some(text) = bearer(parts) else {
        return match parts.extensions.get::<Origin>() {
            Some(Origin::Unix { uid }) => Ok(Caller::Admin(Admin {
                actor: format!("uid {uid} (unix socket)"),
                namespaces: None,
                way: None,
            })),
            Some(Origin::Tls { .. }) | None => Err(unauthorized()),
        };
    };
    let secret = Secret::try_from(text.to_owned()).map_err(|_| unauthorized())?;
    let caller = bearer_of(&secret, parts, server).await?;
    if let Some(Origin::Tls { slot, .. }) = parts.extensions.get::<Origin>() {
        slot.becomes_known();
    }
    Ok(caller)
}

/// Whose token or credential it is.
async fn bearer_of(secret: &Secret, parts: &Parts, server: &Server) -> Result<Caller, Refusal> {
    let mut conn = server.store.read().await?;
    if let Some(id) = nodes::by_credential(&mut conn, &store::hash_of(secret)).await? {
        return Ok(Caller::Node(id));
    }
    let token = tokens::by_secret(&mut conn, secret).await?.ok_or_else(unauthorized)?.public;
    if token.revoked || token.expires <= now() {
        return Err(unauthorized());
    }
    let namespaces = (!token.namespaces.is_empty()).then(|| token.namespaces.into_iter().collect());
    match token.role {
        Role::Admin => {
            let way = match parts.extensions.get::<Origin>() {
                Some(Origin::Tls { way, .. }) => *way,
                Some(Origin::Unix { .. }) | None => None,
            };
            Ok(Caller::Admin(Admin { actor: format!("token {}", token.id), namespaces, way }))
        }
        Role::Viewer => Ok(Caller::Viewer),
        // A join token joins and does nothing else.
        Role::Entity | Role::Sap => Err(unauthorized()),
    }
}

fn not_for_nodes() -> Refusal {
    Refusal::forbidden(
        Problem::new(ProblemCode::Unauthorized, "a node may read its own table and nothing else")
            .fix("ask with an admin's or viewer's token"),
    )
}

impl FromRequestParts<Arc<Server>> for Viewer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Refusal> {
        match caller(parts, server).await? {
            Caller::Admin(_) | Caller::Viewer => Ok(Self),
            Caller::Node(_) => Err(not_for_nodes()),
        }
    }
}

impl FromRequestParts<Arc<Server>> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Refusal> {
        match caller(parts, server).await? {
            Caller::Admin(admin) => Ok(admin),
            Caller::Viewer => Err(Refusal::forbidden(
                Problem::new(ProblemCode::Unauthorized, "a viewer's token changes nothing")
                    .fix("ask with an admin's token: ovctl token create --role admin"),
            )),
            Caller::Node(_) => Err(not_for_nodes()),
        }
    }
}

impl FromRequestParts<Arc<Server>> for Node {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Refusal> {
        let caller = caller(parts, server).await.inspect_err(|_| {
            if let Some(secret) = bearer(parts).and_then(|text| text.to_owned().try_into().ok()) {
                server.live().note_stranger(&store::hash_of(&secret));
            }
        })?;
        match caller {
            Caller::Node(id) => Ok(Self(id)),
            Caller::Admin(_) | Caller::Viewer => Err(Refusal::forbidden(
                Problem::new(ProblemCode::Unauthorized, "only a node may ask for its table")
                    .fix("ovctl entity show NAME, or ovd status on the node"),
            )),
        }
    }
}

impl FromRequestParts<Arc<Server>> for Asks {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Server>) -> Result<Self, Refusal> {
        let Some(value) = parts.headers.get(INSTANCE_HEADER) else { return Ok(Self(None)) };
        let instance = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Problem::new(ProblemCode::Usage, format!("the header {INSTANCE_HEADER} makes no sense"))
                .why("an instance is 16 hex digits")
                .fix("use the same ovmesh version on the server and on the nodes")
        })?;
        let from = match parts.extensions.get::<Origin>() {
            Some(Origin::Tls { way, .. }) => way.map(|way| way.from),
            Some(Origin::Unix { .. }) | None => None,
        };
        Ok(Self(Some(Process { instance, from })))
    }
}
