//! Which process of a node asks.

use std::fmt;
use std::str::FromStr;

/// One process of `ovd` or `ovsap` and those that take over from it, drawn at its start and kept in memory
/// alone: a copy of a node's state is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance(pub u64);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Instance {
    type Err = String;

    /// Accepts 16 hex digits.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(Self).ok_or_else(|| "an instance is 16 hex digits".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_round_trip() {
        for number in [0, 0xab, u64::MAX] {
            assert_eq!(Instance(number).to_string().parse(), Ok(Instance(number)));
        }
        for bad in ["", "ab", "+000000000000001", "00000000000000000", "000000000000000g"] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }
}
