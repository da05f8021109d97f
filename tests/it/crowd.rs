//! Many nodes at one server: how soon a change is enforced, and how soon they are back when the server
//! was killed. Most of them are simulated (`netkit crowd`): they join, wait for tables and acknowledge them
//! over HTTPS, with the client that `ovd` has.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::support::{LAB, http_over, play};
use crate::world::poll;

/// How long everything else may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What changes took, from the request until the answer that says that they are enforced.
struct Times(Vec<Duration>);

impl Times {
    /// `percent` of them took at most this long.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted[(sorted.len() - 1) * percent / 100]
    }

    /// Prints what was measured, and fails when it is too much.
    #[expect(clippy::print_stderr, reason = "the figures that were asked for")]
    fn hold(&self, what: &str, median: Duration, worst: Duration) -> Result<()> {
        let [half, most, all] = [50, 99, 100].map(|percent| self.percentile(percent));
        eprintln!("{what}, {} changes: p50 {half:?}, p99 {most:?}, max {all:?}", self.0.len());
        ensure!(half <= median && most <= worst, "slower than p50 {median:?}, p99 {worst:?}");
        Ok(())
    }
}

/// Asks a server; the answer must be a good one.
fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> Result<Value> {
    let (status, text) = http_over(socket, method, path, body.to_string().as_bytes())?;
    ensure!(status == 200, "{method} {path}: {status} {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Makes `count` changes, an allow and its revocation in turn, each for another of `pairs`, and waits for
/// each until it is enforced.
fn change(socket: &Path, pairs: &[(String, String)], count: usize) -> Result<Times> {
    let mut times = Vec::new();
    let mut rule = None;
    for (number, (from, to)) in pairs.iter().cycle().take(count).enumerate() {
        let started = Instant::now();
        let answer = match rule.take() {
            Some(id) => ask(socket, "POST", "/v1/rules/revoke?wait=5s", &json!({"rule": id}))?,
            None => {
                let service = format!("udp/{}", 1_000 + number);
                let wanted =
                    json!({"action": "allow", "from": from, "to": to, "services": [service]});
                let answer = ask(socket, "POST", "/v1/rules?wait=5s", &wanted)?;
                rule = Some(answer["result"]["id"].clone());
                answer
            }
        };
        times.push(started.elapsed());
        let enforcement = &answer["enforcement"];
        ensure!(enforcement["enforced"] == true, "{from} -> {to}: {enforcement}");
        ensure!(enforcement["acknowledged"].as_u64() > Some(0), "nobody: {enforcement}");
    }
    Ok(Times(times))
}

/// Writes a token for as many entities as one likes into a file.
fn token(socket: &Path, dir: &Path, overlay: &str) -> Result<PathBuf> {
    let body = json!({"role": "entity", "uses": 0, "expires": "1h", "overlays": [overlay]});
    let answer = ask(socket, "POST", "/v1/tokens", &body)?;
    let path = dir.join("crowd.token");
    let text = answer["result"]["text"].as_str().context("no token")?;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?
        .write_all(text.as_bytes())?;
    Ok(path)
}

/// Changes at 50 simulated nodes and 5 real ones, on machines of their own.
fn fifty_and_five(count: usize, median: Duration, worst: Duration) {
    play(&["sap"], &["a", "b", "c", "d"], |rig| {
        let socket = rig.fleet.server.run_dir().join("ovctl.sock");
        let machine = rig.world.machine("crowd")?;
        let token = token(&socket, rig.world.dir(), LAB)?;
        let netkit = binaries().netkit;
        let words = [netkit.to_str(), Some("crowd"), token.to_str(), Some("sim"), Some("50")];
        let words: Vec<&str> = words.into_iter().flatten().collect();
        let mut crowd = machine.spawn("crowd", &words)?;
        poll(PATIENCE, "50 nodes to join", || {
            ensure!(crowd.is_running(), "{}", crowd.log_text());
            Ok(crowd.log_text().lines().any(|line| line == "ready").then_some(()))
        })?;
        let simulated = |number: usize| format!("sim-{number}");
        let real = ["a", "b", "c", "d"].map(str::to_owned);
        let mut pairs = Vec::new();
        for number in 0..12 {
            let (one, other) = (&real[number % 4], &real[(number + 1) % 4]);
            pairs.push((one.clone(), other.clone()));
            pairs.push((one.clone(), simulated(number)));
            pairs.push((simulated(number + 12), other.clone()));
            pairs.push((simulated(number + 24), simulated(number + 36)));
        }
        let times = change(&socket, &pairs, count)?;
        times.hold("50 simulated and 5 real nodes", median, worst)
    });
}

#[test]
fn a_change_is_enforced_soon_at_fifty_simulated_and_five_real_nodes() {
    // Other tests have the processors, too.
    fifty_and_five(24, Duration::from_secs(1), Duration::from_secs(5));
}

#[test]
#[ignore = "long"]
fn two_hundred_changes_are_enforced_within_100_ms_and_the_slowest_within_500() {
    fifty_and_five(200, Duration::from_millis(100), Duration::from_millis(500));
}

/// A server on loopback and simulated nodes; they end with it.
struct Town {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
    crowd: Option<Child>,
    size: u64,
}

impl Drop for Town {
    fn drop(&mut self) {
        for mut child in self.crowd.take().into_iter().chain(self.server.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Town {
    /// A server with so many nodes, all of them current.
    fn new(size: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut town = Self { dir, port, server: None, crowd: None, size: size.into() };
        town.start_server()?;
        town.wait_answering()?;
        let token = token(&town.socket(), town.dir.path(), "default")?;
        let mut crowd = Command::new(&binaries().netkit)
            .arg("crowd")
            .arg(token)
            .args(["sim", &size.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let said = crowd.stdout.take().context("piped")?;
        town.crowd = Some(crowd);
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the crowd says {line:?}");
        town.wait_current()?;
        Ok(town)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn start_server(&mut self) -> Result<()> {
        let log = fs::File::create(self.dir.path().join("log"))?;
        let server = Command::new(&binaries().ovctl)
            .args(["serve", "--log", "warn", "--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--socket")
            .arg(self.socket())
            .env_remove("OVCTL_SOCKET")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.server = Some(server);
        Ok(())
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        ask(&self.socket(), method, path, body)
    }

    fn wait_answering(&mut self) -> Result<()> {
        poll(PATIENCE, "the server to answer", || {
            let ended = self
                .server
                .as_mut()
                .is_some_and(|child| child.try_wait().is_ok_and(|e| e.is_some()));
            if ended {
                bail!("it ended: {}", fs::read_to_string(self.dir.path().join("log"))?);
            }
            Ok(self.ask("GET", "/v1/status", &Value::Null).ok().map(drop))
        })
    }

    /// Waits until all nodes are connected and have acknowledged their newest tables.
    fn wait_current(&self) -> Result<()> {
        poll(PATIENCE, "all nodes to be current", || {
            let status = self.ask("GET", "/v1/status", &Value::Null)?;
            let is_here = status["entities"]["online"] == self.size;
            Ok((is_here && status["behind"] == json!([])).then_some(()))
        })
    }

    /// The serial of each node's newest table, by name.
    fn serials(&self) -> Result<BTreeMap<String, u64>> {
        let list = self.ask("GET", "/v1/entities", &Value::Null)?;
        let nodes = list["items"].as_array().context("a list has items")?;
        let serial = |node: &Value| node["health"]["serial"].as_u64().context("no serial");
        nodes.iter().map(|node| Ok((node["name"].to_string(), serial(node)?))).collect()
    }

    /// Waits until all nodes are connected and have acknowledged these tables or newer ones: while keys
    /// rotate there are always newer ones.
    fn wait_acknowledged(&self, wanted: &BTreeMap<String, u64>) -> Result<()> {
        poll(PATIENCE, "all nodes to be back", || {
            let status = self.ask("GET", "/v1/status", &Value::Null)?;
            Ok((status["entities"]["online"] == self.size).then_some(()))
        })?;
        poll(PATIENCE, "all nodes to have their new tables", || {
            let list = self.ask("GET", "/v1/entities", &Value::Null)?;
            let nodes = list["items"].as_array().context("a list has items")?;
            let mut nodes = nodes.iter();
            let has_it = |node: &Value| {
                let health = &node["health"];
                let wanted = wanted.get(&node["name"].to_string()).copied();
                health["online"] == true && health["acknowledged"].as_u64() >= wanted
            };
            Ok(nodes.all(has_it).then_some(()))
        })
    }

    /// Kills the server, starts it again, gives everybody a new table, and waits until all have it. Gives
    /// the time since the server answers again, and since it was killed.
    fn restart(&mut self) -> Result<(Duration, Duration)> {
        let killed = Instant::now();
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        self.start_server()?;
        self.wait_answering()?;
        let answering = Instant::now();
        let before = self.serials()?;
        let rotated = self.ask("POST", "/v1/keys/rotate", &json!({"all": true, "now": false}))?;
        ensure!(rotated["dryRun"] == false, "{rotated}");
        let wanted = self.serials()?;
        let is_newer = |(name, serial): (&String, &u64)| before.get(name) < Some(serial);
        ensure!(wanted.iter().all(is_newer), "a rotation gave somebody no new table");
        self.wait_acknowledged(&wanted)?;
        Ok((answering.elapsed(), killed.elapsed()))
    }
}

#[expect(clippy::print_stderr, reason = "the figures that were asked for")]
fn crowd(size: u16, changes: usize, worst: Duration, restart: Duration) -> Result<()> {
    let started = Instant::now();
    let mut town = Town::new(size)?;
    eprintln!("{size} simulated nodes have joined after {:?}", started.elapsed());
    let node = |number: usize| format!("sim-{}", number % usize::from(size));
    let pairs: Vec<_> = (0..changes).map(|at| (node(at * 7), node(at * 13 + 1))).collect();
    let times = change(&town.socket(), &pairs, changes)?;
    times.hold(&format!("{size} simulated nodes"), worst, worst)?;
    let (since_answer, since_kill) = town.restart()?;
    eprintln!(
        "{size} simulated nodes after kill -9 of the server: all have new tables {since_answer:?} after it \
         answers, {since_kill:?} after it was killed"
    );
    ensure!(since_kill <= restart, "{since_kill:?} is more than {restart:?}");
    Ok(())
}

#[test]
fn a_hundred_simulated_nodes_have_changes_soon_and_are_back_soon_after_a_restart() {
    crowd(100, 10, Duration::from_secs(2), Duration::from_secs(20)).unwrap();
}

#[test]
#[ignore = "long"]
fn a_thousand_simulated_nodes_have_changes_within_2_s_and_are_back_within_10() {
    crowd(1_000, 100, Duration::from_secs(2), Duration::from_secs(10)).unwrap();
}
