//! What a change of a whole policy would come to: what is new, what goes, what holds. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::files::{Desired, Maker, desired, overlay_named};
use super::{Policies, Written, conflict_problem, covered, new_rules, overlay_of};
use crate::api::policy::{PairDifference, PolicyChange};
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::control::store::policies::{ItemChange, ItemKey, Policy};
use crate::control::store::world::put_policy;
use crate::policy::{
    self, BoundSelector, Document, End, Examination, Reach, Scene, World, examine,
};
use crate::types::{EntityName, Name, NodeId, OverlayId, RuleId, Timestamp};

/// Most ordered pairs that are compared one by one.
const PAIRS_MAX: usize = 50_000;

/// Most failing tests that a refusal names.
const FAILURES_MAX: usize = 20;

/// A policy that somebody wants.
pub(crate) struct Plan {
    pub(crate) overlay: OverlayId,
    pub(crate) policy: Policy,
    pub(crate) places: BTreeMap<RuleId, String>,
    pub(crate) result: PolicyChange,
}

/// Works out what `documents` ask for. With `compare`, also which pairs gain and lose what.
///
/// # Errors
///
/// `Usage` for what files say wrong, `Conflict` for rules that disagree, `Findings` for tests that
/// fail: each with file and line.
pub(crate) fn plan(
    world: &World,
    policies: &Policies,
    documents: &[Document],
    named: Option<&Name>,
    maker: &mut Maker,
    compare: bool,
) -> Result<Plan, Problem> {
    let meant = overlay_named(documents, named)?;
    let overlay = overlay_of(world, meant.as_ref())?;
    let empty = Policy::default();
    let before = policies.get(&overlay).unwrap_or(&empty);
    let Desired { policy, places } = desired(world, overlay, before, documents, maker)?;
    planned(world, before, overlay, policy, places, maker.now, compare)
}

/// Works out what going back to `policy` comes to.
///
/// # Errors
///
/// As [`plan`].
pub(crate) fn plan_rollback(
    world: &World,
    policies: &Policies,
    overlay: OverlayId,
    policy: Policy,
    now: Timestamp,
) -> Result<Plan, Problem> {
    let empty = Policy::default();
    let before = policies.get(&overlay).unwrap_or(&empty);
    planned(world, before, overlay, policy, BTreeMap::new(), now, true)
}

fn planned(
    world: &World,
    before: &Policy,
    overlay: OverlayId,
    policy: Policy,
    places: BTreeMap<RuleId, String>,
    now: Timestamp,
    compare: bool,
) -> Result<Plan, Problem> {
    let mut after = world.clone();
    put_policy(&mut after, overlay, &policy);
    let changes = before.changes_to(&policy);
    policy::check_paths(&after, overlay, &new_rules(&changes), now)
        .map_err(|(rule, conflict)| conflict_problem(&places, rule, &conflict))?;
    let scene = Scene::of(&after, overlay, now);
    if !policy.tests.is_empty() {
        refuse_failures(&examine(&scene, &policy.tests)?)?;
    }
    let pairs = if compare {
        let old = Scene::of(world, overlay, now);
        let concerned = concerned(world, &after, overlay, before, &policy, &changes);
        concerned.map(|pairs| differences(&old, &scene, &pairs))
    } else {
        None
    };
    let (added, removed) = lines(before, &policy, &changes);
    let result = PolicyChange {
        overlay: selection::overlay_name(world, overlay),
        changed: !changes.is_empty(),
        added,
        removed,
        compared: pairs.is_some(),
        pairs: pairs.unwrap_or_default(),
        tests: u64::try_from(policy.tests.len()).unwrap_or(u64::MAX),
        dangling: dangling(&after, &policy),
        confirm_by: None,
    };
    Ok(Plan { overlay, policy, places, result })
}

/// Refuses a policy of which tests fail.
pub(crate) fn refuse_failures(examination: &Examination) -> Result<(), Problem> {
    if examination.failed == 0 {
        return Ok(());
    }
    let failures = examination.failures();
    let shown = failures.iter().take(FAILURES_MAX);
    let mut why: Vec<String> = shown.map(|(what, why)| format!("{what}: {why}")).collect();
    if failures.len() > FAILURES_MAX {
        why.push(format!("and {} more", failures.len() - FAILURES_MAX));
    }
    let count = examination.failed;
    let tests = if count == 1 { "1 test" } else { &format!("{count} tests") };
    Err(Problem::new(
        ProblemCode::Findings,
        format!("{tests} of the policy would fail; nothing was changed"),
    )
    .why(why.join("\n       "))
    .fix("change the rules, or the tests"))
}

/// Entities that the policy names and that are gone.
pub(crate) fn dangling(world: &World, policy: &Policy) -> Vec<EntityName> {
    let held = policy.groups.values().flatten();
    let ends = policy.rules.values().flat_map(|rule| [&rule.facts.from, &rule.facts.to]);
    let gone: BTreeSet<EntityName> =
        ends.chain(held).flat_map(|end| selection::dangling(world, [end])).collect();
    gone.into_iter().collect()
}

/// The ordered pairs whose verdict may change; none when they are too many to look at.
fn concerned(
    before_world: &World,
    after_world: &World,
    overlay: OverlayId,
    before: &Policy,
    after: &Policy,
    changes: &[ItemChange],
) -> Option<BTreeSet<(NodeId, NodeId)>> {
    let mut pairs = BTreeSet::new();
    let mut add = |from: &BTreeSet<NodeId>, to: &BTreeSet<NodeId>| {
        if from.len().saturating_mul(to.len()) > PAIRS_MAX {
            return None;
        }
        pairs.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
        (pairs.len() <= PAIRS_MAX).then_some(())
    };
    for change in changes {
        match &change.key {
            ItemKey::Tests => {}
            ItemKey::Rule(id) => {
                let old = before.rules.get(id).map(|rule| covered(before_world, &rule.facts));
                let new = after.rules.get(id).map(|rule| covered(after_world, &rule.facts));
                for touched in old.into_iter().chain(new) {
                    add(&touched.from, &touched.to)?;
                    if touched.both {
                        add(&touched.to, &touched.from)?;
                    }
                }
            }
            ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::NetworkPolicy(_) => {
                let all = selection::selected(after_world, overlay, &BoundSelector::Any);
                add(&all, &all)?;
            }
        }
    }
    pairs.retain(|(from, to)| from != to);
    Some(pairs)
}

fn differences(
    before: &Scene,
    after: &Scene,
    pairs: &BTreeSet<(NodeId, NodeId)>,
) -> Vec<PairDifference> {
    let mut found = Vec::new();
    for (from, to) in pairs {
        let (from, to) = (End::Member(*from), End::Member(*to));
        let (old, new) = (Reach::between(before, &from, &to), Reach::between(after, &from, &to));
        if old != new {
            found.push(PairDifference {
                from: after.end_name(&from),
                to: after.end_name(&to),
                gained: new.without(&old).words(),
                lost: old.without(&new).words(),
            });
        }
    }
    found
}

/// What is new and what goes, a line each.
fn lines(before: &Policy, after: &Policy, changes: &[ItemChange]) -> (Vec<String>, Vec<String>) {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for change in changes {
        let line = |policy: &Policy| match &change.key {
            ItemKey::Group(name) => format!("group {name}"),
            ItemKey::Service(name) => format!("service {name}"),
            ItemKey::Tests => "tests".to_owned(),
            ItemKey::NetworkPolicy(id) => {
                let network = policy.network_policies.get(id);
                let name = network.map(|network| network.full_name()).unwrap_or_default();
                format!("NetworkPolicy {name}")
            }
            ItemKey::Rule(id) => {
                let rule = policy.rules.get(id).map(|rule| rule_line(&rule.facts));
                format!("{id} {}", rule.unwrap_or_default())
            }
        };
        if change.after.is_some() {
            added.push(line(after));
        }
        if change.before.is_some() {
            removed.push(line(before));
        }
    }
    (added, removed)
}

/// `allow web → db tcp/80`, with the rule's name when it has one, and whether it is for audit.
fn rule_line(rule: &policy::RuleFacts) -> String {
    let text = policy::rule_text(rule);
    let audit = if rule.is_audit { " (audit)" } else { "" };
    match &rule.name {
        Some(name) => format!("{name}: {text}{audit}"),
        None => format!("{text}{audit}"),
    }
}

impl Plan {
    /// Restores, in a policy of the past, what is written as now with the binding of now.
    pub(crate) fn keep_bindings(world: &World, now: &Policy, past: &mut Policy) {
        for (id, rule) in &mut past.rules {
            let Some(current) = now.rules.get(id) else { continue };
            let written = |rule: &crate::control::store::rules::StoredRule| {
                Written::of(world, &rule.facts, rule.reason.as_deref())
            };
            if written(current) == written(rule) {
                *rule = current.clone();
            }
        }
    }
}
