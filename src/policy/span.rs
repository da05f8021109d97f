//! Services as rectangles of protocols and ports, so that "is anything left" can be answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Name, PortRange, Protocol, Service};

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

/// The services with named ports resolved at a destination that has `ports`, sorted, each once.
/// None when nothing is left of a list that had something, for an empty list means everything.
pub(super) fn resolve(
    services: &[Service],
    ports: &BTreeMap<Name, Service>,
) -> Option<Vec<Service>> {
    let resolve_one = |service: &Service| match service {
        Service::Protocol(_) | Service::Ports(..) => Some(service.clone()),
        Service::Named(protocol, name) => match ports.get(name) {
            Some(Service::Ports(theirs, range)) if theirs == protocol => {
                Some(Service::Ports(*theirs, *range))
            }
            Some(Service::Ports(..) | Service::Protocol(_) | Service::Named(..)) | None => None,
        },
    };
    let mut resolved: Vec<Service> = services.iter().filter_map(resolve_one).collect();
    resolved.sort();
    resolved.dedup();
    (services.is_empty() || !resolved.is_empty()).then_some(resolved)
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

/// The ports that a destination gave names to; a name may stand for several.
pub type NamedPorts = BTreeSet<(Name, Protocol, u16)>;

/// As [`spans`], with named ports resolved among `named`. What the destination does not name is
/// nothing; an empty list means everything.
pub(super) fn spans_at(services: &[Service], is_ipv6: bool, named: &NamedPorts) -> Vec<Span> {
    if services.is_empty() {
        return vec![Span::ALL];
    }
    let resolved: Vec<Service> = services
        .iter()
        .flat_map(|service| match service {
            Service::Protocol(_) | Service::Ports(..) => vec![service.clone()],
            Service::Named(protocol, name) => named
                .iter()
                .filter(|(theirs, of, _)| theirs == name && of == protocol)
                .map(|&(_, of, port)| Service::Ports(of, PortRange { first: port, last: port }))
                .collect(),
        })
        .collect();
    if resolved.is_empty() { Vec::new() } else { spans(&resolved, is_ipv6) }
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
        let ports = BTreeMap::from([(Name::new("http").unwrap(), "tcp/8080".parse().unwrap())]);
        let other = BTreeMap::from([(Name::new("http").unwrap(), "udp/8080".parse().unwrap())]);

        assert_eq!(resolve(&named, &ports), Some(vec!["tcp/8080".parse().unwrap()]));
        assert_eq!(resolve(&named, &BTreeMap::new()), None);
        assert_eq!(resolve(&named, &other), None, "the protocol is part of the name");
        assert_eq!(resolve(&[], &ports), Some(Vec::new()));
    }
}
