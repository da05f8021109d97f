//! The first bytes of a packet, for whoever has to speak of it when it is gone.

/// How many: an IPv6 header with little before TCP, and what an ICMP error quotes of it.
const MAX: usize = 96;

/// The first bytes of a packet, copied.
#[derive(Clone, Copy)]
pub struct Start {
    len: usize,
    bytes: [u8; MAX],
}

impl Start {
    /// The first bytes of `packet`.
    #[must_use]
    pub fn of(packet: &[u8]) -> Self {
        let mut bytes = [0; MAX];
        for (slot, byte) in bytes.iter_mut().zip(packet) {
            *slot = *byte;
        }
        Self { len: packet.len().min(MAX), bytes }
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
        assert_eq!(format!("{:?}", Start::of(b"secret")), "Start(6 bytes)");
    }
}
