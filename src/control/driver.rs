//! The server's clockwork: rotations go on, rules end, acknowledgements are written down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::keyset::RingId;
use super::live::{Live, NodeState};
use super::policies;
use super::publish::Hold;
use super::rotation;
use super::routes::Refusal;
use super::server::{Server, now, now_millis};
use super::store::{self, Done, join, keys::RingRow, nodes};
use crate::api::Problem;
use crate::keys::rotation::{HURRY_MILLIS, Step};
use crate::types::{NodeId, Timestamp};

/// Least time between two looks: many acknowledgements make one.
const REST: Duration = Duration::from_millis(100);

/// Longest time between two looks; also how long an acknowledgement may stay unwritten.
const LOOK: Duration = Duration::from_secs(1);

/// Between two looks at the number of flow records.
const TIDY_SECONDS: u64 = 60;

impl Server {
    /// Runs until the server stops. Failures are logged and tried again.
    pub async fn drive(self: Arc<Self>) {
        let mut ticks = self.ticks.subscribe();
        let mut expired_before = now();
        let mut tidied = now();
        while !*self.stopping.borrow() {
            let _ = tokio::time::timeout(LOOK, ticks.changed()).await;
            tokio::time::sleep(REST).await;
            let flows = self.keep_flows(&mut tidied).await;
            if let Err(problem) = flows.and(self.step(&mut expired_before).await) {
                tracing::error!(%problem, "the server's clockwork stumbled and tries again");
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Writes flow records once a look, and looks after their number once a minute.
    async fn keep_flows(&self, tidied: &mut Timestamp) -> Result<(), Problem> {
        self.save_flows().await?;
        if now().0.saturating_sub(tidied.0) >= TIDY_SECONDS {
            self.tidy_flows().await?;
            *tidied = now();
        }
        Ok(())
    }

    async fn step(self: &Arc<Self>, expired_before: &mut Timestamp) -> Result<(), Problem> {
        self.save_acknowledgements().await?;
        let at = now();
        let expired = self
            .live()
            .world
            .rules
            .values()
            .any(|rule| rule.not_after.is_some_and(|end| *expired_before < end && end <= at));
        if expired || self.is_stale.load(Ordering::Acquire) {
            let gate = Arc::clone(&self.gate).lock_owned().await;
            self.publish(Hold::Nobody).await?;
            drop(gate);
        }
        if *expired_before != at {
            for overlay in policies::expired(self).await? {
                policies::roll_back_expired(self, overlay).await.map_err(Refusal::into_problem)?;
            }
            self.delete_ephemeral().await?;
        }
        *expired_before = at;
        self.advance_drains().await?;
        self.rotate().await
    }

    /// Deletes ephemeral nodes that have been away for too long.
    async fn delete_ephemeral(self: &Arc<Self>) -> Result<(), Problem> {
        let rest = self.settings.ephemeral_rest;
        let away = |live: &Live, id: &NodeId| {
            live.nodes.get(id).is_some_and(|node| node.is_gone_for(rest))
        };
        if !self.live().nodes.values().any(|node| node.is_gone_for(rest)) {
            return Ok(());
        }
        let ephemeral = nodes::ephemeral(&mut *self.store.read().await?).await?;
        let gone = |live: &Live| -> Vec<NodeId> {
            ephemeral.iter().copied().filter(|id| away(live, id)).collect()
        };
        if gone(&self.live()).is_empty() {
            return Ok(());
        }
        let gate = Arc::clone(&self.gate).lock_owned().await;
        // Somebody may have come back, or been deleted, while we waited.
        let gone = gone(&self.live());
        let mut transaction = self.store.write().await?;
        for id in gone {
            let done = join::leave(&mut transaction, id, now()).await?;
            let revision = store::revision(&mut transaction).await?;
            store::audit::record(&mut transaction, revision, now(), "ephemeral", &done).await?;
            tracing::info!(node = %id, "an ephemeral node was away for too long and is deleted");
        }
        self.commit(transaction).await?;
        self.publish(Hold::Nobody).await?;
        drop(gate);
        Ok(())
    }

    /// Takes each rotation as far as it can go at the moment.
    pub(crate) async fn rotate(self: &Arc<Self>) -> Result<(), Problem> {
        let interval = millis(self.settings.key_interval);
        let is_idle = {
            let live = self.live();
            live.keys.rings.values().all(|row| row.ring.step == Step::Steady)
                && live.keys.due(interval, now_millis()).is_empty()
        };
        if is_idle {
            return Ok(());
        }
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let at = now_millis();
        let ((mut moved, cut_off), due, keys) = {
            let live = self.live();
            (self.moved(&live, at), live.keys.due(interval, at), Arc::clone(&live.keys))
        };
        if moved.is_empty() && due.is_empty() {
            return Ok(());
        }
        let mut transaction = self.store.write().await?;
        for row in moved.values() {
            store::keys::put_ring(&mut transaction, row).await?;
        }
        for action in cut_off {
            self.record(&mut transaction, "rotation", action).await?;
        }
        for overlay in due {
            let changed =
                rotation::start_overlay(&mut transaction, &keys, overlay, None, at).await?;
            let name = self.live().world.overlays.get(&overlay).map(|facts| facts.name.clone());
            let action = format!("key rotate --overlay {} (scheduled)", name.unwrap_or_default());
            self.record(&mut transaction, "schedule", action).await?;
            moved.extend(changed.into_iter().map(|row| (id_of(&row), row)));
        }
        for row in moved.values().filter(|row| row.ring.step == Step::Steady) {
            store::keys::forget_epochs(&mut transaction, row.overlay).await?;
        }
        self.commit(transaction).await?;
        self.publish(Hold::Nobody).await?;
        self.note_asked(moved.values());
        drop(gate);
        self.tick();
        Ok(())
    }

    /// Records what the server did by itself.
    async fn record(
        &self,
        transaction: &mut store::WriteTransaction,
        actor: &str,
        action: String,
    ) -> Result<(), Problem> {
        let null = serde_json::Value::Null;
        let done = Done { result: (), action, before: null.clone(), after: null };
        let revision = store::revision(transaction).await?;
        store::audit::record(transaction, revision, now(), actor, &done).await
    }

    /// The rings that go a step on, and whom that cuts off, in words.
    fn moved(&self, live: &Live, at: u64) -> (BTreeMap<RingId, RingRow>, Vec<String>) {
        let grace = millis(self.settings.key_grace);
        let mut moved = BTreeMap::new();
        let mut cut_off = Vec::new();
        for (id, row) in &live.keys.rings {
            if row.ring.step == Step::Steady {
                continue;
            }
            let laggards = rotation::laggards(live, row, live.asked.get(id));
            let mut row = row.clone();
            let acked = laggards.is_empty();
            let Some(change) = row.ring.handle_timeout(at, acked, acked, grace) else { continue };
            if change.cut_off {
                let names: Vec<String> = laggards
                    .iter()
                    .map(|id| rotation::name_of(&live.world, *id).to_string())
                    .collect();
                let (to, laggards) =
                    (rotation::name_of(&live.world, row.destination), names.join(" "));
                tracing::warn!(
                    %to,
                    %laggards,
                    "a hurried key rotation cut off who had not acknowledged"
                );
                cut_off.push(format!("key rotation to {to} cut off {laggards}"));
            }
            if change.to == Step::Steady {
                row.rotated = Timestamp(at / 1000);
            }
            moved.insert(*id, row);
        }
        (moved, cut_off)
    }

    /// Remembers which serials carry the step that these rings are in. The caller holds the gate, and
    /// has published.
    pub(crate) fn note_asked<'a>(&self, rows: impl Iterator<Item = &'a RingRow>) {
        let mut live = self.live();
        let serials = Arc::new(live.serials());
        for row in rows {
            if row.ring.step == Step::Steady {
                live.asked.remove(&id_of(row));
            } else {
                live.asked.insert(id_of(row), Arc::clone(&serials));
            }
        }
        let Live { asked, keys, .. } = &mut *live;
        asked.retain(|id, _| keys.rings.contains_key(id));
    }

    /// Who has not acknowledged its newest table, for the status.
    pub(crate) fn behind(live: &Live) -> Vec<crate::api::admin::Pending> {
        let is_behind = |node: &NodeState| node.acknowledged < node.newest_serial();
        live.nodes
            .iter()
            .filter(|(_, node)| is_behind(node))
            .map(|(id, _)| live.pending(*id))
            .collect()
    }
}

/// Names a row.
fn id_of(row: &RingRow) -> RingId {
    (row.overlay, row.source, row.destination)
}

/// In whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const _: () = assert!(HURRY_MILLIS > 1_000, "a hurried step is longer than a look");
