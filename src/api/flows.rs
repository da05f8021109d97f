//! What happened: flow records, as nodes report them and as operators look at them.
//!
//! | request | body or query | answer |
//! |---|---|---|
//! | `POST /v1/node/flows` | [`FlowReport`] | 204 |
//! | `GET /v1/flows` | [`FlowQuery`] | [`FlowList`] |
//! | `POST /v1/policy/suggest` | [`SuggestQuestion`] | [`SuggestAnswer`] |
//!
//! A SaP and both ends see the same packets. A record that is shown counts what passed once, as the
//! destination saw it, else the SaP that saw most, else the source; what was denied was dropped in
//! one place, so there all that saw some are added up.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::{
    ApiVersion, EntityName, HumanDuration, Name, NodeId, OverlayId, RuleId, Timestamp,
};

/// Most records in one report; the rest comes with the next one.
pub const REPORT_RECORDS_MAX: usize = 1_000;

/// Most records in one answer.
pub const ANSWER_RECORDS_MAX: u32 = 10_000;

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowVerdict {
    /// They passed by a rule, or as part of a flow that did.
    Allowed,
    /// They passed because nothing selects them (`kubernetes` semantics).
    AllowedOpen,
    /// They passed, and would have been denied without the audit.
    Audit,
    /// They were dropped.
    Denied,
}

impl FlowVerdict {
    /// As people read it, and as it is stored.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::AllowedOpen => "allowed-open",
            Self::Audit => "audit",
            Self::Denied => "denied",
        }
    }

    /// From its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Allowed, Self::AllowedOpen, Self::Audit, Self::Denied];
        all.into_iter().find(|verdict| verdict.name() == name)
    }
}

/// What a node saw since its last report. Repeating a report is harmless: its number is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowReport {
    /// When the process started, in milliseconds since 1970: numbers begin anew with it.
    pub run: u64,
    /// Counts the reports of a run, from 1.
    pub number: u64,
    /// At most [`REPORT_RECORDS_MAX`].
    pub records: Vec<FlowRow>,
    /// What found no room in the node's table, by verdict.
    pub overflow: Vec<OverflowRow>,
}

/// One record: what was added since the last report. Ends and port are those of the direction in
/// which the flow started; replies count for their flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowRow {
    /// The overlay.
    pub overlay: OverlayId,
    /// The rule that decided.
    pub rule: Option<RuleId>,
    /// Who started.
    pub from: NodeId,
    /// Who was asked; none where the node has no row for the address.
    pub to: Option<NodeId>,
    /// The address, where `to` is none.
    pub address: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, where there is one.
    pub port: Option<u16>,
    /// What became of it.
    pub verdict: FlowVerdict,
    /// Why it was dropped: the name of a [`crate::types::DropReason`].
    pub reason: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}

/// What found no room in a node's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverflowRow {
    /// What became of it.
    pub verdict: FlowVerdict,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Which records to show: query parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowQuery {
    /// Only this overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Name>,
    /// Only flows that this entity started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EntityName>,
    /// Only flows towards this entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<EntityName>,
    /// Only what was denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<bool>,
    /// Only what passed under audit and would have been denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
    /// Only what was seen in this time; counts are those of the periods (5 min, after an hour 1 h)
    /// that overlap it. None is everything that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<HumanDuration>,
    /// At most this many, those with the most packets first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What is known of flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The records, those with the most packets first.
    pub items: Vec<FlowRecord>,
    /// How many further ones there are.
    pub left_off: u64,
}

/// One record as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// The overlay.
    pub overlay: Name,
    /// Who started it, by name; by id when it is gone.
    pub from: String,
    /// Who was asked; the address where nobody has it.
    pub to: String,
    /// Such as `tcp/5432`, or `icmp`.
    pub service: String,
    /// What became of it.
    pub verdict: FlowVerdict,
    /// Why it was dropped.
    pub reason: Option<String>,
    /// The rule that decided.
    pub rule: Option<RuleId>,
    /// Packets, both directions of the flow.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
    /// The nodes whose count this is.
    pub seen_by: Vec<String>,
}

/// How often a rule decided, for as long as it lives: packets of the flows that it let start, both
/// directions, or packets that it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleHits {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
    /// The first hit.
    pub first: Timestamp,
    /// The last hit.
    pub last: Timestamp,
}

/// Asks for rules that allow exactly what was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuggestQuestion {
    /// The overlay; none for the only one in which something was recorded.
    pub overlay: Option<Name>,
    /// What was recorded in this time; none for everything that is kept.
    pub since: Option<HumanDuration>,
    /// What was denied, too: else only what passed under audit.
    #[serde(default)]
    pub denied: bool,
}

/// Rules that allow exactly what was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SuggestAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlay.
    pub overlay: Name,
    /// How many rules.
    pub rules: u64,
    /// Records that no rule could be made of.
    pub left_out: u64,
    /// The policy file.
    pub policy: String,
}
