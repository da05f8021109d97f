//! Transit: through a SaP. What leaves is, byte for byte, what came; only the outer TTL is less by
//! one, which ends loops.

use std::net::SocketAddr;

use super::control::Punter;
use super::counters::{Counters, Tally};
use super::hallway::{Common, Opened, now, open, receive};
use crate::forward::Verdict;
use crate::sys::batch::{BATCH, Meta, PacketBatch};
use crate::sys::udp::Outgoing;
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
        judged.clear();
        judged.extend(batch.iter().map(|(meta, datagram)| {
            let verdict =
                |from, key, facts: &Facts| snapshot.transit(from, key, facts, &common.flows, now);
            judge(|from| snapshot.knows(from), verdict, meta, datagram)
        }));
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

/// Judges one datagram: pure, apart from what `verdict` remembers of flows.
fn judge(
    knows: impl Fn(SocketAddr) -> bool,
    verdict: impl Fn(SocketAddr, u32, &Facts) -> Verdict,
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

    #[test]
    fn the_datagram_leaves_as_it_came_with_its_tos() {
        let mut bytes = datagram(V4_DATA);
        bytes.extend(b"trailing");
        let meta = meta(0b1011_1010, 64);

        let judged = judge_allowed(&meta, &bytes);
        let outgoing = judged.forward(&meta, &bytes).unwrap();

        assert_eq!(outgoing.payload, bytes);
        assert!(outgoing.header.is_none());
        assert_eq!((outgoing.to, outgoing.tos, outgoing.ttl), (hop(), 0b1011_1010, 63));
    }

    #[test]
    fn what_was_refused_does_not_leave() {
        let bytes = datagram(V4_DATA);
        for verdict in [Verdict::Drop(DropReason::NoRule), Verdict::Deliver { overlay: 0 }] {
            let judged = judge(|_| true, |_, _, _| verdict, &meta(0, 64), &bytes);
            assert!(matches!(judged, Judged::Drop(_)));
            assert!(judged.forward(&meta(0, 64), &bytes).is_none());
        }
    }
}
