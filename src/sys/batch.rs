//! The buffers that hallways work on: allocated once per thread, filled and emptied batch by batch.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::wire::gue;

/// How many packets one batch holds. Larger batches gain nothing and cool the cache.
pub const BATCH: usize = 64;

/// Room for one packet, in bytes: a jumbo frame. What is longer arrives truncated and is dropped.
pub const BUFFER_LEN: usize = 9_216;

/// The largest MTU that an overlay device may have, so that a wrapped packet fits its buffer.
pub const OVERLAY_MTU_MAX: usize = BUFFER_LEN - gue::HEADER_LEN;

/// What the kernel said of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The outer source, IPv4-mapped addresses as plain IPv4. `0.0.0.0:0` for packets from a TUN.
    pub from: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// The outer TOS or traffic class byte: DSCP and, in the two low bits, ECN.
    pub tos: u8,
    /// The outer TTL or hop limit as it arrived; 0 when the kernel did not say.
    pub ttl: u8,
    /// Whether the packet was longer than its buffer.
    pub is_truncated: bool,
}

impl Meta {
    pub(crate) const EMPTY: Self = Self {
        from: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        len: 0,
        tos: 0,
        ttl: 0,
        is_truncated: false,
    };
}

/// Up to [`BATCH`] packets with their [`Meta`].
pub struct PacketBatch {
    /// [`BATCH`] buffers of [`BUFFER_LEN`] bytes, back to back.
    slab: Box<[u8]>,
    metas: Vec<Meta>,
}

impl PacketBatch {
    /// An empty batch; the only allocation of its life.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slab: vec![0; BATCH * BUFFER_LEN].into_boxed_slice(),
            metas: Vec::with_capacity(BATCH),
        }
    }

    /// How many packets are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.metas.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// The packets in the order of their arrival.
    pub fn iter(&self) -> impl Iterator<Item = (&Meta, &[u8])> {
        self.metas.iter().zip(self.slab.chunks_exact(BUFFER_LEN)).map(|(meta, buffer)| {
            let (packet, _) = buffer.split_at(meta.len.min(BUFFER_LEN));
            (meta, packet)
        })
    }

    /// The packets, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Meta, &mut [u8])> {
        self.metas.iter().zip(self.slab.chunks_exact_mut(BUFFER_LEN)).map(|(meta, buffer)| {
            let (packet, _) = buffer.split_at_mut(meta.len.min(BUFFER_LEN));
            (meta, packet)
        })
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.metas.clear();
    }

    /// Adds a packet by copying it; `false` when the batch is full. For tests and for packets that
    /// do not come from the kernel.
    pub fn push(&mut self, from: SocketAddr, tos: u8, ttl: u8, packet: &[u8]) -> bool {
        let Some(buffer) = self.slab.chunks_exact_mut(BUFFER_LEN).nth(self.metas.len()) else {
            return false;
        };
        let len = packet.len().min(BUFFER_LEN);
        for (to, from) in buffer.iter_mut().zip(packet) {
            *to = *from;
        }
        self.metas.push(Meta { from, len, tos, ttl, is_truncated: packet.len() > BUFFER_LEN });
        true
    }

    /// All buffers, filled or not; [`Self::fill`] says afterwards what is in them.
    pub(super) fn buffers_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.slab.chunks_exact_mut(BUFFER_LEN)
    }

    /// Says what is in the next buffer. More than [`BATCH`] are ignored, so that nothing grows.
    pub(super) fn fill(&mut self, meta: Meta) {
        if self.metas.len() < BATCH {
            self.metas.push(meta);
        }
    }
}

impl Default for PacketBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for PacketBatch {
    /// The packets' facts; never their bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.metas).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_sixty_four_packets_and_refuses_the_next() {
        let mut batch = PacketBatch::new();
        for number in 0..BATCH {
            assert!(batch.push(Meta::EMPTY.from, 0, 64, &[u8::try_from(number).unwrap()]));
        }

        assert!(!batch.push(Meta::EMPTY.from, 0, 64, b"one too many"));
        assert_eq!(batch.len(), BATCH);
        assert!(batch.iter().enumerate().all(|(n, (_, packet))| packet == [n as u8]));
    }

    #[test]
    fn a_packet_longer_than_its_buffer_is_marked() {
        let mut batch = PacketBatch::new();
        batch.push(Meta::EMPTY.from, 0, 64, &[1; BUFFER_LEN]);
        batch.push(Meta::EMPTY.from, 0, 64, &[1; BUFFER_LEN + 1]);

        let marks: Vec<_> = batch.iter().map(|(meta, _)| meta.is_truncated).collect();
        assert_eq!(marks, [false, true]);
    }
}
