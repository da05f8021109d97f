//! The arguments of `ovctl policy apply|export|…`, `ovctl group`, `ovctl service`, `ovctl namespace`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ChangeArgs, LabelEdit};
use crate::types::{HumanDuration, Label, Name, Revision, Selector};

/// Which policy to write.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ExportArgs {
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Which policy to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ApplyArgs {
    /// A policy file or a folder of them; - is stdin; repeat: together they are the policy
    #[arg(short, long = "file", value_name = "POLICY", required = true)]
    pub files: Vec<PathBuf>,
    /// The overlay [default: the one that the files name, else the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// Undo it after this time unless `ovctl policy confirm` comes first
    #[arg(long, value_name = "DURATION")]
    pub confirm_within: Option<HumanDuration>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Which change to keep.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ConfirmArgs {
    /// The overlay [default: the only one whose change waits]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Which history to list.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct HistoryArgs {
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// At most this many; the last 1000 are kept
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Which policy to go back to.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RollbackArgs {
    /// The revision whose policy is wanted
    pub revision: u64,
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

impl RollbackArgs {
    /// The revision.
    #[must_use]
    pub fn target(&self) -> Revision {
        Revision(self.revision)
    }
}

/// What can be imported.
#[derive(Subcommand, Clone, Debug)]
pub enum ImportCommand {
    /// NetworkPolicies (networking.k8s.io/v1), in the place of those of the same name
    #[command(after_help = "\
In an overlay of kubernetes semantics they hold as in Kubernetes; in a default-deny one they allow what
they let through, and nothing is open that they do not speak of.

Examples:
  kubectl get networkpolicy -A -o yaml | ovctl policy import kubernetes -f -
  ovctl policy import kubernetes -f netpol/ --overlay prod --dry-run")]
    Kubernetes(ImportArgs),
}

/// What to import.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ImportArgs {
    /// A file or a folder of them; - is stdin; repeat
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Which groups or services to list.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemListArgs {
    /// Only this overlay
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Which group or service to show.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ItemShowArgs {
    /// Its name
    pub name: Name,
    /// Its overlay [default: any]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Which group or service to delete.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ItemDeleteArgs {
    /// Its name
    pub name: Name,
    /// Its overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// The verbs of `ovctl group`.
#[derive(Subcommand, Clone, Debug)]
pub enum GroupCommand {
    /// List groups
    #[command(visible_alias = "ls")]
    List(ItemListArgs),
    /// Show one group, and who is in it
    Show(ItemShowArgs),
    /// Make a group; rules say group:NAME
    #[command(after_help = "\
Example:
  ovctl group create backends db role=cache")]
    Create(GroupEditArgs),
    /// Add members: names, labels, namespace:NAME, service:NAME, CIDRs
    Add(GroupEditArgs),
    /// Remove members, as they were written
    Remove(GroupEditArgs),
    /// Delete a group that no rule speaks of
    #[command(visible_alias = "rm")]
    Delete(ItemDeleteArgs),
}

/// A group with members.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct GroupEditArgs {
    /// Its name
    pub name: Name,
    /// Members: names (web, shop/web), labels (role=web), namespace:NAME, any, CIDRs
    #[arg(value_name = "MEMBER")]
    pub selectors: Vec<Selector>,
    /// Its overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// The verbs of `ovctl service`.
#[derive(Subcommand, Clone, Debug)]
pub enum ServiceCommand {
    /// List services
    #[command(visible_alias = "ls")]
    List(ItemListArgs),
    /// Show one service, and who it means
    Show(ItemShowArgs),
    /// Give labels a name; rules say service:NAME
    #[command(after_help = "\
Example:
  ovctl service create api role=api tier=front")]
    Create {
        /// Its name
        name: Name,
        /// The labels that its members carry, all of them
        #[arg(required = true, value_name = "KEY=VALUE")]
        labels: Vec<Label>,
        /// Its overlay [default: the only one]
        #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
        overlay: Option<Name>,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Delete a service that no rule speaks of
    #[command(visible_alias = "rm")]
    Delete(ItemDeleteArgs),
}

/// The verbs of `ovctl namespace`.
#[derive(Subcommand, Clone, Debug)]
pub enum NamespaceCommand {
    /// List namespaces with their labels
    #[command(visible_alias = "ls")]
    List,
    /// Set and remove labels, which namespaceSelectors of NetworkPolicies look at
    #[command(after_help = "\
Example:
  ovctl namespace label shop team=red tier-        sets team, removes tier")]
    Label {
        /// The namespace; nobody needs to be in it yet
        namespace: Name,
        /// KEY=VALUE sets, KEY- removes
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        edits: Vec<LabelEdit>,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
}
