//! One large packet into segments. What they carry stays where it is; each gets headers of its own.

use super::checksum::Sum;
use super::layout::{L4, Layout};
use super::vnet::{Gso, GsoKind};
use super::{HEAD_MAX, Head, get, put};
use crate::types::DropReason;
use crate::wire::gue;

const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;
/// Where TCP's flags stand.
const FLAGS_AT: usize = 13;

/// The segments of one large packet, in order.
#[derive(Clone, Debug)]
pub struct Split<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    prefix: [u8; gue::HEADER_LEN],
    layout: Layout,
    size: usize,
    /// Payload bytes before the next segment; past the end when there is none.
    at: usize,
    index: u16,
}

impl<'a> Split<'a> {
    /// Cuts `packet`, which is as long as its IP header says, as `gso` asks; `prefix` goes before
    /// every segment.
    ///
    /// # Errors
    ///
    /// [`DropReason::InnerLength`] when `gso` does not fit the packet, or its headers are longer than
    /// any host makes them.
    pub fn new(
        prefix: [u8; gue::HEADER_LEN],
        packet: &'a [u8],
        gso: Gso,
    ) -> Result<Self, DropReason> {
        let layout = Layout::read(packet).ok_or(DropReason::InnerLength)?;
        let fits = match gso.kind {
            GsoKind::TcpV4 => layout.l4 == L4::Tcp && layout.is_v4,
            GsoKind::TcpV6 => layout.l4 == L4::Tcp && !layout.is_v4,
            GsoKind::Udp => layout.l4 == L4::Udp,
        };
        let (headers, payload) =
            packet.split_at_checked(layout.payload_start).ok_or(DropReason::InnerLength)?;
        if !fits || gso.size == 0 || prefix.len() + headers.len() > HEAD_MAX {
            return Err(DropReason::InnerLength);
        }
        let size = usize::from(gso.size);
        Ok(Self { headers, payload, prefix, layout, size, at: 0, index: 0 })
    }

    /// Cuts `packet`, of whatever kind it is, into segments of `size` bytes of payload.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn of_size(
        prefix: [u8; gue::HEADER_LEN],
        packet: &'a [u8],
        size: u16,
    ) -> Result<Self, DropReason> {
        let layout = Layout::read(packet).ok_or(DropReason::InnerLength)?;
        Self::new(prefix, packet, Gso { kind: GsoKind::of(&layout), size })
    }

    /// The headers of the segment that carries `payload`.
    fn head(&self, payload: &[u8], is_last: bool) -> Head {
        let mut head = Head::EMPTY;
        // Both fit: `new` has seen to that.
        head.push(&self.prefix);
        head.push(self.headers);
        if let Some(packet) = head.as_mut_slice().get_mut(self.prefix.len()..) {
            self.fix_ip(packet, payload.len());
            self.fix_l4(packet, payload, is_last);
        }
        head
    }

    fn fix_ip(&self, packet: &mut [u8], payload_len: usize) {
        let len = packet.len() + payload_len;
        if !self.layout.is_v4 {
            put(packet, 4, (len.saturating_sub(40) as u16).to_be_bytes());
            return;
        }
        let id = get::<2>(packet, 4).map_or(0, u16::from_be_bytes);
        put(packet, 2, (len as u16).to_be_bytes());
        put(packet, 4, id.wrapping_add(self.index).to_be_bytes());
        put(packet, 10, [0, 0]);
        let sum = Sum::default().add(packet.get(..self.layout.l4_start).unwrap_or(&[]));
        put(packet, 10, sum.checksum().to_be_bytes());
    }

    fn fix_l4(&self, packet: &mut [u8], payload: &[u8], is_last: bool) {
        let Some(l4) = packet.get_mut(self.layout.l4_start..) else { return };
        let len = l4.len() + payload.len();
        match self.layout.l4 {
            L4::Tcp => {
                let sequence = get::<4>(l4, 4).map_or(0, u32::from_be_bytes);
                put(l4, 4, sequence.wrapping_add(self.at as u32).to_be_bytes());
                if let Some(flags) = l4.get_mut(FLAGS_AT) {
                    *flags &= if is_last { 0xff } else { !FIN_PSH };
                    *flags &= if self.at == 0 { 0xff } else { !CWR };
                }
            }
            L4::Udp => put(l4, 4, (len as u16).to_be_bytes()),
        }
        let at = self.layout.l4.checksum_offset();
        put(l4, at, [0, 0]);
        // Headers are of even length, so that the payload's words lie as they are.
        let checksum = self.layout.pseudo(len).add(l4).add(payload).checksum();
        let checksum = if checksum == 0 && self.layout.l4 == L4::Udp { 0xffff } else { checksum };
        put(l4, at, checksum.to_be_bytes());
    }
}

impl<'a> Iterator for Split<'a> {
    type Item = (Head, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // A large packet without payload is one segment.
        let is_first = self.index == 0 && self.at == 0;
        let rest = self.payload.get(self.at..).filter(|rest| is_first || !rest.is_empty())?;
        let (payload, after) = rest.split_at_checked(self.size).unwrap_or((rest, &[]));
        let head = self.head(payload, after.is_empty());
        self.at += payload.len().max(1);
        self.index = self.index.wrapping_add(1);
        Some((head, payload))
    }
}
