//! `ovctl backup` and `ovctl restore`: on the server's own machine, as its user. Nothing of a backup ever
//! goes over the network.

use std::path::PathBuf;

use super::node::hide_memory;
use super::serve;
use crate::api::{Problem, ProblemCode};
use crate::cli::Outcome;
use crate::cli::args::{BackupArgs, DataArgs, Global, RestoreArgs, ServeArgs};
use crate::cli::backup::{show_backup, show_restore};
use crate::cli::output::Output;
use crate::control::backup::{self, RestoreOptions};

/// Runs `ovctl backup`.
///
/// # Errors
///
/// Why no backup was made.
pub(crate) async fn back_up(
    global: &Global,
    args: BackupArgs,
    output: &mut Output,
) -> Result<Outcome, Problem> {
    hide_memory()?;
    let data_dir = data_dir(global, args.data)?;
    let made = backup::back_up(&data_dir, &args.file).await?;
    show_backup(output, &made, &args.file.to_string_lossy());
    Ok(Outcome::Done)
}

/// Runs `ovctl restore FILE`.
///
/// # Errors
///
/// Why nothing was restored.
pub(crate) async fn restore(
    global: &Global,
    args: RestoreArgs,
    file: PathBuf,
    output: &mut Output,
) -> Result<Outcome, Problem> {
    hide_memory()?;
    let data_dir = data_dir(global, args.data)?;
    let RestoreArgs { rekey, accept, replace, .. } = args;
    let done = backup::restore(&data_dir, &file, RestoreOptions { rekey, accept, replace }).await?;
    show_restore(output, &done, &file.to_string_lossy());
    Ok(Outcome::Done)
}

/// Where the server's data is.
fn data_dir(global: &Global, data: DataArgs) -> Result<PathBuf, Problem> {
    if global.server.is_some() {
        return Err(Problem::new(
            ProblemCode::Usage,
            "a backup is made and restored on the server's machine",
        )
        .why("it holds the server's key and all authorization keys, which no token gives out")
        .fix("run it there, as the server's user, without --server"));
    }
    let DataArgs { config, data_dir } = data;
    serve::data_dir(ServeArgs { config, data_dir, ..ServeArgs::default() })
}
