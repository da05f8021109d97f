//! Why a flow passes or not, stage by stage.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/policy/why` | [`super::admin::CanQuestion`] | [`WhyAnswer`] |

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::admin::NearRule;
use super::flows::FlowRecord;
use crate::types::{ApiVersion, EntityName, Name, Revision, RuleId, Service, Timestamp};

/// How far back the records of an answer go, in seconds.
pub const SEEN_SECONDS: u64 = 300;

/// Most records in an answer.
pub const SEEN_MAX: usize = 20;

/// Whether a flow may start, what stands on its way, and what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// What policy says, the same as `can`. Whether packets arrive is up to the other stages, too.
    pub allowed: bool,
    /// The overlay that was asked about; none where the two share none.
    pub overlay: Option<Name>,
    /// The revision that was asked.
    pub revision: Revision,
    /// How many ordered pairs of ends were asked about.
    pub pairs: u64,
    /// How many of them are allowed.
    pub allowed_pairs: u64,
    /// Who would start the flow: of several pairs, that of the first that is denied.
    pub from: WhyEnd,
    /// Who would be talked to.
    pub to: WhyEnd,
    /// What was asked about; none for anything at all.
    pub service: Option<Service>,
    /// The rule or NetworkPolicy that decided; none for default deny.
    pub rule: Option<RuleId>,
    /// Every stage, in the order of a packet's needs.
    pub stages: Vec<Stage>,
    /// Rules that almost matched, nearest first, at most three.
    pub nearest: Vec<NearRule>,
    /// Since when `seen` looks.
    pub since: Timestamp,
    /// What nodes reported of such flows, those with the most packets first, at most [`SEEN_MAX`].
    pub seen: Vec<FlowRecord>,
    /// What would allow it, in this order, as `can` tells it.
    pub allow_with: Vec<String>,
}

/// One end of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyEnd {
    /// Its name; none of an address outside.
    pub name: Option<EntityName>,
    /// Its address in the overlay; none where there is no shared overlay.
    pub address: Option<IpAddr>,
}

/// What a flow needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageName {
    /// Both ends in one overlay.
    Membership,
    /// A way from one to the other.
    Path,
    /// A key that the source may stamp.
    Key,
    /// A rule that allows it.
    Rules,
    /// A destination that is there, with its newest table.
    Endpoint,
}

impl StageName {
    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Membership => "membership",
            Self::Path => "path",
            Self::Key => "key",
            Self::Rules => "rules",
            Self::Endpoint => "endpoint",
        }
    }
}

/// How a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    /// Nothing stops the flow here.
    Ok,
    /// Policy refuses it here.
    Denied,
    /// Something is missing or away.
    Broken,
    /// Look at it: it passes for audit alone, or the server does not know how it stands.
    Unsure,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Which.
    pub stage: StageName,
    /// How it stands.
    pub state: StageState,
    /// What is so, for people.
    pub text: String,
}
