//! Ids that the coordination server gives out and never reuses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Defines a numeric id with a one-letter prefix in its text form, such as `r-18`.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;

            /// Accepts `PREFIX-NUMBER`, leading zeros allowed.
            fn from_str(text: &str) -> Result<Self, String> {
                text.strip_prefix(concat!($prefix, "-"))
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .map(Self)
                    .ok_or_else(|| {
                        format!(concat!("`{}` is not an id of the form ", $prefix, "-NUMBER"), text)
                    })
            }
        }
    };
}

id!(
    /// An entity or a SaP, for life. A name that comes back gets a new id.
    NodeId,
    "n"
);
id!(
    /// One overlay.
    OverlayId,
    "o"
);
id!(
    /// One (entity, SaP) link; stands where the key stands in control messages and finds the link's
    /// secret.
    LinkId,
    "l"
);

/// Whatever can decide about a flow: a rule (`r-18`), a NetworkPolicy (`np-3`), or the audit mode of an
/// overlay (`audit-mode`). Rules and NetworkPolicies are counted apart; the two share one number space so
/// that a verdict, a counter and a record need one number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub u32);

impl RuleId {
    /// The rule that an overlay in audit mode has of itself: from any to any, audit.
    pub const AUDIT_MODE: Self = Self(0);

    /// Set in the ids of NetworkPolicies.
    const NETWORK_POLICY: u32 = 1 << 31;

    /// The id of the NetworkPolicy with this number, which is below 2^31.
    #[must_use]
    pub fn network_policy(number: u32) -> Self {
        Self(number | Self::NETWORK_POLICY)
    }

    /// The number of a NetworkPolicy; none for a rule.
    #[must_use]
    pub fn network_policy_number(self) -> Option<u32> {
        (self.0 & Self::NETWORK_POLICY != 0).then_some(self.0 & !Self::NETWORK_POLICY)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network_policy_number() {
            Some(number) => write!(f, "np-{number}"),
            None if *self == Self::AUDIT_MODE => f.write_str("audit-mode"),
            None => write!(f, "r-{}", self.0),
        }
    }
}

impl FromStr for RuleId {
    type Err = String;

    /// Accepts `r-NUMBER`, `np-NUMBER`, leading zeros allowed, and `audit-mode`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let is_number = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|number| is_number && *number < Self::NETWORK_POLICY)
        };
        let rule = || text.strip_prefix("r-").and_then(number).map(Self);
        let policy = || text.strip_prefix("np-").and_then(number).map(Self::network_policy);
        let mode = || (text == "audit-mode").then_some(Self::AUDIT_MODE);
        rule()
            .or_else(policy)
            .or_else(mode)
            .ok_or_else(|| format!("`{text}` is not an id of the form r-NUMBER or np-NUMBER"))
    }
}

/// Names a tracer: a packet that a live test of the policy sends. Drawn by the server for one sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TracerId(pub u64);

/// What a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Runs `ovd`.
    Entity,
    /// Runs `ovsap`.
    Sap,
}

impl NodeKind {
    /// `entity` or `sap`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Entity => "entity",
            Self::Sap => "sap",
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_tolerate_leading_zeros() {
        assert_eq!("r-0018".parse::<RuleId>().unwrap(), RuleId(18));
        assert_eq!(RuleId(18).to_string(), "r-18");
        assert!("r-".parse::<RuleId>().is_err());
        assert!("r-+1".parse::<RuleId>().is_err());
        assert!("n-1".parse::<RuleId>().is_err());
    }

    #[test]
    fn rules_and_network_policies_have_ids_of_their_own() {
        let policy = RuleId::network_policy(3);

        assert_eq!((policy.to_string().as_str(), "np-3".parse()), ("np-3", Ok(policy)));
        assert_eq!(policy.network_policy_number(), Some(3));
        assert_eq!(RuleId(3).network_policy_number(), None);
        assert_eq!(RuleId::AUDIT_MODE.to_string().parse(), Ok(RuleId::AUDIT_MODE));
        assert!("r-2147483648".parse::<RuleId>().is_err(), "that would be a NetworkPolicy");
        assert!("np-2147483648".parse::<RuleId>().is_err());
    }
}
