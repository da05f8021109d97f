//! `/etc/ovmesh/ovd.toml` and `/etc/ovmesh/ovsap.toml`: two programs, the same keys.
//!
//! ```toml
//! state_dir = "/var/lib/ovmesh/ovd"
//! socket = "/run/ovmesh/ovd.sock"
//! listen = "0.0.0.0:6080"
//! endpoints = ["192.0.2.7"]          # IP or IP:PORT; none: what the kernel picks
//! name = "web"
//! lanes = 1                          # 1 to 64; more on machines with CPUs to spare
//! guard = "ports"                    # or "all", "off"; ovd only, as the next three
//! egress = "off"                     # or "rules": what leaves by other interfaces
//! lock_ssh = false                   # whether the guard may cut off who is connected by ssh
//! dns = "auto"                       # or "redirect", "resolved", "off"
//! log = "info"
//! log_format = "text"                # or "json"
//! ```
//!
//! Every key may be left out; flags of the command line go before the file.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use crate::types::{DnsHook, GuardEgress, GuardMode, Lanes, Name};

/// Where sockets of the system are.
pub(super) const RUN_DIR: &str = "/run/ovmesh";

/// The port that IANA assigned to GUE.
const PORT: u16 = 6080;

/// Why a configuration is refused: file, key, what was expected and what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {text}")]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// What is wrong, with the key or line.
    pub text: String,
}

/// What a file says; what it leaves out is none or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFile {
    /// Where state is kept.
    pub state_dir: Option<PathBuf>,
    /// The local status socket.
    pub socket: Option<PathBuf>,
    /// Where data packets are received.
    pub listen: Option<SocketAddr>,
    /// Where others reach this node; a port of none is that of `listen`.
    pub endpoints: Vec<(IpAddr, Option<u16>)>,
    /// The name to join under.
    pub name: Option<Name>,
    /// How many lanes packets move on.
    pub lanes: Option<Lanes>,
    /// What the guard closes.
    pub guard: Option<GuardMode>,
    /// What the guard lets out.
    pub egress: Option<GuardEgress>,
    /// Whether the guard may cut off who is connected by ssh.
    pub lock_ssh: bool,
    /// What brings programs' questions for names to `ovd`.
    pub dns: Option<DnsHook>,
    /// The log filter.
    pub log: Option<String>,
    /// Whether logs are JSON.
    pub is_log_json: bool,
}

/// The file as TOML has it; values are checked one by one, so that an error can name the key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
    name: Option<String>,
    lanes: Option<i64>,
    guard: Option<String>,
    egress: Option<String>,
    #[serde(default)]
    lock_ssh: bool,
    dns: Option<String>,
    log: Option<String>,
    log_format: Option<String>,
}

/// Reads the file `given`; without it `/etc/ovmesh/PROGRAM.toml`, which need not exist.
///
/// # Errors
///
/// When the file cannot be read or says something that makes no sense.
pub fn load(program: &str, given: Option<&Path>) -> Result<NodeFile, ConfigError> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => Path::new("/etc/ovmesh").join(format!("{program}.toml")),
    };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let file = parse(&path, &text)?;
            let not_here = if program != "ovsap" {
                None
            } else if file.guard.is_some() || file.lock_ssh {
                Some("guard and lock_ssh are keys of ovd: ovsap keeps no guard; leave them out")
            } else if file.dns.is_some() {
                Some("dns is a key of ovd: ovsap answers no names; leave it out")
            } else {
                None
            };
            match not_here {
                Some(text) => {
                    Err(ConfigError { file: path.display().to_string(), text: text.to_owned() })
                }
                None => Ok(file),
            }
        }
        Err(error) if given.is_none() && error.kind() == io::ErrorKind::NotFound => {
            Ok(NodeFile::default())
        }
        Err(error) => Err(ConfigError {
            file: path.display().to_string(),
            text: format!("cannot read it: {error}"),
        }),
    }
}

/// Checks the text of the file `path`.
///
/// # Errors
///
/// The first thing in it that makes no sense.
pub fn parse(path: &Path, text: &str) -> Result<NodeFile, ConfigError> {
    let refuse = |text: String| ConfigError { file: path.display().to_string(), text };
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let place = error.span().map(|span| {
            let line = text[..span.start.min(text.len())].matches('\n').count();
            let shown = text.lines().nth(line).unwrap_or_default().trim();
            format!("line {} (`{}`): ", line + 1, shown.escape_debug())
        });
        refuse(format!("{}{}", place.unwrap_or_default(), error.message()))
    })?;
    let listen = raw
        .listen
        .map(|value| {
            value.parse().map_err(|_| {
                refuse(format!(
                    "listen is `{}`, expected IP:PORT such as 0.0.0.0:6080 or [::]:6080",
                    value.escape_debug()
                ))
            })
        })
        .transpose()?;
    let endpoints = raw
        .endpoints
        .iter()
        .map(|value| {
            endpoint(value).ok_or_else(|| {
                refuse(format!(
                    "endpoints has `{}`, expected IP or IP:PORT such as 192.0.2.7 or \
                     [2001:db8::7]:6080",
                    value.escape_debug()
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    let name = raw
        .name
        .map(|value| Name::new(&value).map_err(|error| refuse(format!("name: {error}"))))
        .transpose()?;
    let lanes = raw
        .lanes
        .map(|number| {
            Lanes::new(number).map_err(|error| refuse(format!("lanes is `{number}`, {error}")))
        })
        .transpose()?;
    let guard = word("guard", raw.guard, refuse)?;
    let egress = word("egress", raw.egress, refuse)?;
    let dns = word("dns", raw.dns, refuse)?;
    let is_log_json = match raw.log_format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Err(refuse(format!(
                "log_format is `{}`, expected text or json",
                other.escape_debug()
            )));
        }
    };
    for (key, value) in [("state_dir", &raw.state_dir), ("socket", &raw.socket)] {
        if let Some(path) = value.as_ref().filter(|path| !path.is_absolute()) {
            return Err(refuse(format!(
                "{key} is `{}`, expected an absolute path",
                path.display()
            )));
        }
    }
    Ok(NodeFile {
        state_dir: raw.state_dir,
        socket: raw.socket,
        listen,
        endpoints,
        name,
        lanes,
        guard,
        egress,
        lock_ssh: raw.lock_ssh,
        dns,
        log: raw.log,
        is_log_json,
    })
}

/// The value of a key that takes one of a few words.
fn word<T>(
    key: &str,
    value: Option<String>,
    refuse: impl Fn(String) -> ConfigError,
) -> Result<Option<T>, ConfigError>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let read = |word: String| {
        word.parse().map_err(|error| refuse(format!("{key} is `{}`, {error}", word.escape_debug())))
    };
    value.map(read).transpose()
}

fn endpoint(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(ip) = text.parse() {
        return Some((ip, None));
    }
    let endpoint: SocketAddr = text.parse().ok()?;
    (endpoint.port() != 0).then(|| (endpoint.ip(), Some(endpoint.port())))
}

/// What the guard closes when nobody says: everything in a pod, which has one purpose and whose ports are
/// the operator's business; services alone elsewhere. A pod is where Kubernetes put its variables.
#[must_use]
pub fn default_guard(environment: impl Fn(&str) -> Option<PathBuf>) -> GuardMode {
    match environment("KUBERNETES_SERVICE_HOST") {
        Some(_) => GuardMode::All,
        None => GuardMode::Ports,
    }
}

/// Where data packets are received when nobody says.
#[must_use]
pub fn default_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))
}

/// Where state and the socket of `program` are when nobody says: root's places, or this user's.
#[must_use]
pub fn default_paths(
    program: &str,
    is_root: bool,
    environment: impl Fn(&str) -> Option<PathBuf>,
) -> (PathBuf, PathBuf) {
    let socket = format!("{program}.sock");
    if is_root {
        let state = Path::new("/var/lib/ovmesh").join(program);
        return (state, Path::new(RUN_DIR).join(socket));
    }
    // The XDG specification has relative paths ignored.
    let absolute = |name| environment(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/tmp"))
        .join("ovmesh");
    let run = match absolute("XDG_RUNTIME_DIR") {
        Some(run) => run.join("ovmesh"),
        None => state.clone(),
    };
    (state.join(program), run.join(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<NodeFile, String> {
        parse(Path::new("/etc/ovmesh/ovd.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_file_is_read() {
        let file = check(
            "state_dir = '/s'\nsocket = '/r/x.sock'\nlisten = '[::]:6080'\n\
             endpoints = ['192.0.2.7', '[2001:db8::7]:7000']\nname = 'web'\nlanes = 4\nlog = 'debug'\n\
             log_format = 'json'\n",
        )
        .unwrap();

        assert_eq!(file.listen, Some("[::]:6080".parse().unwrap()));
        assert_eq!(file.endpoints[0], ("192.0.2.7".parse().unwrap(), None));
        assert_eq!(file.endpoints[1], ("2001:db8::7".parse().unwrap(), Some(7000)));
        assert_eq!(file.name, Some(Name::new("web").unwrap()));
        assert_eq!(file.lanes.map(Lanes::count), Some(4));
        assert!(file.is_log_json);
        assert_eq!(check("").unwrap(), NodeFile::default());
    }

    #[test]
    fn errors_name_file_key_expected_and_actual() {
        for (text, words) in [
            ("listen = 'here'", &["listen", "here", "0.0.0.0:6080"][..]),
            ("endpoints = ['1.2.3.4:0']", &["endpoints", "1.2.3.4:0", "IP:PORT"]),
            ("name = 'Web'", &["name", "Web", "a-z"]),
            ("lanes = 0", &["lanes", "`0`", "1 to 64"]),
            ("lanes = 65", &["lanes", "`65`", "1 to 64"]),
            ("lanes = 'many'", &["line 1", "many", "expected i64"]),
            ("egress = 'on'", &["egress", "`on`", "off or rules"]),
            ("dns = 'on'", &["dns", "`on`", "auto, redirect, resolved or off"]),
            ("guard = 'on'", &["guard", "`on`", "ports, all or off"]),
            ("log_format = 'xml'", &["log_format", "xml", "json"]),
            ("state_dir = 'here'", &["state_dir", "here", "absolute"]),
            ("name = 'web'\nport = 5", &["port", "line 2", "unknown field", "expected"]),
            ("listen = 6080", &["line 1", "listen = 6080", "string"]),
            ("listen = ", &["line 1"]),
        ] {
            let error = check(text).unwrap_err();
            for word in ["/etc/ovmesh/ovd.toml"].iter().chain(words) {
                assert!(error.contains(word), "{text}: {error} lacks {word}");
            }
        }
    }

    #[test]
    fn a_sap_is_told_that_it_keeps_no_guard_and_answers_no_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        for text in ["guard = 'all'", "lock_ssh = true"] {
            fs::write(&path, text).unwrap();
            let error = load("ovsap", Some(&path)).unwrap_err().to_string();
            assert!(error.contains("node.toml") && error.contains("keeps no guard"), "{error}");
            assert!(load("ovd", Some(&path)).is_ok());
        }
        fs::write(&path, "dns = 'off'").unwrap();
        let error = load("ovsap", Some(&path)).unwrap_err().to_string();
        assert!(error.contains("answers no names"), "{error}");
        assert_eq!(load("ovd", Some(&path)).unwrap().dns, Some(DnsHook::Off));
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist_and_the_default_one_need_not() {
        let missing = Path::new("/nowhere/ovd.toml");

        assert!(load("ovd", Some(missing)).unwrap_err().to_string().contains("/nowhere/ovd.toml"));
        assert_eq!(load("no-such-program", None), Ok(NodeFile::default()));
    }

    #[test]
    fn a_pod_is_closed_and_other_machines_close_services() {
        let pod =
            |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| PathBuf::from("10.0.0.1"));

        assert_eq!(default_guard(pod), GuardMode::All);
        assert_eq!(default_guard(|_| None), GuardMode::Ports);
        assert_eq!(check("guard = 'all'\nlock_ssh = true").unwrap().guard, Some(GuardMode::All));
    }

    #[test]
    fn each_user_has_its_places() {
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/h"));

        let root = default_paths("ovd", true, home);
        let user = default_paths("ovsap", false, home);

        let path = PathBuf::from;
        assert_eq!(root, (path("/var/lib/ovmesh/ovd"), path("/run/ovmesh/ovd.sock")));
        let state = path("/h/.local/state/ovmesh/ovsap");
        assert_eq!(user, (state, path("/h/.local/state/ovmesh/ovsap.sock")));
    }
}
