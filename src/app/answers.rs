//! Answers this host in the name of the network when its packet was refused or too long, and remembers
//! it; tells the source where that is another host.

use std::net::IpAddr;

use tokio::sync::mpsc;

use super::daemon::Shared;
use crate::agent::notices::{self, Excess, believes};
use crate::agent::pace::Pace;
use crate::agent::probes::Heard;
use crate::api::local::RefusedBy;
use crate::dataplane::{self, HostDoor, Listener, Origin, Refusal, Told};
use crate::forward::{OverlayInfo, Snapshot};
use crate::sys::clock;
use crate::sys::udp::TooLong;
use crate::types::{DropReason, NodeId, OverlayId};
use crate::wire::answer;
use crate::wire::control::Message;
use crate::wire::inner::Quoted;
use crate::wire::notice::{Denied, Refuser, TooBig};

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
            Told::Refused(refusal) => match refusal.origin {
                Origin::Host(overlay) => self.refuse(&snapshot, overlay, refusal),
                Origin::Underlay { from, key } => {
                    let (reason, by, flow) = (refusal.reason, Refuser::Sap, refusal.flow);
                    let sequence = answer::tcp_sequence(refusal.start.as_slice()).unwrap_or(0);
                    let denied = Denied { reason, by, flow, sequence };
                    let notice = notices::tell(&snapshot, (from, key), denied);
                    self.tell(flow.source, notice);
                }
            },
            Told::Exceeds { overlay, mtu, start } => {
                self.answer_excess(&snapshot, *overlay, start.as_slice(), *mtu);
            }
            Told::TooLong(too_long) => self.judge_excess(&snapshot, too_long),
            Told::Traced(id, outcome) => self.shared.sightings().note(*id, *outcome),
        }
    }

    /// A peer said something authentic.
    fn hear(&mut self, heard: Heard) {
        let snapshot = self.shared.publisher.current();
        match heard.message {
            Message::TooBig(too_big) if believes(&snapshot, heard.peer, &too_big) => {
                self.narrow(&too_big);
            }
            Message::Refused(denied) => {
                let notice = notices::pass_on(&snapshot, heard.peer, denied);
                self.tell(denied.flow.source, notice);
            }
            Message::Denied(denied) => self.hear_denied(&snapshot, heard.peer, &denied),
            Message::TooBig(_)
            | Message::EchoRequest(_)
            | Message::EchoReply(_)
            | Message::Challenge(_)
            | Message::NoPath(_)
            | Message::Started(_) => {
                tracing::debug!(peer = %heard.peer, message = ?heard.message, "not believed");
            }
        }
    }

    /// An opening packet of this host was refused by this very node.
    fn refuse(&mut self, snapshot: &Snapshot, overlay: OverlayId, refusal: &Refusal) {
        let Refusal { reason, flow, start, .. } = refusal;
        let Some(overlay) = own_overlay(snapshot, overlay, ends(flow)) else { return };
        self.note(overlay, flow, (*reason, RefusedBy::Ovd));
        let sequence = answer::tcp_sequence(start.as_slice());
        self.answer(overlay, flow, || {
            let reset = sequence.and_then(|sequence| answer::reset(flow, sequence));
            reset.or_else(|| answer::prohibited(start.as_slice()))
        });
    }

    /// A SaP says that an opening packet of this host was refused.
    fn hear_denied(&mut self, snapshot: &Snapshot, sap: NodeId, denied: &Denied) {
        let (flows, now) = (self.shared.flows(), dataplane::now());
        let Some(pair) = notices::believed(snapshot, sap, denied, flows, now) else { return };
        let Denied { reason, by, flow, sequence } = denied;
        let by = match by {
            Refuser::Sap => RefusedBy::Sap,
            Refuser::Destination => RefusedBy::Destination,
        };
        self.note(pair.overlay(), flow, (*reason, by));
        self.answer(pair.overlay(), flow, || {
            let reset = answer::reset(flow, *sequence);
            reset.or_else(|| answer::prohibited(&answer::stub(flow, *sequence)?))
        });
    }

    fn note(&self, overlay: &OverlayInfo, flow: &Quoted, why: (DropReason, RefusedBy)) {
        self.shared.denials().note(&overlay.name, flow, why, clock::wall());
        tracing::debug!(overlay = %overlay.name, reason = why.0.name(), by = ?why.1, ?flow, "refused");
    }

    /// A reset for TCP, an ICMP error for everything else; none where the overlay is silent.
    fn answer(
        &mut self,
        overlay: &OverlayInfo,
        flow: &Quoted,
        packet: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        if !overlay.is_silent
            && self.refusals.take(ends(flow), self.shared.now().as_secs())
            && let Some(packet) = packet()
        {
            self.give(overlay.id, &packet);
        }
    }

    /// Sends a notice about a packet of `source`, as often as its pace allows.
    fn tell(&mut self, source: IpAddr, notice: Option<(NodeId, Message)>) {
        if let Some((peer, notice)) = notice
            && self.notices.take(source, self.shared.now().as_secs())
        {
            self.shared.notify(peer, &notice);
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
        } else {
            self.tell(too_big.source, Some((pair.source(), Message::TooBig(too_big))));
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

fn ends(flow: &Quoted) -> Ends {
    (flow.source, flow.destination)
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
