//! Selectors: which members a rule speaks of.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CidrBlock, CidrError, EntityName, Label, Name, ParseNameError};

/// One end of a rule, as people write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// Every member of the overlay, never the outside.
    Any,
    /// One entity by name.
    Name(EntityName),
    /// Members that carry all of these labels: `role=web,tier=front`.
    Labels(BTreeSet<Label>),
    /// All members of one namespace: `namespace:shop`.
    Namespace(Name),
    /// What a group holds: `group:backends`.
    Group(Name),
    /// Members that a service means, which is a name for labels: `service:api`.
    Service(Name),
    /// Addresses outside the overlay, with exceptions: `10.0.0.0/8!10.1.0.0/16`; a single one with or
    /// without `ip:`.
    Cidr(CidrBlock),
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A part is no name or label.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// Nothing that is known: names have no such characters, and a prefix is wrong.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// What stands behind `ip:` is no address.
    #[error("`{0}` is no address: write ip:192.0.2.7 or ip:fd00::7")]
    Address(String),
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if let Some(namespace) = text.strip_prefix("namespace:") {
            return Ok(Self::Namespace(Name::new(namespace)?));
        }
        if let Some(group) = text.strip_prefix("group:") {
            return Ok(Self::Group(Name::new(group)?));
        }
        if let Some(service) = text.strip_prefix("service:") {
            return Ok(Self::Service(Name::new(service)?));
        }
        if let Some(address) = text.strip_prefix("ip:") {
            let is_one = address.parse::<std::net::IpAddr>().is_ok();
            return match address.parse() {
                Ok(block) if is_one => Ok(Self::Cidr(block)),
                Ok(_) | Err(_) => Err(SelectorError::Address(address.chars().take(80).collect())),
            };
        }
        if text.contains('=') {
            let labels = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
            return Ok(Self::Labels(labels));
        }
        // No name has a dot, a colon or an exclamation mark, or is `NAME/` and digits alone.
        if text.contains(['.', ':', '!']) {
            return Ok(Self::Cidr(text.parse()?));
        }
        Ok(Self::Name(text.parse()?))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Name(name) => name.fmt(f),
            Self::Namespace(name) => f.pad(&format!("namespace:{name}")),
            Self::Group(name) => f.pad(&format!("group:{name}")),
            Self::Service(name) => f.pad(&format!("service:{name}")),
            Self::Cidr(block) => f.pad(&block.to_string()),
            Self::Labels(labels) => {
                let text: Vec<String> = labels.iter().map(Label::to_string).collect();
                f.pad(&text.join(","))
            }
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_round_trip() {
        for text in [
            "any",
            "web",
            "shop/web",
            "namespace:shop",
            "a=b",
            "a=b,c=d",
            "group:backends",
            "service:api",
            "10.0.0.0/8!10.1.0.0/16",
            "fd00::/8",
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for text in ["192.0.2.7", "ip:192.0.2.7"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), "192.0.2.7/32");
        }
        for bad in [
            "ip:",
            "ip:10.0.0.0/8",
            "ip:web",
            "",
            "a=b,",
            "group:",
            "10.0.0.0/99",
            "namespace:",
            "A",
            "x' OR 1=1",
            "web.shop",
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
