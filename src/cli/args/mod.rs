//! The arguments of the three programs, as clap structs: what may be typed, and its help.
//!
//! Parsing is all that happens here: no file is read and nothing is asked of a server. Values that
//! exist are valid, because names, selectors, services and durations parse in their constructors.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these doc comments are help texts for terminals, where `[::]:7443` is an address"
)]

mod backup;
mod dns;
mod flow;
mod kubernetes;
mod node;
mod offline;
mod ovctl;
mod path;
mod policy;
mod policy_file;
mod token;
mod values;

use clap::{Args, ValueEnum};

use crate::api::admin::ChangeOptions;
use crate::types::{HumanDuration, Revision};

pub use backup::{BackupArgs, DataArgs, RestoreArgs};
pub use dns::{DnsCommand, DnsExportArgs, DnsForm};
pub use flow::{FlowArgs, FlowCommand};
pub use kubernetes::{InjectArgs, KubernetesCommand};
pub use node::{
    Check, DaemonArgs, DeniedArgs, DoctorArgs, GuardCommand, GuardOffArgs, JoinArgs,
    NodeStatusArgs, Ovd, OvdCommand, OvdRunArgs, OvdWhyArgs, Ovsap, OvsapCommand, PingArgs,
    RunArgs, StateArgs,
};
pub use offline::{
    DiffArgs, LintArgs, MatrixArgs, MatrixForm, OfflineCommand, PolicyTestArgs, SceneArgs,
};
pub use ovctl::{
    AuditCommand, AuditListArgs, CompletionArgs, EntityCommand, Global, KeyCommand, KeyListArgs,
    KeyRotateArgs, LabelArgs, OnOff, Ovctl, OvctlCommand, OverlayCommand, OverlayCreateArgs,
    Program, SapCommand, SapPlanArgs, SemanticsArg, ServeArgs,
};
pub use path::{PairArgs, PathAutoArgs, PathCommand, PathSetArgs};
pub use policy::{CanArgs, PolicyCommand, RevokeArgs, RuleArgs, SuggestArgs};
pub use policy_file::{
    ApplyArgs, ConfirmArgs, ExportArgs, GroupCommand, GroupEditArgs, HistoryArgs, ImportArgs,
    ImportCommand, ItemDeleteArgs, ItemListArgs, ItemShowArgs, NamespaceCommand, RollbackArgs,
    ServiceCommand,
};
pub use token::{RoleArg, TokenCommand, TokenCreateArgs};
pub use values::{EndpointArg, EntityRef, JoinSource, LabelEdit, NamedPort, RotateTarget};

/// Stands below the help of every program.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  ok
  1  failed, or committed and not yet enforced
  2  usage
  3  not found
  4  the verdict is deny
  5  conflict
  6  nobody answers (server or daemon)
  7  not authorized
  8  findings";

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns and sentences for people
    #[default]
    Table,
    /// The server's answer, `"apiVersion": "ovmesh/v1"`
    Json,
    /// Names alone, one a line
    Name,
}

/// Options of every change.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeArgs {
    /// Say what would happen and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse (exit 5) unless this is the newest revision
    #[arg(long, value_name = "N", value_parser = parse_revision)]
    pub if_revision: Option<Revision>,
    /// Go on though it cuts the way that you reach the server by
    #[arg(long)]
    pub accept_risk: bool,
    /// How long to wait until it is enforced [default: 10s]
    #[arg(long, value_name = "DURATION", conflicts_with = "no_wait")]
    pub wait: Option<HumanDuration>,
    /// Return as soon as it is committed
    #[arg(long)]
    pub no_wait: bool,
}

/// How long a change waits for enforcement when nothing is said (design section 5).
const WAIT_DEFAULT: std::time::Duration = std::time::Duration::from_secs(10);

impl ChangeArgs {
    /// The query parameters that say so.
    #[must_use]
    pub fn options(&self) -> ChangeOptions {
        let wait = if self.no_wait {
            None
        } else {
            Some(self.wait.unwrap_or(HumanDuration(WAIT_DEFAULT)))
        };
        ChangeOptions {
            dry_run: self.dry_run.then_some(true),
            if_revision: self.if_revision,
            accept_risk: self.accept_risk.then_some(true),
            wait,
        }
    }
}

/// Reads a revision as a plain number.
fn parse_revision(text: &str) -> Result<Revision, String> {
    text.parse().map(Revision).map_err(|_| "a revision is a number, such as 42".to_owned())
}

#[cfg(test)]
mod tests;
