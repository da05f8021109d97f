//! The table of one node: all that it needs to forward and to enforce, and nothing else.
//!
//! Rules name sets of members, not pairs, so that a SaP's table grows with rules and entities. The
//! sets in an entity's table are cut down to what concerns it. Lists are sorted, so that the same
//! intent gives the same bytes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Shared;
use crate::types::{
    ApiVersion, AuthorizationKey, EntityName, Generation, Incarnation, KeyVersion, LinkId, Name,
    NodeId, NodeKind, OverlayId, Prefix, Revision, RuleId, Secret, Serial, Service, Tier,
    Timestamp,
};

/// A table as it is sent, kept on disk, and acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeTable {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The life of the server's database that counts `serial`.
    pub incarnation: Incarnation,
    /// Former lives of it whose tables this one may replace, as an operator accepted; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub succeeds: Vec<Incarnation>,
    /// Grows when `body` changes.
    pub serial: Serial,
    /// The revision of the policy that `body` was compiled from.
    pub revision: Revision,
    /// The content.
    pub body: TableBody,
}

/// What a table says; the same bytes as long as nothing that concerns the node changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableBody {
    /// Whose table it is.
    pub node: TableNode,
    /// The SaPs that this node exchanges packets with: for an entity those of its overlays; for a SaP its
    /// neighbours in chains. Sorted by id.
    pub saps: Vec<SapRow>,
    /// Links for control messages: for an entity one per SaP in `saps`; for a SaP one per entity it serves.
    /// Sorted by id.
    pub links: Vec<LinkRow>,
    /// The overlays this node is in, sorted by id.
    pub overlays: Vec<OverlayTable>,
}

/// Whom a node exchanges wrapped packets with.
#[derive(Clone, Copy, Debug)]
pub enum Hop<'a> {
    /// A SaP.
    Sap(&'a SapRow),
    /// The other end of a direct pair.
    Peer(&'a MemberRow),
}

impl fmt::Display for Hop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sap(sap) => write!(f, "sap {}", sap.name),
            Self::Peer(member) => member.name.fmt(f),
        }
    }
}

impl TableBody {
    /// The members of its overlays, without the node itself.
    pub fn peers(&self) -> impl Iterator<Item = &MemberRow> {
        let members = self.overlays.iter().flat_map(|overlay| &overlay.members);
        members.map(|member| &**member).filter(|member| member.id != self.node.id)
    }

    /// Where packets of the node go first: SaPs, then peers whose endpoints it knows, each with its first
    /// endpoint.
    pub fn hops(&self) -> impl Iterator<Item = (Hop<'_>, SocketAddr)> {
        let saps = self.saps.iter().map(|sap| (Hop::Sap(sap), sap.endpoints.first()));
        let peers = self.peers().map(|peer| (Hop::Peer(peer), peer.endpoints.first()));
        saps.chain(peers).filter_map(|(hop, endpoint)| Some((hop, *endpoint?)))
    }
}

/// The owner of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableNode {
    /// Its id for life.
    pub id: NodeId,
    /// Entity or SaP.
    pub kind: NodeKind,
    /// Its name.
    pub name: EntityName,
    /// The ports that it was given names for, sorted; for its guard. None at a SaP.
    #[serde(default)]
    pub ports: Vec<Service>,
}

/// A SaP that this node exchanges packets with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SapRow {
    /// The SaP.
    pub id: NodeId,
    /// Its name, for people.
    pub name: Name,
    /// Where it listens, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// One (entity, SaP) link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRow {
    /// Stands in the key field of control messages.
    pub id: LinkId,
    /// The node at the other end.
    pub peer: NodeId,
    /// The MAC key.
    pub secret: Secret,
}

/// What a node needs of one overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverlayTable {
    /// The overlay.
    pub id: OverlayId,
    /// Its name.
    pub name: Name,
    /// Its address range.
    pub cidr: Prefix,
    /// This node's own address in it; none at a SaP that only forwards.
    pub address: Option<IpAddr>,
    /// Whether refusals stay unanswered (`overlay create --silent`).
    pub silent: bool,
    /// Whether a flow passes of which no rule speaks and neither end of which is isolated: true in
    /// overlays of `kubernetes` semantics.
    pub unspoken_passes: bool,
    /// The members that this table speaks of, this node included, sorted by id. Rows below name
    /// them by their index here. Tables of one overlay share them.
    pub members: Vec<Shared<MemberRow>>,
    /// Sets of members: sorted indexes into `members`. Rules and paths name them by index.
    pub sets: Vec<Vec<u32>>,
    /// Rules, sorted by id, then from, then to.
    pub rules: Vec<RuleRow>,
    /// The members that NetworkPolicies isolate, sorted by member.
    pub isolated: Vec<IsolationRow>,
    /// Pairs whose path is not the default one. Where several rows speak of a pair, the first one counts
    /// (only after a label change made two rules disagree; in an entity's table never).
    pub paths: Vec<PathRow>,
    /// The SaPs of every other pair, the preferred one first.
    pub default_saps: Vec<NodeId>,
    /// At an entity: the members with which it prefers the default SaPs in another order. Each is in one
    /// row at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<PreferenceRow>,
    /// The default SaPs to which nothing is sent, because they are drained; what comes from them is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty_saps: Vec<NodeId>,
    /// The destination's halves of keys (`Kb`): at a SaP those of the destinations it serves, at an entity
    /// its own. Sorted by member.
    pub destination_keys: Vec<DestinationKeyRow>,
    /// Pairs whose own generation is not 0, towards a destination in `destination_keys`.
    pub pair_generations: Vec<PairGenerationRow>,
    /// At an entity: what it may open to addresses outside, for its guard. Empty at a SaP.
    #[serde(default)]
    pub outside: OutsideTable,
    /// At an entity: the key to stamp for each destination that it may send to (to open a flow or to
    /// reply). Sorted by member. Empty at a SaP.
    pub send_keys: Vec<SendKeyRow>,
    /// At an entity: the services that some of `members` are instances of, for its resolver. Sorted by
    /// name. Empty at a SaP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceRow>,
}

/// A service: a name for those of the members that it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its name.
    pub name: Name,
    /// Index of the set of its instances; never empty.
    pub members: u32,
    /// The ports that instances gave names to, sorted by name and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePortRow>,
}

/// A named port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortRow {
    /// Its name.
    pub name: Name,
    /// Always [`Service::Ports`].
    pub port: Service,
    /// Index of the set of instances that have it.
    pub members: u32,
}

/// A member of an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRow {
    /// The entity.
    pub id: NodeId,
    /// Its name, for people.
    pub name: EntityName,
    /// Its address in the overlay.
    pub address: IpAddr,
    /// Where it can be reached on the underlay, best first. Filled at SaPs and, for direct pairs, at the
    /// other end; empty elsewhere.
    pub endpoints: Vec<SocketAddr>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets flows start.
    Allow,
    /// Refuses to let flows start, before any allow.
    Deny,
}

impl From<Action> for Tier {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

/// One direction of one rule, or one item of a NetworkPolicy's `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleRow {
    /// The rule or NetworkPolicy; `--both` and cutting to size make several rows of one rule.
    pub id: RuleId,
    /// What it does, and when it is asked.
    pub tier: Tier,
    /// Index of the set that starts flows.
    pub from: u32,
    /// Index of the set that is talked to.
    pub to: u32,
    /// Protocols and destination ports; empty means all. Never [`Service::Named`].
    pub services: Vec<Service>,
    /// When the rule ends; nodes enforce it themselves.
    pub not_after: Option<Timestamp>,
}

/// A member that NetworkPolicies isolate. Flows of an isolated direction pass where a row of that side
/// covers them; egress and ingress are two lists of rows and never multiplied out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IsolationRow {
    /// Index in `members`.
    pub member: u32,
    /// The first of the policies that isolate the flows it starts; none when none does.
    pub egress: Option<RuleId>,
    /// The first of the policies that isolate the flows that others start to it.
    pub ingress: Option<RuleId>,
}

/// What an entity may open to addresses that belong to no member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutsideTable {
    /// Whether what no row speaks of passes: no NetworkPolicy isolates the flows that it starts, in an
    /// overlay of `kubernetes` semantics.
    pub unspoken_passes: bool,
    /// Sorted by rule, in the order that the rule names them.
    pub rows: Vec<OutsideRow>,
}

/// What a rule, or an item of a NetworkPolicy's `egress`, says of addresses outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutsideRow {
    /// The rule or NetworkPolicy.
    pub id: RuleId,
    /// What it does, and when it is asked.
    pub tier: Tier,
    /// The addresses; none means all.
    pub cidr: Option<Prefix>,
    /// What is cut out of `cidr`.
    pub except: Vec<Prefix>,
    /// Protocols and ports; empty means all. Never [`Service::Named`]: the outside has no names for ports.
    pub services: Vec<Service>,
    /// When the rule ends; nodes enforce it themselves.
    pub not_after: Option<Timestamp>,
}

/// The path of the pairs between two sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRow {
    /// One end: index of a set.
    pub from: u32,
    /// The other end: index of a set.
    pub to: u32,
    /// The hops, walked from `from` to `to`; the other direction walks them backwards. Where both
    /// members of a pair are in both sets, the member with the lower id counts as `from`.
    pub hops: PathHops,
}

/// An order of the default SaPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreferenceRow {
    /// Index of the set of members.
    pub with: u32,
    /// The default SaPs, the preferred one first.
    pub saps: Vec<NodeId>,
}

/// The hops between two members.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathHops {
    /// None: the ends talk directly.
    Direct,
    /// These SaPs, in order; never empty.
    Via(Vec<NodeId>),
    /// Not over this SaP. Only in tables of SaPs.
    Elsewhere,
}

/// What a destination's keys are derived from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationKeyRow {
    /// Index of the destination in `members`.
    pub to: u32,
    /// One `Kb`, or two during a rotation, oldest first.
    pub accept: Vec<DestinationKey>,
    /// When the older of two ends, once nobody stamps it; nodes enforce it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_until: Option<Timestamp>,
}

/// One `Kb` with its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationKey {
    /// What it was derived from.
    pub version: KeyVersion,
    /// `HMAC-SHA-256(epoch secret, …)`, design section 5.
    pub secret: Secret,
}

/// A pair that was rotated alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairGenerationRow {
    /// Index of the source in `members`.
    pub from: u32,
    /// Index of the destination in `members`.
    pub to: u32,
    /// One generation, or two during a rotation, oldest first.
    pub accept: Vec<Generation>,
    /// As in [`DestinationKeyRow`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_until: Option<Timestamp>,
}

/// The key to stamp for one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendKeyRow {
    /// Index of the destination in `members`.
    pub to: u32,
    /// The key.
    pub key: AuthorizationKey,
}
