//! The arguments of `ovctl policy`.

use clap::{Args, Subcommand};

use super::{
    ApplyArgs, ChangeArgs, ConfirmArgs, ExportArgs, HistoryArgs, ImportCommand, OfflineCommand,
    RollbackArgs,
};
use crate::types::{HumanDuration, Name, RuleId, Selector, Service};

/// The verbs of `ovctl policy`.
#[derive(Subcommand, Clone, Debug)]
pub enum PolicyCommand {
    /// Let FROM start flows to TO; replies pass
    #[command(after_help = "\
FROM and TO: a name (web, shop/web), labels (role=web,tier=front), namespace:NAME, group:NAME,
service:NAME, any, or addresses outside (10.0.0.0/8, 10.0.0.0/8!10.1.0.0/16).

Examples:
  ovctl policy allow web db --port tcp/5432        web may ask db, db may not ask web
  ovctl policy allow role=web any --port udp/53 --expires 8h
  ovctl policy allow s1 s2 --both --direct         no SaP between the two
  ovctl policy allow s1 s3 --via sap-1,sap-2       through two SaPs, in this order")]
    Allow(RuleArgs),
    /// Refuse to let FROM start flows to TO, before any allow rule
    #[command(after_help = "\
Replies of flows that TO may start still pass.

Example:
  ovctl policy deny role=ci db --reason 'no tests against production'")]
    Deny(RuleArgs),
    /// Remove a rule by id, or every rule written for FROM TO
    #[command(
        visible_alias = "remove",
        after_help = "\
Examples:
  ovctl policy revoke r-18
  ovctl policy revoke web db"
    )]
    Revoke(RevokeArgs),
    /// List rules
    #[command(visible_alias = "ls")]
    List {
        /// Only this overlay
        #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
        overlay: Option<Name>,
    },
    /// Show one rule
    Show {
        /// The rule, such as r-18
        rule: RuleId,
    },
    /// Ask whether FROM may start a flow to TO (exit 0 allowed, 4 denied)
    #[command(after_help = "\
Examples:
  ovctl policy can web db -p tcp/5432
  ovctl policy can role=web group:backends         allowed when each of the pairs is
  ovctl policy can web ip:203.0.113.9 -p tcp/443   and whether web's guard holds to it
  ovctl policy can web db && echo open")]
    Can(CanArgs),
    /// Propose rules that allow exactly what an audit recorded
    #[command(after_help = "\
Prints a policy file: by label where everybody with the label was part of it, else by name.

Example:
  ovctl policy suggest --since 24h --overlay prod > proposal.yaml")]
    Suggest(SuggestArgs),
    /// Write the whole policy of an overlay as a file
    #[command(after_help = "\
Example:
  ovctl policy export > policy.yaml")]
    Export(ExportArgs),
    /// Make files the policy of an overlay: what is not in them goes
    #[command(after_help = "\
What stays the same keeps its id and whom its names are bound to. Tests in the files must hold (exit 8).

Examples:
  ovctl policy apply -f policy.yaml --dry-run      say what would change
  ovctl policy apply -f policy.yaml --confirm-within 60s")]
    Apply(ApplyArgs),
    /// Keep a change that was made with --confirm-within
    Confirm(ConfirmArgs),
    /// List the changes of an overlay's policy, newest first
    History(HistoryArgs),
    /// Make the policy of an earlier revision the policy of now
    Rollback(RollbackArgs),
    /// Import the policies of others
    #[command(subcommand)]
    Import(ImportCommand),
    /// What files, or a server, can be asked.
    #[command(flatten)]
    Offline(OfflineCommand),
}

/// A rule to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RuleArgs {
    /// Who starts flows
    pub from: Selector,
    /// Who is talked to
    pub to: Selector,
    /// Protocol and port of TO: tcp/443, udp/53, tcp/8000-8999, tcp/NAME, icmp [default: all]
    #[arg(short, long = "port", value_name = "SERVICE", value_delimiter = ',')]
    pub ports: Vec<Service>,
    /// Hold in both directions; a port is the destination's in each
    #[arg(long)]
    pub both: bool,
    /// Let the two talk without a SaP between them
    #[arg(long, conflicts_with = "via")]
    pub direct: bool,
    /// Go through these SaPs, in this order
    #[arg(long, value_name = "SAP,SAP", value_delimiter = ',')]
    pub via: Vec<Name>,
    /// The overlay [default: the only one that both ends share]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// End by itself after this time, such as 8h or 7d
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<HumanDuration>,
    /// Record what it would do, and enforce nothing
    #[arg(long)]
    pub audit: bool,
    /// What to call it
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Why the rule is there, for whoever reads it later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// What to make rules of.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SuggestArgs {
    /// What was recorded in this time [default: everything that is kept]
    #[arg(long, value_name = "DURATION")]
    pub since: Option<HumanDuration>,
    /// What was denied for want of a rule, too
    #[arg(long)]
    pub denied: bool,
    /// The overlay [default: the only one with records]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Rules to remove.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RevokeArgs {
    /// A rule (r-18), or with TO: who starts flows
    #[arg(value_name = "RULE|FROM")]
    pub rule_or_from: String,
    /// Who is talked to
    pub to: Option<Selector>,
    /// The overlay, with FROM and TO [default: any]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// A question.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CanArgs {
    /// Who would start the flow: a name, an address, labels, group:NAME, …
    pub from: Selector,
    /// Who would be talked to
    pub to: Selector,
    /// Protocol and one port of TO, such as tcp/80 [default: anything at all]
    #[arg(short, long, value_name = "SERVICE")]
    pub port: Option<Service>,
    /// The overlay [default: the only one in which both ends mean somebody]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}
