//! Ethernet frames as a packet socket brings them, and what a router may make of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;
use crate::checksum;

/// The header of the kernel's offloads before each frame (`struct virtio_net_hdr`).
pub(super) const VNET_LEN: usize = 10;
/// Bytes before the IP packet.
const ETHERNET: usize = 14;
const UDP: u8 = 17;
/// Of the offload header: the checksum is for the card to complete.
const NEEDS_CHECKSUM: u8 = 1;
/// Of the offload header: a train of datagrams.
const GSO_UDP_L4: u8 = 5;
/// Bytes of a packet that an error quotes.
const QUOTED: usize = 256;

/// One frame, perhaps a large one.
pub(super) struct Frame<'a> {
    /// What the card was meant to do: flags, kind, size of each datagram's payload.
    flags: u8,
    gso_kind: u8,
    gso_size: usize,
    checksum_start: usize,
    checksum_offset: usize,
    /// From the Ethernet header on.
    bytes: &'a [u8],
    destination: IpAddr,
}

impl<'a> Frame<'a> {
    /// Reads what a packet socket brought; nothing for what is no IP.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, bytes) = bytes.split_first_chunk::<VNET_LEN>()?;
        let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let destination = match u16::from_be_bytes([*bytes.get(12)?, *bytes.get(13)?]) {
            0x0800 => Ipv4Addr::from(*bytes.get(ETHERNET + 16..)?.first_chunk::<4>()?).into(),
            0x86dd => Ipv6Addr::from(*bytes.get(ETHERNET + 24..)?.first_chunk::<16>()?).into(),
            _ => return None,
        };
        Some(Self {
            flags: header[0],
            gso_kind: header[1],
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
            bytes,
            destination,
        })
    }

    pub(super) fn destination(&self) -> IpAddr {
        self.destination
    }

    pub(super) fn destination_mac(&self) -> Mac {
        *self.bytes.first_chunk().unwrap_or(&[0; 6])
    }

    /// The frames that a network card would have put on the wire.
    pub(super) fn datagrams(&self) -> Vec<Vec<u8>> {
        if self.gso_kind != 0 {
            return match self.gso_kind {
                GSO_UDP_L4 => self.cut(),
                // Nothing else goes between a SaP and an entity.
                _ => Vec::new(),
            };
        }
        let mut whole = self.bytes.to_vec();
        if self.flags & NEEDS_CHECKSUM != 0 {
            let at = self.checksum_start + self.checksum_offset;
            let sum = whole.get(self.checksum_start..).map(checksum::internet);
            if let (Some(sum), Some(field)) = (sum, whole.get_mut(at..at + 2)) {
                field.copy_from_slice(&nonzero(sum).to_be_bytes());
            }
        }
        vec![whole]
    }

    fn cut(&self) -> Vec<Vec<u8>> {
        let l4 = match self.destination {
            IpAddr::V4(_) => ETHERNET + 20,
            IpAddr::V6(_) => ETHERNET + 40,
        };
        let Some((headers, payload)) = self.bytes.split_at_checked(l4 + 8) else {
            return Vec::new();
        };
        payload
            .chunks(self.gso_size.max(1))
            .map(|piece| {
                let mut datagram = [headers, piece].concat();
                let length = u16::try_from(8 + piece.len()).unwrap_or(u16::MAX);
                datagram[l4 + 4..l4 + 6].copy_from_slice(&length.to_be_bytes());
                seal(&mut datagram, l4, UDP);
                datagram
            })
            .collect()
    }
}

/// Writes lengths and checksums of an IP packet in a frame: of its header and, at `l4`, of UDP or
/// ICMP.
fn seal(datagram: &mut [u8], l4: usize, protocol: u8) {
    let total = datagram.len() - ETHERNET;
    let (source, destination);
    if l4 == ETHERNET + 20 {
        let length = u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes();
        datagram[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length);
        datagram[ETHERNET + 10..ETHERNET + 12].fill(0);
        let sum = checksum::internet(&datagram[ETHERNET..l4]);
        datagram[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        let address = |at: usize| {
            let octets = datagram[ETHERNET + at..].first_chunk::<4>();
            IpAddr::from(octets.map_or(Ipv4Addr::UNSPECIFIED, |octets| Ipv4Addr::from(*octets)))
        };
        (source, destination) = (address(12), address(16));
    } else {
        let length = u16::try_from(total - 40).unwrap_or(u16::MAX).to_be_bytes();
        datagram[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length);
        let address = |at: usize| {
            let octets = datagram[ETHERNET + at..].first_chunk::<16>();
            IpAddr::from(octets.map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from(*octets)))
        };
        (source, destination) = (address(8), address(24));
    }
    let field = if protocol == UDP { l4 + 6 } else { l4 + 2 };
    datagram[field..field + 2].fill(0);
    // ICMP of IPv4 has no pseudo header.
    let sum = if protocol == 1 {
        checksum::internet(&datagram[l4..])
    } else {
        nonzero(checksum::l4(source, destination, protocol, &datagram[l4..]))
    };
    datagram[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// 0 would mean "no checksum" (RFC 768).
fn nonzero(sum: u16) -> u16 {
    if sum == 0 { u16::MAX } else { sum }
}

/// The length of the IP packet in a frame.
pub(super) fn ip_len(datagram: &[u8]) -> usize {
    datagram.len().saturating_sub(ETHERNET)
}

/// Whether the packet in a frame is IPv4.
pub(super) fn is_v4(datagram: &[u8]) -> bool {
    datagram.get(ETHERNET).is_some_and(|byte| byte >> 4 == 4)
}

/// Addresses a frame to the next link.
pub(super) fn address(datagram: &mut [u8], to: Mac, from: Mac) {
    if let Some(addresses) = datagram.get_mut(..12) {
        addresses[..6].copy_from_slice(&to);
        addresses[6..].copy_from_slice(&from);
    }
}

/// The frame that tells a packet's sender that it is too large.
pub(super) fn too_big(datagram: &[u8], own: IpAddr, mtu: usize) -> Option<Vec<u8>> {
    let packet = datagram.get(ETHERNET..)?;
    let quoted = packet.get(..packet.len().min(QUOTED))?;
    let mut answer = [datagram.get(6..12)?, datagram.get(..6)?, datagram.get(12..14)?].concat();
    match own {
        IpAddr::V4(own) => {
            answer.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0]);
            answer.extend(own.octets());
            answer.extend(packet.get(12..16)?);
            answer.extend([3, 4, 0, 0, 0, 0]);
            answer.extend(u16::try_from(mtu).ok()?.to_be_bytes());
            answer.extend(quoted);
            seal(&mut answer, ETHERNET + 20, 1);
        }
        IpAddr::V6(own) => {
            answer.extend([0x60, 0, 0, 0, 0, 0, 58, 64]);
            answer.extend(own.octets());
            answer.extend(packet.get(8..24)?);
            answer.extend([2, 0, 0, 0]);
            answer.extend(u32::try_from(mtu).ok()?.to_be_bytes());
            answer.extend(quoted);
            seal(&mut answer, ETHERNET + 40, 58);
        }
    }
    Some(answer)
}
