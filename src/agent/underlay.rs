//! Where packets may travel in clear, and what would collide with the host's own network.

use std::net::{IpAddr, SocketAddr};

use crate::api::node::OverlayFacts;
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode};
use crate::types::Prefix;

/// A range that the host already uses, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// For people: `the route 10.0.0.0/8 on eth0`.
    pub what: String,
    /// The range.
    pub prefix: Prefix,
}

/// Whether packets may travel in clear to `address` without being asked for: RFC 1918, ULA, loopback
/// and link-local.
#[must_use]
pub fn is_managed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

/// Refuses endpoints in the open.
///
/// # Errors
///
/// `Conflict` that names the first one.
pub fn check_endpoints(endpoints: &[SocketAddr]) -> Result<(), Problem> {
    match endpoints.iter().find(|endpoint| !is_managed(endpoint.ip())) {
        None => Ok(()),
        Some(endpoint) => Err(Problem::new(
            ProblemCode::Conflict,
            format!("the underlay at {} is not declared managed", endpoint.ip()),
        )
        .why("packets would cross it in clear, keys included: whoever sees them can read and forge them")
        .fix("use an --endpoint in a private network, or make the token with `ovctl token create --clear-underlay`")),
    }
}

/// Refuses overlays whose range the host already uses. A default route is no use of a range.
///
/// # Errors
///
/// `Conflict` that names both.
pub fn check_overlaps(overlays: &[OverlayFacts], host: &[HostRange]) -> Result<(), Problem> {
    for overlay in overlays {
        let used = host.iter().find(|range| {
            range.prefix.prefix_len() > 0
                && (range.prefix.contains(&overlay.cidr) || overlay.cidr.contains(&range.prefix))
        });
        if let Some(used) = used {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!(
                    "overlay {} ({}) overlaps with {} of this host",
                    overlay.name, overlay.cidr, used.what
                ),
            )
            .why("packets for one would be taken for the other")
            .fix("join another overlay: ovctl overlay create NAME --cidr CIDR, then ovctl token create --overlay NAME"));
        }
    }
    Ok(())
}

/// Takes endpoints in the open out of `table`, so that nothing is sent there in clear; returns a line
/// for people for each SaP that lost all of its endpoints.
pub fn keep_managed(table: &mut NodeTable) -> Vec<String> {
    let mut problems = Vec::new();
    let mut cut = |what: &str, name: &str, endpoints: &mut Vec<SocketAddr>| {
        let first = endpoints.first().copied();
        endpoints.retain(|endpoint| is_managed(endpoint.ip()));
        if let (Some(first), true) = (first, endpoints.is_empty()) {
            problems.push(format!(
                "{what} {name} at {first} is beyond underlays declared managed: nothing is sent \
                 there in clear (join with a token made with --clear-underlay to allow it)"
            ));
        }
    };
    for sap in &mut table.body.saps {
        cut("SaP", sap.name.as_str(), &mut sap.endpoints);
    }
    for member in table.body.overlays.iter_mut().flat_map(|overlay| &mut overlay.members) {
        cut("entity", &member.name.to_string(), &mut member.make_mut().endpoints);
    }
    problems.truncate(PROBLEMS_MAX);
    problems
}

/// More lines say no more.
const PROBLEMS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Name, OverlayId};

    fn overlay(cidr: &str) -> OverlayFacts {
        let cidr = cidr.parse().unwrap();
        OverlayFacts { id: OverlayId(1), name: Name::default(), cidr }
    }

    fn range(prefix: &str) -> HostRange {
        HostRange { what: format!("the route {prefix} on eth0"), prefix: prefix.parse().unwrap() }
    }

    #[test]
    fn managed_underlays_are_the_private_ones() {
        for address in ["10.1.2.3", "172.31.0.1", "192.168.9.9", "127.0.0.1", "169.254.1.1"] {
            assert!(is_managed(address.parse().unwrap()), "{address}");
        }
        for address in ["fd00::1", "::1", "fe80::1", "::ffff:10.0.0.1"] {
            assert!(is_managed(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.1", "172.32.0.1", "100.64.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_managed(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn endpoints_in_the_open_are_refused_by_name() {
        let inside: SocketAddr = "10.0.0.1:6080".parse().unwrap();
        let outside: SocketAddr = "203.0.113.5:6080".parse().unwrap();

        assert_eq!(check_endpoints(&[inside]), Ok(()));
        assert!(check_endpoints(&[inside, outside]).unwrap_err().what.contains("203.0.113.5"));
    }

    #[test]
    fn overlaps_are_refused_by_name_and_default_routes_are_not() {
        let host = [range("0.0.0.0/0"), range("100.100.0.0/24"), range("fd12::/48")];

        for inside in ["100.100.0.0/16", "100.100.0.128/25", "fd12::/64", "fd00::/8"] {
            let problem = check_overlaps(&[overlay(inside)], &host).unwrap_err();
            assert!(problem.what.contains("eth0") && problem.what.contains(inside), "{problem}");
        }
        for beside in ["100.71.0.0/16", "fd13::/48"] {
            assert_eq!(check_overlaps(&[overlay(beside)], &host), Ok(()), "{beside}");
        }
    }
}
