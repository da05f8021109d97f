//! Ancillary data of one datagram: TOS and TTL, built and read without pointers.
//!
//! ```text
//! length(usize) level(4) type(4) data, padded to the size of usize
//! ```

/// Room for the two messages that we send and the two that we ask for, with reserve.
const CAPACITY: usize = 128;
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER);
const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());
const _: () = assert!(2 * (HEADER + WORD) <= CAPACITY);

/// A buffer for ancillary data.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CAPACITY]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; CAPACITY]);

    /// The size of the buffer in bytes.
    pub(super) const CAPACITY: usize = CAPACITY;

    /// Messages that set `tos` and `ttl` of a packet that leaves as IPv6 (`is_v6`) or IPv4; returned
    /// with their length. `is_v6` is the packet's family: a dual-stack socket takes IPv4's messages
    /// for mapped addresses.
    pub(super) fn encode(is_v6: bool, tos: u8, ttl: u8) -> (Self, usize) {
        let (level, tos_type, ttl_type) = if is_v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT)
        } else {
            (libc::IPPROTO_IP, libc::IP_TOS, libc::IP_TTL)
        };
        let mut this = Self::EMPTY;
        let space = HEADER + WORD;
        this.put(0, level, tos_type, tos);
        this.put(space, level, ttl_type, ttl);
        (this, 2 * space)
    }

    fn put(&mut self, at: usize, level: i32, kind: i32, value: u8) {
        let message = &mut self.0[at..at + HEADER + 4];
        message[..WORD].copy_from_slice(&(HEADER + 4).to_ne_bytes());
        message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        message[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..].copy_from_slice(&i32::from(value).to_ne_bytes());
    }

    /// TOS and TTL from the first `len` bytes; 0 for what is not there.
    pub(super) fn decode(&self, len: usize) -> (u8, u8) {
        let mut rest = self.0.get(..len).unwrap_or(&self.0);
        let (mut tos, mut ttl) = (0, 0);
        while let Some((header, _)) = rest.split_at_checked(HEADER) {
            let word = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|i| header[at + i]));
            let message_len = header[..WORD].try_into().map_or(0, usize::from_ne_bytes);
            let Some(data) = rest.get(HEADER..message_len) else { break };
            // IPv4 reports the TOS in one byte; all the rest comes in four.
            let value = match *data {
                [byte] => byte,
                [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).try_into().unwrap_or(0),
                _ => 0,
            };
            match (word(WORD), word(WORD + 4)) {
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    tos = value;
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    ttl = value;
                }
                _ => {}
            }
            let Some(next) = rest.get(message_len.next_multiple_of(WORD)..) else { break };
            rest = next;
        }
        (tos, ttl)
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
            let (control, len) = Control::encode(is_v6, 0xb9, 63);
            assert_eq!(control.decode(len), (0xb9, 63), "is_v6: {is_v6}");
            assert_eq!(control.decode(0), (0, 0));
        }
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for lie in [0_usize, 1, HEADER - 1, CAPACITY + 1, usize::MAX] {
            let (mut control, len) = Control::encode(false, 3, 64);
            control.0[..WORD].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(control.decode(len), (0, 0), "{lie}");
            assert_eq!(control.decode(usize::MAX), (0, 0), "{lie}");
        }
    }
}
