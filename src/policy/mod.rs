//! Intent and inventory in, one table per node out; and the answers to `can`. Pure.
//!
//! The one evaluator ([`evaluate`]) answers for the server and for people; the matcher on the hot
//! path (`forward`) is held against it by a property test. Overlays of either semantics are judged
//! as default-deny: the server makes no `kubernetes` overlays in this version.

mod can;
mod check;
mod compile;
mod compile_entity;
mod compile_sap;
mod draft;
mod evaluate;
mod model;
mod nearest;
mod plan;
#[cfg(test)]
pub(crate) mod random;
mod select;
mod span;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use can::can;
pub use check::{RuleConflict, check_rule};
pub use compile::{KeySource, compile};
pub use evaluate::{Decision, evaluate, path_between, rule_text};
pub use model::{BoundSelector, NodeFacts, OverlayFacts, RuleFacts, World};
pub use nearest::did_you_mean;
pub use select::{
    concerned_destinations, covered_pairs, dangling, is_in_force, members_of, next_expiry,
    rule_sources,
};
