//! Has systemd-resolved ask us about overlay names, by `resolvectl`. What it is told about a device goes with
//! the device; everything else it goes on asking whom it asked before.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::sys::SysError;
use crate::types::{OVERLAY_SUFFIX, Prefix};

/// The program.
const PROGRAM: &str = "resolvectl";

/// Has it ask `resolver` about our suffix, and about addresses of `range`, as long as there is `device`. Waits
/// for the program: some tens of milliseconds.
///
/// # Errors
///
/// What it says, or that it is not there.
pub fn attach(device: &str, range: Prefix, resolver: SocketAddr) -> Result<(), SysError> {
    for arguments in orders(device, range, resolver) {
        run(&arguments)?;
    }
    Ok(())
}

/// The arguments of each run. A domain with `~` is one that only this device's server is asked about.
fn orders(device: &str, range: Prefix, resolver: SocketAddr) -> Vec<Vec<String>> {
    let order = |verb: &str, values: Vec<String>| {
        [verb.to_owned(), device.to_owned()].into_iter().chain(values).collect()
    };
    let suffix = format!("~{OVERLAY_SUFFIX}");
    let domains = std::iter::once(suffix).chain(reverse_zones(range)).collect();
    let off = |verb| order(verb, vec!["no".to_owned()]);
    vec![
        // First what keeps anything else from being asked here.
        off("default-route"),
        off("llmnr"),
        off("mdns"),
        // Nobody signs these names, and nobody listens on this machine's way to itself.
        off("dnssec"),
        off("dnsovertls"),
        order("domain", domains),
        order("dns", vec![resolver.to_string()]),
    ]
}

/// The zones of the addresses of `range`, as many as it takes; none for what is wider than a zone should be.
fn reverse_zones(range: Prefix) -> Vec<String> {
    match range {
        Prefix::V4(range) => {
            // Whole octets: a /12 is 16 zones of two.
            let octets = usize::from(range.prefix_len().div_ceil(8)).max(1);
            let Ok(len) = u8::try_from(octets * 8) else { return Vec::new() };
            let subnets = range.subnets(len).into_iter().flatten();
            let zone = |subnet: ipnet::Ipv4Net| {
                let octets = subnet.network().octets();
                let kept = octets.iter().take(usize::from(len / 8)).rev();
                format!("~{}.in-addr.arpa", join(kept.map(ToString::to_string)))
            };
            subnets.map(zone).collect()
        }
        Prefix::V6(range) => {
            let len = range.prefix_len().div_ceil(4).max(1) * 4;
            let subnets = range.subnets(len).into_iter().flatten();
            let zone = |subnet: ipnet::Ipv6Net| {
                let octets = subnet.network().octets();
                let digits = octets.iter().flat_map(|octet| [octet >> 4, octet & 15]);
                let mut kept: Vec<String> =
                    digits.take(usize::from(len / 4)).map(|digit| format!("{digit:x}")).collect();
                kept.reverse();
                format!("~{}.ip6.arpa", join(kept.into_iter()))
            };
            subnets.map(zone).collect()
        }
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(".")
}

fn run(arguments: &[String]) -> Result<(), SysError> {
    let what =
        || format!("cannot hook names into systemd-resolved (`{PROGRAM} {}`)", arguments.join(" "));
    let output = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| SysError::from_io(what(), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let first = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
    let error = SysError::new(what(), first.trim());
    Err(match complaint.contains("uthentication") || complaint.contains("ccess denied") {
        true => error
            .fix("run as root, or install the package's polkit rule; or set dns = \"redirect\""),
        false => error.fix("set dns = \"redirect\" in ovd.toml"),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_our_names_and_addresses_are_asked_here() {
        let resolver = SocketAddr::from((Ipv4Addr::LOCALHOST, 6053));

        let orders = orders("ov0", "10.70.0.0/16".parse().unwrap(), resolver);

        let lines: Vec<String> = orders.iter().map(|words| words.join(" ")).collect();
        assert_eq!(lines.first().unwrap(), "default-route ov0 no");
        assert!(lines.contains(&"domain ov0 ~ov.internal ~70.10.in-addr.arpa".to_owned()));
        assert_eq!(lines.last().unwrap(), "dns ov0 127.0.0.1:6053");
    }

    #[test]
    fn ranges_are_zones_of_whole_digits() {
        let zones = |range: &str| reverse_zones(range.parse().unwrap());

        assert_eq!(zones("10.0.0.0/8"), ["~10.in-addr.arpa"]);
        assert_eq!(zones("10.70.2.0/23"), ["~2.70.10.in-addr.arpa", "~3.70.10.in-addr.arpa"]);
        assert_eq!(zones("10.70.0.5/32"), ["~5.0.70.10.in-addr.arpa"]);
        assert_eq!(zones("fd70::/16"), ["~0.7.d.f.ip6.arpa"]);
        assert_eq!(zones("fd70::/15").len(), 2);
        assert_eq!(zones("100.64.0.0/10").len(), 64);
    }
}
