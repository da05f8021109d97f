//! Where `ovctl`, `ovd status` and `ovsap status` look for sockets when nothing is said.

use std::path::PathBuf;

use super::node::default_paths;
use super::user;

/// The server's unix socket: root's for root; for others their own, else root's when that is the
/// only one there (the server may let them in, or says why not).
#[must_use]
pub fn server_socket() -> PathBuf {
    node_socket("ovctl")
}

/// The local status socket of `program` (`ovd`, `ovsap`), found the same way.
#[must_use]
pub fn node_socket(program: &str) -> PathBuf {
    let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (_, system) = default_paths(program, true, environment);
    let (_, own) = default_paths(program, user::effective_uid() == Some(0), environment);
    if !own.exists() && system.exists() { system } else { own }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
