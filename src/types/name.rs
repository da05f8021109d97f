//! Names: one DNS label each, so that a name can always be asked for over DNS.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// What is meant where nobody says a name.
const DEFAULT: &str = "default";

/// A DNS label: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?` (RFC 1123 section 2.1, lower case only). Cloning shares:
/// tables repeat the names of members thousands of times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(Arc<str>);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{shown}` is not a valid {what}: use 1 to 63 of a-z, 0-9 and `-`, starting and ending with a \
     letter or digit"
)]
pub struct ParseNameError {
    shown: String,
    what: &'static str,
}

impl ParseNameError {
    /// `text` is shown escaped and cut, so that a hostile name cannot write to a terminal or a log.
    fn new(text: &str, what: &'static str) -> Self {
        let mut shown: String = text.chars().take(80).flat_map(char::escape_default).collect();
        if text.chars().count() > 80 {
            shown.push('…');
        }
        Self { shown, what }
    }
}

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`ParseNameError`] when `text` is not a DNS label in lower case.
    pub fn new(text: &str) -> Result<Self, ParseNameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends_well =
            bytes.first().copied().is_some_and(inner) && bytes.last().copied().is_some_and(inner);
        if !ends_well
            || bytes.len() > Self::MAX_LEN
            || !bytes.iter().all(|&b| inner(b) || b == b'-')
        {
            return Err(ParseNameError::new(text, "name"));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_default(&self) -> bool {
        *self.0 == *DEFAULT
    }
}

impl Default for Name {
    /// `default`: the name of the first overlay and of the namespace that nobody named.
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl TryFrom<String> for Name {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, ParseNameError> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.to_string()
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The suffix of all overlay names; no other resolver is ever asked about it.
pub const OVERLAY_SUFFIX: &str = "ov.internal";

/// A namespaced name: `web` (in `default`) or `shop/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct EntityName {
    /// The namespace; `default` when the text had none.
    pub namespace: Name,
    /// The name inside the namespace.
    pub name: Name,
}

impl EntityName {
    /// What resolvers call it in an overlay; a name in `default` has a short form, which comes first.
    #[must_use]
    pub fn overlay_names(&self, overlay: &Name) -> Vec<String> {
        let Self { namespace, name } = self;
        let short =
            (*namespace == Name::default()).then(|| format!("{name}.{overlay}.{OVERLAY_SUFFIX}"));
        let long = format!("{name}.{namespace}.{overlay}.{OVERLAY_SUFFIX}");
        short.into_iter().chain([long]).collect()
    }
}

impl TryFrom<String> for EntityName {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, ParseNameError> {
        text.parse()
    }
}

/// As it is shown; a SaP's table has tens of thousands of them, so nothing is allocated for it.
impl Serialize for EntityName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.namespace.is_default() {
            return serializer.serialize_str(self.name.as_str());
        }
        serializer.collect_str(self)
    }
}

impl From<EntityName> for String {
    fn from(name: EntityName) -> Self {
        name.to_string()
    }
}

impl FromStr for EntityName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Name::new(namespace)?, name),
            None => (Name::default(), text),
        };
        Ok(Self { namespace, name: Name::new(name)? })
    }
}

impl fmt::Display for EntityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_default() {
            f.pad(self.name.as_str())
        } else {
            f.pad(&format!("{}/{}", self.namespace, self.name))
        }
    }
}

/// One `key=value` label, as Kubernetes spells them: a key of up to 317 bytes (an optional
/// `prefix/` and a name), a value of up to 63, letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// Left of `=`.
    pub key: String,
    /// Right of `=`; may be empty.
    pub value: String,
}

impl TryFrom<String> for Label {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, ParseNameError> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

impl FromStr for Label {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let error = || ParseNameError::new(text, "label (KEY=VALUE)");
        let (key, value) = text.split_once('=').ok_or_else(error)?;
        let word = |part: &str, empty_ok: bool| {
            let inner = |b: u8| b.is_ascii_alphanumeric();
            let bytes = part.as_bytes();
            if bytes.is_empty() {
                return empty_ok;
            }
            bytes.len() <= 63
                && bytes.first().copied().is_some_and(inner)
                && bytes.last().copied().is_some_and(inner)
                && bytes.iter().all(|&b| inner(b) || matches!(b, b'-' | b'_' | b'.'))
        };
        let key_ok = match key.split_once('/') {
            Some((prefix, name)) => {
                prefix.len() <= 253
                    && !prefix.is_empty()
                    && prefix.split('.').all(|label| Name::new(label).is_ok())
                    && word(name, false)
            }
            None => word(key, false),
        };
        if !key_ok || !word(value, true) {
            return Err(error());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "0", "web-1", "a--b", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "é", "a\n", "a\x1b[1m", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hostile_name_is_shown_escaped() {
        let error = Name::new("a\x1b[31m\n").unwrap_err().to_string();

        assert!(!error.contains('\x1b') && !error.contains('\n'), "{error}");
    }

    #[test]
    fn entity_names_default_their_namespace() {
        let web: EntityName = "web".parse().unwrap();
        assert_eq!(web.namespace, Name::default());
        assert_eq!(web.to_string(), "web");
        assert_eq!("shop/web".parse::<EntityName>().unwrap().to_string(), "shop/web");
        assert!("shop/".parse::<EntityName>().is_err());
        assert!("a/b/c".parse::<EntityName>().is_err());
    }

    #[test]
    fn labels_follow_kubernetes() {
        for good in ["app=web", "app.kubernetes.io/name=web", "x=", "Tier=Back_end.1"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        for bad in ["app", "=x", "a b=c", "a=b c", "a=-", "/x=y", "a='; DROP TABLE nodes"] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
