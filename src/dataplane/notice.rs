//! Facts about packets that were refused or too long, for whoever answers the host and tells others: a
//! hallway hands them over and goes on.
//!
//! A bounded channel that was made whole at the start, and a budget that all lanes share: under a
//! flood of such packets most of them are only counted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::Notify;

use super::control::Budget;
use super::ingress::Devices;
use super::publish::Publisher;
use crate::forward::{PathMtus, Verdict};
use crate::sys::clock;
use crate::sys::offload::layout::Layout;
use crate::sys::offload::vnet::VnetHeader;
use crate::sys::udp::{SendQueue, TooLong, UdpSocket};
use crate::types::{DropReason, OverlayId, TracerId};
use crate::wire::gue::{self, Frame};
use crate::wire::inner::{self, Quoted};
use crate::wire::start::Start;
use crate::wire::{Facts, Family};

/// How many facts may wait.
const TOLD_CAPACITY: usize = 256;

/// Facts a second of all lanes together.
const PER_SECOND: u32 = 500;

const TCP: u8 = 6;

/// What became of a packet that went no further.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// It would have opened a flow, and was refused.
    Refused(Refusal),
    /// It came from this host and is longer than its destination takes.
    Exceeds {
        /// The overlay whose device it came from.
        overlay: OverlayId,
        /// What its destination takes, in bytes.
        mtu: u16,
        /// The packet's first bytes.
        start: Start,
    },
    /// Its datagram was too long for the way.
    TooLong(TooLong),
    /// A tracer was judged: it passed here, or was refused.
    Traced(TracerId, Result<(), DropReason>),
}

/// An opening packet was refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// Where it came from.
    pub origin: Origin,
    /// The flow that it would have opened.
    pub flow: Quoted,
    /// The packet's first bytes.
    pub start: Start,
}

/// Where a refused packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host, through the device of an overlay.
    Host(OverlayId),
    /// The underlay.
    Underlay {
        /// The outer source.
        from: SocketAddr,
        /// The key that it bore.
        key: u32,
    },
}

/// A hallway's end of the channel; each thread has one.
#[derive(Clone, Debug)]
pub struct Teller {
    to_task: SyncSender<Told>,
    bell: Arc<Notify>,
    budget: Arc<Budget>,
}

/// What the hallways tell, for a task.
#[derive(Debug)]
pub struct Listener {
    from_hallways: Receiver<Told>,
    bell: Arc<Notify>,
}

/// The way to this host: packets in the name of the network, and what its own packets must fit.
#[derive(Debug)]
pub struct HostDoor {
    devices: Arc<Publisher<Devices>>,
    mtus: Arc<Publisher<PathMtus>>,
}

impl Listener {
    /// Both ends of a new channel.
    #[must_use]
    pub fn channel() -> (Teller, Self) {
        let (to_task, from_hallways) = sync_channel(TOLD_CAPACITY);
        let bell = Arc::new(Notify::new());
        let budget = Arc::new(Budget::of(PER_SECOND));
        (Teller { to_task, bell: Arc::clone(&bell), budget }, Self { from_hallways, bell })
    }

    /// Waits until there may be something.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    /// The next one, if there is one.
    #[must_use]
    pub fn poll(&self) -> Option<Told> {
        self.from_hallways.try_recv().ok()
    }
}

impl HostDoor {
    /// `devices` are those of any lane: each has a queue of every device.
    pub(super) fn new(devices: Arc<Publisher<Devices>>, mtus: Arc<Publisher<PathMtus>>) -> Self {
        Self { devices, mtus }
    }

    /// Gives the host a packet on the device of `overlay`; whether it took it. Holds on to no device.
    #[must_use]
    pub fn give(&self, overlay: OverlayId, packet: &[u8]) -> bool {
        let devices = self.devices.current();
        let device = devices.get(&overlay);
        device.is_some_and(|tun| tun.write(&VnetHeader::PLAIN, 0, [packet]).is_ok())
    }

    /// From now on the host's packets to `destination` must fit `mtu` bytes; whether that is news.
    #[must_use]
    pub fn narrow(&self, destination: IpAddr, mtu: u16, now_millis: u64) -> bool {
        let next = self.mtus.current().learn(destination, mtu, now_millis);
        next.map(|next| self.mtus.publish(next)).is_some()
    }
}

impl Teller {
    /// A packet of this host was refused. Never waits: a task that is behind hears of the next one.
    pub(super) fn refused(
        &self,
        reason: DropReason,
        overlay: OverlayId,
        family: Family,
        packet: &[u8],
        now_millis: u64,
    ) {
        // Where nobody can carry it, only the host has to hear.
        if is_policy(reason) || reason == DropReason::NoPath {
            self.refuse(reason, Origin::Host(overlay), family, packet, now_millis);
        }
    }

    /// A datagram of the underlay was refused. What it says of itself is checked by whoever hears.
    pub(super) fn refused_datagram(
        &self,
        reason: DropReason,
        from: SocketAddr,
        datagram: &[u8],
        now_millis: u64,
    ) {
        if (is_policy(reason) || reason == DropReason::Path)
            && let Ok(Frame::Data { family, key, inner }) = gue::decode(datagram)
        {
            let origin = Origin::Underlay { from, key };
            self.refuse(reason, origin, family, inner, now_millis);
        }
    }

    /// Passes the verdict on, and tells it where the packet is a tracer.
    pub(super) fn traced(&self, facts: &Facts, verdict: Verdict, now_millis: u64) -> Verdict {
        if let Some(id) = facts.tracer
            && self.budget.take(now_millis)
        {
            let outcome = match verdict {
                Verdict::Send { .. } | Verdict::Deliver { .. } => Ok(()),
                Verdict::Drop(reason) => Err(reason),
            };
            self.tell(Told::Traced(id, outcome));
        }
        verdict
    }

    fn refuse(
        &self,
        reason: DropReason,
        origin: Origin,
        family: Family,
        packet: &[u8],
        now_millis: u64,
    ) {
        let Ok(facts) = inner::parse(family, packet) else { return };
        let Some(flow) = opened(&facts, reason) else { return };
        if !self.budget.take(now_millis) {
            return;
        }
        let refusal = Refusal { reason, origin, flow, start: Start::of(packet) };
        self.tell(Told::Refused(refusal));
    }

    /// A packet of this host is longer than `mtu`, which its destination takes.
    pub(super) fn exceeds(&self, mtu: u16, overlay: OverlayId, packet: &[u8], now_millis: u64) {
        if self.budget.take(now_millis) {
            self.tell(Told::Exceeds { overlay, mtu, start: Start::of(packet) });
        }
    }

    /// Passes on what the kernel heard of datagrams that were too long, those that `queue` could not
    /// send among them. Costs a load when nothing failed.
    pub(super) fn too_long(&self, udp: &UdpSocket, queue: Option<&mut SendQueue>) {
        udp.take_too_long(queue, |too_long| {
            if self.budget.take(clock::monotonic_millis()) {
                self.tell(Told::TooLong(too_long));
            }
        });
    }

    fn tell(&self, told: Told) {
        if self.to_task.try_send(told).is_ok() {
            self.bell.notify_one();
        }
    }
}

/// What the destination of a packet takes, where the packet, or the longest that it is cut into, is
/// longer.
pub(super) fn exceeded(
    mtus: &PathMtus,
    header: Option<VnetHeader>,
    family: Family,
    packet: &[u8],
    now_millis: u64,
) -> Option<u16> {
    let longest = match header.and_then(|header| header.gso) {
        None => packet.len(),
        Some(gso) => Layout::read(packet)?.payload_start + usize::from(gso.size),
    };
    let destination = inner::quoted(family, packet).ok()?.destination;
    mtus.exceeded(destination, longest.min(packet.len()), now_millis)
}

/// Whether it is policy that refused.
fn is_policy(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoRow | DropReason::NoRule | DropReason::DenyRule | DropReason::FlowRevoked
    )
}

/// The flow that a packet would have opened; nobody waits for an answer to a tracer. Of a revoked flow only
/// TCP can tell a new start.
fn opened(facts: &Facts, reason: DropReason) -> Option<Quoted> {
    let flow = facts.opened_flow().filter(|_| facts.tracer.is_none())?;
    let is_new = reason != DropReason::FlowRevoked || flow.protocol == TCP;
    (is_new && !flow.destination.is_multicast()).then_some(flow)
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram};
    use super::*;
    use crate::sys::offload::vnet::{Gso, GsoKind};

    const OVERLAY: OverlayId = OverlayId(1);

    fn count(told: &Listener) -> usize {
        std::iter::from_fn(|| told.poll()).count()
    }

    fn echo_request() -> Vec<u8> {
        datagram(V4_DATA)[gue::HEADER_LEN..].to_vec()
    }

    #[test]
    fn refusals_by_policy_are_told_and_others_are_not() {
        let (teller, listener) = Listener::channel();
        let echo = echo_request();

        for reason in DropReason::ALL {
            teller.refused(*reason, OVERLAY, Family::V4, &echo, 1);
        }

        let reason = |told| match told {
            Told::Refused(refusal) => refusal.reason,
            Told::Exceeds { .. } | Told::TooLong(_) | Told::Traced(..) => panic!("{told:?}"),
        };
        let told: Vec<_> = std::iter::from_fn(|| listener.poll()).map(reason).collect();
        let expected =
            [DropReason::NoRow, DropReason::NoRule, DropReason::DenyRule, DropReason::NoPath];
        assert_eq!(told, expected);

        let from = "192.0.2.1:6080".parse().unwrap();
        for reason in DropReason::ALL {
            teller.refused_datagram(*reason, from, &datagram(V4_DATA), 1);
        }
        let told: Vec<_> = std::iter::from_fn(|| listener.poll()).collect();
        let origin = Origin::Underlay { from, key: 0x1a2b_3c4d };
        let is_right = |told: &Told| matches!(told, Told::Refused(it) if it.origin == origin);
        assert!(told.iter().all(is_right), "{told:?}");
        let reasons: Vec<_> = told.into_iter().map(reason).collect();
        let expected =
            [DropReason::NoRow, DropReason::NoRule, DropReason::DenyRule, DropReason::Path];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn a_flood_uses_the_budget_up_or_fills_the_channel_and_no_more() {
        let (teller, listener) = Listener::channel();
        let lanes = [teller.clone(), teller];
        let echo = echo_request();

        let mut told = 0;
        for round in 0..2 * PER_SECOND as usize {
            lanes[round % 2].refused(DropReason::NoRule, OVERLAY, Family::V4, &echo, 2000);
            told += count(&listener);
        }
        assert_eq!(told, PER_SECOND as usize);

        for _ in 0..2 * TOLD_CAPACITY {
            lanes[0].refused(DropReason::NoRule, OVERLAY, Family::V4, &echo, 3000);
        }
        assert_eq!(count(&listener), TOLD_CAPACITY);
    }

    #[test]
    fn a_packet_is_too_long_when_a_piece_of_it_is() {
        let mut packet = echo_request();
        let destination = "10.0.0.1".parse().unwrap();
        let mtus = PathMtus::default().learn(destination, 600, 0).unwrap();
        packet[9] = 17;
        packet.resize(2000, 0);
        packet[2..4].copy_from_slice(&2000_u16.to_be_bytes());
        packet[24..26].copy_from_slice(&1980_u16.to_be_bytes());
        let of_size = |size| {
            let gso = Some(Gso { kind: GsoKind::Udp, size });
            exceeded(&mtus, Some(VnetHeader { gso, partial: None }), Family::V4, &packet, 0)
        };
        let whole = |len| exceeded(&mtus, Some(VnetHeader::PLAIN), Family::V4, &packet[..len], 0);

        // The headers are 28 bytes.
        assert_eq!((of_size(572), of_size(573)), (None, Some(600)));
        assert_eq!((whole(600), whole(601)), (None, Some(600)));
        assert_eq!(exceeded(&PathMtus::default(), None, Family::V4, &packet, 0), None);
    }

    #[test]
    fn only_what_opens_a_flow_with_one_host_is_told() {
        let (teller, listener) = Listener::channel();
        let tell = |reason, packet: &[u8]| {
            teller.refused(reason, OVERLAY, Family::V4, packet, 1);
            count(&listener)
        };
        let mut packet = echo_request();
        assert_eq!(tell(DropReason::NoRule, &packet), 1);
        packet[20] = 0;
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "an echo reply");

        packet[9] = 6;
        packet.resize(40, 0);
        packet[3] = 40;
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "mid-stream");
        packet[33] = 0x02;
        for reason in [DropReason::NoRule, DropReason::FlowRevoked] {
            assert_eq!(tell(reason, &packet), 1, "an opening segment");
        }
        packet[6..8].copy_from_slice(&[0, 9]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "a later fragment");
        packet[6..8].copy_from_slice(&[0, 0]);
        packet[9] = 17;
        packet[24..26].copy_from_slice(&[0, 20]);
        assert_eq!(tell(DropReason::NoRule, &packet), 1, "a datagram");
        packet[16..20].copy_from_slice(&[224, 0, 0, 251]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "to many");
    }
}
