//! What may leave by other interfaces than the overlays'.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Chain, Draft, Rule, RuleName, Verdict, by_family, family, interfaces, numbers};
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

impl Draft<'_> {
    /// Lets out what `egress` and the link need, and nothing else.
    pub(super) fn close_outside(&mut self, egress: &Egress) {
        use RuleName::{Answers, Dhcp, NeighbourDiscovery, OutsideAllowed, OutsideDenied, Ovmesh};
        let mut rules: Vec<(RuleName, String, Verdict)> = Vec::new();
        let mut add = |name, condition: String, verdict| rules.push((name, condition, verdict));
        add(Answers, "ct direction reply".to_owned(), Verdict::Accept);
        for (protocol, to) in &egress.ovmesh {
            let (ip, port) = (to.ip().to_canonical(), to.port());
            let condition = format!("{} daddr {ip} {protocol} dport {port}", family(ip));
            add(Ovmesh, condition, Verdict::Accept);
        }
        let link = [
            (Dhcp, "meta nfproto ipv4 udp sport 68 udp dport 67"),
            (Dhcp, "meta nfproto ipv6 udp sport 546 udp dport 547"),
            (
                NeighbourDiscovery,
                "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, \
                 mld-listener-report, mld2-listener-report }",
            ),
        ];
        for (name, condition) in link {
            add(name, condition.to_owned(), Verdict::Accept);
        }
        for (name, rows, verdict) in [
            (OutsideDenied, &egress.denied, Verdict::Reject),
            (OutsideAllowed, &egress.allowed, Verdict::Accept),
        ] {
            for condition in rows.iter().flat_map(Outside::conditions) {
                add(name, condition, verdict);
            }
        }
        if !egress.unspoken_passes {
            add(RuleName::Outside, String::new(), Verdict::Reject);
        }
        let peers = self.intent.ssh_peers.iter().map(|&peer| Prefix::from(peer)).collect();
        for (family, peers) in by_family(peers) {
            if let Some(ports) = numbers(&self.intent.ssh_ports) {
                let condition = format!("{family} daddr {peers} tcp sport {ports}");
                self.add(Chain::Output, RuleName::Ssh, &condition, Verdict::Accept);
            }
        }
        let uplinks = self.intent.uplinks.iter().map(String::as_str);
        let by_uplink = format!("oifname {}", interfaces(uplinks));
        for (name, condition, verdict) in rules {
            self.add(Chain::Output, name, &condition, verdict);
            // What containers ask of the world is this machine's asking.
            if !self.intent.uplinks.is_empty() {
                let condition = format!("{by_uplink} {condition}");
                self.rules.push(Rule { chain: Chain::Forward, name, condition, verdict });
            }
        }
    }
}

impl Outside {
    /// One for each of its services, in the words of `nft`.
    fn conditions(&self) -> Vec<String> {
        let families = match self.cidr {
            Some(cidr) => vec![cidr.addr().is_ipv6()],
            None => vec![false, true],
        };
        let mut conditions = Vec::new();
        for is_ipv6 in families {
            let to = match self.cidr {
                Some(cidr) => format!("{} daddr {cidr}", family(cidr.addr())),
                None => format!("meta nfproto {}", if is_ipv6 { "ipv6" } else { "ipv4" }),
            };
            let except = by_family(self.except.clone());
            let except = except.iter().map(|(family, but)| format!(" {family} daddr != {but}"));
            let to = format!("{to}{}", except.collect::<String>());
            if self.services.is_empty() {
                conditions.push(to.clone());
            }
            conditions.extend(self.services.iter().filter_map(|service| match service {
                Service::Protocol(protocol) => {
                    Some(format!("{to} meta l4proto {}", protocol.number(is_ipv6)))
                }
                Service::Ports(protocol, range) => Some(format!("{to} {protocol} dport {range}")),
                Service::Named(..) => None,
            }));
        }
        conditions
    }
}
