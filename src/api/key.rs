//! What `ovctl` is told of authorization keys, and how it asks for a rotation. Keys themselves are
//! never shown.

use serde::{Deserialize, Serialize};

use crate::types::{EntityName, KeyVersion, Name, Timestamp};

/// The keys towards one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// The overlay.
    pub overlay: Name,
    /// The destination.
    pub to: EntityName,
    /// The source, when this line is about a single pair.
    pub from: Option<EntityName>,
    /// What it was rotated to last; during a rotation, what it is rotating from.
    pub version: KeyVersion,
    /// What it is rotating to.
    pub next: Option<KeyVersion>,
    /// `steady`, `adding`, `switching`, `retiring`.
    pub step: String,
    /// When it was last rotated.
    pub rotated: Timestamp,
    /// Who the step waits for.
    pub waiting_for: Vec<String>,
}

/// Starts a rotation. Without any selector: `all` must be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRotate {
    /// Everything.
    #[serde(default)]
    pub all: bool,
    /// One overlay; with `to`, where to look for the entity.
    #[serde(default)]
    pub overlay: Option<Name>,
    /// One destination; with `from`, one pair.
    #[serde(default)]
    pub to: Option<EntityName>,
    /// The source of one pair.
    #[serde(default)]
    pub from: Option<EntityName>,
    /// Cuts off who has not acknowledged after 60 s.
    #[serde(default)]
    pub now: bool,
}
