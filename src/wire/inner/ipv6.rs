//! IPv6 headers and a bounded walk over extension headers (threats T22).
//!
//! Ports are believed only right behind the base header, or behind it and one fragment header.
//! Behind any other extension header the protocol is known, but [`Upper::Opaque`]: only rules
//! without ports can match.

use std::net::{IpAddr, Ipv6Addr};

use super::{Facts, Family, Fragment, Quoted, Upper, upper};
use crate::types::DropReason;
use crate::wire::tracer;

const HEADER_LEN: usize = 40;

/// Extension headers that are walked before the packet is refused. Real ones have one or two.
const EXTENSIONS_MAX: usize = 16;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// The hop-by-hop option of a jumbogram.
const OPTION_JUMBO: u8 = 0xC2;

/// Source routes: type 0 (RFC 5095), 2 (mobile IPv6) and 4 (segment routing).
const SOURCE_ROUTES: [u8; 3] = [0, 2, 4];

struct Base {
    ecn: u8,
    payload_len: usize,
    next: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl Base {
    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let &[first, ..] = bytes else { return Err(DropReason::InnerLength) };
        if first >> 4 != 6 {
            return Err(DropReason::InnerVersion);
        }
        let (head, rest) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(DropReason::InnerLength)?;
        let &[_, class, _, _, l0, l1, next, _, ref addresses @ ..] = head;
        let (source, destination) =
            addresses.split_first_chunk::<16>().ok_or(DropReason::InnerLength)?;
        let destination = destination.first_chunk::<16>().ok_or(DropReason::InnerLength)?;
        let base = Self {
            ecn: class >> 4 & 3,
            payload_len: usize::from(u16::from_be_bytes([l0, l1])),
            next,
            source: Ipv6Addr::from(*source),
            destination: Ipv6Addr::from(*destination),
        };
        Ok((base, rest))
    }
}

/// Where the walk over extension headers ended.
struct Walk<'a> {
    protocol: u8,
    payload: &'a [u8],
    fragment: Fragment,
    /// In units of 8 bytes.
    offset: u16,
    /// Whether nothing but at most a fragment header was passed.
    is_plain: bool,
}

/// Reads an IPv6 packet.
pub(super) fn parse(bytes: &[u8]) -> Result<Facts, DropReason> {
    let (base, rest) = Base::read(bytes)?;
    let payload = rest.get(..base.payload_len).ok_or(DropReason::InnerLength)?;
    let len = u16::try_from(HEADER_LEN + base.payload_len).map_err(|_| DropReason::InnerLength)?;
    if is_martian(base.source) || is_martian(base.destination) || base.source == base.destination {
        return Err(DropReason::InnerAddress);
    }
    let walk = walk(base.next, payload)?;
    let place =
        upper::Place { protocol: walk.protocol, fragment: walk.fragment, offset: walk.offset };
    // Read even where it is not believed, so that neighbour discovery and nested tunnels do not
    // hide behind an extension header.
    let read = upper::parse(place, walk.payload, upper::ICMPV6)?;
    let upper = if walk.is_plain { read } else { Upper::Opaque };
    let (source, destination) = (base.source.into(), base.destination.into());
    let read = (walk.fragment, upper);
    Ok(Facts {
        family: Family::V6,
        source,
        destination,
        protocol: walk.protocol,
        upper,
        fragment: walk.fragment,
        len,
        ecn: base.ecn,
        tracer: tracer::find((source, destination), walk.protocol, read, walk.payload),
    })
}

/// Reads the start of an IPv6 packet that an ICMPv6 error quotes; its end may be missing.
pub(super) fn quoted(bytes: &[u8]) -> Result<Quoted, DropReason> {
    let (base, rest) = Base::read(bytes).map_err(|_| DropReason::InnerLength)?;
    let (protocol, payload) = match (base.next, rest.split_first_chunk::<8>()) {
        (FRAGMENT, Some((&[next, _, o0, o1, ..], rest))) => {
            let is_first = u16::from_be_bytes([o0, o1]) & 0xFFF8 == 0;
            (next, if is_first { rest } else { &[] })
        }
        _ => (base.next, rest),
    };
    let (source_port, destination_port) = upper::quoted_ports(protocol, payload);
    Ok(Quoted {
        source: IpAddr::V6(base.source),
        destination: IpAddr::V6(base.destination),
        protocol,
        source_port,
        destination_port,
    })
}

fn walk(mut next: u8, mut rest: &[u8]) -> Result<Walk<'_>, DropReason> {
    let mut fragment = Fragment::Whole;
    let mut offset = 0;
    let mut is_plain = true;
    let mut has_fragment_header = false;
    for position in 0..=EXTENSIONS_MAX {
        let is_extension = matches!(
            next,
            HOP_BY_HOP
                | ROUTING
                | FRAGMENT
                | AUTHENTICATION
                | DESTINATION_OPTIONS
                | MOBILITY
                | HOST_IDENTITY
                | SHIM6
        );
        if !is_extension || offset != 0 {
            return Ok(Walk { protocol: next, payload: rest, fragment, offset, is_plain });
        }
        let short = match fragment {
            Fragment::First { .. } => DropReason::Fragment,
            Fragment::Whole | Fragment::Later { .. } => DropReason::InnerLength,
        };
        let &[following, len, b2, b3, b4, b5, b6, b7] = rest.first_chunk::<8>().ok_or(short)?;
        let header_len = match next {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        let (header, behind) = rest.split_at_checked(header_len).ok_or(short)?;
        match next {
            FRAGMENT => {
                if has_fragment_header {
                    return Err(DropReason::InnerOptions);
                }
                has_fragment_header = true;
                let word = u16::from_be_bytes([b2, b3]);
                let identification = u32::from_be_bytes([b4, b5, b6, b7]);
                offset = word >> 3;
                fragment = match (offset, word & 1 != 0) {
                    (0, false) => Fragment::Whole,
                    (0, true) => Fragment::First { identification },
                    _ => Fragment::Later { identification },
                };
                is_plain &= position == 0;
            }
            ROUTING if SOURCE_ROUTES.contains(&b2) => return Err(DropReason::InnerOptions),
            HOP_BY_HOP => {
                // Anywhere but first it is malformed (RFC 8200, section 4.1).
                if position != 0 {
                    return Err(DropReason::InnerOptions);
                }
                check_options(header.get(2..).unwrap_or_default())?;
                is_plain = false;
            }
            _ => is_plain = false,
        }
        next = following;
        rest = behind;
    }
    Err(DropReason::InnerOptions)
}

fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let &[kind, ref rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => rest,
            (OPTION_JUMBO, _) | (_, []) => return Err(DropReason::InnerOptions),
            (_, &[len, ref rest @ ..]) => {
                rest.get(usize::from(len)..).ok_or(DropReason::InnerOptions)?
            }
        };
    }
    Ok(())
}

/// Whether no packet of an overlay may bear `address`: unspecified, loopback, link-local,
/// multicast, and IPv4 in disguise.
fn is_martian(address: Ipv6Addr) -> bool {
    address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some()
}
