//! Intent and inventory in, one table per node out; and the answers to `can`. Pure.
//!
//! The one evaluator ([`evaluate`]) answers for the server and for people; the matcher on the hot
//! path (`forward`) is held against it by a property test. A [`Scene`] is a world of one overlay with
//! names for its rules: files make one, and so does a server's world.

mod bodies;
mod can;
mod check;
mod compile;
mod compile_entity;
mod compile_sap;
mod document;
mod draft;
mod evaluate;
mod examine;
mod expression;
mod fork;
mod form;
mod inventory;
mod judge;
pub mod kubernetes;
mod leg;
mod lint;
mod matrix;
mod model;
mod nearest;
mod outside;
mod placement;
mod plan;
mod prefer;
mod question;
#[cfg(test)]
pub(crate) mod random;
mod reach;
mod roster;
mod scene;
mod select;
mod set;
mod span;
mod suggest;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod touched;
mod tree;
mod trial;
mod verdict;
mod why;
mod write;

pub use bodies::{Bodies, Body, Task};
pub use can::{can, is_about};
pub use check::{RuleConflict, check_pair_path, check_paths, check_rule};
pub use compile::{Blueprint, KeySource, compile};
pub use document::{
    Document, DocumentPath, DocumentRule, PolicyDocument, read_policies, refuse_nothing,
};
pub use evaluate::{Decision, PathSource, Paths, evaluate, path_between, rule_text};
pub use examine::{Examination, Test, TestPort, TestResult, examine, read_test, read_test_file};
pub use expression::{LabelSelector, Requirement};
pub use fork::{ForkJoin, Sequential};
pub use form::{check_form, check_path_length};
pub use inventory::{Inventory, InventoryEntity, read_inventory};
pub use judge::End;
pub use kubernetes::NetworkPolicy;
pub use leg::Leg;
pub use lint::{Finding, FindingKind, Observed, lint};
pub use matrix::{Matrix, MatrixPair, PairChange, difference};
pub use model::{
    BoundSelector, Drain, Links, Names, NetworkPolicyFacts, NodeFacts, OverlayFacts, RuleFacts,
    World,
};
pub use nearest::did_you_mean;
pub use outside::outside_sources;
pub use placement::plan_saps;
pub use prefer::zone;
pub use question::{Asked, asked, overlays_of, strangers};
pub use reach::Reach;
pub use scene::{RuleOrigin, Scene, twice};
pub use select::{
    carries, concerned_destinations, covered_pairs, dangling, is_in_force, members_of, next_expiry,
    rule_sources,
};
pub use span::NamedPorts;
pub use suggest::{SeenFlow, SuggestedRule, Suggestion, suggest, suggestion_text};
pub use touched::RingChange;
pub use tree::DOCUMENT_BYTES_MAX;
pub use trial::{Trial, trial};
pub use verdict::{Verdict, judge};
pub use why::{AskedPair, pair_to_explain, selector_of, ways};
pub use write::write_policy;
