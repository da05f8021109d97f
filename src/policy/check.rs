//! What makes a rule impossible beside the ones that are there.

use std::collections::BTreeSet;

use super::evaluate::backwards;
use super::select::{concerned_destinations, ends, is_in_force, rule_sources};
use super::{RuleFacts, World};
use crate::api::table::PathHops;
use crate::types::{EntityName, Name, NodeId, NodeKind, OverlayId, RuleId, Timestamp};

/// Why a rule cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleConflict {
    /// It asks for another path than a rule in force for a pair that both cover.
    #[error("{other} already gives {pair} the path {path}")]
    Path {
        /// The rule in force.
        other: RuleId,
        /// One pair that both cover, in names.
        pair: String,
        /// The path in force, in words.
        path: String,
    },
    /// Its overlay is not there.
    #[error("there is no overlay {overlay}")]
    NoOverlay {
        /// The overlay it names.
        overlay: OverlayId,
    },
    /// Its path goes over no SaP and is not direct.
    #[error("the path names no SaP: give at least one, or ask for a direct path")]
    NoHops,
    /// Its chain comes back to a SaP.
    #[error("the path goes over {sap} twice, and packets would go round in a circle")]
    Cycle {
        /// The SaP.
        sap: Name,
    },
    /// Its chain names something that is no SaP.
    #[error("the path goes over {sap}, which is no SaP")]
    NoSap {
        /// Its name, or its id when it is gone.
        sap: String,
    },
    /// A SaP of its chain does not serve the overlay.
    #[error("the path goes over {sap}, which does not serve the overlay {overlay}")]
    NotServed {
        /// The SaP.
        sap: Name,
        /// The overlay.
        overlay: Name,
    },
    /// A direct path to or from an entity that told nobody where it can be reached.
    #[error(
        "{entity} has no underlay endpoint, so nothing can reach it directly: start its ovd with \
         --endpoint, or let the pair go over a SaP"
    )]
    NoEndpoint {
        /// The entity.
        entity: EntityName,
    },
}

/// Checks `rule` against the rules in force.
///
/// # Errors
///
/// The first conflict found.
pub fn check_rule(world: &World, rule: &RuleFacts, now: Timestamp) -> Result<(), RuleConflict> {
    let Some(path) = check_path(world, rule)? else { return Ok(()) };
    let mine = Claim::new(world, rule, path);
    let theirs = Claim::in_force(world, rule.overlay, now);
    theirs.iter().try_for_each(|(other, theirs)| mine.agrees(world, *other, theirs))
}

/// Checks those rules of `world` that are `new` against each other and all that are in force.
///
/// # Errors
///
/// The first rule that conflicts with an earlier one, and how.
pub fn check_paths(
    world: &World,
    overlay: OverlayId,
    new: &BTreeSet<RuleId>,
    now: Timestamp,
) -> Result<(), (RuleId, RuleConflict)> {
    let fresh = || new.iter().filter_map(|id| Some((*id, world.rules.get(id)?)));
    let mut have_paths = false;
    for (id, rule) in fresh() {
        have_paths |= check_path(world, rule).map_err(|conflict| (id, conflict))?.is_some();
    }
    if !have_paths {
        return Ok(());
    }
    let claims = Claim::in_force(world, overlay, now);
    for (id, mine) in claims.iter().filter(|(id, _)| new.contains(id)) {
        // Of two new ones the later is blamed.
        let others = claims.iter().filter(|(other, _)| !new.contains(other) || other < id);
        for (other, theirs) in others {
            mine.agrees(world, *other, theirs).map_err(|conflict| (*id, conflict))?;
        }
    }
    Ok(())
}

/// Checks a rule's path alone, and gives it.
fn check_path<'a>(
    world: &World,
    rule: &'a RuleFacts,
) -> Result<Option<&'a PathHops>, RuleConflict> {
    let Some(overlay) = world.overlays.get(&rule.overlay) else {
        return Err(RuleConflict::NoOverlay { overlay: rule.overlay });
    };
    match &rule.path {
        None => return Ok(None),
        Some(PathHops::Via(chain)) => check_chain(world, rule.overlay, &overlay.name, chain)?,
        Some(PathHops::Direct) => check_direct(world, rule)?,
        Some(PathHops::Elsewhere) => return Err(RuleConflict::NoHops),
    }
    Ok(rule.path.as_ref())
}

fn check_chain(
    world: &World,
    overlay: OverlayId,
    overlay_name: &Name,
    chain: &[NodeId],
) -> Result<(), RuleConflict> {
    if chain.is_empty() {
        return Err(RuleConflict::NoHops);
    }
    for (at, sap) in chain.iter().enumerate() {
        let facts = world.nodes.get(sap).filter(|facts| facts.kind == NodeKind::Sap);
        let Some(facts) = facts else {
            return Err(RuleConflict::NoSap { sap: node_name(world, *sap) });
        };
        let name = &facts.name.name;
        if chain[..at].contains(sap) {
            return Err(RuleConflict::Cycle { sap: name.clone() });
        }
        if !facts.serves.contains(&overlay) {
            return Err(RuleConflict::NotServed {
                sap: name.clone(),
                overlay: overlay_name.clone(),
            });
        }
    }
    Ok(())
}

/// Checks the path of a single pair.
///
/// # Errors
///
/// Why packets could not take it.
pub fn check_pair_path(
    world: &World,
    overlay: OverlayId,
    pair: [NodeId; 2],
    path: &PathHops,
) -> Result<(), RuleConflict> {
    let Some(facts) = world.overlays.get(&overlay) else {
        return Err(RuleConflict::NoOverlay { overlay });
    };
    match path {
        PathHops::Via(chain) => check_chain(world, overlay, &facts.name, chain),
        PathHops::Direct => check_reachable(world, &BTreeSet::from(pair)),
        PathHops::Elsewhere => Err(RuleConflict::NoHops),
    }
}

fn check_direct(world: &World, rule: &RuleFacts) -> Result<(), RuleConflict> {
    let mut touched = rule_sources(world, rule);
    touched.extend(concerned_destinations(world, rule));
    check_reachable(world, &touched)
}

fn check_reachable(world: &World, touched: &BTreeSet<NodeId>) -> Result<(), RuleConflict> {
    let unreachable = touched
        .iter()
        .filter_map(|id| world.nodes.get(id))
        .find(|facts| facts.endpoints.is_empty());
    match unreachable {
        Some(facts) => Err(RuleConflict::NoEndpoint { entity: facts.name.clone() }),
        None => Ok(()),
    }
}

/// What a rule says about paths.
struct Claim<'a> {
    rule: &'a RuleFacts,
    path: &'a PathHops,
    from: BTreeSet<NodeId>,
    to: BTreeSet<NodeId>,
}

/// Where two claims differ.
enum Disagreement {
    Pair(NodeId, NodeId),
    /// Both name the same selectors, which mean nobody yet.
    Selectors,
}

impl<'a> Claim<'a> {
    fn new(world: &World, rule: &'a RuleFacts, path: &'a PathHops) -> Self {
        let (from, to) = ends(world, rule);
        Self { rule, path, from, to }
    }

    /// What the rules in force say about paths.
    fn in_force(world: &'a World, overlay: OverlayId, now: Timestamp) -> Vec<(RuleId, Self)> {
        let rules = world.rules.iter().filter(|(_, rule)| rule.overlay == overlay);
        rules
            .filter(|(_, rule)| is_in_force(rule, now))
            .filter_map(|(id, rule)| Some((*id, Self::new(world, rule, rule.path.as_ref()?))))
            .collect()
    }

    /// Refuses to give a pair another path than `other` does.
    fn agrees(&self, world: &World, other: RuleId, theirs: &Self) -> Result<(), RuleConflict> {
        let Some(found) = self.disagrees(theirs) else { return Ok(()) };
        let pair = match found {
            Disagreement::Pair(left, right) => {
                format!("{} and {}", node_name(world, left), node_name(world, right))
            }
            Disagreement::Selectors => format!("{} and {}", theirs.rule.from, theirs.rule.to),
        };
        Err(RuleConflict::Path { other, pair, path: path_text(world, theirs.path) })
    }

    /// The first pair to which the two give different paths.
    fn disagrees(&self, other: &Self) -> Option<Disagreement> {
        let is_same = self.path == other.path;
        let is_reverse = *self.path == backwards(other.path);
        if is_same && is_reverse {
            // Direct, or one SaP: there is no direction to disagree about.
            return None;
        }
        let found = if is_same || is_reverse {
            self.pair_where(other, |mine, theirs| (mine == theirs) != is_same)
        } else {
            self.pair_where(other, |_, _| true)
        };
        found.map(|(left, right)| Disagreement::Pair(left, right)).or_else(|| {
            let (mine, theirs) = (self.rule, other.rule);
            let same_way = mine.from == theirs.from && mine.to == theirs.to;
            let other_way = mine.from == theirs.to && mine.to == theirs.from;
            ((same_way && !is_same) || (other_way && !same_way && !is_reverse))
                .then_some(Disagreement::Selectors)
        })
    }

    /// The first pair that both cover and whose starts, at which the two begin to walk their chains,
    /// fulfil `wanted`.
    fn pair_where(
        &self,
        other: &Self,
        wanted: impl Fn(NodeId, NodeId) -> bool,
    ) -> Option<(NodeId, NodeId)> {
        let find = |theirs_from: &BTreeSet<NodeId>, theirs_to: &BTreeSet<NodeId>| {
            let right: Vec<NodeId> = self.to.intersection(theirs_to).copied().collect();
            self.from.intersection(theirs_from).find_map(|&left| {
                let is_wanted = |&&right: &&NodeId| {
                    left != right
                        && self
                            .start(left, right)
                            .zip(other.start(left, right))
                            .is_some_and(|(mine, theirs)| wanted(mine, theirs))
                };
                right.iter().find(is_wanted).map(|&right| (left, right))
            })
        };
        find(&other.from, &other.to).or_else(|| find(&other.to, &other.from))
    }

    /// Which of the two counts as the rule's `from`; the lower id where both may.
    fn start(&self, one: NodeId, two: NodeId) -> Option<NodeId> {
        let (low, high) = (one.min(two), one.max(two));
        if self.from.contains(&low) && self.to.contains(&high) {
            Some(low)
        } else if self.from.contains(&high) && self.to.contains(&low) {
            Some(high)
        } else {
            None
        }
    }
}

/// A path in words: `direct` or `via sap1,sap2`.
pub(super) fn path_text(world: &World, path: &PathHops) -> String {
    match path {
        PathHops::Direct => "direct".to_owned(),
        PathHops::Elsewhere => "elsewhere".to_owned(),
        PathHops::Via(chain) => {
            let names: Vec<String> = chain.iter().map(|sap| node_name(world, *sap)).collect();
            format!("via {}", names.join(","))
        }
    }
}

/// The node's name, or its id when it is gone.
pub(super) fn node_name(world: &World, id: NodeId) -> String {
    world.nodes.get(&id).map_or_else(|| id.to_string(), |facts| facts.name.to_string())
}
