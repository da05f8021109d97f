//! Walks over the whole flow table: seldom, and off the packet path.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::{FlowTable, HopMark, Now, Phase, Slot, View, views};
use crate::types::NodeId;
use crate::wire::inner::Quoted;

/// A flow counts as talking for so long after its last packet: longer than a TCP that lost one waits.
const TALKING_MILLIS: u64 = 5_000;

/// Longest answer of a walk.
const FOUND_MAX: usize = 1024;

impl FlowTable {
    /// Frees every entry whose time is up. Never needed for correctness.
    pub fn sweep(&self, now: Now) {
        for (slot, view) in self.entries().filter(|(_, view)| view.is_expired(now)) {
            self.free(slot, &view);
        }
    }

    /// Who talks with one of `addresses` in a flow of these seconds, and with which of them.
    #[must_use]
    pub fn partners(&self, addresses: &BTreeSet<IpAddr>, now: Now) -> BTreeSet<(IpAddr, IpAddr)> {
        let mut found = BTreeSet::new();
        for (_, view) in self.entries() {
            if now.monotonic_millis.saturating_sub(view.seen_millis) > TALKING_MILLIS {
                continue;
            }
            let (low, high) = view.key.ends();
            found.extend(addresses.contains(&high).then_some((low, high)));
            found.extend(addresses.contains(&low).then_some((high, low)));
            if found.len() >= FOUND_MAX {
                break;
            }
        }
        found
    }

    /// The flows that `starter` started and a SaP would not know from their middle: all but TCP. As
    /// their opening packets name them.
    #[must_use]
    pub fn started_by(&self, starter: IpAddr, now: Now) -> Vec<Quoted> {
        let live = self
            .entries()
            .filter(|(_, view)| view.state.phase() == Phase::Stateless && !view.is_expired(now));
        live.filter_map(|(_, view)| view.key.opened(view.state.starter_is_lower()))
            .filter(|flow| flow.source == starter)
            .take(FOUND_MAX)
            .collect()
    }

    /// Forgets that flows with `addresses` came over `sap`.
    pub(in crate::forward) fn forget_hops(&self, sap: NodeId, addresses: &BTreeSet<IpAddr>) {
        for (slot, view) in self.entries() {
            let (low, high) = view.key.ends();
            let word = slot.hop().load(Ordering::Relaxed);
            let is_meant = HopMark::of(word).is_some_and(|mark| mark.sap == sap.0)
                && (addresses.contains(&low) || addresses.contains(&high));
            if is_meant {
                // One that came by in this very moment stays.
                let _ = slot.hop().compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Free slots are not looked at: memory that was never written to takes none.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Slot<'_>, View)> {
        views(self.slots().filter(|slot| slot.is_used())).filter(|(_, view)| !view.is_free())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::flow_key::{FlowKey, is_lower};
    use super::*;
    use crate::types::Timestamp;

    fn at(millis: u64) -> Now {
        Now { monotonic_millis: millis, wall: Timestamp(1) }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn partners_are_both_ends_of_flows_that_talk() {
        let flows = FlowTable::new(1024);
        for (other, seen) in [(1, 0), (9, 4_000)] {
            let key = FlowKey::ports(7, 17, (ip(other), 53), (ip(5), 40));
            assert!(flows.insert(&key, false, Phase::Stateless, 1, at(seen)).is_some());
        }
        let silent = BTreeSet::from([ip(5)]);

        let both = BTreeSet::from([(ip(1), ip(5)), (ip(9), ip(5))]);
        assert_eq!(flows.partners(&silent, at(5_000)), both);
        assert_eq!(flows.partners(&silent, at(5_001)), BTreeSet::from([(ip(9), ip(5))]));
        assert_eq!(flows.partners(&BTreeSet::from([ip(2)]), at(4_000)), BTreeSet::new());
    }

    #[test]
    fn started_flows_come_out_as_they_went_in_and_only_the_starters_own() {
        let flows = FlowTable::new(1024);
        for (mine, theirs) in [(ip(1), ip(5)), (ip(5), ip(1))] {
            let is_lower = is_lower(mine, theirs);
            let udp = FlowKey::ports(7, 17, (mine, 1000), (theirs, 53));
            let echo = FlowKey::echo(7, 1, (mine, 77), theirs);
            let tcp = FlowKey::ports(7, 6, (mine, 1000), (theirs, 80));
            flows.insert(&udp, is_lower, Phase::Stateless, 1, at(0)).unwrap();
            flows.insert(&echo, is_lower, Phase::Stateless, 1, at(0)).unwrap();
            flows.insert(&tcp, is_lower, Phase::Established, 1, at(0)).unwrap();
        }
        let flow = |protocol, source_port, destination_port| Quoted {
            source: ip(1),
            destination: ip(5),
            protocol,
            source_port,
            destination_port,
        };

        let mut found = flows.started_by(ip(1), at(1));
        found.sort_by_key(|flow| flow.protocol);
        assert_eq!(found, [flow(1, 77, 0), flow(17, 1000, 53)]);
        assert_eq!(flows.started_by(ip(1), at(60_000)), []);
    }
}
