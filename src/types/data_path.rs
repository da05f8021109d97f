//! How packets are moved between the kernel and a daemon.

use std::fmt;
use std::str::FromStr;

/// How packets are moved between the kernel and a daemon. Only benchmarks choose; everybody else
/// has the fastest one that the kernel offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Many packets in one buffer wherever the kernel offers it.
    #[default]
    Full,
    /// Many packets in one system call, each in a buffer of its own.
    Batch,
    /// One packet in one system call: what `Full` is measured against.
    Naive,
}

/// A word that names no [`DataPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected full, batch or naive")]
pub struct ParseDataPathError;

impl DataPath {
    const ALL: [Self; 3] = [Self::Full, Self::Batch, Self::Naive];

    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Batch => "batch",
            Self::Naive => "naive",
        }
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataPath {
    type Err = ParseDataPathError;

    fn from_str(text: &str) -> Result<Self, ParseDataPathError> {
        Self::ALL.into_iter().find(|path| path.name() == text).ok_or(ParseDataPathError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for path in DataPath::ALL {
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        assert_eq!("fast".parse::<DataPath>(), Err(ParseDataPathError));
    }
}
