//! Drains SaPs: make before break. First those who start flows leave, and make their flows known to the SaPs
//! they go to; when all have, those who reply leave, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::live::Live;
use super::publish::Hold;
use super::server::{Server, now};
use super::store::{self, nodes};
use crate::api::admin::{Enforcement, Pending};
use crate::api::table::PathHops;
use crate::api::{Problem, ProblemCode};
use crate::policy::{Drain, World};
use crate::types::{NodeId, NodeKind};

impl Server {
    /// Takes each drain as far as it can go at the moment.
    pub(crate) async fn advance_drains(self: &Arc<Self>) -> Result<(), Problem> {
        if ready(&self.live()).is_empty() {
            return Ok(());
        }
        let gate = Arc::clone(&self.gate).lock_owned().await;
        // Somebody may have changed its mind while we waited.
        let ready = ready(&self.live());
        let mut transaction = self.store.write().await?;
        for sap in ready {
            nodes::set_drain(&mut transaction, sap, Drain::Empty).await?;
            let name = self.live().world.nodes.get(&sap).map(|facts| facts.name.name.clone());
            let action = format!("sap drain {} (all senders left)", name.unwrap_or_default());
            let null = serde_json::Value::Null;
            let done = store::Done { result: (), action, before: null.clone(), after: null };
            let revision = store::revision(&mut transaction).await?;
            store::audit::record(&mut transaction, revision, now(), "drain", &done).await?;
        }
        self.commit(transaction).await?;
        self.publish(Hold::Nobody).await?;
        drop(gate);
        self.tick();
        Ok(())
    }

    /// Waits until nothing is sent to `sap` any more, as long as `limit`, and says how far it came.
    pub(crate) async fn drained_within(&self, sap: NodeId, limit: Duration) -> Enforcement {
        let started = Instant::now();
        let mut ticks = self.ticks.subscribe();
        loop {
            let mut report = progress(&self.live(), sap);
            report.waited_millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let is_over = report.enforced || started.elapsed() >= limit || *self.stopping.borrow();
            if is_over {
                return report;
            }
            let again = Duration::from_millis(200).min(limit.saturating_sub(started.elapsed()));
            let _ = tokio::time::timeout(again, ticks.changed()).await;
        }
    }
}

/// The SaPs that all who start flows have left.
fn ready(live: &Live) -> Vec<NodeId> {
    let leaving = live.world.nodes.iter().filter(|(_, facts)| facts.drain == Drain::Leaving);
    leaving.map(|(id, _)| *id).filter(|id| laggards(live, *id).is_empty()).collect()
}

/// The entities that may send to `sap` and have not acknowledged their newest table.
fn laggards(live: &Live, sap: NodeId) -> Vec<NodeId> {
    let is_behind = |id: &NodeId| {
        live.nodes.get(id).is_some_and(|node| node.acknowledged < node.newest_serial())
    };
    senders(&live.world, sap).filter(is_behind).collect()
}

fn senders(world: &World, sap: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    let serves = world.nodes.get(&sap).map(|facts| &facts.serves);
    let entities = world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Entity);
    entities
        .filter(move |(_, facts)| {
            serves.is_some_and(|serves| facts.addresses.keys().any(|at| serves.contains(at)))
        })
        .map(|(id, _)| *id)
}

fn progress(live: &Live, sap: NodeId) -> Enforcement {
    let behind = laggards(live, sap);
    let is_empty = live.world.nodes.get(&sap).is_none_or(|facts| facts.drain == Drain::Empty);
    let pending: Vec<Pending> = behind.iter().map(|id| live.pending(*id)).collect();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let concerned = senders(&live.world, sap).count();
    Enforcement {
        enforced: is_empty && behind.is_empty(),
        waited: true,
        waited_millis: 0,
        acknowledged: count(concerned - behind.len()),
        concerned: count(concerned),
        enforced_by: Vec::new(),
        pending,
    }
}

/// Refuses to drain a SaP without which somebody could not talk.
pub(crate) fn refuse_needed(world: &World, sap: NodeId) -> Result<(), Problem> {
    let name = super::rotation::name_of(world, sap).name;
    let refused =
        || Problem::new(ProblemCode::Conflict, format!("the SaP {name} cannot be drained"));
    let goes_over = |path: &PathHops| matches!(path, PathHops::Via(chain) if chain.contains(&sap));
    let rule = world.rules.iter().find(|(_, rule)| rule.path.as_ref().is_some_and(goes_over));
    if let Some((id, _)) = rule {
        return Err(refused()
            .why(format!("it is on the path of rule {id}, and its pairs have no other"))
            .fix(format!("ovctl policy revoke {id}, and allow without --via {name}")));
    }
    if let Some(((_, low, high), _)) = world.paths.iter().find(|(_, path)| goes_over(path)) {
        let [one, other] = [low, high].map(|id| super::rotation::name_of(world, *id));
        return Err(refused()
            .why(format!("it is on the path that was set for {one} and {other}"))
            .fix(format!("ovctl path auto {one} {other}")));
    }
    let mut others: BTreeMap<_, usize> = BTreeMap::new();
    for (_, facts) in world.nodes.iter().filter(|(id, facts)| {
        **id != sap && facts.kind == NodeKind::Sap && facts.drain == Drain::No
    }) {
        for overlay in &facts.serves {
            *others.entry(*overlay).or_default() += 1;
        }
    }
    let serves = world.nodes.get(&sap).into_iter().flat_map(|facts| &facts.serves);
    let alone = serves.copied().find(|overlay| {
        let has_members = world.nodes.values().any(|facts| facts.addresses.contains_key(overlay));
        has_members && !others.contains_key(overlay)
    });
    match alone {
        None => Ok(()),
        Some(overlay) => Err(refused()
            .why(format!(
                "no other SaP serves the overlay {}",
                super::selection::overlay_name(world, overlay)
            ))
            .fix("let another one join first: ovctl token create --role sap")),
    }
}
