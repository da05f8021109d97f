//! Ingress: from the underlay to the host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use super::control::Punter;
use super::counters::{HallwayCounters, Tally};
use super::deliver::Delivery;
use super::ecn;
use super::hallway::{Basis, Common, Opened, now, open, receive};
use super::notice::Teller;
use super::publish::Reader;
use super::train::{Memo, Pieces};
use crate::forward::Verdict;
use crate::sys::batch::{DatagramBatch, Meta};
use crate::sys::offload::coalesce::Coalescer;
use crate::sys::tun::Tun;
use crate::types::{DropReason, OverlayId};
use crate::wire::{Facts, Family, gue};

/// The TUN devices by overlay.
pub type Devices = BTreeMap<OverlayId, Arc<Tun>>;

/// One datagram after the judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// The host gets it.
    Deliver {
        /// Index into the snapshot's overlays.
        overlay: usize,
        family: Family,
        /// Length by the packet's own header, in bytes; what follows is not delivered.
        len: usize,
        /// The ECN bits to write, when they differ from what is there.
        mark: Option<u8>,
    },
    /// The control task gets it.
    Punt { is_known: bool },
    /// A tracer that passed: its way ends here.
    Keep,
    /// Nobody gets it.
    Drop(DropReason),
}

/// Runs until the thread is told to stop.
pub(super) fn run(
    mut common: Common,
    mut devices: Reader<Devices>,
    punter: Punter,
    teller: Teller,
) {
    let mut batch = DatagramBatch::new();
    let mut ingress = Ingress::new(punter, teller);
    while common.goes_on() {
        let has_packets = receive(&common.udp, &mut batch);
        // Also without packets: a device that was removed goes away only when nobody holds it.
        let devices = devices.latest();
        if !has_packets {
            ingress.teller.too_long(&common.udp, None);
            continue;
        }
        let basis = Basis { snapshot: common.snapshot.latest(), flows: &common.flows, now: now() };
        ingress.deliver(&mut batch, devices, basis, &common.counters.ingress);
    }
}

/// What one lane keeps from batch to batch, so that a batch allocates nothing.
#[derive(Debug)]
pub struct Ingress {
    delivery: Delivery,
    /// The devices' overlays, by their index in the snapshot.
    overlays: Vec<(usize, OverlayId)>,
    punter: Punter,
    teller: Teller,
}

impl Ingress {
    /// For one lane; control messages go to `punter`, and `teller` hears of refusals.
    #[must_use]
    pub fn new(punter: Punter, teller: Teller) -> Self {
        let delivery = Delivery { coalescer: Coalescer::new(), tally: Tally::new() };
        Self { delivery, overlays: Vec::new(), punter, teller }
    }

    /// Judges every datagram of `batch` for itself and writes what passes to its overlay's device.
    pub fn deliver(
        &mut self,
        batch: &mut DatagramBatch,
        devices: &Devices,
        basis: Basis<'_>,
        counters: &HallwayCounters,
    ) {
        let Basis { snapshot, flows, now } = basis;
        let Self { delivery, overlays, punter, teller } = self;
        overlays.clear();
        overlays.extend(devices.keys().filter_map(|id| Some((snapshot.overlay_index(*id)?, *id))));
        let device = |overlay: usize| {
            let (_, id) = overlays.iter().find(|(index, _)| *index == overlay)?;
            devices.get(id)
        };
        let mut memo = Memo::new(flows.records(), now);
        for slot in 0..batch.len() {
            let Some((meta, range)) = batch.slot(slot) else { break };
            let bytes = batch.bytes().get(range.clone()).unwrap_or(&[]);
            let is_known = snapshot.knows(meta.from);
            for piece in Pieces::new(&meta, range, bytes) {
                let datagram = batch.bytes().get(piece.range.clone()).unwrap_or(&[]);
                let verdict = |from, key, facts: &Facts| {
                    let ask = || snapshot.ingress_marked(from, key, facts, flows, now);
                    let verdict = memo.verdict(Some((from, key)), facts, ask);
                    teller.traced(facts, verdict, now.monotonic_millis)
                };
                // Sealed hops: `open` goes here, before anything is believed.
                let result = match judge(|_| is_known, verdict, &meta, datagram) {
                    Judged::Deliver { overlay, family, len, mark } => {
                        let packet = inside(&piece.range, len);
                        if let Some(mark) = mark
                            && let Some(packet) = batch.bytes_mut().get_mut(packet.clone())
                        {
                            ecn::mark(family, packet, mark);
                        }
                        match piece.large {
                            None => delivery.add(batch.bytes(), packet, overlay, device),
                            Some(size) => {
                                delivery.add_large(
                                    batch.bytes_mut(),
                                    packet,
                                    size,
                                    overlay,
                                    device,
                                );
                            }
                        }
                        Ok(())
                    }
                    Judged::Punt { is_known } => {
                        punter.punt(meta.from, is_known, datagram, now.monotonic_millis)
                    }
                    Judged::Keep => Ok(()),
                    Judged::Drop(reason) => {
                        let millis = now.monotonic_millis;
                        teller.refused_datagram(reason, meta.from, datagram, millis);
                        Err(reason)
                    }
                };
                if let Err(reason) = result {
                    delivery.tally.dropped(reason);
                }
            }
        }
        delivery.finish(batch.bytes(), device);
        counters.add(&mut delivery.tally);
    }
}

/// Where the packet of a datagram lies.
fn inside(datagram: &Range<usize>, len: usize) -> Range<usize> {
    let start = datagram.start + gue::HEADER_LEN;
    start..start + len
}

/// Judges one datagram: pure, apart from what `verdict` remembers of flows.
fn judge(
    knows: impl Fn(SocketAddr) -> bool,
    verdict: impl FnOnce(SocketAddr, u32, &Facts) -> Verdict,
    meta: &Meta,
    datagram: &[u8],
) -> Judged {
    let opened = match open(knows, meta, datagram) {
        Ok(Opened::Data { key, facts }) => (key, facts),
        Ok(Opened::Control { is_known }) => return Judged::Punt { is_known },
        Err(reason) => return Judged::Drop(reason),
    };
    let (key, facts) = opened;
    match verdict(meta.from, key, &facts) {
        Verdict::Deliver { .. } if facts.tracer.is_some() => Judged::Keep,
        Verdict::Deliver { overlay } => match ecn::leave_tunnel(facts.ecn, meta.tos) {
            Some(ecn) => Judged::Deliver {
                overlay,
                family: facts.family,
                len: usize::from(facts.len),
                mark: (ecn != facts.ecn).then_some(ecn),
            },
            None => Judged::Drop(DropReason::Ecn),
        },
        // An entity hands nothing on: what is not for its host has no next hop here.
        Verdict::Send { .. } => Judged::Drop(DropReason::NoPath),
        Verdict::Drop(reason) => Judged::Drop(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram, meta};
    use super::*;

    const DELIVER: Verdict = Verdict::Deliver { overlay: 3 };

    fn judge_known(meta: &Meta, datagram: &[u8], verdict: Verdict) -> Judged {
        judge(|_| true, |_, _, _| verdict, meta, datagram)
    }

    #[test]
    fn only_the_length_of_the_inner_header_is_delivered() {
        let mut bytes = datagram(V4_DATA);
        let expected = Judged::Deliver { overlay: 3, family: Family::V4, len: 38, mark: None };
        assert_eq!(judge_known(&meta(0, 64), &bytes, DELIVER), expected);

        bytes.extend(b"smuggled");
        assert_eq!(judge_known(&meta(0, 64), &bytes, DELIVER), expected);
    }

    #[test]
    fn the_verdict_sees_the_outer_source_and_the_key() {
        let verdict = |from, key, facts: &Facts| {
            assert_eq!((from, key), (meta(0, 64).from, 0x1a2b_3c4d));
            assert_eq!(facts.source.to_string(), "10.0.0.2");
            Verdict::Drop(DropReason::NoRule)
        };
        let judged = judge(|_| true, verdict, &meta(0, 64), &datagram(V4_DATA));
        assert_eq!(judged, Judged::Drop(DropReason::NoRule));
    }

    #[test]
    fn congestion_on_the_way_reaches_the_host_or_drops_what_cannot_say_so() {
        let mut capable = datagram(V4_DATA);
        ecn::mark(Family::V4, &mut capable[gue::HEADER_LEN..], 0b10);

        assert_eq!(
            judge_known(&meta(0b1011_1011, 64), &capable, DELIVER),
            Judged::Deliver { overlay: 3, family: Family::V4, len: 38, mark: Some(0b11) }
        );
        assert_eq!(
            judge_known(&meta(0b11, 64), &datagram(V4_DATA), DELIVER),
            Judged::Drop(DropReason::Ecn)
        );
    }

    #[test]
    fn an_entity_hands_nothing_on() {
        let key = crate::types::AuthorizationKey::from_bits(1);
        let send = Verdict::Send { hop: meta(0, 64).from, key };
        assert_eq!(
            judge_known(&meta(0, 64), &datagram(V4_DATA), send),
            Judged::Drop(DropReason::NoPath)
        );
    }
}
