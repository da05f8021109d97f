//! What changed in the database since it was last taken into memory. Triggers write it down.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use super::corrupt;
use crate::api::Problem;
use crate::types::NodeId;

/// More changes than this, and reading everything at once is faster than reading them one by one.
const CHANGES_MAX: usize = 500;

/// What must be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Everything.
    All,
    /// Nodes; entities whose links changed; destinations whose key rings changed. Policies are not
    /// among them: they are small, and always read.
    These { nodes: BTreeSet<NodeId>, links: BTreeSet<NodeId>, rings: BTreeSet<NodeId> },
}

/// Takes what changed, and forgets it when the transaction commits.
pub(crate) async fn take(conn: &mut SqliteConnection) -> Result<Changes, Problem> {
    let rows: Vec<(String, u32)> =
        sqlx::query_as("DELETE FROM changes RETURNING kind, id").fetch_all(&mut *conn).await?;
    if rows.len() > CHANGES_MAX {
        return Ok(Changes::All);
    }
    let (mut nodes, mut links, mut rings) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (kind, id) in rows {
        match kind.as_str() {
            "node" => nodes.insert(NodeId(id)),
            "link" => links.insert(NodeId(id)),
            "ring" => rings.insert(NodeId(id)),
            "all" => return Ok(Changes::All),
            _ => return Err(corrupt("change")),
        };
    }
    Ok(Changes::These { nodes, links, rings })
}
