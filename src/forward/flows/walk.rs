//! Walks over the whole flow table: seldom, and off the packet path.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use super::{FlowKey, FlowTable, Kind, Now, Phase, Slot, View};
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

    fn entries(&self) -> impl Iterator<Item = (&Slot, View)> {
        let views = self.slots.iter().filter_map(|slot| slot.view().map(|view| (slot, view)));
        views.filter(|(_, view)| !view.is_free())
    }
}

impl FlowKey {
    /// The lower and the higher address.
    fn ends(&self) -> (IpAddr, IpAddr) {
        let [l0, l1, h0, h1, ..] = self.0;
        let address = |high: u64, low: u64| {
            let bits = u128::from(high) << 64 | u128::from(low);
            IpAddr::V6(Ipv6Addr::from(bits)).to_canonical()
        };
        (address(l0, l1), address(h0, h1))
    }

    /// The flow as the opening packet of its starter names it; nothing for what is no flow.
    fn opened(&self, starter_is_lower: bool) -> Option<Quoted> {
        let [.., ports, meta] = self.0;
        let (low, high) = self.ends();
        let (low_port, high_port) = ((ports >> 16) as u16, ports as u16);
        let (source, destination, source_port, destination_port) = if starter_is_lower {
            (low, high, low_port, high_port)
        } else {
            (high, low, high_port, low_port)
        };
        let kind = meta & 0xFF;
        let is_flow = kind == Kind::Ports as u64
            || kind == Kind::EchoOfLower as u64
            || kind == Kind::EchoOfHigher as u64;
        let protocol = (meta >> 8) as u8;
        is_flow.then_some(Quoted { source, destination, protocol, source_port, destination_port })
    }
}

#[cfg(test)]
mod tests {
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
            let is_lower = super::super::is_lower(mine, theirs);
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
