//! A fleet in a [`World`]: the coordination server, SaPs and entities, as real programs.
//!
//! Everything goes through the programs' command lines, as a user's script would; nothing here
//! knows the crate's insides. The server runs on the machine `server`, which is made first.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::world::{Machine, Output, Process, World, poll};

/// How long a program may take until it is ready. Debug builds on two busy cores are slow.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    /// The server, and its client.
    pub(crate) ovctl: PathBuf,
    /// What runs at an entity.
    pub(crate) ovd: PathBuf,
    /// What runs at a SaP.
    pub(crate) ovsap: PathBuf,
    /// The traffic tool.
    pub(crate) netkit: PathBuf,
}

impl Binaries {
    /// All of them in a target directory such as `target/debug`.
    pub(crate) fn in_dir(dir: &Path) -> Result<Self> {
        let found = |name: &str| {
            let path = dir.join(name);
            if !path.exists() {
                bail!("{} is missing\n  do:  cargo build --bins --examples", path.display());
            }
            Ok(path)
        };
        Ok(Self {
            ovctl: found("ovctl")?,
            ovd: found("ovd")?,
            ovsap: found("ovsap")?,
            netkit: found("examples/netkit")?,
        })
    }
}

/// Whether a node is an entity or a SaP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs `ovd`.
    Entity,
    /// Runs `ovsap`.
    Sap,
}

impl Kind {
    /// What `ovctl token create --role` calls it.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::Entity => "entity",
            Self::Sap => "sap",
        }
    }
}

/// A machine with `ovd` or `ovsap` on it.
pub(crate) struct Node {
    /// Where it runs.
    pub(crate) machine: Machine,
    kind: Kind,
    program: PathBuf,
    /// What stands before the program when it is started.
    wrapper: Vec<String>,
    /// What `run` is started with, the token left out.
    options: Vec<String>,
    process: Option<Process>,
}

/// The server and the nodes that joined it.
pub(crate) struct Fleet {
    world: World,
    binaries: Binaries,
    /// The server's machine.
    pub(crate) server: Machine,
    server_process: Option<Process>,
    nodes: BTreeMap<String, Node>,
}

impl Fleet {
    /// Makes the machine `server` and starts the server on it.
    pub(crate) fn start(world: &World, binaries: &Binaries) -> Result<Self> {
        let mut fleet = Self {
            world: world.clone(),
            binaries: binaries.clone(),
            server: world.machine("server")?,
            server_process: None,
            nodes: BTreeMap::new(),
        };
        fleet.start_server()?;
        Ok(fleet)
    }

    /// Starts the server (again) and waits until it answers.
    pub(crate) fn start_server(&mut self) -> Result<()> {
        self.start_server_with(&[])
    }

    /// As [`Self::start_server`], with further options of `serve`.
    pub(crate) fn start_server_with(&mut self, options: &[&str]) -> Result<()> {
        let url = format!("https://{}:7443", self.server.ip4);
        let program = text(&self.binaries.ovctl);
        let command = [&[program.as_str(), "serve", "--public-url", &url], options].concat();
        let mut process = self.server.spawn("ovctl-serve", &command)?;
        poll(READY_TIMEOUT, "the server to answer", || {
            if !process.is_running() {
                bail!("ovctl serve ended:\n{}", process.log_text());
            }
            Ok((self.ovctl(&["status"])?.code == 0).then_some(()))
        })
        .with_context(|| process.log_text())?;
        self.server_process = Some(process);
        Ok(())
    }

    /// Stops the server; nodes run on with the tables that they have.
    pub(crate) fn stop_server(&mut self) -> Result<()> {
        if let Some(mut process) = self.server_process.take() {
            process.stop()?;
        }
        Ok(())
    }

    /// The running server.
    pub(crate) fn server_process(&mut self) -> Option<&mut Process> {
        self.server_process.as_mut()
    }

    /// Runs `ovctl` on the server's machine, over its unix socket.
    pub(crate) fn ovctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = vec![text(&self.binaries.ovctl)];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self.server.run(&command)
    }

    /// As [`Self::ovctl`]; fails when the exit code is not 0. Returns the standard output.
    pub(crate) fn ovctl_ok(&self, arguments: &[&str]) -> Result<String> {
        self.ovctl(arguments)?.success(&format!("ovctl {}", arguments.join(" ")))
    }

    /// As [`Self::ovctl_ok`] with `-o json`, parsed.
    pub(crate) fn ovctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        parse(&self.ovctl_ok(&all)?)
    }

    /// Creates a token and returns its text.
    pub(crate) fn token(&self, options: &[&str]) -> Result<String> {
        let mut arguments = vec!["token", "create"];
        arguments.extend(options);
        Ok(self.ovctl_ok(&arguments)?.trim().to_owned())
    }

    /// Makes a machine of that name and joins it as an entity to the overlays.
    pub(crate) fn entity(&mut self, name: &str, overlays: &[&str]) -> Result<()> {
        self.join(name, Kind::Entity, overlays, &[])
    }

    /// Makes a machine of that name and joins it as a SaP that serves the overlays; all of them when
    /// none is named.
    pub(crate) fn sap(&mut self, name: &str, overlays: &[&str]) -> Result<()> {
        self.join(name, Kind::Sap, overlays, &[])
    }

    /// Makes a machine and joins it with a token made with `token_options` added.
    pub(crate) fn join(
        &mut self,
        name: &str,
        kind: Kind,
        overlays: &[&str],
        token_options: &[&str],
    ) -> Result<()> {
        self.launch(name, kind, overlays, token_options)?;
        self.node_mut(name)?.wait_ready()
    }

    /// As [`Self::join`], not waiting until it is ready: many start faster side by side.
    pub(crate) fn launch(
        &mut self,
        name: &str,
        kind: Kind,
        overlays: &[&str],
        token_options: &[&str],
    ) -> Result<()> {
        self.launch_with(name, kind, overlays, token_options, &[])
    }

    /// As [`Self::launch`], with further options of `run`.
    pub(crate) fn launch_with(
        &mut self,
        name: &str,
        kind: Kind,
        overlays: &[&str],
        token_options: &[&str],
        run_options: &[&str],
    ) -> Result<()> {
        let machine = self.world.machine(name)?;
        let mut options = vec!["--role", kind.role()];
        for overlay in overlays {
            options.extend(["--overlay", overlay]);
        }
        options.extend(token_options);
        let token = self.token(&options)?;
        self.start_node(machine, kind, &token, run_options)
    }

    /// Joins a machine that is there already, with a token and further options of `run`.
    pub(crate) fn add(
        &mut self,
        machine: Machine,
        kind: Kind,
        token: &str,
        run_options: &[&str],
    ) -> Result<()> {
        let name = machine.name.clone();
        self.start_node(machine, kind, token, run_options)?;
        self.node_mut(&name)?.wait_ready()
    }

    fn start_node(
        &mut self,
        machine: Machine,
        kind: Kind,
        token: &str,
        run_options: &[&str],
    ) -> Result<()> {
        // A file, so that the token is in no process list.
        let token_file = self.world.dir().join(&machine.name).join("token");
        let mut file = fs::OpenOptions::new();
        let mut file =
            file.create(true).truncate(true).write(true).mode(0o600).open(&token_file)?;
        std::io::Write::write_all(&mut file, token.as_bytes())?;
        let program = match kind {
            Kind::Entity => self.binaries.ovd.clone(),
            Kind::Sap => self.binaries.ovsap.clone(),
        };
        let name = machine.name.clone();
        let options = run_options.iter().map(|&option| option.to_owned()).collect();
        let mut node = Node { machine, kind, program, wrapper: Vec::new(), options, process: None };
        node.spawn(&["--join", &format!("@{}", text(&token_file))])?;
        self.nodes.insert(name, node);
        Ok(())
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("the fleet has no node {name}"))
    }

    /// A node by its name, to start or stop it.
    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("the fleet has no node {name}"))
    }

    /// The overlay address of an entity.
    pub(crate) fn address(&self, entity: &str, overlay: &str) -> Result<IpAddr> {
        self.node(entity)?.address(overlay)
    }

    /// The machine of a node.
    pub(crate) fn machine(&self, name: &str) -> Result<&Machine> {
        Ok(&self.node(name)?.machine)
    }

    /// Runs `netkit` on a node's machine to its end.
    pub(crate) fn netkit(&self, name: &str, arguments: &[&str]) -> Result<Output> {
        self.netkit_for(name, arguments, Duration::from_secs(60))
    }

    /// As [`Self::netkit`], for what takes longer.
    pub(crate) fn netkit_for(
        &self,
        name: &str,
        arguments: &[&str],
        timeout: Duration,
    ) -> Result<Output> {
        let mut command = vec![text(&self.binaries.netkit)];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self.machine(name)?.run_for(&command, timeout)
    }

    /// As [`Self::netkit`]: parses the one JSON line that it prints.
    pub(crate) fn netkit_json(&self, name: &str, arguments: &[&str]) -> Result<Value> {
        let what = format!("netkit {}", arguments.join(" "));
        parse(&self.netkit(name, arguments)?.success(&what)?)
    }

    /// Starts `netkit` on a node's machine, with its log named after `log`, and waits until it says
    /// `ready`.
    pub(crate) fn netkit_spawn(
        &self,
        name: &str,
        log: &str,
        arguments: &[&str],
    ) -> Result<Process> {
        self.netkit_spawn_on(self.machine(name)?, log, arguments)
    }

    /// As [`Self::netkit_spawn`], on any machine.
    pub(crate) fn netkit_spawn_on(
        &self,
        machine: &Machine,
        log: &str,
        arguments: &[&str],
    ) -> Result<Process> {
        let mut command = vec![text(&self.binaries.netkit)];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let (name, mut process) = (&machine.name, machine.spawn(log, &command)?);
        poll(READY_TIMEOUT, &format!("netkit {} on {name}", arguments.join(" ")), || {
            let log = process.log_text();
            if !process.is_running() {
                bail!("netkit {} on {name} ended: {log}", arguments.join(" "));
            }
            Ok(log.lines().any(|line| line == "ready").then_some(()))
        })?;
        Ok(process)
    }
}

impl Node {
    /// The options of `run` that are not the same for all.
    pub(crate) fn options(&self) -> &[String] {
        &self.options
    }

    /// Further options of `run`, from its next start on.
    pub(crate) fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// From its next start on it is started by this command, which becomes it.
    pub(crate) fn set_wrapper(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// Starts the program again, without a token: it has its state.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.spawn(&[])?;
        self.wait_ready()
    }

    /// As [`Self::start`], for a program that will not be ready.
    pub(crate) fn start_unready(&mut self) -> Result<()> {
        self.spawn(&[])
    }

    /// Starts the program beside the one that runs, to take over from it; returns that one's exit code.
    pub(crate) fn take_over(&mut self) -> Result<i32> {
        let name = self.machine.name.clone();
        let mut before =
            self.process.take().with_context(|| format!("nothing was started on {name}"))?;
        self.spawn(&["--takeover"])?;
        let code = before.wait(READY_TIMEOUT)?;
        self.wait_ready()?;
        Ok(code)
    }

    /// Stops the program as an operator would.
    pub(crate) fn stop(&mut self) -> Result<i32> {
        self.process()?.stop()
    }

    /// Kills the program as a crash would.
    pub(crate) fn kill(&mut self) -> Result<i32> {
        self.process()?.kill()
    }

    /// The program that runs, or ran.
    pub(crate) fn process(&mut self) -> Result<&mut Process> {
        let name = &self.machine.name;
        self.process.as_mut().with_context(|| format!("nothing was started on {name}"))
    }

    /// Runs `ovd ...` or `ovsap ...` on the node's machine.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = vec![text(&self.program)];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self.machine.run(&command)
    }

    /// Its status, as `-o json` shows it.
    pub(crate) fn status(&self) -> Result<Value> {
        parse(&self.command(&["status", "-o", "json"])?.success("status -o json")?)
    }

    /// How often packets were dropped for a reason; 0 for what never happened.
    pub(crate) fn drops(&self, reason: &str) -> Result<u64> {
        Ok(self.status()?["drops"][reason].as_u64().unwrap_or(0))
    }

    /// How many packets went through a hallway: `egress`, `ingress` or `transit`.
    pub(crate) fn packets(&self, hallway: &str) -> Result<u64> {
        Ok(self.status()?["packets"][hallway]["packets"].as_u64().unwrap_or(0))
    }

    /// Its address in an overlay.
    pub(crate) fn address(&self, overlay: &str) -> Result<IpAddr> {
        let status = self.status()?;
        let overlays = status["overlays"].as_array().context("status has no overlays")?;
        let row = overlays.iter().find(|row| row["name"] == overlay);
        let address = row.and_then(|row| row["address"].as_str());
        let name = &self.machine.name;
        let address = address.with_context(|| format!("{name} is not in overlay {overlay}"))?;
        Ok(address.parse()?)
    }

    fn spawn(&mut self, extra: &[&str]) -> Result<()> {
        let mut command = self.wrapper.clone();
        command.extend([text(&self.program), "run".to_owned()]);
        command.extend(self.options.iter().cloned());
        // Machines of a world guard nothing unless they are asked to: most of them test something else.
        if self.kind == Kind::Entity && !self.options.iter().any(|option| option == "--guard") {
            command.extend(["--guard", "off"].map(str::to_owned));
        }
        command.extend(extra.iter().map(|&option| option.to_owned()));
        self.process = Some(self.machine.spawn(self.log(), &command)?);
        Ok(())
    }

    /// Waits until the program is ready; fails when it ends before.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let (name, log) = (self.machine.name.clone(), self.log());
        poll(READY_TIMEOUT, &format!("{log} on {name} to be ready"), || {
            let process = self.process()?;
            if !process.is_running() {
                bail!("{log} on {name} ended:\n{}", process.log_text());
            }
            let ready = match self.kind {
                Kind::Entity => self.command(&["status", "--check", "ready"])?.code == 0,
                // A SaP is ready when it has a table; `--check` is a word of ovd.
                Kind::Sap => self.status().is_ok_and(|status| !status["table"].is_null()),
            };
            Ok(ready.then_some(()))
        })
        .with_context(|| self.process.as_ref().map(Process::log_text).unwrap_or_default())
    }

    fn log(&self) -> &'static str {
        match self.kind {
            Kind::Entity => "ovd",
            Kind::Sap => "ovsap",
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Parses JSON and shows the text when it is none.
pub(crate) fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).with_context(|| format!("not JSON: {json}"))
}
