//! What `why` needs beside the verdict: the path in names, which pair to look at, and the commands that
//! would change the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::can::{no_path_text, path_names};
use super::evaluate::Pair;
use super::judge::{End, Overview};
use super::question::{decision, overlay_name};
use super::{Asked, Decision, RuleFacts, World, path_between};
use crate::api::admin::{CanQuestion, PathNames};
use crate::api::table::{Action, PathHops};
use crate::types::{NodeId, OverlayId, RuleId, Selector, Timestamp};

/// Most things that are proposed; with more in the way, somebody has to look at the policy.
const STEPS_MAX: usize = 5;

/// Two different members of one overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedPair {
    /// The overlay; both are members of it.
    pub overlay: OverlayId,
    /// Who would start the flow.
    pub from: NodeId,
    /// Who would be talked to: another one.
    pub to: NodeId,
}

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

/// The first pair that is denied, else the first.
#[must_use]
pub fn pair_to_explain(
    world: &World,
    question: &CanQuestion,
    asked: &Asked,
    now: Timestamp,
) -> Option<(End, End)> {
    let overview = Overview::new(world, asked.overlay, now);
    let is_denied =
        |pair: &&(End, End)| !decision(&overview, pair, question.service.as_ref()).is_allow();
    asked.pairs.iter().find(is_denied).or(asked.pairs.first()).cloned()
}

/// What to do so that the evaluator allows all that is asked, in this order: `ovctl` commands, and
/// changes of files for rules that came by files. None when all is allowed already, and none when more
/// than a few things are in the way.
pub(super) fn allow_with(
    world: &World,
    question: &CanQuestion,
    asked: &Asked,
    places: &BTreeMap<RuleId, String>,
    now: Timestamp,
) -> Vec<String> {
    let refused = |world: &World| {
        let overview = Overview::new(world, asked.overlay, now);
        let decided =
            asked.pairs.iter().map(|pair| decision(&overview, pair, question.service.as_ref()));
        decided.into_iter().find(|decision| !decision.is_allow())
    };
    let mut changed = world.clone();
    let mut steps = Vec::new();
    let mut is_rule_there = false;
    while let Some(decision) = refused(&changed) {
        if steps.len() == STEPS_MAX {
            return Vec::new();
        }
        match decision {
            Decision::Deny(id) => {
                changed.rules.remove(&id);
                steps.push(removal(id, places.get(&id)));
            }
            Decision::Quarantined(id) => {
                let Some(facts) = changed.nodes.get_mut(&id) else { return Vec::new() };
                let facts = Arc::make_mut(facts);
                facts.is_quarantined = false;
                steps.push(format!("ovctl entity release {}", facts.name));
            }
            Decision::Isolated(_) | Decision::NoRule if !is_rule_there => {
                let last = changed.rules.keys().next_back().map_or(0, |id| id.0);
                let rule = Arc::new(rule(question, asked));
                changed.rules.insert(RuleId(last.saturating_add(1)), rule);
                steps.push(allow_command(world, question, asked));
                is_rule_there = true;
            }
            // The rule does not cover it: a port that only some destinations name, for one.
            Decision::Isolated(_) | Decision::NoRule => return Vec::new(),
            Decision::Allow(_) | Decision::Open | Decision::Audit(_) => break,
        }
    }
    steps
}

/// How a rule is removed. What came by a file would come back with it.
fn removal(id: RuleId, place: Option<&String>) -> String {
    let Some(place) = place else { return format!("ovctl policy revoke {id}") };
    let file = place.rsplit_once(':').map_or(place.as_str(), |(file, _)| file);
    format!("take rule {id} out of the file ({place}), then: ovctl policy apply -f {file}")
}

fn rule(question: &CanQuestion, asked: &Asked) -> RuleFacts {
    RuleFacts {
        overlay: asked.overlay,
        action: Action::Allow,
        from: asked.from.clone(),
        to: asked.to.clone(),
        services: question.service.iter().cloned().collect(),
        both: false,
        path: None,
        not_after: None,
        is_audit: false,
        name: None,
    }
}

fn allow_command(world: &World, question: &CanQuestion, asked: &Asked) -> String {
    let word = |end: String| if end.contains('!') { format!("'{end}'") } else { end };
    let (from, to) = (word(asked.from.to_string()), word(asked.to.to_string()));
    let port =
        question.service.as_ref().map(|service| format!(" --port {service}")).unwrap_or_default();
    let overlay = match asked.is_overlay_needed {
        true => format!(" --overlay {}", overlay_name(world, asked.overlay)),
        false => String::new(),
    };
    format!("ovctl policy allow {from} {to}{port}{overlay}")
}

/// An end as a question names it.
#[must_use]
pub fn selector_of(world: &World, end: &End) -> Option<Selector> {
    match end {
        End::Member(id) => world.nodes.get(id).map(|facts| Selector::Name(facts.name.clone())),
        End::Outside(address) => address.to_string().parse().ok(),
    }
}
