//! How many lanes a daemon moves packets on.

use std::fmt;
use std::str::FromStr;

/// How many lanes a daemon moves packets on: each has a socket, queues of the TUN devices and threads
/// of its own. 1 to [`Lanes::MAX`]; one unless somebody asks for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(u8);

/// A number or word that is none of [`Lanes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to {}", Lanes::MAX)]
pub struct ParseLanesError;

impl Lanes {
    /// The most lanes: more than this and threads wait for each other, not for packets.
    pub const MAX: u8 = 64;

    /// Checks a number.
    ///
    /// # Errors
    ///
    /// When it is 0 or above [`Self::MAX`].
    pub fn new(number: i64) -> Result<Self, ParseLanesError> {
        match u8::try_from(number) {
            Ok(number @ 1..=Self::MAX) => Ok(Self(number)),
            Ok(_) | Err(_) => Err(ParseLanesError),
        }
    }

    /// The number.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.0)
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self(1)
    }
}

impl fmt::Display for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Lanes {
    type Err = ParseLanesError;

    fn from_str(text: &str) -> Result<Self, ParseLanesError> {
        text.parse().map_err(|_| ParseLanesError).and_then(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_to_sixty_four_are_lanes_and_nothing_else_is() {
        for good in ["1", "4", "64"] {
            assert_eq!(good.parse::<Lanes>().unwrap().to_string(), good);
        }
        for bad in ["0", "65", "257", "-1", "", "two"] {
            assert_eq!(bad.parse::<Lanes>(), Err(ParseLanesError), "{bad}");
        }
        assert_eq!(Lanes::default().count(), 1);
    }
}
