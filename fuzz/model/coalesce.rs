//! Packets of several flows and devices, in any order, some damaged: joined, and cut again by the naive
//! model, they are what they were, each flow in its order.
//!
//! An input is a script: four bytes for each packet say its flow, its payload's length, what is odd
//! about it, and where.

use ovmesh::sys::offload::checksum::{self, Checked};
use ovmesh::sys::offload::coalesce::{Coalescer, Takes};
use ovmesh::sys::offload::layout::Layout;

use super::naive;
use super::offload::without_id;

/// Packets of one script, at most; more than one coalescer takes.
const PACKETS_MAX: usize = 300;
/// Flows: the lowest bit says IPv6, the next TCP, the others which.
const FLOWS: usize = 16;

/// One flow's sender.
#[derive(Clone, Copy, Default)]
struct Sender {
    sequence: u32,
    id: u16,
}

/// A packet, and the device that it is for.
type Addressed = (usize, Vec<u8>);

/// Everything that must hold of one input.
pub fn check(script: &[u8]) {
    let packets = play(script);
    let buffer: Vec<u8> = packets.iter().flat_map(|(_, packet)| packet.clone()).collect();
    let (mut coalescer, mut out) = (Coalescer::new(), Vec::new());
    let (mut start, mut writes) = (0, 0);
    for (device, packet) in &packets {
        let range = start..start + packet.len();
        start = range.end;
        let takes = Takes { tcp: true, udp: device % 2 == 0 };
        if !coalescer.push(&buffer, range.clone(), *device, takes) {
            writes += cut_again(&buffer, &coalescer, &mut out);
            coalescer.clear();
            assert!(coalescer.push(&buffer, range, *device, takes), "an empty one has room");
        }
    }
    writes += cut_again(&buffer, &coalescer, &mut out);
    assert_eq!(out.len(), packets.len());
    // Runs are written in the order of their first packets, so that only flows keep their order.
    let mut wanted = packets;
    for list in [&mut out, &mut wanted] {
        list.sort_by_key(|(device, packet)| (*device, flow_of(packet)));
    }
    for (got, wanted) in out.iter().zip(&wanted) {
        assert_eq!(got.0, wanted.0);
        // Identifications of what may not be fragmented mean nothing.
        assert!(got.1 == wanted.1 || without_id(&got.1) == without_id(&wanted.1));
    }
    // A train as any host sends it must be one write.
    if let Some(train) = one_plain_train(script) {
        assert_eq!(writes, train.div_ceil(64), "a plain train of {train} packets was not joined");
    }
}

/// The packets of a script.
fn play(script: &[u8]) -> Vec<Addressed> {
    let mut senders = [Sender::default(); FLOWS];
    let steps = script.as_chunks::<4>().0.iter().take(PACKETS_MAX);
    steps
        .map(|[flow, len, odd, place]| {
            let number = usize::from(*flow) % FLOWS;
            let sender = &mut senders[number];
            let mut packet = packet(number, *sender, usize::from(*len), *odd, *place);
            let len = usize::from(*len);
            sender.sequence = sender.sequence.wrapping_add(len as u32);
            sender.id = sender.id.wrapping_add(1);
            if odd & 0x40 != 0 {
                let at = usize::from(*place) % packet.len();
                packet[at] ^= 0x21;
            }
            (usize::from(flow >> 4) % 4, packet)
        })
        .collect()
}

/// How many packets a script has, if it is one flow's full segments and nothing is odd about them.
fn one_plain_train(script: &[u8]) -> Option<usize> {
    let steps = script.as_chunks::<4>().0;
    let [flow, len, 0, _] = *steps.first()? else { return None };
    let (number, device) = (usize::from(flow) % FLOWS, usize::from(flow >> 4) % 4);
    let is_taken = number & 2 != 0 || device % 2 == 0;
    let same = steps.iter().all(|step| step[..3] == [flow, len, 0]);
    (is_taken && len > 0 && same && steps.len() <= PACKETS_MAX).then_some(steps.len())
}

/// A packet of flow `number`; `odd` has a bit for each oddity, and `place` says more about some.
fn packet(number: usize, sender: Sender, len: usize, odd: u8, place: u8) -> Vec<u8> {
    let (is_v6, is_tcp, port) = (number & 1 != 0, number & 2 != 0, (number >> 2) as u8);
    let options = if odd & 0x01 != 0 && is_tcp { 12 } else { 0 };
    let l4_len = if is_tcp { 20 + options } else { 8 } + len;
    let ip_len = if is_v6 { 40 } else { 20 };
    let tos = if odd & 0x02 != 0 { place } else { 0 };
    let mut packet = if is_v6 {
        let mut ip = vec![0x60 | tos >> 4, tos << 4, 0, 0];
        ip.extend((l4_len as u16).to_be_bytes());
        ip.extend([if is_tcp { 6 } else { 17 }, 64]);
        ip.extend([[0xfd; 16], [0xfe; 16]].concat());
        ip
    } else {
        let mut ip = vec![0x45, tos];
        ip.extend(((ip_len + l4_len) as u16).to_be_bytes());
        ip.extend(sender.id.to_be_bytes());
        let may_fragment = odd & 0x04 != 0;
        ip.extend([if may_fragment { 0 } else { 0x40 }, 0, 64, if is_tcp { 6 } else { 17 }, 0, 0]);
        ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = naive::checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    };
    packet.extend([0x30, port, 0, 80]);
    if is_tcp {
        let jump = if odd & 0x08 != 0 { u32::from(place) } else { 0 };
        packet.extend(sender.sequence.wrapping_add(jump).to_be_bytes());
        packet.extend([0, 0, 0, 9]);
        let flags = if odd & 0x10 != 0 { place } else { 0x10 };
        packet.extend([((5 + options / 4) as u8) << 4, flags, 4, 0, 0, 0, 0, 0]);
        packet.extend(vec![1; options]);
    } else {
        packet.extend((l4_len as u16).to_be_bytes());
        packet.extend([0, 0]);
    }
    packet.extend((0..len).map(|n| (n as u8).wrapping_mul(7) ^ sender.sequence as u8));
    let layout = Layout::read(&packet).expect("it is whole");
    let at = ip_len + layout.l4.checksum_offset();
    let mut summed = packet[if is_v6 { 8..40 } else { 12..20 }].to_vec();
    summed.extend([0, layout.l4.protocol()]);
    summed.extend((l4_len as u16).to_be_bytes());
    summed.extend(&packet[ip_len..]);
    // A sender that leaves the checksum away, or half done.
    let sum = match (odd & 0x20 != 0, place & 1) {
        (true, 0) => 0,
        (true, _) => !naive::checksum(&summed[..summed.len() - l4_len]),
        (false, _) => match naive::checksum(&summed) {
            0 if !is_tcp => 0xffff,
            sum => sum,
        },
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What keeps its order: the addresses and ports as they stand there, and the protocol. Packets of
/// which the headers were damaged count as one flow each.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    match Layout::read(packet) {
        Some(layout) => {
            let ports = packet[layout.l4_start..layout.l4_start + 4].to_vec();
            let ends = format!("{} {}", layout.source, layout.destination).into_bytes();
            [vec![layout.l4.protocol()], ports, ends].concat()
        }
        None => packet.to_vec(),
    }
}

/// Adds the packets of the runs to `out`; how many runs there were.
fn cut_again(buffer: &[u8], coalescer: &Coalescer, out: &mut Vec<Addressed>) -> usize {
    let mut writes = 0;
    for (run, packets) in coalescer.runs() {
        writes += 1;
        let first = &buffer[packets[0].clone()];
        let Some(gso) = run.header().gso else {
            assert_eq!(packets.len(), 1);
            out.push((run.device, first.to_vec()));
            continue;
        };
        let mut large = run.head(first).as_slice().to_vec();
        for packet in packets {
            let packet = &buffer[packet.clone()];
            let layout = Layout::read(packet).expect("only whole packets are joined");
            assert_eq!(checksum::check(packet, &layout), Checked::Right, "damage is not hidden");
            large.extend(&packet[run.headers_len()..]);
        }
        assert!(large.len() <= 65_535);
        let segments = naive::split(&large, gso);
        assert_eq!(segments.len(), packets.len());
        out.extend(segments.into_iter().map(|segment| (run.device, segment)));
    }
    writes
}
