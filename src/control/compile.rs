//! Tables as bytes, on all cores: cut, written as JSON, hashed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::keyset::Keys;
use super::live::Table;
use super::store;
use crate::api::{Problem, ProblemCode};
use crate::policy::Blueprint;
use crate::types::{NodeId, OverlayId, Secret};

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
        let rings = self.keys.changed_since(&older.keys);
        self.blueprint.touched_since(&older.blueprint, &rings)
    }

    /// Compiles the tables of `nodes`, in their order; nodes that are not there are left out. Bodies are
    /// kept for those in `awaited` only, so that a fleet's tables are never in memory all at once.
    pub(crate) fn compile(
        &self,
        nodes: &BTreeSet<NodeId>,
        awaited: &BTreeSet<NodeId>,
    ) -> Vec<(NodeId, Compiled)> {
        let nodes: Vec<NodeId> = nodes.iter().copied().collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            // SaPs have the largest tables and, most often, the highest ids: they come first, so that
            // no core works on one of them alone at the end.
            while let Some(&id) = nodes.iter().nth_back(next.fetch_add(1, Ordering::Relaxed)) {
                done.extend(self.table(id, awaited.contains(&id)).map(|table| (id, table)));
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
    fn table(&self, id: NodeId, keeps_body: bool) -> Option<Compiled> {
        let body = self.blueprint.table(&*self.keys, id)?;
        let text = store::to_json(&body);
        let mut hash = [0; 32];
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        hash.copy_from_slice(digest.as_ref());
        let senders = body.overlays.iter().filter(|overlay| !overlay.send_keys.is_empty());
        let peers = senders
            .map(|overlay| {
                let member = |to: u32| overlay.members.get(usize::try_from(to).ok()?);
                let peers = overlay.send_keys.iter().filter_map(|row| Some(member(row.to)?.id));
                (overlay.id, peers.collect())
            })
            .collect();
        let body = keeps_body.then(|| Arc::from(text));
        Some(Compiled { body, hash: Secret::new(hash), peers })
    }
}

impl Table {
    /// The body of this table, which is `id`'s; compiled again when it was not kept.
    ///
    /// # Errors
    ///
    /// When that is not possible, which is a bug.
    pub(crate) async fn body(&self, id: NodeId) -> Result<Arc<str>, Problem> {
        if let Some(body) = &self.body {
            return Ok(Arc::clone(body));
        }
        let source = Arc::clone(&self.source);
        let work = move || source.table(id, true);
        let compiled = tokio::task::spawn_blocking(work).await.map_err(not_compiled)?;
        let same = compiled.filter(|compiled| compiled.hash == self.hash);
        same.and_then(|compiled| compiled.body).ok_or_else(|| {
            Problem::new(ProblemCode::Failed, "a table is not what it was when it was published")
                .fix("restart the server, and please report this bug with its log")
        })
    }
}

/// Compiling panicked.
pub(crate) fn not_compiled(error: tokio::task::JoinError) -> Problem {
    Problem::new(ProblemCode::Failed, "the tables were not compiled")
        .why(error.to_string())
        .fix("this is a bug: please report it with the server's log")
}
