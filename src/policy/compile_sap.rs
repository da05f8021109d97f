//! The table of a SaP: the rules of the pairs that may cross it, as sets and never as pairs.

use std::collections::BTreeSet;

use super::compile::Part;
use super::draft::{Draft, has_pair, without_self_pairs};
use super::plan::{Claim, Plan, Way};
use super::set::Set;
use super::{KeySource, World};
use crate::api::table::PathHops;
use crate::types::{NodeId, Service, Tier};

/// One allowed way, cut to what may cross the SaP.
struct Crossing<'a> {
    way: &'a Way,
    services: &'a [Service],
    from: Set,
    to: Set,
}

/// Compiles `owner`'s table of one overlay that it serves.
pub(super) fn compile(world: &World, plan: &Plan, keys: &dyn KeySource, owner: NodeId) -> Part {
    let is_elsewhere = claims_elsewhere(plan, owner);
    let crossings: Vec<Crossing<'_>> = plan
        .ways
        .iter()
        .filter(|way| matches!(way.tier, Tier::Allow | Tier::AuditAllow))
        .flat_map(|way| way.to.iter().map(move |(services, to)| (way, services, to)))
        .map(|(way, services, to)| {
            let mut crossing = Crossing { way, services, from: way.from.clone(), to: to.clone() };
            crossing.cut(plan, &is_elsewhere);
            crossing
        })
        .filter(|crossing| has_pair(&crossing.from, &crossing.to))
        .collect();
    let members =
        Set::union_of(crossings.iter().flat_map(|c| [&c.from, &c.to])).union(&open_by_sides(plan));

    let mut draft = Draft::new(members.clone(), members.clone());
    draft.destination_keys(members.clone());
    for crossing in crossings {
        draft.rule(crossing.way, crossing.services, crossing.from, crossing.to);
    }
    let here = |set: &Set| set.intersection(&members);
    let is_crossing = |way: &&Way| matches!(way.tier, Tier::Allow | Tier::AuditAllow);
    for way in plan.ways.iter().filter(|way| !is_crossing(way)) {
        for (services, to) in &way.to {
            draft.rule(way, services, here(&way.from), here(to));
        }
    }
    let mut saps = BTreeSet::new();
    for claim in &plan.paths {
        let (from, to) = (here(&claim.from), here(&claim.to));
        match chain_over(claim, owner) {
            Some(chain) => {
                if has_pair(&from, &to) {
                    saps.extend(neighbours(chain, owner));
                }
                draft.path(from, to, claim.hops.clone());
            }
            None => draft.path(from, to, PathHops::Elsewhere),
        }
    }
    Part { table: draft.finish(world, plan, keys, owner), saps }
}

/// Whether `sap`'s part is that of every other SaP: no path that somebody can take names it.
pub(super) fn is_ordinary(plan: &Plan, sap: NodeId) -> bool {
    !plan.paths.iter().any(|claim| chain_over(claim, sap).is_some())
}

/// Who may have a pair that NetworkPolicies, or the overlay's semantics, let through; perhaps more.
fn open_by_sides(plan: &Plan) -> Set {
    if plan.unspoken_passes() {
        return plan.members.clone();
    }
    let is_side = |way: &&Way| matches!(way.tier, Tier::Egress | Tier::Ingress);
    Set::union_of(plan.ways.iter().filter(is_side).flat_map(|way| [&way.from, &way.to_all]))
}

impl Crossing<'_> {
    /// Takes off who has all its pairs elsewhere, or denied. Only claims and denials that speak of the
    /// first member of a side can cover that side, so that the others are not looked at.
    fn cut(&mut self, plan: &Plan, is_elsewhere: &[bool]) {
        self.drop_self_pairs();
        let mut at = 0;
        while let Some(next) = plan.claim_from(at, self.from.first(), self.to.first()) {
            if is_elsewhere[next] {
                let claim = &plan.paths[next];
                self.cut_pairs(&claim.from, &claim.to);
                self.cut_pairs(&claim.to, &claim.from);
            }
            at = next + 1;
        }
        at = 0;
        while let Some(next) = plan.denial_from(at, self.from.first(), self.to.first()) {
            let deny = &plan.ways[next];
            if deny.shadows(self.way) {
                self.cut_pairs(&deny.from, &deny.to_all);
            }
            at = next + 1;
        }
        self.drop_self_pairs();
    }

    fn drop_self_pairs(&mut self) {
        (self.from, self.to) = without_self_pairs(self.from.clone(), self.to.clone());
    }

    /// Takes off who has nothing left when the pairs from `from` to `to` are gone. What is gone in part
    /// only is left to the rows for denials and paths.
    fn cut_pairs(&mut self, from: &Set, to: &Set) {
        if self.from.is_subset(from) {
            self.to = self.to.without(to);
        } else if self.to.is_subset(to) {
            self.from = self.from.without(from);
        }
    }
}

/// For each claim whether its pairs never cross `owner`. One that comes behind another, which leads some
/// of its pairs over `owner`, is not among them: the first claim of a pair counts.
fn claims_elsewhere(plan: &Plan, owner: NodeId) -> Vec<bool> {
    let mut crossing: Vec<&Claim> = Vec::new();
    let is_elsewhere = |claim| {
        if chain_over(claim, owner).is_some() {
            crossing.push(claim);
            return false;
        }
        !crossing.iter().any(|earlier| shares_a_pair(earlier, claim))
    };
    plan.paths.iter().map(is_elsewhere).collect()
}

fn shares_a_pair(one: &Claim, two: &Claim) -> bool {
    let meet = |a: &Set, b: &Set| !a.is_disjoint(b);
    (meet(&one.from, &two.from) && meet(&one.to, &two.to))
        || (meet(&one.from, &two.to) && meet(&one.to, &two.from))
}

/// The claim's chain when packets can take it and it leads over `owner`.
fn chain_over(claim: &Claim, owner: NodeId) -> Option<&[NodeId]> {
    match &claim.hops {
        PathHops::Via(chain) if claim.is_walkable && chain.contains(&owner) => Some(chain),
        PathHops::Via(_) | PathHops::Direct | PathHops::Elsewhere => None,
    }
}

/// Who stands before and behind `owner` in the chain.
fn neighbours(chain: &[NodeId], owner: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    let next_to = chain.windows(2).filter(move |two| two.contains(&owner));
    next_to.flatten().copied().filter(move |sap| *sap != owner)
}
