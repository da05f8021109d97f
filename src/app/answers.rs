//! Answers this host in the name of the network when `ovd` refused its packet, and remembers it.

use super::daemon::Shared;
use crate::agent::denials::Pace;
use crate::dataplane::{HostDoor, Refusal, Refusals};
use crate::forward::OverlayInfo;
use crate::sys::clock;
use crate::wire::answer;

/// Runs for ever. A SaP has no host to answer.
pub(crate) async fn run(shared: &Shared, answering: Option<(Refusals, HostDoor)>) {
    let Some((refusals, door)) = answering else { return std::future::pending().await };
    let mut pace = Pace::default();
    loop {
        refusals.rung().await;
        while let Some(refusal) = refusals.poll() {
            let snapshot = shared.publisher.current();
            let overlay = snapshot.overlays().find(|overlay| overlay.id == refusal.overlay);
            let Some(overlay) = overlay.filter(|overlay| is_ours(overlay, &refusal)) else {
                continue;
            };
            let Refusal { reason, flow, .. } = refusal;
            shared.denials().note(&overlay.name, &flow, reason, clock::wall());
            tracing::debug!(overlay = %overlay.name, reason = reason.name(), ?flow, "refused");
            if !overlay.is_silent
                && pace.take(&flow, shared.now().as_secs())
                && let Some(packet) = answer_to(&refusal)
                && !door.give(overlay.id, &packet)
            {
                tracing::debug!(overlay = %overlay.name, "the device took no answer");
            }
        }
    }
}

/// Whether the refused packet was one of this host's own to one address of the overlay.
fn is_ours(overlay: &OverlayInfo, refusal: &Refusal) -> bool {
    let destination = refusal.flow.destination;
    overlay.address == Some(refusal.flow.source)
        && overlay.cidr.contains(&destination)
        && (destination.is_ipv6() || destination != overlay.cidr.broadcast())
}

/// A reset for TCP, an ICMP error for everything else.
fn answer_to(refusal: &Refusal) -> Option<Vec<u8>> {
    let start = refusal.start.as_slice();
    answer::tcp_sequence(start)
        .and_then(|sequence| answer::reset(&refusal.flow, sequence))
        .or_else(|| answer::prohibited(start))
}
