//! Which destinations take less than the device's MTU, as far as somebody believable said so.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::wire::inner::IPV6_MTU_MIN;

/// How long a way counts as narrow after the last news of it (RFC 1191 section 6.3).
const KEPT_MILLIS: u64 = 10 * 60 * 1000;

/// How many destinations are remembered.
const DESTINATIONS_MAX: usize = 4096;

/// The least of IPv4 that is believed, in bytes.
const LEAST_V4: u16 = 576;

/// The longest inner packets by destination. Immutable; swapped whole, like a snapshot.
#[derive(Clone, Debug, Default)]
pub struct PathMtus {
    /// What fits everywhere and until when it counts, by destination.
    by_destination: HashMap<IpAddr, (u16, u64)>,
}

impl PathMtus {
    /// Whether every destination takes what the device takes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_destination.is_empty()
    }

    /// The MTU towards `destination` in bytes, when a packet of `len` bytes is longer than it.
    #[must_use]
    pub fn exceeded(&self, destination: IpAddr, len: usize, now_millis: u64) -> Option<u16> {
        let &(mtu, until) = self.by_destination.get(&destination)?;
        let mtu = mtu.max(least(destination));
        (len > usize::from(mtu) && now_millis < until).then_some(mtu)
    }

    /// The narrow ways, each with what it was said to take in bytes: less than every link of the family
    /// must, where packets of that size do not fit and the host cannot be told of anything smaller.
    pub fn known(&self, now_millis: u64) -> impl Iterator<Item = (IpAddr, u16)> {
        let valid = self.by_destination.iter().filter(move |(_, (_, until))| now_millis < *until);
        valid.map(|(&destination, &(mtu, _))| (destination, mtu))
    }

    /// The same with one more word; nothing when it says nothing new. A way only gets narrower, until
    /// what is known of it is forgotten.
    #[must_use]
    pub fn learn(&self, destination: IpAddr, mtu: u16, now_millis: u64) -> Option<Self> {
        let mut next = self.clone();
        next.by_destination.retain(|_, (_, until)| now_millis < *until);
        let known = next.by_destination.get(&destination).map(|(mtu, _)| *mtu);
        let is_full = next.by_destination.len() >= DESTINATIONS_MAX && known.is_none();
        if known.is_some_and(|known| known <= mtu) || is_full {
            return None;
        }
        next.by_destination.insert(destination, (mtu, now_millis.saturating_add(KEPT_MILLIS)));
        Some(next)
    }
}

/// What every link takes: hosts do not believe in less.
fn least(destination: IpAddr) -> u16 {
    if destination.is_ipv6() { IPV6_MTU_MIN } else { LEAST_V4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn only_longer_packets_to_that_destination_are_refused_and_not_for_ever() {
        let none = PathMtus::default();
        assert!(none.is_empty());
        assert_eq!(none.exceeded(v4(1), 65_000, 0), None);
        let known = none.learn(v4(1), 1364, 5).unwrap();

        assert!(!known.is_empty());
        assert_eq!(known.exceeded(v4(1), 1365, 6), Some(1364));
        assert_eq!(known.exceeded(v4(1), 1364, 6), None);
        assert_eq!(known.exceeded(v4(2), 1365, 6), None);
        assert_eq!(known.exceeded(v4(1), 1365, 5 + KEPT_MILLIS), None);
    }

    #[test]
    fn a_way_only_gets_narrower_and_never_below_what_every_link_takes() {
        let known = PathMtus::default().learn(v4(1), 1364, 0).unwrap();
        assert!(known.learn(v4(1), 1364, 1).is_none() && known.learn(v4(1), 1400, 1).is_none());
        assert!(known.learn(v4(1), 1400, KEPT_MILLIS).is_some(), "after it was forgotten");

        let narrow = known.learn(v4(1), 68, 0).unwrap();
        assert_eq!(narrow.exceeded(v4(1), 1500, 0), Some(LEAST_V4));
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let narrow = known.learn(v6, 68, 0).unwrap();
        assert_eq!(narrow.exceeded(v6, 1500, 0), Some(IPV6_MTU_MIN));
    }

    #[test]
    fn what_is_known_says_what_was_said_and_is_forgotten_in_time() {
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let known = PathMtus::default().learn(v6, 1264, 0).unwrap();

        assert_eq!(known.known(1).collect::<Vec<_>>(), [(v6, 1264)]);
        assert_eq!(known.known(KEPT_MILLIS).count(), 0);
    }

    #[test]
    fn memory_is_bounded() {
        let addresses = (0..4096_u32).map(|number| IpAddr::from(number.to_be_bytes()));
        let full = PathMtus { by_destination: addresses.map(|ip| (ip, (1300, 10))).collect() };
        let other = "fd00::1".parse().unwrap();

        assert!(full.learn(other, 1300, 0).is_none());
        assert!(full.learn(IpAddr::from([0, 0, 0, 1]), 1290, 0).is_some());
        assert!(full.learn(other, 1300, 10).is_some(), "old ones are gone");
    }
}
