//! A table as it is sent: its body with what names it around it, compressed, once.

use std::sync::Arc;

use axum::body::Bytes;

use super::compile::not_compiled;
use super::live::{Kept, Table};
use super::store::{self, lives::Lives};
use crate::api::{Problem, ProblemCode, gzip};
use crate::types::{Incarnation, NodeId};

impl Table {
    /// All that is sent of this table, which is `id`'s; made when it was not kept.
    ///
    /// # Errors
    ///
    /// When that is not possible, which is a bug.
    pub(crate) async fn document(
        self,
        incarnation: Incarnation,
        lives: Arc<Lives>,
        id: NodeId,
    ) -> Result<Bytes, Problem> {
        if let Kept::Document(document) = self.kept {
            return Ok(document);
        }
        let work = move || Some(self.packed(&incarnation, &lives, &self.body(id)?));
        let packed = tokio::task::spawn_blocking(work).await.map_err(not_compiled)?;
        packed.ok_or_else(|| {
            Problem::new(ProblemCode::Failed, "a table is not what it was when it was published")
                .fix("restart the server, and please report this bug with its log")
        })
    }

    /// The body, compiled again when it was not kept. The same intent gives the same bytes.
    fn body(&self, id: NodeId) -> Option<Arc<str>> {
        if let Kept::Body(body) = &self.kept {
            return Some(Arc::clone(body));
        }
        self.source.table(id).filter(|table| table.hash == self.hash)?.body
    }

    /// A [`crate::api::table::NodeTable`] around the bytes of its body.
    fn packed(&self, incarnation: &Incarnation, lives: &Lives, body: &str) -> Bytes {
        let text = format!(
            "{{\"apiVersion\":\"ovmesh/v1\",\"incarnation\":{},\"succeeds\":{},\"serial\":{},\"revision\":{},\"body\":{body}}}",
            store::to_json(incarnation),
            store::to_json(&lives.accepted),
            self.serial,
            self.revision,
        );
        gzip::pack(text.as_bytes()).into()
    }
}
