//! The Debian package: what is in it, and that a machine is as it was when it is gone.
//!
//! It is built of the programs that the tests use, and installed, upgraded, removed and purged in a
//! copy of this machine's root: an overlay whose upper layer shows what changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::support::play;

/// Installs in the copy. `systemctl` is a recorder: no copy of a root has a systemd that runs.
const PLAY: &str = r#"
set -e
packages=$1
dir=$(mktemp -d)
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
for place in run tmp; do mount -t tmpfs tmpfs "$dir/root/$place"; done
mount -t proc proc "$dir/root/proc"
mount --bind /dev "$dir/root/dev"
mkdir -p "$dir/root/run/systemd/system" "$dir/root/tmp/bin"
cp -r "$packages"/* "$dir/root/tmp/"
printf '#!/bin/sh\necho "systemctl $*"\n' > "$dir/root/tmp/bin/systemctl"
chmod 755 "$dir/root/tmp/bin/systemctl"

chroot "$dir/root" sh -e -c '
  export PATH=/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
  state() { dpkg-query -W -f "state \${Status} \${Version}\n" ovmesh; }
  echo == install;  dpkg --no-triggers -i /tmp/first.deb; state
  for user in ovd ovsap ovmesh; do echo "user $(getent passwd $user)"; done
  ovctl --version; ovd --version; ovsap --version
  # An operator was here.
  echo "name = \"web\"" >> /etc/ovmesh/ovd.toml
  mkdir -p /var/lib/ovmesh; cp -r /tmp/state /var/lib/ovmesh/ovd
  chmod 700 /var/lib/ovmesh/ovd; chown -R ovd:ovd /var/lib/ovmesh/ovd
  echo token > /etc/ovmesh/ovd.token
  # What a stopped daemon leaves.
  nft add table inet ovmesh; nft add table inet others; ip link set lo up
  ip route add unreachable 10.70.0.0/16 metric 4278198272 proto static
  echo == before;   nft list tables; ip route
  echo == upgrade;  dpkg --no-triggers -i /tmp/second.deb; state; tail -1 /etc/ovmesh/ovd.toml
  echo == remove;   dpkg --no-triggers -r ovmesh; state; ls /usr/bin/ovd 2>&1 || true
  ls /var/lib/ovmesh/ovd; tail -1 /etc/ovmesh/ovd.toml
  echo == after;    nft list tables; ip route
  echo == purge;    dpkg --no-triggers -P ovmesh; state 2>&1 || true
  getent passwd ovd ovsap ovmesh || echo no users
  dpkg --audit
'
echo == left
cd "$dir/upper"
find . -type f
"#;

/// What dpkg and useradd themselves write: their records, and lists of users.
const OF_OTHERS: &[&str] = &["./var/lib/dpkg/", "./var/cache/", "./var/log/", "./etc/"];

/// Builds the package, quickly rather than small.
pub(crate) fn build(out: &Path) -> Result<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/debian/build");
    let programs = binaries().ovd;
    let programs = programs.parent().context("programs are in a directory")?;
    let output = Command::new(build)
        .args([programs, out])
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none")
        .output()
        .context("cannot run config/debian/build")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut packages = std::fs::read_dir(out)?;
    Ok(packages.next().context("no package was made")??.path())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    Ok(text)
}

/// The part of `text` that stands under the heading `== NAME`.
fn part<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("== {name}\n")).unwrap();
    rest.split("\n== ").next().unwrap()
}

fn check_contents(package: &str) -> Result<()> {
    let list = run("dpkg-deb", &["-c", package])?;
    let files: BTreeSet<&str> =
        list.lines().filter_map(|line| line.rsplit_once(" ./").map(|(_, path)| path)).collect();
    for path in [
        "usr/bin/ovctl",
        "usr/bin/ovd",
        "usr/bin/ovsap",
        "usr/lib/systemd/system/ovd.service",
        "usr/lib/systemd/system/ovsap.service",
        "usr/lib/systemd/system/ovmesh-server.service",
        "usr/lib/systemd/system/ovmesh-online.target",
        "etc/ovmesh/ovd.toml",
        "etc/ovmesh/ovsap.toml",
        "etc/ovmesh/server.toml",
        "usr/share/man/man1/ovctl.1.gz",
        "usr/share/man/man1/ovd-run.1.gz",
        "usr/share/man/man1/ovctl-policy-allow.1.gz",
        "usr/share/bash-completion/completions/ovd",
        "usr/share/zsh/vendor-completions/_ovsap",
        "usr/share/fish/vendor_completions.d/ovctl.fish",
        "usr/share/doc/ovmesh/copyright",
    ] {
        ensure!(files.contains(path), "the package lacks {path}");
    }
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        ensure!(owner == "root/root", "not root's: {line}");
        let others = mode.get(7..9).unwrap_or("");
        ensure!(!others.contains('w') && !mode.contains('s'), "too open: {line}");
    }
    let conffiles = run("dpkg-deb", &["-I", package, "conffiles"])?;
    ensure!(conffiles.lines().count() == 3, "{conffiles}");
    Ok(())
}

/// Joins a machine and takes what its daemon keeps.
fn take_state(to: &Path) -> Result<()> {
    play(&[], &["b"], |rig| {
        rig.fleet.node_mut("b")?.stop()?;
        let state = rig.fleet.machine("b")?.state_dir().join("ovd");
        run("cp", &["-r", &state.to_string_lossy(), &to.to_string_lossy()]).map(drop)
    });
    Ok(())
}

fn check_life(package: &Path, dir: &Path) -> Result<()> {
    let debs = dir.join("debs");
    std::fs::create_dir(&debs)?;
    take_state(&debs.join("state"))?;
    std::fs::rename(package, debs.join("first.deb"))?;
    let (first, second) = (debs.join("first.deb"), debs.join("second.deb"));
    let (first, second) = (first.to_string_lossy(), second.to_string_lossy());
    let open = dir.join("open").to_string_lossy().into_owned();
    run("dpkg-deb", &["-R", &first, &open])?;
    run("sed", &["-i", "s/^Version: .*/&+next/", &format!("{open}/DEBIAN/control")])?;
    run("dpkg-deb", &["-Znone", "--root-owner-group", "-b", &open, &second])?;

    let debs = debs.to_string_lossy();
    let arguments =
        ["--mount", "--net", "--propagation", "private", "sh", "-c", PLAY, "play", &debs];
    let text = run("unshare", &arguments)?;

    let install = part(&text, "install");
    ensure!(install.contains("state install ok installed 0."), "{text}");
    for user in ["ovd", "ovsap", "ovmesh"] {
        let line = install.lines().find(|line| line.starts_with(&format!("user {user}:")));
        ensure!(line.is_some_and(|line| line.ends_with("/nologin")), "no user {user}:\n{text}");
    }
    ensure!(!install.contains("systemctl enable"), "installing starts nothing:\n{text}");
    let upgrade = part(&text, "upgrade");
    ensure!(upgrade.contains("installed 0.1.0+next"), "{text}");
    ensure!(upgrade.contains("systemctl try-restart ovmesh-server.service"), "{text}");
    ensure!(
        upgrade.contains("name = \"web\""),
        "an upgrade keeps what the operator wrote:\n{text}"
    );
    let remove = part(&text, "remove");
    ensure!(
        remove.contains("systemctl disable --now") && remove.contains("config-files"),
        "{text}"
    );
    ensure!(remove.contains("No such file"), "{text}");
    ensure!(remove.contains("identity.json") && remove.contains("name = \"web\""), "{text}");
    let (before, after) = (part(&text, "before"), part(&text, "after"));
    ensure!(before.contains("inet ovmesh") && before.contains("unreachable 10.70"), "{text}");
    ensure!(after.trim() == "table inet others", "not as it was before:\n{text}");
    ensure!(part(&text, "purge").contains("no users"), "{text}");
    let left: Vec<_> = part(&text, "left")
        .lines()
        .filter(|file| !OF_OTHERS.iter().any(|place| file.starts_with(place)))
        .collect();
    ensure!(left.is_empty(), "it left {left:?}");
    ensure!(!part(&text, "left").contains("ovmesh"), "{text}");
    Ok(())
}

/// Whether this process is root and may be other users, too: in a namespace of its own it may not.
pub(crate) fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let users: u64 = map.split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0);
    users >= 1 << 16 && run("id", &["-u"]).is_ok_and(|uid| uid.trim() == "0")
}

#[test]
#[expect(clippy::print_stderr, reason = "what was not checked must be said")]
fn a_package_installs_upgrades_and_leaves_a_machine_as_it_was() {
    if run("dpkg-deb", &["--version"]).is_err() {
        eprintln!("NOT CHECKED: the Debian package, as there is no dpkg-deb here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let package = build(&dir.path().join("out")).unwrap();

    check_contents(&package.to_string_lossy()).unwrap();

    if is_root() {
        check_life(&package, dir.path()).unwrap();
    } else {
        eprintln!("NOT CHECKED: installing and removing the package, which needs root");
    }
}
