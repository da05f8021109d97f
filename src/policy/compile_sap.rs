//! The table of a SaP: the rules of the pairs that may cross it, as sets and never as pairs.

use std::collections::BTreeSet;

use super::compile::Part;
use super::draft::{Draft, drop_self_pairs, has_pair};
use super::plan::{Claim, Plan, Way};
use super::{KeySource, World};
use crate::api::table::{Action, PathHops};
use crate::types::{NodeId, Service};

/// One allowed way, cut to what may cross the SaP.
struct Crossing<'a> {
    way: &'a Way,
    services: &'a [Service],
    from: BTreeSet<NodeId>,
    to: BTreeSet<NodeId>,
}

/// Compiles `owner`'s table of one overlay that it serves.
pub(super) fn compile(world: &World, plan: &Plan<'_>, keys: &dyn KeySource, owner: NodeId) -> Part {
    let elsewhere = claims_elsewhere(plan, owner);
    let denials: Vec<(&Way, BTreeSet<NodeId>)> = plan
        .ways
        .iter()
        .filter(|way| way.action == Action::Deny)
        .map(|way| (way, way.to_all().collect()))
        .collect();
    let crossings: Vec<Crossing<'_>> = plan
        .ways
        .iter()
        .filter(|way| way.action == Action::Allow)
        .flat_map(|way| way.to.iter().map(move |(services, to)| (way, services, to)))
        .map(|(way, services, to)| {
            let mut crossing = Crossing { way, services, from: way.from.clone(), to: to.clone() };
            crossing.cut(&elsewhere, &denials);
            crossing
        })
        .filter(|crossing| has_pair(&crossing.from, &crossing.to))
        .collect();
    let members: BTreeSet<NodeId> =
        crossings.iter().flat_map(|c| c.from.union(&c.to)).copied().collect();

    let mut draft = Draft::default();
    for &member in &members {
        draft.member(member, true);
        draft.destination_key(member);
    }
    for crossing in crossings {
        draft.rule(crossing.way, crossing.services, crossing.from, crossing.to);
    }
    let here = |set: &BTreeSet<NodeId>| set.intersection(&members).copied().collect();
    for (way, _) in &denials {
        for (services, to) in &way.to {
            draft.rule(way, services, here(&way.from), here(to));
        }
    }
    let mut saps = BTreeSet::new();
    for claim in &plan.paths {
        let (from, to): (BTreeSet<NodeId>, BTreeSet<NodeId>) = (here(&claim.from), here(&claim.to));
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

impl Crossing<'_> {
    /// Takes off who has all its pairs elsewhere, or denied.
    fn cut(&mut self, elsewhere: &[&Claim], denials: &[(&Way, BTreeSet<NodeId>)]) {
        drop_self_pairs(&mut self.from, &mut self.to);
        for claim in elsewhere {
            self.cut_pairs(&claim.from, &claim.to);
            self.cut_pairs(&claim.to, &claim.from);
        }
        for (deny, to) in denials {
            if deny.shadows(self.way) {
                self.cut_pairs(&deny.from, to);
            }
        }
        drop_self_pairs(&mut self.from, &mut self.to);
    }

    /// Takes off who has nothing left when the pairs from `from` to `to` are gone. What is gone in part
    /// only is left to the rows for denials and paths.
    fn cut_pairs(&mut self, from: &BTreeSet<NodeId>, to: &BTreeSet<NodeId>) {
        if self.from.is_subset(from) {
            self.to.retain(|id| !to.contains(id));
        } else if self.to.is_subset(to) {
            self.from.retain(|id| !from.contains(id));
        }
    }
}

/// The claims whose pairs never cross `owner`. One that comes behind another, which leads some of its
/// pairs over `owner`, is not among them: the first claim of a pair counts.
fn claims_elsewhere<'a>(plan: &'a Plan<'_>, owner: NodeId) -> Vec<&'a Claim> {
    let mut crossing: Vec<&Claim> = Vec::new();
    let mut elsewhere = Vec::new();
    for claim in &plan.paths {
        if chain_over(claim, owner).is_some() {
            crossing.push(claim);
        } else if !crossing.iter().any(|earlier| shares_a_pair(earlier, claim)) {
            elsewhere.push(claim);
        }
    }
    elsewhere
}

fn shares_a_pair(one: &Claim, two: &Claim) -> bool {
    let meet = |a: &BTreeSet<NodeId>, b: &BTreeSet<NodeId>| !a.is_disjoint(b);
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
