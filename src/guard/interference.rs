//! Who else has rules on this machine, and what that means beside the guard. Pure.

use super::nft::ForeignChain;

/// Another tool that filters or translates packets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interference {
    /// The tool, as people call it.
    pub tool: &'static str,
    /// What it does to an overlay, and what the guard makes of it.
    pub meaning: &'static str,
}

/// Whether a chain is a tool's.
type IsTheirs = fn(&ForeignChain) -> bool;

/// What gives a tool away: a chain's name or its table's.
const TOOLS: [(&str, IsTheirs, &str); 7] = [
    (
        "Docker",
        |chain| chain.name.starts_with("DOCKER") || chain.table == "docker-bridges",
        "publishes ports by translating them; the guard closes those of services outside of overlays, \
         for containers too",
    ),
    (
        "ufw",
        |chain| chain.name.starts_with("ufw-") || chain.name.starts_with("ufw6-"),
        "may drop wrapped packets: ufw allow 6080/udp; `ufw reload` leaves the guard alone",
    ),
    (
        "firewalld",
        |chain| chain.table == "firewalld",
        "may drop wrapped packets: firewall-cmd --permanent --add-port=6080/udp; its reload leaves \
         the guard alone",
    ),
    (
        "kube-proxy",
        |chain| chain.name.starts_with("KUBE-") || chain.table == "kube-proxy",
        "translates service addresses of the cluster; the guard sees the port before and after",
    ),
    (
        "Istio",
        |chain| chain.name.starts_with("ISTIO_"),
        "redirects what arrives to its proxy; what comes over an overlay was judged before",
    ),
    (
        "Tailscale",
        |chain| chain.name.starts_with("ts-"),
        "drops 100.64.0.0/10 from other interfaces than its own: give overlays another range",
    ),
    (
        "Calico",
        |chain| chain.name.starts_with("cali"),
        "has policies of its own, which wrapped packets (6080/udp) must be allowed by",
    ),
];

/// The tools whose chains are among `chains`.
#[must_use]
pub fn interference(chains: &[ForeignChain]) -> Vec<Interference> {
    TOOLS
        .into_iter()
        .filter(|(_, is_theirs, _)| chains.iter().any(is_theirs))
        .map(|(tool, _, meaning)| Interference { tool, meaning })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_known_by_their_chains_and_ours_is_none() {
        let chain = |table: &str, name: &str| ForeignChain {
            family: "ip".to_owned(),
            table: table.to_owned(),
            name: name.to_owned(),
            ..ForeignChain::default()
        };
        let named = |chains: &[ForeignChain]| {
            interference(chains).iter().map(|found| found.tool).collect::<Vec<_>>()
        };

        assert!(named(&[chain("ovmesh", "input"), chain("filter", "INPUT")]).is_empty());
        let all = [
            chain("nat", "DOCKER"),
            chain("filter", "ufw-before-input"),
            chain("firewalld", "filter_INPUT"),
            chain("nat", "KUBE-SERVICES"),
            chain("nat", "ISTIO_INBOUND"),
            chain("filter", "ts-input"),
            chain("filter", "cali-INPUT"),
        ];
        let tools = ["Docker", "ufw", "firewalld", "kube-proxy", "Istio", "Tailscale", "Calico"];
        assert_eq!(named(&all), tools);
    }
}
