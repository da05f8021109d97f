//! Tracers: opening packets that live tests of the policy send along the real path (docs/adr/0012).
//!
//! ```text
//! IP header | TCP SYN, UDP, SCTP or echo request | mark(16) | id(8)
//! ```
//!
//! A tracer is judged as every opening packet is and reaches no program: its checksum is wrong, in a way
//! that no sender makes by accident, so that any kernel drops it. Therefore nobody loses anything when
//! the destination keeps it back, and no text that an application carries can be taken for one.

use std::net::IpAddr;

use super::answer;
use super::checksum;
use super::inner::{Fragment, Quoted, Upper};
use crate::types::TracerId;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Drawn once; long enough to be nothing else.
const MARK: [u8; 16] = *b"\x9d\x1fovmesh tracer\xe3";

/// Mark and id.
const TAIL_LEN: usize = MARK.len() + 8;

/// What the right checksum is changed by. Neither this nor its complement makes it right again, nor the 0
/// that means none in UDP.
const TWIST: u16 = 0x5555;

/// Whether there are tracers of this protocol number.
#[must_use]
pub fn is_traceable(protocol: u8, is_ipv6: bool) -> bool {
    matches!(protocol, TCP | UDP | SCTP) || protocol == if is_ipv6 { ICMPV6 } else { ICMP }
}

/// The opening packet of `flow` as a tracer; of an echo the identifier is the source port.
#[must_use]
pub fn packet(flow: &Quoted, id: TracerId) -> Option<Vec<u8>> {
    let Quoted { source, destination, protocol, source_port, destination_port } = *flow;
    if !is_traceable(protocol, source.is_ipv6()) {
        return None;
    }
    let (mut upper, at) = match protocol {
        ICMP | ICMPV6 => {
            let request = if source.is_ipv4() { 8 } else { 128 };
            let [high, low] = source_port.to_be_bytes();
            (vec![request, 0, 0, 0, high, low, 0, 1], 2)
        }
        _ => {
            let mut upper = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
            match protocol {
                TCP => {
                    upper.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 4, 0, 0, 0, 0, 0]);
                    (upper, 16)
                }
                UDP => {
                    upper.extend(u16::try_from(8 + TAIL_LEN).ok()?.to_be_bytes());
                    upper.extend([0, 0]);
                    (upper, 6)
                }
                // Its checksum is another one, and 0 is wrong in an opening packet (RFC 9260 section 6.8).
                _ => {
                    upper.extend([0; 8]);
                    (upper, usize::MAX)
                }
            }
        }
    };
    upper.extend(MARK);
    upper.extend(id.0.to_be_bytes());
    if at != usize::MAX {
        let wrong = twisted(checksum::upper(source, destination, protocol, &upper));
        upper.get_mut(at..at + 2)?.copy_from_slice(&wrong.to_be_bytes());
    }
    answer::packet(source, destination, protocol, upper)
}

fn twisted(right: u16) -> u16 {
    if right == TWIST { !TWIST } else { right ^ TWIST }
}

/// Whether what stands above IP, which was read as `upper`, is a tracer. Costs a look at a length, as a
/// rule.
pub(super) fn find(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    (fragment, upper): (Fragment, Upper),
    payload: &[u8],
) -> Option<TracerId> {
    // Headers of 8, 12 and 20 bytes, and the tail.
    if !matches!(payload.len(), 32 | 36 | 44) || fragment != Fragment::Whole {
        return None;
    }
    let (_, &[ref mark @ .., i0, i1, i2, i3, i4, i5, i6, i7]) =
        payload.split_last_chunk::<TAIL_LEN>()?;
    if *mark != MARK {
        return None;
    }
    let at = match (protocol, upper, payload.len()) {
        (TCP, Upper::Tcp { flags: 0x02, .. }, 44) => 16,
        (UDP, Upper::Ports { .. }, 32) => 6,
        (_, Upper::Echo { is_request: true, .. }, 32) => 2,
        (SCTP, Upper::Ports { .. }, 36) => {
            let is_none = payload.get(8..12) == Some(&[0; 4]);
            return is_none.then_some(id([i0, i1, i2, i3, i4, i5, i6, i7]));
        }
        _ => return None,
    };
    let found = u16::from_be_bytes(*payload.get(at..)?.first_chunk()?);
    let mut cleared = [0; 44];
    let cleared = cleared.get_mut(..payload.len())?;
    cleared.copy_from_slice(payload);
    cleared.get_mut(at..at + 2)?.fill(0);
    let right = checksum::upper(source, destination, protocol, cleared);
    (found == twisted(right)).then_some(id([i0, i1, i2, i3, i4, i5, i6, i7]))
}

fn id(bytes: [u8; 8]) -> TracerId {
    TracerId(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::inner::{Facts, Family, parse};
    use super::*;

    fn flows() -> Vec<Quoted> {
        let pairs = [("10.70.0.1", "10.70.0.2"), ("fd00::1", "fd00::2")];
        let flow = |(source, destination): (&str, &str), protocol, port| Quoted {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port: 50_007,
            destination_port: port,
        };
        pairs
            .iter()
            .flat_map(|pair| {
                let icmp = if pair.0.contains(':') { ICMPV6 } else { ICMP };
                [
                    flow(*pair, TCP, 443),
                    flow(*pair, UDP, 53),
                    flow(*pair, SCTP, 80),
                    flow(*pair, icmp, 0),
                ]
            })
            .collect()
    }

    fn family(flow: &Quoted) -> Family {
        if flow.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn header_len(flow: &Quoted) -> usize {
        if flow.source.is_ipv4() { 20 } else { 40 }
    }

    fn facts(flow: &Quoted, packet: &[u8]) -> Facts {
        parse(family(flow), packet).unwrap()
    }

    #[test]
    fn a_tracer_is_the_opening_packet_of_its_flow() {
        for flow in flows() {
            let packet = packet(&flow, TracerId(0x0102_0304_0506_0708)).unwrap();
            let facts = facts(&flow, &packet);
            assert_eq!(facts.tracer, Some(TracerId(0x0102_0304_0506_0708)), "{flow:?}");
            assert_eq!(facts.opened_flow(), Some(flow));
            assert_eq!(usize::from(facts.len), packet.len());
        }
        let other = Quoted { protocol: 50, ..flows()[0] };
        assert_eq!(packet(&other, TracerId(1)), None);
    }

    /// The kernel drops a packet whose sum, checksum included, is not that of a right one.
    #[test]
    fn its_checksum_is_wrong() {
        for right in 0..=u16::MAX {
            let wrong = twisted(right);
            // 0 and 0xffff are the same number, and 0 is no checksum in UDP.
            assert!(wrong % u16::MAX != right % u16::MAX && wrong != 0, "{right}");
        }
        for flow in flows().into_iter().filter(|flow| flow.protocol != SCTP) {
            for id in 0..50 {
                let packet = packet(&flow, TracerId(id)).unwrap();
                let upper = &packet[header_len(&flow)..];
                assert_ne!(checksum::upper(flow.source, flow.destination, flow.protocol, upper), 0);
            }
        }
    }

    /// Whatever an application says, its host's checksum is right, and it is delivered.
    #[test]
    fn the_same_bytes_with_a_right_checksum_are_no_tracer() {
        for flow in flows().into_iter().filter(|flow| flow.protocol != SCTP) {
            let mut packet = packet(&flow, TracerId(9)).unwrap();
            let at = header_len(&flow)
                + match flow.protocol {
                    TCP => 16,
                    UDP => 6,
                    _ => 2,
                };
            packet[at..at + 2].fill(0);
            assert_eq!(facts(&flow, &packet).tracer, None, "no checksum");
            let upper = &packet[header_len(&flow)..];
            let right = checksum::upper(flow.source, flow.destination, flow.protocol, upper);
            packet[at..at + 2].copy_from_slice(&right.to_be_bytes());
            assert_eq!(facts(&flow, &packet).tracer, None, "{flow:?}");
        }
    }

    #[test]
    fn every_changed_bit_makes_it_an_ordinary_packet() {
        for flow in flows().into_iter().filter(|flow| flow.protocol != SCTP) {
            let good = packet(&flow, TracerId(9)).unwrap();
            for at in header_len(&flow)..good.len() {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << bit;
                    let tracer = parse(family(&flow), &bad).ok().and_then(|facts| facts.tracer);
                    assert_eq!(tracer, None, "{flow:?} {at}.{bit}");
                }
            }
        }
    }
}
