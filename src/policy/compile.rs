//! World in, one table per node out.
//!
//! What all tables of an overlay share is worked out once in a [`Plan`]; the tables of entities and
//! SaPs are then cut from it, each by itself. Same input, same output: everything is sorted, nothing is random.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fork::{ForkJoin, Sequential};
use super::plan::Plan;
use super::{NodeFacts, World, compile_entity, compile_sap};
use crate::api::table::{DestinationKey, LinkRow, OverlayTable, SapRow, TableBody, TableNode};
use crate::types::{AuthorizationKey, Generation, NodeId, NodeKind, OverlayId, Timestamp};

/// Where compilation gets keys from; `control` implements it with `keys`.
pub trait KeySource {
    /// The `Kb`s that are accepted for `to`, oldest first: one, or two during a rotation.
    fn destination_keys(&self, overlay: OverlayId, to: NodeId) -> Vec<DestinationKey>;
    /// The generations accepted for the pair, oldest first; empty for "only 0".
    fn pair_generations(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> Vec<Generation>;
    /// When the older of two keys of the pair, or of all pairs of `to`, ends; none while there is one, and
    /// while the older one may still be stamped.
    fn old_until(
        &self,
        _overlay: OverlayId,
        _from: Option<NodeId>,
        _to: NodeId,
    ) -> Option<Timestamp> {
        None
    }
    /// The sources whose pair with `to` has other generations than "only 0": those that were rotated
    /// alone. Tables are made without asking for each pair.
    fn rotated_sources(&self, overlay: OverlayId, to: NodeId) -> Vec<NodeId>;
    /// What `from` stamps for `to` at the moment.
    fn send_key(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey;
}

/// A world whose selectors are turned into sets: tables are cut from it, one node at a time, in any
/// order and from any thread.
#[derive(Debug, Default)]
pub struct Blueprint {
    world: Arc<World>,
    pub(super) plans: BTreeMap<OverlayId, Plan>,
    /// Who serves each overlay, reachable or not.
    pub(super) saps: BTreeMap<OverlayId, Vec<NodeId>>,
}

/// Compiles the tables of all nodes. Same input, same output.
#[must_use]
pub fn compile(world: &World, keys: &dyn KeySource, now: Timestamp) -> BTreeMap<NodeId, TableBody> {
    let blueprint = Blueprint::new(Arc::new(world.clone()), now);
    let table = |&id: &NodeId| Some((id, blueprint.table(keys, id)?));
    world.nodes.keys().filter_map(table).collect()
}

/// One overlay's part of a table.
pub(super) struct Part {
    pub(super) table: OverlayTable,
    /// The SaPs that the node exchanges packets with in this overlay.
    pub(super) saps: BTreeSet<NodeId>,
}

impl Blueprint {
    /// Works out who is meant by the rules that are in force at `now`.
    #[must_use]
    pub fn new(world: Arc<World>, now: Timestamp) -> Self {
        Self::default().next(&Sequential, world, now)
    }

    /// As [`Self::new`], on more than one thread where `fork` has them. What is in this one already, of
    /// members that are as they were, is shared and not made again.
    #[must_use]
    pub fn next(&self, fork: &impl ForkJoin, world: Arc<World>, now: Timestamp) -> Self {
        let plan = |&id: &OverlayId| (id, Plan::new(&world, id, now, self.plans.get(&id), fork));
        let plans = world.overlays.keys().map(plan).collect();
        let mut saps: BTreeMap<OverlayId, Vec<NodeId>> = BTreeMap::new();
        for (&id, facts) in world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Sap) {
            for &overlay in &facts.serves {
                saps.entry(overlay).or_default().push(id);
            }
        }
        Self { world, plans, saps }
    }

    /// What it was made of.
    #[must_use]
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Who serves each overlay, reachable or not.
    #[must_use]
    pub fn saps(&self) -> &BTreeMap<OverlayId, Vec<NodeId>> {
        &self.saps
    }

    /// Cuts the table of one node; none for a node that is not there.
    ///
    /// A pair whose own path cannot be walked (a SaP of the chain is gone, an end of a direct pair has no
    /// endpoint) is in no table, as if no rule spoke of it.
    #[must_use]
    pub fn table(&self, keys: &dyn KeySource, id: NodeId) -> Option<TableBody> {
        self.table_of(keys, id, |_| true)
    }

    /// As [`Self::table`], without the overlays in [`Self::shared_by`].
    pub(super) fn own_table(&self, keys: &dyn KeySource, id: NodeId) -> Option<TableBody> {
        self.table_of(keys, id, |plan| !compile_sap::is_ordinary(plan, id))
    }

    /// The overlays whose part of a SaP's table is [`Self::shared`]: those in which no path names it.
    pub(super) fn shared_by(&self, id: NodeId) -> impl Iterator<Item = OverlayId> + '_ {
        let sap = self.world.nodes.get(&id).filter(|facts| facts.kind == NodeKind::Sap);
        let served = sap.into_iter().flat_map(|facts| &facts.serves);
        let plans = served.filter_map(|overlay| self.plans.get(overlay));
        plans.filter(move |plan| compile_sap::is_ordinary(plan, id)).map(|plan| plan.id)
    }

    /// An overlay's part of the table of every SaP that no path names; none for an overlay that is not
    /// there.
    pub(super) fn shared(&self, keys: &dyn KeySource, overlay: OverlayId) -> Option<OverlayTable> {
        // No node has this id, so no path names it.
        let anybody = NodeId(0);
        let plan = self.plans.get(&overlay)?;
        Some(compile_sap::compile(&self.world, plan, keys, anybody).table)
    }

    fn table_of(
        &self,
        keys: &dyn KeySource,
        id: NodeId,
        has_plan: impl Fn(&Plan) -> bool,
    ) -> Option<TableBody> {
        let world = &*self.world;
        let facts = world.nodes.get(&id)?;
        let parts: Vec<Part> = match facts.kind {
            NodeKind::Entity => {
                let plans = facts.addresses.keys().filter_map(|overlay| self.plans.get(overlay));
                plans.map(|plan| compile_entity::compile(world, plan, keys, id, facts)).collect()
            }
            NodeKind::Sap => {
                let plans = facts.serves.iter().filter_map(|overlay| self.plans.get(overlay));
                let plans = plans.filter(|plan| has_plan(plan));
                plans.map(|plan| compile_sap::compile(world, plan, keys, id)).collect()
            }
        };
        let saps: BTreeSet<NodeId> = parts.iter().flat_map(|part| &part.saps).copied().collect();
        let links = match facts.kind {
            NodeKind::Entity => entity_links(world, id, &saps),
            NodeKind::Sap => sap_links(world, id, facts),
        };
        Some(TableBody {
            node: TableNode {
                id,
                kind: facts.kind,
                name: facts.name.clone(),
                ports: facts
                    .ports
                    .values()
                    .flatten()
                    .cloned()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
            },
            saps: saps.into_iter().filter_map(|sap| sap_row(world, sap)).collect(),
            links,
            overlays: parts.into_iter().map(|part| part.table).collect(),
        })
    }
}

fn sap_row(world: &World, id: NodeId) -> Option<SapRow> {
    let facts = world.nodes.get(&id)?;
    Some(SapRow { id, name: facts.name.name.clone(), endpoints: facts.endpoints.clone() })
}

fn entity_links(world: &World, entity: NodeId, saps: &BTreeSet<NodeId>) -> Vec<LinkRow> {
    let link_to = |&sap: &NodeId| {
        let (id, secret) = world.links.get(&(entity, sap))?;
        Some(LinkRow { id: *id, peer: sap, secret: secret.clone() })
    };
    sorted_links(saps.iter().filter_map(link_to))
}

fn sap_links(world: &World, sap: NodeId, facts: &NodeFacts) -> Vec<LinkRow> {
    let is_served = |entity: &NodeId| {
        world.nodes.get(entity).is_some_and(|entity| {
            entity.kind == NodeKind::Entity
                && facts.serves.iter().any(|overlay| entity.addresses.contains_key(overlay))
        })
    };
    let links = world.links.iter().filter(|((entity, to), _)| *to == sap && is_served(entity));
    sorted_links(links.map(|(&(entity, _), (id, secret))| LinkRow {
        id: *id,
        peer: entity,
        secret: secret.clone(),
    }))
}

fn sorted_links(rows: impl Iterator<Item = LinkRow>) -> Vec<LinkRow> {
    let mut rows: Vec<LinkRow> = rows.collect();
    rows.sort_by_key(|row| (row.id, row.peer));
    rows
}
