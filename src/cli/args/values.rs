//! Values of arguments that are no vocabulary of their own: where a token comes from, `IP[:PORT]`,
//! `NAME=tcp/8080`, `KEY=VALUE` or `KEY-`, and an entity by name or address.

use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::api::node::JoinToken;
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Label, Name, Service};

/// Where a join token comes from: `TOKEN`, `@FILE`, or `-` for stdin. `Debug` hides a token.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinSource {
    /// On the command line, where every user of the host can see it while the program runs.
    Text(String),
    /// In a file.
    File(PathBuf),
    /// On stdin.
    Stdin,
    /// Read already, from where nobody else sees it.
    Held(JoinToken),
}

/// Longest token text that is read from a file or stdin, in bytes; tokens are a few hundred.
const TOKEN_TEXT_MAX: u64 = 16 * 1024;

impl JoinSource {
    /// Reads and parses the token.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or the text is no join token.
    pub fn read(&self) -> Result<JoinToken, Problem> {
        let unreadable = |what: String, error: &std::io::Error| {
            Problem::new(ProblemCode::Failed, what)
                .why(error.to_string())
                .fix("give --join TOKEN, --join @FILE, or --join - and the token on stdin")
        };
        let mut text = String::new();
        match self {
            Self::Text(token) => return token.parse(),
            Self::Held(token) => return Ok(token.clone()),
            Self::File(path) => {
                let what = || format!("cannot read the join token from {}", path.display());
                std::fs::File::open(path)
                    .and_then(|file| file.take(TOKEN_TEXT_MAX).read_to_string(&mut text))
                    .map_err(|error| unreadable(what(), &error))?;
            }
            Self::Stdin => {
                std::io::stdin().lock().take(TOKEN_TEXT_MAX).read_to_string(&mut text).map_err(
                    |error| unreadable("cannot read the join token from stdin".to_owned(), &error),
                )?;
            }
        }
        text.parse()
    }

    /// Reads what is in a file or on stdin now: for who will not be able to later.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn hold(self) -> Result<Self, Problem> {
        match self {
            Self::File(_) | Self::Stdin => self.read().map(Self::Held),
            Self::Text(_) | Self::Held(_) => Ok(self),
        }
    }
}

impl FromStr for JoinSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err("a file name is missing after @".to_owned()),
            Some(path) => Ok(Self::File(PathBuf::from(path))),
            None if text == "-" => Ok(Self::Stdin),
            None if text.is_empty() => Err("the token is empty".to_owned()),
            None => Ok(Self::Text(text.to_owned())),
        }
    }
}

impl fmt::Debug for JoinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Stdin => f.write_str("Stdin"),
            Self::Held(_) => f.write_str("Held(…)"),
        }
    }
}

/// `IP[:PORT]`: where this node receives data packets. Without a port: the port that it listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointArg {
    /// The address.
    pub ip: IpAddr,
    /// The port, when it was given; never 0.
    pub port: Option<u16>,
}

impl EndpointArg {
    /// The endpoint, with `port` where none was given.
    #[must_use]
    pub fn or_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

impl FromStr for EndpointArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self { ip, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => {
                Ok(Self { ip: address.ip(), port: Some(address.port()) })
            }
            Ok(_) | Err(_) => {
                Err("write IP or IP:PORT, such as 192.0.2.1:6080 or [2001:db8::1]:6080".to_owned())
            }
        }
    }
}

/// `NAME=tcp/8080`: a port that rules can call by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub service: Service,
}

impl FromStr for NamedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, service) =
            text.split_once('=').ok_or("write NAME=tcp/8080, such as http=tcp/8080")?;
        let name = Name::new(name).map_err(|error| error.to_string())?;
        let service: Service =
            service.parse().map_err(|error: crate::types::ServiceError| error.to_string())?;
        match &service {
            Service::Ports(_, range) if range.first == range.last => Ok(Self { name, service }),
            Service::Ports(..) | Service::Protocol(_) | Service::Named(..) => {
                Err("a named port stands for one port, such as http=tcp/8080".to_owned())
            }
        }
    }
}

/// `KEY=VALUE` sets a label, `KEY-` removes one, as in `kubectl label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelEdit {
    /// Sets it.
    Set(Label),
    /// Removes it.
    Remove(String),
}

impl FromStr for LabelEdit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('-') {
            // The label parser knows what a key is; the empty value is valid.
            Some(key) if !text.contains('=') => format!("{key}=")
                .parse::<Label>()
                .map(|_| Self::Remove(key.to_owned()))
                .map_err(|error| error.to_string()),
            Some(_) | None => text
                .parse()
                .map(Self::Set)
                .map_err(|error: crate::types::ParseNameError| error.to_string()),
        }
    }
}

/// An entity by its name (`web`, `shop/web`) or by one of its overlay addresses. A name holds neither
/// dot nor colon, so the two cannot be mistaken for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntityRef {
    /// By name.
    Name(EntityName),
    /// By overlay address.
    Address(IpAddr),
}

impl FromStr for EntityRef {
    type Err = crate::types::ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for EntityRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What `key rotate` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotateTarget {
    /// Every key of every overlay.
    All,
    /// Every key of one overlay.
    Overlay(Name),
    /// The keys towards one destination.
    Entity(EntityName),
    /// The key of one pair.
    Pair {
        /// Who stamps it.
        from: EntityName,
        /// Whose key it is.
        to: EntityName,
    },
}
