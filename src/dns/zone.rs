//! The names of a table: what they stand for, and the way back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{A, AAAA, ANY, Answer, Code, PTR, Record, SRV};
use crate::types::{EntityName, Name, OVERLAY_SUFFIX as SUFFIX, Prefix, Service};

/// Everything that can be answered from one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Named ports of services, by `_PORT._PROTOCOL.` and the service's name.
    ports: BTreeMap<String, Vec<Port>>,
    /// Names that others stand below of.
    between: BTreeSet<String>,
    addresses: BTreeMap<IpAddr, String>,
    /// Whose addresses nobody else is asked about.
    ranges: Vec<Prefix>,
}

/// Where one instance of a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    number: u16,
    host: String,
    address: IpAddr,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is about us, and this is the answer.
    Answer(Answer),
    /// It is about others.
    Forward,
}

impl Zone {
    /// Adds an overlay and those of its members that the table speaks of: whom this host may talk to, and
    /// who may talk to it.
    pub fn add_overlay<'a>(
        &mut self,
        overlay: &Name,
        range: Prefix,
        members: impl Iterator<Item = (&'a EntityName, IpAddr)>,
    ) {
        self.ranges.push(range);
        self.between.extend([SUFFIX.to_owned(), format!("{overlay}.{SUFFIX}")]);
        for (member, address) in members {
            self.between.insert(format!("{}.{overlay}.{SUFFIX}", member.namespace));
            let names = member.overlay_names(overlay);
            self.addresses.extend(names.first().map(|name| (address, name.clone())));
            for name in names {
                self.names.entry(name).or_default().push(address);
            }
        }
    }

    /// Adds a service of an overlay, with its instances: all of them under one name, which is the service's
    /// even where an entity of the namespace `default` bears it.
    pub fn add_service<'a>(
        &mut self,
        overlay: &Name,
        service: &Name,
        instances: impl Iterator<Item = (&'a EntityName, IpAddr)>,
    ) {
        let addresses: Vec<IpAddr> = instances.map(|(_, address)| address).collect();
        self.between.insert(format!("{}.{overlay}.{SUFFIX}", Name::default()));
        for name in service_names(overlay, service) {
            self.names.insert(name, addresses.clone());
        }
    }

    /// Adds a named port of a service that was added, with the instances that have it.
    pub fn add_port<'a>(
        &mut self,
        (overlay, service): (&Name, &Name),
        (name, port): (&Name, &Service),
        instances: impl Iterator<Item = (&'a EntityName, IpAddr)>,
    ) {
        let Service::Ports(protocol, range) = port else { return };
        let ports: Vec<Port> = instances
            .filter_map(|(instance, address)| {
                let host = instance.overlay_names(overlay).into_iter().next()?;
                Some(Port { number: range.first, host, address })
            })
            .collect();
        for service in service_names(overlay, service) {
            let below = format!("_{protocol}.{service}");
            self.ports.entry(format!("_{name}.{below}")).or_default().extend(ports.iter().cloned());
            self.between.insert(below);
        }
    }

    /// What `name` (lower case) is asked for. `turn` says which of several records comes first.
    pub(super) fn find(&self, name: &str, kind: u16, turn: usize) -> Verdict {
        if let Some(address) = reverse(name) {
            if !self.ranges.iter().any(|range| range.contains(&address)) {
                return Verdict::Forward;
            }
            let Some(name) = self.addresses.get(&address) else {
                return answer(Code::NoName, Vec::new());
            };
            let is_asked = [PTR, ANY].contains(&kind);
            let records = if is_asked { vec![Record::Name(name.clone())] } else { Vec::new() };
            return answer(Code::Ok, records);
        }
        if !is_ours(name) {
            return Verdict::Forward;
        }
        if let Some(ports) = self.ports.get(name) {
            let asked = if [SRV, ANY].contains(&kind) { ports.as_slice() } else { &[] };
            return Verdict::Answer(places(&rotated(asked.to_vec(), turn)));
        }
        let Some(addresses) = self.names.get(name) else {
            let code = if self.between.contains(name) { Code::Ok } else { Code::NoName };
            return answer(code, Vec::new());
        };
        let is_asked = |address: &&IpAddr| match kind {
            A => address.is_ipv4(),
            AAAA => address.is_ipv6(),
            _ => kind == ANY,
        };
        let asked = addresses.iter().filter(is_asked);
        let records = asked.map(|&address| Record::Address(address)).collect();
        answer(Code::Ok, rotated(records, turn))
    }
}

fn answer(code: Code, records: Vec<Record>) -> Verdict {
    Verdict::Answer(Answer { code, records, hosts: Vec::new() })
}

/// The records of ports, and the addresses of their hosts.
fn places(ports: &[Port]) -> Answer {
    let record = |port: &Port| Record::Place { port: port.number, host: port.host.clone() };
    let mut hosts: Vec<(String, IpAddr)> = Vec::new();
    for Port { host, address, .. } in ports {
        if !hosts.iter().any(|(known, _)| known == host) {
            hosts.push((host.clone(), *address));
        }
    }
    Answer { code: Code::Ok, records: ports.iter().map(record).collect(), hosts }
}

fn rotated<T>(mut all: Vec<T>, turn: usize) -> Vec<T> {
    if !all.is_empty() {
        let first = turn % all.len();
        all.rotate_left(first);
    }
    all
}

/// Services have no namespace; their names are those of entities in `default`.
fn service_names(overlay: &Name, service: &Name) -> Vec<String> {
    EntityName { namespace: Name::default(), name: service.clone() }.overlay_names(overlay)
}

/// Whether a name is below our suffix, or a name below our suffix that a resolver put a search domain
/// behind (`b.prod.ov.internal.svc.cluster.local`): neither is anybody else's business.
fn is_ours(name: &str) -> bool {
    let below = |name: &str| name == SUFFIX || name.ends_with(&format!(".{SUFFIX}"));
    below(name) || name.contains(&format!(".{SUFFIX}."))
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is about.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0;
    for digit in digits.split('.') {
        let value =
            if digit.len() == 1 { u128::from_str_radix(digit, 16).ok()? } else { return None };
        bits = (bits >> 4) | (value << 124);
        count += 1;
    }
    (count == 32).then_some(IpAddr::V6(Ipv6Addr::from(bits)))
}
