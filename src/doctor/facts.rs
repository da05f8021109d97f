//! What there is to know about a machine.

use std::net::IpAddr;

use crate::api::local::NodeStatus;
use crate::types::{EntityName, GuardMode, Name, Prefix, Timestamp};

/// A machine, as somebody found it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Whether it has joined.
    pub membership: Membership,
    /// What `ovd` on it says.
    pub daemon: Daemon,
    /// Whether whoever asks has CAP_NET_ADMIN.
    pub net_admin: bool,
    /// `/dev/net/tun`.
    pub tun: Tun,
    /// Where `ovd` keeps its state.
    pub state: State,
    /// Clocks.
    pub clock: Clock,
    /// Each URL of the server, asked just now; empty before joining.
    pub server: Vec<ServerAnswer>,
    /// The overlays that it is in, and its place in them.
    pub overlays: Vec<Overlay>,
    /// How packets would go to SaPs and direct peers.
    pub ways: Vec<Way>,
    /// Ranges that its routes and addresses use, without those of `ovd`.
    pub ranges: Vec<HostRange>,
    /// Its own addresses towards other machines.
    pub addresses: Vec<IpAddr>,
    /// Interfaces that lead to other machines.
    pub uplinks: Vec<Uplink>,
    /// Whether it forwards packets between interfaces, for IPv4 and IPv6.
    pub forwards: [bool; 2],
    /// The packet filter.
    pub filter: Filter,
    /// The guard that its configuration asks for.
    pub guard_mode: GuardMode,
    /// Port of wrapped packets.
    pub data_port: u16,
    /// Its name servers.
    pub names: Names,
}

/// Whether a machine has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It has not.
    None,
    /// It has, under this name.
    Member(EntityName),
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// The daemon.
#[derive(Clone, Debug, PartialEq)]
pub enum Daemon {
    /// It runs and says this.
    Answers(Box<NodeStatus>),
    /// It does not answer, for this reason.
    Silent(String),
}

/// `/dev/net/tun`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tun {
    /// It can be opened.
    Usable,
    /// It is not there.
    Missing,
    /// It cannot be opened, for this reason.
    Refused(String),
}

/// The state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Where it is.
    pub path: String,
    /// What is wrong with it and what to do.
    pub fault: Option<(String, String)>,
    /// Room left on its disk in bytes; none when nobody knows.
    pub free_bytes: Option<u64>,
}

/// Times that should be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// This machine's.
    pub here: Timestamp,
    /// The server's, at the same moment.
    pub server: Option<Timestamp>,
    /// When the newest table was written here: in the past.
    pub table_written: Option<Timestamp>,
}

/// What came of asking the server at one of its URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAnswer {
    /// The URL.
    pub url: String,
    /// Whether it has a name that must be looked up.
    pub is_named: bool,
    /// How long the answer took in milliseconds, or why there was none and what to do.
    pub outcome: Result<u64, (String, String)>,
}

/// An overlay that this machine is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
    /// This machine's address in it.
    pub address: Option<IpAddr>,
}

/// The way to a SaP or a direct peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Whose it is.
    pub name: String,
    /// Where packets go.
    pub to: IpAddr,
    /// What it takes in bytes, outer headers included, or why there is none.
    pub mtu: Result<u32, String>,
}

/// A range that a machine uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// The range.
    pub prefix: Prefix,
    /// The interface that has it, or `unreachable` and the like.
    pub user: String,
}

/// An interface that leads to other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Whether the kernel drops what arrives on it and would be answered by another (`rp_filter` 1).
    pub is_strict: bool,
}

/// The packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The chains that others hooked in, or why nobody knows.
    pub chains: Result<Vec<Chain>, (String, String)>,
    /// Whether the guard's table is there.
    pub has_guard: bool,
    /// Whether there are rules of the old iptables, which nftables does not show.
    pub has_legacy: bool,
    /// Tools that have chains here.
    pub tools: Vec<Tool>,
}

/// A chain that somebody else hooked into the kernel's way of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Family, table and name: `inet filter input`.
    pub name: String,
    /// Where.
    pub hook: Hook,
    /// Whether it drops what no rule lets through.
    pub drops: bool,
}

/// Where a chain of filters is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets for this machine.
    Input,
    /// Packets of this machine.
    Output,
}

/// A tool that filters or translates packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it means beside the guard.
    pub meaning: String,
}

/// Name servers, asked just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Those that programs here ask, and whether each answered.
    pub servers: Vec<(IpAddr, bool)>,
    /// This machine's own overlay name, and what came of asking for it as a program would.
    pub own: Option<(String, Lookup)>,
}

/// What came of a question for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// An address.
    Found,
    /// That there is none.
    NotFound,
    /// Nothing.
    Silence,
}
