use super::*;
use crate::wire::inner::{self, Family, Upper};

fn flow(protocol: u8, source: &str, destination: &str) -> Quoted {
    Quoted {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        source_port: 40_000,
        destination_port: 443,
    }
}

fn v4(protocol: u8) -> Quoted {
    flow(protocol, "10.0.0.1", "10.0.0.2")
}

fn v6(protocol: u8) -> Quoted {
    flow(protocol, "fd00::1", "fd00::2")
}

/// Whether every checksum of a packet sums up to all ones, computed without [`back`].
fn sums_up(packet: &[u8]) -> bool {
    let is_v4 = packet[0] >> 4 == 4;
    let (start, addresses) = if is_v4 { (20, 12..20) } else { (40, 8..40) };
    let protocol = if is_v4 { packet[9] } else { packet[6] };
    let upper = &packet[start..];
    let mut words = vec![0_u8; 0];
    if protocol != ICMP {
        words.extend(&packet[addresses]);
        words.extend([0, protocol]);
        words.extend(u16::try_from(upper.len()).unwrap().to_be_bytes());
    }
    words.extend(upper);
    if !words.len().is_multiple_of(2) {
        words.push(0);
    }
    let ones = |bytes: &[u8]| {
        let mut total = 0_u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(pair[1]);
            total = (total & 0xffff) + (total >> 16);
        }
        total == 0xffff
    };
    ones(&words) && (!is_v4 || ones(&packet[..20]))
}

/// RST and ACK from 10.0.0.2:443 to 10.0.0.1:40000, acknowledging 0x01020305. By hand: the words of the
/// pseudo header add up to 0x141d, those of the segment to 0xf216, and 0xffff - 0x0634 is 0xf9cb.
#[test]
fn a_reset_is_what_was_computed_by_hand() {
    let expected = "4500002800004000400626ce0a0000020a000001\
                    01bb9c40000000000102030550140000f9cb0000";

    let packet = reset(&v4(TCP), 0x0102_0304).unwrap();

    let digits: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, expected);
    assert!(sums_up(&packet));
}

#[test]
fn a_reset_goes_back_and_acknowledges_the_opening_segment() {
    for flow in [v4(TCP), v6(TCP)] {
        let packet = reset(&flow, u32::MAX).unwrap();
        let family = if flow.source.is_ipv4() { Family::V4 } else { Family::V6 };
        let facts = inner::parse(family, &packet).unwrap();

        assert_eq!((facts.source, facts.destination), (flow.destination, flow.source));
        let expected = Upper::Tcp { source_port: 443, destination_port: 40_000, flags: RST_ACK };
        assert_eq!(facts.upper, expected);
        let start = packet.len() - 20;
        assert_eq!(packet[start + 8..start + 12], [0; 4], "acknowledges one more, which wraps");
        assert!(sums_up(&packet));
    }
    assert!(reset(&v4(UDP), 1).is_none());
}

#[test]
fn errors_quote_the_packet_and_have_right_checksums() {
    for flow in [v4(UDP), v6(UDP), v4(TCP), v6(TCP), v4(ICMP), v6(ICMPV6), v4(132), v6(132)] {
        let quoted = stub(&flow, 7).unwrap();
        let family = if flow.source.is_ipv4() { Family::V4 } else { Family::V6 };
        let (prohibition, length) = match family {
            Family::V4 => ([3, 13], [3, 4]),
            Family::V6 => ([1, 1], [2, 0]),
        };
        for (packet, kind, mtu) in [
            (prohibited(&quoted).unwrap(), prohibition, [0, 0]),
            (too_big(&quoted, 1364).unwrap(), length, 1364_u16.to_be_bytes()),
        ] {
            let start = if family == Family::V4 { 20 } else { 40 };
            assert_eq!(packet[start..start + 2], kind);
            assert_eq!(packet[start + 6..start + 8], mtu);
            assert_eq!(packet[start + 8..], quoted);
            assert!(sums_up(&packet), "{flow:?}");
            let facts = inner::parse(family, &packet).unwrap();
            let Upper::IcmpError { quoted, .. } = facts.upper else { panic!("{facts:?}") };
            let is_echo = matches!(flow.protocol, ICMP | ICMPV6);
            let port = if is_echo { 0 } else { flow.destination_port };
            assert_eq!(quoted, Quoted { destination_port: port, ..flow });
            assert_eq!((facts.source, facts.destination), (flow.destination, flow.source));
        }
    }
}

#[test]
fn nothing_answers_errors_later_fragments_and_groups() {
    let good = stub(&v4(UDP), 0).unwrap();
    let good6 = stub(&v6(UDP), 0).unwrap();
    assert!(prohibited(&good).is_some() && prohibited(&good6).is_some());

    for error in [prohibited(&good).unwrap(), too_big(&good, 1300).unwrap()] {
        assert!(prohibited(&error).is_none() && too_big(&error, 1300).is_none());
    }
    assert!(prohibited(&prohibited(&good6).unwrap()).is_none());
    let changed = |packet: &[u8], at: usize, bytes: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    for bad in [
        changed(&good, 6, &[0, 1]),
        changed(&good, 16, &[224, 0, 0, 1]),
        changed(&good, 12, &[0; 4]),
        changed(&good6, 24, &[0xff, 2]),
        changed(&good, 0, &[0x55]),
        good[..27].to_vec(),
        Vec::new(),
    ] {
        assert!(prohibited(&bad).is_none(), "{bad:?}");
    }
}

#[test]
fn the_sequence_number_is_found_where_it_stands() {
    assert_eq!(tcp_sequence(&stub(&v4(TCP), 0xfeed_beef).unwrap()), Some(0xfeed_beef));
    assert_eq!(tcp_sequence(&stub(&v6(TCP), 0xfeed_beef).unwrap()), Some(0xfeed_beef));
    assert_eq!(tcp_sequence(&stub(&v6(UDP), 1).unwrap()), None);
    assert_eq!(tcp_sequence(&[0x45]), None);
}
