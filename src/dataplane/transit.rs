//! Transit: through a SaP. What leaves is, byte for byte, what came; only the outer TTL is less by
//! one, which ends loops.

use std::net::SocketAddr;

use super::control::Punter;
use super::counters::{Counters, Tally};
use super::hallway::{Common, now, receive};
use super::ingress::check_outer;
use crate::forward::{FlowTable, Now, Snapshot, Verdict};
use crate::sys::batch::{BATCH, Meta, PacketBatch};
use crate::sys::udp::Outgoing;
use crate::types::DropReason;
use crate::wire::gue::{self, Frame};
use crate::wire::inner;

/// One datagram after the judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// It goes on.
    Send {
        hop: SocketAddr,
        /// The outer TTL that it leaves with, at least 1.
        ttl: u8,
    },
    /// The control task gets it.
    Punt { is_known: bool },
    /// Nobody gets it.
    Drop(DropReason),
}

/// Runs until the thread is told to stop.
pub(super) fn run(mut common: Common, mut punter: Punter, counters: &Counters) {
    let mut batch = PacketBatch::new();
    let mut judged = Vec::with_capacity(BATCH);
    let mut tally = Tally::new();
    while !common.wake.is_stopped() {
        if !receive(&common.udp, &common.wake, &mut batch) {
            continue;
        }
        let snapshot = common.snapshot.latest();
        let now = now();
        // Sealed hops: `open` goes here, before anything is believed.
        judge(snapshot, &common.flows, now, batch.iter(), &mut judged);
        for ((meta, bytes), one) in batch.iter().zip(&judged) {
            let refusal = match *one {
                Judged::Send { .. } => continue,
                Judged::Punt { is_known } => {
                    punter.punt(meta.from, is_known, bytes, now.monotonic_millis).err()
                }
                Judged::Drop(reason) => Some(reason),
            };
            if let Some(reason) = refusal {
                tally.dropped(reason);
            }
        }
        // Sealed hops: `seal` goes here.
        let outgoing =
            batch.iter().zip(&judged).filter_map(|((meta, bytes), one)| one.forward(meta, bytes));
        common.udp.send_batch(outgoing, |result| match result {
            // Counters speak of inner bytes.
            Ok(bytes) => tally.passed(bytes.saturating_sub(gue::HEADER_LEN)),
            Err(reason) => tally.dropped(reason),
        });
        counters.transit.add(&mut tally);
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
    match snapshot.transit(meta.from, key, &facts, flows, now) {
        Verdict::Send { hop, .. } => {
            let ttl = meta.ttl.saturating_sub(1);
            if ttl == 0 { Err(DropReason::HopLimit) } else { Ok(Judged::Send { hop, ttl }) }
        }
        // A SaP has no host behind it.
        Verdict::Deliver { .. } => Err(DropReason::NoPath),
        Verdict::Drop(reason) => Err(reason),
    }
}

impl Judged {
    /// The same datagram, towards the next hop.
    fn forward<'a>(&self, meta: &Meta, datagram: &'a [u8]) -> Option<Outgoing<'a>> {
        match *self {
            Self::Send { hop, ttl } => {
                Some(Outgoing { to: hop, header: None, payload: datagram, tos: meta.tos, ttl })
            }
            Self::Punt { .. } | Self::Drop(_) => None,
        }
    }
}
