//! The arguments of the `ovctl policy` verbs that files can be asked with, and a server without an
//! inventory.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::SemanticsArg;
use crate::types::Name;

/// The verbs of `ovctl policy` that need no server when they are given an inventory.
#[derive(Subcommand, Clone, Debug)]
pub enum OfflineCommand {
    /// Hold policies against tests (exit 0, or 8 when one fails)
    #[command(after_help = "\
Tests come from --tests, from `tests:` in policy files, and from the inventory. Without --inventory the
server is asked: about its policy, or about files in its place. With --live packets tell, sent through
the real path by the entities themselves; no program gets them.

Examples:
  ovctl policy test --inventory town.yaml -f policy.yaml --tests tests.yaml
  ovctl policy test --inventory town.yaml -f netpol/ --semantics kubernetes -o json
  ovctl policy test --live --tests tests.yaml")]
    Test(PolicyTestArgs),
    /// Show who may open what to whom
    #[command(after_help = "\
Examples:
  ovctl policy matrix                              the policy in force
  ovctl policy matrix --inventory town.yaml -f policy.yaml --as dot | dot -Tsvg")]
    Matrix(MatrixArgs),
    /// Find rules that do nothing or too much (exit 0, or 8 when one is found)
    #[command(after_help = "\
expired        its time is over
dangling       means nobody at one end
shadowed       deny rules refuse all that it allows
redundant      other rules say all that it says
too-broad      opens every port between everybody
unused         decided no packet for --unused days (a server knows)
no-live-sap    its path goes by a SaP that is gone or not connected (a server knows)

Examples:
  ovctl policy lint --unused 90
  ovctl policy lint --inventory town.yaml -f policy.yaml")]
    Lint(LintArgs),
    /// Show what a change of policy opens and shuts (exit 0, or 8 when it does)
    #[command(after_help = "\
Examples:
  ovctl policy diff -f changed.yaml                against the policy in force
  ovctl policy diff --inventory town.yaml --old running.yaml -f changed.yaml")]
    Diff(DiffArgs),
}

impl OfflineCommand {
    /// Whether files alone are judged, and no server is asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        let scene = match self {
            Self::Test(args) => &args.scene,
            Self::Matrix(args) => &args.scene,
            Self::Lint(args) => &args.scene,
            Self::Diff(args) => &args.scene,
        };
        scene.inventory.is_some()
    }
}

/// Files to judge.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct SceneArgs {
    /// Who is there: semantics, namespaces, entities (YAML or JSON)
    #[arg(long, value_name = "FILE")]
    pub inventory: Option<PathBuf>,
    /// A policy file or a folder of them: ovmesh policies, NetworkPolicies; - is stdin; repeat
    #[arg(short, long = "file", value_name = "POLICY")]
    pub files: Vec<PathBuf>,
    /// What unspoken traffic means [default: what the inventory says, else default-deny]
    #[arg(long, value_enum, requires = "inventory")]
    pub semantics: Option<SemanticsArg>,
    /// Without --inventory: the overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// Tests to run.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PolicyTestArgs {
    /// What is judged.
    #[command(flatten)]
    pub scene: SceneArgs,
    /// What must hold (YAML or JSON); repeat
    #[arg(long, value_name = "FILE")]
    pub tests: Vec<PathBuf>,
    /// Send packets through the real path, under the policy in force; for admins
    #[arg(long, conflicts_with_all = ["inventory", "files"])]
    pub live: bool,
}

/// How to show pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MatrixForm {
    /// Aligned columns
    #[default]
    Table,
    /// from,to,services
    Csv,
    /// For Graphviz
    Dot,
    /// As -o json
    Json,
}

/// Pairs to show.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct MatrixArgs {
    /// What is judged.
    #[command(flatten)]
    pub scene: SceneArgs,
    /// The form
    #[arg(long = "as", value_name = "FORM", value_enum, default_value_t)]
    pub form: MatrixForm,
}

/// What to look through.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LintArgs {
    /// What is judged.
    #[command(flatten)]
    pub scene: SceneArgs,
    /// How many days a rule may decide nothing; 0 asks of no rule [default: 30]
    #[arg(long, value_name = "DAYS", conflicts_with = "inventory")]
    pub unused: Option<u32>,
}

/// What to compare.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DiffArgs {
    /// The policy after the change.
    #[command(flatten)]
    pub scene: SceneArgs,
    /// The policy before the change: a file or a folder; repeat [default: no policy]
    #[arg(long, value_name = "POLICY")]
    pub old: Vec<PathBuf>,
}
