//! What changed in the database since it was last taken into memory. Triggers write it down.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use super::corrupt;
use crate::api::Problem;
use crate::types::{NodeId, OverlayId, RuleId};

/// More changes than this, and reading everything at once is faster than reading them one by one.
const CHANGES_MAX: usize = 500;

/// What must be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Everything.
    All,
    /// These alone.
    These(Changed),
}

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Entities whose links changed.
    pub(crate) links: BTreeSet<NodeId>,
    /// Destinations whose key rings changed.
    pub(crate) rings: BTreeSet<NodeId>,
    pub(crate) rules: BTreeSet<RuleId>,
    /// Overlays of which something else in the policy changed.
    pub(crate) policies: BTreeSet<OverlayId>,
}

/// Takes what changed, and forgets it when the transaction commits.
pub(crate) async fn take(conn: &mut SqliteConnection) -> Result<Changes, Problem> {
    let rows =
        sqlx::query_as("DELETE FROM changes RETURNING kind, id").fetch_all(&mut *conn).await?;
    read(rows)
}

/// What changed, which stays to be taken.
pub(crate) async fn pending(conn: &mut SqliteConnection) -> Result<Changes, Problem> {
    read(sqlx::query_as("SELECT kind, id FROM changes").fetch_all(&mut *conn).await?)
}

fn read(rows: Vec<(String, u32)>) -> Result<Changes, Problem> {
    if rows.len() > CHANGES_MAX {
        return Ok(Changes::All);
    }
    let mut changed = Changed::default();
    for (kind, id) in rows {
        match kind.as_str() {
            "node" => changed.nodes.insert(NodeId(id)),
            "link" => changed.links.insert(NodeId(id)),
            "ring" => changed.rings.insert(NodeId(id)),
            "rule" => changed.rules.insert(RuleId(id)),
            "policy" => changed.policies.insert(OverlayId(id)),
            "all" => return Ok(Changes::All),
            _ => return Err(corrupt("change")),
        };
    }
    Ok(Changes::These(changed))
}
