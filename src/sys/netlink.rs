//! Netlink's messages for routes, addresses and links: built from our types and read into them. No
//! socket.

#![allow(clippy::wildcard_enum_match_arm, reason = "the kernel's attributes grow, we want a few")]

use std::net::IpAddr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};

use super::net::UNREACHABLE_METRIC;
use crate::types::Prefix;

/// A unicast route of the main table for `range`, without a device yet.
pub(super) fn route(range: Prefix) -> Result<RouteMessage, String> {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(range.network(), range.prefix_len())
        .map(RouteMessageBuilder::build)
        .map_err(|error| error.to_string())
}

pub(super) fn unreachable_route(range: Prefix) -> Result<RouteMessage, String> {
    let mut message = route(range)?;
    message.header.kind = RouteType::Unreachable;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes.push(RouteAttribute::Priority(UNREACHABLE_METRIC));
    Ok(message)
}

/// What a route occupies: its prefix, and its device or, without one, the kind of refusal.
pub(super) fn route_use(route: &RouteMessage) -> Option<(Prefix, Result<u32, &'static str>)> {
    let kind = match route.header.kind {
        RouteType::Unicast => None,
        RouteType::Unreachable => Some("unreachable"),
        RouteType::BlackHole => Some("blackhole"),
        RouteType::Prohibit => Some("prohibit"),
        // Local and broadcast routes repeat the interfaces' addresses.
        _ => return None,
    };
    let (mut destination, mut device, mut priority) = (None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                destination = Some(IpAddr::V4(*ip))
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                destination = Some(IpAddr::V6(*ip));
            }
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Priority(metric) => priority = *metric,
            _ => {}
        }
    }
    if kind.is_some() && priority == UNREACHABLE_METRIC {
        return None;
    }
    let prefix = Prefix::new(destination?, route.header.destination_prefix_length).ok()?;
    let used_by = match kind {
        Some(kind) => Err(kind),
        None => device.ok_or("several devices"),
    };
    Some((prefix.trunc(), used_by))
}

/// Whether a link is a TUN device that no process holds: it is up, and nothing is plugged in.
pub(super) fn is_left(link: &LinkMessage) -> bool {
    let is_tun = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
        _ => false,
    });
    let flags = link.header.flags;
    is_tun && flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::LowerUp)
}

/// The devices that a route leads to: one, or one for each of its next hops.
pub(super) fn devices(route: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.push(*index),
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    found
}

pub(super) fn address_prefix(address: &AddressMessage) -> Option<Prefix> {
    let ip = address_ip(address)?;
    Prefix::new(ip, address.header.prefix_len).ok().map(|prefix| prefix.trunc())
}

/// The address itself: the local end where the interface is point to point.
pub(super) fn address_ip(address: &AddressMessage) -> Option<IpAddr> {
    let find = |wants_local: bool| {
        address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if wants_local => Some(*ip),
            AddressAttribute::Address(ip) if !wants_local => Some(*ip),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// Default routes and what every host has on every interface.
pub(super) fn is_everywhere(prefix: &Prefix) -> bool {
    prefix.prefix_len() == 0
        || match prefix.addr() {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
        }
}

/// Whether others can reach this host at `ip`.
pub(super) fn is_global(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !is_link_local && !ip.is_unspecified()
}

pub(super) fn route_mtu(attribute: &RouteAttribute) -> Option<u32> {
    let RouteAttribute::Metrics(metrics) = attribute else { return None };
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}

pub(super) fn link_mtu(attribute: &LinkAttribute) -> Option<u32> {
    if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None }
}

pub(super) fn link_name(attribute: &LinkAttribute) -> Option<&str> {
    if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_unreachable_route_is_not_a_conflict_but_a_foreign_one_is() {
        let range: Prefix = "100.80.0.0/16".parse().unwrap();
        let ours = unreachable_route(range).unwrap();
        let mut foreign = route(range).unwrap();
        foreign.header.kind = RouteType::BlackHole;

        assert_eq!(route_use(&ours), None);
        assert_eq!(route_use(&foreign), Some((range, Err("blackhole"))));
    }
}
