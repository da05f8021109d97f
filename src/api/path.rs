//! What `ovctl` says to the server about paths.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/paths?from=A&to=B[&overlay=O]` | | [`PairPath`] |
//! | `POST /v1/paths` | [`PathSet`] | [`super::admin::Change`] of [`PairPath`] |
//! | `GET /v1/paths/latency[?overlay=O]` | | [`super::admin::List`] of [`Latency`] |
//! | `GET /v1/saps/plan?count=N[&overlay=O]` | | [`SapPlan`] |
//! | `POST /v1/saps/{name}/drain` | [`super::admin::Switch`] | [`super::admin::Change`] of [`super::admin::Sap`] |

use serde::{Deserialize, Serialize};

use super::admin::RulePath;
use crate::types::{ApiVersion, EntityName, Name};

/// Sets the path of one pair, or gives it back to rules and measurements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathSet {
    /// The overlay; none for the only one that both are in.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// One end.
    pub from: EntityName,
    /// The other end.
    pub to: EntityName,
    /// The path, walked from `from`; none to take back what was set.
    #[serde(default)]
    pub path: Option<RulePath>,
}

/// The path of one pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairPath {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlay.
    pub overlay: Name,
    /// One end.
    pub from: EntityName,
    /// The other end.
    pub to: EntityName,
    /// Who chose it: `auto`, `path set`, or the rule, such as `r-3`.
    pub chosen_by: String,
    /// The ways that the pair may take, the preferred one first; empty when there is none.
    pub candidates: Vec<PathCandidate>,
    /// Index of the one in use, as far as both ends reported; none when nothing answers.
    pub in_use: Option<u32>,
    /// Why that one, in words.
    pub why: String,
}

/// One way between two entities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathCandidate {
    /// The way, walked from `from`.
    pub path: RulePath,
    /// Whether its first and last SaP answer the ends, as far as these reported.
    pub answers: bool,
    /// Round trip of `from` to the first SaP in microseconds, as it reported last.
    pub from_micros: Option<u64>,
    /// Round trip of `to` to the last SaP in microseconds, as it reported last.
    pub to_micros: Option<u64>,
    /// What speaks for it: `same host`, `same zone`, `drained`; often empty.
    pub notes: Vec<String>,
}

/// One measured round trip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Who measured.
    pub entity: EntityName,
    /// The SaP.
    pub sap: Name,
    /// The last report in microseconds, smoothed; none while the SaP does not answer.
    pub micros: Option<u64>,
    /// What paths are chosen by, in microseconds: a step that jitter does not leave.
    pub held_micros: Option<u64>,
}

/// Where SaPs should stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SapPlan {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlay.
    pub overlay: Name,
    /// The sites, in the order in which they were found to save most.
    pub sites: Vec<PlannedSite>,
    /// How many pairs may talk and were measured.
    pub pairs: u64,
    /// The mean round trip of these pairs over the SaPs that there are, in microseconds.
    pub now_micros: u64,
    /// The same over the planned ones.
    pub then_micros: u64,
    /// Entities left out because they measured nothing.
    pub unmeasured: u64,
}

/// One place for a SaP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedSite {
    /// The SaP that stands there, where one does.
    pub sap: Option<Name>,
    /// Else the entity beside which to put one: round trips from there are estimated.
    pub beside: Option<EntityName>,
    /// How many pairs would go over it.
    pub pairs: u64,
}
