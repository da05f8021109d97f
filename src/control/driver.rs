//! The server's clockwork: rotations go on, rules end, acknowledgements are written down.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::live::{Live, NodeState};
use super::policies;
use super::publish::Hold;
use super::rotation;
use super::routes::Refusal;
use super::selection::overlay_name;
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
            // Most often it was a change under way, which has published by now.
            if expired || self.is_stale.load(Ordering::Acquire) {
                self.publish(Hold::Nobody).await?;
            }
            drop(gate);
        }
        if *expired_before != at {
            for overlay in policies::expired(self).await? {
                policies::roll_back_expired(self, overlay).await.map_err(Refusal::into_problem)?;
            }
            self.delete_ephemeral().await?;
        }
        *expired_before = at;
        self.record_copies().await?;
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

    /// Records whose identity turned out to be used by two processes.
    async fn record_copies(&self) -> Result<(), Problem> {
        let found: Vec<_> = {
            let mut live = self.live();
            let world = Arc::clone(&live.world);
            let nodes = live.nodes.iter_mut();
            let news = nodes.filter_map(|(id, node)| {
                Some((rotation::name_of(&world, *id), node.speaker.take_news(Instant::now())?))
            });
            news.collect()
        };
        if found.is_empty() {
            return Ok(());
        }
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let mut transaction = self.store.write().await?;
        let place = |from: Option<IpAddr>| from.map_or_else(|| "?".to_owned(), |ip| ip.to_string());
        for (name, (served, copy)) in found {
            let (served, copy) = (place(served.from), place(copy.from));
            tracing::warn!(node = %name, %served, %copy, "an identity is used twice");
            let action =
                format!("the identity of {name} is used twice: by {served}, and {copy} (refused)");
            self.record(&mut transaction, "alarm", action).await?;
        }
        transaction.commit().await?;
        drop(gate);
        Ok(())
    }

    /// Takes each rotation as far as it can go at the moment.
    pub(crate) async fn rotate(self: &Arc<Self>) -> Result<(), Problem> {
        let interval = millis(self.settings.key_interval);
        let is_idle = {
            let live = self.live();
            live.keys.rings.values().all(|row| row.ring.step == Step::Steady)
                && live.guessed.is_empty()
                && live.keys.due(interval, now_millis()).is_empty()
        };
        if is_idle {
            return Ok(());
        }
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let at = now_millis();
        let (moved, may_begin) = {
            let live = self.live();
            let may_begin = !live.guessed.is_empty() || !live.keys.due(interval, at).is_empty();
            (rotation::moved(&live, at, millis(self.settings.key_grace)), may_begin)
        };
        if moved.is_empty() && !may_begin {
            return Ok(());
        }
        let mut transaction = self.store.write().await?;
        let changed = if moved.is_empty() {
            self.begin_rotations(&mut transaction, interval, at).await?
        } else {
            self.go_on(&mut transaction, &moved).await?;
            true
        };
        if changed {
            self.commit(transaction).await?;
            self.publish(Hold::Nobody).await?;
        }
        drop(gate);
        if changed {
            self.tick();
        }
        Ok(())
    }

    /// Writes down the rings that go a step on, and says whom that cuts off.
    async fn go_on(
        &self,
        transaction: &mut store::WriteTransaction,
        moved: &[(RingRow, Vec<NodeId>)],
    ) -> Result<(), Problem> {
        let world = Arc::clone(&self.live().world);
        let name = |id: &NodeId| rotation::name_of(&world, *id).to_string();
        for (row, cut_off) in moved {
            store::keys::put_ring(transaction, row).await?;
            if !cut_off.is_empty() {
                let to = name(&row.destination);
                let laggards = cut_off.iter().map(name).collect::<Vec<_>>().join(" ");
                tracing::warn!(
                    %to,
                    %laggards,
                    "a hurried key rotation cut off who had not acknowledged"
                );
                let action = format!("key rotation to {to} cut off {laggards}");
                self.record(transaction, "rotation", action).await?;
            }
        }
        for (row, _) in moved.iter().filter(|(row, _)| row.ring.step == Step::Steady) {
            store::keys::forget_epochs(transaction, row.overlay).await?;
        }
        Ok(())
    }

    /// Starts what is due by schedule or by alarm; says whether anything changed. No ring may be about to
    /// go a step on, so that none is written twice.
    async fn begin_rotations(
        &self,
        transaction: &mut store::WriteTransaction,
        interval: u64,
        at: u64,
    ) -> Result<bool, Problem> {
        let (due, guessed, keys, world) = {
            let mut live = self.live();
            let guessed = std::mem::take(&mut live.guessed);
            let (keys, world) = (Arc::clone(&live.keys), Arc::clone(&live.world));
            (live.keys.due(interval, at), guessed, keys, world)
        };
        for &overlay in &due {
            rotation::start_overlay(transaction, &keys, overlay, None, at).await?;
            let action =
                format!("key rotate --overlay {} (scheduled)", overlay_name(&world, overlay));
            self.record(transaction, "schedule", action).await?;
        }
        if !due.is_empty() {
            // An alarm comes again as long as somebody guesses.
            return Ok(true);
        }
        let changed = rotation::start_guessed(transaction, &keys, &guessed, at).await?;
        for (row, by) in &changed {
            let name = |id| rotation::name_of(&world, id);
            let from = row.source.map(|id| format!("{} ", name(id))).unwrap_or_default();
            let to = name(row.destination);
            let overlay = overlay_name(&world, row.overlay);
            let by = name(*by);
            tracing::warn!(%overlay, %from, %to, %by, "somebody guesses at a key: rotating it");
            let action = format!(
                "key rotate {from}{to} --overlay {overlay} --now (alarm of {by}: somebody guesses)"
            );
            self.record(transaction, "alarm", action).await?;
        }
        Ok(!changed.is_empty())
    }

    /// Records what the server did by itself.
    pub(super) async fn record(
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

/// In whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const _: () = assert!(HURRY_MILLIS > 1_000, "a hurried step is longer than a look");
