//! `ovd up` and `ovd down`: from a fresh machine to online by one command, and back to a machine as it was.
//!
//! Where systemd is played, the player is a script that starts what the unit says, as the unit's user and
//! with its rights; users, files and everything else are real, in a copy of this machine's `/etc`.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::binaries;
use crate::package::is_root;
use crate::support::{LAB, LAB_CIDR, Rig, SOON, expect_refusal, play};
use crate::world::{Machine, Output, poll};

/// Everything that a network program may leave behind. Link-local addresses come with links, in their own time.
const LEFT: &str = "\
ip -o link show | sed 's/mtu/\\n&/;s/ group.*//'
ip -o address show | sed 's/ valid_lft.*//'
for family in -4 -6; do ip $family route show table all; ip $family rule show; done
nft list ruleset
cat /etc/resolv.conf /etc/hosts /etc/nsswitch.conf
cd /proc/sys/net && grep -r . ipv4/ip_forward ipv4/conf/*/rp_filter ipv6/conf/*/forwarding core/*mem_max";

/// How soon packets pass after the command (issue: join to first policed ping).
pub(crate) const ONLINE_WITHIN: Duration = Duration::from_secs(5);

/// As long as other tests have the processors, too, in a debug build.
const BESIDE_OTHERS: Duration = Duration::from_secs(15);

pub(crate) fn left(machine: &Machine) -> Result<String> {
    // A machine without some of the files is a machine, too.
    machine
        .run(&["sh", "-c", &format!("({LEFT}) 2> /dev/null | grep -v fe80:: || true")])?
        .success("what is left")
}

/// The machine is as it was `before`.
pub(crate) fn expect_as_before(machine: &Machine, before: &str, what: &str) -> Result<()> {
    let after = left(machine)?;
    ensure!(after == before, "before:\n{before}\n--- after {what}:\n{after}");
    Ok(())
}

/// A machine with nothing on it but a token, whose labels a rule lets talk to `b`.
pub(crate) fn fresh(rig: &Rig) -> Result<Machine> {
    let machine = rig.world.machine("a")?;
    rig.set_resolvers(&machine, "nameserver 10.99.0.1\n")?;
    let token = rig.fleet.token(&["--overlay", LAB, "--name", "a", "--label", "role=laptop"])?;
    let place = machine.state_dir().join("token");
    std::fs::write(&place, token)?;
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o600))?;
    rig.allow(&["role=laptop", "b"])?;
    Ok(machine)
}

/// Asks `b` until it answers; nothing else may be in the way.
pub(crate) fn reach(rig: &Rig, machine: &Machine) -> Result<()> {
    let (netkit, target) = (rig.netkit(), rig.at("b", 7)?.to_string());
    let ping = [netkit.as_str(), "udp-ping", &target, "1", "200"];
    poll(SOON, "an answer of b", || {
        let output = machine.run(&ping)?;
        Ok((output.code == 0 && output.stdout.contains("\"received\":1")).then_some(()))
    })
}

#[test]
fn without_systemd_it_is_online_and_down_leaves_the_machine_as_it_was() {
    play(&["s1"], &["b"], |rig| {
        let machine = fresh(rig)?;
        let _echo = rig.udp_echo("b", 7)?;
        let ovd = binaries().ovd.to_string_lossy().into_owned();
        let before = left(&machine)?;
        ensure!(before.contains("default via 10.99.0.1"), "routes are not seen:\n{before}");

        let begun = Instant::now();
        let up = [ovd.as_str(), "up", "--join", "@/var/lib/ovmesh/token"];
        let mut process = machine.spawn("up", &up)?;
        reach(rig, &machine)?;
        let took = begun.elapsed();
        ensure!(took < BESIDE_OTHERS, "it took {took:?}");

        let during = left(&machine)?;
        for trace in ["inet ovmesh", LAB_CIDR, "ov0"] {
            ensure!(during.contains(trace) && !before.contains(trace), "{trace}:\n{during}");
        }
        ensure!(process.log_text().contains("no systemd"), "{}", process.log_text());
        machine.run(&[ovd.as_str(), "down"])?.success("ovd down")?;
        ensure!(process.wait(SOON)? == 0, "it did not end well: {}", process.log_text());
        expect_as_before(&machine, &before, "ovd down")?;
        Ok(())
    });
}

/// What every command of [`Laptop`] finds: an `/etc` of its own that stays, systemd, a program where programs are.
const SETTING: &str = r#"
set -e
etc=/var/lib/ovmesh/.etc
[ -e "$etc" ] || cp -a /etc "$etc"
mount --bind "$etc" /etc
chmod 755 /var/lib/ovmesh /run/ovmesh
mkdir -p /run/systemd /run/bin
mount -t tmpfs -o mode=755 tmpfs /run/systemd
mkdir /run/systemd/system
mount -t tmpfs -o mode=755 tmpfs /run/bin
touch /run/bin/ovd
mount --bind "$1" /run/bin/ovd
cp /var/lib/ovmesh/systemctl /run/bin/
mknod -m 666 /run/bin/tun c 10 200
mount --bind /run/bin/tun /dev/net/tun
shift
export PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec "$@"
"#;

/// Plays systemd for one unit: starts what it says, as whom it says, and comes back when that is there.
const SYSTEMCTL: &str = r#"#!/bin/sh
unit=/etc/systemd/system/ovd.service wanted=/etc/systemd/system/wanted pid=/var/lib/ovmesh/.pid
is_running() { [ -e $pid ] && kill -0 "$(cat $pid)" 2> /dev/null; }
case "$1" in
  cat) exec cat $unit ;;
  daemon-reload) ;;
  is-active) is_running ;;
  is-enabled) [ -e $wanted ] ;;
  enable)
    touch $wanted
    is_running && exit
    user=$(sed -n 's/^User=//p' $unit)
    install -d -m 755 -o "$user" -g "$user" /run/ovmesh/ovd
    command=$(sed -n 's/^ExecStart=//p' $unit | sed 's,%S,/var/lib,g; s,%t,/run,g; s,%d,/nowhere,g')
    rights=-all,+$(sed -n 's/^AmbientCapabilities=CAP_//p' $unit | tr A-Z a-z)
    setsid setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --inh-caps "$rights" \
      --ambient-caps "$rights" --bounding-set "$rights" $command > /var/lib/ovmesh/.log 2>&1 < /dev/null &
    echo $! > $pid
    for _ in $(seq 100); do
      [ -e /run/ovmesh/ovd/ovd.sock ] && exit
      is_running || break
      sleep 0.1
    done
    cat /var/lib/ovmesh/.log >&2
    exit 1 ;;
  disable)
    rm -f $wanted
    is_running && kill "$(cat $pid)"
    while is_running; do sleep 0.05; done ;;
  *) echo "systemctl $*: not played" >&2; exit 1 ;;
esac
"#;

/// A machine that systemd runs, for all that it can see.
struct Laptop(Machine);

impl Laptop {
    fn new(machine: Machine) -> Result<Self> {
        let place = machine.state_dir().join("systemctl");
        std::fs::write(&place, SYSTEMCTL)?;
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(machine))
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let ovd = binaries().ovd.to_string_lossy().into_owned();
        let setting = ["sh", "-c", SETTING, "setting", ovd.as_str()];
        self.0.run(&[&setting[..], words].concat())
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-c", script])?.success(script)
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "what was not checked must be said")]
fn with_systemd_it_joins_installs_the_unit_and_is_online_when_it_returns() {
    if !is_root() {
        eprintln!("NOT CHECKED: `ovd up` with systemd, which makes a user and so needs root");
        return;
    }
    play(&["s1"], &["b"], |rig| {
        let machine = fresh(rig)?;
        let laptop = Laptop::new(machine.clone())?;
        let _echo = rig.udp_echo("b", 7)?;
        let before = left(&machine)?;

        let revoked = rig.fleet.token(&["--overlay", LAB])?;
        let tokens = rig.fleet.ovctl_ok(&["token", "list", "-o", "name"])?;
        let last = tokens.lines().next().context("no token")?;
        rig.fleet.ovctl_ok(&["token", "revoke", last])?;
        // What cannot be is refused before anything is there.
        let nothing = "ls -A /var/lib/ovmesh/ovd /etc/systemd/system/ovd.service 2>&1 | grep -c 'No such file'";
        for (words, code, says) in [
            (&["ovd", "up"][..], 3, &["has not joined", "ovd up --join"][..]),
            (&["ovd", "up", "--guard", "all"], 2, &["no flags but --join", "ovd.toml"]),
            (&["ovd", "up", "--join", "@/nowhere"], 1, &["/nowhere"]),
            (&["ovd", "up", "--join", "nonsense"], 2, &["token"]),
            (&["ovd", "up", "--join", revoked.trim()], 7, &["token"]),
        ] {
            expect_refusal(&laptop.run(words)?, code, says)?;
            ensure!(laptop.shell(nothing)?.trim() == "2", "{words:?} left something");
        }
        expect_as_before(&machine, &before, "refusals")?;

        let begun = Instant::now();
        let up = laptop.run(&["ovd", "up", "--join", "@/var/lib/ovmesh/token"])?;
        reach(rig, &machine)?;
        let took = begun.elapsed();
        let said = up.stderr.clone();
        up.success("ovd up --join")?;
        ensure!(took < BESIDE_OTHERS, "it took {took:?}");
        ensure!(said.contains("installed ovd.service for /run/bin/ovd"), "{said}");
        ensure!(said.contains("online as a: 10.70."), "{said}");

        let owners = "stat -c '%U %a' /var/lib/ovmesh/ovd /var/lib/ovmesh/ovd/identity.json; \
                      grep -rl \"$(cat /var/lib/ovmesh/token)\" /etc/systemd /etc/ovmesh /var/lib/ovmesh/token || true; \
                      sed -n 's/^Uid:[^0-9]*//p' /proc/$(cat /var/lib/ovmesh/.pid)/status";
        let found = laptop.shell(owners)?;
        ensure!(found.starts_with("ovd 700\novd 600\n"), "{found}");
        ensure!(
            found.contains("/var/lib/ovmesh/token"),
            "a token is not found where it is:\n{found}"
        );
        ensure!(!found.contains("/etc/"), "the token stands in a file:\n{found}");
        let user = laptop.shell("id -u ovd")?;
        ensure!(found.lines().last().is_some_and(|ids| ids.starts_with(user.trim())), "{found}");

        // Again it changes nothing, with a token or without.
        for words in [&["ovd", "up"][..], &["ovd", "up", "--join", "@/var/lib/ovmesh/token"]] {
            let again = laptop.run(words)?;
            ensure!(again.stderr.contains("online as a") && !again.stderr.contains("installed"));
            again.success("ovd up, again")?;
        }

        laptop.shell("systemctl is-enabled")?;
        laptop.run(&["ovd", "down"])?.success("ovd down")?;
        expect_as_before(&machine, &before, "ovd down")?;
        laptop.shell("! systemctl is-enabled")?;

        laptop.run(&["ovd", "up"])?.success("ovd up, after ovd down")?;
        reach(rig, &machine)?;
        laptop.run(&["ovd", "down"])?.success("ovd down")?;
        laptop.run(&["ovd", "leave"])?.success("ovd leave")?;
        laptop.shell("[ ! -e /var/lib/ovmesh/ovd/identity.json ]")?;
        Ok(())
    });
}
