//! Counters of the hallways: written by one thread each, read by anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
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

/// A hallway, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `ovd`, from TUN to UDP.
    Egress,
    /// `ovd`, from UDP to TUN.
    Ingress,
    /// `ovsap`, from UDP to UDP.
    Transit,
}

impl Way {
    /// As `status` shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Transit => "transit",
        }
    }
}

/// What a hallway let through, on all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Packets.
    pub packets: u64,
    /// Their inner bytes.
    pub bytes: u64,
}

/// Counters of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneCounters {
    pub(super) egress: HallwayCounters,
    pub(super) ingress: HallwayCounters,
    pub(super) transit: HallwayCounters,
}

impl LaneCounters {
    fn of(&self, way: Way) -> &HallwayCounters {
        match way {
            Way::Egress => &self.egress,
            Way::Ingress => &self.ingress,
            Way::Transit => &self.transit,
        }
    }
}

/// Counters of one process: of each lane, and of control messages.
#[derive(Debug)]
pub struct Counters {
    lanes: Box<[Arc<LaneCounters>]>,
    /// Control messages that were refused after they had left their hallway.
    pub control: HallwayCounters,
}

impl Counters {
    /// All zero, for so many lanes.
    #[must_use]
    pub fn new(lanes: usize) -> Self {
        let lanes = (0..lanes).map(|_| Arc::default()).collect();
        Self { lanes, control: HallwayCounters::default() }
    }

    /// Those of each lane, for its threads.
    pub(super) fn lanes(&self) -> impl Iterator<Item = &Arc<LaneCounters>> {
        self.lanes.iter()
    }

    /// What a hallway let through, on all lanes.
    #[must_use]
    pub fn passed(&self, way: Way) -> Passed {
        let lanes = || self.lanes.iter().map(|lane| lane.of(way));
        Passed {
            packets: lanes().map(HallwayCounters::packets).sum(),
            bytes: lanes().map(HallwayCounters::bytes).sum(),
        }
    }

    /// Packets that a hallway dropped for `reason`, on all lanes.
    #[must_use]
    pub fn dropped(&self, way: Way, reason: DropReason) -> u64 {
        self.lanes.iter().map(|lane| lane.of(way).dropped(reason)).sum()
    }

    /// Dropped packets by the reason's name, over all hallways; reasons that never happened are left
    /// out.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        let all = |reason| {
            let hallways = [Way::Egress, Way::Ingress, Way::Transit];
            hallways.map(|way| self.dropped(way, reason)).iter().sum::<u64>()
                + self.control.dropped(reason)
        };
        let counts = DropReason::ALL.iter().map(|&reason| (reason.name(), all(reason)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_added_once_and_lanes_are_summed() {
        let counters = Counters::new(2);
        let lanes: Vec<_> = counters.lanes().collect();
        let mut tally = Tally::new();
        tally.passed(1, 100);
        tally.passed(1, 28);
        tally.dropped(DropReason::NoRule);
        tally.dropped(DropReason::NoRule);
        tally.dropped(DropReason::GueLength);

        lanes[0].egress.add(&mut tally);
        lanes[0].egress.add(&mut tally);
        tally.passed(1, 10);
        lanes[1].egress.add(&mut tally);
        lanes[1].ingress.count_drop(DropReason::NoRule);
        counters.control.count_drop(DropReason::ControlMac);

        assert_eq!(counters.passed(Way::Egress), Passed { packets: 3, bytes: 138 });
        assert_eq!(counters.passed(Way::Ingress).packets, 0);
        assert_eq!(counters.dropped(Way::Egress, DropReason::NoRule), 2);
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
