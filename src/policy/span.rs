//! Services as rectangles of protocols and ports, so that "is anything left" can be answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Name, Service};

/// Protocol numbers and destination ports, both inclusive. Where a protocol has no ports, all of
/// them stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) protocols: (u8, u8),
    pub(super) ports: (u16, u16),
}

impl Span {
    /// Every packet.
    pub(super) const ALL: Self = Self { protocols: (0, u8::MAX), ports: (0, u16::MAX) };

    /// What both have, if anything.
    fn overlap(self, other: Self) -> Option<Self> {
        let protocols =
            (self.protocols.0.max(other.protocols.0), self.protocols.1.min(other.protocols.1));
        let ports = (self.ports.0.max(other.ports.0), self.ports.1.min(other.ports.1));
        (protocols.0 <= protocols.1 && ports.0 <= ports.1).then_some(Self { protocols, ports })
    }

    /// What `self` has and `other` has not, in up to four pieces.
    fn without(self, other: Self) -> Vec<Self> {
        let Some(hole) = self.overlap(other) else { return vec![self] };
        let mut pieces = Vec::new();
        if self.protocols.0 < hole.protocols.0 {
            let protocols = (self.protocols.0, hole.protocols.0 - 1);
            pieces.push(Self { protocols, ports: self.ports });
        }
        if hole.protocols.1 < self.protocols.1 {
            let protocols = (hole.protocols.1 + 1, self.protocols.1);
            pieces.push(Self { protocols, ports: self.ports });
        }
        if self.ports.0 < hole.ports.0 {
            pieces.push(Self { ports: (self.ports.0, hole.ports.0 - 1), ..hole });
        }
        if hole.ports.1 < self.ports.1 {
            pieces.push(Self { ports: (hole.ports.1 + 1, self.ports.1), ..hole });
        }
        pieces
    }
}

/// The ports that a destination gave names to: values are always [`Service::Ports`], several where one
/// name stands for several.
pub type NamedPorts = BTreeMap<Name, BTreeSet<Service>>;

/// The services with named ports resolved at a destination that has `ports`, sorted, each once.
/// None when nothing is left of a list that had something, for an empty list means everything.
pub(super) fn resolve(services: &[Service], ports: &NamedPorts) -> Option<Vec<Service>> {
    let mut resolved = BTreeSet::new();
    for service in services {
        match service {
            Service::Protocol(_) | Service::Ports(..) => {
                resolved.insert(service.clone());
            }
            Service::Named(protocol, name) => {
                let theirs = ports.get(name).into_iter().flatten();
                resolved.extend(theirs.filter(|one| one.protocol() == *protocol).cloned());
            }
        }
    }
    let is_nothing = resolved.is_empty() && !services.is_empty();
    (!is_nothing).then(|| resolved.into_iter().collect())
}

/// What resolved `services` cover in an overlay of the given family; empty means everything.
pub(super) fn spans(services: &[Service], is_ipv6: bool) -> Vec<Span> {
    if services.is_empty() {
        return vec![Span::ALL];
    }
    services
        .iter()
        .filter_map(|service| {
            let number = service.protocol().number(is_ipv6);
            let ports = match service {
                Service::Protocol(_) => Span::ALL.ports,
                Service::Ports(_, range) => (range.first, range.last),
                Service::Named(..) => return None,
            };
            Some(Span { protocols: (number, number), ports })
        })
        .collect()
}

/// As [`spans`], with named ports resolved among `ports`. What the destination does not name is
/// nothing; an empty list means everything.
pub(super) fn spans_at(services: &[Service], is_ipv6: bool, ports: &NamedPorts) -> Vec<Span> {
    resolve(services, ports).map_or_else(Vec::new, |services| spans(&services, is_ipv6))
}

/// What `left` and `right` share.
pub(super) fn overlap(left: &[Span], right: &[Span]) -> Vec<Span> {
    left.iter().flat_map(|l| right.iter().filter_map(|r| l.overlap(*r))).collect()
}

/// What `from` has and none of `holes` has.
pub(super) fn without(from: Vec<Span>, holes: &[Span]) -> Vec<Span> {
    holes
        .iter()
        .fold(from, |rest, hole| rest.into_iter().flat_map(|span| span.without(*hole)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Vec<Span> {
        let services: Vec<Service> = texts.iter().map(|text| text.parse().unwrap()).collect();
        spans(&services, false)
    }

    fn count(spans: &[Span]) -> u64 {
        spans
            .iter()
            .map(|s| {
                (u64::from(s.protocols.1 - s.protocols.0) + 1)
                    * (u64::from(s.ports.1) - u64::from(s.ports.0) + 1)
            })
            .sum()
    }

    #[test]
    fn a_hole_takes_away_exactly_itself() {
        let all = count(&[Span::ALL]);

        assert_eq!(all, 1 << 24);
        assert_eq!(count(&without(vec![Span::ALL], &of(&["tcp/80"]))), all - 1);
        assert_eq!(count(&without(of(&["tcp/1-10"]), &of(&["tcp/3-4", "tcp/4-5"]))), 7);
        assert_eq!(count(&without(of(&["tcp/1-10"]), &of(&["udp"]))), 10);
        assert_eq!(without(of(&["tcp/1-10", "tcp/80"]), &of(&["tcp"])), Vec::new());
        assert_eq!(without(vec![Span::ALL], &[Span::ALL]), Vec::new());
    }

    #[test]
    fn an_unknown_named_port_is_nothing_and_never_everything() {
        let named: Vec<Service> = vec!["tcp/http".parse().unwrap()];
        let http = |ports: &[&str]| {
            let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
            NamedPorts::from([(Name::new("http").unwrap(), ports)])
        };
        let ports = http(&["tcp/8080", "tcp/80", "udp/80"]);
        let other = http(&["udp/8080"]);
        let both = ["tcp/80", "tcp/8080"].map(|port| port.parse().unwrap());

        assert_eq!(resolve(&named, &ports), Some(both.to_vec()), "one name, several ports");
        assert_eq!(resolve(&named, &NamedPorts::new()), None);
        assert_eq!(resolve(&named, &other), None, "the protocol is part of the name");
        assert_eq!(resolve(&[], &ports), Some(Vec::new()));
    }
}
