//! Where IP ends and TCP or UDP begins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{self, Sum};
use super::get;

const V6_LEN: usize = 40;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// What can be cut and joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl L4 {
    /// Its protocol number.
    #[must_use]
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    fn from_protocol(protocol: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|l4| l4.protocol() == protocol)
    }

    /// Where in its header the checksum stands.
    #[must_use]
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// The headers of a whole TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// IPv4, or else IPv6.
    pub is_v4: bool,
    /// TCP or UDP.
    pub l4: L4,
    /// Where TCP or UDP starts.
    pub l4_start: usize,
    /// Where their payload starts.
    pub payload_start: usize,
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
}

impl Layout {
    /// Reads the headers of `packet`, which is exactly as long as its IP header says. `None` for
    /// anything but a whole (not fragmented) TCP or UDP packet with all of its headers.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        let (is_v4, protocol, l4_start, source, destination) = match packet.first()? >> 4 {
            4 => {
                let &[first, _, l0, l1, _, _, o0, o1, _, protocol, _, _, ref addresses @ ..] =
                    packet.first_chunk::<20>()?;
                let [s0, s1, s2, s3, d0, d1, d2, d3] = *addresses;
                let is_fragment = u16::from_be_bytes([o0, o1]) & 0x3fff != 0;
                let header_len = usize::from(first & 0xf) * 4;
                if is_fragment
                    || header_len < 20
                    || usize::from(u16::from_be_bytes([l0, l1])) != packet.len()
                {
                    return None;
                }
                let source = IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3));
                let destination = IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3));
                (true, protocol, header_len, source, destination)
            }
            6 => {
                let len = usize::from(u16::from_be_bytes(get::<2>(packet, 4)?));
                if len + V6_LEN != packet.len() {
                    return None;
                }
                let (mut protocol, mut start) = (*packet.get(6)?, V6_LEN);
                while matches!(protocol, HOP_BY_HOP | DESTINATION_OPTIONS) {
                    let [next, words] = get::<2>(packet, start)?;
                    protocol = next;
                    start += (usize::from(words) + 1) * 8;
                }
                let source = IpAddr::V6(Ipv6Addr::from(get::<16>(packet, 8)?));
                let destination = IpAddr::V6(Ipv6Addr::from(get::<16>(packet, 24)?));
                (false, protocol, start, source, destination)
            }
            _ => return None,
        };
        let l4 = L4::from_protocol(protocol)?;
        let header_len = match l4 {
            L4::Tcp => usize::from(packet.get(l4_start + 12)? >> 4) * 4,
            L4::Udp => 8,
        };
        let payload_start = l4_start + header_len;
        let least = match l4 {
            L4::Tcp => 20,
            L4::Udp => 8,
        };
        if header_len < least || payload_start > packet.len() {
            return None;
        }
        Some(Self { is_v4, l4, l4_start, payload_start, source, destination })
    }

    /// The sum of the pseudo header for `len` bytes of TCP or UDP.
    #[must_use]
    pub fn pseudo(&self, len: usize) -> Sum {
        checksum::pseudo(self.source, self.destination, self.l4, len)
    }
}
