//! Moves control messages between the data socket and the agent's probes.

use std::time::Duration;

use tokio::sync::mpsc;

use super::daemon::Shared;
use crate::agent::notices;
use crate::agent::probes::{Change, Heard, Probes};
use crate::dataplane::{self, ControlPort, Way};
use crate::types::NodeId;
use crate::wire::control::Message;
use crate::wire::notice::NoPath;

/// How often the hallways' traces are looked at: the first packet after idle time probes soon after.
const ACTIVITY_EVERY: Duration = Duration::from_millis(50);

/// So many messages leave at once, and then after so long: a peer has room for some of them only.
const BURST: usize = 64;
const BETWEEN_BURSTS: Duration = Duration::from_millis(5);

/// Many entities may prove where they are at once; hallways are told of some at a time.
const BETWEEN_PLACINGS: Duration = Duration::from_millis(5);

/// Runs until the plane stops.
///
/// What probes have no business with goes to `heard`; what finds no room there is said again.
pub(crate) async fn run(shared: &Shared, mut port: ControlPort, heard: mpsc::Sender<Heard>) {
    let mut moved_before = moved(shared);
    let mut looked = shared.now();
    let mut placed = (0, shared.now());
    loop {
        let now = shared.now();
        let (deadline, is_behind) = {
            let probes = shared.probes();
            let is_misplaced = probes.proofs().version() != placed.0;
            (probes.next_deadline(), probes.has_queued() || is_misplaced)
        };
        let longest = if is_behind { BETWEEN_BURSTS } else { ACTIVITY_EVERY };
        let wait = deadline.map_or(longest, |at| at.saturating_sub(now)).min(longest);
        let punted = tokio::select! {
            punted = port.receive.recv() => match punted {
                Some(punted) => Some(punted),
                None => return,
            },
            () = tokio::time::sleep(wait) => None,
            () = shared.control_due.notified() => None,
        };

        let now = shared.now();
        let is_look = now.saturating_sub(looked) >= ACTIVITY_EVERY;
        let mut probes = shared.probes();
        probes.set_quiet(shared.health.is_copy());
        match punted.map(|punted| probes.handle_datagram(punted.from, punted.bytes(), now)) {
            Some(Ok(Some(Heard { peer, message: Message::Started(flow) }))) => {
                let snapshot = shared.publisher.current();
                if !snapshot.take_up(peer, &flow, shared.flows(), dataplane::now()) {
                    tracing::debug!(%peer, ?flow, "not taken up");
                }
            }
            Some(Ok(Some(said))) => drop(heard.try_send(said)),
            Some(Err(reason)) => shared.counters.control.count_drop(reason),
            Some(Ok(None)) | None => {}
        }
        let moved = moved(shared);
        if moved != moved_before {
            moved_before = moved;
            probes.handle_activity(now);
        }
        if is_look {
            looked = now;
            probes.handle_sent(&shared.publisher.current().take_sent_to(), now);
            tell_senders(shared, &mut probes, now);
        }
        probes.handle_timeout(now);
        for transmit in std::iter::from_fn(|| probes.poll_transmit(now)).take(BURST) {
            // The next echo makes up for one that the kernel refused.
            if let Err(error) = port.send(transmit.to, &transmit.bytes) {
                tracing::debug!(to = %transmit.to, %error, "control message not sent");
            }
        }
        let changes = probes.changes();
        let version = probes.proofs().version();
        drop(probes);
        if version != placed.0 && now.saturating_sub(placed.1) >= BETWEEN_PLACINGS {
            placed = (version, now);
            shared.publisher.publish(shared.place_entities(&shared.publisher.current()));
            shared.report_soon();
        }
        if !changes.is_empty() {
            let snapshot = shared.publisher.current();
            for change in changes {
                if change.apply(&snapshot, shared.flows()) {
                    note(change);
                }
            }
            announce(shared, &started(shared));
            shared.report_soon();
        }
    }
}

/// The flows that this host started, each with the SaP that it goes to now.
pub(crate) fn started(shared: &Shared) -> Vec<(NodeId, Message)> {
    notices::started(&shared.publisher.current(), shared.flows(), dataplane::now())
}

/// Makes flows that this host started known to the SaPs that they go to now: replies may come by there
/// before the next packet of ours does.
pub(crate) fn announce<'a>(
    shared: &Shared,
    started: impl IntoIterator<Item = &'a (NodeId, Message)>,
) {
    for (sap, started) in started {
        shared.notify(*sap, started);
    }
}

/// What this host sent and received.
fn moved(shared: &Shared) -> u64 {
    [Way::Egress, Way::Ingress].map(|way| shared.counters.passed(way).packets).iter().sum()
}

/// Tells those who send to somebody whom this SaP does not hear any more.
fn tell_senders(shared: &Shared, probes: &mut Probes, now: Duration) {
    let silent = probes.silent(now);
    if silent.is_empty() {
        return;
    }
    let snapshot = shared.publisher.current();
    let told = notices::no_path(&snapshot, shared.flows(), &silent, dataplane::now());
    tracing::debug!(?silent, told = told.len(), "no word of entities that packets go to");
    for (sender, node) in told {
        probes.notify(sender, &Message::NoPath(NoPath { node }));
    }
}

fn note(change: Change) {
    match change {
        Change::Sap { sap, is_alive: true } => tracing::info!(%sap, "the SaP answers"),
        Change::Returning { sap, is_returning } => {
            tracing::debug!(%sap, is_returning, "the SaP is on its way back");
        }
        Change::Sap { sap, is_alive: false } => tracing::warn!(%sap, "the SaP does not answer"),
        Change::Peer { sap, peer, reaches: true } => {
            tracing::info!(%sap, %peer, "the SaP has found an entity again");
        }
        Change::Peer { sap, peer, reaches: false } => {
            tracing::warn!(%sap, %peer, "the SaP has lost an entity");
        }
    }
}
