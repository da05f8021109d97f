//! Protocols and ports: what a rule lets through.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Name;

/// An IP protocol as a rule names it.
///
/// `icmp` is ICMP (1) inside IPv4 and ICMPv6 (58) inside IPv6 (design 3.2), so that one rule means
/// the same in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 132
    Sctp,
    /// 1 in IPv4, 58 in IPv6
    Icmp,
    /// Any other protocol number.
    Number(u8),
}

impl Protocol {
    /// Whether a packet whose IP protocol (or last IPv6 next header) is `number` is of this protocol.
    #[must_use]
    pub fn matches(self, number: u8, is_ipv6: bool) -> bool {
        self.number(is_ipv6) == number
    }

    /// The protocol number in the given family.
    #[must_use]
    pub fn number(self, is_ipv6: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp if is_ipv6 => 58,
            Self::Icmp => 1,
            Self::Number(number) => number,
        }
    }

    /// Whether packets of this protocol carry ports that rules can name.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Sctp => f.write_str("sctp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for Protocol {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "tcp" | "6" => Self::Tcp,
            "udp" | "17" => Self::Udp,
            "sctp" | "132" => Self::Sctp,
            "icmp" | "icmpv6" | "1" | "58" => Self::Icmp,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Self::Number(digits.parse().map_err(|_| ServiceError::new(text))?)
            }
            _ => return Err(ServiceError::new(text)),
        })
    }
}

/// An inclusive range of ports, `first <= last`, `first >= 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` lies inside.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A protocol with an optional range of destination ports: `tcp`, `tcp/443`, `tcp/8000-8999`,
/// `icmp`, `47`, or a named port `tcp/http` that the destination resolves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Service {
    /// A whole protocol.
    Protocol(Protocol),
    /// A range of destination ports of a protocol that has ports.
    Ports(Protocol, PortRange),
    /// A port by the name that each destination gave it (`token create --port NAME=tcp/8080`).
    Named(Protocol, Name),
}

/// Why a text is not a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a protocol and port: write tcp/443, udp/53, tcp/8000-8999, tcp/NAME, icmp, or a \
     protocol number 0-255 (ports are 1-65535)"
)]
pub struct ServiceError(String);

impl ServiceError {
    fn new(text: &str) -> Self {
        Self(text.chars().take(80).flat_map(char::escape_default).collect())
    }
}

impl Service {
    /// The protocol.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Protocol(protocol) | Self::Ports(protocol, _) | Self::Named(protocol, _) => {
                *protocol
            }
        }
    }
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let error = || ServiceError::new(text);
        let Some((protocol, port)) = text.split_once('/') else {
            return Ok(Self::Protocol(text.parse()?));
        };
        let protocol: Protocol = protocol.parse().map_err(|_| error())?;
        if !protocol.has_ports() {
            return Err(error());
        }
        let number = |digits: &str| {
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse::<u16>().ok())
                .flatten()
                .filter(|&port| port != 0)
                .ok_or_else(error)
        };
        if port.bytes().any(|b| b.is_ascii_alphabetic()) {
            return Ok(Self::Named(protocol, Name::new(port).map_err(|_| error())?));
        }
        let (first, last) = match port.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(port)?, number(port)?),
        };
        if first > last {
            return Err(error());
        }
        Ok(Self::Ports(protocol, PortRange { first, last }))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Ports(protocol, range) => write!(f, "{protocol}/{range}"),
            Self::Named(protocol, name) => write!(f, "{protocol}/{name}"),
        }
    }
}

impl TryFrom<String> for Service {
    type Error = ServiceError;

    fn try_from(text: String) -> Result<Self, ServiceError> {
        text.parse()
    }
}

impl From<Service> for String {
    fn from(service: Service) -> Self {
        service.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_round_trip() {
        for text in
            ["tcp", "tcp/443", "udp/53", "tcp/8000-8999", "sctp/1", "icmp", "47", "tcp/http"]
        {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        assert_eq!("6/80".parse::<Service>().unwrap().to_string(), "tcp/80");
    }

    #[test]
    fn bad_services_name_what_was_typed() {
        for bad in [
            "",
            "tcp/",
            "tcp/0",
            "tcp/70000",
            "tcp/9-8",
            "icmp/1",
            "256",
            "tcp/1-",
            "http",
            "tcp/a_b",
        ] {
            let error = bad.parse::<Service>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn icmp_follows_the_family() {
        assert!(Protocol::Icmp.matches(1, false) && Protocol::Icmp.matches(58, true));
        assert!(!Protocol::Icmp.matches(58, false) && !Protocol::Icmp.matches(1, true));
    }
}
