//! The package under a real systemd: it is started as the first process of a namespace, on a copy of this
//! machine's root and on the network of a machine of a test world.
//!
//! Its cgroups are below one that this test makes, so that a systemd that runs this machine is left alone.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::package::{build, is_root};
use crate::settled::nothing_missing;
use crate::support::{SOON, play};
use crate::up::{ONLINE_WITHIN, expect_as_before, fresh, left, reach};
use crate::world::{Machine, Output, Process, poll};

/// Debian's place for it.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// How long it may take to be there, and a watchdog to bite.
const BOOTED_WITHIN: Duration = Duration::from_secs(30);

/// Makes a root and a cgroup of its own, and becomes the first process in them.
const BOOT: &str = r#"
set -e
mkdir "$1"
echo $$ > "$1/cgroup.procs"
exec unshare --cgroup --mount --propagation private --pid --uts --ipc --fork --kill-child sh -c '
  set -e
  dir=$(mktemp -d)
  mount -t tmpfs tmpfs "$dir"
  mkdir "$dir/upper" "$dir/work" "$dir/root"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
  share=$(readlink -f /var/lib/ovmesh)
  cd "$dir/root"
  mount -t proc proc proc
  mount -t sysfs -o ro sysfs sys
  mount -t tmpfs tmpfs run
  mount -t tmpfs tmpfs tmp
  mkdir run/share
  mount --bind "$share" run/share
  mount -t tmpfs -o mode=755 tmpfs dev
  for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
  done
  mkdir dev/net dev/pts dev/shm
  # As udev makes it: anybody may open it.
  mknod -m 666 dev/net/tun c 10 200
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
  mount -t tmpfs tmpfs dev/shm
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  fi
  pivot_root . mnt
  umount -l mnt
  # What mounts credentials for a unit counts on it.
  mount --make-rshared /
  exec env -i container=ovmesh PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=console --show-status=no --unit=multi-user.target'
"#;

/// Runs a command inside; `systemd` is the oldest process of that name in the world.
const ENTER: &str = r#"
for process in $(ls -v /proc); do
  if [ "$(cat "/proc/$process/comm" 2> /dev/null)" = systemd ]; then
    exec nsenter -t "$process" --mount --pid --uts --ipc --cgroup --root --wd \
      env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
  fi
done
echo "no systemd runs" >&2
exit 99
"#;

/// A machine that systemd runs.
struct Booted {
    machine: Machine,
    process: Process,
    /// Of its cgroups, seen from here.
    cgroup: PathBuf,
}

impl Booted {
    /// `name` is nobody else's at the moment.
    fn new(machine: &Machine, name: &OsStr) -> Result<Self> {
        let roots = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = roots.into_iter().find(|root| root.is_dir()).context("no cgroups")?;
        let cgroup = root.join(name);
        let boot = ["sh", "-c", BOOT, "boot", &cgroup.to_string_lossy()];
        let process = machine.spawn("systemd", &boot)?;
        let mut booted = Self { machine: machine.clone(), process, cgroup };
        poll(BOOTED_WITHIN, "systemd to be there", || {
            ensure!(booted.process.is_running(), "it ended: {}", booted.process.log_text());
            let state = booted.run(&["systemctl", "is-system-running"])?.stdout;
            Ok(["running", "degraded"].contains(&state.trim()).then_some(()))
        })
        .with_context(|| booted.process.log_text())?;
        Ok(booted)
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        self.machine.run(&[&["sh", "-c", ENTER, "enter"], words].concat())
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-c", script])?.success(script)
    }

    /// A property of the daemon's unit.
    fn show(&self, property: &str) -> Result<String> {
        let command = format!("systemctl show --value --property {property} ovd");
        Ok(self.shell(&command)?.trim().to_owned())
    }

    fn wait_ready(&self) -> Result<()> {
        let ready = self.run(&["ovd", "status", "--check", "ready", "--wait", "20s"])?;
        ready.success("ovd status --check ready").map(drop)
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Processes are gone a moment after they were killed.
        let remove = "for _ in $(seq 50); do \
                      find \"$0\" -depth -type d -exec rmdir {} + 2> /dev/null; \
                      [ -d \"$0\" ] || exit 0; sleep 0.1; done";
        let directory = self.cgroup.to_string_lossy();
        let _ = self.machine.run(&["sh", "-c", remove, &directory]);
    }
}

#[test]
#[ignore = "long"]
#[expect(clippy::print_stderr, reason = "what was not checked must be said, and a figure be read")]
fn a_package_is_online_by_one_command_outlives_what_kills_it_and_goes_without_a_trace() {
    if !is_root() || !PathBuf::from(SYSTEMD).exists() {
        eprintln!("NOT CHECKED: the package under systemd, which is not here, or this is not root");
        return;
    }
    play(&["s1"], &["b"], |rig| {
        let machine = fresh(rig)?;
        let share = machine.state_dir();
        let package = build(&share.join("package"))?;
        std::fs::rename(package, share.join("ovmesh.deb"))?;
        let world = rig.world.dir().file_name().context("a world has a directory")?;
        let booted = Booted::new(&machine, world)?;
        let _echo = rig.udp_echo("b", 7)?;
        let before = left(&machine)?;
        booted.shell("dpkg -i /run/share/ovmesh.deb")?;
        ensure!(booted.show("ActiveState")? == "inactive", "installing starts nothing");

        // One command, and packets pass.
        let begun = Instant::now();
        let up = booted.run(&["ovd", "up", "--join", "@/run/share/token"])?;
        reach(rig, &machine)?;
        let took = begun.elapsed();
        ensure!(up.stderr.contains("online as a: 10.70."), "{up:?}");
        ensure!(took < ONLINE_WITHIN, "it took {took:?}");
        booted.shell("systemctl is-active ovd && systemctl is-enabled ovd")?;
        let pid = booted.show("MainPID")?;
        let shown = format!("tr '\\0' '\\n' < /proc/{pid}/cmdline; cat /proc/{pid}/environ");
        let token = std::fs::read_to_string(share.join("token"))?;
        let shown = booted.shell(&shown)?;
        ensure!(
            shown.contains("/usr/bin/ovd\nrun\n") && shown.contains("NOTIFY_SOCKET"),
            "{shown}"
        );
        ensure!(!shown.contains(token.trim()), "the token is shown");
        let owner = booted.shell(&format!("ps -o user= -p {pid}"))?;
        ensure!(owner.trim() == "ovd", "it runs as {owner}");

        // A restart loses nothing: systemd keeps what it hands over.
        let target = rig.at("b", 7)?.to_string();
        let stream = rig.counter_on(&machine, "udp-stream", &[&target], &["1000"])?;
        stream.expect_growth("received", 500)?;
        ensure!(booted.show("NFileDescriptorStore")?.parse::<u32>()? > 0, "systemd keeps nothing");
        for _ in 0..3 {
            booted.shell("systemctl restart ovd")?;
            booted.wait_ready()?;
            stream.expect_growth("received", 500)?;
        }
        let (missing, gap) = (stream.number("missing")?, stream.number("gapMillisMax")?);
        eprintln!(
            "online {took:?} after the command; 3 restarts: {missing} missing, longest gap {gap} ms"
        );
        nothing_missing(&[&stream])?;

        // What ends without being told to comes back, and so does what hangs.
        booted.shell("systemctl kill --signal KILL ovd")?;
        poll(SOON, "a second life", || Ok((booted.show("NRestarts")? == "1").then_some(())))?;
        booted.wait_ready()?;
        reach(rig, &machine)?;
        booted.shell(
            "mkdir -p /etc/systemd/system/ovd.service.d
             printf '[Service]\\nWatchdogSec=2s\\nTimeoutAbortSec=1s\\n' > /etc/systemd/system/ovd.service.d/soon.conf
             systemctl daemon-reload; systemctl restart ovd",
        )?;
        let stuck = booted.show("MainPID")?;
        booted.shell("systemctl kill --signal STOP ovd")?;
        poll(BOOTED_WITHIN, "the watchdog to bite", || {
            let pid = booted.show("MainPID")?;
            Ok((pid != stuck && pid != "0").then_some(()))
        })?;
        booted.wait_ready()?;
        reach(rig, &machine)?;
        drop(stream);

        booted.run(&["ovd", "down"])?.success("ovd down")?;
        expect_as_before(&machine, &before, "ovd down")?;
        booted.shell("! systemctl is-active ovd && ! systemctl is-enabled ovd")?;
        booted.run(&["ovd", "up"])?.success("ovd up, after ovd down")?;
        reach(rig, &machine)?;

        // Removing takes it all away, the guard and routes too.
        booted.shell("dpkg -r ovmesh && [ ! -e /usr/bin/ovd ]")?;
        expect_as_before(&machine, &before, "dpkg -r")
    });
}
