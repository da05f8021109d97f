//! Transit: through a SaP. What leaves is, byte for byte, what came; only the outer TTL is less by
//! one, which ends loops.

use std::net::SocketAddr;

use super::control::Punter;
use super::counters::{HallwayCounters, Tally};
use super::hallway::{Basis, Common, Opened, now, open, receive};
use super::notice::Teller;
use super::train::{Leaving, Memo, Pieces};
use crate::forward::Verdict;
use crate::sys::batch::{DatagramBatch, Meta};
use crate::sys::offload::Head;
use crate::sys::offload::split::Split;
use crate::sys::udp::{Outgoing, SendQueue, UdpSocket};
use crate::types::DropReason;
use crate::wire::{Facts, gue};

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
pub(super) fn run(mut common: Common, punter: Punter, teller: Teller) {
    let mut batch = DatagramBatch::new();
    let mut transit = Transit::new(punter, teller);
    while common.goes_on() {
        if !receive(&common.udp, &mut batch) {
            transit.teller.too_long(&common.udp, None);
            continue;
        }
        let basis = Basis { snapshot: common.snapshot.latest(), flows: &common.flows, now: now() };
        transit.forward(&batch, &common.udp, basis, &common.counters.transit);
    }
}

/// What one lane keeps from batch to batch, so that a batch allocates nothing.
#[derive(Debug)]
pub struct Transit {
    queue: SendQueue,
    refused: Tally,
    passed: Tally,
    punter: Punter,
    teller: Teller,
}

impl Transit {
    /// For one lane; control messages go to `punter`, and `teller` hears of refusals and of what was
    /// too long.
    #[must_use]
    pub fn new(punter: Punter, teller: Teller) -> Self {
        let (refused, passed) = (Tally::new(), Tally::new());
        Self { queue: SendQueue::new(), refused, passed, punter, teller }
    }

    /// Judges every datagram of `batch` for itself and sends on what passes, by `udp`.
    pub fn forward(
        &mut self,
        batch: &DatagramBatch,
        udp: &UdpSocket,
        basis: Basis<'_>,
        counters: &HallwayCounters,
    ) {
        let Basis { snapshot, flows, now } = basis;
        let Self { queue, refused, passed, punter, teller } = self;
        let mut memo = Memo::new(flows.records(), now);
        let pieces = batch.iter().flat_map(|(meta, bytes)| {
            let is_known = snapshot.knows(meta.from);
            Pieces::new(meta, 0..bytes.len(), bytes)
                .map(move |piece| (meta, bytes, piece, is_known))
        });
        // Sealed hops: `open` goes before the judging, `seal` after it.
        let outgoing = pieces.flat_map(|(meta, bytes, piece, is_known)| {
            let datagram = bytes.get(piece.range).unwrap_or(&[]);
            let verdict = |from, key, facts: &Facts| {
                let ask = || snapshot.transit_marked(from, key, facts, flows, now);
                let verdict = memo.verdict(Some((from, key)), facts, ask);
                teller.traced(facts, verdict, now.monotonic_millis)
            };
            let leaving = match judge(|_| is_known, verdict, meta, datagram) {
                Judged::Send { hop, ttl } => onward(meta, datagram, piece.large, hop, ttl),
                Judged::Punt { is_known } => punter
                    .punt(meta.from, is_known, datagram, now.monotonic_millis)
                    .map(|()| Leaving::Single(None)),
                Judged::Drop(reason) => {
                    let millis = now.monotonic_millis;
                    teller.refused_datagram(reason, meta.from, datagram, millis);
                    Err(reason)
                }
            };
            leaving.unwrap_or_else(|reason| {
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

/// Judges one datagram: pure, apart from what `verdict` remembers of flows.
fn judge(
    knows: impl Fn(SocketAddr) -> bool,
    verdict: impl FnOnce(SocketAddr, u32, &Facts) -> Verdict,
    meta: &Meta,
    datagram: &[u8],
) -> Judged {
    let (key, facts) = match open(knows, meta, datagram) {
        Ok(Opened::Data { key, facts }) => (key, facts),
        Ok(Opened::Control { is_known }) => return Judged::Punt { is_known },
        Err(reason) => return Judged::Drop(reason),
    };
    match verdict(meta.from, key, &facts) {
        Verdict::Send { hop, .. } => match meta.ttl.saturating_sub(1) {
            0 => Judged::Drop(DropReason::HopLimit),
            ttl => Judged::Send { hop, ttl },
        },
        // A SaP has no host behind it.
        Verdict::Deliver { .. } => Judged::Drop(DropReason::NoPath),
        Verdict::Drop(reason) => Judged::Drop(reason),
    }
}

/// The same bytes towards the next hop. A large packet that nobody cut is cut here, which changes no
/// byte that the one who sent it did not leave to be changed.
fn onward<'a>(
    meta: &Meta,
    datagram: &'a [u8],
    large: Option<u16>,
    hop: SocketAddr,
    ttl: u8,
) -> Result<Leaving<'a>, DropReason> {
    let whole = Outgoing { to: hop, head: Head::EMPTY, payload: datagram, tos: meta.tos, ttl };
    let Some(size) = large else { return Ok(Leaving::Single(Some(whole))) };
    let (prefix, packet) =
        datagram.split_first_chunk::<{ gue::HEADER_LEN }>().ok_or(DropReason::InnerLength)?;
    Ok(Leaving::Cut(whole, Split::of_size(*prefix, packet, size)?))
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram, meta};
    use super::*;
    use crate::types::AuthorizationKey;

    fn hop() -> SocketAddr {
        "192.0.2.9:6080".parse().unwrap()
    }

    fn judge_allowed(meta: &Meta, datagram: &[u8]) -> Judged {
        let key = AuthorizationKey::from_bits(7);
        judge(|_| true, |_, _, _| Verdict::Send { hop: hop(), key }, meta, datagram)
    }

    #[test]
    fn the_outer_ttl_is_less_by_one_and_ends_at_zero() {
        let bytes = datagram(V4_DATA);

        assert_eq!(judge_allowed(&meta(0, 64), &bytes), Judged::Send { hop: hop(), ttl: 63 });
        assert_eq!(judge_allowed(&meta(0, 2), &bytes), Judged::Send { hop: hop(), ttl: 1 });
        assert_eq!(judge_allowed(&meta(0, 1), &bytes), Judged::Drop(DropReason::HopLimit));
        // The kernel said nothing: a loop must end all the same.
        assert_eq!(judge_allowed(&meta(0, 0), &bytes), Judged::Drop(DropReason::HopLimit));
    }

    fn leave<'a>(meta: &Meta, bytes: &'a [u8]) -> Vec<Outgoing<'a>> {
        match judge_allowed(meta, bytes) {
            Judged::Send { hop, ttl } => onward(meta, bytes, None, hop, ttl).unwrap().collect(),
            Judged::Punt { .. } | Judged::Drop(_) => Vec::new(),
        }
    }

    #[test]
    fn the_datagram_leaves_as_it_came_with_its_tos() {
        let mut bytes = datagram(V4_DATA);
        bytes.extend(b"trailing");
        let meta = meta(0b1011_1010, 64);

        let outgoing = leave(&meta, &bytes);

        assert_eq!(outgoing.len(), 1);
        assert_eq!(outgoing[0].payload, bytes);
        assert!(outgoing[0].head.as_slice().is_empty());
        assert_eq!((outgoing[0].to, outgoing[0].tos, outgoing[0].ttl), (hop(), 0b1011_1010, 63));
    }

    #[test]
    fn what_was_refused_does_not_leave() {
        let bytes = datagram(V4_DATA);
        for verdict in [Verdict::Drop(DropReason::NoRule), Verdict::Deliver { overlay: 0 }] {
            let judged = judge(|_| true, |_, _, _| verdict, &meta(0, 64), &bytes);
            assert!(matches!(judged, Judged::Drop(_)));
        }
    }
}
