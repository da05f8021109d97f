//! `ovd up`: from a fresh machine to online, by the service where systemd is, else in the foreground.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::node::{self, Settings};
use super::{ovd, unit};
use crate::agent::join::{self, Start};
use crate::agent::state::StateDir;
use crate::api::local::{NodeStatus, OverlayStatus};
use crate::api::{Problem, ProblemCode};
use crate::cli::args::{Check, Format, JoinSource, NodeStatusArgs, OvdRunArgs, RunArgs};
use crate::cli::client::{Answer, Client};
use crate::cli::output::Output;
use crate::cli::{Outcome, node_status};
use crate::types::{HumanDuration, NodeKind};

/// How long packets may take to pass once the service runs.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Joins where that is needed, starts, and returns when packets can pass; in the foreground it returns at
/// the end.
///
/// # Errors
///
/// What keeps this machine from joining, the service from starting or packets from passing.
pub(super) fn run(args: OvdRunArgs) -> Result<(), Problem> {
    if !unit::is_possible() {
        node::note(
            "ovd: there is no systemd here: running in the foreground, until Ctrl-C or `ovd down`",
        );
        return ovd::run(args.into());
    }
    check_flags(&args)?;
    if node::effective_uid()? != 0 {
        return Err(Problem::new(ProblemCode::Failed, "`ovd up` needs root")
            .why("it installs and starts a service")
            .fix("sudo ovd up ..., with the same arguments"));
    }
    let program = std::env::current_exe().unwrap_or_else(|_| Path::new("/usr/bin/ovd").to_owned());
    be_member(args)?;
    if unit::install(&program)? {
        node::note(&format!("ovd: installed {} for {}", unit::UNIT, program.display()));
    }
    unit::start()?;
    node::runtime()?.block_on(wait())
}

/// What a service is told at every start stands in its file, or the next boot would forget it.
fn check_flags(args: &OvdRunArgs) -> Result<(), Problem> {
    let RunArgs { join, name, log, .. } = args.run.clone();
    let taken = OvdRunArgs {
        run: RunArgs { join, name, log, ..RunArgs::default() },
        ..OvdRunArgs::default()
    };
    if *args == taken {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Usage, "`ovd up` takes no flags but --join and --name here")
        .why("systemd starts ovd at every boot, and it reads its settings from /etc/ovmesh/ovd.toml then")
        .fix("write them there, a line each, such as endpoints = [\"192.0.2.7\"] or guard = \"all\""))
}

/// Joins as the service's user, where this machine has not.
fn be_member(args: OvdRunArgs) -> Result<(), Problem> {
    let mut run = args.run;
    // The unit's, whatever the file says.
    run.state_dir = Some(PathBuf::from(unit::STATE));
    // Root may read the file, the service's user perhaps not.
    run.join = run.join.map(JoinSource::hold).transpose()?;
    let token = run.join.as_ref().map(JoinSource::read).transpose()?;
    let settings = Settings::new(NodeKind::Entity, run.into())?;
    let dir = settings.state_dir.clone();
    let identity = match fs::symlink_metadata(&dir) {
        Err(_) => None,
        // Files of the service's user are read as that user.
        Ok(_) => as_owner(settings.clone(), |settings| {
            StateDir::peek_identity(&settings.state_dir, settings.uid)
        })?,
    };
    if let Some(identity) = identity {
        let name = identity.name.clone();
        let start = join::decide(Some(identity), token, NodeKind::Entity, &dir)?;
        if matches!(start, Start::Resume { ignored: true, .. }) {
            node::note(&format!("ovd: already joined, as {name}; --join is ignored"));
        }
        return Ok(());
    }
    if token.is_none() {
        // It has waited for the service since somebody put it there.
        if Path::new(unit::TOKEN).exists() {
            return Ok(());
        }
        return Err(Problem::new(ProblemCode::NotFound, "this machine has not joined")
            .why(format!("there is no identity in {}", dir.display()))
            .fix("sudo ovd up --join TOKEN, with a token from `ovctl token create`"));
    }
    let is_new = unit::make_state(&dir, unit::make_user()?)?;
    let joined = as_owner(settings, |settings| ovd::join_with(&settings));
    if joined.is_err() && is_new {
        // Made a moment ago: in it is the lock of who did not get further.
        let _ = fs::remove_dir_all(&dir);
    }
    joined
}

/// Does `what` on a thread that uses files as their owner: the thread that calls stays root.
fn as_owner<T: Send>(
    settings: Settings,
    what: impl FnOnce(Settings) -> Result<T, Problem> + Send,
) -> Result<T, Problem> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| settings.for_owner().and_then(what));
        thread
            .join()
            .unwrap_or_else(|_| Err(Problem::new(ProblemCode::Failed, "joining was broken off")))
    })
}

/// Waits until packets can pass, and says where this machine is now.
async fn wait() -> Result<(), Problem> {
    let mut output = Output::standard(Format::Table);
    let ready = NodeStatusArgs {
        check: Some(Check::Ready),
        wait: Some(HumanDuration(READY_WITHIN)),
        ..NodeStatusArgs::default()
    };
    if node_status::run("ovd", &mut output, &ready).await? != Outcome::Done {
        return Err(Problem::new(
            ProblemCode::Failed,
            "the service runs, and packets cannot pass yet",
        )
        .fix("ovd status shows when they can; ovd doctor looks for what is wrong here"));
    }
    let client = Client::to_daemon("ovd", None)?;
    let status: Answer<NodeStatus> = client.read("/v1/status", &[]).await?;
    let status = status.value;
    let place = |overlay: &OverlayStatus| Some(format!("{} in {}", overlay.address?, overlay.name));
    let places: Vec<_> = status.overlays.iter().filter_map(place).collect();
    node::note(&format!("ovd: online as {}: {}", status.name, places.join(", ")));
    Ok(())
}
