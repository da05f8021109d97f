//! A table turned into a snapshot.

use crate::api::table::NodeTable;
use crate::forward::Snapshot;

/// Builds the snapshot that `table` describes.
///
/// # Errors
///
/// What is inconsistent in the table, in words. Such a table is refused whole.
pub fn build(table: &NodeTable) -> Result<Snapshot, String> {
    let _ = table;
    todo!()
}
