//! The arguments of `ovctl backup` and `ovctl restore`.

use std::path::PathBuf;

use clap::Args;

/// Which server's data, on this machine.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct DataArgs {
    /// The server's configuration [default: /etc/ovmesh/server.toml, if it exists]
    #[arg(long, value_name = "FILE", requires = "file")]
    pub config: Option<PathBuf>,
    /// Where its database and key are [default: as ovctl serve]
    #[arg(long, value_name = "DIR", requires = "file")]
    pub data_dir: Option<PathBuf>,
}

/// Where a backup goes.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BackupArgs {
    /// The file to make; nothing may be there
    pub file: PathBuf,
    /// Which server.
    #[command(flatten)]
    pub data: DataArgs,
}

/// What to restore, or to accept.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreArgs {
    /// A file that ovctl backup made
    #[arg(required_unless_present = "accept")]
    pub file: Option<PathBuf>,
    /// Make all authorization keys and link secrets anew: the backup was in other hands
    #[arg(long, requires = "file")]
    pub rekey: bool,
    /// Let nodes follow; without FILE: those of the server that runs, which was restored
    #[arg(long)]
    pub accept: bool,
    /// Replace the server that is there; its files are kept in DIR/replaced
    #[arg(long, requires = "file")]
    pub replace: bool,
    /// Which server.
    #[command(flatten)]
    pub data: DataArgs,
}
