//! From rules as they are written to rules whose names are bound to ids. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::admin::RulePath;
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::control::store::nodes::unknown;
use crate::control::store::policies::Policy;
use crate::policy::{BoundSelector, Names, RuleFacts, World, check_form, did_you_mean};
use crate::types::{EntityName, Name, NodeId, NodeKind, OverlayId, Selector, Service, Timestamp};

/// A rule as somebody wrote it. Two rules are the same when they are written the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Written {
    pub(crate) name: Option<String>,
    pub(crate) action: Action,
    pub(crate) from: Selector,
    pub(crate) to: Selector,
    /// Sorted, each once.
    pub(crate) services: Vec<Service>,
    pub(crate) both: bool,
    pub(crate) path: Option<RulePath>,
    pub(crate) not_after: Option<Timestamp>,
    pub(crate) audit: bool,
    pub(crate) reason: Option<String>,
}

impl Written {
    /// A stored rule as it was written.
    pub(crate) fn of(world: &World, rule: &RuleFacts, reason: Option<&str>) -> Self {
        Self {
            name: rule.name.clone(),
            action: rule.action,
            from: selection::as_written(&rule.from),
            to: selection::as_written(&rule.to),
            services: rule.services.clone(),
            both: rule.both,
            path: rule.path.as_ref().and_then(|path| path_names(world, path)),
            not_after: rule.not_after,
            audit: rule.is_audit,
            reason: reason.map(str::to_owned),
        }
    }
}

/// A path in names; SaPs that are gone are left out.
pub(crate) fn path_names(world: &World, path: &PathHops) -> Option<RulePath> {
    let name = |id: &NodeId| world.nodes.get(id).map(|node| node.name.name.clone());
    match path {
        PathHops::Direct => Some(RulePath::Direct),
        PathHops::Via(hops) => Some(RulePath::Via(hops.iter().filter_map(name).collect())),
        PathHops::Elsewhere => None,
    }
}

/// Finds who is meant by a name, in one overlay's policy.
pub(crate) struct Binder<'a> {
    world: &'a World,
    entities: BTreeMap<&'a EntityName, NodeId>,
}

impl<'a> Binder<'a> {
    /// Of the entities in `world`.
    pub(crate) fn new(world: &'a World) -> Self {
        let entities = world
            .nodes
            .iter()
            .filter(|(_, node)| node.kind == NodeKind::Entity)
            .map(|(id, node)| (&node.name, *id))
            .collect();
        Self { world, entities }
    }

    fn entity(&self, name: &EntityName) -> Result<NodeId, Problem> {
        self.entities.get(name).copied().ok_or_else(|| {
            let names: Vec<String> = self.entities.keys().map(|name| name.to_string()).collect();
            unknown(NodeKind::Entity, name, &names)
        })
    }

    /// Binds one end of a rule of an overlay whose groups and services are those of `policy`.
    ///
    /// # Errors
    ///
    /// `NotFound` for a name that nobody bears, with the nearest one.
    pub(crate) fn end(
        &self,
        policy: &Policy,
        selector: &Selector,
    ) -> Result<BoundSelector, Problem> {
        BoundSelector::bind(selector, &Known { binder: self, policy })
    }

    /// Binds a rule and checks all of it that can be checked without other rules.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn rule(
        &self,
        policy: &Policy,
        overlay: OverlayId,
        written: &Written,
    ) -> Result<RuleFacts, Problem> {
        let from = self.end(policy, &written.from)?;
        let to = self.end(policy, &written.to)?;
        for end in [&from, &to] {
            self.check_member(overlay, end)?;
        }
        let path = match &written.path {
            None => None,
            Some(RulePath::Direct) => Some(PathHops::Direct),
            Some(RulePath::Via(names)) => Some(PathHops::Via(hops(self.world, overlay, names)?)),
        };
        let facts = RuleFacts {
            overlay,
            action: written.action,
            from,
            to,
            services: written.services.clone(),
            both: written.both,
            path,
            not_after: written.not_after,
            is_audit: written.audit,
            name: written.name.clone(),
        };
        check_form(self.world, &facts, written.reason.as_deref())?;
        Ok(facts)
    }

    fn check_member(&self, overlay: OverlayId, end: &BoundSelector) -> Result<(), Problem> {
        let BoundSelector::Node(id, name) = end else { return Ok(()) };
        let node = self.world.nodes.get(id);
        if node.is_some_and(|node| node.addresses.contains_key(&overlay)) {
            return Ok(());
        }
        let overlay = selection::overlay_name(self.world, overlay);
        let what = format!("{name} is not a member of the overlay {overlay}");
        Err(Problem::new(ProblemCode::Conflict, what).fix(format!("ovctl entity show {name}")))
    }
}

/// The names of one overlay's policy.
struct Known<'a> {
    binder: &'a Binder<'a>,
    policy: &'a Policy,
}

impl Names for Known<'_> {
    fn entity(&self, name: &EntityName) -> Result<NodeId, Problem> {
        self.binder.entity(name)
    }

    fn group(&self, name: &Name) -> Result<(), Problem> {
        let known = &self.policy.groups;
        known.get(name).map(|_| ()).ok_or_else(|| unknown_item("group", name, known.keys()))
    }

    fn service(&self, name: &Name) -> Result<(), Problem> {
        let known = &self.policy.services;
        known.get(name).map(|_| ()).ok_or_else(|| unknown_item("service", name, known.keys()))
    }
}

fn unknown_item<'n>(noun: &str, name: &Name, known: impl Iterator<Item = &'n Name>) -> Problem {
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no {noun} {name}"));
    match did_you_mean(name.as_str(), known.map(Name::as_str)) {
        Some(meant) => problem.fix(format!("did you mean {noun}:{meant}?")),
        None => problem.fix(format!("ovctl {noun} list, or ovctl {noun} create {name}")),
    }
}

fn usage(what: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Usage, what).why(why)
}

/// The SaPs of a `--via`.
pub(crate) fn hops(
    world: &World,
    overlay: OverlayId,
    names: &[Name],
) -> Result<Vec<NodeId>, Problem> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(usage(
            format!("the path goes over {twice} twice"),
            "packets would go round in a circle",
        )
        .fix("name each SaP once: --via sap1,sap2"));
    }
    if names.is_empty() {
        return Err(usage("the path makes no sense", "it names no SaP").fix("ovctl sap list"));
    }
    let saps: BTreeMap<&Name, NodeId> = world
        .nodes
        .iter()
        .filter(|(_, node)| node.kind == NodeKind::Sap)
        .map(|(id, node)| (&node.name.name, *id))
        .collect();
    let mut hops = Vec::new();
    for name in names {
        let id = *saps.get(name).ok_or_else(|| {
            let full = EntityName { namespace: Name::default(), name: name.clone() };
            let known: Vec<String> = saps.keys().map(|name| name.to_string()).collect();
            unknown(NodeKind::Sap, &full, &known)
        })?;
        if !world.nodes.get(&id).is_some_and(|node| node.serves.contains(&overlay)) {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the SaP {name} does not serve this overlay"),
            )
            .why("its token named other overlays")
            .fix("join it again with a token that names this one"));
        }
        hops.push(id);
    }
    Ok(hops)
}
