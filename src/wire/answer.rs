//! Packets that answer a host in the name of the network: its packet was refused, or was too long.
//!
//! TCP hears a reset (RFC 9293 section 3.10.7.3), everything else an ICMP error: administratively
//! prohibited (RFC 1812 section 5.2.7.1: type 3 code 13; RFC 4443 section 3.1: type 1 code 1),
//! fragmentation needed (RFC 1191) or packet too big (RFC 4443 section 3.2). Errors are never about
//! ICMP errors, later fragments, or packets to or from what is no single host (RFC 1122 section
//! 3.2.2, RFC 4443 section 2.4); all answers come from the address that the host wrote to, which it
//! has a route to. Pure; nothing here is on the way of a packet.

use std::net::IpAddr;

use super::checksum;
use super::inner::Quoted;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// TTL and hop limit of answers.
const TTL: u8 = 64;

const SYN: u8 = 0x02;
const RST_ACK: u8 = 0x04 | 0x10;

/// Bytes of the answered packet that an error quotes at most: headers, and what tells its flow.
const QUOTE_MAX: usize = 128;

/// The reset that a host expects for its opening segment with this sequence number.
#[must_use]
pub fn reset(flow: &Quoted, sequence: u32) -> Option<Vec<u8>> {
    if flow.protocol != TCP {
        return None;
    }
    let mut segment = Vec::with_capacity(20);
    segment.extend(flow.destination_port.to_be_bytes());
    segment.extend(flow.source_port.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(sequence.wrapping_add(1).to_be_bytes());
    segment.extend([5 << 4, RST_ACK, 0, 0, 0, 0, 0, 0]);
    back(flow, TCP, segment, 16)
}

/// The error that says that policy refuses `packet`, whose first bytes are given.
#[must_use]
pub fn prohibited(packet: &[u8]) -> Option<Vec<u8>> {
    error(packet, [3, 13], [1, 1], [0; 4])
}

/// The error that says that `packet`, whose first bytes are given, is longer than `mtu`.
#[must_use]
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let [high, low] = mtu.to_be_bytes();
    // IPv4 has the MTU in the last two bytes, IPv6 in all four; the first two are 0 in both.
    error(packet, [3, 4], [2, 0], [0, 0, high, low])
}

/// The start of a packet of `flow`, for errors about one that is not at hand any more.
#[must_use]
pub fn stub(flow: &Quoted, sequence: u32) -> Option<Vec<u8>> {
    let mut upper = Vec::with_capacity(20);
    match flow.protocol {
        ICMP | ICMPV6 => {
            let request = if flow.source.is_ipv4() { 8 } else { 128 };
            upper.extend([request, 0, 0, 0]);
            upper.extend(flow.source_port.to_be_bytes());
            upper.extend([0, 0]);
        }
        protocol => {
            upper.extend(flow.source_port.to_be_bytes());
            upper.extend(flow.destination_port.to_be_bytes());
            upper.extend(if protocol == UDP { [0, 8, 0, 0] } else { sequence.to_be_bytes() });
            if protocol == TCP {
                upper.extend([0, 0, 0, 0, 5 << 4, SYN, 0, 0, 0, 0, 0, 0]);
            }
        }
    }
    packet(flow.source, flow.destination, flow.protocol, upper)
}

/// TCP's sequence number in the first bytes of a packet without extension headers.
#[must_use]
pub fn tcp_sequence(packet: &[u8]) -> Option<u32> {
    let start = match packet.first()? >> 4 {
        4 if *packet.get(9)? == TCP => usize::from(packet.first()? & 0xf) * 4,
        6 if *packet.get(6)? == TCP => 40,
        _ => return None,
    };
    let bytes = packet.get(start + 4..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// Source and destination of a packet that an error may be about, whose first bytes are given.
#[must_use]
pub fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    About::read(packet).map(|about| (about.source, about.destination))
}

/// An ICMP error about `quoted`: type and code for each family, and the four bytes behind the
/// checksum.
fn error(quoted: &[u8], v4: [u8; 2], v6: [u8; 2], rest: [u8; 4]) -> Option<Vec<u8>> {
    let about = About::read(quoted)?;
    let (protocol, [kind, code]) = if about.source.is_ipv4() { (ICMP, v4) } else { (ICMPV6, v6) };
    let quote = quoted.get(..quoted.len().min(QUOTE_MAX))?;
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(quote);
    let flow = Quoted {
        source: about.source,
        destination: about.destination,
        protocol,
        source_port: 0,
        destination_port: 0,
    };
    back(&flow, protocol, message, 2)
}

/// The packet that an error is about.
struct About {
    source: IpAddr,
    destination: IpAddr,
}

impl About {
    /// `None` when no error may be about it.
    fn read(packet: &[u8]) -> Option<Self> {
        let (source, destination, is_error): (IpAddr, IpAddr, bool) = match packet.first()? >> 4 {
            4 => {
                let &[
                    first,
                    _,
                    _,
                    _,
                    _,
                    _,
                    o0,
                    o1,
                    _,
                    protocol,
                    _,
                    _,
                    s0,
                    s1,
                    s2,
                    s3,
                    d0,
                    d1,
                    d2,
                    d3,
                ] = packet.first_chunk::<20>()?;
                if u16::from_be_bytes([o0, o1]) & 0x1fff != 0 {
                    return None;
                }
                let upper = packet.get(usize::from(first & 0xf) * 4..)?;
                upper.first_chunk::<8>()?;
                let is_error = protocol == ICMP && !matches!(upper.first(), Some(0 | 8));
                ([s0, s1, s2, s3].into(), [d0, d1, d2, d3].into(), is_error)
            }
            6 => {
                let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
                let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
                let is_error = *packet.get(6)? == ICMPV6 && *packet.get(40)? < 128;
                (source.into(), destination.into(), is_error)
            }
            _ => return None,
        };
        let is_single = |address: IpAddr| !address.is_multicast() && !address.is_unspecified();
        let may = !is_error && is_single(source) && is_single(destination);
        may.then_some(Self { source, destination })
    }
}

/// A packet from the flow's destination to its source; the checksum of `upper` goes to `at`.
fn back(flow: &Quoted, protocol: u8, mut upper: Vec<u8>, at: usize) -> Option<Vec<u8>> {
    let (from, to) = (flow.destination, flow.source);
    let checksum = checksum::upper(from, to, protocol, &upper).to_be_bytes();
    upper.get_mut(at..at + 2)?.copy_from_slice(&checksum);
    packet(from, to, protocol, upper)
}

/// `upper` in an IP packet without options.
pub(super) fn packet(from: IpAddr, to: IpAddr, protocol: u8, upper: Vec<u8>) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(40 + upper.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + upper.len()).ok()?.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let checksum = checksum::plain(&packet).to_be_bytes();
            packet.get_mut(10..12)?.copy_from_slice(&checksum);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(upper.len()).ok()?.to_be_bytes());
            packet.extend([protocol, TTL]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    packet.extend(upper);
    Some(packet)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
