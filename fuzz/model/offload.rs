//! A read of the TUN device, the device's header and a packet: cutting it, and joining what it was cut
//! into.

use ovmesh::sys::offload::checksum::{self, Checked};
use ovmesh::sys::offload::coalesce::{Coalescer, Takes};
use ovmesh::sys::offload::layout::Layout;
use ovmesh::sys::offload::split::Split;
use ovmesh::sys::offload::vnet::{VNET_LEN, VnetHeader};

use super::naive;

const PREFIX: [u8; 8] = [1, 4, 0x80, 0, 9, 9, 9, 9];
const ALL: Takes = Takes { tcp: true, udp: true };

/// Everything that must hold of one input.
pub fn check(input: &[u8]) {
    let Some((header, packet)) = input.split_first_chunk::<VNET_LEN>() else { return };
    nothing_is_lost(&[packet.to_vec(), packet.to_vec()]);
    let Some(header) = VnetHeader::decode(*header) else { return };
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
    assert_eq!(segments, naive::split(packet, gso));
    nothing_is_lost(&segments);
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
        let segments = naive::split(&large, gso);
        assert_eq!(segments.len(), packets.len());
        out.extend(segments);
    }
}

pub fn without_id(packet: &[u8]) -> Vec<u8> {
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
