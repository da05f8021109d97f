//! May a flow start? The question, and the answer.

use serde::{Deserialize, Serialize};

use crate::types::{ApiVersion, Name, Revision, RuleId, Selector, Service};

/// Most pairs that an answer shows one by one.
pub const EXAMPLES_MAX: usize = 5;

/// Asks whether a flow may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanQuestion {
    /// The overlay; none for the only one in which both ends mean somebody.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// Who would start it. The address of a member means the member.
    pub from: Selector,
    /// Who would be talked to.
    pub to: Selector,
    /// Protocol and one port; none asks whether anything at all may pass.
    #[serde(default)]
    pub service: Option<Service>,
}

/// Whether a flow may start, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CanAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The verdict: whether each of the pairs that were asked about is allowed.
    pub allowed: bool,
    /// The overlay that was asked about.
    pub overlay: Name,
    /// The revision that was asked.
    pub revision: Revision,
    /// The rule that decided, about every pair; none for default deny, and where pairs differ.
    pub rule: Option<RuleId>,
    /// Why, in one sentence.
    pub why: String,
    /// Whether nodes hold to the verdict: of addresses outside only guards with egress by rules do.
    pub enforced: bool,
    /// How many ordered pairs of ends were asked about.
    pub pairs: u64,
    /// How many of them are allowed.
    pub allowed_pairs: u64,
    /// Where there are several: those that are denied, then those that are allowed, a few of each.
    pub examples: Vec<PairVerdict>,
    /// Rules that almost matched, nearest first, at most three; about the first pair that is denied.
    pub nearest: Vec<NearRule>,
    /// The hops from one to the other; none when the two have no path, and for several pairs.
    pub path: Option<PathNames>,
    /// What would allow all of it, in this order; none when it is allowed, or when too much is in the
    /// way.
    pub allow_with: Vec<String>,
}

/// The verdict on one pair of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairVerdict {
    /// Who would start: a name, or an address outside.
    pub from: String,
    /// Who would be talked to.
    pub to: String,
    /// The verdict.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: Option<RuleId>,
    /// Why, in one sentence.
    pub why: String,
}

/// A path in names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathNames {
    /// The two talk directly.
    Direct,
    /// Through these SaPs in order.
    Via(Vec<Name>),
}

/// A rule that almost matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearRule {
    /// The rule.
    pub rule: RuleId,
    /// The rule in words.
    pub text: String,
    /// What differs, such as `port differs`.
    pub differs: String,
}
