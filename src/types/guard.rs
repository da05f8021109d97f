//! What the guard of a machine closes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the guard closes on interfaces that are no overlay's. Packets of overlays stay on the overlays'
/// devices in every mode but [`GuardMode::Off`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Nothing, not even what would leave an overlay in clear.
    Off,
    /// The service ports of this machine.
    Ports,
    /// Everything but what ovmesh, the link and replies to this machine's own flows need.
    All,
}

/// What the guard lets out of interfaces that are no overlay's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardEgress {
    /// Everything but packets of overlays.
    #[default]
    Off,
    /// What rules allow, and what ovmesh and the link need.
    Rules,
}

/// A word that names no [`GuardMode`] or [`GuardEgress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct ParseGuardError(&'static str);

impl GuardMode {
    const ALL: [Self; 3] = [Self::Off, Self::Ports, Self::All];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Ports => "ports",
            Self::All => "all",
        }
    }
}

impl GuardEgress {
    const ALL: [Self; 2] = [Self::Off, Self::Rules];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Rules => "rules",
        }
    }
}

impl fmt::Display for GuardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for GuardEgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GuardMode {
    type Err = ParseGuardError;

    fn from_str(text: &str) -> Result<Self, ParseGuardError> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or(ParseGuardError("ports, all or off"))
    }
}

impl FromStr for GuardEgress {
    type Err = ParseGuardError;

    fn from_str(text: &str) -> Result<Self, ParseGuardError> {
        let found = Self::ALL.into_iter().find(|egress| egress.name() == text);
        found.ok_or(ParseGuardError("off or rules"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for mode in GuardMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for egress in GuardEgress::ALL {
            assert_eq!(egress.to_string().parse(), Ok(egress));
        }
        assert_eq!(
            "on".parse::<GuardMode>().unwrap_err().to_string(),
            "expected ports, all or off"
        );
        assert!("on".parse::<GuardEgress>().is_err());
    }
}
