//! The arguments of `ovctl`: the server, and every noun that it serves.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

use super::{
    BackupArgs, CanArgs, ChangeArgs, DnsCommand, EXIT_CODES, EntityRef, FlowCommand, Format,
    GroupCommand, KubernetesCommand, LabelEdit, NamespaceCommand, PathCommand, PolicyCommand,
    RestoreArgs, RotateTarget, ServiceCommand, TokenCommand,
};
use crate::api::admin::Semantics;
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Name, Prefix};

/// Runs the coordination server, and speaks to it: overlays, tokens, entities, policy
#[derive(Parser, Clone, Debug)]
#[command(name = "ovctl", version, propagate_version = true, after_help = EXIT_CODES, before_help = "\
From nothing to a policed ping:
  ovctl serve                                      on the server
  ovctl token create --role sap                    then: ovsap run --join TOKEN
  ovctl token create --name web                    then: sudo ovd up --join TOKEN
  ovctl policy allow web db --port tcp/5432
  ovctl policy can web db -p tcp/5432")]
pub struct Ovctl {
    /// Which server, and how to show its answers.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: OvctlCommand,
}

impl Ovctl {
    /// The arguments of this process. Prints help, or an error in words, and exits when they ask for
    /// it.
    ///
    /// # Errors
    ///
    /// A usage error under `-o json`, which is shown as JSON.
    pub fn from_command_line() -> Result<Self, Problem> {
        let parsed = Self::command()
            .try_get_matches()
            .and_then(|matches| Ok(Self::from_arg_matches(&matches)?.settle_target(&matches)));
        parsed.map_err(|error| {
            let typed = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
            let preset = std::env::var("OVCTL_OUTPUT").ok();
            if !error.use_stderr() || !wants_json(typed, preset.as_deref()) {
                error.format(&mut Self::command()).exit();
            }
            usage_problem(&error.to_string())
        })
    }

    /// `--socket` on the command line goes before `OVCTL_SERVER` in the environment.
    fn settle_target(mut self, matches: &ArgMatches) -> Self {
        let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        if typed("socket") && !typed("server") {
            self.global.server = None;
        }
        self
    }
}

/// Whether a command line that could not be parsed asks for JSON.
pub(super) fn wants_json(typed: impl Iterator<Item = String>, preset: Option<&str>) -> bool {
    let mut format = preset.map(ToOwned::to_owned);
    let mut typed = typed.peekable();
    while let Some(word) = typed.next() {
        if word == "-o" || word == "--output" {
            format = typed.peek().cloned();
        } else if let Some(value) = word
            .strip_prefix("--output=")
            .or_else(|| word.strip_prefix("-o").filter(|_| !word.starts_with("--")))
        {
            format = Some(value.trim_start_matches('=').to_owned());
        }
    }
    format.as_deref() == Some("json")
}

/// The words of the parser as what, why and what to do.
pub(super) fn usage_problem(text: &str) -> Problem {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default();
    let why: Vec<&str> = lines.filter(|line| !line.starts_with("For more information")).collect();
    Problem::new(ProblemCode::Usage, what.strip_prefix("error: ").unwrap_or(what))
        .why(why.join("; "))
        .fix("see the command's --help")
}

/// Options of every `ovctl` command.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The server's unix socket [default: /run/ovmesh/ovctl.sock]
    #[arg(long, global = true, value_name = "PATH", env = "OVCTL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// The server over HTTPS: https://HOST:PORT; needs --token-file
    #[arg(long, global = true, value_name = "URL", env = "OVCTL_SERVER")]
    pub server: Option<String>,
    /// A file with an admin or viewer token, or - for stdin
    #[arg(long, global = true, value_name = "FILE", env = "OVCTL_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// How to show results
    #[arg(short, long, global = true, value_enum, default_value_t, env = "OVCTL_OUTPUT")]
    pub output: Format,
}

/// The nouns and verbs of `ovctl`.
#[derive(Subcommand, Clone, Debug)]
pub enum OvctlCommand {
    /// Run the coordination server
    #[command(after_help = "\
It needs no configuration: it makes an overlay `default` and says what to type next.
--socket says where it listens for ovctl on this host.

Examples:
  ovctl serve
  ovctl serve --data-dir ./data --listen 127.0.0.1:7443 --socket ./ovctl.sock
  ovctl serve --public-url https://ov.example.net:7443")]
    Serve(ServeArgs),
    /// Show everything on one screen: server, overlays, nodes, rotations, problems
    Status,
    /// Overlays: flat address ranges, each with its own policy
    #[command(subcommand, visible_aliases = ["overlays", "ov"])]
    Overlay(OverlayCommand),
    /// Tokens: to join a machine or a SaP, or to use ovctl from elsewhere
    #[command(subcommand, visible_aliases = ["tokens", "tok"])]
    Token(TokenCommand),
    /// Entities: the machines that run ovd
    #[command(subcommand, visible_aliases = ["entities", "ent"])]
    Entity(EntityCommand),
    /// SaPs: the policy points that run ovsap
    #[command(subcommand, visible_alias = "saps")]
    Sap(SapCommand),
    /// Paths: which SaPs the packets of a pair go over
    #[command(subcommand, visible_alias = "paths")]
    Path(PathCommand),
    /// Policy: who may talk to whom
    #[command(subcommand, visible_aliases = ["policies", "pol"])]
    Policy(PolicyCommand),
    /// Groups: a name for members, in rules group:NAME
    #[command(subcommand, visible_alias = "groups")]
    Group(GroupCommand),
    /// Services: a name for labels, in rules service:NAME
    #[command(subcommand, visible_aliases = ["services", "svc"])]
    Service(ServiceCommand),
    /// Namespaces and their labels
    #[command(subcommand, visible_aliases = ["namespaces", "ns"])]
    Namespace(NamespaceCommand),
    /// Say why a flow passes or not: exit 0 when it is allowed, 4 when denied
    #[command(after_help = "\
Stage by stage: membership, path, key, rules (with those that almost matched), endpoint; then what
was seen of it in the last minutes, and the command that would allow it.

Example:
  ovctl why web db -p tcp/5432")]
    Why(CanArgs),
    /// Authorization keys: their versions and rotation
    #[command(subcommand, visible_alias = "keys")]
    Key(KeyCommand),
    /// Audit: who changed what
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Flows: what happened, allowed and denied, by which rule
    #[command(subcommand, visible_alias = "flows")]
    Flow(FlowCommand),
    /// Make a backup of the server on this machine, which may be running
    #[command(after_help = "\
Run it as the server's user, or root. One file, for its owner alone: it holds the server's key and all
authorization keys.

Example:
  ovctl backup /var/backups/ovmesh-$(date +%F).db")]
    Backup(BackupArgs),
    /// Make a server of a backup; nodes keep the tables that they have until --accept
    #[command(after_help = "\
The server must be stopped, and run it as the server's user. What was changed after the backup is as it
was before: look at it, put it right, and then let nodes follow.

Examples:
  ovctl restore ovmesh.db                          then: ovctl serve
  ovctl restore --accept                           once all is right: nodes follow
  ovctl restore ovmesh.db --rekey                  the backup was in other hands
  ovctl restore ovmesh.db --replace                there is a server, which shall go")]
    Restore(RestoreArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  ovctl completion bash > ~/.local/share/bash-completion/completions/ovctl
  ovctl completion zsh --program ovd")]
    Completion(CompletionArgs),
    /// Names: give them to resolvers that are not ours
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Kubernetes: add ovd to the pods of manifests
    #[command(subcommand, visible_alias = "k8s")]
    Kubernetes(KubernetesCommand),
    /// Write the manual pages of the three programs: for packages
    #[command(hide = true)]
    Manual {
        /// Where to write them
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// How to run the server. Its unix socket is [`Global::socket`].
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeArgs {
    /// Configuration (TOML) [default: /etc/ovmesh/server.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the database and the server's key are kept [default: /var/lib/ovmesh/server]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to listen for HTTPS.
    // Brackets mean a link in documentation, so the default stands in the help alone.
    #[arg(long, value_name = "ADDR:PORT", help = "Where to listen for HTTPS [default: [::]:7443]")]
    pub listen: Option<SocketAddr>,
    /// A URL that tokens carry; repeat for several [default: every global address of the host]
    #[arg(long = "public-url", value_name = "URL")]
    pub public_urls: Vec<String>,
    /// error, warn, info, debug, trace, or a filter such as ovmesh::control=debug
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// The verbs of `ovctl overlay`.
#[derive(Subcommand, Clone, Debug)]
pub enum OverlayCommand {
    /// Make an overlay
    #[command(after_help = "\
Examples:
  ovctl overlay create prod                        a random /16 of 100.64.0.0/10
  ovctl overlay create lab --cidr 10.70.0.0/16
  ovctl overlay create six --cidr fd00:70::/64")]
    Create(OverlayCreateArgs),
    /// List overlays
    #[command(visible_alias = "ls")]
    List,
    /// Show one overlay
    Show {
        /// Its name
        name: Name,
    },
    /// Turn audit mode on or off: what would be refused passes and is recorded
    Audit {
        /// Its name
        name: Name,
        /// on or off
        #[arg(value_enum)]
        mode: OnOff,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Delete an overlay; its members lose their addresses in it
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name
        name: Name,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// On
    On,
    /// Off
    Off,
}

/// An overlay to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct OverlayCreateArgs {
    /// Its name
    pub name: Name,
    /// Its range, IPv4 or IPv6 [default: a random /16 of 100.64.0.0/10]
    #[arg(long, value_name = "CIDR")]
    pub cidr: Option<Prefix>,
    /// What traffic means that no rule speaks of; fixed for ever
    #[arg(long, value_enum, default_value_t = SemanticsArg::DefaultDeny)]
    pub semantics: SemanticsArg,
    /// Drop refused packets in silence, where others answer with TCP RST or ICMP
    #[arg(long)]
    pub silent: bool,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Semantics, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SemanticsArg {
    /// Nothing may talk until a rule says so
    DefaultDeny,
    /// Entities that no policy selects are open
    Kubernetes,
}

impl From<SemanticsArg> for Semantics {
    fn from(semantics: SemanticsArg) -> Self {
        match semantics {
            SemanticsArg::DefaultDeny => Self::DefaultDeny,
            SemanticsArg::Kubernetes => Self::Kubernetes,
        }
    }
}

/// The verbs of `ovctl entity`.
#[derive(Subcommand, Clone, Debug)]
pub enum EntityCommand {
    /// List entities
    #[command(visible_alias = "ls")]
    List {
        /// Only this overlay
        #[arg(long, value_name = "NAME")]
        overlay: Option<Name>,
    },
    /// Show one entity
    Show {
        /// Its name (web, shop/web) or overlay address
        entity: EntityRef,
    },
    /// Set and remove labels; rules by label follow at once
    #[command(after_help = "\
Example:
  ovctl entity label web role=frontend tier-       sets role, removes tier")]
    Label(LabelArgs),
    /// Let nothing pass to or from an entity, open flows neither
    Quarantine {
        /// Its name (web, shop/web) or overlay address
        entity: EntityRef,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// End the quarantine of an entity
    Release {
        /// Its name (web, shop/web) or overlay address
        entity: EntityRef,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Delete an entity; it can never come back, only join anew
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name (web, shop/web) or overlay address
        entity: EntityRef,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Labels to change.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LabelArgs {
    /// Its name (web, shop/web) or overlay address
    pub entity: EntityRef,
    /// KEY=VALUE sets, KEY- removes
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub edits: Vec<LabelEdit>,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// The verbs of `ovctl sap`.
#[derive(Subcommand, Clone, Debug)]
pub enum SapCommand {
    /// List SaPs
    #[command(visible_alias = "ls")]
    List,
    /// Show one SaP
    Show {
        /// Its name
        name: Name,
    },
    /// Move traffic off a SaP without loss, and wait until nothing is sent to it any more
    #[command(after_help = "\
It stays drained until undrain; stop it, or delete it, whenever you like.

Example:
  ovctl sap drain sap-fra-1 --wait 60s")]
    Drain {
        /// Its name
        name: Name,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a drained SaP carry traffic again
    Undrain {
        /// Its name
        name: Name,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Say where SaPs should stand by what was measured, and what that would save; changes nothing
    #[command(after_help = "\
Example:
  ovctl sap plan --count 2")]
    Plan(SapPlanArgs),
    /// Delete a SaP; its pairs go over the others
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name
        name: Name,
        /// How to make the change.
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// A plan to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct SapPlanArgs {
    /// How many SaPs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub count: u32,
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// The verbs of `ovctl key`.
#[derive(Subcommand, Clone, Debug)]
pub enum KeyCommand {
    /// List key versions by destination, and rotations under way
    #[command(visible_alias = "ls")]
    List(KeyListArgs),
    /// Rotate keys, make before break
    #[command(after_help = "\
Examples:
  ovctl key rotate db              the keys that everybody stamps towards db
  ovctl key rotate web db          the key of one pair
  ovctl key rotate --overlay prod
  ovctl key rotate --all --now     cut off who has not followed after 60 s")]
    Rotate(KeyRotateArgs),
}

/// Which keys to list.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyListArgs {
    /// Only this overlay
    #[arg(long, value_name = "NAME")]
    pub overlay: Option<Name>,
}

/// Which keys to rotate.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRotateArgs {
    /// One destination, or FROM TO for one pair
    #[arg(value_name = "[FROM] TO", num_args = 0..=2)]
    pub entities: Vec<EntityName>,
    /// One overlay; with names: where to look for them
    #[arg(long, value_name = "NAME")]
    pub overlay: Option<Name>,
    /// Every key of every overlay
    #[arg(long, conflicts_with_all = ["entities", "overlay"])]
    pub all: bool,
    /// Do not wait for nodes that have not followed after 60 s
    #[arg(long)]
    pub now: bool,
    /// How to make the change.
    #[command(flatten)]
    pub change: ChangeArgs,
}

impl KeyRotateArgs {
    /// What to rotate.
    ///
    /// # Errors
    ///
    /// Usage, when nothing was named.
    pub fn target(&self) -> Result<RotateTarget, Problem> {
        match (self.entities.as_slice(), &self.overlay, self.all) {
            ([from, to, ..], _, _) => Ok(RotateTarget::Pair { from: from.clone(), to: to.clone() }),
            ([to], _, _) => Ok(RotateTarget::Entity(to.clone())),
            ([], Some(overlay), _) => Ok(RotateTarget::Overlay(overlay.clone())),
            ([], None, true) => Ok(RotateTarget::All),
            ([], None, false) => {
                Err(Problem::new(ProblemCode::Usage, "nothing is named that could be rotated")
                    .fix("ovctl key rotate TO | FROM TO | --overlay NAME | --all"))
            }
        }
    }
}

/// The verbs of `ovctl audit`.
#[derive(Subcommand, Clone, Debug)]
pub enum AuditCommand {
    /// List changes, newest first
    #[command(visible_alias = "ls")]
    List(AuditListArgs),
}

/// Which changes to list.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct AuditListArgs {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Which shell to complete in.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionArgs {
    /// The shell
    pub shell: clap_complete::Shell,
    /// The program
    #[arg(long, value_enum, default_value_t)]
    pub program: Program,
}

/// One of the three programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// The server and its client
    #[default]
    Ovctl,
    /// What runs at an entity
    Ovd,
    /// What runs at a SaP
    Ovsap,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ovctl, Self::Ovd, Self::Ovsap];

    /// Its command line, as the parser knows it.
    #[must_use]
    pub fn command(self) -> clap::Command {
        match self {
            Self::Ovctl => Ovctl::command(),
            Self::Ovd => super::Ovd::command(),
            Self::Ovsap => super::Ovsap::command(),
        }
    }
}
