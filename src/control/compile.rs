//! Tables as bytes, on all cores: cut, written as JSON, hashed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::keyset::Keys;
use super::store;
use crate::api::table::TableBody;
use crate::api::{Problem, ProblemCode};
use crate::policy::Blueprint;
use crate::types::{NodeId, NodeKind, OverlayId, Secret};

/// All that tables are made of, at one moment.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) blueprint: Blueprint,
    pub(crate) keys: Arc<Keys>,
}

/// A compiled table.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The body as JSON, unless nobody waits for it: then it is compiled again when asked for.
    pub(crate) body: Option<Arc<str>>,
    /// SHA-256 of the body.
    pub(crate) hash: Secret,
    /// By overlay whom an entity sends to. They are those who send to it, too: a rule gives both ends
    /// a key.
    pub(crate) peers: Vec<(OverlayId, Box<[NodeId]>)>,
}

impl Source {
    /// The nodes whose tables may be others than those of `older`.
    pub(crate) fn touched_since(&self, older: &Self) -> BTreeSet<NodeId> {
        let is_same = Arc::ptr_eq(&self.keys, &older.keys);
        let rings = if is_same { Vec::new() } else { self.keys.changed_since(&older.keys) };
        self.blueprint.touched_since(&older.blueprint, &rings)
    }

    /// Compiles the tables of `nodes`; nodes that are not there are left out. Bodies are kept for those in
    /// `awaited` only, so that a fleet's tables are never in memory all at once.
    pub(crate) fn compile(
        &self,
        nodes: &BTreeSet<NodeId>,
        awaited: &BTreeSet<NodeId>,
    ) -> Vec<(NodeId, Compiled)> {
        let parts = Parts::default();
        let work = self.work(nodes);
        let next = AtomicUsize::new(0);
        let hand = || {
            let mut done = Vec::new();
            while let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                match *work {
                    Work::Part(overlay) => drop(parts.of(self, overlay)),
                    Work::Table(id) => {
                        let table = self.table_with(&parts, id, awaited.contains(&id));
                        done.extend(table.map(|table| (id, table)));
                    }
                }
            }
            done
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut all: Vec<(NodeId, Compiled)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..cores.min(work.len())).map(|_| scope.spawn(hand)).collect();
            let mut all = hand();
            for helper in helpers {
                all.extend(helper.join().expect("invariant: compiling does not panic"));
            }
            all
        });
        all.sort_by_key(|(id, _)| *id);
        all
    }

    /// What is to be done, in the order in which it is begun: what SaPs share takes longest, and their
    /// tables need it, so that is first and they are last.
    fn work(&self, nodes: &BTreeSet<NodeId>) -> Vec<Work> {
        let facts = &self.blueprint.world().nodes;
        let is_sap = |id: &&NodeId| facts.get(id).is_some_and(|node| node.kind == NodeKind::Sap);
        let saps = || nodes.iter().filter(is_sap);
        let shared: BTreeSet<OverlayId> =
            saps().flat_map(|id| self.blueprint.shared_by(*id)).collect();
        let entities = nodes.iter().filter(|id| !is_sap(id));
        let tables = entities.chain(saps()).map(|id| Work::Table(*id));
        shared.into_iter().map(Work::Part).chain(tables).collect()
    }

    /// Compiles one table.
    pub(crate) fn table(&self, id: NodeId, keeps_body: bool) -> Option<Compiled> {
        self.table_with(&Parts::default(), id, keeps_body)
    }

    fn table_with(&self, parts: &Parts, id: NodeId, keeps_body: bool) -> Option<Compiled> {
        let body = self.blueprint.own_table(&*self.keys, id)?;
        let senders = body.overlays.iter().filter(|overlay| !overlay.send_keys.is_empty());
        let peers = senders
            .map(|overlay| {
                let member = |to: u32| overlay.members.get(usize::try_from(to).ok()?);
                let peers = overlay.send_keys.iter().filter_map(|row| Some(member(row.to)?.id));
                (overlay.id, peers.collect())
            })
            .collect();
        let shared = self.blueprint.shared_by(id);
        let text = joined(body, shared.map(|overlay| (overlay, parts.of(self, overlay))).collect());
        let mut hash = [0; 32];
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        hash.copy_from_slice(digest.as_ref());
        let body = keeps_body.then(|| Arc::from(text));
        Some(Compiled { body, hash: Secret::new(hash), peers })
    }
}

/// One thing to do.
enum Work {
    /// What the SaPs of an overlay share.
    Part(OverlayId),
    Table(NodeId),
}

/// The parts of tables that SaPs share, as JSON: with many SaPs, and with few large ones, nearly all that
/// there is to do.
#[derive(Default)]
struct Parts(Mutex<BTreeMap<OverlayId, Arc<OnceLock<Arc<str>>>>>);

impl Parts {
    /// The part of an overlay; whoever asks first makes it.
    fn of(&self, source: &Source, overlay: OverlayId) -> Arc<str> {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = Arc::clone(parts.entry(overlay).or_default());
        drop(parts);
        let made = part.get_or_init(|| {
            let table = source.blueprint.shared(&*source.keys, overlay);
            table.map_or_else(|| Arc::from(""), |table| store::to_json(&table).into())
        });
        Arc::clone(made)
    }
}

/// The body as JSON, with the shared parts in their places: overlays are sorted, and come last.
fn joined(mut body: TableBody, shared: Vec<(OverlayId, Arc<str>)>) -> String {
    if shared.is_empty() {
        return store::to_json(&body);
    }
    let own = std::mem::take(&mut body.overlays);
    let own = own.iter().map(|table| (table.id, store::to_json(table).into()));
    let overlays: BTreeMap<OverlayId, Arc<str>> = own.chain(shared).collect();
    let overlays: Vec<&str> = overlays.values().map(|text| &**text).collect();
    let mut text = store::to_json(&body);
    text.truncate(text.len() - "]}".len());
    text.push_str(&overlays.join(","));
    text.push_str("]}");
    text
}

/// Compiling panicked.
pub(crate) fn not_compiled(error: tokio::task::JoinError) -> Problem {
    Problem::new(ProblemCode::Failed, "the tables were not compiled")
        .why(error.to_string())
        .fix("this is a bug: please report it with the server's log")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::random;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_table_made_of_parts_is_the_same_to_the_byte(world in random::world()) {
            let ids: BTreeSet<NodeId> = world.nodes.keys().copied().collect();
            let blueprint = Blueprint::new(Arc::new(world), random::NOW);
            let source = Source { blueprint, keys: Arc::default() };
            let all = source.compile(&ids, &ids);
            prop_assert_eq!(all.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(), ids);
            for (id, compiled) in all {
                let whole = source.blueprint.table(&*source.keys, id).unwrap();
                prop_assert_eq!(compiled.body.as_deref(), Some(&*store::to_json(&whole)));
            }
        }
    }
}
