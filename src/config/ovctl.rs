//! Where `ovctl`, `ovd status` and `ovsap status` look for sockets when nothing is said.

use std::path::{Path, PathBuf};

use super::node::{RUN_DIR, default_paths};
use super::user;

/// The server's unix socket: root's for root; for others their own, else the one of the system (the
/// server may let them in, or says why not).
#[must_use]
pub fn server_socket() -> PathBuf {
    find("ovctl", "server")
}

/// The local status socket of `program` (`ovd`, `ovsap`), found the same way.
#[must_use]
pub fn node_socket(program: &str) -> PathBuf {
    find(program, program)
}

/// The socket of `program`. `service` is the directory that its systemd unit gives to it alone.
fn find(program: &str, service: &str) -> PathBuf {
    let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (_, own) = default_paths(program, user::effective_uid() == Some(0), environment);
    let (_, system) = default_paths(program, true, environment);
    let units = Path::new(RUN_DIR).join(service).join(format!("{program}.sock"));
    first_there([own, system, units])
}

/// The first that exists; the very first when none does.
fn first_there([own, system, units]: [PathBuf; 3]) -> PathBuf {
    [&own, &system, &units].into_iter().find(|path| path.exists()).unwrap_or(&own).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_socket_that_is_there_is_taken_and_the_own_one_is_named_when_none_is() {
        let dir = tempfile::tempdir().unwrap();
        let all = ["own", "system", "units"].map(|name| dir.path().join(name));
        let [own, system, units] = &all;

        assert_eq!(first_there(all.clone()), *own);
        for there in [units, system, own] {
            std::fs::write(there, "").unwrap();
            assert_eq!(first_there(all.clone()), *there);
        }
    }

    #[test]
    fn each_user_has_a_place_for_sockets() {
        let world = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, path)| PathBuf::from(path))
            }
        };
        for (root, set, expected) in [
            (true, &[("XDG_RUNTIME_DIR", "/r")][..], "/run/ovmesh"),
            (false, &[("XDG_RUNTIME_DIR", "/r"), ("HOME", "/h")], "/r/ovmesh"),
            (false, &[("XDG_RUNTIME_DIR", "r"), ("HOME", "/h")], "/h/.local/state/ovmesh"),
            (false, &[("XDG_STATE_HOME", "/s"), ("HOME", "/h")], "/s/ovmesh"),
        ] {
            let (_, socket) = default_paths("ovd", root, world(set));
            assert_eq!(socket, Path::new(expected).join("ovd.sock"));
        }
    }
}
