//! Does what the server asks of this node while it waits for a table.

use rand::RngExt as _;
use tokio::sync::mpsc;

use super::daemon::Shared;
use crate::agent::client::Client;
use crate::agent::tracers;
use crate::api::errand::{Errand, ErrandReport, Order, TRACERS_MAX, Tracer};
use crate::dataplane::TracerDoor;
use crate::types::Secret;

/// Source ports, and identifiers of echoes.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=u16::MAX;

/// Runs for ever. A node without a door, which is a SaP, sends nothing.
pub(crate) async fn run(
    shared: &Shared,
    client: &Client,
    credential: &Secret,
    door: Option<TracerDoor>,
    mut errands: mpsc::Receiver<Errand>,
) {
    while let Some(Errand { id, order }) = errands.recv().await {
        let sightings = match (order, &door) {
            (Order::Send(tracers), Some(door)) => {
                send(shared, door, &tracers);
                Vec::new()
            }
            (Order::Send(_), None) => Vec::new(),
            (Order::Tell(mut ids), _) => {
                ids.truncate(TRACERS_MAX);
                shared.sightings().of(&ids)
            }
        };
        let report = ErrandReport { errand: id, sightings };
        if let Err(problem) = client.report_errand(credential, &report).await {
            tracing::debug!(what = %problem.what, why = %problem.why, "errand not reported");
        }
    }
    std::future::pending().await
}

fn send(shared: &Shared, door: &TracerDoor, tracers: &[Tracer]) {
    let snapshot = shared.publisher.current();
    let packets = tracers.iter().take(TRACERS_MAX).filter_map(|tracer| {
        tracers::packet(&snapshot, tracer, rand::rng().random_range(SOURCE_PORTS))
    });
    door.send(packets);
}
