//! The ports that a guard closes.

use std::collections::BTreeMap;

use crate::types::{PortRange, Protocol, Service};

/// Ports by protocol; the ranges of a protocol are sorted and neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(BTreeMap<Protocol, Vec<PortRange>>);

impl Services {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each protocol with its ranges.
    pub fn by_protocol(&self) -> impl Iterator<Item = (Protocol, &[PortRange])> {
        self.0.iter().map(|(&protocol, ranges)| (protocol, ranges.as_slice()))
    }

    /// Every range, as a service.
    pub fn iter(&self) -> impl Iterator<Item = Service> + '_ {
        self.by_protocol().flat_map(|(protocol, ranges)| {
            ranges.iter().map(move |&range| Service::Ports(protocol, range))
        })
    }
}

/// Whole protocols are left out: a rule about them does not say what this machine serves.
impl FromIterator<Service> for Services {
    fn from_iter<T: IntoIterator<Item = Service>>(services: T) -> Self {
        let mut ports: BTreeMap<Protocol, Vec<PortRange>> = BTreeMap::new();
        for service in services {
            if let Service::Ports(protocol, range) = service {
                ports.entry(protocol).or_default().push(range);
            }
        }
        for ranges in ports.values_mut() {
            ranges.sort();
            ranges.dedup_by(|next, before| {
                let joins = next.first <= before.last.saturating_add(1);
                if joins {
                    before.last = before.last.max(next.last);
                }
                joins
            });
        }
        Self(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        let given = ["tcp/80", "tcp/8000-8010", "tcp/8005-8020", "tcp/8021", "udp/53", "tcp/80"];
        let services: Services = given.iter().map(|text| text.parse().unwrap()).collect();

        let shown: Vec<String> = services.iter().map(|service| service.to_string()).collect();
        assert_eq!(shown, ["tcp/80", "tcp/8000-8021", "udp/53"]);
    }

    #[test]
    fn a_whole_protocol_is_no_port() {
        let services: Services = ["tcp", "icmp", "47"].iter().map(|s| s.parse().unwrap()).collect();
        assert!(services.is_empty());
    }
}
