//! What the verdict needs to know of an inner packet: a few facts, no bytes.

mod ipv4;
mod ipv6;
#[cfg(test)]
mod tests;
mod upper;

use std::net::IpAddr;

use crate::types::{DropReason, TracerId};

/// What IPv6 asks of every link, in bytes (RFC 8200 section 5).
pub const IPV6_MTU_MIN: u16 = 1280;

/// The family of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, GUE protocol 4.
    V4,
    /// IPv6, GUE protocol 41.
    V6,
}

/// Facts of one inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Inner source.
    pub source: IpAddr,
    /// Inner destination.
    pub destination: IpAddr,
    /// The protocol above IP: IPv4's field, or IPv6's last next header.
    pub protocol: u8,
    /// What could be read above IP.
    pub upper: Upper,
    /// Whether this is a fragment.
    pub fragment: Fragment,
    /// Length of the packet by its own header, in bytes; never more than was given. What follows
    /// is not delivered.
    pub len: u16,
    /// The two ECN bits of the inner header.
    pub ecn: u8,
    /// Set for a tracer, which no host gets.
    pub tracer: Option<TracerId>,
}

/// What stands above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// TCP with its ports and flag byte (`FIN` = 1, `SYN` = 2, `RST` = 4, `ACK` = 16, …).
    Tcp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// The flag byte.
        flags: u8,
    },
    /// UDP or SCTP (see `protocol`) with its ports.
    Ports {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
    },
    /// ICMP or ICMPv6 echo.
    Echo {
        /// Request or reply.
        is_request: bool,
        /// The echo identifier.
        identifier: u16,
    },
    /// An ICMP or ICMPv6 error that quotes a packet.
    IcmpError {
        /// ICMP type.
        kind: u8,
        /// The start of the packet that it speaks of.
        quoted: Quoted,
    },
    /// Anything else; also a fragment that is not the first one.
    Opaque,
}

/// The flow that an ICMP error quotes, in the direction in which the quoted packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Source of the quoted packet.
    pub source: IpAddr,
    /// Destination of the quoted packet.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// Its source port, or echo identifier, or 0.
    pub source_port: u16,
    /// Its destination port, or 0.
    pub destination_port: u16,
}

/// Where in a fragmented packet this one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first fragment, with the whole L4 header readable in `upper`.
    First {
        /// The identification field.
        identification: u32,
    },
    /// A later fragment; no ports.
    Later {
        /// The identification field.
        identification: u32,
    },
}

impl Facts {
    /// The flow that a packet of its starter names, as an ICMP error about it would; nothing for what
    /// never starts one: replies to echoes, ICMP errors, later fragments.
    #[must_use]
    pub fn opened_flow(&self) -> Option<Quoted> {
        let (source_port, destination_port) = match (self.fragment, self.upper) {
            (Fragment::Later { .. }, _) => return None,
            (_, Upper::Tcp { source_port, destination_port, flags }) => {
                // SYN without ACK (design section 3.6).
                if flags & 0x12 != 0x02 {
                    return None;
                }
                (source_port, destination_port)
            }
            (_, Upper::Ports { source_port, destination_port }) => (source_port, destination_port),
            (_, Upper::Echo { is_request: true, identifier }) => (identifier, 0),
            (_, Upper::Echo { .. } | Upper::IcmpError { .. }) => return None,
            (_, Upper::Opaque) => (0, 0),
        };
        let Self { source, destination, protocol, .. } = *self;
        Some(Quoted { source, destination, protocol, source_port, destination_port })
    }
}

/// Reads the flow of the first bytes of a packet, whose end may be missing.
///
/// # Errors
///
/// [`DropReason::InnerLength`] when even the headers are not there.
pub fn quoted(family: Family, start: &[u8]) -> Result<Quoted, DropReason> {
    match family {
        Family::V4 => ipv4::quoted(start),
        Family::V6 => ipv6::quoted(start),
    }
}

/// Reads the facts of the inner packet `bytes`.
///
/// Checks version, lengths, options (threats T20, T22, T23) and that nothing of neighbour discovery
/// or of a nested tunnel crosses (T24, T25); addresses against an overlay are the verdict's business.
/// What follows the packet by its own length is allowed, and not counted in [`Facts::len`].
///
/// # Errors
///
/// The reason to drop it.
pub fn parse(family: Family, bytes: &[u8]) -> Result<Facts, DropReason> {
    match family {
        Family::V4 => ipv4::parse(bytes),
        Family::V6 => ipv6::parse(bytes),
    }
}
