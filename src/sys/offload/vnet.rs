//! The header that a TUN device puts before each packet (`struct virtio_net_hdr`, 10 bytes, native
//! byte order).
//!
//! ```text
//! flags(1) gso_type(1) hdr_len(2) gso_size(2) csum_start(2) csum_offset(2)
//! ```

use super::layout::{L4, Layout};

/// Its length in bytes.
pub const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// With a `gso_type`: the first segment bears CWR. We read it off the segment itself.
const GSO_ECN: u8 = 0x80;

/// What kind of large packet follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP in IPv4.
    TcpV4,
    /// TCP in IPv6.
    TcpV6,
    /// UDP in either.
    Udp,
}

impl GsoKind {
    /// The kind of a packet.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        match (layout.l4, layout.is_v4) {
            (L4::Tcp, true) => Self::TcpV4,
            (L4::Tcp, false) => Self::TcpV6,
            (L4::Udp, _) => Self::Udp,
        }
    }
}

/// A large packet: many segments under one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Of what kind.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last; never 0.
    pub size: u16,
}

/// A checksum that is half done: its field holds the sum of the pseudo header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where summing starts.
    pub start: u16,
    /// Where the field is, counted from there.
    pub offset: u16,
}

/// The header as far as we believe it. `hdr_len` is left out on purpose: forwarded packets give
/// whatever the kernel had in one piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Set when the packet is large.
    pub gso: Option<Gso>,
    /// Set when the checksum is half done.
    pub partial: Option<Partial>,
}

impl VnetHeader {
    /// A whole packet with whole checksums.
    pub const PLAIN: Self = Self { gso: None, partial: None };

    /// Reads the header; `None` for a kind of large packet that was never asked for.
    #[must_use]
    pub fn decode(bytes: [u8; VNET_LEN]) -> Option<Self> {
        let [flags, kind, _, _, s0, s1, c0, c1, o0, o1] = bytes;
        let kind = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return None,
        };
        let size = u16::from_ne_bytes([s0, s1]);
        let gso = match kind {
            Some(_) if size == 0 => return None,
            kind => kind.map(|kind| Gso { kind, size }),
        };
        let partial = (flags & NEEDS_CSUM != 0).then(|| Partial {
            start: u16::from_ne_bytes([c0, c1]),
            offset: u16::from_ne_bytes([o0, o1]),
        });
        Some(Self { gso, partial })
    }

    /// Writes the header; `header_len` is what stands before the payload of a large packet.
    #[must_use]
    pub fn encode(&self, header_len: u16) -> [u8; VNET_LEN] {
        let kind = match self.gso.map(|gso| gso.kind) {
            None => GSO_NONE,
            Some(GsoKind::TcpV4) => GSO_TCPV4,
            Some(GsoKind::TcpV6) => GSO_TCPV6,
            Some(GsoKind::Udp) => GSO_UDP_L4,
        };
        let flags = if self.partial.is_some() { NEEDS_CSUM } else { 0 };
        let Partial { start, offset } = self.partial.unwrap_or(Partial { start: 0, offset: 0 });
        let [h0, h1] = if self.gso.is_some() { header_len } else { 0 }.to_ne_bytes();
        let [s0, s1] = self.gso.map_or(0, |gso| gso.size).to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}
