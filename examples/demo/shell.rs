//! The demo's machines without its script: an interactive shell in the middle of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::fleet::Binaries;
use crate::world::World;

/// The machines of Figure 1.
const MACHINES: &[&str] = &["server", "sap-1", "s1", "s2", "s3", "user"];

/// What stands at the top of the shell.
const WELCOME: &str = r#"
The machines of Figure 1, on one LAN, with nothing started:
  server  sap-1  s1  s2  s3  user          (10.99.0.11 to .16, fd99::11 to fd99::16)

  on MACHINE COMMAND...     runs a command on a machine: on s1 ip address
  ovctl ...                 is short for: on server ovctl ...
  address MACHINE [DEVICE]  prints a machine's overlay address (of ov0)
  logs are what you see; `exit` ends the world and everything in it

From nothing to a policed ping:
  on server ovctl serve &
  on sap-1 ovsap run --join $(ovctl token create --role sap) &
  for m in s1 s2; do on $m ovd join $(ovctl token create); on $m ovd run & done
  ovctl policy allow s1 s2 --port icmp
  on s1 ping -c 3 $(address s2)
"#;

/// `ovctl` of the shell: the server's unix socket is on the server's machine. It waits for a server
/// that was started a moment ago, so that commands can be pasted.
const OVCTL: &str = r#"#!/bin/sh
tries=0
until [ -S "$OVMESH_WORLD/server/run/ovctl.sock" ] || [ $tries -ge 50 ]; do
  tries=$((tries + 1))
  sleep 0.2
done
exec on server "$OVMESH_PROGRAMS/ovctl" "$@"
"#;

const ADDRESS: &str = r#"#!/bin/sh
# address MACHINE [DEVICE]: prints a machine's address in an overlay, once it has one.
tries=0
until line=$(on "${1:?usage: address MACHINE [DEVICE]}" \
  ip -oneline address show dev "${2:-ov0}" scope global 2>/dev/null) && [ -n "$line" ]; do
  tries=$((tries + 1))
  if [ $tries -gt 50 ]; then echo "address: $1 has no ${2:-ov0}" >&2; exit 1; fi
  sleep 0.2
done
set -- $line
echo "${4%/*}"
"#;

/// Read by the shell when it starts.
const RC: &str = r#"
PS1='ovmesh$ '
HISTFILE=
set +m
cat "$OVMESH_WORLD/welcome"
"#;

/// Opens the shell and waits for its end.
pub(crate) fn open(binaries: &Binaries) -> Result<()> {
    let world = World::new()?;
    for name in MACHINES {
        world.machine(name)?;
    }
    let bin = world.dir().join("bin");
    script(&bin.join("ovctl"), OVCTL)?;
    script(&bin.join("address"), ADDRESS)?;
    fs::write(world.dir().join("welcome"), WELCOME)?;
    let rc = world.dir().join("rc");
    fs::write(&rc, RC)?;
    let programs = binaries.ovctl.parent().context("ovctl stands in no directory")?;

    // Scripts first; then our programs, so that `on s1 ovd ...` finds them.
    let mut path = vec![bin, programs.to_owned(), programs.join("examples")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let status = world
        .command()
        .args(["bash", "--rcfile"])
        .arg(&rc)
        .arg("-i")
        .env("PATH", std::env::join_paths(path)?)
        .env("OVMESH_PROGRAMS", programs)
        .status()
        .context("cannot run bash")?;
    if !status.success() {
        println!("the shell ended with {status}");
    }
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
