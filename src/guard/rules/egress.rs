//! What may leave by other interfaces than the overlays'.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{Chain, Draft, RuleName, Verdict, by_family, family, interfaces, numbers, set};
use crate::guard::Services;
use crate::types::{Prefix, Protocol, Service};

/// What may leave by other interfaces, beside what the link needs and answers to what was let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// The server, and who takes wrapped packets.
    pub ovmesh: BTreeSet<(Protocol, SocketAddr)>,
    /// What goes before everything that is allowed.
    pub denied: Vec<Outside>,
    /// What passes.
    pub allowed: Vec<Outside>,
    /// Whether what none of them speaks of passes.
    pub unspoken_passes: bool,
}

/// Addresses outside of overlays, and services there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// None means all.
    pub cidr: Option<Prefix>,
    /// What is cut out of it.
    pub except: Vec<Prefix>,
    /// Empty means all; named ports mean nothing.
    pub services: Vec<Service>,
}

/// What a link needs to be one, whatever rules say.
const LINK: [(RuleName, &str); 3] = [
    (RuleName::Dhcp, "meta nfproto ipv4 udp sport 68 udp dport 67"),
    (RuleName::Dhcp, "meta nfproto ipv6 udp sport 546 udp dport 547"),
    (
        RuleName::NeighbourDiscovery,
        "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, \
         mld-listener-report, mld2-listener-report }",
    ),
];

/// What was redirected to this machine itself, by us or by a proxy beside us: this chain still sees it on its
/// way to where it was going before. No route leads such addresses out.
const REDIRECTED: [&str; 2] = ["ip daddr 127.0.0.0/8", "ip6 daddr ::1"];

impl Draft<'_> {
    /// Lets out what `egress` and the link need, and nothing else.
    pub(super) fn close_outside(&mut self, egress: &Egress) {
        self.older_flows_of_ours();
        let peers = self.intent.ssh_peers.iter().map(|&peer| Prefix::from(peer)).collect();
        for (family, peers) in by_family(peers) {
            if let Some(ports) = numbers(&self.intent.ssh_ports) {
                let condition = format!("{family} daddr {peers} tcp sport {ports}");
                self.add(Chain::Output, RuleName::Ssh, &condition, Verdict::Accept);
            }
        }
        for condition in egress.ovmesh_conditions() {
            self.let_out(RuleName::Ovmesh, &condition);
        }
        self.let_out(RuleName::Answers, "ct direction reply");
        for condition in REDIRECTED {
            self.add(Chain::Output, RuleName::Redirected, condition, Verdict::Accept);
        }
        for (name, condition) in LINK {
            self.let_out(name, condition);
        }
        for condition in egress.denied.iter().flat_map(Outside::conditions) {
            self.at_the_way_out(RuleName::OutsideDenied, &condition, Verdict::Reject);
        }
        for condition in egress.allowed.iter().flat_map(Outside::conditions) {
            self.let_out(RuleName::OutsideAllowed, &condition);
        }
        if !egress.unspoken_passes {
            self.at_the_way_out(RuleName::Outside, "", Verdict::Reject);
        }
    }

    fn let_out(&mut self, name: RuleName, condition: &str) {
        self.at_the_way_out(name, condition, Verdict::Accept);
    }

    /// For what this machine sends, and for what its containers ask of the world, which is its own asking.
    fn at_the_way_out(&mut self, name: RuleName, condition: &str, verdict: Verdict) {
        self.add(Chain::Output, name, condition, verdict);
        if !self.intent.uplinks.is_empty() {
            let uplinks = interfaces(self.intent.uplinks.iter().map(String::as_str));
            let condition = format!("oifname {uplinks} {condition}");
            self.push(Chain::Forward, name, condition, verdict);
        }
    }

    /// Of a flow of ours that is older than tracking the other side may be seen first, and what we send
    /// would be its answer for ever. A flow of others goes to a port that somebody listens on.
    fn older_flows_of_ours(&mut self) {
        let ports = numbers(&self.intent.listening).map(|ports| format!("tcp dport != {ports} "));
        let condition =
            format!("{}ct state new tcp flags & (syn | ack) != syn", ports.unwrap_or_default());
        self.add(Chain::Input, RuleName::OlderFlow, &condition, Verdict::Drop);
    }
}

impl Egress {
    /// One for each protocol and family: a packet of an overlay meets few rules, however many peers there
    /// are.
    fn ovmesh_conditions(&self) -> Vec<String> {
        let mut places: BTreeMap<(Protocol, bool), BTreeSet<String>> = BTreeMap::new();
        for &(protocol, to) in &self.ovmesh {
            let (ip, port) = (to.ip().to_canonical(), to.port());
            places.entry((protocol, ip.is_ipv6())).or_default().insert(format!("{ip} . {port}"));
        }
        let condition = |((protocol, is_ipv6), places): ((Protocol, bool), BTreeSet<String>)| {
            let places: Vec<String> = places.into_iter().collect();
            format!("{} daddr . {protocol} dport {}", family(is_ipv6), set(&places))
        };
        places.into_iter().map(condition).collect()
    }
}

impl Outside {
    /// One for each protocol of its services, in the words of `nft`.
    fn conditions(&self) -> Vec<String> {
        let families = match self.cidr {
            Some(cidr) => vec![cidr.addr().is_ipv6()],
            None => vec![false, true],
        };
        families.into_iter().flat_map(|is_ipv6| self.conditions_in(is_ipv6)).collect()
    }

    fn conditions_in(&self, is_ipv6: bool) -> Vec<String> {
        let mut to = match self.cidr {
            Some(cidr) if cidr.prefix_len() > 0 => format!("{} daddr {cidr}", family(is_ipv6)),
            Some(_) | None => format!("meta nfproto {}", if is_ipv6 { "ipv6" } else { "ipv4" }),
        };
        for (family, except) in by_family(self.except.clone()) {
            to.push_str(&format!(" {family} daddr != {except}"));
        }
        if self.services.is_empty() {
            return vec![to];
        }
        let protocols = self.services.iter().filter_map(|service| match service {
            Service::Protocol(protocol) => {
                Some(format!("{to} meta l4proto {}", protocol.number(is_ipv6)))
            }
            Service::Ports(..) | Service::Named(..) => None,
        });
        let ports: Services = self.services.iter().cloned().collect();
        let ports = ports
            .by_protocol()
            .map(|(protocol, ranges)| format!("{to} {protocol} dport {}", set(ranges)));
        protocols.chain(ports).collect()
    }
}
