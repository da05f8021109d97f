//! How programs of a machine come to ask `ovd` for names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What brings questions of this machine's programs to `ovd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsHook {
    /// systemd-resolved where programs ask it and it can be told, else a redirect.
    #[default]
    Auto,
    /// What this machine sends to its name servers is redirected.
    Redirect,
    /// systemd-resolved is told.
    Resolved,
    /// Nothing: who wants names asks `ovd` by address and port.
    Off,
}

/// A word that names no [`DnsHook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, redirect, resolved or off")]
pub struct ParseDnsHookError;

impl DnsHook {
    const ALL: [Self; 4] = [Self::Auto, Self::Redirect, Self::Resolved, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Redirect => "redirect",
            Self::Resolved => "resolved",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for DnsHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DnsHook {
    type Err = ParseDnsHookError;

    fn from_str(text: &str) -> Result<Self, ParseDnsHookError> {
        Self::ALL.into_iter().find(|hook| hook.name() == text).ok_or(ParseDnsHookError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for hook in DnsHook::ALL {
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        assert_eq!("on".parse::<DnsHook>(), Err(ParseDnsHookError));
    }
}
