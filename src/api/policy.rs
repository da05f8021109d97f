//! What `ovctl` says to the server about policies as a whole: files, groups, services, history.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/policy/export[?overlay=O]` | | [`PolicyExport`] |
//! | `POST /v1/policy/apply` | [`PolicyApply`] | [`Change`] of [`PolicyChange`] |
//! | `POST /v1/policy/diff` | [`PolicyApply`] | [`PolicyChange`] |
//! | `POST /v1/policy/import` | [`PolicyImport`] | [`Change`] of [`ImportReport`] |
//! | `POST /v1/policy/rollback` | [`PolicyRollback`] | [`Change`] of [`PolicyChange`] |
//! | `POST /v1/policy/confirm` | [`OverlayChoice`] | [`Confirmation`] |
//! | `GET /v1/policy/history[?overlay=O][&limit=N]` | | [`List`] of [`PolicyRevision`] |
//! | `POST /v1/policy/matrix`, `…/lint`, `…/test` | [`PolicyQuestion`] | [`MatrixAnswer`], [`LintAnswer`], [`TestAnswer`] |
//! | `POST /v1/policy/test/live` | [`LiveQuestion`] | [`TestAnswer`] |
//! | `GET /v1/groups[?overlay=O]`, `POST /v1/groups` | [`GroupChange`] | [`List`] of [`Group`], [`Change`] of [`Group`] |
//! | `GET /v1/services[?overlay=O]`, `POST /v1/services` | [`ServiceChange`] | [`List`] of [`NamedService`], [`Change`] of [`NamedService`] |
//! | `GET /v1/namespaces`, `POST /v1/namespaces/{name}/labels` | [`super::admin::LabelChange`] | [`List`] of [`Namespace`], [`Change`] of [`Namespace`] |
//!
//! Changes take the query parameters of [`super::admin::ChangeOptions`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::admin::Semantics;
#[expect(unused_imports, reason = "for the table above")]
use super::admin::{Change, List};
use crate::types::{
    ApiVersion, EntityName, HumanDuration, Label, Name, Revision, RuleId, Selector, Timestamp,
};

/// One policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyFile {
    /// What messages call it.
    pub source: String,
    /// YAML or JSON, at most 1 MiB.
    pub text: String,
}

/// Makes files the policy of an overlay, or asks what that would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyApply {
    /// The overlay; none for the one that the files name, or the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// The files; together they are the policy.
    pub files: Vec<PolicyFile>,
    /// Undo it unless it is confirmed within this time.
    #[serde(default)]
    pub confirm_within: Option<HumanDuration>,
}

/// Adds NetworkPolicies to an overlay's policy, in the place of those of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyImport {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// The files.
    pub files: Vec<PolicyFile>,
}

/// Makes the policy of an earlier revision the policy of now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRollback {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// The revision whose policy is wanted.
    pub revision: Revision,
}

/// Says which overlay is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverlayChoice {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
}

/// What a change of policy does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChange {
    /// The overlay.
    pub overlay: Name,
    /// Whether anything is not as it was; without, no revision is made.
    pub changed: bool,
    /// Rules, NetworkPolicies, groups, services that are new, each a line.
    pub added: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
    /// Which pairs may open more or less than before.
    pub pairs: Vec<PairDifference>,
    /// Whether `pairs` was worked out: an overlay with very many pairs is not compared.
    pub compared: bool,
    /// How many tests hold.
    pub tests: u64,
    /// Entities that rules name and that are gone.
    pub dangling: Vec<EntityName>,
    /// When it is undone unless confirmed.
    pub confirm_by: Option<Timestamp>,
}

/// What a change of policy does to one ordered pair of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairDifference {
    /// Who starts.
    pub from: String,
    /// Who is talked to.
    pub to: String,
    /// What may be opened then and not before.
    pub gained: Vec<String>,
    /// What might be opened before and not then.
    pub lost: Vec<String>,
}

/// A whole policy as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExport {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlay.
    pub overlay: Name,
    /// The revision that was looked at.
    pub revision: Revision,
    /// YAML.
    pub text: String,
}

/// A change that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlay.
    pub overlay: Name,
    /// The revision that stays.
    pub revision: Revision,
}

/// A change that waits for its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unconfirmed {
    /// The overlay.
    pub overlay: Name,
    /// The revision that it made.
    pub revision: Revision,
    /// When it is undone.
    pub deadline: Timestamp,
    /// Who made it.
    pub actor: String,
}

/// One line of a policy's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRevision {
    /// The revision.
    pub revision: Revision,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// How many rules and NetworkPolicies are new or other than before.
    pub added: u64,
    /// How many are gone or other than after.
    pub removed: u64,
}

/// Asks about the policy in force, or about files in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyQuestion {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// Policy files to ask about in the place of the policy in force; empty for that.
    #[serde(default)]
    pub files: Vec<PolicyFile>,
    /// For tests: files with further ones.
    #[serde(default)]
    pub tests: Vec<PolicyFile>,
    /// For lint: how many days a rule may decide nothing; 0 asks of no rule, none is
    /// [`UNUSED_DAYS`].
    #[serde(default)]
    pub unused_days: Option<u32>,
}

/// Tries tests on the real path: those of the policy in force, and further ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LiveQuestion {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// Files with further tests.
    #[serde(default)]
    pub tests: Vec<PolicyFile>,
}

/// How many days a rule may decide nothing before lint says so.
pub const UNUSED_DAYS: u32 = 30;

/// All pairs that may open something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatrixAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// What unspoken traffic means.
    pub semantics: Semantics,
    /// Names of all members.
    pub members: Vec<String>,
    /// The pairs.
    pub pairs: Vec<MatrixEntry>,
}

/// One ordered pair that may open something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatrixEntry {
    /// Who starts.
    pub from: String,
    /// Who is talked to.
    pub to: String,
    /// What may be opened, as rules spell it.
    pub services: Vec<String>,
}

/// What is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LintAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// By the order of the rules.
    pub findings: Vec<LintFinding>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LintFinding {
    /// What is wrong, in one word.
    pub kind: String,
    /// The rule or policy.
    pub rule: String,
    /// Why, in a sentence.
    pub why: String,
}

/// What became of tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TestAnswer {
    /// `{apiVersion, results, passed, failed}`, as `ovctl policy test -o json` prints it.
    pub examination: serde_json::Value,
    /// What to say of each test that failed.
    pub failures: Vec<TestFailure>,
    /// What to say of each that could not be tried; live tests alone have such.
    #[serde(default)]
    pub skipped: Vec<TestFailure>,
}

/// A test that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TestFailure {
    /// Where it stands, what it asks, and what it wants.
    pub what: String,
    /// Why the policy says something else.
    pub why: String,
}

/// Makes, changes or deletes a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupChange {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// The group.
    pub name: Name,
    /// What to do with it.
    pub verb: GroupVerb,
    /// Who to add or to remove.
    #[serde(default)]
    pub selectors: Vec<Selector>,
}

/// What is done with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupVerb {
    /// Make it, with its first members.
    Create,
    /// Add members.
    Add,
    /// Remove members.
    Remove,
    /// Delete it.
    Delete,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its overlay.
    pub overlay: Name,
    /// Its name.
    pub name: Name,
    /// What it holds.
    pub selectors: Vec<Selector>,
    /// The members that this means at the moment.
    pub members: Vec<EntityName>,
    /// The rules that speak of it.
    pub rules: Vec<RuleId>,
}

/// Makes, changes or deletes a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceChange {
    /// The overlay; none for the only one.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// The service.
    pub name: Name,
    /// The labels that it stands for; none deletes it.
    #[serde(default)]
    pub labels: BTreeSet<Label>,
}

/// A service: a name for labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedService {
    /// Its overlay.
    pub overlay: Name,
    /// Its name.
    pub name: Name,
    /// The labels that it stands for.
    pub labels: BTreeSet<Label>,
    /// The members that carry them at the moment.
    pub members: Vec<EntityName>,
    /// The rules that speak of it.
    pub rules: Vec<RuleId>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: BTreeSet<Label>,
    /// How many entities are in it.
    pub entities: u64,
}

/// What an import did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportReport {
    /// What changes.
    pub change: PolicyChange,
    /// What unspoken traffic means in the overlay.
    pub semantics: Semantics,
    /// What no NetworkPolicy selects, and Kubernetes would therefore leave open; empty in overlays of
    /// `kubernetes` semantics, where it is open.
    pub left_open: Vec<String>,
    /// Each policy of the files, by name.
    pub policies: Vec<ImportedPolicy>,
}

/// What one imported NetworkPolicy means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportedPolicy {
    /// `namespace/name`.
    pub name: String,
    /// `new`, `replaced` or `unchanged`.
    pub state: String,
    /// The entities that it selects.
    pub selects: Vec<EntityName>,
    /// What one should know: what is not enforced, what Kubernetes would have left open.
    pub notes: Vec<String>,
}

/// A NetworkPolicy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyView {
    /// Its id.
    pub id: RuleId,
    /// Its overlay.
    pub overlay: Name,
    /// `namespace/name`.
    pub name: String,
    /// The directions that it isolates: `ingress`, `egress`.
    pub directions: Vec<String>,
    /// How many entities it selects.
    pub selects: u64,
}
