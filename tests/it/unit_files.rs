//! `config/systemd/`: what the units say, and that programs run with exactly the rights, paths and
//! users that the units give. This file plays systemd; `systemd-analyze` judges where it is.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::package::is_root;
use crate::support::{LAB, LAB_CIDR, SOON, play};
use crate::world::{Machine, Process, poll};

const SERVICES: [&str; 4] =
    ["ovd.service", "ovsap.service", "ovmesh-server.service", "ovmesh-wait-online.service"];

/// What `systemd-analyze security` may find.
const EXPOSURE_MAX: f32 = 2.5;

/// The user that plays the unit's own.
const USER: &str = "4242";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/systemd")
}

/// A unit: its settings in order.
struct Unit(Vec<(String, String)>);

impl Unit {
    fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(directory().join(name)).unwrap();
        let settings = text.lines().filter(|line| !line.starts_with(['#', '[']));
        let settings = settings.filter_map(|line| line.split_once('='));
        Self(settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, key: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// The command, with what systemd puts in for its specifiers.
    fn command(&self) -> Vec<String> {
        let command = self.get("ExecStart").replace("%S", "/var/lib").replace("%t", "/run");
        let command = command.replace("%d", CREDENTIALS);
        command.split(' ').map(str::to_owned).collect()
    }
}

/// Where credentials are.
const CREDENTIALS: &str = "/run/credentials";

#[test]
fn units_give_few_rights_and_hold_no_secret() {
    for name in SERVICES {
        let unit = Unit::read(name);
        let is_daemon = unit.get("Type") == "notify";
        let rights = if name == "ovd.service" { "CAP_NET_ADMIN" } else { "" };
        for (key, value) in [
            ("CapabilityBoundingSet", rights),
            ("AmbientCapabilities", rights),
            ("LimitCORE", "0"),
            ("UMask", "0077"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("Environment", ""),
            ("EnvironmentFile", ""),
        ] {
            assert_eq!(unit.get(key), value, "{name}: {key}");
        }
        assert!(!["", "root"].contains(&unit.get("User")), "{name} runs as root");
        if is_daemon {
            assert_eq!(unit.get("Restart"), "always", "{name}");
            assert_eq!(unit.get("StateDirectoryMode"), "0700", "{name}");
            assert!(!unit.get("WatchdogSec").is_empty(), "{name} has no watchdog");
        }
        if unit.command().iter().any(|word| word == "--join") {
            let file = format!("token:/etc/ovmesh/{}.token", unit.get("User"));
            assert_eq!(unit.get("LoadCredential"), file, "{name}");
            assert!(unit.command().contains(&format!("@{CREDENTIALS}/token")), "{name}");
        }
        let text = std::fs::read_to_string(directory().join(name)).unwrap();
        assert!(!text.contains("ovt1.") && !text.contains("ova1."), "{name} holds a token");
    }
    let users: std::collections::BTreeSet<_> =
        SERVICES[..3].iter().map(|name| Unit::read(name).get("User").to_owned()).collect();
    assert_eq!(users.len(), 3, "each program has its own user");
}

/// The number in `→ Overall exposure level for ovd.service: 2.1 OK`.
fn exposure(text: &str) -> Option<f32> {
    let line = text.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split(' ').next()?.parse().ok()
}

#[test]
#[expect(clippy::print_stderr, reason = "what was not checked must be said")]
fn systemd_finds_the_units_hardened_and_well_formed() {
    let analyze = |arguments: &[&str], path: &Path| {
        Command::new("systemd-analyze").args(arguments).arg(path).output().ok()
    };
    let loose = tempfile::Builder::new().suffix(".service").tempfile().unwrap();
    std::fs::write(loose.path(), "[Service]\nExecStart=/bin/true\nProtectSytem=yes\n").unwrap();
    let security = ["security", "--offline=true", "--no-pager"];
    let Some(output) = analyze(&security, loose.path()) else {
        eprintln!("NOT CHECKED: units by systemd-analyze, which is not here");
        return;
    };
    let found = exposure(&String::from_utf8_lossy(&output.stdout));
    let Some(found) = found else {
        eprintln!("NOT CHECKED: units, as this systemd-analyze cannot judge files");
        return;
    };
    assert!(found > EXPOSURE_MAX, "a unit without any fence passes: {found}");
    let complaints = |path: &Path| {
        let output = analyze(&["verify", "--man=no"], path).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // The programs need not be installed on the machine that runs the tests.
        let lines = text.lines().filter(|line| !line.contains("is not executable"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let planted = complaints(loose.path());
    assert!(planted.iter().any(|line| line.contains("ProtectSytem")), "{planted:?}");

    for name in SERVICES {
        let path = directory().join(name);
        let output = analyze(&security, &path).unwrap();
        let found = exposure(&String::from_utf8_lossy(&output.stdout)).unwrap();
        assert!(found <= EXPOSURE_MAX, "{name}: exposure {found}");
        assert_eq!(complaints(&path), Vec::<String>::new(), "{name}");
    }
    assert_eq!(complaints(&directory().join("ovmesh-online.target")), Vec::<String>::new());
}

/// What the script below is told: user, state directory, run directory, capabilities, program.
const START: &str = r#"
set -e
user=$1 state=$2 run=$3 rights=$4 program=$5
shift 5
chmod 755 /var/lib/ovmesh /run/ovmesh
mkdir -p "$state" "$run" /run/bin
chmod 700 "$state"
chown "$user:$user" "$state" "$run"
name=${program##*/}
touch "/run/bin/$name"
mount --bind "$program" "/run/bin/$name"
mkdir -p /run/credentials
mount -t tmpfs -o mode=755 tmpfs /run/credentials
if [ -e /var/lib/ovmesh/token ]; then
  (umask 077; cp /var/lib/ovmesh/token /run/credentials/token)
  chown "$user" /run/credentials/token
fi
# Everybody may open the device where udev has made it; containers have it as they are given it.
if [ "$user" != 0 ]; then
  [ -e /run/tun ] || mknod -m 666 /run/tun c 10 200
  mount --bind /run/tun /dev/net/tun
fi
groups=--clear-groups
[ "$user" != 0 ] || groups=--keep-groups
exec setpriv --reuid="$user" --regid="$user" $groups --no-new-privs \
  --bounding-set="$rights" --inh-caps="$rights" --ambient-caps="$rights" "/run/bin/$name" "$@"
"#;

/// A program on a machine, started as its unit says.
struct Service {
    process: Process,
    notifications: UnixDatagram,
    heard: Vec<String>,
}

impl Service {
    /// Plays systemd. `token` is the content of the credential.
    fn start(machine: &Machine, unit: &str, token: Option<&str>) -> Result<Self> {
        let unit = Unit::read(unit);
        // Without root there is one user in the world.
        let user = if is_root() { USER } else { "0" };
        let rights = match unit.get("CapabilityBoundingSet") {
            "CAP_NET_ADMIN" => "-all,+net_admin",
            _ => "-all",
        };
        // Seen as /var/lib/ovmesh by commands on the machine.
        let shared = machine.state_dir();
        if let Some(token) = token {
            std::fs::write(shared.join("token"), token)?;
        }
        let socket = shared.join("notify");
        let notifications = UnixDatagram::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777))?;
        notifications.set_nonblocking(true)?;
        let command = unit.command();
        let program = command.first().context("no command")?;
        let program = binaries().ovd.with_file_name(Path::new(program).file_name().context("")?);
        let program = program.to_string_lossy();
        let state = format!("/var/lib/{}", unit.get("StateDirectory"));
        let run = format!("/run/{}", unit.get("RuntimeDirectory"));
        let play = ["sh", "-c", START, "start", user, &state, &run, rights, &program];
        let watchdog = ["env", "NOTIFY_SOCKET=/var/lib/ovmesh/notify", "WATCHDOG_USEC=2000000"];
        let words: Vec<&str> = watchdog.into_iter().chain(play).collect();
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        words.extend(command.into_iter().skip(1));
        let process = machine.spawn("service", &words)?;
        Ok(Self { process, notifications, heard: Vec::new() })
    }

    /// Waits until the service manager is told `what`, which it was not yet.
    fn wait_for(&mut self, what: &str) -> Result<()> {
        self.heard.clear();
        poll(SOON, &format!("{what} from the service"), || {
            let log = self.process.log_text();
            ensure!(what == "STOPPING=1" || self.process.is_running(), "it ended: {log}");
            self.listen();
            Ok(self.heard.iter().any(|heard| heard == what).then_some(()))
        })
    }

    fn listen(&mut self) {
        let mut bytes = [0; 64];
        while let Ok(len) = self.notifications.recv(&mut bytes) {
            self.heard.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
        }
    }

    /// A line of the process's status.
    fn status(&self, machine: &Machine, key: &str) -> Result<String> {
        let pid = self.process.pid().context("it has no process")?;
        let status = machine.run(&["cat", &format!("/proc/{pid}/status")])?.success("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        Ok(line.context("no such line")?.split_whitespace().next().unwrap_or("").to_owned())
    }

    /// Who may look into the process.
    fn owner(&self, machine: &Machine) -> Result<String> {
        let pid = self.process.pid().context("it has no process")?;
        let place = format!("/proc/{pid}/environ");
        Ok(machine.run(&["stat", "-c", "%u", &place])?.success("stat")?.trim().to_owned())
    }

    /// It has these rights and no other, and nobody but root may look into it.
    fn check_rights(&self, machine: &Machine, capabilities: &str) -> Result<()> {
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            ensure!(self.status(machine, set)? == capabilities, "{set} is another");
        }
        ensure!(self.status(machine, "NoNewPrivs")? == "1");
        if is_root() {
            ensure!(self.status(machine, "Uid")? == USER);
            ensure!(self.owner(machine)? == "0", "its own user could read its memory");
        }
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        // A manager that does not listen is told nothing more.
        self.listen();
        self.process.signal("TERM")?;
        self.wait_for("STOPPING=1")?;
        ensure!(self.process.wait(SOON)? == 0, "it did not end well");
        Ok(())
    }
}

/// The positive control of [`Service::owner`]: any other program may be looked into by its user.
fn check_owner(machine: &Machine) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let other = ["setpriv", "--reuid", USER, "--clear-groups", "sleep", "60"];
    let process = machine.spawn("sleep", &other)?;
    let mut service =
        Service { process, notifications: UnixDatagram::unbound()?, heard: Vec::new() };
    poll(SOON, "sleep to run", || Ok((service.status(machine, "Name")? == "sleep").then_some(())))?;
    ensure!(service.owner(machine)? == USER, "anybody's memory is hidden");
    service.process.kill().map(drop)
}

#[test]
fn programs_run_as_their_units_say() {
    play(&[], &["b"], |rig| {
        let sap = rig.world.machine("s1")?;
        let token = rig.fleet.token(&["--role", "sap", "--overlay", LAB])?;
        let mut ovsap = Service::start(&sap, "ovsap.service", Some(&token))?;
        ovsap.wait_for("READY=1")?;
        ovsap.wait_for("WATCHDOG=1")?;
        ovsap.wait_for("WATCHDOG=1")?;
        ovsap.check_rights(&sap, "0000000000000000")?;
        check_owner(&sap)?;

        let machine = rig.world.machine("a")?;
        let token = rig.fleet.token(&["--overlay", LAB])?;
        let mut ovd = Service::start(&machine, "ovd.service", Some(&token))?;
        ovd.wait_for("READY=1")?;
        let name = binaries().ovd.to_string_lossy().into_owned();
        let online = Unit::read("ovmesh-wait-online.service").command();
        let online: Vec<&str> = online.iter().skip(1).map(String::as_str).collect();
        let online = [&[name.as_str()], online.as_slice()].concat();
        machine.run(&online)?.success("ovd status --check ready --wait")?;
        ovd.wait_for("WATCHDOG=1")?;
        ovd.check_rights(&machine, "0000000000001000")?;

        // Root finds the service's socket without being told where it is.
        let status = machine.run(&[name.as_str(), "status", "-o", "name"])?;
        ensure!(status.success("ovd status")?.trim() == "a");
        rig.allow(&["a", "b"])?;
        let echo = rig.udp_echo("b", 7)?;
        let (netkit, target) = (rig.netkit(), rig.at("b", 7)?.to_string());
        let ping = [netkit.as_str(), "udp-ping", &target, "3", "400"];
        let report = machine.run(&ping)?.success("udp-ping")?;
        ensure!(report.contains("\"received\":3"), "{report}");
        drop(echo);
        ovd.stop()?;

        // A second start needs no credential.
        std::fs::remove_file(machine.state_dir().join("notify"))?;
        std::fs::write(machine.state_dir().join("token"), "none")?;
        let mut again = Service::start(&machine, "ovd.service", None)?;
        again.wait_for("READY=1")?;
        again.stop()?;
        // What it leaves on purpose, root takes away, also where it is another user's.
        let left = "nft list tables; ip route show type unreachable; ip -o link show type tun";
        let left = || machine.run(&["sh", "-c", left])?.success(left);
        let before = left()?;
        ensure!(before.contains("inet ovmesh") && before.contains(LAB_CIDR), "{before}");
        machine.run(&[name.as_str(), "down"])?.success("ovd down")?;
        ensure!(left()?.trim().is_empty(), "{}", left()?);
        ovsap.stop()?;

        let machine = rig.world.machine("spare")?;
        let mut server = Service::start(&machine, "ovmesh-server.service", None)?;
        server.wait_for("READY=1")?;
        server.wait_for("WATCHDOG=1")?;
        server.check_rights(&machine, "0000000000000000")?;
        let ovctl = binaries().ovctl.to_string_lossy().into_owned();
        machine.run(&[ovctl.as_str(), "status"])?.success("ovctl status")?;
        server.stop()
    });
}
