//! Where this node receives data packets: what the operator said, else the source addresses that the
//! kernel picks towards its SaPs, its direct peers and the server.

use std::net::{IpAddr, SocketAddr};

use crate::api::table::NodeTable;
use crate::sys::net::source_towards;
use crate::types::NodeKind;

/// How many peers are asked about: a SaP may have thousands, behind a few interfaces.
const ASKED_MAX: usize = 512;

/// How many endpoints a node reports.
const REPORTED_MAX: usize = 8;

/// What the endpoints follow from.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// `--endpoint`; a port of none is `port`.
    pub(crate) given: Vec<(IpAddr, Option<u16>)>,
    /// What the data socket is bound to, with the real port.
    pub(crate) bound: SocketAddr,
}

impl Wanted {
    /// The endpoints, best first; empty when the host has no route to anybody.
    pub(crate) fn pick(
        &self,
        table: Option<&NodeTable>,
        server: Option<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let port = self.bound.port();
        if !self.given.is_empty() {
            let with_port =
                |&(ip, own): &(IpAddr, Option<u16>)| SocketAddr::new(ip, own.unwrap_or(port));
            return self.given.iter().map(with_port).collect();
        }
        if !self.bound.ip().is_unspecified() {
            return vec![self.bound];
        }
        let mut targets: Vec<SocketAddr> = Vec::new();
        if let Some(table) = table {
            let body = &table.body;
            targets.extend(body.saps.iter().flat_map(|sap| &sap.endpoints));
            targets.extend(body.peers().flat_map(|member| &member.endpoints).take(ASKED_MAX));
            // Others see a SaP's first endpoint most often: the one towards the server does not move
            // when entities come and go.
            let server_first = usize::from(body.node.kind == NodeKind::Entity) * targets.len();
            targets.splice(server_first..server_first, server);
        } else {
            targets.extend(server);
        }
        let mut found: Vec<SocketAddr> = Vec::new();
        for target in targets {
            let takes = self.bound.is_ipv6() || target.is_ipv4();
            let Some(source) = takes.then(|| source_towards(target).ok()).flatten() else {
                continue;
            };
            let endpoint = SocketAddr::new(source.to_canonical(), port);
            if !found.contains(&endpoint) {
                found.push(endpoint);
            }
        }
        // The loopback means something on this host only.
        if found.iter().any(|endpoint| !endpoint.ip().is_loopback()) {
            found.retain(|endpoint| !endpoint.ip().is_loopback());
        }
        found.truncate(REPORTED_MAX);
        found
    }
}

/// Puts endpoints that this host has a route to before those that it has none to: the first one is used.
pub(crate) fn prefer_reachable(table: &mut NodeTable) {
    let saps = table.body.saps.iter_mut().map(|sap| &mut sap.endpoints);
    let members = table.body.overlays.iter_mut().flat_map(|overlay| &mut overlay.members);
    for endpoints in saps.chain(members.map(|member| &mut member.make_mut().endpoints)) {
        if endpoints.len() > 1 {
            endpoints.sort_by_cached_key(|&endpoint| source_towards(endpoint).is_err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_goes_before_what_was_found() {
        let server = Some("127.0.0.1:7443".parse().unwrap());
        let mut wanted = Wanted { given: Vec::new(), bound: "0.0.0.0:6080".parse().unwrap() };
        assert_eq!(wanted.pick(None, server), ["127.0.0.1:6080".parse().unwrap()]);

        wanted.bound = "10.0.0.9:7000".parse().unwrap();
        assert_eq!(wanted.pick(None, server), ["10.0.0.9:7000".parse().unwrap()]);

        wanted.given =
            vec![("192.0.2.1".parse().unwrap(), None), ("::1".parse().unwrap(), Some(9))];
        let given = ["192.0.2.1:7000".parse().unwrap(), "[::1]:9".parse().unwrap()];
        assert_eq!(wanted.pick(None, server), given);
    }
}
