//! Moves control messages between the data socket and the agent's probes.

use std::time::Duration;

use tokio::sync::mpsc;

use super::daemon::Shared;
use crate::agent::probes::Heard;
use crate::dataplane::{ControlPort, Way};

/// How often the egress counter is looked at: the first packet after idle time probes soon after.
const ACTIVITY_EVERY: Duration = Duration::from_millis(100);

/// Runs until the plane stops.
///
/// What probes have no business with goes to `heard`; what finds no room there is said again.
pub(crate) async fn run(shared: &Shared, mut port: ControlPort, heard: mpsc::Sender<Heard>) {
    let mut sent_before = shared.counters.passed(Way::Egress).packets;
    loop {
        let now = shared.now();
        let deadline = shared.probes().next_deadline();
        let wait = deadline.map_or(ACTIVITY_EVERY, |at| at.saturating_sub(now)).min(ACTIVITY_EVERY);
        let punted = tokio::select! {
            punted = port.receive.recv() => match punted {
                Some(punted) => Some(punted),
                None => return,
            },
            () = tokio::time::sleep(wait) => None,
            () = shared.control_due.notified() => None,
        };

        let now = shared.now();
        let sent = shared.counters.passed(Way::Egress).packets;
        let mut probes = shared.probes();
        match punted.map(|punted| probes.handle_datagram(punted.from, punted.bytes(), now)) {
            Some(Ok(Some(said))) => drop(heard.try_send(said)),
            Some(Err(reason)) => shared.counters.control.count_drop(reason),
            Some(Ok(None)) | None => {}
        }
        if sent != sent_before {
            sent_before = sent;
            probes.handle_activity(now);
        }
        probes.handle_timeout(now);
        while let Some(transmit) = probes.poll_transmit(now) {
            // The next echo makes up for one that the kernel refused.
            if let Err(error) = port.send(transmit.to, &transmit.bytes) {
                tracing::debug!(to = %transmit.to, %error, "control message not sent");
            }
        }
        let changes = probes.liveness_changes();
        drop(probes);
        for (sap, is_alive) in changes {
            shared.publisher.current().set_alive(sap, is_alive);
            if is_alive {
                tracing::info!(%sap, "the SaP answers");
            } else {
                tracing::warn!(%sap, "the SaP does not answer");
            }
        }
    }
}
