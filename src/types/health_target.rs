//! What `ovd` asks of the program beside it when somebody asks `ovd` for its health.

use std::fmt;
use std::str::FromStr;

/// Longest path, in bytes.
const PATH_MAX: usize = 1024;

/// Longest name, in bytes: a container's and a kind of probe.
const NAME_MAX: usize = 128;

/// One question: its name, and what is asked on this host. `web/readiness=http:8080/healthz`,
/// `db/liveness=tcp:5432`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthTarget {
    /// The path it has at `ovd`, without the first `/`.
    pub name: String,
    /// What is asked.
    pub question: HealthQuestion,
    /// The port on this host's loopback address.
    pub port: u16,
}

/// What a program is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthQuestion {
    /// GET of this path, which may have a query.
    Http(String),
    /// Whether it accepts a connection.
    Tcp,
}

/// A text that is no [`HealthTarget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write NAME=http:PORT/PATH or NAME=tcp:PORT, such as web/readiness=http:8080/healthz")]
pub struct ParseHealthTargetError;

impl FromStr for HealthTarget {
    type Err = ParseHealthTargetError;

    fn from_str(text: &str) -> Result<Self, ParseHealthTargetError> {
        let (name, target) = text.split_once('=').ok_or(ParseHealthTargetError)?;
        let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-/".contains(&c);
        let is_good = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_word);
        let (kind, rest) = target.split_once(':').ok_or(ParseHealthTargetError)?;
        let (port, question) = match (kind, rest.find('/')) {
            ("tcp", None) => (rest, HealthQuestion::Tcp),
            ("http", Some(at)) => {
                let (port, path) = rest.split_at(at);
                (port, HealthQuestion::Http(path.to_owned()))
            }
            _ => return Err(ParseHealthTargetError),
        };
        let is_fit = match &question {
            HealthQuestion::Http(path) => {
                path.len() <= PATH_MAX && path.bytes().all(|c| c.is_ascii_graphic())
            }
            HealthQuestion::Tcp => true,
        };
        let port = port.parse().ok().filter(|&port: &u16| port != 0);
        match port {
            Some(port) if is_good && is_fit => Ok(Self { name: name.to_owned(), question, port }),
            _ => Err(ParseHealthTargetError),
        }
    }
}

impl fmt::Display for HealthTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, question, port } = self;
        match question {
            HealthQuestion::Http(path) => write!(f, "{name}=http:{port}{path}"),
            HealthQuestion::Tcp => write!(f, "{name}=tcp:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip_and_others_are_refused() {
        for text in ["web/readiness=http:8080/healthz?full=1", "db/liveness=tcp:5432", "a=http:1/"]
        {
            assert_eq!(text.parse::<HealthTarget>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "web",
            "=tcp:1",
            "web=tcp:0",
            "web=tcp:70000",
            "web=tcp:1/x",
            "web=http:80",
            "web=udp:80",
            "Web=tcp:1",
            "web=http:80/a b",
            "web=http:80/a\r\nx: y",
        ] {
            assert!(bad.parse::<HealthTarget>().is_err(), "{bad:?}");
        }
        assert!(format!("web=http:1/{}", "a".repeat(PATH_MAX)).parse::<HealthTarget>().is_err());
    }
}
