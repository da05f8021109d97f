//! The arguments of `ovctl token`.

use clap::{Args, Subcommand, ValueEnum};

use super::{ChangeArgs, NamedPort};
use crate::api::admin::Role;
use crate::types::{HumanDuration, Label, Name};

/// The verbs of `ovctl token`.
#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Make a token; its text is printed once, alone on stdout
    #[command(after_help = "\
Examples:
  ovctl token create --name web > web.token       one machine, once, within the hour
  ovctl token create --role sap > sap.token
  ovctl token create --uses 0 --expires 7d --label role=ci --ephemeral > ci.token
  ovctl token create --role viewer --expires 30d > viewer.token
                                                  for ovctl --server URL --token-file viewer.token")]
    Create(TokenCreateArgs),
    /// List tokens, without their text
    #[command(visible_alias = "ls")]
    List,
    /// Make a token useless; who joined with it stays
    Revoke {
        /// The token's id, such as t-7
        id: String,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// A token to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TokenCreateArgs {
    /// Overlay to join; repeat for several [default: the only one, or `default`]
    #[arg(long = "overlay", value_name = "NAME")]
    pub overlays: Vec<Name>,
    /// What it entitles to
    #[arg(long, value_enum, default_value_t = RoleArg::Entity)]
    pub role: RoleArg,
    /// The name that the joiner gets
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// The namespace that the joiner gets; for admins, repeatable: those they may change
    #[arg(long = "namespace", value_name = "NAME")]
    pub namespaces: Vec<Name>,
    /// A label that the joiner gets; repeat for several
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// A port that rules can call by name, such as http=tcp/8080; repeat for several
    #[arg(long = "port", value_name = "NAME=SERVICE")]
    pub ports: Vec<NamedPort>,
    /// How often it can be used to join; 0 is without limit
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub uses: u32,
    /// How long it can be used
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub expires: HumanDuration,
    /// Delete the entity when it leaves
    #[arg(long)]
    pub ephemeral: bool,
    /// Accept clear hops over an underlay that is not declared managed
    #[arg(long)]
    pub clear_underlay: bool,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// What a token entitles to, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Joins a machine: ovd
    Entity,
    /// Joins a policy point: ovsap
    Sap,
    /// Changes things over HTTPS
    Admin,
    /// Reads things over HTTPS
    Viewer,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Entity => Self::Entity,
            RoleArg::Sap => Self::Sap,
            RoleArg::Admin => Self::Admin,
            RoleArg::Viewer => Self::Viewer,
        }
    }
}
