//! The arguments of `ovd` and `ovsap`: two programs, the same verbs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{EXIT_CODES, EndpointArg, Format, JoinSource};
use crate::types::{
    DataPath, DnsHook, GuardEgress, GuardMode, HealthTarget, HumanDuration, Lanes, Name, Service,
};

/// Joins this machine to ovmesh: one TUN device per overlay, every packet checked
#[derive(Parser, Clone, Debug)]
#[command(name = "ovd", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Ovd {
    /// What to do.
    #[command(subcommand)]
    pub command: OvdCommand,
}

impl Ovd {
    /// What this process was called with; prints help or the mistake and exits where that is due.
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse()
    }
}

/// The verbs of `ovd`.
#[derive(Subcommand, Clone, Debug)]
pub enum OvdCommand {
    /// Run the daemon; with --join on the first start
    #[command(after_help = "\
Examples:
  ovd run --join @/run/secrets/join-token      first start: joins, keeps its state, runs
  ovd run                                      every later start
  ovd run --name web --endpoint 192.0.2.7      a fixed name, a fixed underlay address

With state from the same server, --join is ignored, so the same command can start it again.")]
    Run(OvdRunArgs),
    /// Join where that is needed, and stay: as a service where systemd is, else in the foreground
    #[command(after_help = "\
Examples:
  sudo ovd up --join @token                    from a fresh machine to online
  sudo ovd up                                  again, after `ovd down`

Where systemd is, it joins, installs ovd.service (unless a package has), starts it now and at every boot,
and waits until packets can pass. A service has its settings in /etc/ovmesh/ovd.toml, so no flags are
taken there but --join and --name. Elsewhere it is `ovd run`.")]
    Up(OvdRunArgs),
    /// Join and exit; `ovd run` then needs no token
    Join(JoinArgs),
    /// Leave every overlay and delete this machine's state
    Leave(StateArgs),
    /// Stop the daemon and take away what outlives it: the guard and the unreachable routes
    #[command(after_help = "\
The machine stays a member: `ovd up` brings it back, and until then no boot does. What ends the daemon
otherwise (a signal, a crash) leaves the guard and the routes where they are, so that nothing of an overlay
leaves in clear.")]
    Down(StateArgs),
    /// Show, check or lift the guard: what keeps overlays' packets inside and services closed outside
    #[command(subcommand)]
    Guard(GuardCommand),
    /// Show what the running daemon does: overlays, SaPs, packets, drops, problems
    #[command(after_help = "\
Examples:
  ovd status
  ovd status -o json
  ovd status --check ready --wait 30s && my-program")]
    Status(NodeStatusArgs),
    /// Look for what is wrong on this machine: clock, MTU, DNS, firewalls, addresses, rights, server, SaPs
    #[command(after_help = "\
Examples:
  sudo ovd doctor
  sudo ovd doctor -o json

Each line is ok, a warning or a problem, with what it means and what to do. It exits 1 when there is a
problem. It works without the daemon, too; what SaPs answer only the daemon knows.")]
    Doctor(DoctorArgs),
    /// Show what this host wanted and was refused, newest first, with the reason
    #[command(after_help = "\
Examples:
  ovd denied
  ovd denied --since 10m -o json

It shows what the daemon on this host refused since it started, 256 different ones at most. What a SaP or
the other end refused is in `ovctl flow list --denied`.")]
    Denied(DeniedArgs),
    /// Ask a member for an answer, by the way that packets take, and say who refused where there is none
    #[command(after_help = "\
Examples:
  ovd ping db
  ovd ping 10.70.0.2 -p tcp/5432 -c 10

It asks by ICMP echo, which a rule must allow (--port icmp), or by opening a TCP connection and closing it.
It exits 4 when policy refuses it, and 1 when nobody answers.")]
    Ping(PingArgs),
    /// Show what this machine knows of a flow that it would start: membership, path, key, rules, refusals
    #[command(after_help = "\
Examples:
  ovd why 10.70.0.2 -p tcp/5432
  ovd why db -p udp/53 -o json

It needs no server, and exits 4 when something stops the flow here. What SaPs and the other end make of it
the server knows: ovctl why.")]
    Why(OvdWhyArgs),
}

/// Runs a policy point (SaP): checks every packet between members and forwards it unchanged
#[derive(Parser, Clone, Debug)]
#[command(name = "ovsap", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Ovsap {
    /// What to do.
    #[command(subcommand)]
    pub command: OvsapCommand,
}

impl Ovsap {
    /// What this process was called with; prints help or the mistake and exits where that is due.
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse()
    }
}

/// The verbs of `ovsap`.
#[derive(Subcommand, Clone, Debug)]
pub enum OvsapCommand {
    /// Run the proxy; with --join on the first start
    #[command(after_help = "\
Examples:
  ovsap run --join @/run/secrets/join-token    first start: joins, keeps its state, runs
  ovsap run                                    every later start

It needs no privilege. Make the token with `ovctl token create --role sap`.")]
    Run(RunArgs),
    /// Join and exit; `ovsap run` then needs no token
    Join(JoinArgs),
    /// Leave and delete this SaP's state
    Leave(StateArgs),
    /// Show what the running proxy does: overlays, members, packets, drops, problems
    Status(NodeStatusArgs),
}

/// How to run a node.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct RunArgs {
    /// Configuration (TOML) [default: /etc/ovmesh/PROGRAM.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Join with this token: TOKEN, @FILE, or - for stdin
    #[arg(long, value_name = "TOKEN|@FILE|-")]
    pub join: Option<JoinSource>,
    /// Where state is kept (mode 0700) [default: /var/lib/ovmesh/PROGRAM]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The local status socket [default: /run/ovmesh/PROGRAM.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The name to join under [default: the token's, else the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// Where others reach this node; repeat for several [default: what the kernel picks]
    #[arg(long = "endpoint", value_name = "IP[:PORT]")]
    pub endpoints: Vec<EndpointArg>,
    /// Where data packets are received [default: port 6080 of every address]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Sockets and threads that share the packets, 1 to 64: more on machines with CPUs to spare
    /// [default: 1]
    #[arg(long, value_name = "N")]
    pub lanes: Option<Lanes>,
    /// Take the place of the process that listens on the local socket: it hands over its sockets,
    /// devices and flows, and ends; no packet is lost. Without such a process this is a start as any
    #[arg(long)]
    pub takeover: bool,
    /// error, warn, info, debug, trace, or a filter such as ovmesh::agent=debug
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How packets are moved: full, batch, or naive (one packet in one system call). For benchmarks
    #[arg(long, value_name = "MODE", hide = true, default_value_t)]
    pub data_path: DataPath,
}

/// How to run `ovd`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct OvdRunArgs {
    /// What both programs take.
    #[command(flatten)]
    pub run: RunArgs,
    /// Ask the programs beside this one for their health, for whoever asks here and may not ask them: for
    /// kubelet, see `ovctl kubernetes inject`. `[::]` is every address
    #[arg(long, value_name = "IP:PORT", requires = "health_targets")]
    pub health_listen: Option<SocketAddr>,
    /// What is asked on loopback for GET /NAME: NAME=http:PORT/PATH or NAME=tcp:PORT; repeat for several
    #[arg(long = "health-target", value_name = "TARGET", requires = "health_listen")]
    pub health_targets: Vec<HealthTarget>,
    /// Answer overlay names here (UDP and TCP), and pass other questions on to this host's resolvers
    /// [default: port 6053 of loopback, unless --dns off]
    #[arg(long, value_name = "IP:PORT")]
    pub dns_listen: Option<SocketAddr>,
    /// What brings programs' questions for names here: auto, redirect (of what goes to this host's name
    /// servers), resolved (systemd-resolved is told), or off [default: auto]
    #[arg(long, value_name = "HOOK")]
    pub dns: Option<DnsHook>,
    /// What is closed outside of overlays: ports, all or off [default: all in a pod, else ports]
    #[arg(long, value_name = "MODE")]
    pub guard: Option<GuardMode>,
    /// What may leave outside of overlays: off (anything) or rules [default: rules in overlays of
    /// kubernetes semantics, else off]
    #[arg(long, value_name = "MODE")]
    pub egress: Option<GuardEgress>,
    /// Let the guard cut off who is connected by ssh when it comes
    #[arg(long)]
    pub lock_ssh: bool,
}

/// The verbs of `ovd guard`.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum GuardCommand {
    /// Show what the guard closes, with the packets that each rule matched
    Show(DaemonArgs),
    /// Check that the guard is in force, and name what else filters packets here; exit 1 when it is not
    Check(DaemonArgs),
    /// Lift the guard: the underlay reaches services, and overlays' packets may leave in clear
    #[command(after_help = "\
Examples:
  ovd guard off --for 10m

The server hears of it (`ovctl entity show`), and so does the log. Without --for it lasts until
`ovd guard on` or the next start.")]
    Off(GuardOffArgs),
    /// Put the guard back in force
    On(DaemonArgs),
}

/// Which daemon, and how to show its answer.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonArgs {
    /// The local status socket [default: /run/ovmesh/ovd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// For how long there is no guard.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardOffArgs {
    /// Put it back after this time, such as 10m
    #[arg(long = "for", value_name = "DURATION")]
    pub time: Option<HumanDuration>,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// How to join without running.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct JoinArgs {
    /// The token: TOKEN, @FILE, or - for stdin
    #[arg(value_name = "TOKEN|@FILE|-")]
    pub token: JoinSource,
    /// Configuration (TOML) [default: /etc/ovmesh/PROGRAM.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where state is kept (mode 0700) [default: /var/lib/ovmesh/PROGRAM]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The name to join under [default: the token's, else the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// Where others reach this node; repeat for several [default: what the kernel picks]
    #[arg(long = "endpoint", value_name = "IP[:PORT]")]
    pub endpoints: Vec<EndpointArg>,
    /// Where data packets will be received [default: port 6080 of every address]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// error, warn, info, debug, trace, or a filter such as ovmesh::agent=debug
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// Which node of this machine: that of this state.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct StateArgs {
    /// Configuration (TOML) [default: /etc/ovmesh/PROGRAM.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where state is kept [default: /var/lib/ovmesh/PROGRAM]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The local status socket, to see whether the daemon runs [default: /run/ovmesh/PROGRAM.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// What to show of a running node.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatusArgs {
    /// Print nothing on success; exit 1 and say why otherwise
    #[arg(long, value_name = "WHAT")]
    pub check: Option<Check>,
    /// With --check: wait until it holds, at most this long
    #[arg(long, value_name = "DURATION", requires = "check")]
    pub wait: Option<HumanDuration>,
    /// The local status socket [default: /run/ovmesh/PROGRAM.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Which machine to look at: this one, with the daemon of this state.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct DoctorArgs {
    /// Whose state.
    #[command(flatten)]
    pub node: StateArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Which refusals to show.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct DeniedArgs {
    /// Only what was refused in this time, such as 10m [default: everything that is remembered]
    #[arg(long, value_name = "DURATION")]
    pub since: Option<HumanDuration>,
    /// The local status socket [default: /run/ovmesh/ovd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// What to explain.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct OvdWhyArgs {
    /// An overlay address, or the name of a member that this machine may talk to
    pub peer: String,
    /// Protocol and port by number, such as tcp/443
    #[arg(short, long, value_name = "SERVICE")]
    pub port: Option<Service>,
    /// The local status socket [default: /run/ovmesh/ovd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Whom to ask for an answer, and how.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PingArgs {
    /// An overlay address, or the name of a member that this machine may talk to
    pub peer: String,
    /// icmp, or a TCP port, such as tcp/443
    #[arg(short, long, value_name = "SERVICE", default_value = "icmp")]
    pub port: Service,
    /// How often, one second apart
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// The local status socket [default: /run/ovmesh/ovd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// What `status --check` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// The daemon answers
    Live,
    /// It can carry packets: a table, a TUN device per overlay, a SaP that answers
    Ready,
    /// The server is reachable and has confirmed the table in force
    Synced,
}
