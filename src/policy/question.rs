//! Whom a question about flows means, end by end.
//!
//! A range of addresses has too many ends to ask about each. But no policy tells two addresses apart
//! between which no range begins or ends, so one address for each such stretch stands for all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::judge::{End, Overview};
use super::kubernetes::{Direction, Peer};
use super::select::{member, member_address, members_of};
use super::{BoundSelector, Decision, World, did_you_mean};
use crate::api::admin::CanQuestion;
use crate::api::{Problem, ProblemCode};
use crate::types::{
    CidrBlock, EntityName, Label, Name, NodeId, NodeKind, OverlayId, Prefix, Selector, Service,
};

/// Most pairs that one question is about.
const PAIRS_MAX: usize = 10_000;

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The overlay.
    pub overlay: OverlayId,
    /// Who would start flows; the address of a member is the member.
    pub from: BoundSelector,
    /// Who would be talked to.
    pub to: BoundSelector,
    /// Every ordered pair of different ends, one of them a member at least; never empty.
    pub pairs: Vec<(End, End)>,
    /// Whether the ends fit into other overlays, too, so that commands must name this one.
    pub is_overlay_needed: bool,
}

/// Whom `question` is about.
///
/// # Errors
///
/// `NotFound` with "did you mean" for what is unknown or means nobody; `Conflict` when several overlays
/// fit and none was named; `Usage` when both ends are the same or outside, or for too many pairs.
pub fn asked(world: &World, question: &CanQuestion) -> Result<Asked, Problem> {
    for end in [&question.from, &question.to] {
        check_known(world, end)?;
    }
    let fitting: Vec<OverlayId> =
        world.overlays.keys().copied().filter(|&id| fits_both(world, id, question)).collect();
    let overlay = match &question.overlay {
        Some(name) => named_overlay(world, name, question)?,
        None => only_overlay(world, question, &fitting)?,
    };
    let (from, to) = (bound(world, overlay, &question.from)?, bound(world, overlay, &question.to)?);
    let (sources, targets) = (ends(world, overlay, &from)?, ends(world, overlay, &to)?);
    let pairs = pairs(question, &sources, &targets)?;
    Ok(Asked { overlay, from, to, pairs, is_overlay_needed: fitting.len() > 1 })
}

/// The two entities that a question names which share no overlay.
#[must_use]
pub fn strangers(world: &World, question: &CanQuestion) -> Option<(NodeId, NodeId)> {
    if question.overlay.is_some() {
        return None;
    }
    let (from, to) = (only_entity(world, &question.from)?, only_entity(world, &question.to)?);
    let is_shared =
        |id: &OverlayId| member(world, *id, from).is_some() && member(world, *id, to).is_some();
    (from != to && !world.overlays.keys().any(is_shared)).then_some((from, to))
}

/// What policy says of one pair; without a service, whether anything at all may pass.
pub(super) fn decision(
    overview: &Overview<'_>,
    (from, to): &(End, End),
    service: Option<&Service>,
) -> Decision {
    match overview.asked(service, to).as_slice() {
        [] => Decision::NoRule,
        asked => overview.rule_on(from, to, asked).decision,
    }
}

/// An end as people call it.
pub(super) fn end_text(world: &World, end: &End) -> String {
    match end {
        End::Member(id) => {
            world.nodes.get(id).map(|facts| facts.name.to_string()).unwrap_or_default()
        }
        End::Outside(address) => address.to_string(),
    }
}

/// The overlays of an entity, by name.
#[must_use]
pub fn overlays_of(world: &World, id: NodeId) -> String {
    let overlays = world.nodes.get(&id).into_iter().flat_map(|facts| facts.addresses.keys());
    names_of(world, overlays.copied())
}

pub(super) fn overlay_name(world: &World, id: OverlayId) -> Name {
    world.overlays.get(&id).map(|facts| facts.name.clone()).unwrap_or_default()
}

fn names_of(world: &World, overlays: impl Iterator<Item = OverlayId>) -> String {
    let names: Vec<String> = overlays.map(|id| overlay_name(world, id).to_string()).collect();
    if names.is_empty() { "no overlay".to_owned() } else { names.join(", ") }
}

/// The one address that a selector is.
fn only_address(selector: &Selector) -> Option<IpAddr> {
    let Selector::Cidr(block) = selector else { return None };
    let is_one = block.cidr.prefix_len() == block.cidr.max_prefix_len();
    is_one.then(|| block.cidr.addr())
}

/// The entity that a name, or an address in whatever overlay, means.
fn only_entity(world: &World, selector: &Selector) -> Option<NodeId> {
    let address = only_address(selector);
    let mut entities = world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Entity);
    let found = entities.find(|(_, facts)| match selector {
        Selector::Name(name) => facts.name == *name,
        Selector::Cidr(_) => facts.addresses.values().any(|theirs| Some(*theirs) == address),
        Selector::Any
        | Selector::Labels(_)
        | Selector::Namespace(_)
        | Selector::Group(_)
        | Selector::Service(_) => false,
    });
    found.map(|(id, _)| *id)
}

/// Refuses what is in no overlay at all.
fn check_known(world: &World, selector: &Selector) -> Result<(), Problem> {
    match selector {
        Selector::Name(name) => entity(world, name).map(|_| ()),
        Selector::Group(name) => check_item("group", name, &world.groups),
        Selector::Service(name) => check_item("service", name, &world.services),
        Selector::Any | Selector::Labels(_) | Selector::Namespace(_) | Selector::Cidr(_) => Ok(()),
    }
}

fn check_item<V>(
    noun: &str,
    name: &Name,
    all: &BTreeMap<OverlayId, BTreeMap<Name, V>>,
) -> Result<(), Problem> {
    if all.values().any(|items| items.contains_key(name)) {
        return Ok(());
    }
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no {noun} {name}"));
    let known = all.values().flat_map(BTreeMap::keys).map(|name| format!("{noun}:{name}"));
    Err(hint(problem, &format!("{noun}:{name}"), known, noun))
}

/// The entity of that name.
fn entity(world: &World, name: &EntityName) -> Result<NodeId, Problem> {
    let named = |kind: NodeKind| {
        world.nodes.iter().find(|(_, f)| f.kind == kind && f.name == *name).map(|(id, _)| *id)
    };
    if let Some(id) = named(NodeKind::Entity) {
        return Ok(id);
    }
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no entity {name}"));
    if named(NodeKind::Sap).is_some() {
        return Err(problem.why(format!("{name} is a SaP, and rules speak of entities")));
    }
    let known = world.nodes.values().filter(|f| f.kind == NodeKind::Entity);
    Err(hint(problem, &name.to_string(), known.map(|f| f.name.to_string()), "entity"))
}

/// Adds "did you mean", or where to look.
fn hint(problem: Problem, typed: &str, known: impl Iterator<Item = String>, noun: &str) -> Problem {
    match did_you_mean(typed, known) {
        Some(meant) => problem.fix(format!("did you mean {meant}?")),
        None => problem.fix(format!("see `ovctl {noun} list`")),
    }
}

fn fits_both(world: &World, overlay: OverlayId, question: &CanQuestion) -> bool {
    [&question.from, &question.to].into_iter().all(|end| fits(world, overlay, end))
}

/// Whether the overlay is one that the selector can be about.
fn fits(world: &World, overlay: OverlayId, selector: &Selector) -> bool {
    match selector {
        Selector::Any | Selector::Labels(_) | Selector::Namespace(_) => true,
        Selector::Name(name) => {
            entity(world, name).is_ok_and(|id| member(world, overlay, id).is_some())
        }
        Selector::Group(name) => {
            world.groups.get(&overlay).is_some_and(|all| all.contains_key(name))
        }
        Selector::Service(name) => world.service(overlay, name).is_some(),
        Selector::Cidr(_) => only_address(selector).is_none_or(|address| {
            let has = |facts: &super::OverlayFacts| facts.cidr.contains(&address);
            let is_home = world.overlays.get(&overlay).is_some_and(has);
            is_home || !world.overlays.values().any(has)
        }),
    }
}

fn named_overlay(world: &World, name: &Name, question: &CanQuestion) -> Result<OverlayId, Problem> {
    let Some((&id, _)) = world.overlays.iter().find(|(_, facts)| facts.name == *name) else {
        let problem = Problem::new(ProblemCode::NotFound, format!("there is no overlay {name}"));
        let known = world.overlays.values().map(|facts| facts.name.to_string());
        return Err(hint(problem, name.as_str(), known, "overlay"));
    };
    let stranger = [&question.from, &question.to].into_iter().find(|end| !fits(world, id, end));
    match stranger {
        Some(end @ Selector::Name(_)) => Err(Problem::new(
            ProblemCode::NotFound,
            format!("{end} is not a member of the overlay {name}"),
        )
        .fix(format!("see `ovctl entity show {end}`"))),
        Some(end @ (Selector::Group(_) | Selector::Service(_))) => {
            Err(Problem::new(ProblemCode::NotFound, format!("the overlay {name} has no {end}"))
                .why("groups and services belong to one overlay"))
        }
        Some(Selector::Any | Selector::Labels(_) | Selector::Namespace(_) | Selector::Cidr(_))
        | None => Ok(id),
    }
}

fn only_overlay(
    world: &World,
    question: &CanQuestion,
    fitting: &[OverlayId],
) -> Result<OverlayId, Problem> {
    let CanQuestion { from, to, .. } = question;
    match fitting {
        [only] => Ok(*only),
        [] => {
            let fitting_one = |end: &Selector| {
                let all = world.overlays.keys().copied();
                names_of(world, all.filter(|&id| fits(world, id, end)))
            };
            Err(Problem::new(ProblemCode::NotFound, format!("{from} and {to} share no overlay"))
                .why(format!("{from} is in {}; {to} is in {}", fitting_one(from), fitting_one(to)))
                .fix("join one of them to the other's overlay"))
        }
        [first, ..] => Err(Problem::new(
            ProblemCode::Conflict,
            format!("{from} and {to} share several overlays"),
        )
        .why(format!("they are {}", names_of(world, fitting.iter().copied())))
        .fix(format!("say which one: --overlay {}", overlay_name(world, *first)))),
    }
}

/// The selector bound to ids. A single address of the overlay is the member that bears it.
fn bound(world: &World, overlay: OverlayId, selector: &Selector) -> Result<BoundSelector, Problem> {
    if let Some(address) = only_address(selector) {
        let bears = |(_, facts): &(&NodeId, &Arc<super::NodeFacts>)| {
            facts.addresses.get(&overlay) == Some(&address)
        };
        if let Some((&id, facts)) = world.nodes.iter().find(bears) {
            return Ok(BoundSelector::Node(id, facts.name.clone()));
        }
        if world.overlays.get(&overlay).is_some_and(|facts| facts.cidr.contains(&address)) {
            let name = overlay_name(world, overlay);
            let what = format!("nobody in the overlay {name} has the address {address}");
            return Err(Problem::new(ProblemCode::NotFound, what).fix("see `ovctl entity list`"));
        }
    }
    Ok(match selector {
        Selector::Any => BoundSelector::Any,
        Selector::Labels(labels) => BoundSelector::Labels(labels.clone()),
        Selector::Namespace(name) => BoundSelector::Namespace(name.clone()),
        Selector::Group(name) => BoundSelector::Group(name.clone()),
        Selector::Service(name) => BoundSelector::Service(name.clone()),
        Selector::Cidr(block) => BoundSelector::Cidr(block.clone()),
        Selector::Name(name) => BoundSelector::Node(entity(world, name)?, name.clone()),
    })
}

/// Everybody that the selector means: members, and an address for each stretch outside that policy
/// may tell from another.
fn ends(
    world: &World,
    overlay: OverlayId,
    selector: &BoundSelector,
) -> Result<BTreeSet<End>, Problem> {
    let mut ends: BTreeSet<End> =
        members_of(world, overlay, selector).into_iter().map(End::Member).collect();
    match selector {
        BoundSelector::Cidr(block) => {
            let has = |id: &NodeId| {
                let facts = member(world, overlay, *id);
                let address = facts.and_then(|facts| member_address(facts, overlay));
                address.is_some_and(|address| block.contains(address))
            };
            ends.extend(world.nodes.keys().copied().filter(has).map(End::Member));
            ends.extend(stretches(world, overlay, block));
        }
        BoundSelector::Group(name) => {
            let blocks = world.group(overlay, name).filter_map(as_block);
            ends.extend(blocks.flat_map(|block| stretches(world, overlay, block)));
        }
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => {}
    }
    if ends.is_empty() {
        return Err(nobody(world, overlay, selector));
    }
    Ok(ends)
}

fn nobody(world: &World, overlay: OverlayId, selector: &BoundSelector) -> Problem {
    let what = format!("{selector} means nobody in the overlay {}", overlay_name(world, overlay));
    let problem = Problem::new(ProblemCode::NotFound, what);
    let members = world.nodes.values().filter(|facts| facts.addresses.contains_key(&overlay));
    let near = match selector {
        BoundSelector::Labels(labels) => {
            let known: BTreeSet<&Label> = members.flat_map(|facts| &facts.labels).collect();
            let unknown = labels.iter().find(|label| !known.contains(label));
            let known = known.iter().map(|label| label.to_string());
            unknown.and_then(|label| did_you_mean(&label.to_string(), known))
        }
        BoundSelector::Namespace(name) => {
            let known: BTreeSet<&Name> = members.map(|facts| &facts.name.namespace).collect();
            let near = did_you_mean(name.as_str(), known.iter().map(|name| name.as_str()));
            near.map(|near| format!("namespace:{near}"))
        }
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Cidr(_) => None,
    };
    match near {
        Some(meant) => problem.fix(format!("did you mean {meant}?")),
        None => problem.fix("see `ovctl entity list`"),
    }
}

fn as_block(selector: &BoundSelector) -> Option<&CidrBlock> {
    match selector {
        BoundSelector::Cidr(block) => Some(block),
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Group(_)
        | BoundSelector::Service(_)
        | BoundSelector::Namespace(_) => None,
    }
}

/// One address outside the overlay for each stretch of `block` that no range of the policy divides.
fn stretches(world: &World, overlay: OverlayId, block: &CidrBlock) -> BTreeSet<End> {
    let home = world.overlays.get(&overlay).map(|facts| facts.cidr);
    let parts = |block: &CidrBlock| -> Vec<Prefix> {
        std::iter::once(block.cidr).chain(block.except.iter().copied()).collect()
    };
    let rules = world.rules.values().filter(|rule| rule.overlay == overlay);
    let groups = world.groups.get(&overlay).into_iter().flat_map(BTreeMap::values).flatten();
    let said = rules.flat_map(|rule| [&rule.from, &rule.to]).chain(groups).filter_map(as_block);
    let policies = world.network_policies.values().filter(|facts| facts.overlay == overlay);
    let peers = policies
        .flat_map(|facts| {
            [Direction::Ingress, Direction::Egress].map(|one| facts.policy.rules(one))
        })
        .flatten()
        .flatten()
        .flat_map(|rule| &rule.peers)
        .filter_map(|peer| match peer {
            Peer::Block(block) => Some(block),
            Peer::Pods { .. } => None,
        });
    let ranges = parts(block).into_iter().chain(said.chain(peers).flat_map(parts)).chain(home);
    ranges
        .flat_map(|range| [Some(range.network()), after(range.broadcast())])
        .flatten()
        .filter(|address| block.contains(*address))
        .filter(|address| home.is_none_or(|home| !home.contains(address)))
        .map(End::Outside)
        .collect()
}

/// The next address, if there is one.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            address.to_bits().checked_add(1).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
        }
        IpAddr::V6(address) => {
            address.to_bits().checked_add(1).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
    }
}

fn pairs(
    question: &CanQuestion,
    sources: &BTreeSet<End>,
    targets: &BTreeSet<End>,
) -> Result<Vec<(End, End)>, Problem> {
    let CanQuestion { from, to, .. } = question;
    let usage = |what: String| Problem::new(ProblemCode::Usage, what);
    if sources.len().saturating_mul(targets.len()) > PAIRS_MAX {
        let what = format!("{from} and {to} are {} and {} ends", sources.len(), targets.len());
        return Err(usage(what)
            .why(format!("at most {PAIRS_MAX} pairs are asked about at a time"))
            .fix("name fewer; or see all of them: ovctl policy matrix"));
    }
    let is_pair = |(source, target): &(&End, &End)| {
        source != target && !matches!((source, target), (End::Outside(_), End::Outside(_)))
    };
    let all = sources.iter().flat_map(|source| targets.iter().map(move |target| (source, target)));
    let pairs: Vec<(End, End)> =
        all.filter(is_pair).map(|(from, to)| (from.clone(), to.clone())).collect();
    if !pairs.is_empty() {
        return Ok(pairs);
    }
    if sources.iter().chain(targets).any(|end| matches!(end, End::Member(_))) {
        return Err(usage(format!("{from} is both ends of the question"))
            .why("packets of a host to itself never enter the overlay, and no rule judges them")
            .fix("name two different entities"));
    }
    Err(usage(format!("neither {from} nor {to} is a member"))
        .why("rules speak of flows that start or end at a member of the overlay")
        .fix("name an entity at one end"))
}
