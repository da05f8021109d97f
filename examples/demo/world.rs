//! A world: machines on one LAN, made of network namespaces, that ends with its owner.
//!
//! One holder process owns a network, a mount and a process namespace. Its standard input is a pipe
//! from us: when that ends, for whatever reason (drop, panic, Ctrl-C, `kill -9`), the holder kills
//! everything in the world, removes the world's directory and leaves; daemons, veth pairs, TUN
//! devices and mounts go with their namespaces. So nothing needs to be cleaned up by hand, ever.
//!
//! ```text
//!   holder's namespace:   bridge `lan`  10.99.0.1/24  fd99::1/64
//!                          |        |        |
//!   nested namespaces:   eth0     eth0     eth0      one per machine, .11, .12, ...
//! ```
//!
//! As root these are plain namespaces; otherwise they stand in a user namespace. Where neither is
//! allowed, [`World::new`] says so and what to do: it never pretends.
//!
//! Each command on a machine sees its own host name, `/run/ovmesh`, `/var/lib/ovmesh` and, where it was
//! given one, `/etc/resolv.conf`, so the programs need no options that a real machine would not need.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Set to keep the directory (logs, databases) of a world that has ended.
const KEEP: &str = "OVMESH_KEEP";

/// What directories of worlds are called, followed by the owner's process id and a count.
const DIR_PREFIX: &str = "ovmesh-world-";

/// How long a command on a machine may take when nobody says otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a world may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What the holder does: builds the LAN, says `ready`, waits for the end of its input, tidies up.
///
/// `/run` is a fresh tmpfs (`ip netns` keeps its names there). `/var/lib` is one too, with links to
/// what the host has there, because `/var/lib/ovmesh` must exist here and must not on the host.
const HOLDER: &str = r#"
set -e
dir=$1 keep=$2
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/ovmesh /run/host-var-lib
mount --rbind /var/lib /run/host-var-lib
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir /var/lib/ovmesh
for entry in /run/host-var-lib/*; do
  if [ -e "$entry" ] && [ ! -e "/var/lib/${entry##*/}" ]; then ln -s "$entry" /var/lib/; fi
done
ip link add probe0 type veth peer name probe1
ip link delete probe0
ip link set lo up
ip link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0
for knob in all default; do
  echo 0 > /proc/sys/net/ipv6/conf/$knob/disable_ipv6
  echo 0 > /proc/sys/net/ipv6/conf/$knob/accept_dad
done
ip address add 10.99.0.1/24 dev lan
ip link set lan up
ip address add fd99::1/64 dev lan nodad
echo ready
set +e
cat > /dev/null
kill -s KILL -- -1
[ -n "$keep" ] || rm -rf "$dir"
"#;

/// Makes one machine; runs in the holder's namespaces.
const MACHINE: &str = r#"
set -e
name=$1 number=$2 ip4=$3 ip6=$4
ip netns add "$name"
ip link add "v$number" type veth peer name eth0 netns "$name"
ip link set "v$number" master lan up
exec nsenter --net="/run/netns/$name" -- sh -e -c '
  for knob in all default; do
    echo 0 > /proc/sys/net/ipv6/conf/$knob/disable_ipv6
    echo 0 > /proc/sys/net/ipv6/conf/$knob/accept_dad
  done
  ip link set lo up
  ip address add "$1/24" dev eth0
  ip link set eth0 up
  ip address add "$2/64" dev eth0 nodad
  ip route add default via 10.99.0.1
  ip route add default via fd99::1' machine "$ip4" "$ip6"
"#;

/// `on MACHINE COMMAND...`: runs a command on one machine. People use it in `make shell`, and every
/// command that this file runs on a machine goes through it.
const ON: &str = r#"#!/bin/sh
if [ $# -lt 2 ] || [ ! -e "/run/netns/$1" ]; then
  echo "usage: on MACHINE COMMAND [ARGUMENT...]    machines: $(ls /run/netns | tr '\n' ' ')" >&2
  exit 2
fi
exec nsenter --net="/run/netns/$1" -- unshare --mount --uts -- sh -e -c '
  hostname "$1"
  mount --bind "$0/$1/run" /run/ovmesh
  mount --bind "$0/$1/state" /var/lib/ovmesh
  if [ -e "$0/$1/resolv.conf" ]; then
    at=$(readlink -m /etc/resolv.conf)
    case "$at" in /run/*) mkdir -p "${at%/*}"; : >> "$at"; esac
    mount --bind "$0/$1/resolv.conf" "$at"
  fi
  shift
  if [ -n "$OVMESH_PID_FILE" ]; then echo $$ > "$OVMESH_PID_FILE"; unset OVMESH_PID_FILE; fi
  exec "$@"' "$OVMESH_WORLD" "$@"
"#;

/// Machines on one LAN. Everything in it ends when the last handle to it is dropped, or when this
/// process ends.
#[derive(Clone)]
pub(crate) struct World {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    holder: Mutex<Child>,
    holder_pid: u32,
    /// Held open; its end is the end of the world.
    lifeline: Mutex<Option<ChildStdin>>,
    in_user_namespace: bool,
    machines_made: AtomicU32,
    commands_run: AtomicU32,
}

/// One machine of a [`World`].
#[derive(Clone)]
pub(crate) struct Machine {
    inner: Arc<Inner>,
    /// Its name, which is also its host name.
    pub(crate) name: String,
    /// Its address on the LAN.
    pub(crate) ip4: Ipv4Addr,
    /// Its other address on the LAN.
    pub(crate) ip6: Ipv6Addr,
}

/// A command that runs on a machine until it is stopped or the world ends.
pub(crate) struct Process {
    machine: Machine,
    what: String,
    child: Child,
    pid_file: PathBuf,
    /// Where its output goes.
    log: PathBuf,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// The exit code; -1 when a signal ended it.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// The standard output, if the exit code is 0.
    pub(crate) fn success(self, what: &str) -> Result<String> {
        if self.code != 0 {
            bail!("`{what}` exited with {}\n{}{}", self.code, self.stderr, self.stdout);
        }
        Ok(self.stdout)
    }
}

impl World {
    /// Makes an empty world.
    ///
    /// # Errors
    ///
    /// Says what is missing and which command helps when this machine cannot make namespaces, real
    /// veth pairs or TUN devices.
    pub(crate) fn new() -> Result<Self> {
        check_tun()?;
        let in_user_namespace = effective_uid()? != 0;
        let dir = make_dir()?;

        let mut command = Command::new("unshare");
        if in_user_namespace {
            command.arg("--map-root-user");
        }
        command
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--", "sh", "-c", HOLDER, "ovmesh-world"])
            .arg(&dir)
            .arg(std::env::var(KEEP).unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.join("holder.log"))?)
            // Ctrl-C is for us; the holder must live long enough to tidy up after us.
            .process_group(0);
        let mut holder = command
            .spawn()
            .context("cannot run `unshare` (apt-get install util-linux) to make namespaces")?;
        let holder_pid = holder.id();
        let lifeline = holder.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        // From here on dropping `inner` tidies up, also on the early return.
        let inner = Arc::new(Inner {
            dir,
            holder: Mutex::new(holder),
            holder_pid,
            lifeline: Mutex::new(lifeline),
            in_user_namespace,
            machines_made: AtomicU32::new(0),
            commands_run: AtomicU32::new(0),
        });
        if line.trim() != "ready" {
            let reason = fs::read_to_string(inner.dir.join("holder.log")).unwrap_or_default();
            bail!(impossible(reason.trim(), in_user_namespace));
        }
        let on = inner.dir.join("bin/on");
        fs::create_dir(inner.dir.join("bin"))?;
        fs::write(&on, ON)?;
        fs::set_permissions(&on, fs::Permissions::from_mode(0o755))?;
        Ok(Self { inner })
    }

    /// The world's directory, on the host's file system, gone when the world ends.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Adds a machine to the LAN. Its name is at most 63 of a-z, 0-9 and `-`.
    pub(crate) fn machine(&self, name: &str) -> Result<Machine> {
        let number = self.inner.machines_made.fetch_add(1, Ordering::Relaxed) + 1;
        let host = u8::try_from(number + 10).context("a world holds at most 245 machines")?;
        let machine = Machine {
            inner: Arc::clone(&self.inner),
            name: name.to_owned(),
            ip4: Ipv4Addr::new(10, 99, 0, host),
            // The same digits in both families: fd99::11 is 10.99.0.11.
            ip6: format!("fd99::{host}").parse()?,
        };
        for sub in ["run", "state", "log"] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(self.inner.dir.join(name).join(sub))?;
        }
        let mut command = self.inner.enter();
        command.args(["sh", "-c", MACHINE, "ovmesh-machine", name, &number.to_string()]);
        command.args([machine.ip4.to_string(), machine.ip6.to_string()]);
        self.inner.finish(command, COMMAND_TIMEOUT)?.success(&format!("make machine {name}"))?;
        Ok(machine)
    }

    /// A command that runs in the middle of the world, on no machine: an interactive shell, say. It
    /// stays in our process group, so that it can own the terminal.
    pub(crate) fn command(&self) -> Command {
        self.inner.enter()
    }
}

impl Machine {
    /// Runs a command to its end, at most 30 s.
    pub(crate) fn run<S: AsRef<str>>(&self, command: &[S]) -> Result<Output> {
        self.run_for(command, COMMAND_TIMEOUT)
    }

    /// Runs a command to its end; kills it and fails after `timeout`.
    pub(crate) fn run_for<S: AsRef<str>>(
        &self,
        command: &[S],
        timeout: Duration,
    ) -> Result<Output> {
        let mut on = self.on(command);
        let pid_file = self.inner.fresh_path("pid");
        on.env("OVMESH_PID_FILE", &pid_file);
        let output = self.inner.finish(on, timeout);
        if output.is_err() {
            // The end of `nsenter` alone does not end what it started.
            let _ = self.inner.signal("KILL", &pid_file);
        }
        let _ = fs::remove_file(&pid_file);
        output.with_context(|| format!("on {}: {}", self.name, words(command)))
    }

    /// Starts a command that runs until it is stopped or the world ends. `name` names its log.
    pub(crate) fn spawn<S: AsRef<str>>(&self, name: &str, command: &[S]) -> Result<Process> {
        let log = self.inner.dir.join(&self.name).join("log").join(format!("{name}.log"));
        let output = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        let pid_file = self.inner.fresh_path("pid");
        let child = self
            .on(command)
            .env("OVMESH_PID_FILE", &pid_file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let mut process =
            Process { machine: self.clone(), what: words(command), child, pid_file, log };
        poll(COMMAND_TIMEOUT, &format!("`{}` to start", process.what), || {
            Ok((process.pid().is_some() || !process.is_running()).then_some(()))
        })?;
        Ok(process)
    }

    /// Where commands on this machine find `/run/ovmesh`, seen from here.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.inner.dir.join(&self.name).join("run")
    }

    /// Where commands on this machine find `/var/lib/ovmesh`, seen from here.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.inner.dir.join(&self.name).join("state")
    }

    /// Pulls the machine's plug out of the LAN, or puts it back.
    pub(crate) fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.run(&["ip", "link", "set", "eth0", state])?.success("set the link").map(drop)
    }

    /// Keeps the machine's own TCP from sending anything (a RST to segments of no connection, above
    /// all), so that only what `netkit raw-tcp` sends is on the wire: it marks its packets.
    pub(crate) fn mute_tcp(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            // One rule with `not` would be about everything that is not both.
            for rule in ["pref 1 fwmark 0x6f76 lookup main", "pref 2 ipproto tcp blackhole"] {
                let rule = format!("ip {family} rule add {rule}");
                self.run(&rule.split(' ').collect::<Vec<_>>())?.success(&rule)?;
            }
        }
        Ok(())
    }

    fn on<S: AsRef<str>>(&self, command: &[S]) -> Command {
        let mut on = self.inner.enter();
        on.arg(self.inner.dir.join("bin/on")).arg(&self.name);
        on.args(command.iter().map(AsRef::as_ref));
        on
    }
}

impl Process {
    /// Its process id inside the world; none before it started.
    pub(crate) fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end and returns its exit code, -1 when a signal ended it.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<i32> {
        let child = &mut self.child;
        poll(timeout, &format!("`{}` to end", self.what), || Ok(child.try_wait()?))
            .map(|status| status.code().unwrap_or(-1))
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        self.machine.inner.signal(signal, &self.pid_file)
    }

    /// Asks it to end (SIGTERM), kills it after 10 s, and returns its exit code.
    pub(crate) fn stop(&mut self) -> Result<i32> {
        if self.is_running() {
            self.signal("TERM")?;
        }
        self.wait(Duration::from_secs(10)).or_else(|_| self.kill())
    }

    /// Kills it without warning (SIGKILL), as a crash would.
    pub(crate) fn kill(&mut self) -> Result<i32> {
        if self.is_running() {
            self.signal("KILL")?;
        }
        self.wait(END_TIMEOUT)
    }

    /// What it wrote so far.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Inner {
    /// `nsenter` into the holder's namespaces. Its `pid` file is that of the children: `unshare`
    /// itself stays outside of the process namespace that it made.
    fn enter(&self) -> Command {
        let pid = self.holder_pid;
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--net"]);
        command.arg(format!("--pid=/proc/{pid}/ns/pid_for_children"));
        if self.in_user_namespace {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").env("OVMESH_WORLD", &self.dir);
        // What the user exported for a server of their own must not lead out of the world.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["OVCTL_", "OVD_", "OVSAP_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Runs to the end, with the output in files so that no pipe can fill up.
    fn finish(&self, mut command: Command, timeout: Duration) -> Result<Output> {
        let (out, err) = (self.fresh_path("out"), self.fresh_path("err"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out)?)
            .stderr(fs::File::create(&err)?)
            .process_group(0)
            .spawn()
            .context("cannot run `nsenter` (apt-get install util-linux)")?;
        let status = poll(timeout, "it to end", || Ok(child.try_wait()?));
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = |path: &Path| {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let _ = fs::remove_file(path);
            text
        };
        let (stdout, stderr) = (text(&out), text(&err));
        let status = status.with_context(|| format!("{stderr}{stdout}"))?;
        Ok(Output { code: status.code().unwrap_or(-1), stdout, stderr })
    }

    fn signal(&self, signal: &str, pid_file: &Path) -> Result<()> {
        let mut command = self.enter();
        let script = "for n in $(seq 40); do [ -s \"$1\" ] && break; sleep 0.1; done; kill -s $0 $(cat \"$1\")";
        command.args(["sh", "-c", script, signal]).arg(pid_file);
        self.finish(command, COMMAND_TIMEOUT)?.success(&format!("kill -s {signal}")).map(drop)
    }

    fn fresh_path(&self, kind: &str) -> PathBuf {
        let number = self.commands_run.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{number}.{kind}"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.dir);
        }
        if let Ok(lifeline) = self.lifeline.get_mut() {
            drop(lifeline.take());
        }
        if let Ok(holder) = self.holder.get_mut()
            && poll(END_TIMEOUT, "the world to end", || Ok(holder.try_wait()?)).is_err()
        {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        if std::env::var(KEEP).unwrap_or_default().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Asks until there is an answer; fails when there is none after `timeout`.
#[expect(clippy::disallowed_methods, reason = "the one place that waits for other processes")]
pub(crate) fn poll<T>(
    timeout: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain for {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn words<S: AsRef<str>>(command: &[S]) -> String {
    command.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}

/// Shows the end of every log of a world in which something failed.
#[expect(clippy::print_stderr, reason = "a failed test or demo has no better place")]
fn show_logs(dir: &Path) {
    for machine in fs::read_dir(dir).into_iter().flatten().flatten() {
        for log in fs::read_dir(machine.path().join("log")).into_iter().flatten().flatten() {
            let text = fs::read(log.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(25);
            let end = lines.get(from..).unwrap_or(&[]).join("\n");
            eprintln!("--- {}\n{end}", log.path().display());
        }
    }
}

/// The real user that files are judged by. The standard library does not tell.
fn effective_uid() -> Result<u32> {
    let status = fs::read_to_string("/proc/self/status").context("this needs Linux with /proc")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
        .context("/proc/self/status has no Uid line")
}

/// Makes the world's directory, and removes those of owners that are gone and had no time to.
fn make_dir() -> Result<PathBuf> {
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let mut base = std::env::temp_dir();
    if base.starts_with("/run") {
        // Worlds have an own /run, in which this directory would not be seen.
        base = PathBuf::from("/tmp");
    }
    let uid = effective_uid()?;
    for entry in fs::read_dir(&base)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(DIR_PREFIX).and_then(|rest| rest.split('-').next());
        let is_stale = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
            && entry.metadata().is_ok_and(|entry| entry.is_dir() && entry.uid() == uid);
        if is_stale && std::env::var(KEEP).unwrap_or_default().is_empty() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    let dir = base.join(format!("{DIR_PREFIX}{}-{number}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    Ok(dir)
}

/// User namespaces do not change who may open the device, so it can be asked beforehand.
fn check_tun() -> Result<()> {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "cannot make TUN devices: there is no {path}\n  why: the `tun` module is not loaded, or \
             this container was started without the device\n  do:  sudo modprobe tun    (for a \
             container: --device /dev/net/tun --cap-add NET_ADMIN)"
        ),
        Err(error) => bail!(
            "cannot make TUN devices: {path}: {error}\n  why: this user may not open it\n  do:  {}",
            with_sudo()
        ),
    }
}

fn impossible(reason: &str, in_user_namespace: bool) -> String {
    if reason.contains("ip: not found") {
        return "cannot make networks: there is no `ip`\n  why: iproute2 is not installed\n  do:  \
                sudo apt-get install -y iproute2"
            .to_owned();
    }
    let why = if in_user_namespace {
        "user namespaces are forbidden here, or have no rights (Ubuntu: \
         kernel.apparmor_restrict_unprivileged_userns; Docker: its seccomp profile)"
    } else {
        "root has no CAP_SYS_ADMIN or CAP_NET_ADMIN here (Docker: run it with --privileged)"
    };
    format!(
        "cannot make network namespaces: {reason}\n  why: {why}\n  do:  {}",
        if in_user_namespace {
            with_sudo()
        } else {
            "run it where namespaces are allowed".to_owned()
        }
    )
}

/// This very command, as root, with the same PATH.
fn with_sudo() -> String {
    let arguments: Vec<_> = std::env::args().collect();
    format!("sudo env \"PATH=$PATH\" {}", arguments.join(" "))
}
