//! The arguments of `ovctl path`.

use clap::{ArgGroup, Args, Subcommand};

use super::ChangeArgs;
use crate::types::{EntityName, Name};

/// The verbs of `ovctl path`.
#[derive(Subcommand, Clone, Debug)]
pub enum PathCommand {
    /// Show which way the packets of a pair take, what else there is, and why
    #[command(after_help = "\
Example:
  ovctl path show web db")]
    Show(PairArgs),
    /// Set the path of a pair; it goes before the paths of rules
    #[command(after_help = "\
Examples:
  ovctl path set web db --via sap-fra          over this SaP alone
  ovctl path set web db --via sap-a,sap-b      from web over both, and back the other way round
  ovctl path set web db --direct               over no SaP: the destination alone enforces")]
    Set(PathSetArgs),
    /// Take back what was set: rules and measurements decide again
    Auto(PathAutoArgs),
    /// Show the round trips that entities measured to SaPs
    Latency {
        /// Only this overlay
        #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
        overlay: Option<Name>,
    },
}

/// Two entities.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PairArgs {
    /// One end (web, shop/web)
    #[arg(value_name = "FROM")]
    pub from: EntityName,
    /// The other end
    #[arg(value_name = "TO")]
    pub to: EntityName,
    /// The overlay [default: the only one that both are in]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// A path to set.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(group(ArgGroup::new("way").required(true).args(["via", "direct"])))]
pub struct PathSetArgs {
    /// The pair.
    #[command(flatten)]
    pub pair: PairArgs,
    /// Over these SaPs, in this order from FROM
    #[arg(long, value_name = "SAP,...", value_delimiter = ',')]
    pub via: Vec<Name>,
    /// Over no SaP
    #[arg(long)]
    pub direct: bool,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// A path to take back.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PathAutoArgs {
    /// The pair.
    #[command(flatten)]
    pub pair: PairArgs,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}
