//! What the offloads do, done in the most simple way.

use ovmesh::sys::offload::layout::{L4, Layout};
use ovmesh::sys::offload::vnet::{Gso, GsoKind};

/// What a host that cuts nothing would have sent: packet by packet.
pub fn split(packet: &[u8], gso: Gso) -> Vec<Vec<u8>> {
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
            let sum = checksum(&segment[..l4]);
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
        let sum = match (checksum(&summed), layout.l4) {
            (0, L4::Udp) => 0xffff,
            (sum, L4::Udp | L4::Tcp) => sum,
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    pieces.iter().enumerate().map(segment).collect()
}

/// The checksum as RFC 1071 has it.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
