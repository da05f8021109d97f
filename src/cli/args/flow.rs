//! The arguments of `ovctl flow`.

use clap::{Args, Subcommand};

use crate::types::{EntityName, HumanDuration, Name};

/// The verbs of `ovctl flow`.
#[derive(Subcommand, Clone, Debug)]
pub enum FlowCommand {
    /// List what happened, newest first
    #[command(
        visible_alias = "ls",
        after_help = "\
A flow is shown by who started it; replies count for it. SaPs and both ends see the same packets:
what passed is counted where it arrived, what was denied where it was dropped.

Examples:
  ovctl flow list --denied --since 5m
  ovctl flow list --from web --to db -o json"
    )]
    List(FlowArgs),
    /// Show the busiest
    Top(FlowArgs),
    /// Print what is new, every few seconds, until interrupted
    Tail(FlowArgs),
}

/// Which records to show.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowArgs {
    /// Only flows that this entity started
    #[arg(long, value_name = "ENTITY")]
    pub from: Option<EntityName>,
    /// Only flows towards this entity
    #[arg(long, value_name = "ENTITY")]
    pub to: Option<EntityName>,
    /// Only what was denied
    #[arg(long)]
    pub denied: bool,
    /// Only what passed because of an audit
    #[arg(long, conflicts_with = "denied")]
    pub audit: bool,
    /// Only what was seen in this time, such as 5m [default: everything that is kept]
    #[arg(long, value_name = "DURATION")]
    pub since: Option<HumanDuration>,
    /// Only this overlay
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// At most this many [default: 1000; top: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}
