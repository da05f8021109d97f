//! Egress: from the host to the underlay.

use std::sync::Arc;

use super::counters::{HallwayCounters, LaneCounters, Tally};
use super::hallway::{Basis, Common, now};
use super::notice::{Teller, exceeded};
use super::publish::{Publisher, Reader};
use super::train::{Leaving, Memo};
use crate::forward::{FlowTable, PathMtus, Snapshot, Verdict};
use crate::sys::batch::{BATCH, PacketBatch};
use crate::sys::offload::split::Split;
use crate::sys::offload::vnet::VnetHeader;
use crate::sys::offload::{Head, checksum};
use crate::sys::tun::Tun;
use crate::sys::udp::{Outgoing, SendQueue, TTL, UdpSocket};
use crate::types::{DropReason, OverlayId};
use crate::wire::{Facts, Family, gue, inner};

/// One packet after the judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judged {
    verdict: Verdict,
    family: Family,
    /// Length by the packet's own header, in bytes.
    len: usize,
    ecn: u8,
}

/// Runs until the thread is told to stop. Returns why when the device went away.
pub(super) fn run(
    tun: &Arc<Tun>,
    overlay: OverlayId,
    mut common: Common,
    mut mtus: Reader<PathMtus>,
    teller: Teller,
) -> std::io::Result<()> {
    let mut batch = PacketBatch::new();
    let mut egress = Egress::new(overlay, teller);
    while common.goes_on() {
        tun.read_batch(&mut batch)?;
        if batch.is_empty() {
            continue;
        }
        let basis = Basis { snapshot: common.snapshot.latest(), flows: &common.flows, now: now() };
        egress.send(&mut batch, mtus.latest(), &common.udp, basis, &common.counters.egress);
    }
    Ok(())
}

/// The way of tracers into the network: what a hallway does with a packet of the host, beside the hallways.
#[derive(Debug)]
pub struct TracerDoor {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) snapshots: Arc<Publisher<Snapshot>>,
    pub(super) flows: Arc<FlowTable>,
    pub(super) mtus: Arc<Publisher<PathMtus>>,
    pub(super) counters: Arc<LaneCounters>,
    pub(super) teller: Teller,
}

impl TracerDoor {
    /// Judges packets as this host's own in their overlays, and sends those that pass. What became of them
    /// is told as of every tracer. Allocates: for a few packets now and then.
    pub fn send(&self, packets: impl IntoIterator<Item = (OverlayId, Vec<u8>)>) {
        let mut batch = PacketBatch::new();
        let (snapshot, mtus) = (self.snapshots.current(), self.mtus.current());
        for (overlay, packet) in packets {
            batch.clear();
            batch.push(Some(VnetHeader::PLAIN), &packet);
            let basis = Basis { snapshot: &snapshot, flows: &self.flows, now: now() };
            let mut egress = Egress::new(overlay, self.teller.clone());
            egress.send(&mut batch, &mtus, &self.udp, basis, &self.counters.egress);
        }
    }
}

/// What one queue of a device keeps from batch to batch, so that a batch allocates nothing.
#[derive(Debug)]
pub struct Egress {
    overlay: OverlayId,
    teller: Teller,
    queue: SendQueue,
    judged: Vec<Judged>,
    refused: Tally,
    passed: Tally,
}

impl Egress {
    /// For one queue of the device of `overlay`; `teller` hears of what is refused or too long.
    #[must_use]
    pub fn new(overlay: OverlayId, teller: Teller) -> Self {
        Self {
            overlay,
            teller,
            queue: SendQueue::new(),
            judged: Vec::with_capacity(BATCH),
            refused: Tally::new(),
            passed: Tally::new(),
        }
    }

    /// Judges every packet of `batch` and sends what passes, wrapped, by `udp`. Checksums that the
    /// host left half done are completed in place. What is longer than `mtus` say stays.
    pub fn send(
        &mut self,
        batch: &mut PacketBatch,
        mtus: &PathMtus,
        udp: &UdpSocket,
        basis: Basis<'_>,
        counters: &HallwayCounters,
    ) {
        let Basis { snapshot, flows, now } = basis;
        let Self { overlay, teller, queue, judged, refused, passed } = self;
        // A publish may have moved the overlay, or it may be gone.
        let index = snapshot.overlay_index(*overlay);
        let mut memo = Memo::new(flows.records(), now);
        judged.clear();
        for at in 0..batch.len() {
            let Some((header, packet)) = batch.packet_mut(at) else { break };
            let verdict = |facts: &Facts| match index {
                Some(index) => {
                    let ask = || snapshot.egress_marked(index, facts, flows, now);
                    let verdict = memo.verdict(None, facts, ask);
                    teller.traced(facts, verdict, now.monotonic_millis)
                }
                None => Verdict::Drop(DropReason::NoRow),
            };
            let mut one = judge_read(header, packet, verdict);
            if let Verdict::Drop(reason) = one.verdict {
                teller.refused(reason, *overlay, one.family, packet, now.monotonic_millis);
            } else if !mtus.is_empty()
                && let Some(mtu) = exceeded(mtus, header, one.family, packet, now.monotonic_millis)
            {
                one.verdict = Verdict::Drop(DropReason::TooBig);
                teller.exceeds(mtu, *overlay, packet, now.monotonic_millis);
            }
            judged.push(one);
        }
        // Sealed hops: `seal` goes here, over what was judged and before it is sent.
        let outgoing = batch.iter().zip(&*judged).flat_map(|((header, packet), one)| {
            one.wrap(header, packet).unwrap_or_else(|reason| {
                refused.dropped(reason);
                Leaving::Single(None)
            })
        });
        udp.send_batch(queue, outgoing, |sent| passed.sent(sent));
        teller.too_long(udp, Some(queue));
        counters.add(refused);
        counters.add(passed);
    }
}

/// Judges one packet as it came from the device. Completed first: what is judged is what leaves,
/// wherever the checksum's place is said to be.
fn judge_read(
    header: Option<VnetHeader>,
    packet: &mut [u8],
    verdict: impl FnOnce(&Facts) -> Verdict,
) -> Judged {
    match complete(header, packet) {
        Ok(()) => judge(verdict, packet),
        Err(reason) => Judged::refused(reason),
    }
}

/// Judges one packet: pure, apart from what `verdict` remembers of flows.
fn judge(verdict: impl FnOnce(&Facts) -> Verdict, packet: &[u8]) -> Judged {
    match family_of(packet).and_then(|family| inner::parse(family, packet)) {
        Ok(facts) => Judged {
            verdict: verdict(&facts),
            family: facts.family,
            len: usize::from(facts.len),
            ecn: facts.ecn,
        },
        Err(reason) => Judged::refused(reason),
    }
}

/// Completes what the host left half done of a packet that leaves as one datagram. (Segments get
/// checksums of their own.)
fn complete(header: Option<VnetHeader>, packet: &mut [u8]) -> Result<(), DropReason> {
    let Some(VnetHeader { gso: None, partial: Some(partial) }) = header else { return Ok(()) };
    if checksum::complete(packet, partial) { Ok(()) } else { Err(DropReason::InnerLength) }
}

/// A TUN does not say the family, so the version nibble is all there is.
fn family_of(packet: &[u8]) -> Result<Family, DropReason> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => Ok(Family::V4),
        Some(6) => Ok(Family::V6),
        Some(_) => Err(DropReason::InnerVersion),
        None => Err(DropReason::InnerLength),
    }
}

impl Judged {
    fn refused(reason: DropReason) -> Self {
        Self { verdict: Verdict::Drop(reason), family: Family::V4, len: 0, ecn: 0 }
    }

    /// The datagrams that carry `packet`, or why there are none.
    fn wrap<'a>(
        &self,
        header: Option<VnetHeader>,
        packet: &'a [u8],
    ) -> Result<Leaving<'a>, DropReason> {
        let (hop, key) = match self.verdict {
            Verdict::Send { hop, key } => (hop, key),
            // `Deliver` is no answer to a packet that wants out.
            Verdict::Deliver { .. } => return Err(DropReason::NoPath),
            Verdict::Drop(reason) => return Err(reason),
        };
        let header = header.ok_or(DropReason::InnerLength)?;
        let prefix = gue::data_header(self.family, key.bits());
        let payload = packet.get(..self.len).unwrap_or(packet);
        let whole = Outgoing { to: hop, head: Head::gue(prefix), payload, tos: self.ecn, ttl: TTL };
        match header.gso {
            None => Ok(Leaving::Single(Some(whole))),
            Some(gso) => Ok(Leaving::Cut(whole, Split::new(prefix, packet, gso)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram};
    use super::*;
    use crate::sys::offload::vnet::Partial;
    use crate::types::AuthorizationKey;
    use crate::wire::inner::Upper;

    const PLAIN: Option<VnetHeader> = Some(VnetHeader::PLAIN);

    fn send() -> Verdict {
        let key = AuthorizationKey::from_bits(0x1a2b_3c4d);
        Verdict::Send { hop: "192.0.2.9:6080".parse().unwrap(), key }
    }

    fn wrap<'a>(judged: &Judged, packet: &'a [u8]) -> Outgoing<'a> {
        judged.wrap(PLAIN, packet).unwrap().next().unwrap()
    }

    #[test]
    fn an_allowed_packet_leaves_under_its_key() {
        let vector = datagram(V4_DATA);
        let packet = &vector[gue::HEADER_LEN..];

        let outgoing = wrap(&judge(|_| send(), packet), packet);

        assert_eq!([outgoing.head.as_slice(), outgoing.payload].concat(), vector);
        assert_eq!((outgoing.tos, outgoing.ttl), (0, TTL));
    }

    #[test]
    fn the_outer_header_gets_the_inner_ecn_but_not_the_dscp() {
        let mut packet = datagram(V4_DATA)[gue::HEADER_LEN..].to_vec();
        // DSCP 46, ECT(0); the checksum follows from the change of one word.
        packet[1] = 0b1011_1010;
        let sum = 0x14a1_u16 - 0xba;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());

        assert_eq!(wrap(&judge(|_| send(), &packet), &packet).tos, 0b10);
    }

    #[test]
    fn what_is_no_ip_or_was_refused_stays() {
        let vector = datagram(V4_DATA);
        let packet = &vector[gue::HEADER_LEN..];
        let refusal = |verdict, packet: &[u8]| judge(|_| verdict, packet).wrap(PLAIN, packet).err();

        assert_eq!(refusal(send(), packet), None);
        assert_eq!(refusal(send(), &[]), Some(DropReason::InnerLength));
        assert_eq!(refusal(send(), &[0x50; 40]), Some(DropReason::InnerVersion));
        assert_eq!(refusal(send(), &packet[..30]), Some(DropReason::InnerLength));
        assert_eq!(refusal(Verdict::Drop(DropReason::NoRow), packet), Some(DropReason::NoRow));
        assert_eq!(refusal(Verdict::Deliver { overlay: 0 }, packet), Some(DropReason::NoPath));
    }

    #[test]
    fn headers_of_the_device_that_lie_refuse_the_packet() {
        let mut packet = datagram(V4_DATA)[gue::HEADER_LEN..].to_vec();
        let judged = judge(|_| send(), &packet);

        assert_eq!(judged.wrap(None, &packet).err(), Some(DropReason::InnerLength));
        for (start, offset) in [(0, 16), (19, 0), (20, 17), (38, 0), (u16::MAX, u16::MAX)] {
            let header = half_done(start, offset);
            assert_eq!(complete(header, &mut packet), Err(DropReason::InnerLength));
        }
        let header = half_done(20, 2);
        assert_eq!(complete(header, &mut packet), Ok(()));
        assert!(judge(|_| send(), &packet).wrap(header, &packet).is_ok());
    }

    fn half_done(start: u16, offset: u16) -> Option<VnetHeader> {
        Some(VnetHeader { gso: None, partial: Some(Partial { start, offset }) })
    }

    /// Whoever may write to the device's queue may say that the checksum stands where the port does.
    #[test]
    fn no_checksum_changes_what_the_verdict_has_seen() {
        let mut vector = datagram(V4_DATA);
        let packet = &mut vector[gue::HEADER_LEN..];
        packet[9] = 17;
        packet[20..24].copy_from_slice(&[0x30, 0x39, 0, 53]);
        let header = half_done(20, 2);

        let mut seen = None;
        let judged = judge_read(header, packet, |facts| {
            seen = Some(facts.upper);
            send()
        });

        let left = wrap(&judged, packet).payload.to_vec();
        assert_ne!(left[22..24], [0, 53], "the lie was believed");
        let port = |at: usize| u16::from_be_bytes([left[at], left[at + 1]]);
        let upper = Upper::Ports { source_port: port(20), destination_port: port(22) };
        assert_eq!(seen, Some(upper));
    }
}
