//! Which services rules speak of, in one word: what is surely not among them need not be looked up.

use super::matcher::Asked;
use crate::types::Service;

/// A protocol's ports are spoken of one by one, in blocks of 32 or of 1,024, or all together.
const BLOCKS: [u32; 3] = [0, 5, 10];

/// Most ports or blocks of one range; a longer one is spoken of in larger blocks.
const BLOCKS_MAX: u16 = 4;

/// Stands for all ports of a protocol.
const ALL_PORTS: u32 = 16;

/// A set of services in 64 bits, two for each: it never leaves out one that was added, and seldom has
/// one that was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Services(u64);

/// All that would have to be in a set that speaks of one service: one of these, whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question([u64; 4]);

impl Services {
    const ALL: Self = Self(u64::MAX);

    /// What a rule speaks of; an empty list is everything.
    pub(super) fn of(services: &[Service], is_v6: bool) -> Self {
        if services.is_empty() {
            return Self::ALL;
        }
        let mut set = Self::default();
        for service in services {
            let protocol = service.protocol().number(is_v6);
            match service {
                Service::Protocol(_) => set.0 |= bits(protocol, ALL_PORTS, 0),
                Service::Ports(_, range) => set.add_ports(protocol, range.first, range.last),
                Service::Named(..) => {}
            }
        }
        set
    }

    /// Adds all of `other`.
    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether the service is in the set, or perhaps is: false is certain.
    pub(super) fn may_speak_of(self, question: Question) -> bool {
        question.0.iter().any(|bits| self.0 & bits == *bits)
    }

    fn add_ports(&mut self, protocol: u8, first: u16, last: u16) {
        let fitting = |size: &&u32| (last >> **size) - (first >> **size) < BLOCKS_MAX;
        match BLOCKS.iter().find(fitting) {
            Some(&size) => {
                for block in first >> size..=last >> size {
                    self.0 |= bits(protocol, size, block);
                }
            }
            None => self.0 |= bits(protocol, ALL_PORTS, 0),
        }
    }
}

impl Question {
    /// Where the port is hidden every set may speak of it.
    pub(super) fn new(asked: Asked) -> Self {
        let whole = bits(asked.protocol, ALL_PORTS, 0);
        match asked.port {
            None => Self([0; 4]),
            Some(port) => {
                let [one, some, many] = BLOCKS.map(|size| bits(asked.protocol, size, port >> size));
                Self([whole, one, some, many])
            }
        }
    }
}

/// The two bits of a block of ports.
fn bits(protocol: u8, size: u32, block: u16) -> u64 {
    let word = u64::from(protocol) << 32 | u64::from(size) << 16 | u64::from(block);
    let mixed = (word + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    1 << (mixed >> 58) | 1 << (mixed >> 52 & 63)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(texts: &[&str]) -> Services {
        let services: Vec<Service> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Services::of(&services, false)
    }

    fn tcp(port: u16) -> Question {
        Question::new(Asked { protocol: 6, port: Some(port) })
    }

    proptest! {
        #[test]
        fn what_a_rule_speaks_of_is_always_in_the_set(
            first: u16,
            length in prop_oneof![0_u16..8, 0_u16..5_000, any::<u16>()],
            inside: u16,
        ) {
            let last = first.saturating_add(length);
            let port = first + inside % (last - first).saturating_add(1).max(1);
            let range = set(&[&format!("tcp/{first}-{last}"), "udp/53"]);

            prop_assert!(range.may_speak_of(tcp(port)));
            prop_assert!(set(&["tcp"]).may_speak_of(tcp(port)));
            prop_assert!(set(&[]).may_speak_of(tcp(port)));
            let hidden = Question::new(Asked { protocol: 6, port: None });
            prop_assert!(range.may_speak_of(hidden));
        }
    }

    #[test]
    fn what_it_does_not_speak_of_is_seldom_in_the_set() {
        let set = set(&["tcp/443", "udp/53", "tcp/8000-8999"]);
        let others = (0..=u16::MAX).filter(|port| *port != 443 && !(7_168..9_216).contains(port));
        let wrong = others.filter(|port| set.may_speak_of(tcp(*port))).count();

        assert!(wrong < 65_536 / 10, "{wrong} of 65,536 ports");
        let any = |protocol| set.may_speak_of(Question::new(Asked { protocol, port: Some(443) }));
        assert!((0..=u8::MAX).filter(|protocol| any(*protocol)).count() < 40);
    }
}
