//! Answers this host in the name of the network when its packet was refused or too long, and remembers
//! it; tells the source where that is another host.

use std::net::IpAddr;

use tokio::sync::mpsc;

use super::daemon::Shared;
use crate::agent::notices::{Excess, believes};
use crate::agent::pace::Pace;
use crate::agent::probes::Heard;
use crate::dataplane::{HostDoor, Listener, Refusal, Told};
use crate::forward::{OverlayInfo, Snapshot};
use crate::sys::clock;
use crate::sys::udp::TooLong;
use crate::types::OverlayId;
use crate::wire::answer;
use crate::wire::control::Message;
use crate::wire::notice::TooBig;

/// Runs for ever, on what the hallways tell and on what peers say.
pub(crate) async fn run(
    shared: &Shared,
    listener: Option<Listener>,
    door: Option<HostDoor>,
    mut heard: mpsc::Receiver<Heard>,
) {
    let Some(listener) = listener else { return std::future::pending().await };
    let mut desk = Desk {
        shared,
        door,
        refusals: Pace::default(),
        excesses: Pace::default(),
        notices: Pace::default(),
    };
    loop {
        tokio::select! {
            () = listener.rung() => {}
            Some(heard) = heard.recv() => desk.hear(heard),
        }
        while let Some(told) = listener.poll() {
            desk.take(&told);
        }
    }
}

/// Source and destination of a packet.
type Ends = (IpAddr, IpAddr);

struct Desk<'a> {
    shared: &'a Shared,
    /// A SaP has no host behind it.
    door: Option<HostDoor>,
    refusals: Pace<Ends>,
    excesses: Pace<Ends>,
    /// By the source that is told.
    notices: Pace<IpAddr>,
}

impl Desk<'_> {
    fn take(&mut self, told: &Told) {
        let snapshot = self.shared.publisher.current();
        match told {
            Told::Refused(refusal) => self.refuse(&snapshot, refusal),
            Told::Exceeds { overlay, mtu, start } => {
                self.answer_excess(&snapshot, *overlay, start.as_slice(), *mtu);
            }
            Told::TooLong(too_long) => self.judge_excess(&snapshot, too_long),
        }
    }

    /// A peer said something authentic.
    fn hear(&self, heard: Heard) {
        let snapshot = self.shared.publisher.current();
        match heard.message {
            Message::TooBig(too_big) if believes(&snapshot, heard.peer, &too_big) => {
                self.narrow(&too_big);
            }
            Message::TooBig(_)
            | Message::Denied(_)
            | Message::Refused(_)
            | Message::EchoRequest(_)
            | Message::EchoReply(_) => {
                tracing::debug!(peer = %heard.peer, message = ?heard.message, "not believed");
            }
        }
    }

    /// An opening packet of this host was refused by this very node.
    fn refuse(&mut self, snapshot: &Snapshot, refusal: &Refusal) {
        let Some(overlay) = own_overlay(snapshot, refusal.overlay, ends(refusal)) else { return };
        let Refusal { reason, flow, .. } = *refusal;
        self.shared.denials().note(&overlay.name, &flow, reason, clock::wall());
        tracing::debug!(overlay = %overlay.name, reason = reason.name(), ?flow, "refused");
        if !overlay.is_silent
            && self.refusals.take(ends(refusal), self.shared.now().as_secs())
            && let Some(packet) = answer_to(refusal)
        {
            self.give(overlay.id, &packet);
        }
    }

    /// A datagram of this node was too long for its way, as far as somebody says.
    fn judge_excess(&mut self, snapshot: &Snapshot, too_long: &TooLong) {
        let TooLong { to, mtu, is_local, start } = too_long;
        let excess = Excess { to: *to, mtu: *mtu, is_local: *is_local, datagram: start.as_slice() };
        let Some((too_big, packet)) = excess.believe(snapshot) else { return };
        let Some(pair) = snapshot.pair(too_big.source, too_big.destination) else { return };
        if pair.is_own() {
            self.narrow(&too_big);
            self.answer_excess(snapshot, pair.overlay().id, packet, too_big.mtu);
        } else if self.notices.take(too_big.source, self.shared.now().as_secs()) {
            self.shared.notify(pair.source(), &Message::TooBig(too_big));
        }
    }

    /// From now on packets of this host to that destination have to fit.
    fn narrow(&self, too_big: &TooBig) {
        let TooBig { destination, mtu, .. } = *too_big;
        let now_millis = clock::monotonic_millis();
        if self.door.as_ref().is_some_and(|door| door.narrow(destination, mtu, now_millis)) {
            tracing::debug!(%destination, mtu, "longer packets do not fit the way");
        }
    }

    /// A packet of this host, whose first bytes are given, is longer than `mtu`.
    fn answer_excess(&mut self, snapshot: &Snapshot, overlay: OverlayId, packet: &[u8], mtu: u16) {
        let Some(answer) = answer::too_big(packet, mtu) else { return };
        let Some(ends) = answer::ends(packet) else { return };
        let is_ours = own_overlay(snapshot, overlay, ends).is_some();
        if is_ours && self.excesses.take(ends, self.shared.now().as_secs()) {
            self.give(overlay, &answer);
        }
    }

    fn give(&self, overlay: OverlayId, packet: &[u8]) {
        if !self.door.as_ref().is_some_and(|door| door.give(overlay, packet)) {
            tracing::debug!(%overlay, "the device took no answer");
        }
    }
}

fn ends(refusal: &Refusal) -> Ends {
    (refusal.flow.source, refusal.flow.destination)
}

/// The overlay, when the packet was one of this host's own to one address of it.
fn own_overlay(
    snapshot: &Snapshot,
    id: OverlayId,
    (source, destination): Ends,
) -> Option<&OverlayInfo> {
    let is_ours = |overlay: &&OverlayInfo| {
        overlay.id == id
            && overlay.address == Some(source)
            && overlay.cidr.contains(&destination)
            && (destination.is_ipv6() || destination != overlay.cidr.broadcast())
    };
    snapshot.overlays().find(is_ours)
}

/// A reset for TCP, an ICMP error for everything else.
fn answer_to(refusal: &Refusal) -> Option<Vec<u8>> {
    let start = refusal.start.as_slice();
    answer::tcp_sequence(start)
        .and_then(|sequence| answer::reset(&refusal.flow, sequence))
        .or_else(|| answer::prohibited(start))
}
