//! The first bytes of a packet or a datagram, for whoever has to speak of it when it is gone.

/// How many: a GUE header, an IPv6 header with little before TCP, and what an ICMP error quotes of it.
const MAX: usize = 104;

/// The first bytes of a packet or a datagram, copied.
#[derive(Clone, Copy)]
pub struct Start {
    len: usize,
    bytes: [u8; MAX],
}

impl Start {
    /// Nothing yet.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; MAX] };

    /// The first bytes of `packet`.
    #[must_use]
    pub fn of(packet: &[u8]) -> Self {
        let mut this = Self::EMPTY;
        this.push(packet);
        this
    }

    /// Adds what follows, as long as there is room.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        self.len += room.len().min(bytes.len());
        for (slot, byte) in room.iter_mut().zip(bytes) {
            *slot = *byte;
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Debug for Start {
    /// Never the bytes, which are somebody's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Start({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_fits_and_says_nothing_of_it() {
        assert_eq!(Start::of(&[]).as_slice(), [0; 0]);
        assert_eq!(Start::of(&[7; 40]).as_slice(), [7; 40]);
        assert_eq!(Start::of(&[7; 1500]).as_slice(), [7; MAX]);
        let mut start = Start::of(&[1; 8]);
        start.push(&[2; 200]);
        start.push(&[3; 10]);
        assert_eq!((start.as_slice().len(), &start.as_slice()[7..9]), (MAX, &[1, 2][..]));
        assert_eq!(format!("{:?}", Start::of(b"secret")), "Start(6 bytes)");
    }
}
