//! The evaluator: may a flow start, and which rule says so.

use super::{RuleFacts, World};
use crate::api::table::PathHops;
use crate::types::{NodeId, OverlayId, RuleId, Service, Timestamp};

/// The verdict on a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This rule allows it: the lowest id that matches.
    Allow(RuleId),
    /// This deny rule refuses it: the lowest id that matches.
    Deny(RuleId),
    /// No rule speaks of it.
    NoRule,
}

/// May `from` start a flow of `service` (a protocol, with exactly one port where it has ports) to `to`?
#[must_use]
pub fn evaluate(
    world: &World,
    overlay: OverlayId,
    from: NodeId,
    to: NodeId,
    service: &Service,
    now: Timestamp,
) -> Decision {
    let _ = (world, overlay, from, to, service, now);
    todo!()
}

/// The candidates for the hops from `from` to `to`, the preferred one first: several single SaPs for
/// a pair without a path of its own, else one chain or direct. Empty when no SaP serves the overlay.
#[must_use]
pub fn path_between(
    world: &World,
    overlay: OverlayId,
    from: NodeId,
    to: NodeId,
    now: Timestamp,
) -> Vec<PathHops> {
    let _ = (world, overlay, from, to, now);
    todo!()
}

/// A rule in words: `allow web -> db tcp/5432`.
#[must_use]
pub fn rule_text(rule: &RuleFacts) -> String {
    let _ = rule;
    todo!()
}
