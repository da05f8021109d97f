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
use crate::api::admin::Semantics;
use crate::api::table::{Action, PathHops};
use crate::types::{Name, NodeId, RuleId, Timestamp};

/// What a server has seen of a policy at work; nothing where files alone are judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Since when a rule must have decided something, or been made; none asks of no rule.
    pub used_since: Option<Timestamp>,
    /// When each rule was made or last decided something, whichever is later.
    pub used: BTreeMap<RuleId, Timestamp>,
    /// The SaPs that are connected.
    pub live_saps: Option<BTreeSet<NodeId>>,
}

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
    /// It allows every protocol between everybody, or with every address outside.
    TooBroad,
    /// It decided nothing for long.
    Unused,
    /// Its path goes by a SaP that is gone or away.
    NoLiveSap,
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
            Self::Unused => "unused",
            Self::NoLiveSap => "no-live-sap",
        }
    }
}

/// Finds what is probably not meant, by the order of the rules.
#[must_use]
pub fn lint(scene: &Scene, observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let overview = scene.overview();
    let said = Said::new(scene, &overview);
    let mut useless: BTreeSet<RuleId> = BTreeSet::new();
    for (id, rule) in scene.rules() {
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
            found(FindingKind::Dangling, format!("{end} means nobody"));
            continue;
        }
        if let Some(why) = too_broad(scene, rule).filter(|_| !rule.is_audit) {
            found(FindingKind::TooBroad, why);
        }
        if let Some(why) = without_live_sap(scene, rule, observed) {
            found(FindingKind::NoLiveSap, why);
        }
        if let Some(why) = unused(id, observed) {
            found(FindingKind::Unused, why);
        }
        if rule.is_audit || touches_outside(scene, rule) {
            continue;
        }
        if rule.action == Action::Allow && said.is_shadowed(id) {
            useless.insert(id);
            found(FindingKind::Shadowed, "deny rules refuse all that it allows".to_owned());
        } else if rule.path.is_none() && said.is_redundant(id, &useless) {
            useless.insert(id);
            found(FindingKind::Redundant, "other rules say all that it says".to_owned());
        }
    }
    findings.extend(lint_groups(scene));
    findings.extend(lint_saps(scene, observed));
    for (id, policy) in scene.network_policies() {
        findings.extend(lint_network_policy(scene, &overview, policy));
        findings.extend(unused(id, observed).map(|why| Finding {
            kind: FindingKind::Unused,
            rule: scene.label(id, None),
            why,
        }));
    }
    findings
}

fn too_broad(scene: &Scene, rule: &RuleFacts) -> Option<String> {
    if rule.action == Action::Deny || !rule.services.is_empty() {
        return None;
    }
    if is_any(scene, &rule.from) && is_any(scene, &rule.to) {
        return Some("it opens every port between all members".to_owned());
    }
    let whole = [&rule.from, &rule.to].into_iter().find(|end| match end {
        BoundSelector::Cidr(block) => block.cidr.prefix_len() == 0 && block.except.is_empty(),
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => false,
    });
    whole.map(|end| format!("it opens every port with all of {end}"))
}

fn is_any(scene: &Scene, selector: &BoundSelector) -> bool {
    match selector {
        BoundSelector::Any => true,
        BoundSelector::Group(name) => scene.held_by(name).any(|held| *held == BoundSelector::Any),
        BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Cidr(_) => false,
    }
}

/// Which SaPs of the rule's path are not there.
fn without_live_sap(scene: &Scene, rule: &RuleFacts, observed: &Observed) -> Option<String> {
    let (Some(PathHops::Via(chain)), Some(live)) = (&rule.path, &observed.live_saps) else {
        return None;
    };
    let away = chain.iter().filter(|sap| !live.contains(sap)).map(|sap| match scene.facts(*sap) {
        Some(facts) => format!("{}, which is not connected", facts.name),
        None => "a SaP that is gone".to_owned(),
    });
    let away: Vec<String> = away.collect();
    (!away.is_empty()).then(|| format!("its path goes by {}", away.join(", and ")))
}

fn unused(id: RuleId, observed: &Observed) -> Option<String> {
    let (since, used) = (observed.used_since?, *observed.used.get(&id)?);
    (used <= since).then(|| format!("no packet was decided by it since {used}"))
}

/// Names in groups whose entities are gone.
fn lint_groups(scene: &Scene) -> Vec<Finding> {
    let gone = |held: &&BoundSelector| match held {
        BoundSelector::Node(id, _) => !scene.members().any(|(member, _)| member == *id),
        BoundSelector::Any
        | BoundSelector::Labels(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Cidr(_) => false,
    };
    let finding = |(name, held): (&Name, &BoundSelector)| Finding {
        kind: FindingKind::Dangling,
        rule: format!("group {name}"),
        why: format!("{held} is gone, and a later bearer of the name is not in the group"),
    };
    let groups = scene.groups();
    groups
        .flat_map(|(name, held)| held.iter().filter(gone).map(move |held| (name, held)))
        .map(finding)
        .collect()
}

/// Whether pairs without a path of their own have a SaP.
fn lint_saps(scene: &Scene, observed: &Observed) -> Option<Finding> {
    let live = observed.live_saps.as_ref()?;
    let is_default = |rule: &RuleFacts| rule.action == Action::Allow && rule.path.is_none();
    let is_needed = scene.semantics() == Semantics::Kubernetes
        || scene.network_policies().next().is_some()
        || scene.enforced_rules().any(|(_, rule)| is_default(rule));
    let is_served = scene.saps().any(|sap| live.contains(&sap));
    (is_needed && !is_served && scene.members().nth(1).is_some()).then(|| Finding {
        kind: FindingKind::NoLiveSap,
        rule: format!("overlay {}", scene.overlay_name()),
        why: "no SaP that serves it is connected, so pairs without a path of their own have none"
            .to_owned(),
    })
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
    /// When rules end that do.
    ends: BTreeMap<RuleId, Timestamp>,
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
        let rules = scene.enforced_rules();
        let ends = rules.filter_map(|(id, rule)| Some((id, rule.not_after?))).collect();
        Self { pairs, pairs_of, ends }
    }

    /// Whether nothing of `id` is left, on any pair and as long as it lasts, after what `others` say.
    fn is_covered(&self, id: RuleId, others: impl Fn(RuleId, Action) -> bool) -> bool {
        let Some(pairs) = self.pairs_of.get(&id) else { return false };
        pairs.iter().filter_map(|index| self.pairs.get(*index)).all(|said| {
            let own = said.iter().filter(|(other, ..)| *other == id);
            let own: Vec<Span> = own.flat_map(|(_, _, spans)| spans.clone()).collect();
            let rest = said.iter().filter(|(other, action, _)| {
                *other != id && self.lasts_as_long(*other, id) && others(*other, *action)
            });
            let rest: Vec<Span> = rest.flat_map(|(_, _, spans)| spans.clone()).collect();
            without(own, &rest).is_empty()
        })
    }

    fn lasts_as_long(&self, other: RuleId, id: RuleId) -> bool {
        let end = |id| self.ends.get(&id).copied().unwrap_or(Timestamp(u64::MAX));
        end(other) >= end(id)
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
        return vec![dangling(name, "it selects nobody")];
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
                findings.push(dangling(rule, "its peers are nobody"));
            }
        }
    }
    findings
}
