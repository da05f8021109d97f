//! From the world to the tables that a change touches: compile, compare, count up, wake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::compile::{self, Compiled, Source};
use super::keyset::Keys;
use super::live::{Kept, Live, NodeState, Table};
use super::server::{Server, now};
use super::store::changes::Changes;
use super::store::{self, tables};
use crate::api::Problem;
use crate::policy::World;
use crate::types::{NodeId, NodeKind, Secret, Serial};

/// How long a source waits for SaPs and destinations. A source that comes too early loses a few
/// packets; one that comes too late waits.
pub(super) const HOLD: Duration = Duration::from_secs(1);

/// Whose new tables wait until SaPs and destinations have theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nobody's: a removal goes to all at once.
    Nobody,
    /// Those of all entities: SaPs go first.
    Entities,
    /// Those of these entities, which start flows.
    Sources(BTreeSet<NodeId>),
}

/// The serials of the tables that a publication changed.
pub(crate) type Published = BTreeMap<NodeId, Serial>;

impl Server {
    /// Takes over the serials that the database knows.
    pub(crate) async fn restore_serials(&self) -> Result<(), Problem> {
        let mut conn = self.store.read().await?;
        let rows = tables::all(&mut conn).await?;
        let records = store::nodes::all(&mut conn).await?;
        let mut live = self.live();
        for (id, record) in records {
            let state = live.nodes.entry(id).or_insert_with(NodeState::new);
            state.version = record.version;
        }
        for (id, row) in rows {
            if let Some(state) = live.nodes.get_mut(&id) {
                state.stored = Some((row.serial, row.hash));
                state.acknowledged = row.acknowledged;
            }
        }
        Ok(())
    }

    /// Compiles the tables that may have changed since the last publication, and publishes those that did.
    /// The caller holds the gate.
    ///
    /// # Errors
    ///
    /// When the database cannot be read or written; then nothing is published.
    pub(crate) async fn publish(self: &Arc<Self>, hold: Hold) -> Result<Published, Problem> {
        let mut transaction = self.store.write().await?;
        let started = Instant::now();
        let (old, policies, online) = {
            let mut live = self.live();
            let online = live.nodes.iter().filter(|(_, node)| node.is_online());
            let online = online.map(|(id, _)| *id).collect::<BTreeSet<NodeId>>();
            (live.source.take(), Arc::clone(&live.policies), online)
        };
        let changes = store::changes::take(&mut transaction).await?;
        let (old, changes) = match old {
            Some(old) => (old, changes),
            None => (Arc::default(), Changes::All),
        };
        let (conn, old_keys) = (&mut *transaction, Arc::clone(&old.keys));
        let known = (&**old.blueprint.world(), &*policies);
        let (world, policies) = store::world::load_changed(conn, known, &changes).await?;
        let (world, policies) = (Arc::new(world), Arc::new(policies));
        let keys = Keys::load_changed(conn, &old.keys, &changes).await?;
        let lives = store::lives::read(conn).await?;
        let loaded = started.elapsed();
        let (source, touched, compiled) = {
            let (world, at, old) = (Arc::clone(&world), now(), Arc::clone(&old));
            let work = move || {
                let source = old.next(world, keys, at);
                let touched = source.touched_since(&old);
                let compiled = source.compile(&touched, &online);
                (Arc::new(source), touched, compiled)
            };
            tokio::task::spawn_blocking(work).await.map_err(compile::not_compiled)?
        };
        let worked = started.elapsed();
        let changed = changed(&self.live(), &compiled);
        tables::publish(&mut transaction, &changed).await?;
        transaction.commit().await?;
        self.is_stale.store(false, Ordering::Release);
        let published: Published = changed.iter().map(|(id, (serial, _))| (*id, *serial)).collect();
        let held = held(&world, &published, &hold);
        let first: Published = {
            let mut live = self.live();
            live.policies = policies;
            live.take_lives(lives);
            take_over(&mut live, &source, &old_keys, &touched, compiled, (&published, &held));
            published
                .iter()
                .filter(|(id, _)| !held.contains(id))
                .filter(|(id, _)| live.nodes.get(id).is_some_and(NodeState::is_online))
                .map(|(id, serial)| (*id, *serial))
                .collect()
        };
        let later: Published =
            published.iter().filter(|(id, _)| held.contains(id)).map(|(a, b)| (*a, *b)).collect();
        if !later.is_empty() {
            if first.is_empty() {
                self.release(&later);
            } else {
                let server = Arc::clone(self);
                tokio::spawn(async move {
                    server.acknowledged_within(&first, HOLD).await;
                    server.release(&later);
                });
            }
        }
        self.tick();
        // Taking it apart takes a while, and nobody has to wait for that.
        tokio::task::spawn_blocking(move || drop(old));
        tracing::debug!(
            touched = touched.len(),
            changed = published.len(),
            read_millis = loaded.as_millis(),
            compiled_millis = worked.as_millis(),
            millis = started.elapsed().as_millis(),
            "published"
        );
        Ok(published)
    }

    /// Shows held tables, unless newer ones came meanwhile.
    fn release(&self, held: &Published) {
        release(&mut self.live(), held);
    }

    /// Waits until all of `wanted` are acknowledged; false when that took longer than `limit`.
    pub(crate) async fn acknowledged_within(&self, wanted: &Published, limit: Duration) -> bool {
        let mut ticks = self.ticks.subscribe();
        let all = async {
            loop {
                let done = {
                    let live = self.live();
                    wanted.iter().all(|(id, serial)| live.has_acknowledged(*id, *serial))
                };
                if done || ticks.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// Writes acknowledgements down; they are no reason for a write each.
    pub(crate) async fn save_acknowledgements(&self) -> Result<(), Problem> {
        let unsaved: BTreeMap<NodeId, Serial> = {
            let mut live = self.live();
            live.nodes
                .iter_mut()
                .filter_map(|(id, node)| {
                    std::mem::take(&mut node.is_unsaved).then_some((*id, node.acknowledged))
                })
                .collect()
        };
        if unsaved.is_empty() {
            return Ok(());
        }
        let mut transaction = self.store.write().await?;
        tables::acknowledge(&mut transaction, &unsaved).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Which of the compiled tables are others than those before, and the serials that they get.
pub(super) fn changed(
    live: &Live,
    compiled: &[(NodeId, Compiled)],
) -> BTreeMap<NodeId, (Serial, Secret)> {
    let changed = compiled.iter().filter_map(|(id, table)| {
        let node = live.nodes.get(id);
        let (serial, old) = match node.and_then(NodeState::newest) {
            Some(table) => (table.serial, Some(table.hash.clone())),
            None => node
                .and_then(|node| node.stored.clone())
                .map_or((Serial(0), None), |(serial, hash)| (serial, Some(hash))),
        };
        let is_other = old.as_ref() != Some(&table.hash);
        is_other.then(|| (*id, (Serial(serial.0 + 1), table.hash.clone())))
    });
    changed.collect()
}

/// Whose tables among those published have to wait.
pub(super) fn held(world: &World, published: &Published, hold: &Hold) -> BTreeSet<NodeId> {
    let is_entity =
        |id: &NodeId| world.nodes.get(id).is_some_and(|node| node.kind == NodeKind::Entity);
    let has_to_wait = |id: &NodeId| match hold {
        Hold::Nobody => false,
        Hold::Entities => is_entity(id),
        Hold::Sources(sources) => sources.contains(id),
    };
    published.keys().copied().filter(has_to_wait).collect()
}

/// Puts what was published in place of what was.
pub(super) fn take_over(
    live: &mut Live,
    source: &Arc<Source>,
    old_keys: &Keys,
    touched: &BTreeSet<NodeId>,
    compiled: Vec<(NodeId, Compiled)>,
    (published, held): (&Published, &BTreeSet<NodeId>),
) {
    live.world = Arc::clone(source.blueprint.world());
    live.keys = Arc::clone(&source.keys);
    live.saps.clone_from(source.blueprint.saps());
    live.source = Some(Arc::clone(source));
    let Live { senders, world, .. } = live;
    senders.retain(|(_, id), _| !touched.contains(id) && world.nodes.contains_key(id));
    assign(live, source, compiled, published, held);
    live.note_asked(old_keys);
}

/// Shows held tables, unless newer ones came meanwhile.
pub(super) fn release(live: &mut Live, held: &Published) {
    for (id, serial) in held {
        if let Some(node) = live.nodes.get_mut(id)
            && node.held.as_ref().is_some_and(|table| table.serial == *serial)
        {
            node.shown = node.held.take();
            node.wake.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Puts the compiled tables in place; nodes that are gone go.
fn assign(
    live: &mut Live,
    source: &Arc<Source>,
    compiled: Vec<(NodeId, Compiled)>,
    changed: &Published,
    held: &BTreeSet<NodeId>,
) {
    let revision = live.world.revision;
    let Live { nodes, world, senders, .. } = live;
    nodes.retain(|id, _| world.nodes.contains_key(id));
    for (id, compiled) in compiled {
        for (overlay, peers) in compiled.peers {
            senders.insert((overlay, id), peers);
        }
        let node = nodes.entry(id).or_insert_with(NodeState::new);
        let serial = match changed.get(&id) {
            Some(serial) => *serial,
            // The bytes are those of before the restart.
            None if node.newest().is_none() => node.newest_serial(),
            None => continue,
        };
        let Compiled { body, hash, .. } = compiled;
        let kept = body.map_or(Kept::Nothing, Kept::Body);
        let table = Table { serial, hash, kept, source: Arc::clone(source), revision };
        if held.contains(&id) {
            node.held = Some(table);
        } else {
            node.held = None;
            node.shown = Some(table);
            node.wake.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
    // Tables that stay are cut from the new source just as well, so that the old one can go.
    for node in nodes.values_mut() {
        if let Some(table) = node.held.as_mut().or(node.shown.as_mut()) {
            table.source = Arc::clone(source);
        }
    }
}
