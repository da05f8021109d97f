//! `server.toml`: what `ovctl serve` may be told. Everything has a default, so no file is needed.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::types::HumanDuration;

/// The port of the server unless configured.
pub const PORT: u16 = 7443;

/// The shortest grace time of keys.
const GRACE_MIN: Duration = Duration::from_secs(1);

/// The shortest time between scheduled rotations: each rotation must be able to end.
const INTERVAL_MIN: Duration = Duration::from_secs(60);

/// The shortest absence that deletes an ephemeral node: longer than a restart of `ovd` takes.
const REST_MIN: Duration = Duration::from_secs(10);

/// The shortest time that flow records are kept.
const FLOW_KEEP_MIN: Duration = Duration::from_secs(300);

/// Everything that the server is told, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where the database and the key are.
    pub data_dir: PathBuf,
    /// Where HTTPS listens.
    pub listen: SocketAddr,
    /// The URLs that tokens carry.
    pub public_urls: Vec<String>,
    /// Where the unix socket for admins is.
    pub socket: PathBuf,
    /// How long an old key is accepted after its last sender has the new one.
    pub key_grace: Duration,
    /// How often keys rotate by themselves.
    pub key_interval: Duration,
    /// How long an ephemeral node may be away before it is deleted.
    pub ephemeral_rest: Duration,
    /// How long flow records are kept.
    pub flow_keep: Duration,
    /// Users beside root and the server's own that may use the unix socket.
    pub admin_uids: Vec<u32>,
}

/// The file as it is written: everything optional, nothing unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFile {
    /// See [`ServerConfig::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`ServerConfig::listen`].
    pub listen: Option<SocketAddr>,
    /// See [`ServerConfig::public_urls`].
    #[serde(default)]
    pub public_urls: Vec<String>,
    /// See [`ServerConfig::socket`].
    pub socket: Option<PathBuf>,
    /// See [`ServerConfig::key_grace`].
    pub key_grace: Option<HumanDuration>,
    /// See [`ServerConfig::key_interval`].
    pub key_interval: Option<HumanDuration>,
    /// See [`ServerConfig::ephemeral_rest`].
    pub ephemeral_rest: Option<HumanDuration>,
    /// See [`ServerConfig::flow_keep`].
    pub flow_keep: Option<HumanDuration>,
    /// See [`ServerConfig::admin_uids`].
    #[serde(default)]
    pub admin_uids: Vec<u32>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file is no TOML, or says something unknown.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
    /// A URL that nodes could not use.
    #[error("`{0}` is no address for nodes: write it as https://HOST:PORT")]
    Url(String),
    /// A duration that cannot be kept.
    #[error("{field} is {value}, and must be at least {min}")]
    TooShort {
        /// Which one.
        field: &'static str,
        /// What was asked.
        value: HumanDuration,
        /// What is possible.
        min: HumanDuration,
    },
}

impl ServerFile {
    /// Reads `path`.
    ///
    /// # Errors
    ///
    /// [`ServerConfigError::Unreadable`] and [`ServerConfigError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, ServerConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ServerConfigError::Unreadable { path: path.to_owned(), why: error.to_string() }
        })?;
        toml::from_str(&text).map_err(|error| ServerConfigError::Malformed {
            path: path.to_owned(),
            why: error.to_string(),
        })
    }

    /// Fills in what the file does not say. `data_dir` and `socket` are the default places.
    ///
    /// # Errors
    ///
    /// When a value makes no sense.
    pub fn with_defaults(
        self,
        data_dir: PathBuf,
        socket: PathBuf,
    ) -> Result<ServerConfig, ServerConfigError> {
        for url in &self.public_urls {
            check_url(url)?;
        }
        let at_least = |field, value: Option<HumanDuration>, min, default| match value {
            Some(value) if value.0 < min => {
                Err(ServerConfigError::TooShort { field, value, min: HumanDuration(min) })
            }
            Some(value) => Ok(value.0),
            None => Ok(default),
        };
        Ok(ServerConfig {
            data_dir: self.data_dir.unwrap_or(data_dir),
            listen: self.listen.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, PORT).into()),
            public_urls: self.public_urls,
            socket: self.socket.unwrap_or(socket),
            key_grace: at_least("key_grace", self.key_grace, GRACE_MIN, Duration::from_secs(60))?,
            key_interval: at_least(
                "key_interval",
                self.key_interval,
                INTERVAL_MIN,
                Duration::from_secs(24 * 3600),
            )?,
            ephemeral_rest: at_least(
                "ephemeral_rest",
                self.ephemeral_rest,
                REST_MIN,
                Duration::from_secs(300),
            )?,
            flow_keep: at_least(
                "flow_keep",
                self.flow_keep,
                FLOW_KEEP_MIN,
                Duration::from_secs(24 * 3600),
            )?,
            admin_uids: self.admin_uids,
        })
    }
}

/// Whether nodes could use `url`: `https://`, a host, perhaps a port, nothing else.
///
/// # Errors
///
/// [`ServerConfigError::Url`].
pub fn check_url(url: &str) -> Result<(), ServerConfigError> {
    let host = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let is_good = |host: &str| {
        !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    };
    if host.is_some_and(is_good) {
        return Ok(());
    }
    Err(ServerConfigError::Url(url.chars().take(80).flat_map(char::escape_default).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServerConfig, String> {
        let file: ServerFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.with_defaults("/data".into(), "/socket".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = parse("").unwrap();

        assert_eq!(config.listen, "[::]:7443".parse().unwrap());
        assert_eq!(config.data_dir, Path::new("/data"));
        assert_eq!(config.key_grace, Duration::from_secs(60));
        assert_eq!(config.key_interval, Duration::from_secs(86_400));
    }

    #[test]
    fn unknown_and_impossible_values_are_named() {
        for (text, named) in [
            ("lisen = '[::]:1'", "lisen"),
            ("key_grace = '10ms'", "key_grace"),
            ("key_interval = '1s'", "key_interval"),
            ("ephemeral_rest = '1s'", "ephemeral_rest"),
            ("flow_keep = '1s'", "flow_keep"),
            ("public_urls = ['http://a']", "http://a"),
            ("public_urls = ['https://a/b c']", "https://a/b c"),
            ("listen = 'x'", "listen"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        assert!(parse("key_grace = '1s'\npublic_urls = ['https://a.example:7443']").is_ok());
    }
}
