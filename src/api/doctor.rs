//! What `ovd doctor` finds.

use serde::{Deserialize, Serialize};

use crate::types::ApiVersion;

/// Everything that was looked at, as `ovd doctor -o json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// In the order of a packet's needs.
    pub findings: Vec<Finding>,
}

/// How one thing on a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The thing: `clock`, `sap s1`, `overlay prod`.
    pub subject: String,
    /// How it is, and what that means.
    pub what: String,
    /// What to do; empty when there is nothing to do.
    pub fix: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Warning,
    /// It keeps packets from where they should go, or would leave something open.
    Problem,
}

impl Level {
    /// The word for it in tables and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}
