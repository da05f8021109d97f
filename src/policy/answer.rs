//! `can`: the evaluator's verdict, with the reason and the rules that almost matched.

use super::World;
use crate::api::Problem;
use crate::api::admin::{CanAnswer, CanQuestion};
use crate::types::Timestamp;

/// Answers `question`.
///
/// # Errors
///
/// `NotFound` with "did you mean" for unknown names and overlays; `Conflict` when the two share
/// several overlays and none was named.
pub fn can(world: &World, question: &CanQuestion, now: Timestamp) -> Result<CanAnswer, Problem> {
    let _ = (world, question, now);
    todo!()
}
