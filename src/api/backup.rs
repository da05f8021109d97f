//! What a backup holds, and what a restore did.

use serde::{Deserialize, Serialize};

use crate::types::{ApiVersion, Revision, Timestamp};

/// A backup, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// When it was made.
    pub made: Timestamp,
    /// The version of the program that made it.
    pub version: String,
    /// The newest revision in it.
    pub revision: Revision,
    /// The newest change in it, such as `rule create r-18`.
    pub newest_change: String,
    /// Entities in it.
    pub entities: u64,
    /// SaPs in it.
    pub saps: u64,
    /// Rules in it.
    pub rules: u64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restore {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// What it restored.
    pub backup: Backup,
    /// The revision that the restored server begins with.
    pub revision: Revision,
    /// Whether authorization keys and link secrets are new.
    pub rekeyed: bool,
    /// Whether nodes take tables of the restored server without further ado.
    pub accepted: bool,
    /// Join tokens of limited use that were good in the backup, and are revoked: somebody may have used
    /// them since.
    pub revoked_tokens: Vec<String>,
    /// Tokens that are good: whoever revoked one of them since must do so again.
    pub good_tokens: Vec<String>,
    /// What is other than in the database that was replaced; none when none was, or it could not be read.
    pub differences: Option<Differences>,
}

/// How a backup differs from the newer database that it replaces. Each is a name for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Differences {
    /// Nodes that joined since, and are not known any more.
    pub unknown_nodes: Vec<String>,
    /// Nodes that were deleted since, and are back.
    pub nodes_back: Vec<String>,
    /// Rules that were made since, and are gone.
    pub rules_gone: Vec<String>,
    /// Rules that were removed since, and are in force again.
    pub rules_back: Vec<String>,
    /// Tokens that were revoked or spent since, and are good again.
    pub tokens_back: Vec<String>,
}

/// What accepting a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acceptance {
    /// Connected nodes that kept tables of before, by name.
    pub kept: Vec<String>,
}
