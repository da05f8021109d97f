//! The buffers that hallways work on: allocated once per thread, filled and emptied batch by batch.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;

use super::cmsg::Control;
use super::offload::vnet::{VNET_LEN, VnetHeader};
use super::sockaddr::RawAddress;
use crate::wire::gue;

/// Packets of a TUN in one batch. Larger batches gain nothing and cool the cache.
pub const BATCH: usize = 64;

/// Buffers from the UDP socket in one batch; each may hold a train of datagrams.
pub const SLOTS: usize = 32;

/// Buffers that are asked for while they come full: more would push each other out of the cache.
const SLOTS_WHEN_FULL: usize = 8;

/// From how many bytes on a batch counts as full.
const FULL: usize = 128 << 10;

/// Room for whatever one read can bring, in bytes.
const BUFFER_LEN: usize = 1 << 16;

/// From the start of one buffer to the next. Not a power of two: else the starts of all buffers
/// would share a few lines of the cache.
const STRIDE: usize = BUFFER_LEN + 320;

/// Bytes of packets from a TUN after which no more are read.
const ENOUGH: usize = 1 << 16;

/// The largest MTU that an overlay device may have, in bytes: a wrapped packet in a jumbo frame.
pub const OVERLAY_MTU_MAX: usize = 9_216 - gue::HEADER_LEN;

/// What the kernel said of one buffer of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The outer source, IPv4-mapped addresses as plain IPv4.
    pub from: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// The outer TOS or traffic class byte: DSCP and, in the two low bits, ECN.
    pub tos: u8,
    /// The outer TTL or hop limit as it arrived; 0 when the kernel did not say.
    pub ttl: u8,
    /// The length of each datagram but the last, when there are several; 0 when there is one.
    pub segment: usize,
    /// Whether there was more than fits.
    pub is_truncated: bool,
}

impl Meta {
    pub(crate) const EMPTY: Self = Self {
        from: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        len: 0,
        tos: 0,
        ttl: 0,
        segment: 0,
        is_truncated: false,
    };
}

/// Up to [`SLOTS`] buffers of datagrams with their [`Meta`].
pub struct DatagramBatch {
    slab: Box<[u8]>,
    metas: Vec<Meta>,
    pub(super) addresses: Box<[RawAddress]>,
    pub(super) controls: Box<[Control]>,
    wanted: usize,
}

impl DatagramBatch {
    /// An empty batch; the only allocation of its life.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slab: touched(SLOTS * STRIDE),
            metas: Vec::with_capacity(SLOTS),
            addresses: vec![RawAddress::EMPTY; SLOTS].into_boxed_slice(),
            controls: vec![Control::EMPTY; SLOTS].into_boxed_slice(),
            wanted: SLOTS,
        }
    }

    /// How many buffers are filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.metas.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// The buffers in the order of their arrival.
    pub fn iter(&self) -> impl Iterator<Item = (&Meta, &[u8])> {
        self.metas.iter().zip(self.slab.chunks_exact(STRIDE)).map(|(meta, buffer)| {
            let (bytes, _) = buffer.split_at(meta.len.min(BUFFER_LEN));
            (meta, bytes)
        })
    }

    /// What the kernel said of buffer `index`, and where it lies in [`Self::bytes`].
    #[must_use]
    pub fn slot(&self, index: usize) -> Option<(Meta, Range<usize>)> {
        let meta = *self.metas.get(index)?;
        let start = index * STRIDE;
        Some((meta, start..start + meta.len.min(BUFFER_LEN)))
    }

    /// All buffers, back to back.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.slab
    }

    /// All buffers, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.slab
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.metas.clear();
    }

    /// Adds a buffer by copying it; `false` when the batch is full. For tests and for datagrams that
    /// do not come from the kernel.
    pub fn push(&mut self, meta: Meta, bytes: &[u8]) -> bool {
        let Some(buffer) = self.slab.chunks_exact_mut(STRIDE).nth(self.metas.len()) else {
            return false;
        };
        let (bytes, is_truncated) = match bytes.split_at_checked(BUFFER_LEN) {
            Some((bytes, rest)) => (bytes, !rest.is_empty()),
            None => (bytes, false),
        };
        for (to, from) in buffer.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.metas.push(Meta { len: bytes.len(), is_truncated, ..meta });
        true
    }

    /// How many buffers the next call should ask for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Everything that the kernel may write to: buffers, addresses, ancillary data.
    pub(super) fn parts_mut(
        &mut self,
    ) -> impl Iterator<Item = (&mut [u8], &mut RawAddress, &mut Control)> {
        let buffers = self.slab.chunks_exact_mut(STRIDE);
        let parts = buffers.zip(self.addresses.iter_mut()).zip(self.controls.iter_mut());
        parts.map(|((buffer, address), control)| {
            let (buffer, _) = buffer.split_at_mut(BUFFER_LEN);
            (buffer, address, control)
        })
    }

    /// Says what is in the next buffer. More than [`SLOTS`] are ignored, so that nothing grows.
    pub(super) fn fill(&mut self, meta: Meta) {
        if self.metas.len() < SLOTS {
            self.metas.push(meta);
        }
    }

    /// Everything is filled: how much to ask for next depends on how much it was.
    pub(super) fn filled(&mut self) {
        let bytes: usize = self.metas.iter().map(|meta| meta.len).sum();
        self.wanted = if bytes < FULL { SLOTS } else { SLOTS_WHEN_FULL };
    }
}

impl Default for DatagramBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for DatagramBatch {
    /// The buffers' facts; never their bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.metas).finish()
    }
}

/// Up to [`BATCH`] packets from a TUN, back to back. A large packet is one of them.
pub struct PacketBatch {
    slab: Box<[u8]>,
    packets: Vec<(Range<usize>, Option<VnetHeader>)>,
    at: usize,
}

impl PacketBatch {
    /// An empty batch; the only allocation of its life.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slab: touched(ENOUGH + BUFFER_LEN + VNET_LEN),
            packets: Vec::with_capacity(BATCH),
            at: 0,
        }
    }

    /// How many packets are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets in the order of their arrival; without a header when it made no sense.
    pub fn iter(&self) -> impl Iterator<Item = (Option<VnetHeader>, &[u8])> {
        self.packets
            .iter()
            .map(|(range, header)| (*header, self.slab.get(range.clone()).unwrap_or(&[])))
    }

    /// Packet `index`, to be changed in place.
    pub fn packet_mut(&mut self, index: usize) -> Option<(Option<VnetHeader>, &mut [u8])> {
        let (range, header) = self.packets.get(index)?;
        Some((*header, self.slab.get_mut(range.clone())?))
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.at = 0;
    }

    /// Adds a packet by copying it; `false` when the batch is full. For tests and for packets that do
    /// not come from the kernel.
    pub fn push(&mut self, header: Option<VnetHeader>, packet: &[u8]) -> bool {
        let Some(room) = self.room().and_then(|room| room.get_mut(..packet.len())) else {
            return false;
        };
        for (to, from) in room.iter_mut().zip(packet) {
            *to = *from;
        }
        self.fill(packet.len(), 0, header);
        true
    }

    /// Where the next packet goes; `None` when that is enough for one batch.
    pub(super) fn room(&mut self) -> Option<&mut [u8]> {
        if self.packets.len() == BATCH || self.at >= ENOUGH {
            return None;
        }
        self.slab.get_mut(self.at..self.at + BUFFER_LEN + VNET_LEN)
    }

    /// Says what was written there: `len` bytes, of which `skip` stand before the packet.
    pub(super) fn fill(&mut self, len: usize, skip: usize, header: Option<VnetHeader>) {
        if self.packets.len() < BATCH {
            self.packets.push((self.at + skip.min(len)..self.at + len, header));
            self.at += len.next_multiple_of(64);
        }
    }
}

/// A buffer whose pages are there from the start, so that the first load neither waits for them nor
/// finds that there are none.
fn touched(len: usize) -> Box<[u8]> {
    // Not of zeros: those are pages that the kernel only promises.
    vec![0xff; len].into_boxed_slice()
}

impl Default for PacketBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for PacketBatch {
    /// The packets' facts; never their bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.packets).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_sixty_four_packets_and_refuses_the_next() {
        let mut batch = PacketBatch::new();
        for number in 0..BATCH {
            assert!(batch.push(None, &[u8::try_from(number).unwrap()]));
        }

        assert!(!batch.push(None, b"one too many"));
        assert_eq!(batch.len(), BATCH);
        assert!(batch.iter().enumerate().all(|(n, (_, packet))| packet == [n as u8]));
    }

    #[test]
    fn large_packets_end_a_batch_early() {
        let mut batch = PacketBatch::new();
        assert!(batch.push(None, &[1; 100]));
        assert!(batch.push(None, &[2; 65_535]));

        assert!(!batch.push(None, &[3; 1]));
        assert_eq!(batch.iter().map(|(_, packet)| packet.len()).collect::<Vec<_>>(), [100, 65_535]);
        batch.clear();
        assert!(batch.push(None, &[3; 1]));
    }

    #[test]
    fn a_buffer_that_is_too_small_is_marked() {
        let mut batch = DatagramBatch::new();
        batch.push(Meta::EMPTY, &[1; BUFFER_LEN]);
        batch.push(Meta::EMPTY, &[1; BUFFER_LEN + 1]);

        let marks: Vec<_> = batch.iter().map(|(meta, _)| meta.is_truncated).collect();
        assert_eq!(marks, [false, true]);
        while batch.push(Meta::EMPTY, b"x") {}
        assert_eq!(batch.len(), SLOTS);
    }

    #[test]
    fn full_buffers_are_asked_for_in_smaller_numbers() {
        let mut batch = DatagramBatch::new();
        while batch.push(Meta::EMPTY, &[0; 60_000]) {}
        batch.filled();
        assert_eq!(batch.wanted(), SLOTS_WHEN_FULL);

        batch.clear();
        batch.push(Meta::EMPTY, &[0; 60_000]);
        batch.filled();
        assert_eq!(batch.wanted(), SLOTS);
    }
}
