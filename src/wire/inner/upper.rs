//! What stands above IP: TCP, UDP, SCTP, ICMP.

use super::{Fragment, Quoted, Upper, ipv4, ipv6};
use crate::types::DropReason;
use crate::wire::gue;

/// ICMP's protocol number.
pub(super) const ICMP: u8 = 1;
/// ICMPv6's next header value.
pub(super) const ICMPV6: u8 = 58;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// IPv4 in IP, IPv6 in IP, GRE, MPLS in IP: a tunnel inside the tunnel would carry unjudged packets.
const NESTED: [u8; 4] = [4, 41, 47, 137];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Router and neighbour solicitation and advertisement, and redirect.
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// IPv4's redirect, router advertisement and router solicitation.
const ROUTER_MESSAGES: [u8; 3] = [5, 9, 10];

/// What the IP header says of the payload.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The protocol above IP.
    pub(super) protocol: u8,
    /// Which part of a packet it is.
    pub(super) fragment: Fragment,
    /// Where in the packet, in units of 8 bytes.
    pub(super) offset: u16,
}

/// Reads what stands above IP. `icmp` is the family's ICMP protocol.
pub(super) fn parse(place: Place, payload: &[u8], icmp: u8) -> Result<Upper, DropReason> {
    if NESTED.contains(&place.protocol) {
        return Err(DropReason::InnerNested);
    }
    let short = match place.fragment {
        Fragment::Later { .. } => return check_later(place, payload),
        Fragment::First { .. } => DropReason::Fragment,
        Fragment::Whole => DropReason::InnerLength,
    };
    match place.protocol {
        TCP => tcp(payload, short),
        UDP => udp(payload, short),
        SCTP => {
            let &[s0, s1, d0, d1, ..] = payload.first_chunk::<12>().ok_or(short)?;
            Ok(ports([s0, s1], [d0, d1]))
        }
        protocol if protocol == icmp => icmp_message(payload, icmp, short),
        _ => Ok(Upper::Opaque),
    }
}

/// Ports of a quoted packet, as far as they are there; the identifier of an echo request stands as
/// source port and that of a reply as destination port, as the flow table has it.
pub(super) fn quoted_ports(protocol: u8, payload: &[u8]) -> (u16, u16) {
    let Some(&[b0, b1, b2, b3, b4, b5, _, _]) = payload.first_chunk::<8>() else {
        return (0, 0);
    };
    let identifier = u16::from_be_bytes([b4, b5]);
    match (protocol, b0) {
        (TCP | UDP | SCTP, _) => (u16::from_be_bytes([b0, b1]), u16::from_be_bytes([b2, b3])),
        (ICMP, 8) | (ICMPV6, 128) => (identifier, 0),
        (ICMP, 0) | (ICMPV6, 129) => (0, identifier),
        _ => (0, 0),
    }
}

/// A later fragment must not reach into the header that the first one was judged by (RFC 1858), nor
/// make the whole longer than a packet can be.
fn check_later(place: Place, payload: &[u8]) -> Result<Upper, DropReason> {
    let start = usize::from(place.offset) * 8;
    let header_len = match place.protocol {
        TCP => 20,
        SCTP => 12,
        _ => 8,
    };
    if start < header_len {
        return Err(DropReason::Fragment);
    }
    if start + payload.len() > usize::from(u16::MAX) {
        return Err(DropReason::InnerLength);
    }
    Ok(Upper::Opaque)
}

fn ports(source: [u8; 2], destination: [u8; 2]) -> Upper {
    Upper::Ports {
        source_port: u16::from_be_bytes(source),
        destination_port: u16::from_be_bytes(destination),
    }
}

fn tcp(payload: &[u8], short: DropReason) -> Result<Upper, DropReason> {
    let &[s0, s1, d0, d1, _, _, _, _, _, _, _, _, data_offset, flags, ..] =
        payload.first_chunk::<20>().ok_or(short)?;
    let header_len = usize::from(data_offset >> 4) * 4;
    if header_len < 20 {
        return Err(DropReason::InnerLength);
    }
    if header_len > payload.len() {
        return Err(short);
    }
    if flags & SYN != 0 && flags & (FIN | RST) != 0 {
        return Err(DropReason::TcpFlags);
    }
    Ok(Upper::Tcp {
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
        flags,
    })
}

fn udp(payload: &[u8], short: DropReason) -> Result<Upper, DropReason> {
    let &[s0, s1, d0, d1, ..] = payload.first_chunk::<8>().ok_or(short)?;
    if u16::from_be_bytes([d0, d1]) == gue::PORT {
        return Err(DropReason::InnerNested);
    }
    Ok(ports([s0, s1], [d0, d1]))
}

fn icmp_message(payload: &[u8], icmp: u8, short: DropReason) -> Result<Upper, DropReason> {
    let is_v6 = icmp == ICMPV6;
    let &[kind, ..] = payload else { return Err(short) };
    if is_v6 && NEIGHBOUR_DISCOVERY.contains(&kind) || !is_v6 && ROUTER_MESSAGES.contains(&kind) {
        return Err(DropReason::InnerNeighbour);
    }
    let (&[_, _, _, _, i0, i1, _, _], rest) = payload.split_first_chunk::<8>().ok_or(short)?;
    let identifier = u16::from_be_bytes([i0, i1]);
    match (is_v6, kind) {
        (false, 8) | (true, 128) => Ok(Upper::Echo { is_request: true, identifier }),
        (false, 0) | (true, 129) => Ok(Upper::Echo { is_request: false, identifier }),
        (false, 3 | 4 | 11 | 12) | (true, 0..128) => {
            let quoted: Quoted = if is_v6 { ipv6::quoted(rest)? } else { ipv4::quoted(rest)? };
            Ok(Upper::IcmpError { kind, quoted })
        }
        _ => Ok(Upper::Opaque),
    }
}
