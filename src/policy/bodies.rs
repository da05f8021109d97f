//! The bodies of tables as JSON. What SaPs have in common is made once for all of them: with many SaPs,
//! and with few large ones, that is nearly all that there is to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::compile::{Blueprint, KeySource};
use crate::api::table::TableBody;
use crate::types::{NodeId, NodeKind, OverlayId};

/// Room for the body of an ordinary entity, so that it need not grow.
const ROOM_BYTES: usize = 32 << 10;

/// Makes bodies, from any thread.
pub struct Bodies<'a> {
    blueprint: &'a Blueprint,
    keys: &'a (dyn KeySource + Sync),
    /// What the SaPs of an overlay share.
    shared: Mutex<BTreeMap<OverlayId, Arc<OnceLock<Arc<str>>>>>,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Makes what the SaPs of an overlay share.
    Share(OverlayId),
    /// Makes the body of a node.
    Body(NodeId),
}

/// The body of one table.
#[derive(Debug)]
pub struct Body {
    /// As JSON.
    pub text: String,
    /// What of it is the node's alone; of an entity's body everything.
    pub own: TableBody,
}

impl<'a> Bodies<'a> {
    /// Bodies of the tables that are cut from `blueprint`.
    #[must_use]
    pub fn new(blueprint: &'a Blueprint, keys: &'a (dyn KeySource + Sync)) -> Self {
        Self { blueprint, keys, shared: Mutex::default() }
    }

    /// What there is to do for these nodes, in the order in which it should be begun: what SaPs share takes
    /// longest, and their bodies need it, so that is first and they are last.
    #[must_use]
    pub fn tasks(&self, nodes: &BTreeSet<NodeId>) -> Vec<Task> {
        let facts = &self.blueprint.world().nodes;
        let is_sap = |id: &&NodeId| facts.get(id).is_some_and(|node| node.kind == NodeKind::Sap);
        let saps = || nodes.iter().filter(is_sap);
        let shared: BTreeSet<OverlayId> =
            saps().flat_map(|id| self.blueprint.shared_by(*id)).collect();
        let entities = nodes.iter().filter(|id| !is_sap(id));
        let bodies = entities.chain(saps()).map(|id| Task::Body(*id));
        shared.into_iter().map(Task::Share).chain(bodies).collect()
    }

    /// Does one task. Gives a body for [`Task::Body`], unless the node is not there.
    #[must_use]
    pub fn run(&self, task: Task) -> Option<(NodeId, Body)> {
        match task {
            Task::Share(overlay) => {
                self.shared(overlay);
                None
            }
            Task::Body(id) => Some((id, self.body(id)?)),
        }
    }

    /// The body of one node; none for a node that is not there.
    #[must_use]
    pub fn body(&self, id: NodeId) -> Option<Body> {
        let mut own = self.blueprint.own_table(self.keys, id)?;
        let shared = self.blueprint.shared_by(id);
        let shared: Vec<_> = shared.map(|overlay| (overlay, self.shared(overlay))).collect();
        if shared.is_empty() {
            return Some(Body { text: json(&own), own });
        }
        let tables = std::mem::take(&mut own.overlays);
        let mut text = json(&own);
        own.overlays = tables;
        // Overlays are sorted, and come last.
        let texts = own.overlays.iter().map(|table| (table.id, json(table).into()));
        let overlays: BTreeMap<OverlayId, Arc<str>> = texts.chain(shared).collect();
        text.truncate(text.len() - "]}".len());
        // What SaPs share is megabytes: it is copied once.
        text.reserve_exact(
            overlays.values().map(|text| text.len() + ",".len()).sum::<usize>() + "]}".len(),
        );
        for (at, overlay) in overlays.values().enumerate() {
            text.push_str(if at == 0 { "" } else { "," });
            text.push_str(overlay);
        }
        text.push_str("]}");
        Some(Body { text, own })
    }

    /// What the SaPs of an overlay share; whoever asks first makes it.
    fn shared(&self, overlay: OverlayId) -> Arc<str> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let one = Arc::clone(all.entry(overlay).or_default());
        drop(all);
        let made = one.get_or_init(|| {
            let table = self.blueprint.shared(self.keys, overlay);
            table.map_or_else(|| Arc::from(""), |table| json(&table).into())
        });
        Arc::clone(made)
    }
}

fn json(value: &impl serde::Serialize) -> String {
    let mut text = Vec::with_capacity(ROOM_BYTES);
    serde_json::to_writer(&mut text, value).expect("invariant: our types serialise to JSON");
    String::from_utf8(text).expect("invariant: JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::random;
    use crate::policy::testing::FakeKeys;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_body_made_of_parts_is_the_same_to_the_byte(world in random::world()) {
            let ids: BTreeSet<NodeId> = world.nodes.keys().copied().collect();
            let blueprint = Blueprint::new(Arc::new(world), random::NOW);
            let keys = FakeKeys::default();
            let bodies = Bodies::new(&blueprint, &keys);
            let tasks = bodies.tasks(&ids);
            let done: BTreeMap<NodeId, Body> =
                tasks.into_iter().filter_map(|task| bodies.run(task)).collect();
            prop_assert_eq!(done.keys().copied().collect::<BTreeSet<_>>(), ids);
            for (id, body) in done {
                let whole = blueprint.table(&keys, id).unwrap();
                prop_assert_eq!(body.text, json(&whole));
            }
        }
    }
}
