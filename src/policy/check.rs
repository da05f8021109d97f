//! What makes a rule impossible beside the ones that are there.

use super::{RuleFacts, World};
use crate::types::{RuleId, Timestamp};

/// Why a rule cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleConflict {
    /// It asks for another path than a rule in force for a pair that both cover.
    #[error("{other} already gives {pair} the path {path}")]
    Path {
        /// The rule in force.
        other: RuleId,
        /// One pair that both cover, in names.
        pair: String,
        /// The path in force, in words.
        path: String,
    },
}

/// Checks `rule` against the rules in force.
///
/// # Errors
///
/// The first conflict found.
pub fn check_rule(world: &World, rule: &RuleFacts, now: Timestamp) -> Result<(), RuleConflict> {
    let _ = (world, rule, now);
    todo!()
}
