//! `ovd down`: stops the daemon, then takes away what outlives it.

use std::time::{Duration, Instant};

use super::node::{self, RunOptions, Settings};
use super::unit;
use crate::agent::state::StateDir;
use crate::api::local::Order;
use crate::api::{Problem, ProblemCode};
use crate::cli;
use crate::guard;
use crate::sys::net::Network;
use crate::types::NodeKind;

/// How long the daemon may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How often to look whether it has.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Stops what runs and takes away the guard and the unreachable routes. The machine stays a member.
///
/// # Errors
///
/// When the daemon does not stop, or something cannot be taken away.
pub(super) fn run(options: RunOptions) -> Result<(), Problem> {
    let settings = Settings::new(NodeKind::Entity, options)?.for_owner()?;
    if StateDir::peek_identity(&settings.state_dir, settings.uid)?.is_none() {
        return Err(Problem::new(ProblemCode::NotFound, "this machine has not joined")
            .why(format!("there is no identity in {}", settings.state_dir.display())));
    }
    node::runtime()?.block_on(async {
        if unit::is_wanted() {
            unit::stop()?;
        } else if settings.socket.exists() {
            // It may be gone before it has answered, or have died long ago: what counts is the lock.
            if let Err(problem) = cli::guard::order(Some(&settings.socket), &Order::Down).await {
                tracing::debug!(%problem, "no answer");
            }
        }
        let state = released(&settings).await?;
        sweep(&state).await?;
        node::note("ovd: down; `ovd up` brings it back");
        Ok(())
    })
}

/// The state directory, once nobody holds it.
async fn released(settings: &Settings) -> Result<StateDir, Problem> {
    let deadline = Instant::now() + STOP_WITHIN;
    loop {
        match StateDir::open(&settings.state_dir, settings.uid) {
            Err(problem) if problem.code == ProblemCode::Conflict && Instant::now() < deadline => {
                tokio::time::sleep(STOP_POLL).await;
            }
            opened => return opened,
        }
    }
}

/// Takes away what a daemon leaves on purpose: for a machine that goes down or leaves.
///
/// # Errors
///
/// What cannot be taken away, the first of it; the rest is.
pub(super) async fn sweep(state: &StateDir) -> Result<(), Problem> {
    let network = Network::open().map_err(node::failed)?;
    let mut routes = Ok(());
    if let (Some(table), _) = state.table() {
        for overlay in &table.body.overlays {
            routes = routes.and(network.remove_unreachable(overlay.cidr).await);
        }
    }
    let mut devices = Ok(());
    for name in state.devices().values() {
        // Of a daemon that crashed and did not come back.
        devices = devices.and(network.remove_left(name).await.map(drop));
    }
    let guard = match guard::sweep() {
        // A machine without nft never had one.
        Err(error) if guard::is_missing(&error) => Ok(()),
        swept => swept,
    };
    routes.and(devices).and(guard).map_err(node::failed)
}
