//! Authorization keys and what they are derived from.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The 32-bit value in the GUE group identifier field, never 0. A bearer value: `Debug` hides it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthorizationKey(pub NonZeroU32);

impl AuthorizationKey {
    /// The key whose 32 bits are `bits`; 0, which no packet may carry, becomes 1.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(NonZeroU32::new(bits).unwrap_or(NonZeroU32::MIN))
    }

    /// The bits as they stand on the wire, host order.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for AuthorizationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorizationKey(…)")
    }
}

/// 256 secret bits, in hex on disk and in JSON; zeroed when dropped, hidden from `Debug`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    /// Wraps `bytes`.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes; keep them off logs and errors.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Calls `read` with the hexadecimal digits, which are on the stack and zeroed afterwards.
    fn with_digits<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
        let mut digits = [0; 64];
        for (two, byte) in digits.chunks_exact_mut(2).zip(&self.0) {
            two.copy_from_slice(&[digit(byte >> 4), digit(byte & 0x0f)]);
        }
        let answer = read(std::str::from_utf8(&digits).expect("invariant: digits are ASCII"));
        digits.zeroize();
        answer
    }
}

/// A SaP's table has tens of thousands of them: no allocation for each.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_digits(|digits| serializer.serialize_str(digits))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl TryFrom<String> for Secret {
    type Error = &'static str;

    fn try_from(mut text: String) -> Result<Self, &'static str> {
        let mut bytes = [0; 32];
        let well_formed = text.len() == 64
            && text.is_ascii()
            && text.as_bytes().chunks_exact(2).zip(&mut bytes).all(|(pair, byte)| {
                std::str::from_utf8(pair)
                    .ok()
                    .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                    .map(|value| *byte = value)
                    .is_some()
            });
        text.zeroize();
        if well_formed { Ok(Self(bytes)) } else { Err("a secret is 64 hexadecimal digits") }
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.with_digits(str::to_owned)
    }
}

/// Which epoch secret a key is derived from. Grows with each scheduled rotation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// Counts the rotations of one entity or one pair alone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

/// What the destination's half of a key (`Kb`) is derived from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct KeyVersion {
    /// The overlay's epoch at the time.
    pub epoch: Epoch,
    /// The destination's own generation.
    pub generation: Generation,
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.generation.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_round_trip_and_hide() {
        let secret = Secret::new([0xab; 32]);
        let text = String::from(secret.clone());

        assert_eq!(text, "ab".repeat(32));
        assert_eq!(Secret::try_from(text).unwrap(), secret);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        for bad in ["", "ab", &"zz".repeat(32), &"+1".repeat(32), &"é".repeat(32)] {
            assert!(Secret::try_from((*bad).to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_zero_becomes_one() {
        assert_eq!(AuthorizationKey::from_bits(0).bits(), 1);
        assert_eq!(AuthorizationKey::from_bits(7).bits(), 7);
    }
}
