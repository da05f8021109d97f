//! Egress: from the host to the underlay.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::counters::{Counters, Tally};
use super::hallway::{Common, now};
use crate::forward::{FlowTable, Now, Snapshot, Verdict};
use crate::sys::batch::{BATCH, PacketBatch};
use crate::sys::tun::Tun;
use crate::sys::udp::{Outgoing, TTL};
use crate::types::{DropReason, OverlayId};
use crate::wire::{Family, gue, inner};

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
        // A publish may have moved the overlay, or it may be gone.
        let index = snapshot.overlay_index(overlay);
        judge(
            snapshot,
            index,
            &common.flows,
            now(),
            batch.iter().map(|(_, bytes)| bytes),
            &mut judged,
        );
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

/// Judges a batch: pure, apart from the flow table.
fn judge<'a>(
    snapshot: &Snapshot,
    overlay: Option<usize>,
    flows: &FlowTable,
    now: Now,
    packets: impl Iterator<Item = &'a [u8]>,
    judged: &mut Vec<Judged>,
) {
    judged.clear();
    judged.extend(packets.take(BATCH).map(|packet| {
        let family = family_of(packet);
        match family.and_then(|family| inner::parse(family, packet)) {
            Ok(facts) => {
                let verdict = match overlay {
                    Some(overlay) => snapshot.egress(overlay, &facts, flows, now),
                    None => Verdict::Drop(DropReason::NoRow),
                };
                let len = usize::from(facts.len);
                Judged { verdict, family: facts.family, len, ecn: facts.ecn }
            }
            Err(reason) => {
                let verdict = Verdict::Drop(reason);
                Judged { verdict, family: family.unwrap_or(Family::V4), len: 0, ecn: 0 }
            }
        }
    }));
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
