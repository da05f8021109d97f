//! What `ovctl` says to the server.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`ServerStatus`] |
//! | `GET /v1/overlays`, `GET /v1/overlays/{name}` | | [`List`] of [`Overlay`], [`Overlay`] |
//! | `POST /v1/overlays`, `DELETE /v1/overlays/{name}` | [`OverlayCreate`], none | [`Change`] of [`Overlay`] |
//! | `GET /v1/tokens` | | [`List`] of [`Token`] |
//! | `POST /v1/tokens` | [`TokenCreate`] | [`Change`] of [`CreatedToken`] |
//! | `DELETE /v1/tokens/{id}` | | [`Change`] of [`Token`] |
//! | `GET /v1/entities[?overlay=O]`, `GET /v1/entities/{namespace}/{name}` | | [`List`] of [`Entity`], [`Entity`] |
//! | `DELETE /v1/entities/{namespace}/{name}`, `POST …/labels` | none, [`LabelChange`] | [`Change`] of [`Entity`] |
//! | `GET /v1/saps`, `GET /v1/saps/{name}` | | [`List`] of [`Sap`], [`Sap`] |
//! | `DELETE /v1/saps/{name}` | | [`Change`] of [`Sap`] |
//! | `GET /v1/rules[?overlay=O]`, `GET /v1/rules/{id}` | | [`List`] of [`Rule`], [`Rule`] |
//! | `POST /v1/rules` | [`RuleCreate`] | [`Change`] of [`Rule`] |
//! | `POST /v1/rules/revoke` | [`RuleRevoke`] | [`Change`] of `Vec<`[`Rule`]`>` |
//! | `POST /v1/policy/can` | [`CanQuestion`] | [`CanAnswer`] |
//! | `GET /v1/keys[?overlay=O]` | | [`List`] of [`KeyStatus`] |
//! | `POST /v1/keys/rotate` | [`KeyRotate`] | [`Change`] of `Vec<`[`KeyStatus`]`>` |
//! | `GET /v1/audit[?limit=N]` | | [`List`] of [`AuditRecord`], newest first |
//!
//! Every change takes the query parameters of [`ChangeOptions`]. Errors are a [`super::Problem`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use super::can::{CanAnswer, CanQuestion, NearRule, PairVerdict, PathNames};
pub use super::key::{KeyRotate, KeyStatus};
use super::table::Action;
use crate::types::{
    ApiVersion, EntityName, HumanDuration, Label, Name, NodeId, NodeKind, OverlayId, Prefix,
    Revision, RuleId, Selector, Serial, Service, Timestamp,
};

/// A list of things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The things, in a stable order.
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// A list of `items`.
    pub fn new(items: Vec<T>) -> Self {
        Self { api_version: ApiVersion::V1, items }
    }
}

/// How a change is to be made: query parameters of every change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangeOptions {
    /// Says what would happen, and changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// Refuses (409) unless this is the newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<Revision>,
    /// Goes on though it cuts the way that the request itself came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_risk: Option<bool>,
    /// How long to wait for enforcement; none means not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<HumanDuration>,
}

/// The outcome of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change<T> {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The revision that the change made; the newest one for a dry run.
    pub revision: Revision,
    /// Whether nothing was changed because only asked.
    pub dry_run: bool,
    /// The thing as it is afterwards (or would be, or was before it was deleted).
    pub result: T,
    /// Whether nodes enforce it.
    pub enforcement: Enforcement,
}

/// How far a change has come to the nodes that it concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforcement {
    /// For each pair touched, every SaP on its list or the destination has acknowledged. True also
    /// when nobody is concerned, or when it was not asked to wait (`waited` is false then).
    pub enforced: bool,
    /// Whether the server was asked to wait.
    pub waited: bool,
    /// How long that took, in milliseconds.
    pub waited_millis: u64,
    /// How many of the nodes whose table changed have acknowledged it.
    pub acknowledged: u32,
    /// How many nodes' tables changed.
    pub concerned: u32,
    /// The SaPs among those that acknowledged, by name.
    pub enforced_by: Vec<String>,
    /// Who has not acknowledged.
    pub pending: Vec<Pending>,
}

/// A node that has not acknowledged a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The node's name.
    pub node: String,
    /// Why, in words.
    pub why: String,
}

/// How an overlay treats what no rule speaks of; fixed when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Semantics {
    /// Nothing may talk until a rule says so.
    #[default]
    DefaultDeny,
    /// Entities that no policy selects are open in that direction.
    Kubernetes,
}

/// Makes an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverlayCreate {
    /// Its name.
    pub name: Name,
    /// Its range; none for a random /16 of 100.64.0.0/10.
    pub cidr: Option<Prefix>,
    /// What unspoken traffic means.
    #[serde(default)]
    pub semantics: Semantics,
    /// Whether refusals stay unanswered.
    #[serde(default)]
    pub silent: bool,
}

/// An overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// Its id.
    pub id: OverlayId,
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
    /// What unspoken traffic means.
    pub semantics: Semantics,
    /// Whether refusals stay unanswered.
    pub silent: bool,
    /// Whether it is in audit mode: what would be refused passes and is recorded.
    #[serde(default)]
    pub audit: bool,
    /// When it was made.
    pub created: Timestamp,
    /// How many entities are members.
    pub members: u64,
    /// How many rules it has.
    pub rules: u64,
}

/// What a token entitles to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Joins an entity.
    Entity,
    /// Joins a SaP.
    Sap,
    /// Changes things over HTTPS.
    Admin,
    /// Reads things over HTTPS.
    Viewer,
}

impl Role {
    /// What a join token of this role admits; none for admin and viewer.
    #[must_use]
    pub fn joins_as(self) -> Option<NodeKind> {
        match self {
            Self::Entity => Some(NodeKind::Entity),
            Self::Sap => Some(NodeKind::Sap),
            Self::Admin | Self::Viewer => None,
        }
    }
}

/// Makes a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenCreate {
    /// What it entitles to.
    pub role: Role,
    /// Overlays to join; empty means the only one, or `default`. SaPs serve the overlays named here, or
    /// all when none is.
    #[serde(default)]
    pub overlays: Vec<Name>,
    /// The name that the joiner gets.
    #[serde(default)]
    pub name: Option<Name>,
    /// The namespace that the joiner gets; for admins: the namespaces they may change.
    #[serde(default)]
    pub namespaces: Vec<Name>,
    /// The labels that the joiner gets.
    #[serde(default)]
    pub labels: BTreeSet<Label>,
    /// Named ports, such as `http` to `tcp/8080`.
    #[serde(default)]
    pub ports: BTreeMap<Name, Service>,
    /// How often it can be used to join; 0 means without limit.
    pub uses: u32,
    /// How long it can be used.
    pub expires: HumanDuration,
    /// Whether the entity is deleted when it leaves.
    #[serde(default)]
    pub ephemeral: bool,
    /// Whether clear hops over an underlay that is not declared managed are accepted.
    #[serde(default)]
    pub clear_underlay: bool,
}

/// A token just made: the only time its text is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedToken {
    /// `ovt1.…` for joining; `ova1.SECRET.PIN` for admin and viewer, of which the secret is the bearer
    /// and the pin tells the client the server.
    pub text: String,
    /// What the list shows of it.
    pub token: Token,
}

/// What is known of a token; never its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// `t-7`.
    pub id: String,
    /// What it entitles to.
    pub role: Role,
    /// Overlays it joins.
    pub overlays: Vec<Name>,
    /// The name it gives.
    pub name: Option<Name>,
    /// The namespace it gives, or those an admin may change.
    pub namespaces: Vec<Name>,
    /// The labels it gives.
    pub labels: BTreeSet<Label>,
    /// How often it was used.
    pub used: u32,
    /// How often it can be used; 0 means without limit.
    pub uses: u32,
    /// Until when.
    pub expires: Timestamp,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether the entity goes when it leaves.
    pub ephemeral: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// One overlay address of an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The overlay.
    pub overlay: Name,
    /// The address.
    pub address: IpAddr,
}

/// What a node is doing, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeHealth {
    /// Whether it holds a connection for its next table.
    pub online: bool,
    /// When it was last heard of.
    pub seen: Option<Timestamp>,
    /// The serial of its newest table.
    pub serial: Serial,
    /// The serial that it acknowledged.
    pub acknowledged: Serial,
    /// Its program's version.
    pub version: String,
    /// What it complains of.
    pub problems: Vec<String>,
}

/// An entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entity {
    /// Its id for life.
    pub id: NodeId,
    /// Its full name.
    pub name: EntityName,
    /// Its labels.
    pub labels: BTreeSet<Label>,
    /// Its named ports.
    pub ports: BTreeMap<Name, Service>,
    /// Its addresses.
    pub members: Vec<Member>,
    /// Where it receives data packets.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it goes when it leaves.
    pub ephemeral: bool,
    /// Whether it is in quarantine: nothing passes to or from it.
    #[serde(default)]
    pub quarantined: bool,
    /// When it joined.
    pub joined: Timestamp,
    /// What it is doing.
    pub health: NodeHealth,
}

/// Turns something on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Switch {
    /// On, or off.
    pub on: bool,
}

/// Changes labels: sets those given, then removes keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelChange {
    /// Labels to set.
    #[serde(default)]
    pub set: BTreeSet<Label>,
    /// Keys to remove.
    #[serde(default)]
    pub remove: BTreeSet<String>,
}

/// A SaP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sap {
    /// Its id for life.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// The overlays it serves.
    pub overlays: Vec<Name>,
    /// Where it receives data packets.
    pub endpoints: Vec<SocketAddr>,
    /// Its labels; `zone=NAME` says where it stands.
    #[serde(default)]
    pub labels: BTreeSet<Label>,
    /// How far it is drained; none when it is not.
    #[serde(default)]
    pub drain: Option<DrainState>,
    /// When it joined.
    pub joined: Timestamp,
    /// What it is doing.
    pub health: NodeHealth,
}

/// How far a SaP is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainState {
    /// Senders are leaving it.
    Leaving,
    /// Nothing is sent to it any more, as far as nodes have acknowledged.
    Drained,
}

/// The path a rule asks for, by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RulePath {
    /// `--direct`
    Direct,
    /// `--via sap1,sap2`: never empty, no SaP twice.
    Via(Vec<Name>),
}

/// Makes a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleCreate {
    /// The overlay; none for the only one that both ends share.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// Allow or deny.
    pub action: Action,
    /// Who starts flows.
    pub from: Selector,
    /// Who is talked to.
    pub to: Selector,
    /// Protocols and ports; empty means all.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Whether the rule holds in both directions.
    #[serde(default)]
    pub both: bool,
    /// The path of every pair the rule covers.
    #[serde(default)]
    pub path: Option<RulePath>,
    /// How long the rule holds.
    #[serde(default)]
    pub expires: Option<HumanDuration>,
    /// Why the rule is there.
    #[serde(default)]
    pub reason: Option<String>,
    /// What to call it.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is recorded alone, and enforces nothing.
    #[serde(default)]
    pub audit: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its id.
    pub id: RuleId,
    /// What its author calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is recorded alone, and enforces nothing.
    #[serde(default)]
    pub audit: bool,
    /// Its overlay.
    pub overlay: Name,
    /// Allow or deny.
    pub action: Action,
    /// Who starts flows.
    pub from: Selector,
    /// Who is talked to.
    pub to: Selector,
    /// Protocols and ports; empty means all.
    pub services: Vec<Service>,
    /// Whether it holds in both directions.
    pub both: bool,
    /// The path it asks for.
    pub path: Option<RulePath>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// Why it is there.
    pub reason: Option<String>,
    /// The revision that made it.
    pub revision: Revision,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Where it stood in the policy file that it came by: `FILE:LINE`.
    #[serde(default)]
    pub place: Option<String>,
    /// Named entities that are gone: the rule does nothing for them.
    pub dangling: Vec<EntityName>,
    /// How many ordered pairs of members it covers at the moment.
    pub pairs: u64,
    /// What it decided; none when it never did.
    pub hits: Option<super::flows::RuleHits>,
}

/// Revokes a rule by id, or all rules between two selectors as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleRevoke {
    /// By id.
    #[serde(default)]
    pub rule: Option<RuleId>,
    /// By ends: the selector that starts flows.
    #[serde(default)]
    pub from: Option<Selector>,
    /// By ends: the selector that is talked to.
    #[serde(default)]
    pub to: Option<Selector>,
    /// The overlay; none for any.
    #[serde(default)]
    pub overlay: Option<Name>,
}

/// One change that an operator made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// The revision that it made.
    pub revision: Revision,
    /// When.
    pub at: Timestamp,
    /// Who: `uid 0 (unix socket)`, `token t-3`.
    pub actor: String,
    /// What, such as `rule create r-18`.
    pub action: String,
    /// The thing before; null when it is new.
    pub before: serde_json::Value,
    /// The thing after; null when it is gone.
    pub after: serde_json::Value,
}

/// The state of everything in one screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The server's program version.
    pub version: String,
    /// When it started.
    pub started: Timestamp,
    /// Where it listens, and the URLs that tokens carry.
    pub urls: Vec<String>,
    /// The newest revision.
    pub revision: Revision,
    /// The overlays.
    pub overlays: Vec<Overlay>,
    /// Entities that are online, and all.
    pub entities: Counted,
    /// SaPs that are online, and all.
    pub saps: Counted,
    /// Nodes whose table is not the newest.
    pub behind: Vec<Pending>,
    /// Rotations under way.
    pub rotations: Vec<KeyStatus>,
    /// Changes of policy that are undone unless they are confirmed.
    #[serde(default)]
    pub unconfirmed: Vec<super::policy::Unconfirmed>,
    /// What an operator should look at, each a line for people.
    pub problems: Vec<String>,
}

/// How many, and how many of them are online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// Online.
    pub online: u64,
    /// All.
    pub total: u64,
}
