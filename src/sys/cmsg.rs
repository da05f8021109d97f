//! Ancillary data of one datagram: TOS, TTL, the length of segments, errors, and descriptors; built and
//! read without pointers.
//!
//! ```text
//! length(usize) level(4) type(4) data, padded to the size of usize
//! ```

use super::offload::{get, put};

/// Room for the three messages that we send and the three that we ask for, with reserve.
const CAPACITY: usize = 128;
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER);
const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());
const _: () = assert!(3 * (HEADER + WORD) <= CAPACITY);

/// What ancillary data say of one datagram; 0 for what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ancillary {
    pub(super) tos: u8,
    pub(super) ttl: u8,
    /// The length of each datagram but the last, where there are several.
    pub(super) segment: usize,
}

/// What the error queue says of a datagram that was too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Excess {
    /// What would fit, outer headers included, in bytes.
    pub(super) mtu: u16,
    /// Whether the kernel says so itself, and no ICMP message.
    pub(super) is_local: bool,
}

/// A buffer for ancillary data.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CAPACITY]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; CAPACITY]);

    /// The size of the buffer in bytes.
    pub(super) const CAPACITY: usize = CAPACITY;

    /// Messages that set `tos` and `ttl`, and `segment` where it is not 0, of a packet that leaves as IPv6 (`is_v6`) or IPv4; returned
    /// with their length. `is_v6` is the packet's family: a dual-stack socket takes IPv4's messages
    /// for mapped addresses.
    pub(super) fn encode(is_v6: bool, tos: u8, ttl: u8, segment: u16) -> (Self, usize) {
        let (level, tos_type, ttl_type) = if is_v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT)
        } else {
            (libc::IPPROTO_IP, libc::IP_TOS, libc::IP_TTL)
        };
        let mut this = Self::EMPTY;
        let space = HEADER + WORD;
        this.put(0, level, tos_type, i32::from(tos).to_ne_bytes());
        this.put(space, level, ttl_type, i32::from(ttl).to_ne_bytes());
        if segment == 0 {
            return (this, 2 * space);
        }
        this.put(2 * space, libc::SOL_UDP, libc::UDP_SEGMENT, segment.to_ne_bytes());
        (this, 3 * space)
    }

    /// A message that carries a descriptor, and its length.
    pub(super) fn encode_descriptor(descriptor: i32) -> (Self, usize) {
        let mut this = Self::EMPTY;
        this.put(0, libc::SOL_SOCKET, libc::SCM_RIGHTS, descriptor.to_ne_bytes());
        (this, HEADER + size_of::<i32>())
    }

    /// The descriptors that the first `len` bytes carry.
    pub(super) fn decode_descriptors(&self, len: usize) -> impl Iterator<Item = i32> {
        let is_rights = |level, kind| (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        let rights = self.messages(len).filter(move |&(level, kind, _)| is_rights(level, kind));
        let chunks = rights.flat_map(|(_, _, data)| data.as_chunks::<4>().0);
        chunks.map(|bytes| i32::from_ne_bytes(*bytes))
    }

    fn put<const N: usize>(&mut self, at: usize, level: i32, kind: i32, value: [u8; N]) {
        let Self(bytes) = self;
        put(bytes, at, (HEADER + N).to_ne_bytes());
        put(bytes, at + WORD, level.to_ne_bytes());
        put(bytes, at + WORD + 4, kind.to_ne_bytes());
        put(bytes, at + HEADER, value);
    }

    /// The messages in the first `len` bytes: level, type and data of each.
    fn messages(&self, len: usize) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let mut rest = self.0.get(..len).unwrap_or(&self.0);
        std::iter::from_fn(move || {
            let message_len = usize::from_ne_bytes(get(rest, 0)?);
            let level = i32::from_ne_bytes(get(rest, WORD)?);
            let kind = i32::from_ne_bytes(get(rest, WORD + 4)?);
            let data = rest.get(HEADER..message_len)?;
            rest = rest.get(message_len.next_multiple_of(WORD)..).unwrap_or_default();
            Some((level, kind, data))
        })
    }

    /// What the first `len` bytes say.
    pub(super) fn decode(&self, len: usize) -> Ancillary {
        let mut said = Ancillary::default();
        for (level, kind, data) in self.messages(len) {
            // IPv4 reports the TOS in one byte; all the rest comes in four.
            let value = match *data {
                [byte] => i32::from(byte),
                [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]),
                _ => 0,
            };
            let byte = u8::try_from(value).unwrap_or(0);
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    said.tos = byte;
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    said.ttl = byte;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => said.segment = value.try_into().unwrap_or(0),
                _ => {}
            }
        }
        said
    }

    /// What the first `len` bytes say of a datagram that was too long (`struct sock_extended_err`);
    /// nothing for errors of another kind.
    pub(super) fn decode_excess(&self, len: usize) -> Option<Excess> {
        let is_error = |level, kind| {
            matches!(
                (level, kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            )
        };
        let mut errors = self.messages(len).filter(|&(level, kind, _)| is_error(level, kind));
        let (_, _, data) = errors.next()?;
        let &[e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, ..] =
            data.first_chunk::<16>()?;
        let is_local = origin == libc::SO_EE_ORIGIN_LOCAL;
        let is_excess = match (origin, kind, code) {
            (libc::SO_EE_ORIGIN_LOCAL, ..) => {
                i32::from_ne_bytes([e0, e1, e2, e3]) == libc::EMSGSIZE
            }
            // Fragmentation needed, and packet too big.
            (libc::SO_EE_ORIGIN_ICMP, 3, 4) | (libc::SO_EE_ORIGIN_ICMP6, 2, _) => true,
            _ => false,
        };
        let mtu = u32::from_ne_bytes([i0, i1, i2, i3]);
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        is_excess.then_some(Excess { mtu, is_local })
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tos_and_ttl_round_trip_in_both_families() {
        for is_v6 in [false, true] {
            let (control, len) = Control::encode(is_v6, 0xb9, 63, 0);
            let said = Ancillary { tos: 0xb9, ttl: 63, segment: 0 };
            assert_eq!(control.decode(len), said, "is_v6: {is_v6}");
            assert_eq!(control.decode(0), Ancillary::default());
        }
    }

    #[test]
    fn errors_about_length_are_told_from_others() {
        const V4: (i32, i32) = (libc::IPPROTO_IP, libc::IP_RECVERR);
        const V6: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        let decode = |errno: i32, what: [u8; 3], (level, message)| {
            let mut data = [0; 16];
            data[..4].copy_from_slice(&errno.to_ne_bytes());
            data[4..7].copy_from_slice(&what);
            data[8..12].copy_from_slice(&1400_u32.to_ne_bytes());
            let mut control = Control::EMPTY;
            control.put(0, libc::IPPROTO_IP, libc::IP_TTL, 64_i32.to_ne_bytes());
            control.put(HEADER + WORD, level, message, data);
            control.decode_excess(2 * HEADER + WORD + 16)
        };
        let said = |is_local| Some(Excess { mtu: 1400, is_local });

        assert_eq!(decode(libc::EMSGSIZE, [1, 0, 0], V4), said(true));
        assert_eq!(decode(libc::EMSGSIZE, [2, 3, 4], V6), said(false));
        assert_eq!(decode(libc::EMSGSIZE, [3, 2, 0], V6), said(false));
        assert_eq!(decode(libc::ECONNREFUSED, [2, 3, 3], V4), None);
        assert_eq!(decode(libc::ENETUNREACH, [1, 0, 0], V4), None);
        assert_eq!(decode(libc::EMSGSIZE, [1, 0, 0], (libc::SOL_UDP, 1)), None);
        assert_eq!(Control::EMPTY.decode_excess(CAPACITY), None);
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for lie in [0_usize, 1, HEADER - 1, CAPACITY + 1, usize::MAX] {
            let (mut control, len) = Control::encode(false, 3, 64, 0);
            control.0[..WORD].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(control.decode(len), Ancillary::default(), "{lie}");
            assert_eq!(control.decode(usize::MAX), Ancillary::default(), "{lie}");
        }
    }
}
