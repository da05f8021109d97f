//! What `ovd` and `ovsap` have in common before they run: settings, state, joining, leaving.

use std::fs;
use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::endpoints::Wanted;
use super::guarding::GuardSettings;
use super::handover::{self, Inheritance};
use crate::agent::addresses::Addresses;
use crate::agent::client::Client;
use crate::agent::join::{self, Joined, Joiner, Start};
use crate::agent::state::{Identity, StateDir};
use crate::agent::underlay::HostRange;
use crate::api::node::JoinToken;
use crate::api::{Problem, ProblemCode};
use crate::cli::args::{
    DeniedArgs, Format, JoinArgs, JoinSource, NodeStatusArgs, OvdRunArgs, OvdWhyArgs, RunArgs,
    StateArgs,
};
use crate::cli::output::Output;
use crate::cli::{Outcome, denied, local_why, node_status};
use crate::config::{node as file, user};
use crate::local::Socket;
use crate::sys::udp::UdpSocket;
use crate::sys::{SysError, process};
use crate::telemetry::{self, LogOptions};
use crate::types::{
    DataPath, DnsHook, GuardEgress, GuardMode, HealthTarget, Lanes, Name, NodeKind,
};

/// What the command line says about a node; the configuration file fills the gaps.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Where a join token comes from.
    pub join: Option<JoinSource>,
    /// Where state is kept.
    pub state_dir: Option<PathBuf>,
    /// The local status socket.
    pub socket: Option<PathBuf>,
    /// The name to join under.
    pub name: Option<Name>,
    /// Where others reach this node; a port of none is that of `listen`.
    pub endpoints: Vec<(IpAddr, Option<u16>)>,
    /// Where data packets are received.
    pub listen: Option<SocketAddr>,
    /// How many lanes packets move on.
    pub lanes: Option<Lanes>,
    /// What the guard closes.
    pub guard: Option<GuardMode>,
    /// What the guard lets out.
    pub egress: Option<GuardEgress>,
    /// Whether the guard may cut off who is connected by ssh.
    pub lock_ssh: bool,
    /// Whether to take the place of the process that runs.
    pub takeover: bool,
    /// The log filter.
    pub log: Option<String>,
    /// How packets are moved.
    pub data_path: DataPath,
    /// Where health is answered, and what is asked for it.
    pub health: Option<(SocketAddr, Vec<HealthTarget>)>,
    /// Where names are answered.
    pub dns_listen: Option<SocketAddr>,
    /// What brings programs' questions there.
    pub dns: Option<DnsHook>,
}

impl From<OvdRunArgs> for RunOptions {
    fn from(args: OvdRunArgs) -> Self {
        Self {
            guard: args.guard,
            egress: args.egress,
            lock_ssh: args.lock_ssh,
            health: args.health_listen.map(|listen| (listen, args.health_targets)),
            dns_listen: args.dns_listen,
            dns: args.dns,
            ..args.run.into()
        }
    }
}

impl From<RunArgs> for RunOptions {
    fn from(args: RunArgs) -> Self {
        Self {
            config: args.config,
            join: args.join,
            state_dir: args.state_dir,
            socket: args.socket,
            name: args.name,
            endpoints: args.endpoints.iter().map(|e| (e.ip, e.port)).collect(),
            listen: args.listen,
            lanes: args.lanes,
            guard: None,
            egress: None,
            lock_ssh: false,
            takeover: args.takeover,
            log: args.log,
            data_path: args.data_path,
            health: None,
            dns_listen: None,
            dns: None,
        }
    }
}

impl From<JoinArgs> for RunOptions {
    fn from(args: JoinArgs) -> Self {
        Self {
            config: args.config,
            join: Some(args.token),
            state_dir: args.state_dir,
            socket: None,
            name: args.name,
            endpoints: args.endpoints.iter().map(|e| (e.ip, e.port)).collect(),
            listen: args.listen,
            log: args.log,
            ..Self::default()
        }
    }
}

impl From<StateArgs> for RunOptions {
    fn from(args: StateArgs) -> Self {
        Self {
            config: args.config,
            state_dir: args.state_dir,
            socket: args.socket,
            ..Self::default()
        }
    }
}

/// Everything decided: flags, file and defaults.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) kind: NodeKind,
    pub(crate) join: Option<JoinSource>,
    pub(crate) state_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) name: Option<Name>,
    pub(crate) endpoints: Vec<(IpAddr, Option<u16>)>,
    pub(crate) listen: SocketAddr,
    pub(crate) lanes: Lanes,
    pub(crate) data_path: DataPath,
    pub(crate) health: Option<(SocketAddr, Vec<HealthTarget>)>,
    pub(crate) dns_listen: Option<SocketAddr>,
    pub(crate) dns: DnsHook,
    pub(crate) guard: GuardSettings,
    pub(crate) takeover: bool,
    pub(crate) uid: u32,
}

/// `ovd` or `ovsap`.
pub(crate) fn program(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Entity => "ovd",
        NodeKind::Sap => "ovsap",
    }
}

impl Settings {
    /// Decides, and starts logging.
    pub(crate) fn new(kind: NodeKind, options: RunOptions) -> Result<Self, Problem> {
        let usage = |what: String| Problem::new(ProblemCode::Usage, what);
        let file = file::load(program(kind), options.config.as_deref())
            .map_err(|error| usage(error.to_string()))?;
        let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
        hide_memory()?;
        init_log(options.log, file.log, file.is_log_json)?;
        let uid = effective_uid()?;
        let (state_dir, socket) = file::default_paths(program(kind), uid == 0, environment);
        let endpoints =
            if options.endpoints.is_empty() { file.endpoints } else { options.endpoints };
        let health_port = options.health.as_ref().map(|(listen, _)| listen.port());
        let listen = listen(options.listen.or(file.listen), &endpoints)?;
        let guard =
            options.guard.or(file.guard).unwrap_or_else(|| file::default_guard(environment));
        let egress = options.egress.or(file.egress);
        if (guard, egress) == (GuardMode::Off, Some(GuardEgress::Rules)) {
            return Err(usage("egress by rules needs the guard, which is off".to_owned())
                .why("the guard is what holds packets to addresses outside")
                .fix("leave out --egress (egress in ovd.toml), or give --guard ports"));
        }
        Ok(Self {
            kind,
            join: options.join,
            state_dir: absolute(options.state_dir.or(file.state_dir).unwrap_or(state_dir)),
            socket: options.socket.or(file.socket).unwrap_or(socket),
            name: options.name.or(file.name),
            endpoints,
            listen,
            lanes: options.lanes.or(file.lanes).unwrap_or_default(),
            data_path: options.data_path,
            health: options.health,
            dns_listen: options.dns_listen,
            dns: options.dns.or(file.dns).unwrap_or_default(),
            guard: GuardSettings {
                mode: guard,
                egress,
                lock_ssh: options.lock_ssh || file.lock_ssh,
                health_port,
            },
            takeover: options.takeover,
            uid,
        })
    }

    /// Lets root take away what a daemon with a user of its own left. Files are used as that user: what it put
    /// there (links, say) leads root nowhere where that user could not go itself.
    pub(crate) fn for_owner(mut self) -> Result<Self, Problem> {
        if let (0, Ok(found)) = (self.uid, fs::symlink_metadata(&self.state_dir))
            && found.uid() != 0
        {
            process::use_files_as(found.uid(), found.gid()).map_err(|error| {
                let what = format!("cannot use {} as its owner", self.state_dir.display());
                Problem::new(ProblemCode::Failed, what).why(error.to_string())
            })?;
            self.uid = found.uid();
        }
        Ok(self)
    }

    /// The state directory, held by this process.
    pub(crate) fn state(&self, inheritance: &mut Inheritance) -> Result<StateDir, Problem> {
        match inheritance.take_one(handover::LOCK) {
            Some(lock) => StateDir::inherit(&self.state_dir, self.uid, lock),
            None => StateDir::open(&self.state_dir, self.uid),
        }
    }

    /// The data socket of each lane; also says what they are bound to.
    pub(crate) fn bind(
        &self,
        inheritance: &mut Inheritance,
    ) -> Result<(Vec<UdpSocket>, SocketAddr), Problem> {
        let sockets = inheritance.adopt(handover::UDP, |descriptors| {
            UdpSocket::adopt_lanes(descriptors, self.listen, self.data_path, self.lanes)
        });
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => {
                let sockets = UdpSocket::bind_lanes(self.listen, self.data_path, self.lanes);
                let sockets = sockets.map_err(failed)?;
                for socket in &sockets {
                    inheritance.manager.keep(handover::UDP, socket.descriptor());
                }
                sockets
            }
        };
        let bound = sockets.first().map_or(self.listen, UdpSocket::local_addr);
        Ok((sockets, bound))
    }

    /// The local socket.
    pub(crate) fn local(&self, inheritance: &mut Inheritance) -> Result<Socket, Problem> {
        match inheritance.take_one(handover::LOCAL) {
            Some(listener) => Socket::adopt(&self.socket, listener),
            None => Socket::bind(&self.socket),
        }
    }

    /// What this start means, and the token that it needs.
    pub(crate) fn start(&self, state: &StateDir) -> Result<Start, Problem> {
        let identity = state.identity()?;
        let token = self.token(identity.is_some())?;
        let start = join::decide(identity, token, self.kind, &self.state_dir)?;
        if let Start::Resume { identity, ignored: true } = &start {
            tracing::info!(name = %identity.name, "already joined to this server; --join is ignored");
        }
        Ok(start)
    }

    fn token(&self, has_identity: bool) -> Result<Option<JoinToken>, Problem> {
        match self.join.as_ref().map(JoinSource::read) {
            None => Ok(None),
            Some(Ok(token)) => Ok(Some(token)),
            // A pod restarts with the same arguments; the file with the token may be gone by then.
            Some(Err(problem)) if has_identity => {
                tracing::info!(why = %problem.what, "already joined; --join is ignored");
                Ok(None)
            }
            Some(Err(problem)) => Err(problem),
        }
    }

    /// Joins with `token`; `bound` is what the data socket is bound to.
    pub(crate) async fn join(
        &self,
        token: JoinToken,
        bound: SocketAddr,
        host_ranges: Vec<HostRange>,
        state: &StateDir,
    ) -> Result<Joined, Problem> {
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let joiner = Joiner {
            kind: self.kind,
            token,
            is_exposed: matches!(self.join, Some(JoinSource::Text(_))),
            name: self.name.clone(),
            host_name: join::valid_name(&host_name),
            host_ranges,
        };
        let wanted = self.wanted(bound);
        join::join(&joiner, state, async |url: &str| {
            let addresses = Addresses::new(&[url.to_owned()]);
            addresses.refresh().await;
            let found = wanted.pick(None, addresses.first(url));
            if found.is_empty() {
                return Err(Problem::new(
                    ProblemCode::Failed,
                    "cannot tell where this node receives packets",
                )
                .why("the host has no address that fits --listen towards the server")
                .fix("name it: --endpoint IP"));
            }
            Ok(found)
        })
        .await
    }

    /// Where endpoints come from.
    pub(crate) fn wanted(&self, bound: SocketAddr) -> Wanted {
        Wanted { given: self.endpoints.clone(), bound }
    }
}

/// Where to listen: where the operator said, else on both families when an endpoint is of IPv6.
///
/// # Errors
///
/// `Usage` when nothing that is sent to an endpoint could be heard.
fn listen(
    wanted: Option<SocketAddr>,
    endpoints: &[(IpAddr, Option<u16>)],
) -> Result<SocketAddr, Problem> {
    let v6 = endpoints.iter().map(|(ip, _)| ip).find(|ip| ip.is_ipv6());
    let Some(wanted) = wanted else {
        let default = file::default_listen();
        let both = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        return Ok(v6.map_or(default, |_| SocketAddr::new(both, default.port())));
    };
    match v6 {
        Some(v6) if wanted.is_ipv4() => Err(Problem::new(
            ProblemCode::Usage,
            format!("nothing that is sent to the endpoint {v6} would be heard"),
        )
        .why(format!("--listen {wanted} is of IPv4 alone"))
        .fix(format!("--listen [::]:{} hears both families", wanted.port()))),
        Some(_) | None => Ok(wanted),
    }
}

/// Hands the state on when joining worked; otherwise nothing of a directory that was made for it stays.
pub(crate) fn keep_if_joined<T>(
    state: StateDir,
    joined: Result<T, Problem>,
) -> Result<(StateDir, T), Problem> {
    match joined {
        Ok(joined) => Ok((state, joined)),
        Err(problem) => {
            if matches!(state.identity(), Ok(None)) {
                state.abandon();
            }
            Err(problem)
        }
    }
}

/// Tells the server goodbye and returns the state, for the caller to erase. A server that has
/// forgotten this node already is no obstacle.
pub(crate) async fn say_goodbye(settings: &Settings) -> Result<(StateDir, Identity), Problem> {
    if StateDir::peek_identity(&settings.state_dir, settings.uid)?.is_none() {
        return Err(Problem::new(ProblemCode::NotFound, "this node has not joined")
            .why(format!("there is no identity in {}", settings.state_dir.display())));
    }
    let state = StateDir::open(&settings.state_dir, settings.uid)?;
    let start = join::decide(state.identity()?, None, settings.kind, &settings.state_dir)?;
    let Start::Resume { identity, .. } = start else {
        return Err(Problem::new(ProblemCode::NotFound, "this node has not joined"));
    };
    let client = Client::new(identity.urls.clone(), &identity.pin)?;
    match client.leave(&identity.credential).await {
        Ok(()) => {}
        Err(problem) if is_forgotten(&problem) => {
            note(&format!("the server did not know {} any more", identity.name));
        }
        Err(problem) => return Err(problem),
    }
    Ok((state, *identity))
}

fn is_forgotten(problem: &Problem) -> bool {
    let is_wrong_server = problem.what.contains("is not the one that made this token");
    problem.code == ProblemCode::Unauthorized && !is_wrong_server
}

/// A runtime on this thread: agent, probes and the local socket stay off the packet threads.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Problem::new(ProblemCode::Failed, "cannot start the runtime").why(error.to_string())
    })
}

/// The end of a program: exit 0, or the problem on stderr and its exit code.
pub(crate) fn finish(result: Result<(), Problem>) -> ExitCode {
    conclude(&mut Output::standard(Format::Table), result.map(|()| Outcome::Done))
}

/// `ovd status`, `ovsap status`.
pub(crate) fn status(program: &'static str, args: &NodeStatusArgs) -> ExitCode {
    let mut output = Output::standard(args.output);
    let outcome = runtime()
        .and_then(|runtime| runtime.block_on(node_status::run(program, &mut output, args)));
    conclude(&mut output, outcome)
}

/// `ovd denied`.
pub(crate) fn denied(args: &DeniedArgs) -> ExitCode {
    let mut output = Output::standard(args.output);
    let outcome = runtime().and_then(|runtime| runtime.block_on(denied::run(&mut output, args)));
    conclude(&mut output, outcome)
}

/// `ovd why`.
pub(crate) fn why(args: &OvdWhyArgs) -> ExitCode {
    let mut output = Output::standard(args.output);
    let outcome = runtime().and_then(|runtime| runtime.block_on(local_why::run(&mut output, args)));
    conclude(&mut output, outcome)
}

/// Prints a problem and turns the outcome into an exit code. What was found but could not be
/// written is a failure too.
pub(crate) fn conclude(output: &mut Output, outcome: Result<Outcome, Problem>) -> ExitCode {
    let written = output.finish();
    match outcome.and_then(|outcome| written.map(|()| outcome)) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(problem) => {
            output.problem(&problem);
            ExitCode::from(problem.code.exit_code())
        }
    }
}

/// Starts logging. The command line goes before the environment, the environment before the file.
pub(crate) fn init_log(
    typed: Option<String>,
    configured: Option<String>,
    is_json: bool,
) -> Result<(), Problem> {
    let log = LogOptions {
        filter: typed.or_else(|| std::env::var("OVMESH_LOG").ok()).or(configured),
        verbosity: 0,
        is_json,
        is_colored: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    telemetry::init(&log).map_err(|what| Problem::new(ProblemCode::Usage, what))
}

/// One line for people, on stderr.
pub(crate) fn note(text: &str) {
    Output::standard(Format::Table).note(text);
}

/// What the kernel refused, as a problem.
pub(crate) fn failed(error: SysError) -> Problem {
    Problem::new(ProblemCode::Failed, error.what).why(error.why).fix(error.fix)
}

/// Relative paths are of the directory that the program started in.
pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Keeps keys and tokens out of core dumps, before any is read.
pub(crate) fn hide_memory() -> Result<(), Problem> {
    process::hide_memory().map_err(|error| {
        Problem::new(ProblemCode::Failed, "cannot keep this process out of core dumps")
            .why(error.to_string())
    })
}

/// The effective user of this process.
pub(crate) fn effective_uid() -> Result<u32, Problem> {
    user::effective_uid().ok_or_else(|| {
        Problem::new(ProblemCode::Failed, "cannot tell which user this process runs as")
            .why("/proc/self/status does not say")
            .fix("mount /proc")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_of_ipv6_is_listened_at_or_refused() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let at = |wanted: Option<&str>, endpoints: &[IpAddr]| {
            let endpoints: Vec<_> = endpoints.iter().map(|ip| (*ip, None)).collect();
            listen(wanted.map(address), &endpoints)
        };

        assert_eq!(at(None, &[]), Ok(address("0.0.0.0:6080")));
        assert_eq!(at(None, &[v4]), Ok(address("0.0.0.0:6080")));
        assert_eq!(at(None, &[v6]), Ok(address("[::]:6080")));
        assert_eq!(at(None, &[v4, v6]), Ok(address("[::]:6080")));
        assert_eq!(at(Some("[::]:7000"), &[v6]), Ok(address("[::]:7000")));
        assert_eq!(at(Some("0.0.0.0:7000"), &[v4]), Ok(address("0.0.0.0:7000")));
        let problem = at(Some("0.0.0.0:7000"), &[v4, v6]).unwrap_err();
        assert_eq!(problem.code, ProblemCode::Usage);
        assert!(problem.what.contains("2001:db8::1") && problem.fix.contains("[::]:7000"));
    }

    #[test]
    fn outcomes_and_problems_become_exit_codes() {
        let exit = |outcome| {
            let (data, notes) = (Box::new(Vec::new()), Box::new(Vec::new()));
            let now = crate::types::Timestamp(0);
            conclude(&mut Output::new(Format::Table, now, data, notes), outcome)
        };

        // ExitCode has no equality; its debug form shows the number.
        let is = |code: ExitCode, number: u8| {
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(number)));
        };
        is(exit(Ok(Outcome::Done)), 0);
        is(exit(Ok(Outcome::NotYetEnforced)), 1);
        is(exit(Ok(Outcome::Denied)), 4);
        is(exit(Err(Problem::new(ProblemCode::Unreachable, "x"))), 6);
    }
}
