//! `ovsap`: a stand-alone proxy (SaP). Transit only: no TUN, no privilege.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use super::daemon::{self, Daemon, Plane, Shared};
use super::handover::{Estate, Inheritance};
use super::node::{self, RunOptions, Settings};
use crate::agent::join::Start;
use crate::agent::state::{Identity, StateDir};
use crate::api::Problem;
use crate::cli::args::{Ovsap, OvsapCommand};
use crate::dataplane::publish::Publisher;
use crate::dataplane::{self, SapPlane};
use crate::forward::{PathMtus, Snapshot};
use crate::local::Socket;
use crate::sys::descriptors::Descriptors;
use crate::sys::udp::UdpSocket;
use crate::types::NodeKind;

/// Flows of all entities that a SaP serves.
const FLOWS: usize = 1 << 17;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match Ovsap::from_command_line().command {
        OvsapCommand::Run(args) => node::finish(run(args.into())),
        OvsapCommand::Join(args) => node::finish(join(args.into())),
        OvsapCommand::Leave(args) => node::finish(leave(args.into())),
        OvsapCommand::Status(args) => node::status("ovsap", &args),
    }
}

/// Runs until SIGTERM or SIGINT; joins first where that is needed.
///
/// # Errors
///
/// What keeps it from starting.
pub fn run(options: RunOptions) -> Result<(), Problem> {
    let started_with = Descriptors::from_environment();
    let settings = Settings::new(NodeKind::Sap, options)?;
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
    let settings = Settings::new(NodeKind::Sap, options)?;
    let state = StateDir::open(&settings.state_dir, settings.uid)?;
    node::runtime()?.block_on(async {
        let joined = async {
            // Nothing is bound: a joined SaP may be running beside this very command.
            identify(&settings, &state, settings.start(&state)?, settings.listen).await
        };
        let joined = joined.await;
        let (_, identity) = node::keep_if_joined(state, joined)?;
        node::note(&format!("ovsap: joined as {} ({})", identity.name, identity.id));
        Ok(())
    })
}

/// Leaves and forgets everything.
///
/// # Errors
///
/// When `ovsap` runs, the server cannot be told, or something cannot be removed.
pub fn leave(options: RunOptions) -> Result<(), Problem> {
    let settings = Settings::new(NodeKind::Sap, options)?.for_owner()?;
    node::runtime()?.block_on(async {
        let (state, identity) = node::say_goodbye(&settings).await?;
        state.erase()?;
        node::note(&format!("ovsap: {} ({}) has left", identity.name, identity.id));
        Ok(())
    })
}

/// What is needed to run, got before a token is used up.
struct Ready {
    identity: Identity,
    sockets: Vec<UdpSocket>,
    bound: SocketAddr,
    socket: Socket,
}

/// Gets port and socket, and joins where that is needed.
async fn get_ready(
    settings: &Settings,
    state: &StateDir,
    inheritance: &mut Inheritance,
) -> Result<Ready, Problem> {
    let start = settings.start(state)?;
    let (sockets, bound) = settings.bind(inheritance)?;
    let socket = settings.local(inheritance)?;
    let identity = identify(settings, state, start, bound).await?;
    Ok(Ready { identity, sockets, bound, socket })
}

/// Who this node is: as it was, or as it becomes by joining.
async fn identify(
    settings: &Settings,
    state: &StateDir,
    start: Start,
    bound: SocketAddr,
) -> Result<Identity, Problem> {
    match start {
        Start::Resume { identity, .. } => Ok(*identity),
        // A SaP has no route into an overlay, so nothing of its host can collide.
        Start::Join(token) => Ok(settings.join(token, bound, Vec::new(), state).await?.identity),
    }
}

async fn start(
    settings: &Settings,
    state: StateDir,
    ready: Ready,
    mut inheritance: Inheritance,
) -> Result<(), Problem> {
    let Ready { identity, sockets, bound, socket } = ready;
    let wanted = settings.wanted(bound);
    let publisher = Arc::new(Publisher::new(Snapshot::empty()));
    let mut estate = Estate::default();
    let flows = inheritance.flow_table(FLOWS, &mut estate).started(dataplane::now());
    let flows = Arc::new(flows);
    let instance = inheritance.instance(&mut estate);
    let (plane, port) = SapPlane::start(sockets, Arc::clone(&publisher), Arc::clone(&flows))
        .map_err(node::failed)?;
    let plane = Plane::Sap(plane);
    // It sends what others made: how long that may be is for the sources to know.
    let path_mtus = Arc::new(Publisher::new(PathMtus::default()));
    let shared = Shared::new(identity, publisher, flows, path_mtus, plane.counters());
    inheritance.close_rest();
    let Inheritance { manager, predecessor, .. } = inheritance;
    daemon::run(Daemon {
        shared,
        state,
        plane,
        port,
        socket,
        wanted,
        naming: None,
        guarding: None,
        manager,
        estate,
        predecessor,
        instance,
    })
    .await
}
