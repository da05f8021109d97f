//! Ingress: from the underlay to the host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::control::Punter;
use super::counters::{Counters, Tally};
use super::ecn;
use super::hallway::{Common, now, receive};
use super::publish::Reader;
use crate::forward::{FlowTable, Now, Snapshot, Verdict};
use crate::sys::batch::{BATCH, Meta, PacketBatch};
use crate::sys::tun::Tun;
use crate::types::{DropReason, OverlayId};
use crate::wire::gue::{self, Frame};
use crate::wire::{Family, inner};

/// The TUN devices by overlay.
pub(super) type Devices = BTreeMap<OverlayId, Arc<Tun>>;

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
    /// Nobody gets it.
    Drop(DropReason),
}

/// Runs until the thread is told to stop.
pub(super) fn run(
    mut common: Common,
    mut devices: Reader<Devices>,
    mut punter: Punter,
    counters: &Counters,
) {
    let mut batch = PacketBatch::new();
    let mut judged = Vec::with_capacity(BATCH);
    let mut overlays: Vec<(usize, OverlayId)> = Vec::new();
    let mut tally = Tally::new();
    while !common.wake.is_stopped() {
        let has_packets = receive(&common.udp, &common.wake, &mut batch);
        // Also without packets: a device that was removed goes away only when nobody holds it.
        let devices = devices.latest();
        if !has_packets {
            continue;
        }
        let snapshot = common.snapshot.latest();
        let now = now();
        // Sealed hops: `open` goes here, before anything is believed.
        judge(snapshot, &common.flows, now, batch.iter(), &mut judged);
        overlays.clear();
        overlays.extend(devices.keys().filter_map(|id| Some((snapshot.overlay_index(*id)?, *id))));
        for ((meta, bytes), one) in batch.iter_mut().zip(&judged) {
            let result = match *one {
                Judged::Deliver { overlay, family, len, mark } => {
                    let tun = overlays
                        .iter()
                        .find(|(index, _)| *index == overlay)
                        .and_then(|(_, id)| devices.get(id));
                    deliver(tun, family, bytes, len, mark).map(|()| tally.passed(len))
                }
                Judged::Punt { is_known } => {
                    punter.punt(meta.from, is_known, bytes, now.monotonic_millis)
                }
                Judged::Drop(reason) => Err(reason),
            };
            if let Err(reason) = result {
                tally.dropped(reason);
            }
        }
        counters.ingress.add(&mut tally);
    }
}

/// Judges a batch: pure, apart from the flow table.
fn judge<'a>(
    snapshot: &Snapshot,
    flows: &FlowTable,
    now: Now,
    datagrams: impl Iterator<Item = (&'a Meta, &'a [u8])>,
    judged: &mut Vec<Judged>,
) {
    judged.clear();
    judged.extend(datagrams.take(BATCH).map(|(meta, datagram)| {
        judge_one(snapshot, flows, now, meta, datagram).unwrap_or_else(Judged::Drop)
    }));
}

fn judge_one(
    snapshot: &Snapshot,
    flows: &FlowTable,
    now: Now,
    meta: &Meta,
    datagram: &[u8],
) -> Result<Judged, DropReason> {
    let (family, key, packet) = match gue::decode(datagram)? {
        Frame::Data { family, key, inner } => (family, key, inner),
        Frame::Control { .. } => return Ok(Judged::Punt { is_known: snapshot.knows(meta.from) }),
    };
    check_outer(snapshot, meta.from, meta.is_truncated)?;
    let facts = inner::parse(family, packet)?;
    match snapshot.ingress(meta.from, key, &facts, flows, now) {
        Verdict::Deliver { overlay } => {
            let ecn = ecn::leave_tunnel(facts.ecn, meta.tos).ok_or(DropReason::Ecn)?;
            let mark = (ecn != facts.ecn).then_some(ecn);
            Ok(Judged::Deliver { overlay, family, len: usize::from(facts.len), mark })
        }
        // An entity hands nothing on: what is not for its host has no next hop here.
        Verdict::Send { .. } => Err(DropReason::NoPath),
        Verdict::Drop(reason) => Err(reason),
    }
}

/// The checks that need no inner packet.
pub(super) fn check_outer(
    snapshot: &Snapshot,
    from: SocketAddr,
    is_truncated: bool,
) -> Result<(), DropReason> {
    if !snapshot.knows(from) {
        return Err(DropReason::OuterSource);
    }
    if is_truncated { Err(DropReason::InnerLength) } else { Ok(()) }
}

fn deliver(
    tun: Option<&Arc<Tun>>,
    family: Family,
    datagram: &mut [u8],
    len: usize,
    mark: Option<u8>,
) -> Result<(), DropReason> {
    // The device may have gone while the table that names it is still in force.
    let tun = tun.ok_or(DropReason::SendFailed)?;
    let packet = datagram
        .get_mut(gue::HEADER_LEN..)
        .and_then(|packet| packet.get_mut(..len))
        .ok_or(DropReason::InnerLength)?;
    if let Some(mark) = mark {
        ecn::mark(family, packet, mark);
    }
    tun.write(packet).map_err(|_| DropReason::SendFailed)
}
