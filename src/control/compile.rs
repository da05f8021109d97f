//! Tables as bytes, on all cores: cut, written as JSON, hashed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::keyset::Keys;
use super::store;
use crate::policy::Blueprint;
use crate::types::{NodeId, OverlayId, Secret};

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

/// Compiles the tables of `nodes`, in their order; nodes that are not there are left out. Bodies are kept
/// for those in `awaited` only, so that a fleet's tables are never in memory all at once.
pub(crate) fn compile(
    blueprint: &Blueprint,
    keys: &Keys,
    nodes: &BTreeSet<NodeId>,
    awaited: &BTreeSet<NodeId>,
) -> Vec<(NodeId, Compiled)> {
    let nodes: Vec<NodeId> = nodes.iter().copied().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(&id) = nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.extend(table(blueprint, keys, id, awaited.contains(&id)).map(|table| (id, table)));
        }
        done
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<(NodeId, Compiled)> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..cores.min(nodes.len())).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for helper in helpers {
            all.extend(helper.join().expect("invariant: compiling does not panic"));
        }
        all
    });
    all.sort_by_key(|(id, _)| *id);
    all
}

/// Compiles one table.
pub(crate) fn table(
    blueprint: &Blueprint,
    keys: &Keys,
    id: NodeId,
    keeps_body: bool,
) -> Option<Compiled> {
    let body = blueprint.table(keys, id)?;
    let text = store::to_json(&body);
    let mut hash = [0; 32];
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hash.copy_from_slice(digest.as_ref());
    let peers = body.overlays.iter().filter(|overlay| !overlay.send_keys.is_empty());
    let peers = peers
        .map(|overlay| {
            let sends = overlay.send_keys.iter();
            let member = |to: u32| overlay.members.get(usize::try_from(to).ok()?).map(|m| m.id);
            (overlay.id, sends.filter_map(|row| member(row.to)).collect())
        })
        .collect();
    Some(Compiled { body: keeps_body.then(|| Arc::from(text)), hash: Secret::new(hash), peers })
}
