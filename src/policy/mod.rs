//! Intent and inventory in, one table per node out; and the answers to `can`. Pure.
//!
//! The one evaluator ([`evaluate`]) answers for the server and for people; the matcher on the hot
//! path (`forward`) is held against it by a property test.

mod answer;
mod check;
mod compile;
mod evaluate;
mod model;

pub use answer::can;
pub use check::{RuleConflict, check_rule};
pub use compile::{KeySource, compile};
pub use evaluate::{Decision, evaluate, path_between, rule_text};
pub use model::{BoundSelector, NodeFacts, OverlayFacts, RuleFacts, World};
