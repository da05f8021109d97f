//! Whom a NetworkPolicy selects, and whom its peers mean.

use super::{NetworkPolicy, Peer};
use crate::api::admin::Semantics;
use crate::policy::expression::LabelSelector;
use crate::policy::select::{is_member, member_address};
use crate::policy::{NodeFacts, World};
use crate::types::{EntityName, Label, Name, NodeId, OverlayId};

/// The label that names a namespace: the Kubernetes API server sets it on every one.
pub(in crate::policy) const METADATA_NAME: &str = "kubernetes.io/metadata.name";

impl NetworkPolicy {
    /// Whether the policy isolates this member.
    pub(in crate::policy) fn selects(&self, facts: &NodeFacts) -> bool {
        facts.name.namespace == self.namespace && self.pods.matches(&facts.labels)
    }

    /// Whether a peer of the policy means this member. An `ipBlock` means members by their addresses in
    /// overlays of `kubernetes` semantics alone, as every CIDR does.
    pub(in crate::policy) fn means(
        &self,
        world: &World,
        overlay: OverlayId,
        peer: &Peer,
        facts: &NodeFacts,
    ) -> bool {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let namespace = &facts.name.namespace;
                let is_there = match namespaces {
                    None => *namespace == self.namespace,
                    Some(selector) => matches_namespace(world, selector, namespace),
                };
                is_there && pods.matches(&facts.labels)
            }
            Peer::Block(block) => {
                let semantics = world.overlays.get(&overlay).map(|facts| facts.semantics);
                semantics == Some(Semantics::Kubernetes)
                    && member_address(facts, overlay).is_some_and(|address| block.contains(address))
            }
        }
    }
}

fn matches_namespace(world: &World, selector: &LabelSelector, namespace: &Name) -> bool {
    let known = world.namespaces.get(namespace);
    let mut labels = known.cloned().unwrap_or_default();
    labels.retain(|label| label.key != METADATA_NAME);
    labels.insert(Label { key: METADATA_NAME.to_owned(), value: namespace.to_string() });
    selector.matches(&labels)
}

/// The members of an overlay that the policy selects, by id.
#[must_use]
pub fn selected(
    world: &World,
    overlay: OverlayId,
    policy: &NetworkPolicy,
) -> Vec<(EntityName, NodeId)> {
    let is_selected = |facts: &NodeFacts| is_member(facts, overlay) && policy.selects(facts);
    let members = world.nodes.iter().filter(|(_, facts)| is_selected(facts));
    members.map(|(id, facts)| (facts.name.clone(), *id)).collect()
}
