//! The machine's own network, under and beside the overlays.

use std::net::IpAddr;

use super::{Daemon, Facts, HostRange, Overlay, ok, problem, warning};
use crate::api::doctor::Finding;
use crate::types::Prefix;
use crate::wire::gue;
use crate::wire::inner::IPV6_MTU_MIN;

/// Lines about narrow ways: more say no more.
const NARROW_SHOWN: usize = 4;

/// Shared address space (RFC 6598): carriers and Tailscale use it, and overlays by default.
const SHARED: ([u8; 4], u8) = ([100, 64, 0, 0], 10);

pub(super) fn mtu(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut narrowest: Option<(u32, u32, String)> = None;
    for way in &facts.ways {
        let subject = format!("route to {}", way.name);
        match &way.mtu {
            Err(why) => found.push(problem(
                subject,
                format!("{} cannot be reached: {why}", way.to),
                format!("ip route get {}", way.to),
            )),
            Ok(mtu) => {
                let overhead = u32::from(gue::overhead(way.to.is_ipv4()));
                let room = mtu.saturating_sub(overhead);
                if narrowest.as_ref().is_none_or(|(least, ..)| room < *least) {
                    narrowest = Some((room, *mtu, format!("{} ({})", way.name, way.to)));
                }
            }
        }
    }
    let Some((room, mtu, to)) = narrowest else { return found };
    let v6 = facts.overlays.iter().find(|overlay| overlay.cidr.addr().is_ipv6());
    match v6 {
        Some(overlay) if room < IPV6_MTU_MIN.into() => found.push(problem(
            format!("mtu of overlay {}", overlay.name),
            format!(
                "the way to {to} takes {mtu} bytes, {room} without our headers: IPv6 needs \
                 {IPV6_MTU_MIN}, so the overlay has no device"
            ),
            format!(
                "give that link or route an MTU of {} or more, or use an overlay of IPv4",
                u32::from(IPV6_MTU_MIN) + mtu - room
            ),
        )),
        Some(_) | None => found.push(ok(
            "mtu",
            format!("the narrowest way, to {to}, takes {mtu} bytes: packets of {room} fit"),
        )),
    }
    found
}

/// What `ovd` was told of links further on.
pub(super) fn narrow(facts: &Facts) -> Vec<Finding> {
    let Daemon::Answers(status) = &facts.daemon else { return Vec::new() };
    let is_broken =
        |way: &crate::api::local::NarrowWay| way.destination.is_ipv6() && way.mtu < IPV6_MTU_MIN;
    // What does not work comes first.
    let mut ways = status.narrow.clone();
    ways.sort_by_key(|way| (!is_broken(way), *way));
    let shown = ways.iter().take(NARROW_SHOWN).map(|way| {
        let subject = format!("mtu to {}", way.destination);
        if is_broken(way) {
            return problem(
                subject,
                format!(
                    "a link on the way takes packets of {} bytes, and IPv6 needs {IPV6_MTU_MIN}: longer \
                     ones are lost",
                    way.mtu
                ),
                "find that link (tracepath), give it a larger MTU, or use an overlay of IPv4",
            );
        }
        warning(
            subject,
            format!(
                "a link on the way takes packets of {} bytes: the host was told, the first long ones \
                 were lost",
                way.mtu
            ),
            "to lose none: ip route replace SAP via ROUTER dev DEVICE mtu MTU",
        )
    });
    shown.collect()
}

pub(super) fn conflicts(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for overlay in &facts.overlays {
        let used = facts.ranges.iter().filter_map(|range| conflict(overlay, range));
        found.extend(used);
        found.extend(tailscale(facts, overlay));
    }
    if found.is_empty() && !facts.overlays.is_empty() {
        found.push(ok("addresses", "no route or address of this machine collides with an overlay"));
    }
    found
}

fn conflict(overlay: &Overlay, range: &HostRange) -> Option<Finding> {
    let Overlay { name, cidr, .. } = overlay;
    let HostRange { prefix, user } = range;
    if prefix.prefix_len() == 0 || is_tailscale(user) {
        return None;
    }
    let subject = format!("overlay {name}");
    if cidr.contains(prefix) {
        return Some(problem(
            subject,
            format!(
                "{prefix} on {user} lies in its range {cidr}: packets for these addresses go there, and \
                 the guard stops them"
            ),
            format!(
                "ip route show to root {prefix}; remove it, or use an overlay with another range"
            ),
        ));
    }
    prefix.contains(cidr).then(|| {
        warning(
            subject,
            format!("its range {cidr} lies in {prefix} on {user}: machines there with these addresses are out of reach"),
            "use an overlay with another range: ovctl overlay create NAME --cidr CIDR",
        )
    })
}

/// Tailscale drops packets from 100.64.0.0/10 that arrive on other devices than its own.
fn tailscale(facts: &Facts, overlay: &Overlay) -> Option<Finding> {
    let device = facts.ranges.iter().find(|range| is_tailscale(&range.user));
    let filters = facts.filter.tools.iter().any(|tool| tool.name == "Tailscale");
    if device.is_none() && !filters {
        return None;
    }
    if !overlaps(&overlay.cidr) {
        return Some(ok(
            "Tailscale",
            format!("is here, and overlay {} has another range than its own", overlay.name),
        ));
    }
    let subject = format!("overlay {} beside Tailscale", overlay.name);
    let what = format!(
        "its range {} is in 100.64.0.0/10, which Tailscale takes for its own",
        overlay.cidr
    );
    Some(if filters {
        problem(
            subject,
            format!("{what}: its filter drops what arrives from there on other devices"),
            "use an overlay with another range, or: tailscale set --netfilter-mode=off",
        )
    } else {
        warning(
            subject,
            what,
            "use an overlay with another range: ovctl overlay create NAME --cidr CIDR",
        )
    })
}

/// A machine behind a carrier's NAT has an address of 100.64.0.0/10 on the underlay.
pub(super) fn carrier_nat(facts: &Facts) -> Vec<Finding> {
    let shared = facts.addresses.iter().find(|address| is_shared(**address));
    let Some(address) = shared else { return Vec::new() };
    let overlay =
        facts.overlays.iter().find(|overlay| overlay.cidr.contains(&Prefix::from(*address)));
    vec![match overlay {
        Some(overlay) => problem(
            "carrier's NAT",
            format!(
                "{address} of this machine on the underlay is in the range of overlay {}",
                overlay.name
            ),
            "use an overlay with another range: ovctl overlay create NAME --cidr CIDR",
        ),
        None => warning(
            "carrier's NAT",
            format!(
                "{address} is an address behind a carrier's NAT: others reach this machine over SaPs, and \
                 not directly"
            ),
            "no rule with --direct to this machine; join with a token made with --clear-underlay",
        ),
    }]
}

pub(super) fn forwarding(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let has_guard = match &facts.daemon {
        Daemon::Answers(status) => status.guard.as_ref().is_some_and(|guard| guard.in_force),
        Daemon::Silent(_) => facts.filter.has_guard,
    };
    let is_member = !facts.overlays.is_empty();
    if is_member && facts.forwards.contains(&true) && !has_guard {
        found.push(warning(
            "forwarding",
            "this machine forwards packets and has no guard: neighbours may send into overlays through it",
            "run ovd with --guard ports, or: sysctl net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        ));
    }
    if facts.uplinks.len() > 1 {
        let strict = facts.uplinks.iter().filter(|uplink| uplink.is_strict);
        found.extend(strict.map(|uplink| {
            warning(
                format!("rp_filter of {}", uplink.name),
                "it is strict, and this machine has several ways out: wrapped packets that come back by \
                 another one than they would leave by are dropped",
                format!("sysctl net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2", uplink.name),
            )
        }));
    }
    if found.is_empty() && is_member {
        found.push(ok("forwarding", "nothing about forwarding or reverse paths stands in the way"));
    }
    found
}

fn is_tailscale(user: &str) -> bool {
    user.starts_with("tailscale")
}

fn is_shared(address: IpAddr) -> bool {
    overlaps(&Prefix::from(address.to_canonical()))
}

fn overlaps(range: &Prefix) -> bool {
    let (network, len) = SHARED;
    Prefix::new(IpAddr::from(network), len)
        .is_ok_and(|shared| shared.contains(range) || range.contains(&shared))
}
