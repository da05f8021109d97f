//! `ovd`: an entity. One TUN device per overlay, egress and ingress hallways.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

use super::daemon::{self, Daemon, Plane, Shared};
use super::devices::Devices;
use super::guarding::Guarding;
use super::handover::{self, Estate, Inheritance};
use super::naming::{self, Naming};
use super::node::{self, RunOptions, Settings};
use super::{doctor, down, guard_command, ping, up};
use crate::agent::join::{Joined, Start};
use crate::agent::state::{Identity, StateDir};
use crate::agent::underlay::HostRange;
use crate::api::{Problem, ProblemCode};
use crate::cli::args::{Ovd, OvdCommand};
use crate::dataplane::publish::Publisher;
use crate::dataplane::{self, EntityPlane};
use crate::dns::{Listener, Resolver, System};
use crate::forward::Snapshot;
use crate::guard;
use crate::health::HealthPort;
use crate::local::Socket;
use crate::sys::descriptors::Descriptors;
use crate::sys::net::Network;
use crate::sys::tun::Tun;
use crate::sys::udp::UdpSocket;
use crate::types::{DataPath, GuardMode, HealthTarget, NodeKind};

/// Flows of one entity.
const FLOWS: usize = 1 << 16;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match Ovd::from_command_line().command {
        OvdCommand::Run(args) => node::finish(run(args.into())),
        OvdCommand::Up(args) => node::finish(up::run(args)),
        OvdCommand::Join(args) => node::finish(join(args.into())),
        OvdCommand::Leave(args) => node::finish(leave(args.into())),
        OvdCommand::Down(args) => node::finish(down::run(args.into())),
        OvdCommand::Guard(command) => guard_command::run(&command),
        OvdCommand::Status(args) => node::status("ovd", &args),
        OvdCommand::Doctor(args) => doctor::run(&args),
        OvdCommand::Denied(args) => node::denied(&args),
        OvdCommand::Ping(args) => ping::run(&args),
        OvdCommand::Why(args) => node::why(&args),
    }
}

/// Runs until SIGTERM or SIGINT; joins first where that is needed.
///
/// # Errors
///
/// What keeps it from starting.
pub fn run(options: RunOptions) -> Result<(), Problem> {
    let started_with = Descriptors::from_environment();
    let settings = Settings::new(NodeKind::Entity, options)?;
    node::runtime()?.block_on(async {
        let mut inheritance = Inheritance::get(started_with, &settings).await?;
        let state = settings.state(&mut inheritance)?;
        let ready = get_ready(&settings, &state, &mut inheritance).await;
        // A join that fails leaves nothing behind.
        let (state, ready) = node::keep_if_joined(state, ready)?;
        start(&settings, state, ready, inheritance).await
    })
}

/// Joins and does not run.
///
/// # Errors
///
/// What stands in the way of joining.
pub fn join(options: RunOptions) -> Result<(), Problem> {
    join_with(&Settings::new(NodeKind::Entity, options)?)
}

pub(super) fn join_with(settings: &Settings) -> Result<(), Problem> {
    let state = StateDir::open(&settings.state_dir, settings.uid)?;
    node::runtime()?.block_on(async {
        let joined = async {
            let start = settings.start(&state)?;
            let network = Network::open().map_err(node::failed)?;
            // Nothing is bound: a joined node may be running beside this very command.
            identify(settings, &state, start, settings.listen, &network).await
        };
        let joined = joined.await;
        let (_, identity) = node::keep_if_joined(state, joined)?;
        node::note(&format!("ovd: joined as {} ({})", identity.name, identity.id));
        Ok(())
    })
}

/// Leaves all overlays and forgets everything.
///
/// # Errors
///
/// When `ovd` runs, the server cannot be told, or something cannot be removed.
pub fn leave(options: RunOptions) -> Result<(), Problem> {
    let settings = Settings::new(NodeKind::Entity, options)?.for_owner()?;
    node::runtime()?.block_on(async {
        let (state, identity) = node::say_goodbye(&settings).await?;
        down::sweep(&state).await?;
        state.erase()?;
        node::note(&format!("ovd: {} ({}) has left", identity.name, identity.id));
        Ok(())
    })
}

/// What is needed to run, got before a token is used up.
struct Ready {
    identity: Identity,
    sockets: Vec<UdpSocket>,
    bound: SocketAddr,
    socket: Socket,
    network: Network,
    health: Option<HealthPort>,
    resolver: Option<Resolver>,
}

/// Gets rights, ports and sockets, and joins where that is needed.
async fn get_ready(
    settings: &Settings,
    state: &StateDir,
    inheritance: &mut Inheritance,
) -> Result<Ready, Problem> {
    let start = settings.start(state)?;
    // Where it ran before, packets may wait, and what is missing now is a problem that is told.
    if !inheritance.has_devices() && state.devices().is_empty() {
        check_tun(settings)?;
        if settings.guard.mode != GuardMode::Off {
            guard::check_machine().map_err(node::failed)?;
        }
    }
    let (sockets, bound) = settings.bind(inheritance)?;
    let socket = settings.local(inheritance)?;
    let network = Network::open().map_err(node::failed)?;
    let health = match settings.health.clone() {
        Some((listen, targets)) => {
            let inherited = inheritance.take_one(handover::HEALTH);
            Some(bind_health(listen, targets, inherited).await?)
        }
        None => None,
    };
    let resolver = bind_resolver(settings, inheritance).await?;
    let identity = identify(settings, state, start, bound, &network).await?;
    Ok(Ready { identity, sockets, bound, socket, network, health, resolver })
}

async fn bind_health(
    listen: SocketAddr,
    targets: Vec<HealthTarget>,
    inherited: Option<OwnedFd>,
) -> Result<HealthPort, Problem> {
    if let Some(inherited) = inherited
        && let Ok(adopted) = HealthPort::adopt(inherited, listen, targets.clone())
    {
        return Ok(adopted);
    }
    HealthPort::bind(listen, targets).await.map_err(|error| {
        Problem::new(ProblemCode::Failed, format!("cannot answer health on {listen}"))
            .why(error.to_string())
            .fix("give another place with --health-listen")
    })
}

/// Listens where names are to be answered; none where nobody wants that.
async fn bind_resolver(
    settings: &Settings,
    inheritance: &mut Inheritance,
) -> Result<Option<Resolver>, Problem> {
    let mut inherited = inheritance.listeners();
    let mut listeners = Vec::new();
    for place in naming::places(settings.dns_listen, settings.dns) {
        let bound = match inherited.iter().position(|listener| listener.at() == place) {
            Some(at) => Ok(inherited.swap_remove(at)),
            None => Listener::bind(place).await,
        };
        match bound {
            Ok(listener) => listeners.push(listener),
            Err(error) if settings.dns_listen == Some(place) => {
                let what = format!("cannot answer names on {place}");
                return Err(Problem::new(ProblemCode::Failed, what)
                    .why(error.to_string())
                    .fix("give another place with --dns-listen"));
            }
            // Another program may have the port, and the hook needs none of its own.
            Err(error) => match Listener::bind(SocketAddr::new(place.ip(), 0)).await {
                Ok(listener) => listeners.push(listener),
                Err(_) => tracing::warn!(%place, %error, "cannot answer names there"),
            },
        }
    }
    let upstream = System::read().upstream();
    Ok((!listeners.is_empty()).then(|| Resolver::new(listeners, upstream)))
}

/// Who this node is: as it was, or as it becomes by joining.
async fn identify(
    settings: &Settings,
    state: &StateDir,
    start: Start,
    bound: SocketAddr,
    network: &Network,
) -> Result<Identity, Problem> {
    let token = match start {
        Start::Resume { identity, .. } => return Ok(*identity),
        Start::Join(token) => token,
    };
    let ranges = host_ranges(network).await?;
    let Joined { identity, memberships } = settings.join(token, bound, ranges, state).await?;
    for membership in memberships {
        tracing::info!(overlay = %membership.overlay, address = %membership.address, "joined");
    }
    Ok(identity)
}

async fn start(
    settings: &Settings,
    state: StateDir,
    ready: Ready,
    mut inheritance: Inheritance,
) -> Result<(), Problem> {
    let Ready { identity, sockets, bound, socket, network, health, resolver } = ready;
    let mut estate = Estate::default();
    if let Some(health) = health {
        estate.add(handover::HEALTH, health.descriptor());
        tokio::spawn(health.serve());
    }
    let naming = resolver.map(|resolver| {
        for [udp, tcp] in resolver.listeners().iter().map(Listener::descriptors) {
            estate.add(handover::DNS_UDP, udp);
            estate.add(handover::DNS_TCP, tcp);
        }
        let naming = Naming::new(settings.dns, resolver.names());
        resolver.start();
        naming
    });
    let wanted = settings.wanted(bound);
    let publisher = Arc::new(Publisher::new(Snapshot::empty()));
    // TCP flows that ran through the daemon before this one go on, also when it left nothing.
    let flows = inheritance.flow_table(FLOWS, &mut estate).started(dataplane::now());
    let flows = Arc::new(flows);
    let instance = inheritance.instance(&mut estate);
    let (plane, port) = EntityPlane::start(sockets, Arc::clone(&publisher), Arc::clone(&flows))
        .map_err(node::failed)?;
    let (manager, predecessor) = (Arc::clone(&inheritance.manager), inheritance.predecessor.take());
    let left = state.devices().into_values().collect();
    let devices = Devices::new(network, settings.data_path, settings.lanes, inheritance, left);
    let path_mtus = plane.path_mtus();
    let plane = Plane::Entity(plane, devices);
    let shared = Shared::new(identity, publisher, flows, path_mtus, plane.counters());
    let network = Network::open().map_err(node::failed)?;
    let guarding = Guarding::new(settings.guard, bound.port(), network, Arc::clone(&shared.guard));
    daemon::run(Daemon {
        shared,
        state,
        plane,
        port,
        socket,
        wanted,
        naming,
        guarding: Some(guarding),
        manager,
        estate,
        predecessor,
        instance,
    })
    .await
}

/// Makes a device for a moment: better to miss the right now than after the token is used up.
fn check_tun(settings: &Settings) -> Result<(), Problem> {
    let name = format!("ovtry{}", std::process::id() % 1_000_000);
    Tun::open(&name, DataPath::default(), settings.lanes).map(drop).map_err(node::failed)
}

/// What this host uses already, by name.
async fn host_ranges(network: &Network) -> Result<Vec<HostRange>, Problem> {
    let occupied = network.occupied().await.map_err(|error| {
        Problem::new(ProblemCode::Failed, error.what).why(error.why).fix(error.fix)
    })?;
    let mut ranges: Vec<HostRange> = occupied
        .iter()
        .map(|(prefix, user)| HostRange { what: format!("{prefix} on {user}"), prefix: *prefix })
        .collect();
    // Tailscale hands out addresses of this whole range to others, also without a route for each.
    if occupied.iter().any(|(_, user)| user.starts_with("tailscale"))
        && let Ok(prefix) = "100.64.0.0/10".parse()
    {
        ranges.push(HostRange { what: "Tailscale's 100.64.0.0/10".to_owned(), prefix });
    }
    Ok(ranges)
}
