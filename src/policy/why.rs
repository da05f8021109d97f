//! What `why` needs beside the verdict: the path in names, which records are about the question, and
//! the commands that would change the verdict.

use super::can::{AskedPair, no_path_text, path_names};
use super::evaluate::{Pair, decide};
use super::span::{overlap, spans, spans_at};
use super::{BoundSelector, Decision, RuleFacts, World, path_between};
use crate::api::admin::{CanQuestion, PathNames};
use crate::api::table::{Action, PathHops};
use crate::types::{NodeId, RuleId, Service, Timestamp};

/// Most commands that are proposed; with more in the way, somebody has to look at the policy.
const COMMANDS_MAX: usize = 5;

/// The candidates for the way from one to the other, the preferred one first, each with its SaPs.
///
/// # Errors
///
/// Why there is none, in words.
pub fn ways(
    world: &World,
    asked: &AskedPair,
    now: Timestamp,
) -> Result<Vec<(PathNames, Vec<NodeId>)>, String> {
    let AskedPair { overlay, from, to } = *asked;
    let named = |hops: &PathHops| {
        let saps = match hops {
            PathHops::Via(saps) => saps.clone(),
            PathHops::Direct | PathHops::Elsewhere => Vec::new(),
        };
        Some((path_names(world, hops)?, saps))
    };
    let paths = path_between(world, overlay, from, to, now);
    let ways: Vec<_> = paths.iter().filter_map(named).collect();
    if ways.is_empty() {
        let pair = Pair::new(world, overlay, from, to);
        return Err(pair.map_or_else(String::new, |pair| no_path_text(world, overlay, &pair, now)));
    }
    Ok(ways)
}

/// Whether a flow of `seen` to the destination is among what was asked about.
#[must_use]
pub fn is_about(world: &World, asked: &AskedPair, service: &Service, seen: &Service) -> bool {
    let Some(pair) = Pair::new(world, asked.overlay, asked.from, asked.to) else { return false };
    let wanted = spans_at(std::slice::from_ref(service), pair.is_ipv6, &pair.to.1.ports);
    !overlap(&wanted, &spans(std::slice::from_ref(seen), pair.is_ipv6)).is_empty()
}

/// The `ovctl` commands after which the evaluator allows what is asked: none when it does already,
/// and none when more than a few things are in the way.
#[must_use]
pub fn commands_to_allow(
    world: &World,
    question: &CanQuestion,
    asked: &AskedPair,
    now: Timestamp,
) -> Vec<String> {
    let AskedPair { overlay, from, to } = *asked;
    let decide = |world: &World| decide(world, overlay, from, to, question.service.as_ref(), now);
    if decide(world).is_allow() {
        return Vec::new();
    }
    let mut changed = world.clone();
    let mut commands = Vec::new();
    while commands.len() < COMMANDS_MAX {
        match decide(&changed) {
            Decision::Allow(_) | Decision::Open | Decision::Audit(_) => return commands,
            Decision::Deny(id) => {
                changed.rules.remove(&id);
                commands.push(format!("ovctl policy revoke {id}"));
            }
            Decision::Quarantined(id) => {
                let Some(facts) = changed.nodes.get_mut(&id) else { break };
                facts.is_quarantined = false;
                commands.push(format!("ovctl entity release {}", facts.name));
            }
            Decision::Isolated(_) | Decision::NoRule => {
                let last = changed.rules.keys().next_back().map_or(0, |id| id.0);
                changed.rules.insert(RuleId(last.saturating_add(1)), rule(question, asked));
                commands.push(allow_command(world, question, asked));
            }
        }
    }
    if decide(&changed).is_allow() { commands } else { Vec::new() }
}

fn rule(question: &CanQuestion, asked: &AskedPair) -> RuleFacts {
    RuleFacts {
        overlay: asked.overlay,
        action: Action::Allow,
        from: BoundSelector::Node(asked.from, question.from.clone()),
        to: BoundSelector::Node(asked.to, question.to.clone()),
        services: question.service.iter().cloned().collect(),
        both: false,
        path: None,
        not_after: None,
        is_audit: false,
        name: None,
    }
}

fn allow_command(world: &World, question: &CanQuestion, asked: &AskedPair) -> String {
    let CanQuestion { from, to, service, .. } = question;
    let port = service.as_ref().map(|service| format!(" --port {service}")).unwrap_or_default();
    let overlays =
        [asked.from, asked.to].map(|id| world.nodes.get(&id).map(|facts| &facts.addresses));
    let shared = match overlays {
        [Some(from), Some(to)] => from.keys().filter(|id| to.contains_key(id)).count(),
        _ => 0,
    };
    let overlay = world.overlays.get(&asked.overlay).filter(|_| shared > 1);
    let overlay = overlay.map(|facts| format!(" --overlay {}", facts.name)).unwrap_or_default();
    format!("ovctl policy allow {from} {to}{port}{overlay}")
}
