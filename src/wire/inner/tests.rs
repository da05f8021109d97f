use proptest::prelude::*;

use super::*;

const ICMP_ECHO: u8 = 8;

/// An IPv4 packet of 10.0.0.1 to 10.0.0.2.
fn v4(protocol: u8, offset_word: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let total = 20 + options.len() + payload.len();
    let mut packet = vec![0x40 | ((20 + options.len()) / 4) as u8, 0];
    packet.extend((total as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(offset_word.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 packet of fd00::1 to fd00::2.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    for last in [1, 2] {
        packet.extend([0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(payload);
    packet
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut segment = vec![0x1F, 0x90, 0x01, 0xBB, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags];
    segment.extend([0; 6]);
    segment
}

fn udp(destination_port: u16) -> Vec<u8> {
    let mut datagram = vec![0x1F, 0x90];
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend([0, 8, 0, 0]);
    datagram
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn refusal4(packet: &[u8]) -> Option<DropReason> {
    parse(Family::V4, packet).err()
}

fn refusal6(packet: &[u8]) -> Option<DropReason> {
    parse(Family::V6, packet).err()
}

const TCP_PORTS: Upper = Upper::Tcp { source_port: 8080, destination_port: 443, flags: 2 };
const UDP_PORTS: Upper = Upper::Ports { source_port: 8080, destination_port: 53 };

#[test]
fn ports_of_both_families_are_read() {
    let facts = parse(Family::V4, &v4(6, 0, &[], &tcp(2))).unwrap();
    assert_eq!((facts.upper, facts.len, facts.protocol), (TCP_PORTS, 40, 6));

    let facts = parse(Family::V6, &v6(17, &udp(53))).unwrap();
    assert_eq!((facts.upper, facts.len, facts.protocol), (UDP_PORTS, 48, 17));
    assert_eq!(facts.fragment, Fragment::Whole);
}

#[test]
fn ecn_bits_are_read_in_both_families() {
    for ecn in 0..4 {
        let mut packet = v4(17, 0, &[], &udp(53));
        packet[1] = 0xB8 | ecn;
        assert_eq!(parse(Family::V4, &packet).unwrap().ecn, ecn);
        let mut packet = v6(17, &udp(53));
        packet[0] = 0x6B;
        packet[1] = 0x80 | ecn << 4;
        assert_eq!(parse(Family::V6, &packet).unwrap().ecn, ecn);
    }
}

#[test]
fn trailing_bytes_do_not_count_and_missing_bytes_are_refused() {
    let packet = v4(17, 0, &[], &udp(53));
    assert_eq!(parse(Family::V4, &join(&[&packet, &[0; 7]])).unwrap().len, 28);
    for len in 0..packet.len() {
        assert_eq!(refusal4(&packet[..len]), Some(DropReason::InnerLength), "{len}");
    }

    let packet = v6(17, &udp(53));
    assert_eq!(parse(Family::V6, &join(&[&packet, &[0; 7]])).unwrap().len, 48);
    for len in 0..packet.len() {
        assert_eq!(refusal6(&packet[..len]), Some(DropReason::InnerLength), "{len}");
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let good = v4(17, 0, &[], &udp(53));
    for (first, total, expected) in [
        (0x45, 28, None),
        (0x45, 29, Some(DropReason::InnerLength)),
        (0x45, 0, Some(DropReason::InnerLength)),
        (0x45, 19, Some(DropReason::InnerLength)),
        (0x45, 20, Some(DropReason::InnerLength)),
        (0x44, 28, Some(DropReason::InnerLength)),
        (0x40, 28, Some(DropReason::InnerLength)),
        (0x4F, 28, Some(DropReason::InnerLength)),
        (0x55, 28, Some(DropReason::InnerVersion)),
        (0x65, 28, Some(DropReason::InnerVersion)),
    ] {
        let mut packet = good.clone();
        packet[0] = first;
        packet[2..4].copy_from_slice(&u16::to_be_bytes(total));
        assert_eq!(refusal4(&packet), expected, "{first:x} {total}");
    }
    assert_eq!(refusal6(&good), Some(DropReason::InnerVersion));
    assert_eq!(refusal4(&v6(17, &udp(53))), Some(DropReason::InnerVersion));
}

#[test]
fn source_routes_are_dropped_and_other_options_pass() {
    for (kind, expected) in [
        (7, None),
        (68, None),
        (148, None),
        (131, Some(DropReason::InnerOptions)),
        (137, Some(DropReason::InnerOptions)),
    ] {
        let behind_a_nop = [1, kind, 3, 0];
        assert_eq!(refusal4(&v4(17, 0, &behind_a_nop, &udp(53))), expected, "{kind}");
    }
    for broken in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
        let refusal = refusal4(&v4(17, 0, &broken, &udp(53)));
        assert_eq!(refusal, Some(DropReason::InnerOptions), "{broken:?}");
    }
    // Nothing behind the end of the list is an option.
    assert_eq!(refusal4(&v4(17, 0, &[0, 131, 3, 0], &udp(53))), None);
}

#[test]
fn martian_addresses_are_dropped_on_both_sides() {
    let bad4: [[u8; 4]; 9] = [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [169, 254, 1, 1],
        [224, 0, 0, 1],
        [239, 1, 1, 1],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        [10, 0, 0, 1],
    ];
    for bad in bad4 {
        for at in [12, 16] {
            let mut packet = v4(17, 0, &[], &udp(53));
            assert_eq!(refusal4(&packet), None);
            packet[at..at + 4].copy_from_slice(&bad);
            if bad == [10, 0, 0, 1] {
                // The same on both sides.
                packet[12..16].copy_from_slice(&bad);
                packet[16..20].copy_from_slice(&bad);
            }
            assert_eq!(refusal4(&packet), Some(DropReason::InnerAddress), "{bad:?}");
        }
    }
    for bad in ["::", "::1", "fe80::1", "febf::1", "ff02::1", "::ffff:10.0.0.1"] {
        let bad: std::net::Ipv6Addr = bad.parse().unwrap();
        for at in [8, 24] {
            let mut packet = v6(17, &udp(53));
            assert_eq!(refusal6(&packet), None);
            packet[at..at + 16].copy_from_slice(&bad.octets());
            assert_eq!(refusal6(&packet), Some(DropReason::InnerAddress), "{bad}");
        }
    }
}

#[test]
fn syn_with_fin_or_rst_is_dropped_whatever_the_other_flags() {
    for flags in 0..64_u8 {
        let expected = (flags & 2 != 0 && flags & (1 | 4) != 0).then_some(DropReason::TcpFlags);
        assert_eq!(refusal4(&v4(6, 0, &[], &tcp(flags))), expected, "{flags:06b}");
        assert_eq!(refusal6(&v6(6, &tcp(flags))), expected, "{flags:06b}");
    }
}

#[test]
fn tcp_data_offset_must_fit() {
    for (offset, expected) in [
        (5, None),
        (4, Some(DropReason::InnerLength)),
        (0, Some(DropReason::InnerLength)),
        (6, Some(DropReason::InnerLength)),
    ] {
        let mut segment = tcp(2);
        segment[12] = offset << 4;
        assert_eq!(refusal4(&v4(6, 0, &[], &segment)), expected, "{offset}");
    }
}

#[test]
fn first_fragments_hold_the_whole_upper_header() {
    const MORE: u16 = 0x2000;
    for (protocol, need) in [(6, 20), (17, 8), (132, 12)] {
        let whole = if protocol == 6 { tcp(2) } else { join(&[&udp(53), &[0; 12]]) };
        for len in 0..=20 {
            let expected = (len < need).then_some(DropReason::Fragment);
            let packet = v4(protocol, MORE, &[], &whole[..len]);
            assert_eq!(refusal4(&packet), expected, "{protocol}, {len} bytes");
            let header = [protocol, 0, 0, 1, 0, 0, 0, 9];
            let packet = v6(44, &join(&[&header, &whole[..len]]));
            assert_eq!(refusal6(&packet), expected, "{protocol}, {len} bytes");
        }
    }
    let facts = parse(Family::V4, &v4(17, MORE, &[], &udp(53))).unwrap();
    assert_eq!(facts.upper, UDP_PORTS);
    assert_eq!(facts.fragment, Fragment::First { identification: 0x1234 });
}

#[test]
fn later_fragments_have_no_ports_and_never_overlap_the_header() {
    for (protocol, offset, expected) in [
        (6, 1, Some(DropReason::Fragment)),
        (6, 2, Some(DropReason::Fragment)),
        (6, 3, None),
        (17, 1, None),
        (132, 1, Some(DropReason::Fragment)),
        (132, 2, None),
        (17, 0x1FFF, Some(DropReason::InnerLength)),
    ] {
        assert_eq!(refusal4(&v4(protocol, offset, &[], &tcp(2))), expected, "{protocol} {offset}");
        let [high, low] = (offset << 3).to_be_bytes();
        let header = [protocol, 0, high, low, 0, 0, 0, 9];
        let packet = v6(44, &join(&[&header, &tcp(2)]));
        assert_eq!(refusal6(&packet), expected, "{protocol} {offset}");
    }
    let facts = parse(Family::V4, &v4(6, 3, &[], &tcp(2))).unwrap();
    assert_eq!(facts.upper, Upper::Opaque);
    assert_eq!(facts.fragment, Fragment::Later { identification: 0x1234 });
}

#[test]
fn ports_behind_extension_headers_are_not_believed() {
    const OPTIONS: [u8; 8] = [6, 0, 1, 4, 0, 0, 0, 0];
    let atomic_fragment = [6, 0, 0, 0, 0, 0, 0, 9];

    let facts = parse(Family::V6, &v6(44, &join(&[&atomic_fragment, &tcp(2)]))).unwrap();
    assert_eq!((facts.upper, facts.fragment), (TCP_PORTS, Fragment::Whole));
    for (next, header) in [
        (0, OPTIONS),
        (60, OPTIONS),
        (43, [6, 0, 3, 0, 0, 0, 0, 0]),
        (51, [6, 0, 0, 0, 0, 0, 0, 0]),
        (135, OPTIONS),
    ] {
        let facts = parse(Family::V6, &v6(next, &join(&[&header, &tcp(2)]))).unwrap();
        assert_eq!((facts.upper, facts.protocol), (Upper::Opaque, 6), "{next}");
    }
    let fragment_behind_options = join(&[&[44, 0, 1, 4, 0, 0, 0, 0], &atomic_fragment, &tcp(2)]);
    let facts = parse(Family::V6, &v6(60, &fragment_behind_options)).unwrap();
    assert_eq!(facts.upper, Upper::Opaque);
}

#[test]
fn an_unknown_next_header_is_never_walked() {
    // Walked as an extension header it would reveal TCP to port 443.
    let forged = join(&[&[6, 0, 0, 0, 0, 0, 0, 0], &tcp(2)]);
    for next in [59, 99, 200, 253, 254, 255] {
        let facts = parse(Family::V6, &v6(next, &forged)).unwrap();
        assert_eq!((facts.upper, facts.protocol), (Upper::Opaque, next));
    }
}

#[test]
fn extension_header_lengths_do_not_overflow_nor_run_past_the_packet() {
    for len in [1, 3, 32, 127, 254, 255] {
        let packet = v6(60, &join(&[&[6, len, 0, 0, 0, 0, 0, 0], &tcp(2)[..12]]));
        let expected = (usize::from(len) + 1) * 8 > 20;
        assert_eq!(refusal6(&packet) == Some(DropReason::InnerLength), expected || len == 1);
    }
}

#[test]
fn long_chains_and_misplaced_headers_are_refused() {
    let link = [60, 0, 1, 4, 0, 0, 0, 0];
    let end = [6, 0, 1, 4, 0, 0, 0, 0];
    for (count, expected) in [
        (1, None),
        (15, None),
        (16, Some(DropReason::InnerOptions)),
        (64, Some(DropReason::InnerOptions)),
    ] {
        let packet = v6(60, &join(&[&link.repeat(count), &end, &tcp(2)]));
        assert_eq!(refusal6(&packet), expected, "{count}");
    }
    let second_hop_by_hop = join(&[&[0, 0, 1, 4, 0, 0, 0, 0], &end, &tcp(2)]);
    assert_eq!(refusal6(&v6(60, &second_hop_by_hop)), Some(DropReason::InnerOptions));
    let two_fragment_headers =
        join(&[&[44, 0, 0, 0, 0, 0, 0, 9], &[6, 0, 0, 0, 0, 0, 0, 9], &tcp(2)]);
    assert_eq!(refusal6(&v6(44, &two_fragment_headers)), Some(DropReason::InnerOptions));
}

#[test]
fn routing_headers_and_jumbograms_are_dropped() {
    for (kind, expected) in [
        (0, Some(DropReason::InnerOptions)),
        (2, Some(DropReason::InnerOptions)),
        (3, None),
        (4, Some(DropReason::InnerOptions)),
    ] {
        let packet = v6(43, &join(&[&[6, 0, kind, 0, 0, 0, 0, 0], &tcp(2)]));
        assert_eq!(refusal6(&packet), expected, "{kind}");
    }
    let jumbo = [6, 0, 0xC2, 4, 0, 1, 0, 0];
    assert_eq!(refusal6(&v6(0, &join(&[&jumbo, &tcp(2)]))), Some(DropReason::InnerOptions));
}

#[test]
fn nested_tunnels_are_dropped_also_behind_extension_headers() {
    for protocol in [4, 41, 47, 137] {
        assert_eq!(refusal4(&v4(protocol, 0, &[], &[0; 40])), Some(DropReason::InnerNested));
        let hidden = join(&[&[protocol, 0, 1, 4, 0, 0, 0, 0], &[0; 40]]);
        assert_eq!(refusal6(&v6(60, &hidden)), Some(DropReason::InnerNested));
    }
    assert_eq!(refusal4(&v4(17, 0, &[], &udp(6080))), Some(DropReason::InnerNested));
    assert_eq!(refusal4(&v4(17, 0, &[], &udp(6081))), None);
}

#[test]
fn neighbour_discovery_never_crosses() {
    for kind in 130..=140 {
        let expected = (133..=137).contains(&kind).then_some(DropReason::InnerNeighbour);
        let message = [kind, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(refusal6(&v6(58, &message)), expected, "{kind}");
        let hidden = join(&[&[58, 0, 1, 4, 0, 0, 0, 0], &message]);
        assert_eq!(refusal6(&v6(60, &hidden)), expected, "{kind}");
    }
    for (kind, expected) in [(5, true), (9, true), (10, true), (13, false), (ICMP_ECHO, false)] {
        let refusal = refusal4(&v4(1, 0, &[], &[kind, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(refusal, expected.then_some(DropReason::InnerNeighbour), "{kind}");
    }
}

#[test]
fn echoes_and_errors_are_told_apart() {
    let echo = [ICMP_ECHO, 0, 0, 0, 0xAB, 0xCD, 0, 1];
    let facts = parse(Family::V4, &v4(1, 0, &[], &echo)).unwrap();
    assert_eq!(facts.upper, Upper::Echo { is_request: true, identifier: 0xABCD });

    let quote = v4(17, 0, &[], &udp(53));
    let error = join(&[&[3, 3, 0, 0, 0, 0, 0, 0], &quote]);
    let facts = parse(Family::V4, &v4(1, 0, &[], &error)).unwrap();
    let quoted = Quoted {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: 17,
        source_port: 8080,
        destination_port: 53,
    };
    assert_eq!(facts.upper, Upper::IcmpError { kind: 3, quoted });

    let error = join(&[&[1, 4, 0, 0, 0, 0, 0, 0], &v6(6, &tcp(2)[..8])]);
    let facts = parse(Family::V6, &v6(58, &error)).unwrap();
    let Upper::IcmpError { kind: 1, quoted } = facts.upper else { panic!("{:?}", facts.upper) };
    assert_eq!((quoted.source_port, quoted.destination_port), (8080, 443));
    assert_eq!(refusal6(&v6(58, &error[..20])), Some(DropReason::InnerLength));
    // The protocol of the other family is no ICMP.
    assert_eq!(parse(Family::V6, &v6(1, &echo)).unwrap().upper, Upper::Opaque);
}

proptest! {
    #[test]
    fn noise_never_panics_and_never_counts_more_than_was_given(
        is_v6: bool,
        mut bytes in prop::collection::vec(any::<u8>(), 0..160),
        next in prop::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 60, 132]),
        length_is_right: bool,
    ) {
        let family = if is_v6 { Family::V6 } else { Family::V4 };
        let len = bytes.len() as u16;
        // Past the version check, and in half of the cases past the length check too.
        for (at, value) in [(0, if is_v6 { 0x60 } else { 0x45 }), (if is_v6 { 6 } else { 9 }, next)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let (at, value) = if is_v6 { (4, len.saturating_sub(40)) } else { (2, len) };
        if length_is_right && bytes.len() > at + 1 {
            bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }

        if let Ok(facts) = parse(family, &bytes) {
            prop_assert!(usize::from(facts.len) <= bytes.len());
            prop_assert_ne!(facts.source, facts.destination);
        }
    }
}
