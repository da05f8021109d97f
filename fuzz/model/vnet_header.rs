//! The header that a TUN device puts before each packet, against a reading of it byte by byte, and the
//! checksum that it may ask for.

use ovmesh::sys::offload::checksum;
use ovmesh::sys::offload::vnet::{GsoKind, Partial, VNET_LEN, VnetHeader};

use super::naive;

/// Everything that must hold of one input: a header and a packet.
pub fn check(input: &[u8]) {
    let Some((bytes, packet)) = input.split_first_chunk::<VNET_LEN>() else { return };
    let header = VnetHeader::decode(*bytes);
    assert_eq!(header.is_some(), is_sense(bytes), "{bytes:?}");
    let Some(header) = header else { return };
    let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let kind = |gso: u8| match gso {
        1 => GsoKind::TcpV4,
        4 => GsoKind::TcpV6,
        _ => GsoKind::Udp,
    };
    match header.gso {
        None => assert_eq!(bytes[1] & 0x7f, 0),
        Some(gso) => assert_eq!((gso.kind, gso.size), (kind(bytes[1] & 0x7f), field(4))),
    }
    let wanted = Partial { start: field(6), offset: field(8) };
    assert_eq!(header.partial, (bytes[0] & 1 != 0).then_some(wanted));
    assert_eq!(VnetHeader::decode(header.encode(54)), Some(header));
    if let Some(partial) = header.partial {
        completed(packet, partial);
    }
}

/// None, TCP in IPv4 and IPv6, UDP; with or without the mark for ECN; large ones have a size.
fn is_sense(bytes: &[u8; VNET_LEN]) -> bool {
    match bytes[1] & 0x7f {
        0 => true,
        1 | 4 | 5 => bytes[4..6] != [0, 0],
        _ => false,
    }
}

/// Completing writes the checksum of what follows `start` and changes nothing else, or nothing at all.
fn completed(packet: &[u8], partial: Partial) {
    let mut completed = packet.to_vec();
    let (start, at) = (usize::from(partial.start), usize::from(partial.offset));
    let fits = start >= 20 && start + at + 2 <= packet.len();
    assert_eq!(checksum::complete(&mut completed, partial), fits);
    let mut wanted = packet.to_vec();
    if fits {
        let sum = naive::checksum(&packet[start..]);
        // Where UDP has its checksum, 0 would say that there is none.
        let sum = if sum == 0 && at == 6 { 0xffff } else { sum };
        wanted[start + at..start + at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    assert_eq!(completed, wanted);
}
