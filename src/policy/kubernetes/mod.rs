//! NetworkPolicy (`networking.k8s.io/v1`): read whole, refused where Kubernetes would refuse, and
//! judged as the Kubernetes documentation says.
//!
//! What is read here is never changed into something near it: a policy that is not understood in
//! every field is an error that names it, because half a policy is an open door.

mod isolation;
mod manifest;
mod read;
#[cfg(test)]
mod tests;

pub(super) use isolation::METADATA_NAME;
pub use isolation::selected;
pub(super) use read::read;

use super::expression::LabelSelector;
use crate::types::{CidrBlock, Name, Service};

/// One NetworkPolicy. A server keeps its [`NetworkPolicy::manifest`] and reads that again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace, where the pods are that it selects.
    pub namespace: Name,
    /// Its name: a DNS subdomain, unique in the namespace.
    pub name: String,
    /// The pods that it isolates; empty selects all of the namespace.
    pub pods: LabelSelector,
    /// Who may start flows to them; none when it does not speak of that direction.
    pub ingress: Option<Vec<PolicyRule>>,
    /// To whom they may start flows; none when it does not speak of that direction.
    pub egress: Option<Vec<PolicyRule>>,
}

impl NetworkPolicy {
    /// `namespace/name`, also for the namespace `default`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its rules of one direction; none when it does not speak of that direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Flows that others start.
    Ingress,
    /// Flows that the pod starts.
    Egress,
}

impl Direction {
    /// As a NetworkPolicy spells the list of its rules.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// One item of `ingress` or `egress`: any of the peers, on any of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// `from` or `to`; empty means everybody, the outside included.
    pub peers: Vec<Peer>,
    /// Empty means every protocol.
    pub ports: Vec<Service>,
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods {
        /// The namespaces they are in; none means the policy's own.
        namespaces: Option<LabelSelector>,
        /// Their labels; empty means all.
        pods: LabelSelector,
    },
    /// Addresses.
    Block(CidrBlock),
}
