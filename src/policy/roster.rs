//! The members of one overlay, by what selectors look at, so that a selector need not ask everybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::select::{is_member, selects};
use super::set::Set;
use super::{BoundSelector, NodeFacts, World};
use crate::types::{Label, Name, NodeId, OverlayId};

/// Who might be meant. What a selector means is [`selects`]'s to say; this only narrows down whom to ask.
pub(super) struct Roster<'a> {
    world: &'a World,
    overlay: OverlayId,
    all: Set,
    by_label: HashMap<&'a Label, Vec<NodeId>>,
    by_namespace: HashMap<&'a Name, Vec<NodeId>>,
}

impl<'a> Roster<'a> {
    pub(super) fn new(world: &'a World, overlay: OverlayId) -> Self {
        let mut by_label: HashMap<&Label, Vec<NodeId>> = HashMap::new();
        let mut by_namespace: HashMap<&Name, Vec<NodeId>> = HashMap::new();
        let mut all = Vec::new();
        for (&id, facts) in world.nodes.iter().filter(|(_, facts)| is_free(facts, overlay)) {
            all.push(id);
            for label in &facts.labels {
                by_label.entry(label).or_default().push(id);
            }
            by_namespace.entry(&facts.name.namespace).or_default().push(id);
        }
        Self { world, overlay, all: Set::new(all), by_label, by_namespace }
    }

    /// Whose members these are.
    pub(super) fn overlay(&self) -> OverlayId {
        self.overlay
    }

    /// All members that are not in quarantine: the others are meant by nothing.
    pub(super) fn members(&self) -> &Set {
        &self.all
    }

    /// The members that `selector` means.
    pub(super) fn meant_by(&self, selector: &BoundSelector) -> Set {
        let is_meant = |id: &NodeId| {
            self.facts(*id)
                .is_some_and(|facts| selects(self.world, self.overlay, selector, *id, facts))
        };
        match self.candidates(selector) {
            None => self.all.retained(is_meant),
            Some(candidates) => candidates.into_iter().filter(is_meant).collect(),
        }
    }

    /// The instances of each service of the overlay.
    pub(super) fn services(&self) -> BTreeMap<Name, Set> {
        let names = self.world.services.get(&self.overlay).into_iter().flat_map(BTreeMap::keys);
        let instances =
            |name: &Name| (name.clone(), self.meant_by(&BoundSelector::Service(name.clone())));
        names.map(instances).collect()
    }

    fn facts(&self, id: NodeId) -> Option<&NodeFacts> {
        self.world.nodes.get(&id).map(|facts| &**facts).filter(|facts| is_free(facts, self.overlay))
    }

    /// The members that fulfil `is_meant`.
    pub(super) fn where_facts(&self, is_meant: impl Fn(&NodeFacts) -> bool) -> Set {
        self.all.retained(|id| self.facts(*id).is_some_and(&is_meant))
    }

    /// Everybody who might be meant, perhaps more; none is all.
    fn candidates(&self, selector: &BoundSelector) -> Option<Vec<NodeId>> {
        match selector {
            BoundSelector::Any | BoundSelector::Cidr(_) => None,
            BoundSelector::Node(id, _) => Some(vec![*id]),
            BoundSelector::Labels(labels) => self.carriers(labels),
            BoundSelector::Service(name) => self
                .world
                .service(self.overlay, name)
                .map_or(Some(Vec::new()), |labels| self.carriers(labels)),
            BoundSelector::Namespace(name) => {
                Some(self.by_namespace.get(name).cloned().unwrap_or_default())
            }
            BoundSelector::Group(name) => {
                let held = self.world.group(self.overlay, name);
                let mut all = Vec::new();
                for selector in held.filter(|held| !matches!(held, BoundSelector::Group(_))) {
                    all.append(&mut self.candidates(selector)?);
                }
                Some(all)
            }
        }
    }

    /// Who carries the rarest of the labels.
    fn carriers(&self, labels: &BTreeSet<Label>) -> Option<Vec<NodeId>> {
        let of_one = |label| self.by_label.get(label).map_or(&[][..], |ids| ids.as_slice());
        labels.iter().map(of_one).min_by_key(|ids| ids.len()).map(<[NodeId]>::to_vec)
    }
}

/// Whether it is a member, and not in quarantine.
fn is_free(facts: &NodeFacts, overlay: OverlayId) -> bool {
    is_member(facts, overlay) && !facts.is_quarantined
}
