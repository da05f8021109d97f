//! Where `ovctl`, `ovd status` and `ovsap status` look for sockets when nothing is said.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where root's programs keep their sockets.
const SYSTEM: &str = "/run/ovmesh";

/// The server's unix socket: root's for root; for others their own, else root's when that is the
/// only one there (the server may let them in, or says why not).
#[must_use]
pub fn server_socket() -> PathBuf {
    client_socket("ovctl.sock")
}

/// The local status socket of `program` (`ovd`, `ovsap`), found the same way.
#[must_use]
pub fn node_socket(program: &str) -> PathBuf {
    client_socket(&format!("{program}.sock"))
}

fn client_socket(file: &str) -> PathBuf {
    let system = Path::new(SYSTEM).join(file);
    let own = own_dir(is_root(), |name| std::env::var_os(name).map(PathBuf::from)).join(file);
    if !own.exists() && system.exists() { system } else { own }
}

/// Whether this process runs as root: `/proc/self` belongs to the effective user.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The directory of this user's sockets.
fn own_dir(is_root: bool, environment: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    // The XDG specification has relative paths ignored.
    let absolute = |name| environment(name).filter(|path| path.is_absolute());
    if is_root {
        return PathBuf::from(SYSTEM);
    }
    if let Some(runtime) = absolute("XDG_RUNTIME_DIR") {
        return runtime.join("ovmesh");
    }
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.unwrap_or_else(|| PathBuf::from("/tmp")).join("ovmesh")
}

#[cfg(test)]
mod tests {
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
            assert_eq!(own_dir(root, world(set)), Path::new(expected));
        }
    }
}
