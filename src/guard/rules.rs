//! What stands in the guard's table. Pure.
//!
//! `inside` is the loopback and the devices of overlays; every rule is about packets on other
//! interfaces. The order within a chain counts; the first verdict ends the chain.
//!
//! | chain | priority | why there |
//! |---|---|---|
//! | prerouting | -300 | before anything is tracked or translated |
//! | input, forward, output | -10 | after translation, before the chains of other tools, which may accept established flows |

use std::fmt;
use std::net::IpAddr;

pub use self::egress::{Egress, Outside};
use super::Services;
use crate::types::{GuardMode, Prefix, Protocol};

mod egress;

/// What a guard is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// What it closes.
    pub mode: GuardMode,
    /// The overlays that this machine is in.
    pub members: Vec<Member>,
    /// What this machine serves in overlays, closed elsewhere.
    pub services: Services,
    /// The UDP port that takes wrapped packets.
    pub data_port: u16,
    /// The TCP port where the daemon answers for the health of programs.
    pub health_port: Option<u16>,
    /// The interfaces that lead to other machines.
    pub uplinks: Vec<String>,
    /// Whose ssh connections go on; see [`super::Sockets`].
    pub ssh_peers: Vec<IpAddr>,
    /// The local ports that those came in by.
    pub ssh_ports: Vec<u16>,
    /// What may leave by other interfaces; none is everything but what is for an overlay.
    pub egress: Option<Egress>,
    /// The TCP ports that were listened on when the guard came: flows to them may be older than it.
    pub listening: Vec<u16>,
}

/// This machine in one overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The TUN device.
    pub device: String,
    /// The overlay's range.
    pub range: Prefix,
    /// This machine's address in it.
    pub address: IpAddr,
}

/// A chain of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// All that arrives, before connection tracking.
    Prerouting,
    /// What is for this machine.
    Input,
    /// What this machine hands on.
    Forward,
    /// What this machine sends.
    Output,
}

/// What a rule is there for: its counter's name in the table and in status. Several rules may share one
/// (families, ports, chains).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each has its explanation below")]
pub enum RuleName {
    OverlayAddressElsewhere,
    OverlaySourceElsewhere,
    OverlayInClear,
    OwnReplies,
    Ssh,
    Gue,
    Health,
    NeighbourDiscovery,
    Dhcp,
    IcmpErrors,
    ServiceElsewhere,
    ServiceTranslated,
    ServiceForwarded,
    OlderFlow,
    Closed,
    MssClamped,
    Answers,
    Ovmesh,
    OutsideDenied,
    OutsideAllowed,
    Outside,
    Redirected,
}

impl RuleName {
    /// All of them, in the order of status.
    pub const ALL: [Self; 22] = [
        Self::OverlayAddressElsewhere,
        Self::OverlaySourceElsewhere,
        Self::OverlayInClear,
        Self::ServiceElsewhere,
        Self::ServiceTranslated,
        Self::ServiceForwarded,
        Self::OlderFlow,
        Self::Closed,
        Self::OutsideDenied,
        Self::Outside,
        Self::OutsideAllowed,
        Self::Answers,
        Self::Redirected,
        Self::Ovmesh,
        Self::MssClamped,
        Self::OwnReplies,
        Self::Ssh,
        Self::Gue,
        Self::Health,
        Self::NeighbourDiscovery,
        Self::Dhcp,
        Self::IcmpErrors,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OverlayAddressElsewhere => "overlay_address_elsewhere",
            Self::OverlaySourceElsewhere => "overlay_source_elsewhere",
            Self::OverlayInClear => "overlay_in_clear",
            Self::OwnReplies => "own_replies",
            Self::Ssh => "ssh",
            Self::Gue => "gue",
            Self::Health => "health",
            Self::NeighbourDiscovery => "neighbour_discovery",
            Self::Dhcp => "dhcp",
            Self::IcmpErrors => "icmp_errors",
            Self::ServiceElsewhere => "service_elsewhere",
            Self::ServiceTranslated => "service_translated",
            Self::ServiceForwarded => "service_forwarded",
            Self::OlderFlow => "older_flow",
            Self::Closed => "closed",
            Self::MssClamped => "mss_clamped",
            Self::Answers => "answers",
            Self::Ovmesh => "ovmesh",
            Self::OutsideDenied => "outside_denied",
            Self::OutsideAllowed => "outside_allowed",
            Self::Outside => "outside",
            Self::Redirected => "redirected",
        }
    }

    /// One line for people.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Self::OverlayAddressElsewhere => {
                "for this machine's overlay address, arrived on another interface"
            }
            Self::OverlaySourceElsewhere => "from an overlay address, arrived on another interface",
            Self::OverlayInClear => "for an overlay, would have left on another interface",
            Self::OwnReplies => "replies to flows that this machine started",
            Self::Ssh => "ssh from peers that were connected when the guard came",
            Self::Gue => "wrapped packets; the daemon judges them",
            Self::Health => "questions about the health of programs; the daemon asks them",
            Self::NeighbourDiscovery => "IPv6 neighbour and router discovery",
            Self::Dhcp => "answers of DHCP servers",
            Self::IcmpErrors => "ICMP errors",
            Self::ServiceElsewhere => "for a service port, not over an overlay",
            Self::ServiceTranslated => "for a service port that NAT put another port in front of",
            Self::ServiceForwarded => "for a service port, would have been handed on",
            Self::OlderFlow => "of a flow that is older than the guard",
            Self::Closed => "anything else from outside of overlays",
            Self::MssClamped => {
                "opening TCP segments between containers and an overlay, made to fit its MTU"
            }
            Self::Answers => "answers to what was let in",
            Self::Ovmesh => "to the server, SaPs and direct peers",
            Self::OutsideDenied => "to the outside, denied by a rule",
            Self::OutsideAllowed => "to the outside, allowed by a rule or policy",
            Self::Outside => "to the outside, and nothing allows it",
            Self::Redirected => "to this machine, where it was redirected to",
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this chain; other tools' chains still judge it.
    Accept,
    /// It ends here in silence.
    Drop,
    /// It ends here, and its sender on this machine hears of it at once.
    Reject,
    /// It goes on, with no larger segments allowed than its way takes.
    ClampMss,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub chain: Chain,
    /// What for.
    pub name: RuleName,
    /// Which packets, in the words of `nft`.
    pub condition: String,
    /// And then.
    pub verdict: Verdict,
}

/// The rules that `intent` asks for, in order; none when the guard is off.
#[must_use]
pub fn rules(intent: &Intent) -> Vec<Rule> {
    let mut draft = Draft::new(intent);
    if intent.mode != GuardMode::Off {
        draft.overlays_stay_inside();
        draft.fit_into_overlays();
        draft.replies_and_ssh();
        match intent.mode {
            GuardMode::Off => {}
            GuardMode::Ports => draft.close_services(),
            GuardMode::All => draft.close_all(),
        }
        if let Some(egress) = &intent.egress {
            draft.close_outside(egress);
        }
    }
    draft.rules
}

struct Draft<'a> {
    intent: &'a Intent,
    /// Came in by an interface that is not inside.
    from_outside: String,
    /// Goes out by one.
    to_outside: String,
    rules: Vec<Rule>,
}

impl<'a> Draft<'a> {
    fn new(intent: &'a Intent) -> Self {
        let inside = interfaces(intent.inside());
        Self {
            intent,
            from_outside: format!("iifname != {inside}"),
            to_outside: format!("oifname != {inside}"),
            rules: Vec::new(),
        }
    }

    fn add(&mut self, chain: Chain, name: RuleName, condition: &str, verdict: Verdict) {
        let side = match chain {
            Chain::Prerouting | Chain::Input | Chain::Forward => &self.from_outside,
            Chain::Output => &self.to_outside,
        };
        let condition = format!("{side} {condition}");
        self.push(chain, name, condition, verdict);
    }

    /// A rule that says its interfaces itself.
    fn push(&mut self, chain: Chain, name: RuleName, condition: String, verdict: Verdict) {
        self.rules.push(Rule { chain, name, condition, verdict });
    }

    fn overlays_stay_inside(&mut self) {
        let addresses = self.intent.members.iter().map(|member| Prefix::from(member.address));
        let own = by_family(addresses.collect());
        let ranges = by_family(self.intent.members.iter().map(|member| member.range).collect());
        for (family, own) in &own {
            // Twice: a translation may make it one of ours only after the first.
            for chain in [Chain::Prerouting, Chain::Input] {
                let condition = format!("{family} daddr {own}");
                self.add(chain, RuleName::OverlayAddressElsewhere, &condition, Verdict::Drop);
            }
        }
        for (family, ranges) in &ranges {
            let source = format!("{family} saddr {ranges}");
            self.add(Chain::Prerouting, RuleName::OverlaySourceElsewhere, &source, Verdict::Drop);
            let target = format!("{family} daddr {ranges}");
            self.add(Chain::Output, RuleName::OverlayInClear, &target, Verdict::Reject);
            // Wherever it came from, the overlay's own device too.
            let condition = format!("{} {target}", self.to_outside);
            self.push(Chain::Forward, RuleName::OverlayInClear, condition, Verdict::Drop);
        }
    }

    /// Replies are told by the tracked direction, not by the state: a flow that others started stays
    /// theirs for ever. What would make an older flow look like one of ours is dropped on its way out
    /// ([`Self::older_flows`]); tracking begins a moment before the rules do, and a flow that was misread
    /// in that moment is known by the port that somebody listened on then.
    fn replies_and_ssh(&mut self) {
        let peers = self.intent.ssh_peers.iter().map(|&peer| Prefix::from(peer)).collect();
        let ports = numbers(&self.intent.ssh_ports);
        for (family, peers) in by_family(peers) {
            if let Some(ports) = &ports {
                let condition = format!("{family} saddr {peers} tcp dport {ports}");
                self.add(Chain::Input, RuleName::Ssh, &condition, Verdict::Accept);
            }
        }
        if let Some(listening) = numbers(&self.closed_listening()) {
            let misread = format!("tcp dport {listening} ct direction reply");
            self.add(Chain::Input, RuleName::OlderFlow, &misread, Verdict::Drop);
        }
        for chain in [Chain::Input, Chain::Forward] {
            self.add(chain, RuleName::OwnReplies, "ct direction reply", Verdict::Accept);
        }
    }

    /// The TCP ports that are closed now and were listened on when the guard came.
    fn closed_listening(&self) -> Vec<u16> {
        let services = self.intent.services.by_protocol();
        let tcp: Vec<_> = services
            .filter(|(protocol, _)| *protocol == Protocol::Tcp)
            .flat_map(|(_, ranges)| ranges)
            .collect();
        let is_closed = |port: u16| match self.intent.mode {
            GuardMode::Off => false,
            GuardMode::Ports => tcp.iter().any(|range| range.contains(port)),
            GuardMode::All => true,
        };
        self.intent.listening.iter().copied().filter(|&port| is_closed(port)).collect()
    }

    /// Containers behind this machine know the MTU of their bridge and not the overlay's. Both ends of
    /// a flow are told, whoever starts it: `rt mtu` is the smaller one of the way there and the way back.
    fn fit_into_overlays(&mut self) {
        if self.intent.members.is_empty() {
            return;
        }
        let devices = interfaces(self.intent.members.iter().map(|member| member.device.as_str()));
        for way in ["iifname", "oifname"] {
            let condition = format!("{way} {devices} tcp flags & (syn | rst) == syn");
            self.push(Chain::Forward, RuleName::MssClamped, condition, Verdict::ClampMss);
        }
    }

    fn close_services(&mut self) {
        let intent = self.intent;
        for (protocol, ranges) in intent.services.by_protocol() {
            let now = format!("{protocol} dport {}", set(ranges));
            self.add(Chain::Input, RuleName::ServiceElsewhere, &now, Verdict::Drop);
            let away = self.away_from_uplinks();
            self.add(
                Chain::Forward,
                RuleName::ServiceForwarded,
                &format!("{away} {now}"),
                Verdict::Drop,
            );
            let dnat = "ct status dnat";
            self.forward_from_uplinks(&format!("{dnat} {now}"));
            // A set of these is kept in another byte order by some versions of nft.
            for range in ranges {
                let before = format!("meta l4proto {protocol} ct original proto-dst {range}");
                self.add(Chain::Input, RuleName::ServiceTranslated, &before, Verdict::Drop);
                self.forward_from_uplinks(&format!("{before} {dnat}"));
                let away = format!("{away} {before}");
                self.add(Chain::Forward, RuleName::ServiceForwarded, &away, Verdict::Drop);
            }
            if protocol == Protocol::Tcp {
                self.older_flows(&set(ranges));
            }
        }
    }

    fn close_all(&mut self) {
        let gue = format!("udp dport {}", self.intent.data_port);
        let open = [
            (RuleName::Gue, gue.as_str()),
            (
                RuleName::NeighbourDiscovery,
                "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
                 mld-listener-query }",
            ),
            (RuleName::Dhcp, "meta nfproto ipv4 udp sport 67 udp dport 68"),
            (RuleName::Dhcp, "ip6 saddr fe80::/10 udp sport 547 udp dport 546"),
            (
                RuleName::IcmpErrors,
                "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
            ),
            (
                RuleName::IcmpErrors,
                "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, \
                 parameter-problem }",
            ),
        ];
        for (name, condition) in open {
            self.add(Chain::Input, name, condition, Verdict::Accept);
        }
        if let Some(port) = self.intent.health_port {
            let health = format!("tcp dport {port}");
            self.add(Chain::Input, RuleName::Health, &health, Verdict::Accept);
        }
        self.add(Chain::Input, RuleName::Closed, "", Verdict::Drop);
        let away = self.away_from_uplinks();
        self.add(Chain::Forward, RuleName::ServiceForwarded, &away, Verdict::Drop);
        self.forward_from_uplinks("ct status dnat");
        if let Some(listening) = numbers(&self.intent.listening) {
            self.older_flows(&listening);
        }
    }

    /// Goes to a bridge of containers, say, and neither to other machines nor into an overlay: what this
    /// machine's containers ask of the world may have any port.
    fn away_from_uplinks(&self) -> String {
        let uplinks = self.intent.uplinks.iter().map(String::as_str);
        format!("oifname != {}", interfaces(self.intent.inside().chain(uplinks)))
    }

    fn forward_from_uplinks(&mut self, condition: &str) {
        if !self.intent.uplinks.is_empty() {
            let uplinks = interfaces(self.intent.uplinks.iter().map(String::as_str));
            let condition = format!("iifname {uplinks} {condition}");
            self.push(Chain::Forward, RuleName::ServiceForwarded, condition, Verdict::Drop);
        }
    }

    /// Connection tracking begins with the guard, at the latest. Of a flow that is older it sees a segment
    /// of the service first and would call it our own flow, and what the other side sends a reply.
    fn older_flows(&mut self, ports: &str) {
        let condition =
            format!("tcp sport {ports} ct state {{ new, invalid }} tcp flags & (syn | ack) != syn");
        self.add(Chain::Output, RuleName::OlderFlow, &condition, Verdict::Drop);
    }
}

impl Intent {
    fn inside(&self) -> impl Iterator<Item = &str> {
        let devices = self.members.iter().map(|member| member.device.as_str());
        std::iter::once("lo").chain(devices)
    }
}

/// Interfaces by name: they come and go, and a number would mean another one.
fn interfaces<'a>(names: impl Iterator<Item = &'a str>) -> String {
    // A name that nft would read otherwise is left out, which closes more.
    let is_plain = |name: &&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
    };
    let mut names: Vec<&str> = names.filter(is_plain).collect();
    names.sort_unstable();
    names.dedup();
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    set(&quoted)
}

fn numbers(ports: &[u16]) -> Option<String> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then(|| set(&ports))
}

/// `ip` and `ip6`, each with its prefixes, where it has any.
fn by_family(prefixes: Vec<Prefix>) -> Vec<(&'static str, String)> {
    // Of prefixes that overlap, some versions of nft take none.
    let (v4, v6): (Vec<_>, Vec<_>) =
        Prefix::aggregate(&prefixes).into_iter().partition(|prefix| prefix.addr().is_ipv4());
    [("ip", v4), ("ip6", v6)]
        .into_iter()
        .filter(|(_, prefixes)| !prefixes.is_empty())
        .map(|(family, prefixes)| (family, set(&prefixes)))
        .collect()
}

fn family(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "ip6" } else { "ip" }
}

fn set(items: &[impl fmt::Display]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

#[cfg(test)]
mod tests;
