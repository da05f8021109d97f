//! Counters of the hallways: written by one thread each, read by anybody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::udp::Sent;
use crate::types::DropReason;
use crate::wire::gue;

/// Counters of one hallway, on cache lines of their own (128 bytes: processors fetch pairs of 64), so
/// that hallways do not slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub struct HallwayCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl HallwayCounters {
    /// Packets that were let through.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Their inner bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Packets that were dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Counts one drop; for whoever judges what the hallways only pass on (control messages).
    pub fn count_drop(&self, reason: DropReason) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds a batch's tally and empties it.
    pub(super) fn add(&self, tally: &mut Tally) {
        add(&self.packets, &mut tally.packets);
        add(&self.bytes, &mut tally.bytes);
        if tally.has_drops {
            for (count, tallied) in self.drops.iter().zip(&mut tally.drops) {
                add(count, tallied);
            }
            tally.has_drops = false;
        }
    }
}

impl Default for HallwayCounters {
    fn default() -> Self {
        Self {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

fn add(count: &AtomicU64, tallied: &mut u64) {
    if *tallied > 0 {
        count.fetch_add(std::mem::take(tallied), Ordering::Relaxed);
    }
}

/// What one batch adds; plain numbers, so that a batch costs a few atomic additions and not one per
/// packet.
#[derive(Debug)]
pub(super) struct Tally {
    packets: u64,
    bytes: u64,
    drops: [u64; DropReason::COUNT],
    has_drops: bool,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { packets: 0, bytes: 0, drops: [0; DropReason::COUNT], has_drops: false }
    }

    pub(super) fn passed(&mut self, packets: usize, bytes: usize) {
        self.packets += packets as u64;
        self.bytes += bytes as u64;
    }

    /// What became of datagrams; counters speak of inner bytes.
    pub(super) fn sent(&mut self, sent: Sent) {
        match sent.result {
            Ok(()) => {
                let headers = sent.datagrams * gue::HEADER_LEN;
                self.passed(sent.datagrams, sent.bytes.saturating_sub(headers));
            }
            Err(reason) => self.dropped_many(reason, sent.datagrams),
        }
    }

    pub(super) fn dropped(&mut self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    pub(super) fn dropped_many(&mut self, reason: DropReason, packets: usize) {
        self.has_drops = true;
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += packets as u64;
        }
    }
}

/// Counters of one process.
#[derive(Debug, Default)]
pub struct Counters {
    /// `ovd`, from TUN to UDP.
    pub egress: HallwayCounters,
    /// `ovd`, from UDP to TUN.
    pub ingress: HallwayCounters,
    /// `ovsap`, from UDP to UDP.
    pub transit: HallwayCounters,
    /// Control messages that were refused after they had left their hallway.
    pub control: HallwayCounters,
}

impl Counters {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Dropped packets by the reason's name, over all hallways; reasons that never happened are left
    /// out.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        let all = [&self.egress, &self.ingress, &self.transit, &self.control];
        DropReason::ALL
            .iter()
            .map(|&reason| {
                (reason.name(), all.iter().map(|hallway| hallway.dropped(reason)).sum::<u64>())
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The hallways with their names, as `status` shows them.
    #[must_use]
    pub fn hallways(&self) -> [(&'static str, &HallwayCounters); 3] {
        [("egress", &self.egress), ("ingress", &self.ingress), ("transit", &self.transit)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_added_once_and_then_empty() {
        let counters = Counters::new();
        let mut tally = Tally::new();
        tally.passed(1, 100);
        tally.passed(1, 28);
        tally.dropped(DropReason::NoRule);
        tally.dropped(DropReason::NoRule);
        tally.dropped(DropReason::GueLength);

        counters.egress.add(&mut tally);
        counters.egress.add(&mut tally);
        counters.control.count_drop(DropReason::ControlMac);
        counters.ingress.count_drop(DropReason::NoRule);

        assert_eq!((counters.egress.packets(), counters.egress.bytes()), (2, 128));
        assert_eq!(counters.egress.dropped(DropReason::NoRule), 2);
        assert_eq!(
            counters.drops(),
            BTreeMap::from([("control_mac", 1), ("gue_length", 1), ("no_rule", 3)])
        );
    }

    #[test]
    fn hallways_share_no_cache_line() {
        assert_eq!(align_of::<HallwayCounters>(), 128);
        assert_eq!(size_of::<HallwayCounters>() % 128, 0);
    }
}
