//! Where a given number of SaPs should stand: the placement that the paper leaves to future work.
//!
//! Given what entities measured, choose sites so that the pairs that may talk have the shortest round trips, each
//! over its best site. This is the k-median problem with pairs as clients, which is hard to solve exactly; greedy
//! choice and then swaps come close (a test compares them with every choice there is). Sites are the SaPs
//! that there are, whose round trips are measured, and the places beside entities, whose round trips are
//! estimated from those.

use std::collections::{BTreeMap, BTreeSet};

use super::evaluate::default_saps;
use super::leg::FIRST_STEP;
use super::{RuleFacts, World, is_in_force, members_of};
use crate::api::path::{PlannedSite, SapPlan};
use crate::api::table::Action;
use crate::api::{Problem, ProblemCode};
use crate::types::{ApiVersion, Name, NodeId, OverlayId, Timestamp};

/// Most places beside entities that are looked at; alike ones count once.
const BESIDE_MAX: usize = 64;

/// Most pairs that are looked at.
const PAIRS_MAX: usize = 20_000;

/// Most rounds of swaps; each makes the sum smaller, so that few are ever needed.
const ROUNDS_MAX: usize = 32;

/// For each site the round trips to it, in microseconds, by entity.
type Legs = Vec<u64>;

/// Chooses `count` of `sites` so that the sum over `pairs` of the shortest way over a chosen one is small.
/// A site is the round trip from each entity to it; a pair is two places in those lists. Returns indexes, in
/// the order in which they were found to save most. Same input, same output.
fn choose(sites: &[Legs], pairs: &[(usize, usize)], count: usize) -> Vec<usize> {
    let count = count.min(sites.len());
    let ways: Vec<Vec<u64>> = sites
        .iter()
        .map(|legs| pairs.iter().map(|&(a, b)| legs[a].saturating_add(legs[b])).collect())
        .collect();
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count {
        let free = (0..sites.len()).filter(|site| !chosen.contains(site));
        let with = |site: usize| [chosen.as_slice(), &[site]].concat();
        let Some(best) = free.min_by_key(|&site| (sum(&ways, &with(site)), site)) else { break };
        chosen.push(best);
    }
    for _ in 0..ROUNDS_MAX {
        let now = sum(&ways, &chosen);
        let swaps = (0..chosen.len()).flat_map(|at| (0..sites.len()).map(move |site| (at, site)));
        let swapped = |(at, site): (usize, usize)| {
            let mut next = chosen.clone();
            next[at] = site;
            next
        };
        let free = swaps.filter(|(_, site)| !chosen.contains(site));
        let best = free.min_by_key(|&swap| (sum(&ways, &swapped(swap)), swap));
        match best {
            Some(swap) if sum(&ways, &swapped(swap)) < now => chosen = swapped(swap),
            Some(_) | None => break,
        }
    }
    chosen
}

/// The sum over all pairs of the shortest way over a chosen site, in microseconds.
fn sum(ways: &[Vec<u64>], chosen: &[usize]) -> u64 {
    let pairs = ways.first().map_or(0, Vec::len);
    let shortest =
        |pair: usize| chosen.iter().map(|&site| ways[site][pair]).min().unwrap_or(u64::MAX / 2);
    (0..pairs).map(shortest).fold(0, u64::saturating_add)
}

/// Says where `count` SaPs of an overlay should stand, and what that would save.
///
/// # Errors
///
/// `Usage` when the count makes no sense, `Conflict` when nothing was measured yet.
pub fn plan_saps(
    world: &World,
    overlay: OverlayId,
    count: usize,
    now: Timestamp,
) -> Result<SapPlan, Problem> {
    if count == 0 {
        return Err(Problem::new(ProblemCode::Usage, "a plan for no SaP makes no sense")
            .fix("ovctl sap plan --count 1"));
    }
    let saps = default_saps(world, overlay);
    let members = world.nodes.iter().filter(|(_, facts)| facts.addresses.contains_key(&overlay));
    let is_measured = |id: &NodeId| {
        let trips = world.nodes.get(id).map(|facts| &facts.round_trips);
        trips
            .is_some_and(|trips| !saps.is_empty() && saps.iter().all(|sap| trips.contains_key(sap)))
    };
    let (entities, unmeasured): (Vec<NodeId>, Vec<NodeId>) =
        members.map(|(id, _)| *id).partition(is_measured);
    if entities.is_empty() {
        return Err(Problem::new(ProblemCode::Conflict, "nothing was measured yet")
            .why("a plan needs entities that measured round trips to all SaPs of the overlay")
            .fix("ovctl path latency; entities measure within a minute or two of their start"));
    }
    let place: BTreeMap<NodeId, usize> = entities.iter().copied().zip(0..).collect();
    let mut pairs: BTreeSet<(usize, usize)> = BTreeSet::new();
    let is_allow = |rule: &&RuleFacts| {
        rule.overlay == overlay && rule.action == Action::Allow && is_in_force(rule, now)
    };
    for rule in world.rules.values().filter(is_allow) {
        let ends = |selector| {
            let members = members_of(world, overlay, selector);
            members.iter().filter_map(|id| place.get(id).copied()).collect::<Vec<_>>()
        };
        let (from, to) = (ends(&rule.from), ends(&rule.to));
        let all = from.iter().flat_map(|&a| to.iter().map(move |&b| (a.min(b), a.max(b))));
        pairs.extend(all.filter(|(a, b)| a != b).take(PAIRS_MAX.saturating_sub(pairs.len())));
    }
    if pairs.is_empty() {
        return Err(Problem::new(ProblemCode::Conflict, "no pair that was measured may talk")
            .why("a plan makes the ways of pairs short that rules allow")
            .fix("ovctl policy allow FROM TO"));
    }
    let pairs: Vec<(usize, usize)> = pairs.into_iter().collect();

    let trips: Vec<Vec<u64>> = entities
        .iter()
        .filter_map(|id| world.nodes.get(id))
        .map(|facts| saps.iter().map(|sap| u64::from(facts.round_trips[sap])).collect())
        .collect();
    let mut sites: Vec<Legs> =
        (0..saps.len()).map(|sap| trips.iter().map(|own| own[sap]).collect()).collect();
    let mut names: Vec<PlannedSite> = saps
        .iter()
        .map(|sap| PlannedSite { sap: sap_name(world, *sap), beside: None, pairs: 0 })
        .collect();
    let mut seen = BTreeSet::new();
    for (own, id) in trips.iter().zip(&entities) {
        if names.len() - saps.len() < BESIDE_MAX && seen.insert(own) {
            sites.push(trips.iter().map(|other| estimate(own, other)).collect());
            let beside = world.nodes.get(id).map(|facts| facts.name.clone());
            names.push(PlannedSite { sap: None, beside, pairs: 0 });
        }
    }

    let chosen = choose(&sites, &pairs, count);
    let way = |site: usize, (a, b): (usize, usize)| sites[site][a].saturating_add(sites[site][b]);
    for &pair in &pairs {
        if let Some(&best) = chosen.iter().min_by_key(|&&site| way(site, pair)) {
            names[best].pairs += 1;
        }
    }
    let mean = |open: &[usize]| {
        let shortest = |pair| open.iter().map(|&site| way(site, pair)).min().unwrap_or(0);
        let total: u64 = pairs.iter().map(|&pair| shortest(pair)).sum();
        total / u64::try_from(pairs.len()).unwrap_or(u64::MAX).max(1)
    };
    let there_are: Vec<usize> = (0..saps.len()).collect();
    Ok(SapPlan {
        api_version: ApiVersion::V1,
        overlay: world.overlays.get(&overlay).map(|facts| facts.name.clone()).unwrap_or_default(),
        now_micros: mean(&there_are),
        then_micros: mean(&chosen),
        pairs: u64::try_from(pairs.len()).unwrap_or(u64::MAX),
        unmeasured: u64::try_from(unmeasured.len()).unwrap_or(u64::MAX),
        sites: chosen.into_iter().map(|site| names[site].clone()).collect(),
    })
}

fn sap_name(world: &World, sap: NodeId) -> Option<Name> {
    world.nodes.get(&sap).map(|facts| facts.name.name.clone())
}

/// The round trip between two entities, of which only those to SaPs are known, in microseconds: at least the
/// largest difference, at most the way over the nearest SaP; more often near the least. Who measures the same
/// everywhere stands at the same place.
fn estimate(one: &[u64], two: &[u64]) -> u64 {
    if one == two {
        return FIRST_STEP;
    }
    let legs = || one.iter().zip(two);
    let least = legs().map(|(one, two)| one.abs_diff(*two)).max().unwrap_or(0);
    let most = legs().map(|(one, two)| one + two).min().unwrap_or(0);
    (least + most.saturating_sub(least) / 4).max(FIRST_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are not.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Entities and sites on a plane, in a few towns; who talks with whom.
    fn country(dice: &mut Dice) -> (Vec<Legs>, Vec<(usize, usize)>) {
        let towns: Vec<(u64, u64)> =
            (0..4).map(|_| (dice.below(80_000), dice.below(80_000))).collect();
        let mut near_town = |spread: u64| {
            let (x, y) = towns[usize::try_from(dice.below(4)).unwrap()];
            (x + dice.below(spread), y + dice.below(spread))
        };
        let entities: Vec<_> = (0..24).map(|_| near_town(8_000)).collect();
        let places: Vec<_> = (0..12).map(|_| near_town(20_000)).collect();
        let legs = |site: &(u64, u64)| {
            entities
                .iter()
                .map(|(x, y)| 500 + site.0.abs_diff(*x).max(site.1.abs_diff(*y)))
                .collect()
        };
        let sites = places.iter().map(legs).collect();
        let mut pair = || {
            let (a, b) = (dice.below(24), dice.below(24));
            (usize::try_from(a).unwrap(), usize::try_from(b).unwrap())
        };
        (sites, (0..60).map(|_| pair()).collect())
    }

    /// The best of all choices of `count` out of the sites.
    fn optimum(ways: &[Vec<u64>], count: usize) -> u64 {
        let choices = (0..1_u32 << ways.len()).filter(|set| set.count_ones() as usize == count);
        let sites = |set: u32| -> Vec<usize> {
            (0..ways.len()).filter(|site| set >> site & 1 == 1).collect()
        };
        choices.map(|set| sum(ways, &sites(set))).min().unwrap()
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "the gap is what this is for")]
    fn greedy_with_swaps_is_close_to_the_best_of_all_choices() {
        let (mut worst, mut total, mut count_of_runs, mut exact) = (0.0_f64, 0.0, 0.0, 0);
        for seed in 0..40 {
            let (sites, pairs) = country(&mut Dice(seed));
            let ways: Vec<Vec<u64>> = sites
                .iter()
                .map(|legs| pairs.iter().map(|&(a, b)| legs[a] + legs[b]).collect())
                .collect();
            for count in 1..=4 {
                let chosen = choose(&sites, &pairs, count);
                assert_eq!(chosen.len(), count);
                assert_eq!(chosen, choose(&sites, &pairs, count), "same input, same output");
                let (found, best) = (sum(&ways, &chosen), optimum(&ways, count));
                let gap = (found as f64 / best as f64 - 1.0) * 100.0;
                worst = worst.max(gap);
                total += gap;
                count_of_runs += 1.0;
                exact += i32::from(found == best);
            }
        }
        println!(
            "placement: the best of all choices in {exact} of {count_of_runs} cases; gap {:.3}% in the \
             mean, {worst:.2}% at worst",
            total / count_of_runs
        );
        assert!(worst <= 5.0, "{worst:.2}%");
    }

    #[test]
    fn more_sites_are_never_worse_and_more_than_there_are_is_all() {
        let (sites, pairs) = country(&mut Dice(7));
        let ways: Vec<Vec<u64>> = sites
            .iter()
            .map(|legs| pairs.iter().map(|&(a, b)| legs[a] + legs[b]).collect())
            .collect();
        let sums: Vec<u64> = (1..=12).map(|n| sum(&ways, &choose(&sites, &pairs, n))).collect();
        assert!(sums.is_sorted_by(|fewer, more| fewer >= more), "{sums:?}");
        assert_eq!(choose(&sites, &pairs, 99).len(), 12);
    }

    #[test]
    fn estimates_lie_between_what_is_possible() {
        assert_eq!(estimate(&[4_000, 30_000], &[4_000, 30_000]), FIRST_STEP);
        assert_eq!(estimate(&[4_000, 30_000], &[30_000, 4_000]), 28_000);
        assert_eq!(estimate(&[4_000, 30_000], &[5_000, 30_000]), FIRST_STEP);
    }
}
