//! What the end-to-end tests share: a rig of real programs in a world, and what reads them.
//!
//! A test says which SaPs and entities it needs and gets a [`Rig`]. When it fails, the counters of
//! every node are shown beside the ends of their logs. At most two worlds exist at a time: more
//! would only slow each other down, and every figure here has a deadline.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ovmesh::api::table::{NodeTable, OverlayTable};
use serde_json::Value;

use crate::binaries;
use crate::fleet::{Binaries, Fleet, Kind, parse};
use crate::world::{Machine, Output, Process, World, poll};

/// The overlay of rigs that have only one.
pub(crate) const LAB: &str = "lab";

/// Its range.
pub(crate) const LAB_CIDR: &str = "10.70.0.0/16";

/// How long anything may take to become true.
pub(crate) const SOON: Duration = Duration::from_secs(8);

/// How long nodes may take to find the server again.
pub(crate) const READY: Duration = Duration::from_secs(20);

/// How long nothing has to happen to count as stopped.
pub(crate) const QUIET: Duration = Duration::from_millis(700);

/// The UDP port of data packets.
const DATA_PORT: u16 = 6080;

/// How many worlds there may be at a time: with four on two processors these are busy two thirds of the time.
const WORLDS_MAX: u32 = 4;

static WORLDS: Mutex<u32> = Mutex::new(0);
static WORLD_ENDED: Condvar = Condvar::new();

/// The right to have a world.
pub(crate) struct Turn(());

impl Turn {
    /// Waits for it.
    pub(crate) fn take() -> Self {
        let worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worlds = WORLD_ENDED
            .wait_while(worlds, |worlds| *worlds >= WORLDS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *worlds += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *WORLDS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        WORLD_ENDED.notify_one();
    }
}

/// A server, SaPs and entities, with what tests do to them.
pub(crate) struct Rig {
    /// The programs.
    pub(crate) fleet: Fleet,
    /// Their machines.
    pub(crate) world: World,
    binaries: Binaries,
    names: Vec<String>,
    files: AtomicU32,
    // Last: the world is gone when another test may make one.
    _turn: Turn,
}

/// Runs `test` on SaPs and entities in the overlay [`LAB`].
pub(crate) fn play(saps: &[&str], entities: &[&str], test: impl FnOnce(&mut Rig) -> Result<()>) {
    play_in(LAB_CIDR, saps, entities, test);
}

/// As [`play`], with [`LAB`] in another range.
#[expect(clippy::print_stderr, reason = "a failed test has no better place")]
pub(crate) fn play_in(
    cidr: &str,
    saps: &[&str],
    entities: &[&str],
    test: impl FnOnce(&mut Rig) -> Result<()>,
) {
    let turn = Turn::take();
    let mut rig = match Rig::new(turn) {
        Ok(rig) => rig,
        Err(error) => panic!("{error:#}"),
    };
    let outcome = rig.populate(cidr, saps, entities).and_then(|()| test(&mut rig));
    if let Err(error) = outcome {
        eprintln!("{}", rig.counters());
        // The rig is alive while this unwinds, so its end shows the logs.
        panic!("{error:#}");
    }
}

impl Rig {
    fn new(turn: Turn) -> Result<Self> {
        let binaries = binaries();
        let world = World::new()?;
        let fleet = Fleet::start(&world, &binaries)?;
        Ok(Self {
            fleet,
            world,
            binaries,
            names: Vec::new(),
            files: AtomicU32::new(0),
            _turn: turn,
        })
    }

    fn populate(&mut self, cidr: &str, saps: &[&str], entities: &[&str]) -> Result<()> {
        self.fleet.ovctl_ok(&["overlay", "create", LAB, "--cidr", cidr])?;
        for sap in saps {
            self.join(sap, Kind::Sap, &[])?;
        }
        for entity in entities {
            self.join(entity, Kind::Entity, &[])?;
        }
        Ok(())
    }

    /// Makes a machine and joins it to [`LAB`] with a token made with `token_options` added.
    pub(crate) fn join(&mut self, name: &str, kind: Kind, token_options: &[&str]) -> Result<()> {
        self.fleet.join(name, kind, &[LAB], token_options)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// As [`Self::join`], with an IPv6 endpoint on the underlay.
    pub(crate) fn join_over_v6(&mut self, name: &str, kind: Kind) -> Result<()> {
        let machine = self.world.machine(name)?;
        let token = self.fleet.token(&["--role", kind.role(), "--overlay", LAB])?;
        let endpoint = SocketAddr::new(machine.ip6.into(), DATA_PORT).to_string();
        let options = ["--listen", "[::]:6080", "--endpoint", &endpoint];
        self.fleet.add(machine, kind, &token, &options)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Starts a node of any overlays, which is not ready yet: see [`Self::wait_ready`].
    pub(crate) fn launch(
        &mut self,
        name: &str,
        kind: Kind,
        overlays: &[&str],
        token_options: &[&str],
    ) -> Result<()> {
        self.fleet.launch(name, kind, overlays, token_options)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Waits until every node is ready, and has the table that came of it.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        for name in &self.names {
            self.fleet.node_mut(name)?.wait_ready()?;
        }
        self.settle()
    }

    /// `ovctl policy allow WORDS`, which must be enforced when it returns. Returns the rule's id.
    pub(crate) fn allow(&self, words: &[&str]) -> Result<String> {
        self.rule("allow", words)
    }

    /// `ovctl policy deny WORDS`, as [`Self::allow`].
    pub(crate) fn deny(&self, words: &[&str]) -> Result<String> {
        self.rule("deny", words)
    }

    fn rule(&self, verb: &str, words: &[&str]) -> Result<String> {
        let change =
            self.fleet.ovctl_json(&[&["policy", verb, "--overlay", LAB], words].concat())?;
        ensure!(change["enforcement"]["enforced"] == true, "not enforced: {change:#}");
        self.settle()?;
        rule_id(&change)
    }

    /// As [`Self::allow`], where nobody runs who could enforce it.
    pub(crate) fn allow_no_wait(&self, words: &[&str]) -> Result<String> {
        let allow = ["policy", "allow", "--overlay", LAB, "--no-wait"];
        rule_id(&self.fleet.ovctl_json(&[&allow, words].concat())?)
    }

    /// `ovctl policy revoke WORDS`, which must be enforced when it returns.
    pub(crate) fn revoke(&self, words: &[&str]) -> Result<()> {
        self.fleet.ovctl_ok(&[&["policy", "revoke"], words].concat()).map(drop)
    }

    /// Waits until every node has come back to the server.
    pub(crate) fn reconnected(&self) -> Result<()> {
        poll(READY, "every node to come back to the server", || {
            let status = parse(&self.fleet.ovctl(&["status", "-o", "json"])?.stdout)?;
            let all = |kind: &str| status[kind]["online"] == status[kind]["total"];
            Ok((all("entities") && all("saps")).then_some(()))
        })
    }

    /// Waits until every node has the newest table: a change is enforced when the SaP or the destination
    /// has it, the source may still be waiting for its key.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut quiet = 0;
        poll(SOON, "every node to have its newest table", || {
            let status = parse(&self.fleet.ovctl(&["status", "-o", "json"])?.stdout)?;
            let is_settled = status["behind"].as_array().is_some_and(Vec::is_empty);
            // Twice in a row: the source's table may only be made when the others have theirs.
            quiet = if is_settled { quiet + 1 } else { 0 };
            Ok((quiet >= 2).then_some(()))
        })
    }

    /// The exit code of `ovctl policy can`.
    pub(crate) fn can(&self, from: &str, to: &str, service: &str) -> Result<i32> {
        Ok(self.fleet.ovctl(&["policy", "can", from, to, "-p", service])?.code)
    }

    /// An entity's address in [`LAB`], with a port.
    pub(crate) fn at(&self, entity: &str, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.fleet.address(entity, LAB)?, port))
    }

    /// A node's endpoint on the underlay.
    pub(crate) fn underlay(&self, node: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(IpAddr::V4(self.fleet.machine(node)?.ip4), DATA_PORT))
    }

    /// Gives a machine its own resolver configuration, which programs see that start from now on.
    pub(crate) fn set_resolvers(&self, machine: &Machine, text: &str) -> Result<()> {
        Ok(fs::write(self.world.dir().join(&machine.name).join("resolv.conf"), text)?)
    }

    /// A path for a file that programs of this world may write.
    pub(crate) fn file(&self, kind: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.world.dir().join(format!("test-{number}.{kind}"))
    }

    /// Starts a `netkit` command that counts into a file: `COMMAND FIRST FILE REST...`.
    pub(crate) fn counter(
        &self,
        node: &str,
        command: &str,
        first: &str,
        rest: &[&str],
    ) -> Result<Counter> {
        self.counter_on(self.fleet.machine(node)?, command, &[first], rest)
    }

    /// As [`Self::counter`], on any machine: `COMMAND FIRST... FILE REST...`.
    pub(crate) fn counter_on(
        &self,
        machine: &Machine,
        command: &str,
        first: &[&str],
        rest: &[&str],
    ) -> Result<Counter> {
        let file = self.file("json");
        let path = file.to_string_lossy().into_owned();
        let words = [&[command], first, &[path.as_str()], rest].concat();
        Ok(Counter { _process: self.run_on(machine, &words)?, file })
    }

    /// Where the traffic tool is.
    pub(crate) fn netkit(&self) -> String {
        self.binaries.netkit.to_string_lossy().into_owned()
    }

    /// Starts a sink for datagrams at an entity's port.
    pub(crate) fn udp_sink(&self, entity: &str, port: u16) -> Result<Counter> {
        self.counter(entity, "udp-sink", &self.at(entity, port)?.to_string(), &[])
    }

    /// Starts a server that echoes datagrams at an entity's port.
    pub(crate) fn udp_echo(&self, entity: &str, port: u16) -> Result<Running> {
        self.run(entity, &["udp-echo", &self.at(entity, port)?.to_string()])
    }

    /// Starts an HTTP server at an entity's port.
    pub(crate) fn http_echo(&self, entity: &str, port: u16) -> Result<Running> {
        self.run(entity, &["http-echo", &self.at(entity, port)?.to_string(), entity])
    }

    /// Starts a server that echoes lines at an entity's port.
    pub(crate) fn tcp_echo(&self, entity: &str, port: u16) -> Result<Running> {
        self.run(entity, &["tcp-echo", &self.at(entity, port)?.to_string()])
    }

    /// Starts a `netkit` command that says when it is ready.
    pub(crate) fn run(&self, node: &str, words: &[&str]) -> Result<Running> {
        self.run_on(self.fleet.machine(node)?, words)
    }

    /// As [`Self::run`], on any machine.
    pub(crate) fn run_on(&self, machine: &Machine, words: &[&str]) -> Result<Running> {
        // A log of its own: what others wrote there says `ready`, too.
        let log = format!("netkit-{}", self.files.fetch_add(1, Ordering::Relaxed));
        Ok(Running(self.fleet.netkit_spawn_on(machine, &log, words)?))
    }

    /// Starts sending a datagram every 5 ms.
    pub(crate) fn udp_stream(
        &self,
        from: &str,
        to: &str,
        port: u16,
        count: u64,
    ) -> Result<Process> {
        self.udp_stream_with(from, to, port, &[&count.to_string(), "5000", "64"])
    }

    /// As [`Self::udp_stream`]: `COUNT INTERVAL_US SIZE`, and a file that ends it.
    pub(crate) fn udp_stream_with(
        &self,
        from: &str,
        to: &str,
        port: u16,
        words: &[&str],
    ) -> Result<Process> {
        let (netkit, target) = (self.netkit(), self.at(to, port)?.to_string());
        let words = [&[netkit.as_str(), "udp-send", "0.0.0.0:0", &target], words].concat();
        let log = format!("netkit-{}", self.files.fetch_add(1, Ordering::Relaxed));
        self.fleet.machine(from)?.spawn(&log, &words)
    }

    /// How many of `count` datagrams came back from an echo server.
    pub(crate) fn udp_ping(&self, from: &str, to: &str, port: u16, count: u32) -> Result<u64> {
        let target = self.at(to, port)?.to_string();
        let report =
            self.fleet.netkit_json(from, &["udp-ping", &target, &count.to_string(), "400"])?;
        number(&report, "received")
    }

    /// How many of `count` requests were answered.
    pub(crate) fn http_get(&self, from: &str, to: &str, port: u16, count: u32) -> Result<u64> {
        let target = self.at(to, port)?.to_string();
        let report =
            self.fleet.netkit_json(from, &["http-get", &target, &count.to_string(), "3000"])?;
        number(&report, "ok")
    }

    /// How many of `count` ICMP echoes were answered.
    pub(crate) fn icmp_ping(&self, from: &str, to: &str, count: u32) -> Result<u64> {
        let target = self.at(to, 0)?.ip().to_string();
        let report =
            self.fleet.netkit_json(from, &["icmp-ping", &target, &count.to_string(), "3000"])?;
        number(&report, "received")
    }

    /// Sends `count` datagrams from one entity to a port of another; every one must leave the host.
    pub(crate) fn udp_send(&self, from: &str, to: &str, port: u16, count: u32) -> Result<()> {
        let target = self.at(to, port)?;
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let words = ["udp-send", any, &target.to_string(), &count.to_string(), "1000", "64"];
        let report = self.fleet.netkit_json(from, &words)?;
        ensure!(number(&report, "sent")? == u64::from(count), "the host refused some: {report}");
        Ok(())
    }

    /// Sends GUE datagrams as they are, each `count` times, from one machine's data port to another
    /// node's, past the daemon that may run there.
    pub(crate) fn inject(&self, from: &str, to: &str, gue: &[String], count: u32) -> Result<()> {
        self.inject_from(self.fleet.machine(from)?, DATA_PORT, self.underlay(to)?, gue, count)
    }

    /// As [`Self::inject`], from any machine and port.
    pub(crate) fn inject_from(
        &self,
        machine: &Machine,
        port: u16,
        target: SocketAddr,
        gue: &[String],
        count: u32,
    ) -> Result<()> {
        let file = self.file("hex");
        fs::write(&file, gue.iter().map(|hex| format!("{hex}\n")).collect::<String>())?;
        let source = SocketAddr::new(IpAddr::V4(machine.ip4), port).to_string();
        let each = "while read -r hex; do \"$0\" gue-send \"$1\" \"$2\" \"$hex\" \"$4\" || exit 1; \
                    done < \"$3\"";
        machine
            .run(&[
                "sh",
                "-c",
                each,
                &self.netkit(),
                &source,
                &target.to_string(),
                &file.to_string_lossy(),
                &count.to_string(),
            ])?
            .success("inject")
            .map(drop)
    }

    /// Sends one TCP segment for each flag byte through the sender's own TUN, from a port that
    /// `ports` chooses.
    pub(crate) fn raw_tcp(
        &self,
        from: &str,
        segments: &[(SocketAddr, SocketAddr, u8)],
    ) -> Result<()> {
        let file = self.file("segments");
        let lines =
            segments.iter().map(|(source, target, flags)| format!("{source} {target} {flags}\n"));
        fs::write(&file, lines.collect::<String>())?;
        let each = "while read -r source target flags; do \"$0\" raw-tcp \"$source\" \"$target\" \
                    \"$flags\" 1 || exit 1; done < \"$1\"";
        let netkit = self.netkit();
        self.fleet
            .machine(from)?
            .run(&["sh", "-c", each, &netkit, &file.to_string_lossy()])?
            .success("raw-tcp")
            .map(drop)
    }

    /// Runs `move_it` and then waits until a drop counter of a node has moved by exactly `by`.
    pub(crate) fn drops_move(
        &self,
        node: &str,
        reason: &str,
        by: u64,
        move_it: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.fleet.node(node)?.drops(reason)?;
        move_it()?;
        self.drops_reach(node, reason, before + by)
    }

    /// Waits until a drop counter of a node is `count`; fails when it goes beyond.
    pub(crate) fn drops_reach(&self, node: &str, reason: &str, count: u64) -> Result<()> {
        let mut last = 0;
        poll(SOON, &format!("{node} to drop {count} for {reason}"), || {
            last = self.fleet.node(node)?.drops(reason)?;
            Ok((last >= count).then_some(()))
        })
        .with_context(|| format!("{node} dropped {last} for {reason}"))?;
        ensure!(last == count, "{node} dropped {last} for {reason}, not {count}");
        Ok(())
    }

    /// The table that a node keeps on disk.
    pub(crate) fn table(&self, node: &str) -> Result<NodeTable> {
        let state = self.fleet.machine(node)?.state_dir();
        let found = ["ovd", "ovsap"].map(|program| state.join(program).join("table.json"));
        let path = found.iter().find(|path| path.exists());
        let path = path.with_context(|| format!("no table.json below {}", state.display()))?;
        let document = parse(&fs::read_to_string(path)?)?;
        // The table stands alone or inside an envelope.
        let table = document.get("table").filter(|table| table.is_object()).unwrap_or(&document);
        Ok(serde_json::from_value(table.clone())?)
    }

    /// The key that `from` stamps on what it sends to `to` in [`LAB`].
    pub(crate) fn send_key(&self, from: &str, to: &str) -> Result<u32> {
        let table = self.table(from)?;
        let lab = table.body.overlays.iter().find(|overlay| overlay.name.as_str() == LAB);
        let lab = lab.with_context(|| format!("{from} is not in {LAB}"))?;
        send_key(lab, to).with_context(|| format!("{from} has no key for {to}"))
    }

    /// Every node's counters, for people.
    pub(crate) fn counters(&self) -> String {
        let mut text = String::new();
        for name in &self.names {
            let status = self.fleet.node(name).and_then(super::fleet::Node::status);
            let line = match status {
                Ok(status) => format!(
                    "packets {} drops {} flows {} problems {}",
                    status["packets"], status["drops"], status["flows"], status["problems"]
                ),
                Err(error) => format!("no status: {error}"),
            };
            text.push_str(&format!("{name}: {line}\n"));
        }
        text
    }
}

fn rule_id(change: &Value) -> Result<String> {
    let id = change["result"]["id"].as_u64();
    Ok(format!("r-{}", id.with_context(|| format!("no rule in {change:#}"))?))
}

fn send_key(overlay: &OverlayTable, to: &str) -> Option<u32> {
    let index = overlay.members.iter().position(|member| member.name.to_string() == to)?;
    let index = u32::try_from(index).ok()?;
    overlay.send_keys.iter().find(|row| row.to == index).map(|row| row.key.bits())
}

/// A command that runs until this is dropped, so that its port is free again.
pub(crate) struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        // A world that has ended took it along.
        let _ = self.0.kill();
    }
}

/// A `netkit` command that counts into a file until this is dropped.
pub(crate) struct Counter {
    _process: Running,
    file: PathBuf,
}

impl Counter {
    /// What it counted so far.
    pub(crate) fn read(&self) -> Result<Value> {
        parse(&fs::read_to_string(&self.file)?)
    }

    /// One figure of it.
    pub(crate) fn number(&self, field: &str) -> Result<u64> {
        number(&self.read()?, field)
    }

    /// How many datagrams arrived.
    pub(crate) fn received(&self) -> Result<u64> {
        self.number("received")
    }

    /// Waits until exactly `count` datagrams have arrived.
    pub(crate) fn expect_received(&self, count: u64) -> Result<()> {
        let mut last = 0;
        poll(SOON, &format!("{count} datagrams to arrive"), || {
            last = self.received()?;
            Ok((last >= count).then_some(()))
        })
        .with_context(|| format!("{last} arrived"))?;
        ensure!(last == count, "{last} datagrams arrived, not {count}");
        Ok(())
    }

    /// Waits until a figure has grown by `by` from here on.
    pub(crate) fn expect_growth(&self, field: &str, by: u64) -> Result<()> {
        let start = self.number(field)?;
        poll(SOON, &format!("`{field}` to grow by {by}"), || {
            Ok((self.number(field)? >= start + by).then_some(()))
        })
    }
}

/// A figure of a report.
pub(crate) fn number(report: &Value, field: &str) -> Result<u64> {
    report[field].as_u64().with_context(|| format!("no number `{field}` in {report}"))
}

/// What a command must do to be a clean refusal: this exit code, nothing on stdout, and on stderr an
/// error that says all `words`.
pub(crate) fn expect_refusal(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    ensure!(output.code == code, "exit code {} is not {code}: {output:?}", output.code);
    ensure!(output.stdout.is_empty(), "a refusal prints no data: {output:?}");
    ensure!(!output.stderr.contains("panicked"), "{}", output.stderr);
    for word in words {
        let found = output.stderr.to_lowercase().contains(&word.to_lowercase());
        ensure!(found, "`{word}` is not in the error:\n{}", output.stderr);
    }
    Ok(())
}

/// One HTTP request over a unix socket; returns the status and the body.
pub(crate) fn http_over(
    socket: &Path,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // A server may refuse a body before it has read all of it.
    let sent = stream.write_all(body);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("no answer (sent: {sent:?}, read: {read:?}): {answer:?}");
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no status line: {head}"))?, body.to_owned()))
}
