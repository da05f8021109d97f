//! What is probably not meant: rules that do nothing, and rules that do too much.
//!
//! Everything is found with the evaluator's own functions, so a finding is never about another
//! policy than the one that would be enforced.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::judge::{End, Overview};
use super::kubernetes::{Direction, NetworkPolicy};
use super::scene::Scene;
use super::select::is_in_force;
use super::span::{Span, without};
use super::{BoundSelector, RuleFacts};
use crate::api::table::Action;
use crate::types::RuleId;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong, in one word.
    pub kind: FindingKind,
    /// The rule or policy, as results call it.
    pub rule: String,
    /// Why, in a sentence.
    pub why: String,
}

/// What is wrong with a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Its time is over.
    Expired,
    /// It means nobody at one end.
    Dangling,
    /// Deny rules refuse all that it allows.
    Shadowed,
    /// Others say all that it says.
    Redundant,
    /// It allows every protocol between everybody.
    TooBroad,
}

impl FindingKind {
    /// As in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Dangling => "dangling",
            Self::Shadowed => "shadowed",
            Self::Redundant => "redundant",
            Self::TooBroad => "too-broad",
        }
    }
}

/// Finds what is probably not meant, by the order of the rules.
#[must_use]
pub fn lint(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    let overview = scene.overview();
    let said = Said::new(scene, &overview);
    let mut useless: BTreeSet<RuleId> = BTreeSet::new();
    for (id, rule) in scene.enforced_rules() {
        let label = scene.origin(id).map_or_else(String::new, |origin| origin.label.clone());
        let mut found = |kind, why: String| {
            findings.push(Finding { kind, rule: label.clone(), why });
        };
        if !is_in_force(rule, scene.now()) {
            let end = rule.not_after.map(|end| end.to_string()).unwrap_or_default();
            found(FindingKind::Expired, format!("it ended {end}"));
            continue;
        }
        let empty =
            [&rule.from, &rule.to].into_iter().find(|end| means_nobody(scene, &overview, end));
        if let Some(end) = empty {
            found(FindingKind::Dangling, format!("{end} means nobody in this inventory"));
            continue;
        }
        let is_all = rule.from == BoundSelector::Any && rule.to == BoundSelector::Any;
        if rule.action == Action::Allow && is_all && rule.services.is_empty() {
            found(FindingKind::TooBroad, "it opens every port between all members".to_owned());
        }
        if touches_outside(scene, rule) {
            continue;
        }
        if rule.action == Action::Allow && said.is_shadowed(id) {
            useless.insert(id);
            found(FindingKind::Shadowed, "deny rules refuse all that it allows".to_owned());
        } else if said.is_redundant(id, &useless) {
            useless.insert(id);
            found(FindingKind::Redundant, "other rules say all that it says".to_owned());
        }
    }
    for policy in scene.network_policies() {
        findings.extend(lint_network_policy(scene, &overview, policy));
    }
    findings
}

fn means_nobody(scene: &Scene, overview: &Overview<'_>, selector: &BoundSelector) -> bool {
    match selector {
        BoundSelector::Cidr(_) => false,
        BoundSelector::Group(name) => {
            scene.held_by(name).all(|held| means_nobody(scene, overview, held))
        }
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => {
            !scene.members().any(|(id, _)| overview.is_meant(selector, &End::Member(id)))
        }
    }
}

/// Whether the rule speaks of addresses outside, of which no list can be made.
fn touches_outside(scene: &Scene, rule: &RuleFacts) -> bool {
    let is_outside = |selector: &BoundSelector| match selector {
        BoundSelector::Cidr(_) => true,
        BoundSelector::Group(name) => {
            scene.held_by(name).any(|held| matches!(held, BoundSelector::Cidr(_)))
        }
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => false,
    };
    is_outside(&rule.from) || is_outside(&rule.to)
}

/// Which rule says what of each ordered pair of members.
struct Said {
    pairs: Vec<Vec<(RuleId, Action, Vec<Span>)>>,
    pairs_of: BTreeMap<RuleId, Vec<usize>>,
}

impl Said {
    fn new(scene: &Scene, overview: &Overview<'_>) -> Self {
        let ends: Vec<End> = scene.members().map(|(id, _)| End::Member(id)).collect();
        let (mut pairs, mut pairs_of) = (Vec::new(), BTreeMap::<RuleId, Vec<usize>>::new());
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from) {
                let mut said = Vec::new();
                for (id, rule) in scene.enforced_rules() {
                    if is_in_force(rule, scene.now()) && overview.is_spoken_of(rule, from, to) {
                        said.push((id, rule.action, overview.services_at(rule, to)));
                        pairs_of.entry(id).or_default().push(pairs.len());
                    }
                }
                pairs.push(said);
            }
        }
        Self { pairs, pairs_of }
    }

    /// Whether nothing of `id` is left, on any pair, after what `others` say.
    fn is_covered(&self, id: RuleId, others: impl Fn(RuleId, Action) -> bool) -> bool {
        let Some(pairs) = self.pairs_of.get(&id) else { return false };
        pairs.iter().filter_map(|index| self.pairs.get(*index)).all(|said| {
            let own = said.iter().filter(|(other, ..)| *other == id);
            let own: Vec<Span> = own.flat_map(|(_, _, spans)| spans.clone()).collect();
            let rest =
                said.iter().filter(|(other, action, _)| *other != id && others(*other, *action));
            let rest: Vec<Span> = rest.flat_map(|(_, _, spans)| spans.clone()).collect();
            without(own, &rest).is_empty()
        })
    }

    fn is_shadowed(&self, id: RuleId) -> bool {
        self.is_covered(id, |_, action| action == Action::Deny)
    }

    /// `useless` are those already told, so that of two equal rules one is left.
    fn is_redundant(&self, id: RuleId, useless: &BTreeSet<RuleId>) -> bool {
        let Some(pairs) = self.pairs_of.get(&id) else { return false };
        let said = pairs.iter().filter_map(|index| self.pairs.get(*index)).flatten();
        let Some(own) = said.clone().find(|(other, ..)| *other == id) else { return false };
        let action = own.1;
        self.is_covered(id, |other, theirs| theirs == action && !useless.contains(&other))
    }
}

fn lint_network_policy(
    scene: &Scene,
    overview: &Overview<'_>,
    policy: &NetworkPolicy,
) -> Vec<Finding> {
    let name = format!("NetworkPolicy {}", policy.full_name());
    let dangling = |rule: String, why: &str| Finding {
        kind: FindingKind::Dangling,
        rule,
        why: why.to_owned(),
    };
    if !scene.members().any(|(_, facts)| policy.selects(facts)) {
        return vec![dangling(name, "it selects nobody in this inventory")];
    }
    let mut findings = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
            let means_somebody = rule.peers.is_empty()
                || rule.peers.iter().any(|peer| match peer {
                    super::kubernetes::Peer::Block(_) => true,
                    super::kubernetes::Peer::Pods { .. } => scene
                        .members()
                        .any(|(id, _)| overview.is_peer(policy, peer, &End::Member(id))),
                });
            if !means_somebody {
                let rule = format!("{name} {}[{index}]", direction.field());
                findings.push(dangling(rule, "its peers are nobody in this inventory"));
            }
        }
    }
    findings
}
