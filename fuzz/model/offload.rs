//! Cutting and joining against models that are as simple as they can be. The fuzz target and the
//! replay of its corpus both come here; whoever includes this file has `offload` in scope.
//!
//! An input is what a read of the TUN device brings: the device's header and a packet.

use super::offload::checksum::{self, Checked};
use super::offload::coalesce::{Coalescer, Takes};
use super::offload::layout::{L4, Layout};
use super::offload::split::Split;
use super::offload::vnet::{Gso, GsoKind, VNET_LEN, VnetHeader};

const PREFIX: [u8; 8] = [1, 4, 0x80, 0, 9, 9, 9, 9];
const ALL: Takes = Takes { tcp: true, udp: true };

/// Everything that must hold of one input.
pub(crate) fn check(input: &[u8]) {
    let Some((header, packet)) = input.split_first_chunk::<VNET_LEN>() else { return };
    nothing_is_lost(&[packet.to_vec(), packet.to_vec()]);
    let Some(header) = VnetHeader::decode(*header) else { return };
    assert_eq!(VnetHeader::decode(header.encode(54)), Some(header));
    completing_changes_the_checksum_alone(&header, packet);
    let Some(gso) = header.gso else { return };
    assert_ne!(gso.size, 0);
    let Ok(split) = Split::new(PREFIX, packet, gso) else { return };
    let segments: Vec<Vec<u8>> = split
        .map(|(head, payload)| {
            let (prefix, head) = head.as_slice().split_at(PREFIX.len());
            assert_eq!(prefix, PREFIX);
            [head, payload].concat()
        })
        .collect();
    assert_eq!(segments, naive_split(packet, gso));
    nothing_is_lost(&segments);
}

fn completing_changes_the_checksum_alone(header: &VnetHeader, packet: &[u8]) {
    let Some(partial) = header.partial else { return };
    let mut completed = packet.to_vec();
    let at = usize::from(partial.start) + usize::from(partial.offset);
    if checksum::complete(&mut completed, partial) {
        assert_eq!(completed[..at], packet[..at]);
        assert_eq!(completed[at + 2..], packet[at + 2..]);
        assert_ne!(completed[at..at + 2], [0, 0]);
    } else {
        assert_eq!(completed, packet);
    }
}

/// Joined and cut again, packets of one flow are what they were, in their order.
fn nothing_is_lost(packets: &[Vec<u8>]) {
    let buffer = packets.concat();
    let (mut coalescer, mut out) = (Coalescer::new(), Vec::new());
    let mut start = 0;
    for packet in packets {
        let range = start..start + packet.len();
        if !coalescer.push(&buffer, range.clone(), 0, ALL) {
            cut_again(&buffer, &coalescer, &mut out);
            coalescer.clear();
            assert!(coalescer.push(&buffer, range, 0, ALL), "an empty one has room");
        }
        start += packet.len();
    }
    cut_again(&buffer, &coalescer, &mut out);
    if out != packets {
        // Only what nobody looks at may differ: identifications where nothing may be fragmented.
        let plain = |packets: &[Vec<u8>]| {
            packets.iter().map(|packet| without_id(packet)).collect::<Vec<_>>()
        };
        assert_eq!(plain(&out), plain(packets));
    }
}

fn cut_again(buffer: &[u8], coalescer: &Coalescer, out: &mut Vec<Vec<u8>>) {
    for (run, packets) in coalescer.runs() {
        let first = &buffer[packets[0].clone()];
        let Some(gso) = run.header().gso else {
            assert_eq!(packets.len(), 1);
            out.push(first.to_vec());
            continue;
        };
        for packet in packets {
            let packet = &buffer[packet.clone()];
            let layout = Layout::read(packet).expect("only whole packets are joined");
            assert_eq!(checksum::check(packet, &layout), Checked::Right, "damage is not hidden");
        }
        let mut large = run.head(first).as_slice().to_vec();
        for packet in packets {
            large.extend(&buffer[packet.clone()][run.headers_len()..]);
        }
        let segments = naive_split(&large, gso);
        assert_eq!(segments.len(), packets.len());
        out.extend(segments);
    }
}

fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.first().is_some_and(|byte| byte >> 4 == 4)
        && packet.len() >= 20
        && packet[6] & 0x40 != 0
    {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What a host that cuts nothing would have sent: packet by packet.
fn naive_split(packet: &[u8], gso: Gso) -> Vec<Vec<u8>> {
    let layout = Layout::read(packet).expect("it was cut");
    assert_eq!(GsoKind::of(&layout), gso.kind);
    let (headers, payload) = packet.split_at(layout.payload_start);
    let mut pieces: Vec<&[u8]> = payload.chunks(gso.size.into()).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let last = pieces.len() - 1;
    let segment = |(index, piece): (usize, &&[u8])| {
        let mut segment = [headers, piece].concat();
        let (total, l4) = (segment.len(), layout.l4_start);
        if layout.is_v4 {
            segment[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            segment[10..12].fill(0);
            let sum = naive_checksum(&segment[..l4]);
            segment[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            segment[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        match layout.l4 {
            L4::Tcp => {
                let field = [segment[l4 + 4], segment[l4 + 5], segment[l4 + 6], segment[l4 + 7]];
                let skipped = index * usize::from(gso.size);
                let sequence = u32::from_be_bytes(field).wrapping_add(skipped as u32);
                segment[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
                if index != last {
                    segment[l4 + 13] &= !(0x01 | 0x08);
                }
                if index != 0 {
                    segment[l4 + 13] &= !0x80;
                }
            }
            L4::Udp => {
                segment[l4 + 4..l4 + 6].copy_from_slice(&((total - l4) as u16).to_be_bytes());
            }
        }
        let at = l4 + layout.l4.checksum_offset();
        segment[at..at + 2].fill(0);
        let addresses = if layout.is_v4 { 12..20 } else { 8..40 };
        let mut summed = segment[addresses].to_vec();
        summed.extend([0, layout.l4.protocol()]);
        summed.extend(((total - l4) as u16).to_be_bytes());
        summed.extend(&segment[l4..]);
        let sum = match (naive_checksum(&summed), layout.l4) {
            (0, L4::Udp) => 0xffff,
            (sum, L4::Udp | L4::Tcp) => sum,
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    pieces.iter().enumerate().map(segment).collect()
}

/// The checksum as RFC 1071 has it.
fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
