//! The world as policy sees it: overlays, nodes, rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::kubernetes::NetworkPolicy;
use super::span::NamedPorts;
use crate::api::Problem;
use crate::api::admin::Semantics;
use crate::api::table::{Action, PathHops};
use crate::types::{
    CidrBlock, EntityName, Label, LinkId, Name, NodeId, NodeKind, OverlayId, Prefix, Revision,
    RuleId, Secret, Selector, Service, Timestamp,
};

/// Intent and inventory at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// The newest revision.
    pub revision: Revision,
    /// Overlays by id.
    pub overlays: BTreeMap<OverlayId, OverlayFacts>,
    /// Entities and SaPs by id.
    pub nodes: BTreeMap<NodeId, NodeFacts>,
    /// Rules by id.
    pub rules: BTreeMap<RuleId, RuleFacts>,
    /// Links by (entity, SaP).
    pub links: BTreeMap<(NodeId, NodeId), (LinkId, Secret)>,
    /// What `group:NAME` means in an overlay: whoever one of the selectors means. Groups hold no groups.
    pub groups: BTreeMap<OverlayId, BTreeMap<Name, BTreeSet<BoundSelector>>>,
    /// What `service:NAME` means in an overlay: members that carry all of these labels.
    pub services: BTreeMap<OverlayId, BTreeMap<Name, BTreeSet<Label>>>,
    /// The labels of namespaces; one that is not here has none. All have Kubernetes'
    /// `kubernetes.io/metadata.name`, here or not.
    pub namespaces: BTreeMap<Name, BTreeSet<Label>>,
    /// NetworkPolicies by id ([`RuleId::network_policy`]).
    pub network_policies: BTreeMap<RuleId, NetworkPolicyFacts>,
    /// Paths that were set for single pairs, which go before those of rules: by overlay and the two ends,
    /// the lower id first, walked from there.
    pub paths: BTreeMap<(OverlayId, NodeId, NodeId), PathHops>,
}

impl World {
    /// What a group holds; nothing when it is gone.
    pub fn group(&self, overlay: OverlayId, name: &Name) -> impl Iterator<Item = &BoundSelector> {
        self.groups.get(&overlay).and_then(|groups| groups.get(name)).into_iter().flatten()
    }

    /// The labels that a service stands for; none when it is gone.
    #[must_use]
    pub fn service(&self, overlay: OverlayId, name: &Name) -> Option<&BTreeSet<Label>> {
        self.services.get(&overlay)?.get(name)
    }
}

/// One NetworkPolicy of one overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicyFacts {
    /// Its overlay.
    pub overlay: OverlayId,
    /// What it says.
    pub policy: NetworkPolicy,
}

/// One overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayFacts {
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
    /// What unspoken traffic means.
    pub semantics: Semantics,
    /// Whether refusals stay unanswered.
    pub silent: bool,
    /// Whether it is in audit mode: everything passes, and what would have been refused is recorded.
    /// Quarantine is enforced all the same.
    pub is_audit: bool,
}

/// One entity or SaP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Entity or SaP.
    pub kind: NodeKind,
    /// Its full name; SaPs are in the namespace `default`.
    pub name: EntityName,
    /// Its labels.
    pub labels: BTreeSet<Label>,
    /// Its named ports.
    pub ports: NamedPorts,
    /// Where it receives data packets, best first.
    pub endpoints: Vec<SocketAddr>,
    /// An entity's addresses by overlay; empty for a SaP.
    pub addresses: BTreeMap<OverlayId, IpAddr>,
    /// The overlays that a SaP serves; empty for an entity.
    pub serves: BTreeSet<OverlayId>,
    /// Whether an entity is in quarantine: nothing passes to or from it, open flows neither.
    pub is_quarantined: bool,
    /// An entity's round trips to SaPs, in microseconds, as [`super::Leg`] holds them.
    pub round_trips: BTreeMap<NodeId, u32>,
    /// How far a SaP is drained.
    pub drain: Drain,
}

/// How far a SaP is drained: first those who start flows leave it, then, when all have, those who reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// It carries traffic.
    #[default]
    No,
    /// Nothing new goes over it; replies do.
    Leaving,
    /// Nothing is sent to it; what comes from it is taken.
    Empty,
}

/// One policy statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleFacts {
    /// Its overlay.
    pub overlay: OverlayId,
    /// Allow or deny.
    pub action: Action,
    /// Who starts flows.
    pub from: BoundSelector,
    /// Who is talked to.
    pub to: BoundSelector,
    /// Protocols and ports; empty means all.
    pub services: Vec<Service>,
    /// Whether it holds in both directions.
    pub both: bool,
    /// The path it asks for: [`PathHops::Direct`] or [`PathHops::Via`].
    pub path: Option<PathHops>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// Whether it is for audit alone: an audit deny refuses nothing, an audit allow lets through what
    /// it covers where no enforced deny rule refuses it; what would have been refused is recorded.
    pub is_audit: bool,
    /// What its author calls it; results call it so, too.
    pub name: Option<String>,
}

/// Who and what is known by name, for selectors that are written.
pub trait Names {
    /// The entity of that name.
    ///
    /// # Errors
    ///
    /// When nobody bears it, with the nearest name.
    fn entity(&self, name: &EntityName) -> Result<NodeId, Problem>;

    /// Whether there is such a group.
    ///
    /// # Errors
    ///
    /// When there is none, with the nearest name.
    fn group(&self, name: &Name) -> Result<(), Problem>;

    /// Whether there is such a service.
    ///
    /// # Errors
    ///
    /// When there is none, with the nearest name.
    fn service(&self, name: &Name) -> Result<(), Problem>;
}

impl BoundSelector {
    /// Binds a selector to what it means now.
    ///
    /// # Errors
    ///
    /// For a name that `names` does not know.
    pub fn bind(selector: &Selector, names: &impl Names) -> Result<Self, Problem> {
        Ok(match selector {
            Selector::Any => Self::Any,
            Selector::Labels(labels) => Self::Labels(labels.clone()),
            Selector::Namespace(name) => Self::Namespace(name.clone()),
            Selector::Cidr(block) => Self::Cidr(block.clone()),
            Selector::Name(name) => Self::Node(names.entity(name)?, name.clone()),
            Selector::Group(name) => names.group(name).map(|()| Self::Group(name.clone()))?,
            Selector::Service(name) => names.service(name).map(|()| Self::Service(name.clone()))?,
        })
    }
}

/// A selector whose name is bound to an id, so that a later bearer of the name inherits nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundSelector {
    /// Every member of the overlay.
    Any,
    /// One entity, by the id it had when the rule was written; the name is for people. Selects nobody
    /// when that id is gone.
    Node(NodeId, EntityName),
    /// Members that carry all of these labels.
    Labels(BTreeSet<Label>),
    /// All members of one namespace.
    Namespace(Name),
    /// Whoever the group of that name holds at the moment; nobody when it is gone.
    Group(Name),
    /// Members that the service of that name means at the moment; nobody when it is gone.
    Service(Name),
    /// Addresses outside the overlay; in overlays of `kubernetes` semantics those of members too.
    Cidr(CidrBlock),
}

impl fmt::Display for BoundSelector {
    /// As people write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Node(_, name) => name.fmt(f),
            Self::Namespace(name) => write!(f, "namespace:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Cidr(block) => block.fmt(f),
            Self::Labels(labels) => {
                for (at, label) in labels.iter().enumerate() {
                    if at > 0 {
                        f.write_str(",")?;
                    }
                    label.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}
