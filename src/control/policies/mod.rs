//! Changes of policies: what all of them have in common, whatever they change.
//!
//! A change loads the policies whole, alters them in memory, and hands them to
//! [`PolicyDraft::finish`], which checks who may change what, that rules agree about paths, and writes
//! the difference with its history: one transaction, one revision, one audit record.

mod bind;
mod confirm;
mod files;
mod import;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use bind::{Binder, Written, hops, path_names};
pub(crate) use confirm::{
    confirm, expired, nothing_waits, pending, refuse_pending, roll_back_expired,
};
pub(crate) use files::{Maker, bind_member, desired, export, overlay_named, read, read_whole};
pub(crate) use import::{imported, left_open, report};
pub(crate) use plan::{Plan, plan, plan_rollback, refuse_failures};

use super::auth::Admin;
use super::enforce::Touched;
use super::publish::Hold;
use super::routes::Refusal;
use super::selection;
use super::server::{Draft, Server, now};
pub(crate) use super::store::policies::Policies;
use super::store::policies::{self, ItemChange, ItemKey, Policy, Stamp};
use super::store::rules::StoredRule;
use super::store::{Done, confirmations, world};
use crate::api::admin::{Change, ChangeOptions};
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::policy::{self, BoundSelector, RuleConflict, RuleFacts, World};
use crate::types::{Name, NodeId, OverlayId, RuleId};

/// A change of policies under way. Dropping it changes nothing.
pub(crate) struct PolicyDraft {
    pub(crate) draft: Draft,
    admin: Admin,
    /// The world before the change.
    pub(crate) world: World,
    /// The policies before the change.
    pub(crate) before: Policies,
    next_rule: u32,
    next_network: u32,
    /// Whether it is made though rules cannot have their paths.
    pub(crate) is_forced: bool,
    /// Undoes it unless it is confirmed.
    pub(crate) confirm_by: Option<confirmations::Row>,
}

/// What a change comes to.
pub(crate) struct Settled {
    /// The world after the change.
    pub(crate) world: World,
    /// What was changed, by overlay.
    pub(crate) changes: BTreeMap<OverlayId, Vec<ItemChange>>,
}

impl PolicyDraft {
    /// Begins a change.
    ///
    /// # Errors
    ///
    /// As [`Server::begin`].
    pub(crate) async fn begin(
        server: &Arc<Server>,
        admin: Admin,
        options: &ChangeOptions,
    ) -> Result<Self, Refusal> {
        let mut draft = server.begin(&admin, options).await?;
        let (world, before) = draft.intent().await?;
        let (next_rule, next_network) = policies::next_numbers(draft.conn()).await?;
        Ok(Self {
            draft,
            admin,
            world,
            before,
            next_rule,
            next_network,
            is_forced: false,
            confirm_by: None,
        })
    }

    /// Who makes new rules.
    pub(crate) fn maker(&self) -> Maker {
        Maker {
            actor: self.draft.actor.clone(),
            revision: self.draft.revision,
            now: now(),
            next_rule: self.next_rule,
            next_network: self.next_network,
        }
    }

    /// The policy of an overlay before the change.
    pub(crate) fn policy(&self, overlay: OverlayId) -> Policy {
        self.before.get(&overlay).cloned().unwrap_or_default()
    }

    /// Says that nothing has to be changed: no revision, no record.
    pub(crate) async fn unchanged<T>(self, result: T) -> Result<Change<T>, Refusal> {
        Ok(self.draft.unchanged(result).await?)
    }

    /// Makes `after` the policies of their overlays. `places` tell where rules of files stand; `done`
    /// makes the answer and the audit record.
    ///
    /// # Errors
    ///
    /// Whatever forbids the change; nothing is changed then.
    pub(crate) async fn finish<T>(
        mut self,
        after: Policies,
        places: &BTreeMap<RuleId, String>,
        done: impl FnOnce(&Settled) -> Done<T>,
    ) -> Result<Change<T>, Refusal> {
        let mut world = self.world.clone();
        let mut changes = BTreeMap::new();
        for (overlay, policy) in &after {
            let before = self.before.get(overlay).cloned().unwrap_or_default();
            world::put_policy(&mut world, *overlay, policy);
            let changed = before.changes_to(policy);
            self.check_rights(&before, policy, &changed)?;
            refuse_pending(self.draft.conn(), &self.world, *overlay).await?;
            changes.insert(*overlay, changed);
        }
        for overlay in after.keys().filter(|_| !self.is_forced) {
            let new = new_rules(changes.get(overlay).map_or(&[], Vec::as_slice));
            policy::check_paths(&world, *overlay, &new, now())
                .map_err(|(rule, conflict)| conflict_problem(places, rule, &conflict))?;
            let direct = new.iter().filter_map(|id| world.rules.get(id));
            for rule in direct.filter(|rule| rule.path == Some(PathHops::Direct)) {
                let mut ends = policy::rule_sources(&world, rule);
                ends.extend(policy::concerned_destinations(&world, rule));
                self.draft.refuse_translated(ends)?;
            }
        }
        let settled = Settled { world, changes };
        let done = done(&settled);
        for (overlay, policy) in &after {
            let Some(changes) = settled.changes.get(overlay).filter(|some| !some.is_empty()) else {
                continue;
            };
            let (actor, revision) = (self.draft.actor.clone(), self.draft.revision);
            let stamp = Stamp {
                overlay: *overlay,
                revision,
                at: now(),
                actor: &actor,
                action: &done.action,
            };
            policies::write(self.draft.conn(), stamp, policy, changes).await?;
        }
        if let Some(row) = &self.confirm_by {
            confirmations::put(self.draft.conn(), row).await?;
        }
        let touched = touched(&self.before, &self.world, &after, &settled);
        let hold = if is_addition(&after, &settled) {
            Hold::Sources(sources(&touched))
        } else {
            Hold::Nobody
        };
        Ok(self.draft.finish(done, hold, touched).await?)
    }

    /// Refuses what an admin of some namespaces may not change.
    fn check_rights(
        &self,
        before: &Policy,
        after: &Policy,
        changes: &[ItemChange],
    ) -> Result<(), Refusal> {
        for change in changes {
            match &change.key {
                ItemKey::Rule(id) => {
                    for rule in [before.rules.get(id), after.rules.get(id)].into_iter().flatten() {
                        let (from, to) = written_ends(&rule.facts);
                        self.admin.may_change(&from, &to)?;
                    }
                }
                ItemKey::NetworkPolicy(id) => {
                    let networks =
                        [before.network_policies.get(id), after.network_policies.get(id)];
                    for network in networks.into_iter().flatten() {
                        self.admin.may_change_namespace(&network.namespace)?;
                    }
                }
                ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::Tests => {
                    self.admin.everywhere()?;
                }
            }
        }
        Ok(())
    }
}

/// The rules that a change makes or alters.
fn new_rules(changes: &[ItemChange]) -> BTreeSet<RuleId> {
    let new = changes.iter().filter(|change| change.after.is_some());
    new.filter_map(|change| match &change.key {
        ItemKey::Rule(id) => Some(*id),
        ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::Tests | ItemKey::NetworkPolicy(_) => {
            None
        }
    })
    .collect()
}

fn written_ends(rule: &RuleFacts) -> (crate::types::Selector, crate::types::Selector) {
    (selection::as_written(&rule.from), selection::as_written(&rule.to))
}

/// What makes a path impossible, as a problem that begins with `what`.
pub(crate) fn path_conflict(what: &str, conflict: &RuleConflict) -> Problem {
    let problem = conflict_problem(&BTreeMap::new(), RuleId(0), conflict);
    Problem { what: what.to_owned(), ..problem }
}

/// Why a rule cannot be, in words and with what to do about it.
fn conflict_problem(
    places: &BTreeMap<RuleId, String>,
    rule: RuleId,
    conflict: &RuleConflict,
) -> Problem {
    let (mut why, mut fix) = (conflict.to_string(), String::new());
    match conflict {
        RuleConflict::Path { other, pair, path } => {
            fix = match places.get(other) {
                Some(place) => {
                    why = format!("the rule at {place} already gives {pair} the path {path}");
                    format!("give both the same path; the other is at {place}")
                }
                None => format!("give both the same path, or: ovctl policy revoke {other}"),
            };
        }
        RuleConflict::NoOverlay { .. } => fix.push_str("ovctl overlay list"),
        RuleConflict::NoHops | RuleConflict::Cycle { .. } => {
            fix.push_str("name each SaP once: --via sap1,sap2");
        }
        RuleConflict::NoSap { .. } | RuleConflict::NotServed { .. } => {
            fix.push_str("ovctl sap list shows which SaPs there are");
        }
        RuleConflict::Drained { sap } => {
            fix = format!("name another SaP, or: ovctl sap undrain {sap}")
        }
        RuleConflict::NoEndpoint { .. } => fix.push_str("leave --direct out"),
    }
    let what = match places.get(&rule) {
        Some(place) => format!("{place}: the rule cannot be"),
        None => "the rule cannot be".to_owned(),
    };
    Problem::new(ProblemCode::Conflict, what).why(why).fix(fix)
}

/// The pairs that a change is about: those of rules that came or went; everybody when it is more than
/// rules that changed.
fn touched(
    before: &Policies,
    world_before: &World,
    after: &Policies,
    settled: &Settled,
) -> Vec<Touched> {
    let mut touched = Vec::new();
    for (overlay, changes) in &settled.changes {
        let is_more = |change: &ItemChange| {
            matches!(
                change.key,
                ItemKey::Group(_) | ItemKey::Service(_) | ItemKey::NetworkPolicy(_)
            )
        };
        if changes.iter().any(is_more) {
            let all = selection::selected(&settled.world, *overlay, &BoundSelector::Any);
            touched.push(Touched {
                overlay: *overlay,
                from: all.clone(),
                to: all.clone(),
                both: false,
                outside: all,
            });
            continue;
        }
        for change in changes {
            let ItemKey::Rule(id) = &change.key else { continue };
            let old = before.get(overlay).and_then(|policy| policy.rules.get(id));
            let new = after.get(overlay).and_then(|policy| policy.rules.get(id));
            touched.extend(old.map(|rule| covered(world_before, &rule.facts)));
            touched.extend(new.map(|rule| covered(&settled.world, &rule.facts)));
        }
    }
    touched
}

/// The pairs that a rule covers.
pub(crate) fn covered(world: &World, rule: &RuleFacts) -> Touched {
    Touched {
        overlay: rule.overlay,
        from: selection::selected(world, rule.overlay, &rule.from),
        to: selection::selected(world, rule.overlay, &rule.to),
        both: rule.both,
        outside: policy::outside_sources(world, rule),
    }
}

/// Whether a change only adds allow rules: then destinations and SaPs go before sources.
fn is_addition(after: &Policies, settled: &Settled) -> bool {
    settled.changes.iter().all(|(overlay, changes)| {
        changes.iter().all(|change| {
            let ItemKey::Rule(id) = &change.key else { return change.key == ItemKey::Tests };
            let rule = after.get(overlay).and_then(|policy| policy.rules.get(id));
            let allows = |rule: &Arc<StoredRule>| rule.facts.action == Action::Allow;
            change.before.is_none() && rule.is_some_and(allows)
        })
    })
}

/// Who starts flows by new rules, and should have its table last.
fn sources(touched: &[Touched]) -> BTreeSet<NodeId> {
    let mut sources = BTreeSet::new();
    for pairs in touched {
        if pairs.both {
            sources.extend(pairs.from.union(&pairs.to));
        } else {
            // An entity that is also talked to goes first: others wait for it.
            sources.extend(pairs.from.difference(&pairs.to));
        }
    }
    sources
}

/// The overlay that is meant: the one named, or the only one.
///
/// # Errors
///
/// `NotFound` for an unknown one, `Usage` when there are several and none is named.
pub(crate) fn overlay_of(world: &World, named: Option<&Name>) -> Result<OverlayId, Problem> {
    selection::overlay_of(world, named, [&BoundSelector::Any, &BoundSelector::Any])
}
