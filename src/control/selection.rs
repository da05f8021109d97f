//! Selectors against the world: binding names to ids, choosing the overlay, counting pairs. Pure.

use std::collections::BTreeSet;

use crate::api::{Problem, ProblemCode};
use crate::control::store::nodes::unknown;
use crate::policy::{BoundSelector, RuleFacts, World};
use crate::types::{EntityName, Name, NodeId, NodeKind, OverlayId, Selector};

/// The entity called `name`.
///
/// # Errors
///
/// `NotFound`, with the nearest name.
pub(crate) fn entity(world: &World, name: &EntityName) -> Result<NodeId, Problem> {
    let mut entities = world.nodes.iter().filter(|(_, node)| node.kind == NodeKind::Entity);
    entities.clone().find(|(_, node)| node.name == *name).map(|(id, _)| *id).ok_or_else(|| {
        let names: Vec<String> = entities.by_ref().map(|(_, node)| node.name.to_string()).collect();
        unknown(NodeKind::Entity, name, &names)
    })
}

/// The selector as people wrote it.
pub(crate) fn as_written(selector: &BoundSelector) -> Selector {
    match selector {
        BoundSelector::Any => Selector::Any,
        BoundSelector::Labels(labels) => Selector::Labels(labels.clone()),
        BoundSelector::Namespace(name) => Selector::Namespace(name.clone()),
        BoundSelector::Node(_, name) => Selector::Name(name.clone()),
        BoundSelector::Group(name) => Selector::Group(name.clone()),
        BoundSelector::Service(name) => Selector::Service(name.clone()),
        BoundSelector::Cidr(block) => Selector::Cidr(block.clone()),
    }
}

/// The overlay that is meant: the one named, else the only one that all named entities share.
///
/// # Errors
///
/// `NotFound` for an unknown one, `Conflict` when an end is no member, `Usage` when several fit.
pub(crate) fn overlay_of(
    world: &World,
    named: Option<&Name>,
    ends: [&BoundSelector; 2],
) -> Result<OverlayId, Problem> {
    let is_member = |overlay: OverlayId, end: &BoundSelector| match end {
        BoundSelector::Node(id, _) => {
            world.nodes.get(id).is_some_and(|node| node.addresses.contains_key(&overlay))
        }
        BoundSelector::Any
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Cidr(_) => true,
    };
    if let Some(name) = named {
        let found = world.overlays.iter().find(|(_, overlay)| overlay.name == *name);
        let Some((&id, _)) = found else {
            let near = super::suggest::nearest(
                name.as_str(),
                world.overlays.values().map(|overlay| overlay.name.as_str()),
            );
            return Err(Problem::new(ProblemCode::NotFound, format!("there is no overlay {name}"))
                .fix(near.unwrap_or_else(|| "ovctl overlay list".to_owned())));
        };
        if let Some(end) = ends.into_iter().find(|end| !is_member(id, end)) {
            let end = as_written(end);
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("{end} is not a member of the overlay {name}"),
            )
            .fix(format!("ovctl entity show {end}")));
        }
        return Ok(id);
    }
    let fitting: Vec<(OverlayId, &Name)> = world
        .overlays
        .iter()
        .filter(|(id, _)| ends.iter().all(|end| is_member(**id, end)))
        .map(|(id, overlay)| (*id, &overlay.name))
        .collect();
    match fitting.as_slice() {
        [(only, _)] => Ok(*only),
        [] => Err(Problem::new(
            ProblemCode::Conflict,
            format!("{} and {} share no overlay", as_written(ends[0]), as_written(ends[1])),
        )
        .fix("ovctl entity list, and join one of them to the other's overlay")),
        several => {
            let names: Vec<&str> = several.iter().map(|(_, name)| name.as_str()).collect();
            Err(Problem::new(ProblemCode::Usage, "which overlay is meant?")
                .why(format!("the ends share {}", names.join(", ")))
                .fix(format!("name it: --overlay {}", names.first().unwrap_or(&"NAME"))))
        }
    }
}

/// The overlay's name.
pub(crate) fn overlay_name(world: &World, overlay: OverlayId) -> Name {
    world.overlays.get(&overlay).map(|facts| facts.name.clone()).unwrap_or_default()
}

/// The members of an overlay that a selector selects.
pub(crate) fn selected(
    world: &World,
    overlay: OverlayId,
    selector: &BoundSelector,
) -> BTreeSet<NodeId> {
    crate::policy::members_of(world, overlay, selector)
}

/// How many ordered pairs of members a rule covers at the moment.
pub(crate) fn pairs_covered(world: &World, rule: &RuleFacts) -> u64 {
    let from = selected(world, rule.overlay, &rule.from);
    let to = selected(world, rule.overlay, &rule.to);
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let in_both = count(from.intersection(&to).count());
    let product = count(from.len()) * count(to.len());
    // Nobody is paired with itself; with `both` the pairs inside the intersection count once.
    if rule.both { 2 * product - in_both * in_both - in_both } else { product - in_both }
}

/// The named entities that are gone.
pub(crate) fn dangling<'a>(
    world: &World,
    ends: impl IntoIterator<Item = &'a BoundSelector>,
) -> Vec<EntityName> {
    ends.into_iter()
        .filter_map(|end| match end {
            BoundSelector::Node(id, name) if !world.nodes.contains_key(id) => Some(name.clone()),
            BoundSelector::Node(..)
            | BoundSelector::Any
            | BoundSelector::Labels(_)
            | BoundSelector::Namespace(_)
            | BoundSelector::Group(_)
            | BoundSelector::Service(_)
            | BoundSelector::Cidr(_) => None,
        })
        .collect()
}
