//! The resolvers that this host's configuration names.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use super::Upstream;

/// systemd-resolved's own listener: it may be told to ask us, and is not asked by us then.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Whom resolvers ask where nothing is configured.
const DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The most resolvers that a configuration is believed to name.
const LISTED_MAX: usize = 8;

/// What the configuration says at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// `/etc/resolv.conf`.
    listed: Vec<IpAddr>,
    /// Whom systemd-resolved asks, where programs ask it.
    behind: Vec<IpAddr>,
}

impl System {
    /// What it says now. A file that cannot be read says nothing.
    #[must_use]
    pub fn read() -> Self {
        let read = |path| parse(&fs::read_to_string(path).unwrap_or_default());
        let listed = read("/etc/resolv.conf");
        let behind = match listed.contains(&STUB) {
            true => read("/run/systemd/resolve/resolv.conf"),
            false => Vec::new(),
        };
        Self { listed, behind }
    }

    /// The name servers that it has for programs.
    #[must_use]
    pub fn listed(self) -> Vec<IpAddr> {
        self.listed
    }

    /// Whether programs ask systemd-resolved.
    #[must_use]
    pub fn has_resolved(&self) -> bool {
        self.listed.contains(&STUB)
    }

    /// Whom programs ask.
    #[must_use]
    pub fn asked(&self) -> Vec<IpAddr> {
        if self.listed.is_empty() { vec![DEFAULT] } else { self.listed.clone() }
    }

    /// Whom to pass questions on to: whom programs ask, or whom systemd-resolved asks, never itself.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        let servers = if self.has_resolved() { &self.behind } else { &self.listed };
        Upstream::of(servers.iter().copied().filter(|&server| server != STUB))
    }
}

/// The `nameserver` lines of a resolver's configuration; those with a scope are left out.
fn parse(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words.as_slice() {
            ["nameserver", server, ..] => server.parse().ok(),
            _ => None,
        })
        .take(LISTED_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_nothing_else() {
        let text = "# nameserver 192.0.2.9\nsearch a.example\nnameserver 192.0.2.1\n\
                    nameserver\nnameserver 2001:db8::1 # comment\nnameserver fe80::1%eth0\n";

        assert_eq!(
            parse(text),
            ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn resolved_is_asked_by_programs_and_not_by_us() {
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let plain = System { listed: vec![other], behind: Vec::new() };
        let stub = System { listed: vec![STUB], behind: vec![other, STUB] };

        assert!(!plain.has_resolved() && stub.has_resolved());
        assert_eq!((plain.asked(), stub.asked()), (vec![other], vec![STUB]));
        assert_eq!(plain.upstream(), stub.upstream());
        assert_eq!(System::default().asked(), [DEFAULT], "as resolv.conf(5) has it");
        assert_eq!(System::default().upstream(), Upstream::default());
    }
}
