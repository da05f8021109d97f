//! Egress: from the host to the underlay.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::counters::{Counters, Tally};
use super::hallway::{Common, now};
use crate::forward::Verdict;
use crate::sys::batch::{BATCH, PacketBatch};
use crate::sys::tun::Tun;
use crate::sys::udp::{Outgoing, TTL};
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
    counters: &Counters,
) -> std::io::Result<()> {
    let mut batch = PacketBatch::new();
    let mut judged = Vec::with_capacity(BATCH);
    let mut tally = Tally::new();
    while !common.wake.is_stopped() {
        tun.read_batch(&mut batch)?;
        if batch.is_empty() {
            common.wake.wait(tun.as_fd(), None)?;
            continue;
        }
        let snapshot = common.snapshot.latest();
        let now = now();
        // A publish may have moved the overlay, or it may be gone.
        let index = snapshot.overlay_index(overlay);
        judged.clear();
        judged.extend(batch.iter().map(|(_, packet)| {
            let verdict = |facts: &Facts| match index {
                Some(index) => snapshot.egress(index, facts, &common.flows, now),
                None => Verdict::Drop(DropReason::NoRow),
            };
            judge(verdict, packet)
        }));
        for one in &judged {
            if let Some(reason) = one.refusal() {
                tally.dropped(reason);
            }
        }
        // Sealed hops: `seal` goes here, over what was judged and before it is sent.
        let outgoing = batch.iter().zip(&judged).filter_map(|((_, bytes), one)| one.wrap(bytes));
        common.udp.send_batch(outgoing, |result| match result {
            Ok(bytes) => tally.passed(bytes),
            Err(reason) => tally.dropped(reason),
        });
        counters.egress.add(&mut tally);
    }
    Ok(())
}

/// Judges one packet: pure, apart from what `verdict` remembers of flows.
fn judge(verdict: impl Fn(&Facts) -> Verdict, packet: &[u8]) -> Judged {
    match family_of(packet).and_then(|family| inner::parse(family, packet)) {
        Ok(facts) => Judged {
            verdict: verdict(&facts),
            family: facts.family,
            len: usize::from(facts.len),
            ecn: facts.ecn,
        },
        Err(reason) => {
            Judged { verdict: Verdict::Drop(reason), family: Family::V4, len: 0, ecn: 0 }
        }
    }
}

/// A TUN carries no header before the packet, so the version nibble is all there is.
fn family_of(packet: &[u8]) -> Result<Family, DropReason> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => Ok(Family::V4),
        Some(6) => Ok(Family::V6),
        Some(_) => Err(DropReason::InnerVersion),
        None => Err(DropReason::InnerLength),
    }
}

impl Judged {
    /// Why it does not leave. `Deliver` is no answer to a packet that wants out.
    fn refusal(&self) -> Option<DropReason> {
        match self.verdict {
            Verdict::Send { .. } => None,
            Verdict::Deliver { .. } => Some(DropReason::NoPath),
            Verdict::Drop(reason) => Some(reason),
        }
    }

    /// The datagram that carries `packet`.
    fn wrap<'a>(&self, packet: &'a [u8]) -> Option<Outgoing<'a>> {
        let Verdict::Send { hop, key } = self.verdict else { return None };
        Some(Outgoing {
            to: hop,
            header: Some(gue::data_header(self.family, key.bits())),
            payload: packet.get(..self.len).unwrap_or(packet),
            tos: self.ecn,
            ttl: TTL,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram};
    use super::*;
    use crate::types::AuthorizationKey;

    fn send() -> Verdict {
        let key = AuthorizationKey::from_bits(0x1a2b_3c4d);
        Verdict::Send { hop: "192.0.2.9:6080".parse().unwrap(), key }
    }

    #[test]
    fn an_allowed_packet_leaves_under_its_key() {
        let vector = datagram(V4_DATA);
        let packet = &vector[gue::HEADER_LEN..];

        let judged = judge(|_| send(), packet);
        let outgoing = judged.wrap(packet).unwrap();

        assert_eq!([&outgoing.header.unwrap()[..], outgoing.payload].concat(), vector);
        assert_eq!((outgoing.tos, outgoing.ttl), (0, TTL));
        assert_eq!(judged.refusal(), None);
    }

    #[test]
    fn the_outer_header_gets_the_inner_ecn_but_not_the_dscp() {
        let mut packet = datagram(V4_DATA)[gue::HEADER_LEN..].to_vec();
        // DSCP 46, ECT(0); the checksum follows from the change of one word.
        packet[1] = 0b1011_1010;
        let sum = 0x14a1_u16 - 0xba;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());

        let judged = judge(|_| send(), &packet);

        assert_eq!(judged.wrap(&packet).unwrap().tos, 0b10);
    }

    #[test]
    fn what_is_no_ip_or_was_refused_stays() {
        let vector = datagram(V4_DATA);
        let packet = &vector[gue::HEADER_LEN..];
        let refusal = |verdict, packet: &[u8]| {
            let judged = judge(|_| verdict, packet);
            assert!(judged.wrap(packet).is_none());
            judged.refusal()
        };

        assert_eq!(refusal(send(), &[]), Some(DropReason::InnerLength));
        assert_eq!(refusal(send(), &[0x50; 40]), Some(DropReason::InnerVersion));
        assert_eq!(refusal(send(), &packet[..30]), Some(DropReason::InnerLength));
        assert_eq!(refusal(Verdict::Drop(DropReason::NoRow), packet), Some(DropReason::NoRow));
        assert_eq!(refusal(Verdict::Deliver { overlay: 0 }, packet), Some(DropReason::NoPath));
    }
}
