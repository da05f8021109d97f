//! A range of addresses with exceptions: `10.0.0.0/8!10.1.0.0/16`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::Prefix;

/// Addresses inside `cidr` and in none of `except`.
///
/// A range speaks of its own family alone: `0.0.0.0/0` contains no IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrBlock {
    /// The range.
    pub cidr: Prefix,
    /// What is cut out of it; each lies inside `cidr` and is smaller.
    pub except: Vec<Prefix>,
}

/// Longest list of exceptions.
const EXCEPT_MAX: usize = 1024;

/// Why a text is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// A part is no prefix.
    #[error(
        "`{0}` is neither a name nor a CIDR: write 10.0.0.0/8, fd00::/8, or 10.0.0.0/8!10.1.0.0/16 to leave a part out"
    )]
    Syntax(String),
    /// Bits below the prefix are set, so it is not clear what is meant.
    #[error("`{shown}` has bits set behind the prefix: write {meant}")]
    HostBits {
        /// What was typed.
        shown: String,
        /// The range that it lies in.
        meant: Prefix,
    },
    /// An exception is not a smaller part of the range.
    #[error("{except} is not a smaller part of {cidr}, so it takes nothing sensible out of it")]
    Outside {
        /// The exception.
        except: Prefix,
        /// The range.
        cidr: Prefix,
    },
    /// Too many exceptions.
    #[error("more than {EXCEPT_MAX} exceptions")]
    TooMany,
}

impl CidrBlock {
    /// Checks the exceptions.
    ///
    /// # Errors
    ///
    /// [`CidrError::Outside`] for one that is not a smaller part of `cidr`, [`CidrError::TooMany`].
    pub fn new(cidr: Prefix, mut except: Vec<Prefix>) -> Result<Self, CidrError> {
        if except.len() > EXCEPT_MAX {
            return Err(CidrError::TooMany);
        }
        let cidr = cidr.trunc();
        for inner in &mut except {
            *inner = inner.trunc();
            if !cidr.contains(&*inner) || inner.prefix_len() <= cidr.prefix_len() {
                return Err(CidrError::Outside { except: *inner, cidr });
            }
        }
        except.sort();
        except.dedup();
        Ok(Self { cidr, except })
    }

    /// Reads `ADDRESS/LENGTH`, host bits or not. Stricter than the parser of [`Prefix`]: leading zeros,
    /// which some read as octal, are no address.
    #[must_use]
    pub fn prefix(text: &str) -> Option<Prefix> {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let is_number =
            (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
        let length = length.parse().ok().filter(|_| is_number)?;
        Prefix::new(address, length).ok()
    }

    /// Whether `address` is inside and not cut out.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|inner| inner.contains(&address))
    }
}

/// A prefix without host bits, or a bare address as a prefix of its full length.
fn prefix(text: &str) -> Result<Prefix, CidrError> {
    let shown = || text.chars().take(80).flat_map(char::escape_default).collect::<String>();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Prefix::from(address));
    }
    let parsed = CidrBlock::prefix(text).ok_or_else(|| CidrError::Syntax(shown()))?;
    if parsed.trunc() == parsed {
        Ok(parsed)
    } else {
        Err(CidrError::HostBits { shown: shown(), meant: parsed.trunc() })
    }
}

impl FromStr for CidrBlock {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let mut parts = text.split('!');
        let cidr = prefix(parts.next().unwrap_or_default())?;
        let except = parts.take(EXCEPT_MAX + 1).map(prefix).collect::<Result<_, _>>()?;
        Self::new(cidr, except)
    }
}

impl fmt::Display for CidrBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        self.except.iter().try_for_each(|inner| write!(f, "!{inner}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_trip_and_contain_what_is_not_cut_out() {
        for text in ["10.0.0.0/8", "10.0.0.0/8!10.1.0.0/16!10.2.0.0/16", "fd00::/8!fd01::/16"] {
            assert_eq!(text.parse::<CidrBlock>().unwrap().to_string(), text);
        }
        let block: CidrBlock = "10.0.0.0/8!10.1.0.0/16".parse().unwrap();
        for (address, inside) in
            [("10.2.0.1", true), ("10.1.0.1", false), ("11.0.0.1", false), ("::a00:1", false)]
        {
            assert_eq!(block.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert_eq!("192.0.2.7".parse::<CidrBlock>().unwrap().to_string(), "192.0.2.7/32");
    }

    #[test]
    fn bad_ranges_are_refused() {
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/8!",
            "10.0.0.0/8!11.0.0.0/16",
            "10.0.0.0/8!10.0.0.0/8",
            "10.0.0.0/8!fd00::/16",
            "010.0.0.0/8",
            "10/8",
        ] {
            assert!(bad.parse::<CidrBlock>().is_err(), "{bad}");
        }
    }
}
