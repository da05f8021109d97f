//! Which ranges an overlay may have. Pure.

use std::net::{IpAddr, Ipv4Addr};

use crate::api::{Problem, ProblemCode};
use crate::types::{Name, Prefix};

/// Ranges that mean something else to every host, and so can be no overlay.
const SPECIAL: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/8",
    "fe80::/10",
    "ff00::/8",
    "64:ff9b::/96",
];

/// Whether two ranges share an address.
pub(crate) fn overlap(a: &Prefix, b: &Prefix) -> bool {
    a.contains(b) || b.contains(a)
}

/// Checks a range that an operator asks for. `overlays` are those that exist; `taken` are addresses of
/// the underlay: the server's own and the endpoints of nodes.
///
/// # Errors
///
/// `Usage` when the range itself makes no sense, `Conflict` when something else is there.
pub(crate) fn check(
    cidr: &Prefix,
    overlays: &[(Name, Prefix)],
    taken: &[IpAddr],
) -> Result<(), Problem> {
    let refuse = |why: String, fix: &str| {
        Err(Problem::new(ProblemCode::Usage, format!("{cidr} cannot be an overlay's range"))
            .why(why)
            .fix(fix))
    };
    let allowed = if cidr.addr().is_ipv4() { 8..=30 } else { 48..=120 };
    if !allowed.contains(&cidr.prefix_len()) {
        return refuse(
            format!(
                "its prefix must be /{} to /{} (an overlay needs room, and must leave some)",
                allowed.start(),
                allowed.end()
            ),
            "choose another prefix length, such as --cidr 10.77.0.0/16 or --cidr fd77::/64",
        );
    }
    if cidr.trunc() != *cidr {
        return refuse(
            "it has bits behind the prefix".to_owned(),
            &format!("write it as --cidr {}", cidr.trunc()),
        );
    }
    for special in SPECIAL {
        let special: Prefix = special.parse().expect("invariant: the constants are prefixes");
        if overlap(cidr, &special) {
            return refuse(
                format!("it overlaps {special}, which every host uses for something else"),
                "choose a private range, such as --cidr 10.77.0.0/16 or --cidr fd77::/64",
            );
        }
    }
    let conflict = |why: String| {
        Err(Problem::new(ProblemCode::Conflict, format!("{cidr} is not free"))
            .why(why)
            .fix("choose another range, or leave --cidr out to get a free one"))
    };
    if let Some((name, other)) = overlays.iter().find(|(_, other)| overlap(cidr, other)) {
        return conflict(format!("it overlaps {other} of the overlay {name}"));
    }
    if let Some(address) = taken.iter().find(|address| cidr.contains(*address)) {
        return conflict(format!("{address} lies in it, an address of the underlay"));
    }
    Ok(())
}

/// The /16s of 100.64.0.0/10 that may be given out: 100.64/12, 100.80/16, 100.96/12 (with the
/// resolvers of clouds at 100.100) and 100.112/16 are in use elsewhere.
fn free_ranges() -> impl Iterator<Item = Prefix> {
    (81..=95).chain(113..=127).map(|second| {
        let net = ipnet::Ipv4Net::new(Ipv4Addr::new(100, second, 0, 0), 16);
        Prefix::V4(net.expect("invariant: 16 is a prefix length"))
    })
}

/// A free /16, chosen by `random`.
///
/// # Errors
///
/// `Conflict` when all are taken.
pub(crate) fn choose(
    overlays: &[(Name, Prefix)],
    taken: &[IpAddr],
    random: u64,
) -> Result<Prefix, Problem> {
    let free: Vec<Prefix> =
        free_ranges().filter(|range| check(range, overlays, taken).is_ok()).collect();
    let count = u64::try_from(free.len()).unwrap_or(u64::MAX).max(1);
    let index = usize::try_from(random % count).unwrap_or(0);
    free.get(index).copied().ok_or_else(|| {
        Problem::new(ProblemCode::Conflict, "no free range is left in 100.64.0.0/10")
            .fix("name one: ovctl overlay create NAME --cidr 10.77.0.0/16")
    })
}

/// The lowest address of `cidr` that is not in use; without network and broadcast address, and
/// without the first address of an IPv6 range (the subnet-router anycast address, RFC 4291 2.6.1).
pub(crate) fn next_free(
    cidr: &Prefix,
    in_use: &std::collections::BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    cidr.hosts().filter(|address| *address != cidr.network()).find(|a| !in_use.contains(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused_and_good_ones_pass() {
        for good in ["10.77.0.0/16", "100.81.0.0/16", "fd77::/64", "10.0.0.0/8", "10.9.8.0/30"] {
            assert!(check(&prefix(good), &[], &[]).is_ok(), "{good}");
        }
        for bad in [
            "10.0.0.0/7",
            "10.0.0.0/31",
            "10.0.0.1/16",
            "127.0.0.0/16",
            "224.0.0.0/8",
            "fd77::/47",
            "fd77::/121",
            "fd77::1/64",
            "fe80::/64",
            "0.0.0.0/8",
            "::/64",
        ] {
            let problem = check(&prefix(bad), &[], &[]).unwrap_err();
            assert_eq!(problem.code, ProblemCode::Usage, "{bad}");
            assert!(!problem.why.is_empty() && !problem.fix.is_empty(), "{bad}");
        }
    }

    #[test]
    fn overlaps_with_overlays_and_underlay_name_the_other() {
        let overlays = [("prod".parse().unwrap(), prefix("10.77.0.0/16"))];

        let problem = check(&prefix("10.77.4.0/24"), &overlays, &[]).unwrap_err();
        assert_eq!(problem.code, ProblemCode::Conflict);
        assert!(problem.why.contains("prod"), "{problem}");
        let taken = ["192.168.1.9".parse().unwrap()];
        let problem = check(&prefix("192.168.0.0/16"), &overlays, &taken).unwrap_err();
        assert!(problem.why.contains("192.168.1.9"), "{problem}");
        assert!(check(&prefix("10.78.0.0/16"), &overlays, &taken).is_ok());
    }

    #[test]
    fn chosen_ranges_avoid_what_others_reserve() {
        for random in 0..60 {
            let range = choose(&[], &[], random).unwrap();
            for reserved in ["100.64.0.0/12", "100.80.0.0/16", "100.96.0.0/12", "100.112.0.0/16"] {
                assert!(!overlap(&range, &prefix(reserved)), "{range}");
            }
        }
        let all: Vec<_> = free_ranges().map(|range| ("x".parse().unwrap(), range)).collect();
        assert_eq!(choose(&all, &[], 1).unwrap_err().code, ProblemCode::Conflict);
    }

    #[test]
    fn addresses_skip_network_and_broadcast() {
        let mut used = std::collections::BTreeSet::new();
        let small = prefix("10.0.0.0/30");
        for expected in ["10.0.0.1", "10.0.0.2"] {
            let address = next_free(&small, &used).unwrap();
            assert_eq!(address.to_string(), expected);
            used.insert(address);
        }
        assert_eq!(next_free(&small, &used), None);
        let six = prefix("fd77::/120");
        assert_eq!(next_free(&six, &used).unwrap().to_string(), "fd77::1");
    }
}
