//! Sends tracers along the real path, and asks everybody on it what became of them (docs/adr/0012).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::errands;
use super::rotation::name_of;
use super::server::{Server, now};
use crate::api::errand::{Order, Sighting, Tracer};
use crate::policy::{self, AskedPair, World};
use crate::types::{NodeId, OverlayId, TracerId};

/// How often a tracer that nobody saw end is sent.
const ROUNDS: usize = 2;

/// How often nodes are asked in a round, and how long they get before each time.
const LOOKS: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(80);

/// One opening packet to send between two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// What became of a tracer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed everywhere; the destination kept it back from its host.
    Delivered,
    /// This node refused it, for the reason of this name.
    Refused(NodeId, String),
    /// It passed here last, and nobody refused it.
    Lost(NodeId),
    /// It was not sent: why.
    Unsent(String),
}

/// A tracer on its way.
struct Sent {
    flow: Flow,
    tracer: Tracer,
    /// Who may see it, in the order of the way; of several ways, one behind the other.
    way: Vec<NodeId>,
    seen: BTreeMap<NodeId, Option<String>>,
    problem: Option<String>,
}

impl Sent {
    fn new(world: &World, overlay: OverlayId, id: TracerId, flow: Flow) -> Self {
        let Flow { from, to, protocol, port } = flow;
        let address = world.nodes.get(&to).and_then(|facts| facts.addresses.get(&overlay)).copied();
        let problem = address.is_none().then(|| format!("{} has no address", name_of(world, to)));
        let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
        let to_address = address.unwrap_or(unspecified);
        let ways = policy::ways(world, &AskedPair { overlay, from, to }, now()).unwrap_or_default();
        let saps = ways.into_iter().flat_map(|(_, saps)| saps);
        let way = std::iter::once(from).chain(saps).chain([to]).collect();
        let tracer = Tracer { id, overlay, to: to_address, protocol, port };
        Self { flow, tracer, way, seen: BTreeMap::new(), problem }
    }

    fn is_open(&self) -> bool {
        self.problem.is_none() && matches!(self.outcome(), Outcome::Lost(_))
    }

    fn outcome(&self) -> Outcome {
        if let Some(why) = &self.problem {
            return Outcome::Unsent(why.clone());
        }
        if self.seen.get(&self.flow.to) == Some(&None) {
            return Outcome::Delivered;
        }
        let refused = self.way.iter().find_map(|node| {
            let reason = self.seen.get(node)?.clone()?;
            Some(Outcome::Refused(*node, reason))
        });
        let last = self.way.iter().rev().find(|node| self.seen.contains_key(node));
        refused.unwrap_or(Outcome::Lost(last.copied().unwrap_or(self.flow.from)))
    }
}

/// Sends one tracer for each flow and waits for what becomes of them.
pub(super) async fn trace(
    server: &Arc<Server>,
    overlay: OverlayId,
    flows: &[Flow],
) -> Vec<Outcome> {
    let world = Arc::clone(&server.live().world);
    let mut sent: Vec<Sent> = flows
        .iter()
        .map(|flow| Sent::new(&world, overlay, TracerId(rand::random()), *flow))
        .collect();
    for one in &mut sent {
        let away =
            away(server, &world, one.flow.from).or_else(|| away(server, &world, one.flow.to));
        one.problem = one.problem.take().or(away);
    }
    for round in 1..=ROUNDS {
        let silent = send(server, &sent).await;
        for one in sent.iter_mut().filter(|one| silent.contains(&one.flow.from)) {
            if round == ROUNDS && one.seen.is_empty() {
                one.problem = Some(format!("{} does not answer", name_of(&world, one.flow.from)));
            }
        }
        for _ in 0..LOOKS {
            if !sent.iter().any(Sent::is_open) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            look(server, &mut sent).await;
        }
    }
    sent.iter().map(Sent::outcome).collect()
}

/// Why nothing can be said of a node.
fn away(server: &Server, world: &World, id: NodeId) -> Option<String> {
    let live = server.live();
    match live.nodes.get(&id) {
        None => Some(format!("{} is gone", name_of(world, id))),
        Some(node) if !node.is_online() => {
            Some(format!("{} is {}", name_of(world, id), node.why_behind()))
        }
        Some(_) => None,
    }
}

/// Has every source send what is open. Returns the sources that said nothing.
async fn send(server: &Arc<Server>, sent: &[Sent]) -> BTreeSet<NodeId> {
    let mut by_source: BTreeMap<NodeId, Vec<Tracer>> = BTreeMap::new();
    for one in sent.iter().filter(|one| one.is_open()) {
        by_source.entry(one.flow.from).or_default().push(one.tracer);
    }
    let orders = by_source.into_iter().map(|(node, tracers)| (node, Order::Send(tracers)));
    let answers = ask_all(server, orders).await;
    answers.into_iter().filter(|(_, told)| told.is_none()).map(|(node, _)| node).collect()
}

/// Asks everybody who may have seen what is open.
async fn look(server: &Arc<Server>, sent: &mut [Sent]) {
    let mut by_node: BTreeMap<NodeId, Vec<TracerId>> = BTreeMap::new();
    for one in sent.iter().filter(|one| one.is_open()) {
        for node in &one.way {
            by_node.entry(*node).or_default().push(one.tracer.id);
        }
    }
    // Who is away would only be waited for.
    let online = |(node, _): &(NodeId, _)| {
        server.live().nodes.get(node).is_some_and(|state| state.is_online())
    };
    let orders = by_node.into_iter().filter(online).map(|(node, ids)| (node, Order::Tell(ids)));
    for (node, sightings) in ask_all(server, orders).await {
        for Sighting { tracer, refused } in sightings.into_iter().flatten() {
            let one = sent.iter_mut().find(|one| one.tracer.id == tracer);
            if let Some(one) = one.filter(|one| one.way.contains(&node)) {
                one.seen.insert(node, refused);
            }
        }
    }
}

async fn ask_all(
    server: &Arc<Server>,
    orders: impl Iterator<Item = (NodeId, Order)>,
) -> Vec<(NodeId, Option<Vec<Sighting>>)> {
    let mut asked = JoinSet::new();
    for (node, order) in orders {
        let server = Arc::clone(server);
        asked.spawn(async move { (node, errands::ask(&server, node, order).await) });
    }
    asked.join_all().await
}
