//! Asks nodes to do something while they wait for a table, and waits for what they say.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::oneshot;

use super::server::Server;
use crate::api::errand::{Errand, ErrandReport, Order, Sighting, TRACERS_MAX};
use crate::types::NodeId;

/// How long a node may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Most errands that wait for one node.
const WAITING_MAX: usize = 8;

/// Errands that were not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Errands(BTreeMap<u64, (NodeId, oneshot::Sender<Vec<Sighting>>)>);

impl Errands {
    /// A node says that it is done. What nobody asked it for is nothing.
    pub(crate) fn settle(&mut self, node: NodeId, report: ErrandReport) {
        let is_asked = self.0.get(&report.errand).is_some_and(|(asked, _)| *asked == node);
        if is_asked && let Some((_, answer)) = self.0.remove(&report.errand) {
            let mut sightings = report.sightings;
            sightings.truncate(TRACERS_MAX);
            // Whoever asked may have given up.
            let _ = answer.send(sightings);
        }
    }
}

/// Forgets an errand, also when whoever asked goes away: nobody does it an hour later.
struct Asked<'a> {
    server: &'a Server,
    node: NodeId,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.server.errands().0.remove(&self.id);
        if let Some(state) = self.server.live().nodes.get_mut(&self.node) {
            state.errands.retain(|errand| errand.id != self.id);
        }
    }
}

/// What the node says; none when it says nothing in time.
pub(super) async fn ask(server: &Server, node: NodeId, order: Order) -> Option<Vec<Sighting>> {
    let id = rand::rng().random();
    let (answer, answered) = oneshot::channel();
    server.errands().0.insert(id, (node, answer));
    let _asked = Asked { server, node, id };
    {
        let mut live = server.live();
        let state = live.nodes.get_mut(&node)?;
        if state.errands.len() == WAITING_MAX {
            state.errands.pop_front();
        }
        state.errands.push_back(Errand { id, order });
        state.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
    tokio::time::timeout(ANSWER_WITHIN, answered).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TracerId;

    #[test]
    fn only_the_node_that_was_asked_answers_and_no_more_than_was_asked() {
        let mut errands = Errands::default();
        let (answer, mut answered) = oneshot::channel();
        errands.0.insert(7, (NodeId(1), answer));
        let sighting = Sighting { tracer: TracerId(1), refused: None };
        let sightings = vec![sighting; 2 * TRACERS_MAX];
        let report = |errand| ErrandReport { errand, sightings: sightings.clone() };

        errands.settle(NodeId(2), report(7));
        errands.settle(NodeId(1), report(8));
        assert!(answered.try_recv().is_err(), "not asked");

        errands.settle(NodeId(1), report(7));
        assert_eq!(answered.try_recv().map(|told| told.len()), Ok(TRACERS_MAX));
    }
}
