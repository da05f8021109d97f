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
    /// One policy statement.
    RuleId,
    "r"
);
id!(
    /// One (entity, SaP) link; stands where the key stands in control messages and finds the link's
    /// secret.
    LinkId,
    "l"
);

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
}
