//! Split and coalesce against models that are as simple as they can be, and against each other.

use std::ops::Range;

use proptest::prelude::*;

use super::checksum::{self, Checked, Sum};
use super::coalesce::{Coalescer, Takes, as_large};
use super::layout::{L4, Layout};
use super::split::Split;
use super::vnet::{Gso, GsoKind, Partial, VNET_LEN, VnetHeader};
use crate::types::DropReason;

const PREFIX: [u8; 8] = [1, 4, 0x80, 0, 9, 9, 9, 9];
const ALL: Takes = Takes { tcp: true, udp: true };

/// The checksum as RFC 1071 has it.
fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A flow, from which packets are made.
#[derive(Clone, Copy, Debug)]
struct Flow {
    is_v6: bool,
    is_tcp: bool,
    /// Words of TCP options.
    options: usize,
    tos: u8,
    port: u16,
}

impl Flow {
    fn ip_len(self) -> usize {
        if self.is_v6 { 40 } else { 20 }
    }

    fn headers_len(self) -> usize {
        self.ip_len() + if self.is_tcp { 20 + 4 * self.options } else { 8 }
    }

    /// A whole packet with right checksums.
    fn packet(self, id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = self.headers_len() + payload.len();
        let protocol = if self.is_tcp { 6 } else { 17 };
        let mut packet = if self.is_v6 {
            let mut ip = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 7];
            ip.extend(((len - 40) as u16).to_be_bytes());
            ip.extend([protocol, 64]);
            ip.extend([[0xfd; 16], [0xfe; 16]].concat());
            ip
        } else {
            let mut ip = vec![0x45, self.tos];
            ip.extend((len as u16).to_be_bytes());
            ip.extend(id.to_be_bytes());
            ip.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = naive_checksum(&ip).to_be_bytes();
            ip[10..12].copy_from_slice(&checksum);
            ip
        };
        packet.extend(self.port.to_be_bytes());
        packet.extend([0, 80]);
        if self.is_tcp {
            packet.extend(sequence.to_be_bytes());
            packet.extend([1, 2, 3, 4, (5 + self.options as u8) << 4, flags, 0x10, 0, 0, 0, 0, 0]);
            packet.extend(vec![1; 4 * self.options]);
        } else {
            packet.extend(((len - self.ip_len()) as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        self.seal(&mut packet);
        packet
    }

    /// Makes the checksum of TCP or UDP right.
    fn seal(self, packet: &mut [u8]) {
        let at = self.ip_len() + if self.is_tcp { 16 } else { 6 };
        packet[at..at + 2].fill(0);
        let checksum = match naive_checksum(&self.summed(packet)) {
            0 if !self.is_tcp => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Everything that the checksum covers.
    fn summed(self, packet: &[u8]) -> Vec<u8> {
        let body = &packet[self.ip_len()..];
        let addresses = if self.is_v6 { &packet[8..40] } else { &packet[12..20] };
        let protocol = if self.is_tcp { 6 } else { 17 };
        let mut summed = [addresses, &[0, protocol]].concat();
        summed.extend((body.len() as u16).to_be_bytes());
        summed.extend(body);
        summed
    }

    fn kind(self) -> GsoKind {
        match (self.is_tcp, self.is_v6) {
            (true, false) => GsoKind::TcpV4,
            (true, true) => GsoKind::TcpV6,
            (false, _) => GsoKind::Udp,
        }
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 0..=10_usize, any::<u8>(), any::<u16>())
        .prop_map(|(is_v6, is_tcp, options, tos, port)| Flow { is_v6, is_tcp, options, tos, port })
}

/// What a naive sender makes of `payload`: packet by packet.
fn naive_split(
    flow: Flow,
    id: u16,
    sequence: u32,
    flags: u8,
    payload: &[u8],
    size: usize,
) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = payload.chunks(size).collect();
    let last = pieces.len() - 1;
    let packet = |(index, piece): (usize, &&[u8])| {
        let mut own = flags;
        if index != last {
            own &= !(1 | 8);
        }
        if index != 0 {
            own &= !0x80;
        }
        let sequence = sequence.wrapping_add((index * size) as u32);
        flow.packet(id.wrapping_add(index as u16), sequence, own, piece)
    };
    pieces.iter().enumerate().map(packet).collect()
}

fn split(packet: &[u8], gso: Gso) -> Result<Vec<Vec<u8>>, DropReason> {
    let segments = Split::new(PREFIX, packet, gso)?;
    Ok(segments
        .map(|(head, payload)| {
            let (prefix, head) = head.as_slice().split_at(8);
            assert_eq!(prefix, PREFIX);
            [head, payload].concat()
        })
        .collect())
}

/// Packets one after the other in one buffer, joined: for each run what the device gets.
fn coalesce(packets: &[Vec<u8>], takes: Takes) -> Vec<(VnetHeader, Vec<u8>, usize)> {
    let buffer = packets.concat();
    let mut coalescer = Coalescer::new();
    let mut start = 0;
    for packet in packets {
        assert!(coalescer.push(&buffer, start..start + packet.len(), 0, takes));
        start += packet.len();
    }
    let write = |(run, ranges): (&super::coalesce::Run, &[Range<usize>])| {
        let first = &buffer[ranges[0].clone()];
        let payloads = ranges.iter().flat_map(|range| &buffer[range.clone()][run.headers_len()..]);
        let bytes = run.head(first).as_slice().iter().chain(payloads).copied().collect();
        (run.header(), bytes, ranges.len())
    };
    coalescer.runs().map(write).collect()
}

#[test]
fn a_checksum_of_zero_is_written_as_the_protocol_wants_it() {
    for (is_tcp, wanted) in [(true, 0_u16), (false, 0xffff)] {
        let flow = Flow { is_v6: false, is_tcp, options: 0, tos: 0, port: 7 };
        // A payload that makes the sum whole is the checksum of the packet without it.
        let at = flow.ip_len() + if is_tcp { 16 } else { 6 };
        let without = flow.packet(1, 1, 0x10, &[0, 0]);
        let expected = flow.packet(1, 1, 0x10, &without[at..at + 2]);
        assert_eq!(expected[at..at + 2], wanted.to_be_bytes());

        let mut packet = expected.clone();
        let layout = Layout::read(&packet).unwrap();
        let pseudo = layout.pseudo(packet.len() - layout.l4_start).folded();
        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let start = layout.l4_start as u16;
        let partial = Partial { start, offset: layout.l4.checksum_offset() as u16 };
        assert!(checksum::complete(&mut packet, partial));
        assert_eq!(packet, expected);
    }
}

proptest! {
    #[test]
    fn sums_agree_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..150_usize) {
        prop_assert_eq!(Sum::default().bytes(&bytes).checksum(), naive_checksum(&bytes));
        let (left, right) = bytes.split_at((cut * 2).min(bytes.len() / 2 * 2));
        prop_assert_eq!(Sum::default().bytes(left).bytes(right).checksum(), naive_checksum(&bytes));
    }

    #[test]
    fn a_large_packet_becomes_what_a_naive_sender_sends(
        flow in flow(),
        (id, sequence, flags) in any::<(u16, u32, u8)>(),
        payload in prop::collection::vec(any::<u8>(), 1..4000),
        size in 1..1500_u16,
    ) {
        let expected = naive_split(flow, id, sequence, flags, &payload, size.into());
        let large = flow.packet(id, sequence, flags, &payload);

        let segments = split(&large, Gso { kind: flow.kind(), size }).unwrap();

        prop_assert_eq!(segments, expected);
    }

    #[test]
    fn what_is_joined_and_cut_again_is_what_it_was(
        flow in flow(),
        (id, sequence, push) in any::<(u16, u32, bool)>(),
        payload in prop::collection::vec(any::<u8>(), 2..4000),
        size in 1..1500_u16,
    ) {
        prop_assume!(payload.len().div_ceil(size.into()) <= super::coalesce::RUN_MAX);
        let flags = if push { 0x18 } else { 0x10 };
        let packets = naive_split(flow, id, sequence, flags, &payload, size.into());

        let joined = coalesce(&packets, ALL);

        prop_assert_eq!(joined.len(), 1);
        let (header, large, count) = &joined[0];
        prop_assert_eq!(*count, packets.len());
        if *count == 1 {
            prop_assert_eq!(large, &packets[0]);
            return Ok(());
        }
        let partial = header.partial.unwrap();
        prop_assert_eq!(header.gso, Some(Gso { kind: flow.kind(), size }));
        prop_assert_eq!(split(large, header.gso.unwrap()).unwrap(), packets);
        // The device completes the checksum of the whole to what a whole packet has.
        let mut whole = large.clone();
        prop_assert!(checksum::complete(&mut whole, partial));
        prop_assert_eq!(&whole, &flow.packet(id, sequence, flags, &payload));
        // And taking it for uncut changes nothing.
        let mut again = whole.clone();
        let (header_again, len) = as_large(&mut again, size).unwrap();
        prop_assert_eq!((header_again, usize::from(len)), (*header, flow.headers_len()));
        prop_assert_eq!(&again, large);
    }

    #[test]
    fn whatever_is_joined_nothing_is_lost_added_or_changed(
        flows in prop::collection::vec(flow(), 1..4),
        script in prop::collection::vec((0..4_usize, 1..60_usize, 0..6_u8, any::<bool>()), 1..64),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let mut sequences = [1_u32, 1000, u32::MAX - 100, 5];
        let mut ids = [0_u16, 65_530, 7, 8];
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for (which, len, odd, push) in script {
            let at = which % flows.len();
            let flags = match odd { 0 => 0x11, 1 => 0x02, _ if push => 0x18, _ => 0x10 };
            if odd == 2 {
                sequences[at] = sequences[at].wrapping_add(1);
            }
            packets.push(flows[at].packet(ids[at], sequences[at], flags, &vec![len as u8; len]));
            sequences[at] = sequences[at].wrapping_add(len as u32);
            ids[at] = ids[at].wrapping_add(1);
        }
        let is_damaged = damage.is_some();
        if let Some((packet, byte)) = damage {
            let packet = packet.get(&packets).clone();
            let at = packets.iter().position(|other| *other == packet).unwrap();
            let byte = byte.index(packet.len());
            packets[at][byte] ^= 0x55;
        }

        let mut out: Vec<Vec<u8>> = Vec::new();
        for (header, bytes, count) in coalesce(&packets, ALL) {
            match header.gso {
                Some(gso) => {
                    let segments = split(&bytes, gso).unwrap();
                    prop_assert_eq!(segments.len(), count);
                    out.extend(segments);
                }
                None => {
                    prop_assert_eq!(count, 1);
                    out.push(bytes);
                }
            }
        }

        // A damaged packet leaves a gap in the identifications, which mean nothing here.
        for packet in packets.iter_mut().chain(&mut out).filter(|packet| packet[0] >> 4 == 4) {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        // Flow by flow in order, and all of them the same bytes.
        for port in flows.iter().map(|flow| flow.port) {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                let is_of = |p: &&Vec<u8>| {
                    Layout::read(p).is_some_and(|l| p[l.l4_start..l.l4_start + 2] == port.to_be_bytes())
                };
                all.iter().filter(is_of).cloned().collect()
            };
            // Damage may have made it another flow's.
            if !is_damaged && flows.iter().filter(|flow| flow.port == port).count() == 1 {
                prop_assert_eq!(of(&out), of(&packets));
            }
        }
        packets.sort();
        out.sort();
        prop_assert_eq!(out, packets);
    }

    #[test]
    fn noise_never_panics_nor_makes_a_segment_longer_than_its_packet(
        mut packet in prop::collection::vec(any::<u8>(), 0..200),
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        (start, offset, size) in any::<(u16, u16, u16)>(),
        fits in any::<bool>(),
    ) {
        if let Some(byte) = packet.first_mut() { *byte = first; }
        if fits && packet.len() >= 40 {
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6] = 6;
            packet[9] = if size % 2 == 0 { 6 } else { 17 };
            if first == 0x60 {
                packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            } else {
                packet[6..8].fill(0);
            }
        }
        for kind in [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp] {
            if let Ok(segments) = split(&packet, Gso { kind, size }) {
                let layout = Layout::read(&packet).unwrap();
                let carried: usize = segments.iter().map(|s| s.len() - layout.payload_start).sum();
                prop_assert_eq!(carried, packet.len() - layout.payload_start);
            }
        }
        let whole = packet.clone();
        let _ = checksum::complete(&mut packet, Partial { start, offset });
        let _ = as_large(&mut packet, size);
        prop_assert_eq!(coalesce(&[whole.clone(), whole.clone()], ALL).len().min(2), coalesce(&[whole.clone(), whole], ALL).len());
    }

    #[test]
    fn device_headers_round_trip_or_are_refused(bytes: [u8; VNET_LEN]) {
        if let Some(header) = VnetHeader::decode(bytes) {
            prop_assert_eq!(VnetHeader::decode(header.encode(54)), Some(header));
            prop_assert!(header.gso.is_none_or(|gso| gso.size > 0));
        }
    }
}

const TCP: Flow = Flow { is_v6: false, is_tcp: true, options: 3, tos: 0, port: 5000 };
const UDP: Flow = Flow { is_tcp: false, ..TCP };

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(packets, ALL).iter().map(|(_, _, count)| *count).collect()
}

#[test]
fn only_plain_data_that_follows_is_joined() {
    let at = |sequence, flags, len| TCP.packet(1, sequence, flags, &vec![7; len]);
    let first = || at(0, 0x10, 100);
    assert_eq!(
        counts(&[first(), at(100, 0x10, 100), at(200, 0x10, 50), at(250, 0x10, 50)]),
        [3, 1]
    );
    // A gap, a repetition, a push in the middle, other flags, nothing in it, a larger one.
    assert_eq!(counts(&[first(), at(101, 0x10, 100)]), [1, 1]);
    assert_eq!(counts(&[first(), first()]), [1, 1]);
    assert_eq!(counts(&[first(), at(100, 0x18, 100), at(200, 0x10, 100)]), [2, 1]);
    for flags in [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0x00] {
        assert_eq!(counts(&[first(), at(100, flags, 100)]), [1, 1], "{flags:02x}");
    }
    assert_eq!(counts(&[first(), at(100, 0x10, 0), at(100, 0x10, 100)]), [1, 1, 1]);
    assert_eq!(counts(&[first(), at(100, 0x10, 101)]), [1, 1]);
}

#[test]
fn every_header_field_that_the_large_packet_says_once_must_agree() {
    let packets = [TCP.packet(1, 0, 0x10, &[7; 100]), TCP.packet(2, 100, 0x10, &[7; 100])];
    assert_eq!(counts(&packets), [2]);
    // Of IPv4 but length, identification and checksum; of TCP but sequence and checksum.
    let own = [2, 3, 4, 5, 10, 11, 24, 25, 26, 27, 36, 37];
    for byte in (0..TCP.headers_len()).filter(|byte| !own.contains(byte)) {
        let mut other = packets[1].clone();
        other[byte] ^= 1;
        if Layout::read(&other).is_some_and(|layout| layout.l4 == L4::Tcp) {
            TCP.seal(&mut other);
        }
        assert_eq!(counts(&[packets[0].clone(), other]), [1, 1], "byte {byte}");
    }
}

#[test]
fn identifications_count_up_where_packets_may_be_fragmented() {
    let packet = |id, dont_fragment: u8| {
        let mut packet = UDP.packet(id, 0, 0, &[1; 10]);
        packet[6] = dont_fragment;
        packet[10..12].fill(0);
        let checksum = naive_checksum(&packet[..20]).to_be_bytes();
        packet[10..12].copy_from_slice(&checksum);
        packet
    };
    assert_eq!(counts(&[packet(5, 0x40), packet(5, 0x40)]), [2]);
    assert_eq!(counts(&[packet(5, 0), packet(6, 0), packet(7, 0)]), [3]);
    assert_eq!(counts(&[packet(5, 0), packet(5, 0)]), [1, 1]);
}

#[test]
fn damage_is_not_hidden_and_udp_without_checksum_stays_alone() {
    for flow in [TCP, UDP, Flow { is_v6: true, ..TCP }, Flow { is_v6: true, ..UDP }] {
        for hurt in 0..3 {
            let mut packets: Vec<_> =
                (0..3).map(|n| flow.packet(n as u16, n * 10, 0x10, &[n as u8; 10])).collect();
            *packets[hurt].last_mut().unwrap() ^= 1;
            let out = coalesce(&packets, ALL);
            let alone = out.iter().find(|(_, bytes, _)| *bytes == packets[hurt]).unwrap();
            assert_eq!((alone.0, alone.2), (VnetHeader::PLAIN, 1), "{flow:?} {hurt}");
        }
    }
    let mut absent = [UDP.packet(0, 0, 0, &[1; 10]), UDP.packet(1, 0, 0, &[1; 10])];
    absent.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(counts(&absent), [1, 1]);
}

#[test]
fn a_half_done_checksum_is_seen_and_handed_on_as_such() {
    for flow in [TCP, UDP, Flow { is_v6: true, ..UDP }] {
        let mut packet = flow.packet(0, 0, 0x18, &[5; 33]);
        let whole = packet.clone();
        let layout = Layout::read(&packet).unwrap();
        assert_eq!(checksum::check(&packet, &layout), Checked::Right);
        let at = layout.l4_start + layout.l4.checksum_offset();
        let sum = layout.pseudo(packet.len() - layout.l4_start).folded();
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        assert_eq!(checksum::check(&packet, &layout), Checked::Partial);
        let out = coalesce(std::slice::from_ref(&packet), ALL);
        let partial = out[0].0.partial.unwrap();
        assert!(checksum::complete(&mut packet, partial));
        assert_eq!(packet, whole);
    }
}

#[test]
fn a_device_gets_only_what_it_takes_and_runs_end_at_64_packets_and_64_kib() {
    let tcp: Vec<_> = (0..70).map(|n| TCP.packet(0, n * 10, 0x10, &[1; 10])).collect();
    assert_eq!(counts(&tcp[..64]), [64]);
    let long: Vec<_> = (0..50).map(|n| TCP.packet(0, n * 1400, 0x10, &[1; 1400])).collect();
    assert_eq!(counts(&long), [46, 4]);
    let mut all = tcp[..3].to_vec();
    all.extend((0..3).map(|_| UDP.packet(0, 0, 0, &[1; 10])));
    let count = |takes| coalesce(&all, takes).len();
    assert_eq!(count(ALL), 2);
    assert_eq!(count(Takes { tcp: true, udp: false }), 4);
    assert_eq!(count(Takes { tcp: false, udp: true }), 4);
    assert_eq!(count(Takes { tcp: false, udp: false }), 6);
}

#[test]
fn what_does_not_fit_its_device_header_is_refused() {
    let packet = TCP.packet(1, 0, 0x10, &[7; 100]);
    let with = |kind, size| split(&packet, Gso { kind, size });
    assert_eq!(with(GsoKind::TcpV4, 40).unwrap().len(), 3);
    for (kind, size) in [(GsoKind::TcpV6, 40), (GsoKind::Udp, 40), (GsoKind::TcpV4, 0)] {
        assert_eq!(with(kind, size), Err(DropReason::InnerLength));
    }
    // Fragments, and packets that are longer or shorter than they say.
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    let gso = Gso { kind: GsoKind::TcpV4, size: 40 };
    assert!(split(&fragment, gso).is_err());
    assert!(split(&packet[..packet.len() - 1], gso).is_err());
    assert!(split(&[&packet[..], &[0]].concat(), gso).is_err());
}
