//! What hosts leave to their network cards: cutting large packets, joining small ones, checksums.
//!
//! Pure: bytes and numbers in, bytes and numbers out. Whatever a header claims is checked against the
//! packet itself before it is used (threat T26); nothing in here can panic.
//!
//! | module | what |
//! |---|---|
//! | [`vnet`] | the header that a TUN device puts before each packet |
//! | [`checksum`] | the Internet checksum, and completing one that the host left half done |
//! | [`layout`] | where IP ends and TCP or UDP begins |
//! | [`split`] | one large packet into segments, without copying what they carry |
//! | [`coalesce`] | runs of packets of one flow into one large packet, without copying either |

pub mod checksum;
pub mod coalesce;
pub mod layout;
pub mod split;
pub mod vnet;

#[cfg(test)]
mod tests;

use crate::wire::gue;

/// Room for the headers of one segment: GUE, IP with options, TCP with options.
pub const HEAD_MAX: usize = 128;

/// The start of a datagram that does not lie where the rest of it does.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl Head {
    /// No bytes: the datagram lies in one place.
    pub const EMPTY: Self = Self { bytes: [0; HEAD_MAX], len: 0 };

    /// A GUE header.
    #[must_use]
    pub fn gue(header: [u8; gue::HEADER_LEN]) -> Self {
        let mut this = Self::EMPTY;
        this.push(&header);
        this
    }

    /// The bytes in it.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..usize::from(self.len)).unwrap_or(&mut [])
    }

    /// Adds `bytes`; `false`, and nothing is added, when there is no room.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let start = usize::from(self.len);
        let Some(room) = self.bytes.get_mut(start..start + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        // At most HEAD_MAX.
        self.len = (start + bytes.len()) as u8;
        true
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({} bytes)", self.len)
    }
}

/// Overwrites the bytes at `at`; outside of `bytes` nothing happens.
pub(in crate::sys) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<N>) {
        *place = value;
    }
}

/// The bytes at `at`.
pub(in crate::sys) fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}
